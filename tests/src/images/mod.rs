//! Images made at run time: what the tests, the benchmark and the demo pull, import and run.
//!
//! [`layer`] writes layer tars, good and bad; [`Image`] puts layers and a config under a manifest with Docker's or OCI's
//! media types; [`archive`] writes the three forms of files, [`push`] sends to a registry. [`busybox`] is the base: the
//! busybox of Debian's `busybox-static` with its applets as hard links, and our own `vaina-probe` for what busybox can't
//! do. Nothing comes from the internet.

pub mod archive;
pub mod critest;
pub mod layer;
pub mod push;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use self::layer::{Compression, Layer};

/// The image of the demo and of all examples: [`base`].
pub const DEMO: &str = "localhost/vaina-demo/busybox:1";

/// Where Debian's busybox-static puts the program.
const BUSYBOX: &str = "/bin/busybox";

/// Bytes under their digest.
#[derive(Debug, Clone)]
pub struct Blob {
    /// Media type in manifests and on the wire.
    pub media_type: &'static str,
    /// `sha256:<hex>` of the bytes, unless a test made it wrong on purpose.
    pub digest: String,
    /// The content.
    pub bytes: Vec<u8>,
}

impl Blob {
    fn new(media_type: &'static str, bytes: Vec<u8>) -> Self {
        Self { media_type, digest: digest(&bytes), bytes }
    }

    /// The OCI descriptor of this blob.
    pub fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len() })
    }
}

/// `sha256:<hex>`.
pub fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().fold(String::from("sha256:"), |mut text, byte| {
        use std::fmt::Write as _;
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Whose media types manifests and configs carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// `application/vnd.docker.…` schema 2.
    Docker,
    /// `application/vnd.oci.…`.
    Oci,
}

impl Flavour {
    const fn manifest(self) -> &'static str {
        match self {
            Self::Docker => "application/vnd.docker.distribution.manifest.v2+json",
            Self::Oci => "application/vnd.oci.image.manifest.v1+json",
        }
    }

    const fn config(self) -> &'static str {
        match self {
            Self::Docker => "application/vnd.docker.container.image.v1+json",
            Self::Oci => "application/vnd.oci.image.config.v1+json",
        }
    }

    const fn index(self) -> &'static str {
        match self {
            Self::Docker => "application/vnd.docker.distribution.manifest.list.v2+json",
            Self::Oci => "application/vnd.oci.image.index.v1+json",
        }
    }

    const fn layer(self, compression: Compression) -> &'static str {
        match (self, compression) {
            (Self::Docker, Compression::None) => "application/vnd.docker.image.rootfs.diff.tar",
            (Self::Docker, Compression::Gzip) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            (Self::Oci, Compression::None) => "application/vnd.oci.image.layer.v1.tar",
            (Self::Oci, Compression::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
            // Docker has no type of its own for zstd; its tools write OCI's.
            (_, Compression::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// An image being put together.
#[derive(Debug, Clone)]
pub struct Image {
    flavour: Flavour,
    compression: Compression,
    architecture: String,
    config: Value,
    layers: Vec<Vec<u8>>,
}

impl Image {
    /// An image without layers.
    pub fn new() -> Self {
        Self {
            flavour: Flavour::Oci,
            compression: Compression::Gzip,
            architecture: "amd64".to_owned(),
            config: json!({ "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"] }),
            layers: Vec::new(),
        }
    }

    /// Media types of manifest and config.
    pub fn flavour(mut self, flavour: Flavour) -> Self {
        self.flavour = flavour;
        self
    }

    /// How the layers travel.
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// Claims another architecture than this machine's.
    pub fn architecture(mut self, architecture: &str) -> Self {
        architecture.clone_into(&mut self.architecture);
        self
    }

    /// Puts a layer on top.
    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer.into_tar());
        self
    }

    /// Sets a key of the image config's `config` object: `User`, `Entrypoint`, `Cmd`, `Env`, `WorkingDir`, `StopSignal`.
    pub fn config(mut self, key: &str, value: Value) -> Self {
        self.config[key] = value;
        self
    }

    /// Compresses the layers and writes config and manifest.
    pub fn build(&self) -> Result<Built> {
        let tars = &self.layers;
        let layers = tars
            .iter()
            .map(|tar| Ok(Blob::new(self.flavour.layer(self.compression), self.compression.apply(tar)?)))
            .collect::<Result<Vec<_>>>()?;
        let diff_ids: Vec<String> = tars.iter().map(|tar| digest(tar)).collect();
        let history: Vec<Value> =
            tars.iter().map(|_| json!({ "created": EPOCH, "created_by": "vaina-images" })).collect();
        let config = json!({
            "created": EPOCH,
            "architecture": self.architecture,
            "os": "linux",
            "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
            "history": history,
        });
        let config = Blob::new(self.flavour.config(), serde_json::to_vec(&config)?);
        let mut built = Built {
            flavour: self.flavour,
            architecture: self.architecture.clone(),
            manifest: Blob::new(self.flavour.manifest(), Vec::new()),
            config,
            layers,
            tars: tars.clone(),
        };
        built.rewrite_manifest()?;
        Ok(built)
    }
}

