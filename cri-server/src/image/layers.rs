//! The layers on disk: one directory for each diff id, complete or not there.
//!
//! ```text
//! <root>/layers/<algorithm>/<hex>   a complete layer; only a rename puts it here
//! <root>/l/<short>                  symlink to it: mount options are limited to a page, so names must be short
//! <root>/staging/<n>                being unpacked
//! <root>/trash/<n>                  renamed away, being deleted
//! <root>/lock                       locked by the process that has the store
//! ```
//!
//! The order that a kill or a loss of power can't break: unpack in staging, `syncfs`, rename into place, sync the
//! directory; only then a record names the layer. At open whatever no record names is deleted, and a record whose layers
//! are missing is reported by [`LayerDirs::adopt`].
//!
//! A layer lives as long as an `Arc<Layer>` of it, or a record. When the last `Arc` of an unrecorded one goes, a thread
//! of this part moves it to the trash and deletes it, so no caller waits for that. `moves` orders the two things that
//! change a layer's directory (commit and that removal); it is held for two renames by blocking threads only.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs::{self, File},
    future::Future,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared, WeakShared},
};
use rustix::{
    fs::{FlockOperation, IFlags},
    io::Errno,
};
use thiserror::Error;
use vaina_sys::{failpoint, fs::remove_tree};

use super::{
    digest::Digest,
    unpack::{self, Unpacked},
};

const LAYERS: &str = "layers";
const LINKS: &str = "l";
pub(super) const DIRECTORIES: [&str; 2] = [LAYERS, LINKS];
const STAGING: &str = "staging";
const TRASH: &str = "trash";
const LOCK: &str = "lock";
/// How long an owner that is about to end may take.
const OWNER_WAIT: Duration = Duration::from_secs(5);
/// Shortest name of a link; longer when two layers share it.
const LINK_LEN: usize = 8;

/// A complete layer on disk.
#[derive(Debug)]
pub struct Layer {
    diff_id: Digest,
    path: PathBuf,
    /// The symlink to `path`.
    link: PathBuf,
    bytes: u64,
    inodes: u64,
    /// How many records name it.
    recorded: AtomicUsize,
    /// Directories that still lack their looks: those of the image's lower layers, known when all are there.
    implied: Mutex<BTreeSet<PathBuf>>,
    reaper: mpsc::Sender<Job>,
}

impl Layer {
    /// Digest of its tar.
    pub fn diff_id(&self) -> &Digest {
        &self.diff_id
    }

    /// Its directory, by the short name.
    pub fn link(&self) -> &Path {
        &self.link
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes on disk, as counted when it was unpacked.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Inodes, as counted when it was unpacked.
    pub fn inodes(&self) -> u64 {
        self.inodes
    }

    /// Gives implied directories the looks of the `lower` layers, nearest first. Only the first image of a fresh layer
    /// does so. Blocking.
    pub(super) fn inherit(&self, lower: &[&Path]) -> Result<(), LayersError> {
        let implied = std::mem::take(&mut *lock(&self.implied));
        unpack::inherit(&self.path, &implied, lower).map_err(at("set attributes of directories in", &self.path))
    }

    /// A record names it now.
    pub(super) fn record(&self) {
        self.recorded.fetch_add(1, Ordering::AcqRel);
    }

    /// A record that named it is deleted.
    pub(super) fn unrecord(&self) {
        self.recorded.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        if self.recorded.load(Ordering::Acquire) == 0 {
            // Without the thread the daemon is ending, and the next open deletes it.
            let _ = self.reaper.send(Job::Layer(self.diff_id.clone()));
        }
    }
}

/// An unpacked layer that is not committed; dropped, it is deleted.
#[derive(Debug)]
pub(super) struct Staging {
    path: PathBuf,
    reaper: mpsc::Sender<Job>,
    committed: bool,
}

impl Staging {
    /// The directory to unpack into.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Deletes it now, so that nothing is left when its failure is told. Blocking.
    pub(super) fn discard(self) {
        // What can't be deleted now is tried again by the drop.
        let _ = remove_tree(&self.path);
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.committed {
            let _ = self.reaper.send(Job::Path(self.path.clone()));
        }
    }
}

/// A step on the directories.
#[derive(Debug, Error)]
#[error("{step} {}", .path.display())]
pub struct LayersError {
    step: &'static str,
    path: PathBuf,
    #[source]
    pub(super) source: io::Error,
}

type Flight<E> = Shared<BoxFuture<'static, Result<Arc<Layer>, Arc<E>>>>;
type WeakFlight<E> = WeakShared<BoxFuture<'static, Result<Arc<Layer>, Arc<E>>>>;

/// All layers. `E` is what fetching one can fail with.
#[derive(Debug)]
pub(super) struct Layers<E> {
    shared: Arc<LayerDirs>,
    /// Layers that are being fetched: whoever needs the same one joins.
    flights: Mutex<HashMap<Digest, WeakFlight<E>>>,
}

/// The directories and the map of what is in them; what blocking threads share.
#[derive(Debug)]
pub(super) struct LayerDirs {
    root: PathBuf,
    map: Mutex<HashMap<Digest, Weak<Layer>>>,
    moves: Mutex<()>,
    next: AtomicU64,
    reaper: mpsc::Sender<Job>,
    /// Locked: a second owner would delete what we are unpacking.
    _lock: File,
}

#[derive(Debug)]
enum Job {
    Layer(Digest),
    Path(PathBuf),
}

impl<E: Send + Sync + 'static> Layers<E> {
    /// Makes the directories and empties staging and trash. Blocking.
    pub(super) fn open(root: &Path) -> Result<Self, LayersError> {
        let (reaper, jobs) = mpsc::channel();
        let lock = own(root)?;
        let dirs = Arc::new(LayerDirs {
            root: root.to_owned(),
            map: Mutex::default(),
            moves: Mutex::default(),
            next: AtomicU64::new(0),
            reaper,
            _lock: lock,
        });
        dirs.prepare()?;
        let weak = Arc::downgrade(&dirs);
        thread::Builder::new()
            .name("image-reaper".to_owned())
            .spawn(move || reap(&weak, &jobs))
            .map_err(at("start the thread that deletes in", root))?;
        Ok(Self { shared: dirs, flights: Mutex::default() })
    }

