//! Images from an archive file: an OCI layout in a tar, or what `docker save` writes; both also compressed as a whole.
//!
//! The same rules as for a pull: every blob is hashed, every layer checked against the config's diff ids, and nothing is
//! recorded before all of the archive's images are complete. The file is read where it lies (it must be seekable; a
//! compressed one is first inflated into an unlinked file beside the store), and no member's name is ever used as a path.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufReader, Read, Seek as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::future::join_all;
use rustix::fs::{Mode, OFlags};
use serde::Deserialize;
use thiserror::Error;

use super::{
    CommitError, Complete, FetchError, Image, ImageStore, Reference, ReferenceError, blocking,
    digest::Digest,
    layer::{Expected, decompressed},
    manifest::{self, CONFIG_MAX, Descriptor, Document, MANIFEST_MAX, ManifestError},
    tar::{Archive, EntryKind, TarError, lossy},
};
use crate::error::{Classify, Kind};

/// Bound of the members of an archive; an image has some dozens.
const MEMBERS_MAX: usize = 100_000;
/// How deep indexes may nest.
const DEPTH_MAX: usize = 3;
/// containerd's annotation: the whole name.
const IMAGE_NAME: &str = "io.containerd.image.name";
/// OCI's annotation: a whole name or only the tag.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Why an archive was not imported.
#[derive(Debug, Error)]
pub enum ImportError {
    /// The file.
    #[error("open archive {}", .path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The file, later.
    #[error("read archive")]
    Read(#[source] io::Error),
    /// Inflating a compressed archive.
    #[error("decompress archive")]
    Decompress(#[source] io::Error),
    /// Not a tar that we accept.
    #[error("read archive")]
    Tar(#[source] TarError),
    /// More members than any image has.
    #[error("archive has more than {MEMBERS_MAX} members")]
    Members,
    /// A tar, but of something else.
    #[error("archive is neither an OCI layout (index.json) nor from docker save (manifest.json)")]
    NotAnImage,
    /// It refers to something that it does not hold.
    #[error("archive lacks {0:?}")]
    Missing(String),
    /// A JSON member beyond any sense.
    #[error("{0:?} in the archive is larger than its kind may be")]
    TooLarge(String),
    /// A blob is not what it is named.
    #[error("{member:?} in the archive has digest {found}")]
    Digest {
        /// The member.
        member: String,
        /// Of its content.
        found: Digest,
    },
    /// A JSON member is broken.
    #[error("parse {member:?} of the archive")]
    Json {
        /// Which.
        member: &'static str,
        /// Cause.
        source: serde_json::Error,
    },
    /// A manifest, an index or a config.
    #[error("read image in the archive")]
    Manifest(#[source] ManifestError),
    /// Indexes of indexes.
    #[error("indexes in the archive nest more than {DEPTH_MAX} deep")]
    Depth,
    /// A layer.
    #[error("import layer {layer}")]
    Layer {
        /// Its member or digest.
        layer: String,
        /// Cause.
        #[source]
        source: Arc<FetchError>,
    },
    /// A name in the archive.
    #[error("read image name in the archive")]
    Name(#[source] ReferenceError),
    /// One name for several images.
    #[error("archive holds {0} images, so one name can't be given to it")]
    Several(usize),
    /// The record.
    #[error("record image")]
    Record(#[source] CommitError),
}

impl Classify for ImportError {
    fn kind(&self) -> Kind {
        match self {
            Self::Open { source, .. } if source.kind() == io::ErrorKind::NotFound => Kind::NotFound,
            Self::Read(source) | Self::Decompress(source) if source.kind() == io::ErrorKind::StorageFull => {
                Kind::ResourceExhausted
            }
            Self::Layer { source, .. } => source.kind(),
            Self::Record(source) => source.kind(),
            Self::Read(_) => Kind::Internal,
            Self::Open { .. }
            | Self::Decompress(_)
            | Self::Tar(_)
            | Self::Members
            | Self::NotAnImage
            | Self::Missing(_)
            | Self::TooLarge(_)
            | Self::Digest { .. }
            | Self::Json { .. }
            | Self::Manifest(_)
            | Self::Depth
            | Self::Name(_)
            | Self::Several(_) => Kind::InvalidArgument,
        }
    }
}

/// One image of the archive before its layers are unpacked.
struct Found {
    config: Vec<u8>,
    layers: Vec<FoundLayer>,
    tags: Vec<String>,
    digests: Vec<String>,
}

struct FoundLayer {
    member: Member,
    name: String,
    blob: Option<(Digest, u64)>,
}

pub(super) async fn run(
    store: &ImageStore,
    path: &Path,
    name: Option<Reference>,
) -> Result<Vec<Arc<Image>>, ImportError> {
    let (file, root) = (path.to_owned(), store.inner.config.root.clone());
    let contents = blocking(move || Contents::open(&file, &root)).await?;
    let contents = Arc::new(contents);
    let reader = Arc::clone(&contents);
    let found = blocking(move || reader.images(name.as_ref())).await?;
    let mut complete = Vec::new();
    for image in found {
        complete.push(unpack(store, &contents, image).await?);
    }
    let mut images = Vec::new();
    for image in complete {
        images.push(store.commit(image).await.map_err(ImportError::Record)?);
    }
    Ok(images)
}

async fn unpack(store: &ImageStore, contents: &Arc<Contents>, found: Found) -> Result<Complete, ImportError> {
    let (config_text, config, diff_ids) =
        manifest::parse_config(found.config, Some(found.layers.len())).map_err(ImportError::Manifest)?;
    let layers = manifest::distinct(&diff_ids).into_iter().filter_map(|index| {
        let (diff_id, layer) = (diff_ids.get(index)?, found.layers.get(index)?);
        let expected = Expected { blob: layer.blob.clone(), diff_id: diff_id.clone() };
        let fetch = move || {
            let (store, expected) = (store.clone(), expected.clone());
            let section = contents.section(layer.member);
            async move {
                // As with downloads: each takes a thread. Never closed.
                let _permit = store.inner.downloads.acquire().await;
                store.unpack_layer(section, expected).await
            }
        };
        Some(async move {
            store
                .inner
                .layers
                .obtain(diff_id, fetch)
                .await
                .map_err(|source| ImportError::Layer { layer: layer.name.clone(), source })
        })
    });
    // All of them, so that none is still being unpacked when the caller hears of an error.
    let layers = join_all(layers).await.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(Complete { config_text, config, layers, tags: found.tags, digests: found.digests })
}

#[derive(Debug, Clone, Copy)]
struct Member {
    offset: u64,
    size: u64,
}

/// The archive's file and where its members lie.
struct Contents {
    file: Arc<File>,
    members: HashMap<String, Member>,
    /// Old `docker save` writes a layer that came twice as a symlink to the first.
    links: HashMap<String, String>,
}

impl Contents {
    fn open(path: &Path, root: &Path) -> Result<Self, ImportError> {
        let open = |source| ImportError::Open { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(open)?;
        if !file.metadata().map_err(open)?.is_file() {
            return Err(open(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
        }
        // The descriptor may be shared with the process that passed it.
        file.rewind().map_err(ImportError::Read)?;
        let mut head = [0; 4];
        let read = file.read_at(&mut head, 0).map_err(ImportError::Read)?;
        let is_compressed = matches!(head.get(..read), Some([0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd]));
        if is_compressed {
            file = inflate(&file, root)?;
        }
        let file = Arc::new(file);
        let size = file.metadata().map_err(ImportError::Read)?.len();
        let whole = Section { file: Arc::clone(&file), offset: 0, left: size };
        let mut contents = Self { file, members: HashMap::new(), links: HashMap::new() };
        contents.scan(whole)?;
        Ok(contents)
    }

    fn scan(&mut self, whole: Section) -> Result<(), ImportError> {
        let mut archive = Archive::new(BufReader::with_capacity(1 << 20, whole));
        while let Some(entry) = archive.next_entry().map_err(ImportError::Tar)? {
            if self.members.len() + self.links.len() >= MEMBERS_MAX {
                return Err(ImportError::Members);
            }
            let name = normal(&lossy(&entry.path));
            match entry.kind {
                EntryKind::File => {
                    self.members.insert(name, Member { offset: archive.offset(), size: entry.size });
                }
                EntryKind::Symlink | EntryKind::HardLink => {
                    let link = lossy(&entry.link);
                    let target = match (entry.kind, name.rsplit_once('/')) {
                        (EntryKind::Symlink, Some((dir, _))) => normal(&format!("{dir}/{link}")),
                        _ => normal(&link),
                    };
                    self.links.insert(name, target);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn member(&self, name: &str) -> Option<Member> {
        let name = normal(name);
        let name = self.links.get(&name).unwrap_or(&name);
        self.members.get(name).copied()
    }

    fn section(&self, member: Member) -> Section {
        Section { file: Arc::clone(&self.file), offset: member.offset, left: member.size }
    }

    fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>, ImportError> {
        let member = self.member(name).ok_or_else(|| ImportError::Missing(name.to_owned()))?;
        if member.size > limit {
            return Err(ImportError::TooLarge(name.to_owned()));
        }
        let mut bytes = Vec::new();
        self.section(member).read_to_end(&mut bytes).map_err(ImportError::Read)?;
        Ok(bytes)
    }

    fn blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, ImportError> {
        let name = blob_name(digest);
        let bytes = self.read(&name, limit)?;
        if digest.matches(&bytes) {
            Ok(bytes)
        } else {
            Err(ImportError::Digest { member: name, found: Digest::sha256(&bytes) })
        }
    }

    fn images(&self, name: Option<&Reference>) -> Result<Vec<Found>, ImportError> {
        let images = if self.member("index.json").is_some() {
            self.oci_images(name)?
        } else if self.member("manifest.json").is_some() {
            self.docker_images(name)?
        } else {
            return Err(ImportError::NotAnImage);
        };
        match images.len() {
            0 => Err(ImportError::NotAnImage),
            1 => Ok(images),
            _ if name.is_none() => Ok(images),
            several => Err(ImportError::Several(several)),
        }
    }

    fn oci_images(&self, name: Option<&Reference>) -> Result<Vec<Found>, ImportError> {
        let index = self.read("index.json", MANIFEST_MAX)?;
        let Document::Index(candidates) = manifest::parse(&index).map_err(ImportError::Manifest)? else {
            return Err(ImportError::NotAnImage);
        };
        // The platforms of one image may be listed side by side under its name; several names are several images.
        let mut groups: Vec<(Option<String>, Vec<_>)> = Vec::new();
        for candidate in candidates {
            let annotations = &candidate.descriptor.annotations;
            // The second may be a tag without a repository, which is no name.
            let whole = |name: &&String| name.contains(['/', ':', '@']);
            let stated = annotations.get(IMAGE_NAME).or_else(|| annotations.get(REF_NAME).filter(whole)).cloned();
            match groups.iter_mut().find(|(name, _)| *name == stated) {
                Some((_, group)) if candidate.platform.is_some() => group.push(candidate),
                _ => groups.push((stated, vec![candidate])),
            }
        }
        let host = manifest::host_platform();
        let mut images: Vec<Found> = Vec::new();
        for (stated, group) in groups {
            let top = manifest::choose(&group, &host).map_err(ImportError::Manifest)?;
            let (tags, digests) = match (
                name,
                stated.map(|stated| stated.parse::<Reference>()).transpose().map_err(ImportError::Name)?,
            ) {
                (Some(name), _) => names(name, &top.digest),
                (None, Some(name)) => names(&name, &top.digest),
                (None, None) => (Vec::new(), Vec::new()),
            };
            let manifest = self.resolve(top, 0)?;
            let config = self.blob(&manifest.config.digest, CONFIG_MAX)?;
            // Two names of one image are two entries of the index.
            if let Some(known) = images.iter_mut().find(|known| known.config == config) {
                known.tags.extend(tags);
                known.digests.extend(digests);
                continue;
            }
            let layers = manifest.layers.iter().map(|layer| {
                let member = blob_name(&layer.digest);
                Ok(FoundLayer {
                    member: self.member(&member).ok_or(ImportError::Missing(member))?,
                    name: layer.digest.to_string(),
                    blob: Some((layer.digest.clone(), layer.size)),
                })
            });
            let layers = layers.collect::<Result<_, ImportError>>()?;
            images.push(Found { config, layers, tags, digests });
        }
        Ok(images)
    }

    fn resolve(&self, descriptor: &Descriptor, depth: usize) -> Result<manifest::Manifest, ImportError> {
        if depth == DEPTH_MAX {
            return Err(ImportError::Depth);
        }
        let bytes = self.blob(&descriptor.digest, MANIFEST_MAX)?;
        match manifest::parse(&bytes).map_err(ImportError::Manifest)? {
            Document::Manifest(manifest) => Ok(manifest),
            Document::Index(candidates) => {
                let chosen =
                    manifest::choose(&candidates, &manifest::host_platform()).map_err(ImportError::Manifest)?;
                self.resolve(chosen, depth + 1)
            }
        }
    }

    fn docker_images(&self, name: Option<&Reference>) -> Result<Vec<Found>, ImportError> {
        #[derive(Deserialize)]
        struct Saved {
            #[serde(rename = "Config")]
            config: String,
            #[serde(rename = "RepoTags", default)]
            repo_tags: Option<Vec<String>>,
            #[serde(rename = "Layers", default)]
            layers: Option<Vec<String>>,
        }
        let text = self.read("manifest.json", MANIFEST_MAX)?;
        let saved: Vec<Saved> =
            serde_json::from_slice(&text).map_err(|source| ImportError::Json { member: "manifest.json", source })?;
        let image = |saved: Saved| {
            let tags = match name {
                Some(name) => vec![name.to_string()],
                None => saved
                    .repo_tags
                    .unwrap_or_default()
                    .iter()
                    .map(|tag| tag.parse().map(|name: Reference| name.to_string()).map_err(ImportError::Name))
                    .collect::<Result<_, _>>()?,
            };
            let layers = saved.layers.unwrap_or_default().into_iter().map(|layer| {
                let member = self.member(&layer).ok_or_else(|| ImportError::Missing(layer.clone()))?;
                Ok(FoundLayer { member, name: layer, blob: None })
            });
            Ok(Found {
                config: self.read(&saved.config, CONFIG_MAX)?,
                layers: layers.collect::<Result<_, ImportError>>()?,
                tags,
                digests: Vec::new(),
            })
        };
        saved.into_iter().map(image).collect()
    }
}

/// A range of the file, read without moving anybody's position.
struct Section {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let limit = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(buffer.get_mut(..limit).unwrap_or_default(), self.offset)?;
        if read == 0 && limit > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.offset += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

/// A compressed archive as a plain one, in a file without a name.
fn inflate(file: &File, root: &Path) -> Result<File, ImportError> {
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    let spool = rustix::fs::open(root, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|error| ImportError::Decompress(error.into()))?;
    let mut spool = File::from(spool);
    let free = rustix::fs::fstatvfs(&spool).map_err(|error| ImportError::Decompress(error.into()))?;
    let limit = free.f_bavail.saturating_mul(free.f_frsize) / 2;
    let source = BufReader::with_capacity(128 << 10, file);
    let mut plain = decompressed(source).map_err(ImportError::Decompress)?.take(limit);
    let copied = io::copy(&mut plain, &mut spool).map_err(ImportError::Decompress)?;
    if copied == limit {
        return Err(ImportError::Decompress(io::ErrorKind::StorageFull.into()));
    }
    Ok(spool)
}

/// `./a//b` is `a/b`; a `..` is resolved as text, since members are looked up by name only.
fn normal(name: &str) -> String {
    let mut parts = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

fn names(name: &Reference, manifest: &Digest) -> (Vec<String>, Vec<String>) {
    let digest = name.with_digest(manifest.clone()).to_string();
    match name.version() {
        super::Version::Tag(_) => (vec![name.to_string()], vec![digest]),
        // The archive's manifest is what it is, whatever digest somebody asks it to be called.
        super::Version::Digest(_) => (Vec::new(), vec![digest]),
    }
}
