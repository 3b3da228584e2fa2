//! Sends images to a registry over plain HTTP: the push half of the OCI distribution specification, whole blobs only.

use anyhow::{Context as _, Result, ensure};

use super::{Blob, Built, Index};
use crate::http::{Request, exchange};

/// A registry that takes pushes.
#[derive(Debug, Clone)]
pub struct Target {
    /// `host:port`.
    pub address: String,
    /// User and password for HTTP basic authentication.
    pub basic: Option<(String, String)>,
}

impl Target {
    /// Pushes one image under a tag.
    pub fn push(&self, repository: &str, tag: &str, image: &Built) -> Result<()> {
        self.push_blobs(repository, image)?;
        self.put_manifest(repository, tag, &image.manifest)
    }

    /// Pushes an index and all that it names.
    pub fn push_index(&self, repository: &str, tag: &str, index: &Index) -> Result<()> {
        for image in &index.images {
            self.push_blobs(repository, image)?;
            self.put_manifest(repository, &image.manifest.digest, &image.manifest)?;
        }
        self.put_manifest(repository, tag, &index.manifest)
    }

    fn push_blobs(&self, repository: &str, image: &Built) -> Result<()> {
        for blob in image.layers.iter().chain([&image.config]) {
            self.push_blob(repository, blob).with_context(|| format!("push {}", blob.digest))?;
        }
        Ok(())
    }

    fn push_blob(&self, repository: &str, blob: &Blob) -> Result<()> {
        let known = self.send(Request::new("HEAD", &format!("/v2/{repository}/blobs/{}", blob.digest)))?;
        if known.status == 200 {
            return Ok(());
        }
        let upload = self.send(Request::new("POST", &format!("/v2/{repository}/blobs/uploads/")))?;
        ensure!(upload.status == 202, "begin the upload: {} {}", upload.status, upload.text());
        let location = upload.header("location").context("begin the upload: no Location")?;
        // Some registries answer with a whole URL.
        let path = location.strip_prefix(&format!("http://{}", self.address)).unwrap_or(location);
        let separator = if path.contains('?') { '&' } else { '?' };
        let done = self.send(
            Request::new("PUT", &format!("{path}{separator}digest={}", blob.digest))
                .header("content-type", "application/octet-stream")
                .body(blob.bytes.clone()),
        )?;
        ensure!(done.status == 201, "upload: {} {}", done.status, done.text());
        Ok(())
    }

    fn put_manifest(&self, repository: &str, reference: &str, manifest: &Blob) -> Result<()> {
        let done = self.send(
            Request::new("PUT", &format!("/v2/{repository}/manifests/{reference}"))
                .header("content-type", manifest.media_type)
                .body(manifest.bytes.clone()),
        )?;
        ensure!(done.status == 201, "put manifest {reference}: {} {}", done.status, done.text());
        Ok(())
    }

    fn send(&self, mut request: Request) -> Result<crate::http::Response> {
        if let Some((user, password)) = &self.basic {
            request = request.basic(user, password);
        }
        exchange(&self.address, &request)
    }
}