    /// The part of it that blocking threads use.
    pub(super) fn dirs(&self) -> &Arc<LayerDirs> {
        &self.shared
    }

    /// The layer if it is there; else joins the fetch of it that is under way, or starts `fetch`.
    ///
    /// Not cancelled while anybody waits for it; when nobody does any more, it ends.
    pub(super) async fn obtain<F>(&self, diff_id: &Digest, fetch: impl Fn() -> F) -> Result<Arc<Layer>, Arc<E>>
    where
        F: Future<Output = Result<Arc<Layer>, E>> + Send + 'static,
    {
        let mut joined = true;
        loop {
            let flight = {
                let mut flights = lock(&self.flights);
                if let Some(layer) = self.shared.get(diff_id) {
                    return Ok(layer);
                }
                match flights.get(diff_id).and_then(WeakShared::upgrade).filter(|flight| flight.peek().is_none()) {
                    Some(flight) => flight,
                    None => {
                        joined = false;
                        let flight: Flight<E> = fetch().map(|result| result.map_err(Arc::new)).boxed().shared();
                        flights.retain(|_, flight| flight.upgrade().is_some());
                        if let Some(weak) = flight.downgrade() {
                            flights.insert(diff_id.clone(), weak);
                        }
                        flight
                    }
                }
            };
            match flight.await {
                // Another's fetch failed, perhaps for its credentials or its registry: try our own.
                Err(_) if joined => {}
                result => return result,
            }
        }
    }
}

impl LayerDirs {
    fn prepare(&self) -> Result<(), LayersError> {
        for name in [LAYERS, LINKS, STAGING, TRASH] {
            let path = self.root.join(name);
            fs::create_dir_all(&path).map_err(at("create", &path))?;
        }
        spread(&self.root.join(STAGING));
        // Setuid files of an image must not be reachable for the users of the host.
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(&self.root, private).map_err(at("set mode of", &self.root))?;
        for name in [STAGING, TRASH] {
            let path = self.root.join(name);
            for entry in fs::read_dir(&path).map_err(at("list", &path))?.flatten() {
                let path = if name == STAGING { self.to_trash(&entry.path())? } else { entry.path() };
                let _ = self.reaper.send(Job::Path(path));
            }
        }
        Ok(())
    }

    /// The layer if it is complete and alive.
    pub(super) fn get(&self, diff_id: &Digest) -> Option<Arc<Layer>> {
        lock(&self.map).get(diff_id).and_then(Weak::upgrade)
    }

