//! Images: what is there, under which names, and who stands on it.
//!
//! An image is complete or not there. Its id is the digest of its config; its layers are directories shared by all images
//! that have them ([`layers`]). The order of making one: layers on disk, then the record, then the list in memory, so
//! that a list read right after a pull has it, and no record ever names what is not on disk. Removing goes the other way.
//!
//! Names move: a tag belongs to the image that had it last. Removing by tag takes the tag, by id everything. An image
//! that a container holds disappears from the list at once and from the disk with the last release.
//!
//! Reads come from memory. `changes` serialises the writers of records; it is held for commits of the record only, never
//! while anything is downloaded or unpacked.

pub mod cli;
pub mod digest;
mod import;
mod layer;
mod layers;
mod manifest;
mod pull;
mod record;
pub mod reference;
mod registry;
mod remove;
mod tar;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod unpack;
pub mod view;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use oci_spec::image::ImageConfiguration;
use thiserror::Error;
use tokio::sync::Semaphore;

pub use self::{
    digest::Digest,
    import::ImportError,
    layer::LayerError,
    layers::{Layer, LayersError},
    pull::{PullError, PullFailure, PullRequest},
    reference::{Reference, ReferenceError, Version},
    registry::{Credentials, CredentialsError, HostsError, RegistryError, TransportError},
    remove::{HoldError, RemoveError},
};
use self::{
    layers::{Layers, lock},
    pull::{Pull, PullKey},
    record::{ImageRecord, LayerRecord},
    registry::Registry,
};
use crate::{
    error::{Chain, Classify, Kind},
    id::ImageId,
    state::{Durability, Loaded, Store, WriteError},
};

/// What the store needs to know.
#[derive(Debug, Clone)]
pub struct ImageConfig {
    /// Directory of the store, ours alone.
    pub root: PathBuf,
    /// Directory with `<host>/hosts.toml`.
    pub registries: PathBuf,
    /// Registry hosts that speak plain http; loopback always may.
    pub plain_http: Vec<String>,
    /// Names of images that must not be collected; a `*` at the end stands for anything.
    pub pinned: Vec<String>,
    /// Layers that are downloaded at the same time, over all pulls.
    pub parallel_downloads: usize,
    /// How long a registry may take to answer or to send the next byte.
    pub progress_timeout: Duration,
}

impl ImageConfig {
    /// The defaults, with a store in `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            registries: PathBuf::from("/etc/vaina/registries"),
            plain_http: Vec::new(),
            pinned: Vec::new(),
            parallel_downloads: 4,
            progress_timeout: Duration::from_secs(60),
        }
    }
}

/// One complete image, as it was when it was asked for.
#[derive(Debug, Clone)]
pub struct Image {
    /// Digest of the config.
    pub id: ImageId,
    /// Normalised names with tags.
    pub repo_tags: Vec<String>,
    /// Normalised names with manifest digests.
    pub repo_digests: Vec<String>,
    /// Bytes that it takes on disk, shared layers included.
    pub size: u64,
    /// The parsed config.
    pub config: Arc<ImageConfiguration>,
    /// Directories of the layers by short names, lowest first.
    pub layers: Vec<PathBuf>,
    /// Must not be collected.
    pub pinned: bool,
    /// The config as delivered.
    config_text: Arc<str>,
    /// Keeps the directories there while anybody has this image.
    pins: Vec<Arc<Layer>>,
    changed: u64,
    removed: bool,
}

impl Image {
    /// The config byte for byte.
    pub fn config_text(&self) -> &str {
        &self.config_text
    }

    /// Who the image's process is by its config, without the group.
    pub fn user(&self) -> ImageUser {
        let config = self.config.config().as_ref().and_then(|config| config.user().as_deref());
        match config.and_then(|user| user.split(':').next()).unwrap_or_default() {
            "" => ImageUser::Unset,
            user => user.parse().map_or_else(|_| ImageUser::Name(user.to_owned()), ImageUser::Uid),
        }
    }

    fn record(&self) -> ImageRecord {
        ImageRecord {
            id: Digest::sha256(self.config_text.as_bytes()),
            repo_tags: self.repo_tags.clone(),
            repo_digests: self.repo_digests.clone(),
            config: self.config_text.to_string(),
            layers: self
                .pins
                .iter()
                .map(|layer| LayerRecord {
                    diff_id: layer.diff_id().clone(),
                    bytes: layer.bytes(),
                    inodes: layer.inodes(),
                })
                .collect(),
            changed: self.changed,
            removed: self.removed,
        }
    }

    fn is_named(&self) -> bool {
        !self.repo_tags.is_empty() || !self.repo_digests.is_empty()
    }
}