impl Default for Image {
    fn default() -> Self {
        Self::new()
    }
}

/// All of an image's times: builds are reproducible.
const EPOCH: &str = "2026-01-01T00:00:00Z";

/// A finished image.
#[derive(Debug, Clone)]
pub struct Built {
    flavour: Flavour,
    architecture: String,
    /// The image manifest.
    pub manifest: Blob,
    /// The image config; its digest is the image id.
    pub config: Blob,
    /// Compressed layers, lowest first.
    pub layers: Vec<Blob>,
    /// The same, not compressed.
    tars: Vec<Vec<u8>>,
}

impl Built {
    /// The image id as the CRI knows it: the digest of the config.
    pub fn id(&self) -> &str {
        &self.config.digest
    }

    /// A layer that is not compressed.
    pub fn tar(&self, index: usize) -> &[u8] {
        &self.tars[index]
    }

    /// Writes the manifest anew, for tests that change a blob's digest or size after the fact.
    pub fn rewrite_manifest(&mut self) -> Result<()> {
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": self.flavour.manifest(),
            "config": self.config.descriptor(),
            "layers": self.layers.iter().map(Blob::descriptor).collect::<Vec<_>>(),
        });
        self.manifest = Blob::new(self.flavour.manifest(), serde_json::to_vec(&manifest)?);
        Ok(())
    }

    /// Changes one byte in the middle of a layer and leaves its digest, as a broken disk or proxy would.
    pub fn corrupt_layer(&mut self, index: usize) {
        let bytes = &mut self.layers[index].bytes;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
    }
}

/// Several images of different architectures under one name.
#[derive(Debug, Clone)]
pub struct Index {
    /// The image index or manifest list.
    pub manifest: Blob,
    /// What it points to.
    pub images: Vec<Built>,
}

impl Index {
    /// An index in the flavour of its first image.
    pub fn new(images: Vec<Built>) -> Result<Self> {
        ensure!(!images.is_empty(), "an index needs an image");
        let flavour = images[0].flavour;
        let manifests: Vec<Value> = images
            .iter()
            .map(|image| {
                let mut descriptor = image.manifest.descriptor();
                descriptor["platform"] = json!({ "architecture": image.architecture, "os": "linux" });
                descriptor
            })
            .collect();
        let manifest = json!({ "schemaVersion": 2, "mediaType": flavour.index(), "manifests": manifests });
        Ok(Self { manifest: Blob::new(flavour.index(), serde_json::to_vec(&manifest)?), images })
    }
}

/// How the applets of busybox become files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applets {
    /// Hard links to one file.
    HardLinks,
    /// Symbolic links to `/bin/busybox`.
    SymbolicLinks,
}

