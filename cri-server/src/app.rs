//! Builds every part in the order of need, recovers, then serves. The only file that knows all parts.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{net::UnixListener, sync::watch, task::JoinHandle};
use vaina_sys::{
    cgroup::Hierarchies,
    mount::{self, Propagation},
};

use crate::{
    config::{Config, ConfigError},
    container::{self, Container},
    error::{Chain, Classify, Kind},
    events::Events,
    group_moves::GroupMoves,
    id::SandboxId,
    image::{self, ImageConfig, ImageStore},
    index::Index,
    network::{self, Network, Pool},
    recover::{self, RecoverError},
    rpc,
    runtime::{Handlers, user_namespaces},
    sandbox, snapshot,
    state::{self, Store},
    stats::Stats,
    streaming::{self, Streaming},
    work::{Changes, blocking},
};

/// All parts, as verbs need them.
#[derive(Debug)]
pub struct App {
    /// Configuration.
    pub config: Config,
    /// What survives the daemon.
    pub store: Store,
    /// What exists, in memory.
    pub index: Index,
    /// Images.
    pub images: ImageStore,
    /// The built-in network.
    pub network: Network,
    /// Addresses of pods.
    pub pool: Pool,
    /// RuntimeClass handlers.
    pub handlers: Handlers,
    /// The host's control groups.
    pub cgroups: Hierarchies,
    /// Announces moves between them.
    pub group_moves: GroupMoves,
    /// Tells what happens to containers.
    pub events: Events,
    /// Reads statistics.
    pub stats: Stats,
    /// Id of this boot.
    pub boot_id: String,
    /// Streams that are handed out.
    pub streaming: Streaming,
    /// Changes under way.
    pub changes: Changes,
    /// Sandboxes removed.
    pub receipts: AtomicU64,
    /// Of which something was left.
    pub receipts_with_remains: AtomicU64,
    /// Connections to shims that were cut and made anew.
    pub reconnects: AtomicU64,
}