/// The user that an image's config names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageUser {
    /// None: root.
    Unset,
    /// By number.
    Uid(u32),
    /// By name, to be looked up in the image's `/etc/passwd`.
    Name(String),
}

/// How full the file system of the images is.
#[derive(Debug, Clone)]
pub struct FsInfo {
    /// A directory on that file system, the store's own.
    pub mountpoint: PathBuf,
    /// What images take, as counted when they were unpacked.
    pub used_bytes: u64,
    /// Likewise.
    pub used_inodes: u64,
    /// Size of the file system.
    pub capacity_bytes: u64,
    /// What is free for us on it.
    pub available_bytes: u64,
    /// When this was read.
    pub at: SystemTime,
}

/// All images. Clones share one store.
#[derive(Debug, Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: ImageConfig,
    store: Store,
    layers: Layers<FetchError>,
    index: Mutex<Index>,
    changes: tokio::sync::Mutex<()>,
    registry: Registry,
    /// Pulls under way.
    pulls: Mutex<HashMap<PullKey, Pull>>,
    downloads: Semaphore,
}

#[derive(Debug, Default)]
struct Index {
    images: BTreeMap<ImageId, Arc<Image>>,
    /// Removed, but held.
    removed: HashMap<ImageId, Arc<Image>>,
    /// Recorded, but with layers missing; what is left of the layers is kept for the next pull.
    damaged: HashMap<ImageId, Vec<Arc<Layer>>>,
    /// Who holds which images.
    holders: HashMap<String, BTreeSet<ImageId>>,
}

impl Index {
    fn is_held(&self, id: &ImageId) -> bool {
        self.holders.values().any(|held| held.contains(id))
    }
}