    /// A layer that a record names, at open; `None` when its directory is missing. Blocking.
    pub(super) fn adopt(&self, diff_id: &Digest, bytes: u64, inodes: u64) -> Result<Option<Arc<Layer>>, LayersError> {
        if let Some(layer) = self.get(diff_id) {
            return Ok(Some(layer));
        }
        let path = self.path_of(diff_id);
        match fs::symlink_metadata(&path) {
            Ok(stat) if stat.is_dir() => {
                self.publish(diff_id, &Unpacked { bytes, inodes, implied: BTreeSet::new() }).map(Some)
            }
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(at("look at", &path)(error)),
        }
    }

    /// Deletes every complete layer that is neither alive nor in `keep`; at open. Blocking, the deletion itself not.
    pub(super) fn sweep(&self, keep: &HashSet<Digest>) -> Result<(), LayersError> {
        let layers = self.root.join(LAYERS);
        for algorithm in fs::read_dir(&layers).map_err(at("list", &layers))?.flatten() {
            for entry in fs::read_dir(algorithm.path()).map_err(at("list", &algorithm.path()))?.flatten() {
                let name = format!("{}:{}", algorithm.file_name().display(), entry.file_name().display());
                let known = name.parse().is_ok_and(|digest| keep.contains(&digest) || self.get(&digest).is_some());
                if !known {
                    let trash = self.to_trash(&entry.path())?;
                    let _ = self.reaper.send(Job::Path(trash));
                }
            }
        }
        let links = self.root.join(LINKS);
        for link in fs::read_dir(&links).map_err(at("list", &links))?.flatten() {
            if !link.path().exists() {
                let _ = fs::remove_file(link.path());
            }
        }
        Ok(())
    }

    /// An empty directory to unpack a layer into. Blocking.
    pub(super) fn stage(&self) -> Result<Staging, LayersError> {
        let path = self.fresh(STAGING);
        let step = |step| at(step, &path);
        fs::create_dir(&path).map_err(step("create"))?;
        // What a layer that says nothing of its root gets, whatever the umask.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&path, mode).map_err(step("set mode of"))?;
        Ok(Staging { path, reaper: self.reaper.clone(), committed: false })
    }

    /// Makes a verified layer complete: on disk first, then in its place. Blocking.
    pub(super) fn commit(
        &self,
        mut staging: Staging,
        diff_id: &Digest,
        unpacked: &Unpacked,
    ) -> Result<Arc<Layer>, LayersError> {
        let source = staging.path.clone();
        failpoint!(blocking "pull.unpacked", at("pass a failpoint for", &source));
        let dir = File::open(&source).map_err(at("open", &source))?;
        rustix::fs::syncfs(&dir).map_err(|error| at("sync", &source)(error.into()))?;
        failpoint!(blocking "pull.synced", at("pass a failpoint for", &source));

        let path = self.path_of(diff_id);
        let parent = path.parent().unwrap_or(&self.root);
        let _moving = lock(&self.moves);
        if let Some(layer) = self.get(diff_id) {
            return Ok(layer);
        }
        fs::create_dir_all(parent).map_err(at("create", parent))?;
        if path.exists() {
            // Doomed, and the reaper has not come to it yet.
            let trash = self.to_trash(&path)?;
            let _ = self.reaper.send(Job::Path(trash));
        }
        fs::rename(&source, &path).map_err(at("move layer to", &path))?;
        staging.committed = true;
        failpoint!(blocking "pull.renamed", at("pass a failpoint for", &path));
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(at("sync", parent))?;
        self.publish(diff_id, unpacked)
    }

    fn publish(&self, diff_id: &Digest, unpacked: &Unpacked) -> Result<Arc<Layer>, LayersError> {
        let path = self.path_of(diff_id);
        let layer = Arc::new(Layer {
            diff_id: diff_id.clone(),
            link: self.link(diff_id, &path)?,
            path,
            bytes: unpacked.bytes,
            inodes: unpacked.inodes,
            recorded: AtomicUsize::new(0),
            implied: Mutex::new(unpacked.implied.clone()),
            reaper: self.reaper.clone(),
        });
        lock(&self.map).insert(diff_id.clone(), Arc::downgrade(&layer));
        Ok(layer)
    }

