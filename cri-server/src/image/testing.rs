//! Layers, images and archives for the tests of this part, made in memory.

use std::{collections::BTreeMap, io::Write as _};

use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use super::digest::Digest;

/// A member of a layer.
pub(crate) struct Member<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) kind: u8,
    pub(crate) data: &'a [u8],
    pub(crate) link: &'a str,
    pub(crate) mode: u32,
    pub(crate) owner: (u64, u64),
    pub(crate) device: (u32, u32),
    pub(crate) pax: &'a [(&'a str, &'a [u8])],
}

impl Default for Member<'_> {
    fn default() -> Self {
        Self { name: b"", kind: b'0', data: b"", link: "", mode: 0o644, owner: (0, 0), device: (0, 0), pax: &[] }
    }
}

pub(crate) fn file<'a>(name: &'a str, data: &'a str) -> Member<'a> {
    Member { name: name.as_bytes(), data: data.as_bytes(), ..Member::default() }
}

pub(crate) fn dir(name: &str) -> Member<'_> {
    Member { name: name.as_bytes(), kind: b'5', mode: 0o755, ..Member::default() }
}

pub(crate) fn symlink<'a>(name: &'a str, link: &'a str) -> Member<'a> {
    Member { name: name.as_bytes(), kind: b'2', link, ..Member::default() }
}

pub(crate) fn hard_link<'a>(name: &'a str, link: &'a str) -> Member<'a> {
    Member { name: name.as_bytes(), kind: b'1', link, ..Member::default() }
}

/// A layer's tar, with names as given: `..` and absolute ones too.
pub(crate) fn layer(members: &[Member<'_>]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for member in members {
        if !member.pax.is_empty() {
            builder.append_pax_extensions(member.pax.iter().copied()).unwrap();
        }
        let mut header = Header::new_gnu();
        let name = &mut header.as_gnu_mut().unwrap().name;
        name[..member.name.len()].copy_from_slice(member.name);
        let link = &mut header.as_gnu_mut().unwrap().linkname;
        link[..member.link.len()].copy_from_slice(member.link.as_bytes());
        header.set_entry_type(EntryType::new(member.kind));
        header.set_mode(member.mode);
        header.set_uid(member.owner.0);
        header.set_gid(member.owner.1);
        header.set_mtime(1_500_000_000);
        header.set_device_major(member.device.0).unwrap();
        header.set_device_minor(member.device.1).unwrap();
        header.set_size(member.data.len() as u64);
        header.set_cksum();
        builder.append(&header, member.data).unwrap();
    }
    builder.into_inner().unwrap()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// An OCI archive of an image with one file.
pub(crate) fn small_archive(name: &str) -> Vec<u8> {
    let tar = layer(&[file("hello", "world")]);
    let image = TestImage::new(Format::Oci, &[(tar.clone(), gzip(&tar))]);
    image.oci_archive(&json!({"io.containerd.image.name": name}))
}

/// Which words a manifest uses.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Oci,
    Docker,
}

impl Format {
    pub(crate) fn manifest(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.manifest.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.v2+json",
        }
    }

    pub(crate) fn index(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.index.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.list.v2+json",
        }
    }
}

/// Blobs by digest, and the manifest that leads to them.
#[derive(Clone)]
pub(crate) struct TestImage {
    pub(crate) blobs: BTreeMap<String, Vec<u8>>,
    pub(crate) manifest: Vec<u8>,
    pub(crate) media_type: &'static str,
    pub(crate) config: Vec<u8>,
    pub(crate) layers: Vec<Vec<u8>>,
}