/// Why the store did not open.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The directories.
    #[error("open image store")]
    Layers(#[source] LayersError),
    /// The records.
    #[error("load image records")]
    Records(#[source] WriteError),
}

impl Classify for OpenError {
    fn kind(&self) -> Kind {
        match self {
            Self::Layers(_) => Kind::Unavailable,
            Self::Records(error) => error.kind(),
        }
    }
}

/// Why a layer did not become complete.
#[derive(Debug, Error)]
pub enum FetchError {
    /// The registry.
    #[error(transparent)]
    Download(RegistryError),
    /// Its content.
    #[error(transparent)]
    Layer(LayerError),
    /// The directories.
    #[error(transparent)]
    Store(LayersError),
}

impl Classify for FetchError {
    fn kind(&self) -> Kind {
        match self {
            Self::Download(error) => error.kind(),
            Self::Layer(error) => error.kind(),
            Self::Store(LayersError { source, .. }) if source.kind() == io::ErrorKind::StorageFull => {
                Kind::ResourceExhausted
            }
            Self::Store(_) => Kind::Internal,
        }
    }
}

/// Why a complete image was not recorded.
#[derive(Debug, Error)]
pub enum CommitError {
    /// The directories.
    #[error("finish layers")]
    Layers(#[source] LayersError),
    /// The record.
    #[error(transparent)]
    Record(WriteError),
}

impl Classify for CommitError {
    fn kind(&self) -> Kind {
        match self {
            Self::Layers(_) => Kind::Internal,
            Self::Record(error) => error.kind(),
        }
    }
}

/// An image whose layers are complete, before it has a record.
struct Complete {
    config_text: String,
    config: ImageConfiguration,
    layers: Vec<Arc<Layer>>,
    tags: Vec<String>,
    digests: Vec<String>,
}

impl ImageStore {
    /// Directories of every store, the first with all layers.
    pub const DIRECTORIES: [&str; 2] = layers::DIRECTORIES;

    /// Opens the store: deletes what was half made, loads what is recorded.
    ///
    /// An image with a layer missing is left out of the list, so that it is pulled again; a record that can't be read
    /// stops nothing, but keeps layers that nobody seems to use, since it may name them.
    pub async fn open(config: ImageConfig, store: Store) -> Result<Self, OpenError> {
        let loaded = store.load_all::<ImageRecord>().await.map_err(OpenError::Records)?;
        let opening = config.clone();
        let (layers, index) = blocking(move || load(&opening, loaded)).await.map_err(OpenError::Layers)?;
        let registry = Registry::new(config.registries.clone(), config.plain_http.clone(), config.progress_timeout);
        let downloads = Semaphore::new(config.parallel_downloads.max(1));
        Ok(Self {
            inner: Arc::new(Inner {
                config,
                store,
                layers,
                index: Mutex::new(index),
                changes: tokio::sync::Mutex::default(),
                registry,
                pulls: Mutex::default(),
                downloads,
            }),
        })
    }

    /// All images, ordered by id.
    pub fn list(&self) -> Vec<Arc<Image>> {
        lock(&self.inner.index).images.values().cloned().collect()
    }

    /// The image of that id, id prefix or name.
    pub fn resolve(&self, text: &str) -> Option<Arc<Image>> {
        let index = lock(&self.inner.index);
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        if let Some(image) = index.images.get(&ImageId::new(format!("sha256:{hex}"))) {
            return Some(Arc::clone(image));
        }
        if let Ok(reference) = text.parse::<Reference>() {
            let name = reference.to_string();
            let found = index.images.values().find(|image| match reference.version() {
                Version::Tag(_) => image.repo_tags.contains(&name),
                Version::Digest(_) => image.repo_digests.contains(&name),
            });
            if let Some(image) = found {
                return Some(Arc::clone(image));
            }
        }
        let is_hex = !hex.is_empty() && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !is_hex {
            return None;
        }
        let prefix = format!("sha256:{hex}");
        let mut matching = index.images.values().filter(|image| image.id.as_str().starts_with(&prefix));
        match (matching.next(), matching.next()) {
            (Some(image), None) => Some(Arc::clone(image)),
            _ => None,
        }
    }

    /// Imports the images of an archive file: an OCI layout or what `docker save` writes, also compressed.
    ///
    /// `name` names the image instead of what the archive says, which must then hold one image only.
    pub async fn import(&self, path: &Path, name: Option<Reference>) -> Result<Vec<Arc<Image>>, ImportError> {
        let (store, path) = (self.clone(), path.to_owned());
        // Runs to its end when the caller leaves.
        detached(async move { import::run(&store, &path, name).await }).await
    }

    /// How full the file system is. One `statfs`; what images take was counted when they were unpacked.
    pub fn fs_info(&self) -> io::Result<FsInfo> {
        let root = &self.inner.config.root;
        let stat = rustix::fs::statvfs(root)?;
        let index = lock(&self.inner.index);
        let mut seen = HashSet::new();
        let (mut used_bytes, mut used_inodes) = (0, 0);
        let images = index.images.values().chain(index.removed.values()).flat_map(|image| &image.pins);
        for layer in images.chain(index.damaged.values().flatten()) {
            if seen.insert(layer.diff_id()) {
                used_bytes += layer.bytes();
                used_inodes += layer.inodes();
            }
        }
        Ok(FsInfo {
            mountpoint: root.clone(),
            used_bytes,
            used_inodes,
            capacity_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            available_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            at: SystemTime::now(),
        })
    }

    /// Ids of images that are recorded but have layers missing; a pull brings them back.
    pub fn damaged(&self) -> Vec<ImageId> {
        lock(&self.inner.index).damaged.keys().cloned().collect()
    }

    /// Unpacks one layer into its place.
    async fn unpack_layer(
        &self,
        blob: impl io::Read + Send + 'static,
        expected: layer::Expected,
    ) -> Result<Arc<Layer>, FetchError> {
        let dirs = Arc::clone(self.inner.layers.dirs());
        blocking(move || {
            let staging = dirs.stage().map_err(FetchError::Store)?;
            match layer::apply(blob, &expected, staging.path()) {
                Ok(unpacked) => dirs.commit(staging, &expected.diff_id, &unpacked).map_err(FetchError::Store),
                Err(error) => {
                    staging.discard();
                    Err(FetchError::Layer(error))
                }
            }
        })
        .await
    }

    /// Records a complete image, or adds names to it; its tags leave the images that had them.
    async fn commit(&self, complete: Complete) -> Result<Arc<Image>, CommitError> {
        let layers = complete.layers.clone();
        blocking(move || inherit(&layers)).await.map_err(CommitError::Layers)?;
        let _changing = self.inner.changes.lock().await;
        let id = ImageId::new(Digest::sha256(complete.config_text.as_bytes()).to_string());
        let (known, others) = {
            let index = lock(&self.inner.index);
            let known = index.images.get(&id).or_else(|| index.removed.get(&id)).cloned();
            let others: Vec<Image> = index
                .images
                .values()
                .filter(|image| image.id != id && image.repo_tags.iter().any(|tag| complete.tags.contains(tag)))
                .map(|image| Image::clone(image))
                .collect();
            (known, others)
        };
        let mut image = match &known {
            Some(known) => Image::clone(known),
            None => image(&complete.config_text, complete.config, complete.layers),
        };
        image.removed = false;
        image.changed = now();
        merge(&mut image.repo_tags, &complete.tags);
        merge(&mut image.repo_digests, &complete.digests);
        image.pinned = is_pinned(&self.inner.config.pinned, &image.repo_tags);

        self.put(&image.record()).await.map_err(CommitError::Record)?;
        if known.is_none() {
            for layer in &image.pins {
                layer.record();
            }
        }
        let image = Arc::new(image);
        {
            let mut index = lock(&self.inner.index);
            index.removed.remove(&id);
            for layer in index.damaged.remove(&id).unwrap_or_default() {
                layer.unrecord();
            }
            index.images.insert(id, Arc::clone(&image));
            for other in &others {
                let mut other = other.clone();
                other.repo_tags.retain(|tag| !complete.tags.contains(tag));
                other.pinned = is_pinned(&self.inner.config.pinned, &other.repo_tags);
                index.images.insert(other.id.clone(), Arc::new(other));
            }
        }
        // Should we die before these are written: of two records with one tag the later changed has it.
        for mut other in others {
            other.repo_tags.retain(|tag| !complete.tags.contains(tag));
            self.put(&other.record()).await.map_err(CommitError::Record)?;
        }
        Ok(image)
    }

    async fn put(&self, record: &ImageRecord) -> Result<(), WriteError> {
        self.inner.store.put(record, Durability::PowerLoss).await
    }
}

/// Blocking: what `open` does on disk.
fn load(config: &ImageConfig, loaded: Vec<Loaded<ImageRecord>>) -> Result<(Layers<FetchError>, Index), LayersError> {
    let layers = Layers::open(&config.root)?;
    let mut index = Index::default();
    let mut unreadable = false;
    let mut records = Vec::new();
    for loaded in loaded {
        match loaded {
            Loaded::Record(record) => records.push(record),
            Loaded::Unreadable { key, error } => {
                unreadable = true;
                tracing::warn!(image = key, error = %Chain(error.as_ref()), "image record can't be read; pull it again");
            }
        }
    }
    // The latest change first: it decides whose a tag is.
    records.sort_by_key(|record| std::cmp::Reverse(record.changed));
    let mut tags = BTreeSet::new();
    for mut record in records {
        let id = ImageId::new(record.id.to_string());
        let mut found = Vec::new();
        for layer in &record.layers {
            found.extend(layers.dirs().adopt(&layer.diff_id, layer.bytes, layer.inodes)?);
        }
        for layer in &found {
            layer.record();
        }
        let parsed = serde_json::from_str::<ImageConfiguration>(&record.config);
        let (Ok(parsed), true) = (parsed, found.len() == record.layers.len()) else {
            tracing::warn!(image = %id, "layers of the image are missing; pull it again");
            index.damaged.insert(id, found);
            continue;
        };
        let mut image = image(&record.config, parsed, found);
        if !record.removed {
            record.repo_tags.retain(|tag| tags.insert(tag.clone()));
        }
        image.repo_tags = record.repo_tags;
        image.repo_digests = record.repo_digests;
        image.changed = record.changed;
        image.removed = record.removed;
        image.pinned = is_pinned(&config.pinned, &image.repo_tags);
        if image.removed {
            index.removed.insert(id, Arc::new(image));
        } else {
            index.images.insert(id, Arc::new(image));
        }
    }
    if !unreadable {
        layers.dirs().sweep(&HashSet::new())?;
    }
    Ok((layers, index))
}

fn image(config_text: &str, config: ImageConfiguration, layers: Vec<Arc<Layer>>) -> Image {
    Image {
        id: ImageId::new(Digest::sha256(config_text.as_bytes()).to_string()),
        repo_tags: Vec::new(),
        repo_digests: Vec::new(),
        size: layers.iter().map(|layer| layer.bytes()).sum::<u64>() + config_text.len() as u64,
        config: Arc::new(config),
        layers: layers.iter().map(|layer| layer.link().to_owned()).collect(),
        pinned: false,
        config_text: config_text.into(),
        pins: layers,
        changed: now(),
        removed: false,
    }
}

/// Blocking.
fn inherit(layers: &[Arc<Layer>]) -> Result<(), LayersError> {
    for (index, layer) in layers.iter().enumerate() {
        let below: Vec<_> = layers.iter().take(index).rev().map(|layer| layer.path()).collect();
        layer.inherit(&below)?;
    }
    Ok(())
}

fn merge(names: &mut Vec<String>, more: &[String]) {
    for name in more {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
}

fn is_pinned(patterns: &[String], tags: &[String]) -> bool {
    patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(prefix) => tags.iter().any(|tag| tag.starts_with(prefix)),
        None => pattern.parse::<Reference>().is_ok_and(|name| tags.contains(&name.to_string())),
    })
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

/// Runs `work` to its end, whether or not the caller stays.
async fn detached<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    match tokio::spawn(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Runs blocking work off the event loop.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