/// The base layer of nearly every image here.
pub fn busybox(applets: Applets) -> Result<Layer> {
    let program = fs::read(BUSYBOX).with_context(|| format!("read {BUSYBOX} (Debian package busybox-static)"))?;
    let list = Command::new(BUSYBOX).arg("--list").output().context("list the applets of busybox")?;
    ensure!(list.status.success(), "busybox --list: {}", list.status);
    let names: BTreeSet<&str> = std::str::from_utf8(&list.stdout)?.lines().filter(|name| *name != "busybox").collect();

    let mut layer = Layer::new();
    for (path, mode) in DIRECTORIES {
        layer = layer.directory(path, mode);
    }
    layer = layer.file("bin/busybox", 0o755, &program);
    for name in names {
        let path = format!("bin/{name}");
        layer = match applets {
            Applets::HardLinks => layer.hard_link(&path, "bin/busybox"),
            Applets::SymbolicLinks => layer.symlink(&path, "/bin/busybox"),
        };
    }
    Ok(layer.file("etc/passwd", 0o644, PASSWD.as_bytes()).file("etc/group", 0o644, GROUP.as_bytes()).file(
        "www/index.html",
        0o644,
        b"the page of the image\n",
    ))
}

const DIRECTORIES: [(&str, u32); 16] = [
    ("bin/", 0o755),
    ("dev/", 0o755),
    ("etc/", 0o755),
    ("home/", 0o755),
    ("lib/", 0o755),
    ("lib/x86_64-linux-gnu/", 0o755),
    ("lib64/", 0o755),
    ("proc/", 0o755),
    ("root/", 0o700),
    ("run/", 0o755),
    ("sys/", 0o755),
    ("tmp/", 0o1777),
    ("usr/", 0o755),
    ("usr/bin/", 0o755),
    ("var/", 0o755),
    ("www/", 0o755),
];

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
    www-data:x:33:33:www-data:/www:/bin/sh\n\
    default-user:x:1000:1000::/home:/bin/sh\n\
    nobody:x:65534:65534:nobody:/:/bin/false\n";

const GROUP: &str = "root:x:0:\n\
    www-data:x:33:\n\
    default-user:x:1000:\n\
    group-defined-in-image:x:50000:default-user\n\
    nogroup:x:65534:\n";

/// A layer with `vaina-probe` as `/bin/probe`; it is static, as all programs of this workspace are.
pub fn probe(program: &Path) -> Result<Layer> {
    let bytes = fs::read(program).with_context(|| format!("read {}", program.display()))?;
    Ok(Layer::new().file("bin/probe", 0o755, &bytes))
}

/// busybox with `vaina-probe`, and a shell as the command: what the tests and the demo run.
pub fn base(probe_program: &Path) -> Result<Image> {
    Ok(Image::new().layer(busybox(Applets::HardLinks)?).layer(probe(probe_program)?).config("Cmd", json!(["/bin/sh"])))
}

/// `vaina-probe` beside the running program, where cargo puts both.
pub fn probe_beside_this_program() -> Result<PathBuf> {
    let this = std::env::current_exe().context("find this program")?;
    let directory = this.parent().context("find this program's directory")?;
    // Test programs are one level deeper, in `deps/`.
    [directory.join("vaina-probe"), directory.join("../vaina-probe")]
        .into_iter()
        .find(|path| path.exists())
        .with_context(|| format!("find vaina-probe beside {} (make build)", this.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_the_same_each_time_it_is_made() {
        let make = || Image::new().layer(Layer::new().file("a", 0o644, b"a")).build().unwrap();
        assert_eq!(make().manifest.digest, make().manifest.digest);
    }

    #[test]
    fn a_corrupt_layer_keeps_its_digest() {
        let mut image = Image::new().layer(Layer::new().file("a", 0o644, b"a")).build().unwrap();
        let before = image.layers[0].digest.clone();
        image.corrupt_layer(0);
        assert_eq!(image.layers[0].digest, before);
        assert_ne!(digest(&image.layers[0].bytes), before);
    }

    #[test]
    fn an_index_names_the_architecture_of_each_image() {
        let image = |architecture| Image::new().architecture(architecture).build().unwrap();
        let index = Index::new(vec![image("s390x"), image("amd64")]).unwrap();
        let value: Value = serde_json::from_slice(&index.manifest.bytes).unwrap();
        assert_eq!(value["manifests"][0]["platform"]["architecture"], "s390x");
        assert_eq!(value["manifests"][1]["digest"], index.images[1].manifest.digest);
    }
}
