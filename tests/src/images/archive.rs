//! Images as files: an OCI layout in a directory, the same in a tar, and what `docker save` writes.

use std::{fs, io::Write, path::Path};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{Blob, Built, Index};

/// What an archive names: one image, or an index of several.
#[derive(Debug, Clone, Copy)]
pub enum Tagged<'a> {
    /// One image.
    Image(&'a Built),
    /// An index.
    Index(&'a Index),
}

impl<'a> Tagged<'a> {
    fn manifest(self) -> &'a Blob {
        match self {
            Self::Image(image) => &image.manifest,
            Self::Index(index) => &index.manifest,
        }
    }

    fn images(self) -> &'a [Built] {
        match self {
            Self::Image(image) => std::slice::from_ref(image),
            Self::Index(index) => &index.images,
        }
    }
}

/// Writes an OCI image layout into a directory.
pub fn oci_layout(directory: &Path, images: &[(&str, Tagged<'_>)]) -> Result<()> {
    for (path, bytes) in oci_files(images)? {
        let path = directory.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
        }
        fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Writes an OCI image layout as a tar, as `skopeo copy … oci-archive:` and `ctr image export` do.
pub fn oci_archive(path: &Path, images: &[(&str, Tagged<'_>)]) -> Result<()> {
    write_tar(path, oci_files(images)?)
}

/// Writes what `docker save` wrote before Docker 25: `manifest.json`, the configs and plain layer tars.
pub fn docker_archive(path: &Path, images: &[(&str, &Built)]) -> Result<()> {
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    let mut manifests: Vec<Value> = Vec::new();
    for (name, image) in images {
        let config = format!("{}.json", hex(image.id()));
        let mut layers = Vec::new();
        for tar in &image.tars {
            let layer = format!("{}/layer.tar", hex(&super::digest(tar)));
            if !files.iter().any(|(path, _)| *path == layer) {
                files.push((layer.clone(), tar.clone()));
            }
            layers.push(layer);
        }
        files.push((config.clone(), image.config.bytes.clone()));
        manifests.push(json!({ "Config": config, "RepoTags": [name], "Layers": layers }));
    }
    files.push(("manifest.json".to_owned(), serde_json::to_vec(&manifests)?));
    write_tar(path, files)
}

fn oci_files(images: &[(&str, Tagged<'_>)]) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = vec![("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
    let mut manifests = Vec::new();
    for (name, tagged) in images {
        let mut descriptor = tagged.manifest().descriptor();
        descriptor["annotations"] = json!({
            "io.containerd.image.name": name,
            "org.opencontainers.image.ref.name": name.rsplit_once(':').map_or(*name, |(_, tag)| tag),
        });
        manifests.push(descriptor);
        let mut blobs = vec![tagged.manifest()];
        for image in tagged.images() {
            blobs.extend([&image.manifest, &image.config]);
            blobs.extend(&image.layers);
        }
        for blob in blobs {
            let path = format!("blobs/sha256/{}", hex(&blob.digest));
            if !files.iter().any(|(known, _)| *known == path) {
                files.push((path, blob.bytes.clone()));
            }
        }
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    });
    files.insert(1, ("index.json".to_owned(), serde_json::to_vec(&index)?));
    Ok(files)
}

fn write_tar(path: &Path, files: Vec<(String, Vec<u8>)>) -> Result<()> {
    let file = fs::File::create(path).with_context(|| format!("create {}", path.display()))?;
    let mut builder = tar::Builder::new(std::io::BufWriter::new(file));
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, &name, bytes.as_slice()).with_context(|| format!("append {name}"))?;
    }
    builder.into_inner().and_then(|mut writer| writer.flush()).with_context(|| format!("write {}", path.display()))
}

fn hex(digest: &str) -> &str {
    digest.rsplit_once(':').map_or(digest, |(_, hex)| hex)
}