/// Why the daemon does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A directory or file of its own.
    #[error("{step} {}", .path.display())]
    Path {
        /// What was done.
        step: &'static str,
        /// To what.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// Another one runs.
    #[error("another daemon uses {}", .0.display())]
    Running(PathBuf),
    /// What the host offers.
    #[error("look at the host's {what}")]
    Host {
        /// At what.
        what: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// The record.
    #[error("open the record")]
    Store(#[source] state::OpenError),
    /// Images.
    #[error("open the image store")]
    Images(#[source] image::OpenError),
    /// Writable layers.
    #[error("recover the writable layers")]
    Snapshots(#[source] snapshot::SnapshotError),
    /// The network.
    #[error("open the pod network")]
    Network(#[source] network::NetworkError),
    /// The streaming server.
    #[error(transparent)]
    Streaming(streaming::OpenError),
    /// Recovery.
    #[error("recover")]
    Recover(#[source] RecoverError),
}

impl Classify for StartError {
    fn kind(&self) -> Kind {
        match self {
            Self::Config(source) => source.kind(),
            Self::Path { .. } | Self::Host { .. } => Kind::Internal,
            Self::Running(_) => Kind::FailedPrecondition,
            Self::Store(source) => source.kind(),
            Self::Images(source) => source.kind(),
            Self::Snapshots(source) => source.kind(),
            Self::Network(source) => source.kind(),
            Self::Streaming(source) => source.kind(),
            Self::Recover(source) => source.kind(),
        }
    }
}

fn at(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::Path { step, path: path.to_owned(), source }
}

/// A daemon that serves.
#[derive(Debug)]
pub struct RunningApp {
    /// Its parts.
    pub app: Arc<App>,
    /// Where it serves.
    pub socket: PathBuf,
    stop: watch::Sender<bool>,
    server: JoinHandle<()>,
    /// Held as long as we run: one daemon for each state directory.
    _lock: File,
}

/// How long changes under way may take to end when the daemon does. They are safe to cut at any point; it is only tidier.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

impl App {
    /// Makes every part and recovers what is recorded. Nothing is served yet.
    async fn build(config: Config, streaming: Streaming) -> Result<Arc<Self>, StartError> {
        let boot_id = vaina_sys::process::boot_id().map_err(|source| StartError::Host { what: "boot id", source })?;
        let groups = || Hierarchies::detect().map(|cgroups| (GroupMoves::new(&cgroups), cgroups));
        let (group_moves, cgroups) =
            blocking(groups).await.map_err(|source| StartError::Host { what: "control groups", source })?;
        let handlers = Handlers::new(&config.handlers, &config.state);
        let standing = standing_directories(&config, &handlers);
        let (state, parent) = (config.state.clone(), config.cgroup.parent.clone());
        let group = cgroups.group(Path::new(&parent));
        blocking(move || {
            for directory in &standing {
                fs::create_dir_all(directory).map_err(at("make directory", directory))?;
                // Nobody lists them; the root of a user namespace, who is anybody here, gets through to what is its own.
                let searched = fs::Permissions::from_mode(0o711);
                fs::set_permissions(directory, searched).map_err(at("set mode of", directory))?;
            }
            group.create().map_err(at("make control group", Path::new(&parent)))?;
            prepare_bundles(&container::steps::bundles(&state))?;
            let pins = Path::new(sandbox::NETNS_DIRECTORY);
            vaina_sys::netns::prepare_directory(pins).map_err(at("prepare", pins))
        })
        .await?;
        let path = config.root.join("state.db");
        let store = blocking(move || Store::open(&path)).await.map_err(StartError::Store)?;
        let root = config.root.clone();
        blocking(move || snapshot::recover(&root)).await.map_err(StartError::Snapshots)?;
        let images = ImageStore::open(image_config(&config), store.clone()).await.map_err(StartError::Images)?;
        let layers = config.root.join("images");
        let missing = blocking(move || user_namespaces::problem(&layers, ImageStore::DIRECTORIES)).await;
        if let Some(missing) = &missing {
            tracing::info!(missing, "no pod can have a user namespace");
        }
        let handlers = handlers.without_user_namespaces(missing);
        let network = Network::open(&config.network).await.map_err(StartError::Network)?;
        let pool = Pool::new(&config.network).map_err(StartError::Network)?;
        let app = Arc::new(Self {
            handlers,
            events: Events::default(),
            stats: Stats::new(&cgroups),
            config,
            store,
            index: Index::default(),
            images,
            network,
            pool,
            cgroups,
            group_moves,
            boot_id,
            streaming,
            changes: Changes::default(),
            receipts: AtomicU64::new(0),
            receipts_with_remains: AtomicU64::new(0),
            reconnects: AtomicU64::new(0),
        });
        let recovered = recover::recover(&app).await.map_err(StartError::Recover)?;
        tracing::info!(
            sandboxes = recovered.sandboxes,
            containers = recovered.containers,
            unreadable = recovered.unreadable,
            "recovered"
        );
        Ok(app)
    }

    /// Builds and recovers, and serves nothing: `vaina doctor --repair`. No daemon starts while the lock is held.
    pub async fn recovered(config: Config) -> Result<(Arc<Self>, File), StartError> {
        let lock = take_directories(&config)?;
        let (streaming, _) = Streaming::open(&config.streaming).await.map_err(StartError::Streaming)?;
        Ok((Self::build(config, streaming).await?, lock))
    }

    /// Builds, recovers and serves. The socket is there when this answers.
    pub async fn start(config: Config) -> Result<RunningApp, StartError> {
        let lock = take_directories(&config)?;
        let socket = config.socket();
        let (streaming, streams) = Streaming::open(&config.streaming).await.map_err(StartError::Streaming)?;
        let app = Self::build(config, streaming).await?;
        let listener = bind(&socket)?;
        let (stop, mut stopped) = watch::channel(false);
        tokio::spawn(streams.serve(Arc::clone(&app)));
        let serving = Arc::clone(&app);
        let server = tokio::spawn(async move {
            let stopped = async move {
                // A sender that is gone stops as well.
                drop(stopped.wait_for(|stop| *stop).await);
            };
            if let Err(error) = rpc::serve(serving, listener, stopped).await {
                tracing::error!(error = %Chain(&error), "the server ended");
            }
        });
        tracing::info!(socket = %socket.display(), "serving");
        Ok(RunningApp { app, socket, stop, server, _lock: lock })
    }

    /// The containers of a sandbox.
    pub fn containers_of(&self, sandbox: &SandboxId) -> Vec<Arc<Container>> {
        let mut containers = self.index.containers.list();
        containers.retain(|container| container.sandbox.id == *sandbox);
        containers
    }
}

impl RunningApp {
    /// Whether the server still serves; it ends by itself only when something is broken.
    pub async fn ended(&mut self) {
        // A panic in it ends it just as well.
        drop((&mut self.server).await);
    }

    /// Stops accepting, waits (bounded) for changes under way and what they left to be deleted, and leaves shims and
    /// containers alone.
    pub async fn shut_down(self) {
        self.stop.send_replace(true);
        // Clients are cut off, and their commands killed: nobody will be there to see them end.
        self.app.streaming.stop();
        let left = self.app.changes.idle(DRAIN_LIMIT).await;
        if left > 0 {
            tracing::warn!(left, "changes are still under way; the next start finishes or undoes them");
        }
        self.server.abort();
        let root = self.app.config.root.clone();
        // What is not deleted in time the next start deletes.
        drop(tokio::time::timeout(DRAIN_LIMIT, blocking(move || snapshot::finish(&root))).await);
        let socket = self.socket;
        let bundles = container::steps::bundles(&self.app.config.state);
        let is_empty = self.app.index.sandboxes.list().is_empty();
        let receipts = self.app.receipts.load(Ordering::Relaxed);
        let remains = self.app.receipts_with_remains.load(Ordering::Relaxed);
        blocking(move || {
            // Best effort: the next start replaces the one and reuses the other.
            drop(fs::remove_file(socket));
            if is_empty {
                drop(mount::detach(&bundles));
            }
        })
        .await;
        tracing::info!(receipts, remains, "stopped");
    }
}

/// What every pod would make otherwise, and no pod could remove: after the last one the host is as after the start.
fn standing_directories(config: &Config, handlers: &Handlers) -> Vec<PathBuf> {
    let mut directories = vec![config.state.join("pods"), config.state.join(sandbox::USER_PINS)];
    directories.extend(["containers", "trash", "standalone"].map(|name| config.root.join(name)));
    directories.extend(handlers.iter().map(|handler| handler.runtime_root.clone()));
    directories
}

fn image_config(config: &Config) -> ImageConfig {
    ImageConfig {
        root: config.root.join("images"),
        registries: config.image.registries.clone(),
        plain_http: config.image.plain_http.clone(),
        pinned: config.image.pinned.clone(),
        parallel_downloads: config.image.parallel_downloads,
        progress_timeout: Duration::from_secs(config.image.progress_timeout_seconds),
    }
}

/// Makes both directories, and locks them for one daemon.
fn take_directories(config: &Config) -> Result<File, StartError> {
    config.validate()?;
    for directory in [&config.state, &config.root] {
        fs::create_dir_all(directory).map_err(at("make directory", directory))?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o711)).map_err(at("set mode of", directory))?;
    }
    lock_state(&config.state)
}

/// One daemon for each state directory; the kernel lets go of the lock however the holder ends.
fn lock_state(state: &Path) -> Result<File, StartError> {
    let path = state.join("lock");
    let file = File::options().write(true).create(true).truncate(false).open(&path).map_err(at("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(StartError::Running(state.to_owned())),
        Err(fs::TryLockError::Error(source)) => Err(at("lock", &path)(source)),
    }
}

/// The directory of bundles lies on a private mount: root file systems are mounted below it in throw-away mount
/// namespaces that keep the propagation of everything else, and must not show on the host.
fn prepare_bundles(bundles: &Path) -> Result<(), StartError> {
    fs::create_dir_all(bundles).map_err(at("make directory", bundles))?;
    fs::set_permissions(bundles, fs::Permissions::from_mode(0o711)).map_err(at("set mode of", bundles))?;
    let make_private = || {
        let bundles = fs::canonicalize(bundles)?;
        let table = mount::table()?;
        match mount::containing(&table, &bundles) {
            Some(ground) if !ground.shared && !ground.slave => Ok(()),
            _ => {
                mount::bind(&bundles, &bundles, false)?;
                mount::set_propagation(&bundles, Propagation::Private, false)
            }
        }
    };
    make_private().map_err(at("make private", bundles))
}

/// Only root may speak to us, and it may be in a group that the administrator gives the socket to.
fn bind(socket: &Path) -> Result<UnixListener, StartError> {
    if let Some(parent) = socket.parent() {
        fs::create_dir_all(parent).map_err(at("make directory", parent))?;
    }
    match fs::remove_file(socket) {
        // The lock says that nobody serves there any more.
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(at("remove the old socket", socket)(source));
        }
        _ => {}
    }
    let listener = UnixListener::bind(socket).map_err(at("listen on", socket))?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o660)).map_err(at("set mode of", socket))?;
    Ok(listener)
}