impl TestImage {
    /// `layers` are (plain tar, blob).
    pub(crate) fn new(format: Format, layers: &[(Vec<u8>, Vec<u8>)]) -> Self {
        let diff_ids: Vec<_> = layers.iter().map(|(tar, _)| Digest::sha256(tar).to_string()).collect();
        let config = json!({
            "architecture": super::manifest::host_platform().architecture, "os": "linux",
            "config": {"Cmd": ["/bin/true"], "User": "1002"},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        Self::with_config(format, layers, &config)
    }

    pub(crate) fn with_config(format: Format, layers: &[(Vec<u8>, Vec<u8>)], config: &Value) -> Self {
        let (config_type, layer_type) = match format {
            Format::Oci => ("application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.layer.v1.tar+gzip"),
            Format::Docker => {
                ("application/vnd.docker.container.image.v1+json", "application/vnd.docker.image.rootfs.diff.tar.gzip")
            }
        };
        let config = config.to_string().into_bytes();
        let mut blobs = BTreeMap::new();
        blobs.insert(Digest::sha256(&config).to_string(), config.clone());
        let descriptors: Vec<_> = layers
            .iter()
            .map(|(_, blob)| {
                blobs.insert(Digest::sha256(blob).to_string(), blob.clone());
                json!({"mediaType": layer_type, "digest": Digest::sha256(blob).to_string(), "size": blob.len()})
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": format.manifest(), "layers": descriptors,
            "config": {"mediaType": config_type, "digest": Digest::sha256(&config).to_string(), "size": config.len()},
        });
        Self {
            blobs,
            manifest: manifest.to_string().into_bytes(),
            media_type: format.manifest(),
            config,
            layers: layers.iter().map(|(tar, _)| tar.clone()).collect(),
        }
    }

    pub(crate) fn id(&self) -> String {
        Digest::sha256(&self.config).to_string()
    }

    pub(crate) fn digest(&self) -> String {
        Digest::sha256(&self.manifest).to_string()
    }

    /// An index with this image for our platform behind one for another.
    pub(crate) fn index(&self, format: Format) -> Vec<u8> {
        self.index_of(format, &Digest::sha256(b"foreign").to_string(), 7)
    }

    /// The same, with a foreign image that exists.
    pub(crate) fn index_with(&self, format: Format, foreign: &Self) -> Vec<u8> {
        self.index_of(format, &foreign.digest(), foreign.manifest.len())
    }

    fn index_of(&self, format: Format, foreign: &str, size: usize) -> Vec<u8> {
        let platform = super::manifest::host_platform();
        json!({
            "schemaVersion": 2, "mediaType": format.index(), "manifests": [
                {"mediaType": format.manifest(), "digest": foreign, "size": size,
                 "platform": {"os": "linux", "architecture": "s390x"}},
                {"mediaType": format.manifest(), "digest": self.digest(), "size": self.manifest.len(),
                 "platform": {"os": "linux", "architecture": platform.architecture}},
            ]
        })
        .to_string()
        .into_bytes()
    }

    /// An OCI layout in a tar.
    pub(crate) fn oci_archive(&self, annotations: &Value) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        let index = json!({"schemaVersion": 2, "manifests": [{
            "mediaType": self.media_type, "digest": self.digest(), "size": self.manifest.len(), "annotations": annotations,
        }]});
        append(&mut builder, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
        append(&mut builder, "./index.json", index.to_string().as_bytes());
        let manifest = [(self.digest(), self.manifest.clone())];
        for (digest, blob) in self.blobs.iter().map(|(digest, blob)| (digest.clone(), blob.clone())).chain(manifest) {
            append(&mut builder, &format!("blobs/{}", digest.replace(':', "/")), &blob);
        }
        builder.into_inner().unwrap()
    }

    /// What `docker save` wrote before it wrote OCI layouts.
    pub(crate) fn docker_archive(&self, tags: &[&str]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        let mut names = Vec::new();
        for (number, layer) in self.layers.iter().enumerate() {
            let name = format!("{number}/layer.tar");
            append(&mut builder, &name, layer);
            names.push(name);
        }
        append(&mut builder, "config.json", &self.config);
        let manifest = json!([{"Config": "config.json", "RepoTags": tags, "Layers": names}]);
        append(&mut builder, "manifest.json", manifest.to_string().as_bytes());
        builder.into_inner().unwrap()
    }
}

fn append(builder: &mut Builder<Vec<u8>>, name: &str, data: &[u8]) {
    let mut header = Header::new_gnu();
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    builder.append_data(&mut header, name, data).unwrap();
}