    /// The short name: a prefix of the hash, long enough to be its own.
    fn link(&self, diff_id: &Digest, path: &Path) -> Result<PathBuf, LayersError> {
        let target = Path::new("..").join(path.strip_prefix(&self.root).unwrap_or(path));
        for length in LINK_LEN..=diff_id.hex().len() {
            let link = self.root.join(LINKS).join(diff_id.hex().get(..length).unwrap_or_default());
            match std::os::unix::fs::symlink(&target, &link) {
                Ok(()) => return Ok(link),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    if fs::read_link(&link).is_ok_and(|found| found == target) {
                        return Ok(link);
                    }
                }
                Err(error) => return Err(at("create", &link)(error)),
            }
        }
        Err(at("create a short name for", path)(io::ErrorKind::AlreadyExists.into()))
    }

    fn path_of(&self, diff_id: &Digest) -> PathBuf {
        self.root.join(LAYERS).join(diff_id.algorithm().name()).join(diff_id.hex())
    }

    fn fresh(&self, dir: &str) -> PathBuf {
        // Staging and trash are emptied at open, but in the background: names must not meet old ones.
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let path = self.root.join(dir).join(number.to_string());
            if fs::symlink_metadata(&path).is_err() {
                return path;
            }
        }
    }

    fn to_trash(&self, path: &Path) -> Result<PathBuf, LayersError> {
        let trash = self.fresh(TRASH);
        fs::rename(path, &trash).map_err(at("move to the trash", path))?;
        Ok(trash)
    }

    /// Takes a layer out of its place unless somebody has it again.
    fn retire(&self, diff_id: &Digest) -> Result<Option<PathBuf>, LayersError> {
        let _moving = lock(&self.moves);
        {
            let mut map = lock(&self.map);
            if map.get(diff_id).is_some_and(|layer| layer.strong_count() > 0) {
                return Ok(None);
            }
            map.remove(diff_id);
        }
        let path = self.path_of(diff_id);
        if !path.exists() {
            return Ok(None);
        }
        for length in LINK_LEN..=diff_id.hex().len() {
            let link = self.root.join(LINKS).join(diff_id.hex().get(..length).unwrap_or_default());
            match fs::read_link(&link) {
                Ok(target) if target.ends_with(diff_id.hex()) => {
                    let _ = fs::remove_file(&link);
                }
                Ok(_) => {}
                Err(_) => break,
            }
        }
        self.to_trash(&path).map(Some)
    }
}

/// Deletes until the store is gone.
fn reap(dirs: &Weak<LayerDirs>, jobs: &mpsc::Receiver<Job>) {
    while let Ok(job) = jobs.recv() {
        let path = match job {
            Job::Path(path) => path,
            Job::Layer(diff_id) => {
                let Some(dirs) = dirs.upgrade() else { return };
                match dirs.retire(&diff_id) {
                    Ok(Some(path)) => path,
                    Ok(None) => continue,
                    Err(error) => {
                        tracing::warn!(layer = %diff_id, error = %crate::error::Chain(&error), "layer stays on disk until the next start");
                        continue;
                    }
                }
            }
        };
        if let Err(error) = remove_tree(&path) {
            tracing::warn!(path = %path.display(), %error, "deleted layer stays on disk until the next start");
        }
    }
}

/// Has ext4 place each directory that is made in `parent` in another block group, as it does with those of the root.
///
/// It passes over every inode that was freed in its group within the last minute, so unpacking a layer beside one that
/// was just deleted takes several times the CPU otherwise. Other file systems don't know the flag, and need none.
fn spread(parent: &Path) {
    let Ok(dir) = File::open(parent) else { return };
    let Ok(flags) = rustix::fs::ioctl_getflags(&dir) else { return };
    if !flags.contains(IFlags::TOPDIR) {
        let _ = rustix::fs::ioctl_setflags(&dir, flags | IFlags::TOPDIR);
    }
}

/// Takes the store for this process; the kernel gives it back, however the process ends.
fn own(root: &Path) -> Result<File, LayersError> {
    let path = root.join(LOCK);
    fs::create_dir_all(root).map_err(at("create", root))?;
    let lock = File::options().create(true).append(true).open(&path).map_err(at("open", &path))?;
    // One that was killed lets go when the disk has answered its last call.
    let deadline = Instant::now() + OWNER_WAIT;
    loop {
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(lock),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
            Err(error) => return Err(at("take the image store for this process alone by", &path)(error.into())),
        }
    }
}

fn at(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LayersError {
    let path = path.to_owned();
    move |source| LayersError { step, path, source }
}

/// No code panics while it holds one of these, and what they guard is whole after each statement.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
