//! What is pulled and run, and the registry on loopback that serves it.

use std::{fs, net::TcpListener, path::Path};

use anyhow::{Context as _, Result};

use crate::{
    containerd::pause_image,
    images::{
        self, Image,
        layer::{Compression, Layer},
    },
    registry::DockerRegistry,
};

/// Layers of the image of the pull rows, busybox's included.
const LAYERS: usize = 7;

/// How large the image of the pull rows is.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Bytes of all layers, unpacked.
    pub bytes: usize,
    /// Small files.
    pub files: usize,
}

/// A registry with the images of the benchmark.
#[derive(Debug)]
pub struct Images {
    registry: DockerRegistry,
    /// busybox and the probe.
    pub base: String,
    /// The image of the pull rows.
    pub large: String,
}

impl Images {
    /// Starts the registry below `ground` and pushes the base image.
    pub fn serve(ground: &Path) -> Result<Self> {
        let port =
            TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).context("find a port")?;
        let directory = ground.join("registry");
        fs::create_dir_all(&directory)?;
        let registry = DockerRegistry::start(&directory, port.port(), false)?;
        // Its pull is not measured, and compressing a program with debug information takes seconds.
        let image = images::base(&images::probe_beside_this_program()?)?.compression(Compression::None).build()?;
        registry.target.push("bench/base", "1", &image).context("push the base image")?;
        Ok(Self {
            base: registry.reference("bench/base", "1"),
            large: registry.reference("bench/large", "1"),
            registry,
        })
    }

    /// `host:port`.
    pub fn address(&self) -> &str {
        &self.registry.target.address
    }

    /// The registry's process.
    pub fn pid(&self) -> u32 {
        self.registry.pid()
    }

    /// Makes and pushes the pause image, under the name that containerd asks its mirror for.
    pub fn add_pause(&self, ground: &Path) -> Result<()> {
        let image = pause_image(ground)?;
        self.registry.target.push("pause", "3.10.1", &image).context("push the pause image")
    }

    /// Makes and pushes the image of the pull rows.
    pub fn add_large(&self, size: Size) -> Result<()> {
        let image = large(size)?.build()?;
        self.registry.target.push("bench/large", "1", &image).context("push the large image")
    }
}

/// busybox, and six layers with equal shares of the small files and two large files each: content as programs and texts
/// have it, which gzip makes less than half as large.
fn large(size: Size) -> Result<Image> {
    let mut content = Content::new();
    let mut image = Image::new().layer(images::busybox(images::Applets::HardLinks)?);
    let shares = LAYERS - 1;
    for share in 0..shares {
        let root = format!("opt/layer{share}");
        let mut layer = Layer::new().directory("opt/", 0o755).directory(&format!("{root}/"), 0o755);
        let files = size.files / shares;
        let mut left = size.bytes / shares;
        for file in 0..files {
            let directory = file / 100;
            if file % 100 == 0 {
                layer = layer.directory(&format!("{root}/{directory}/"), 0o755);
            }
            // 0.5 to 8 KiB, 3 on average.
            let length = (512 << (file % 5)).min(left);
            left -= length;
            layer = layer.file(&format!("{root}/{directory}/{file}"), 0o644, &content.take(length));
        }
        for half in 0..2 {
            layer = layer.file(&format!("{root}/large{half}"), 0o755, &content.take(left / 2));
        }
        image = image.layer(layer);
    }
    Ok(image)
}

/// Bytes that look random, the same in each run, and compress about as programs do: words from a small book, and between
/// them numbers.
struct Content {
    state: u64,
    book: Vec<[u8; 16]>,
}

impl Content {
    fn new() -> Self {
        let mut content = Self { state: 0x9e37_79b9_7f4a_7c15, book: Vec::new() };
        for _ in 0..512 {
            let mut word = [0; 16];
            word[..8].copy_from_slice(&content.next().to_le_bytes());
            word[8..].copy_from_slice(&content.next().to_le_bytes());
            content.book.push(word);
        }
        content
    }

    /// xorshift64.
    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    fn take(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 24);
        while bytes.len() < length {
            let next = self.next();
            let index = usize::try_from(next >> 55).expect("nine bits");
            bytes.extend_from_slice(&self.book[index]);
            bytes.extend_from_slice(&next.to_le_bytes()[..4]);
        }
        bytes.truncate(length);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_compresses_as_programs_do() {
        let bytes = Content::new().take(1 << 20);
        assert_eq!(bytes.len(), 1 << 20);
        let packed = Compression::Gzip.apply(&bytes).unwrap().len();
        assert!((bytes.len() / 4..bytes.len() / 2).contains(&packed), "{packed}");
    }

    #[test]
    fn the_large_image_has_its_size_and_files() {
        let size = Size { bytes: 6 << 20, files: 600 };
        let built = large(size).unwrap().build().unwrap();
        assert_eq!(built.layers.len(), LAYERS);
        let mut archive = tar::Archive::new(built.tar(1));
        let (mut files, mut bytes) = (0, 0);
        for entry in archive.entries().unwrap() {
            let entry = entry.unwrap();
            if entry.header().entry_type().is_file() {
                files += 1;
                bytes += entry.size();
            }
        }
        assert_eq!(files, 102);
        assert!(bytes.abs_diff(1 << 20) < 2, "{bytes}");
    }
}
