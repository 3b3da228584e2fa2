//! What a container consists of: each step made and removed. The order and what follows from it is the planner's.
//!
//! ```text
//!  Record ── Image ── Rootfs ── Bundle ── Task ── Process
//!  └──────────── Held ───────────────┘    └─ Running ──┘
//! ```
//!
//! The OCI runtime creates the container when it is started, so that a command that is not there is a failed *start*, with a
//! status that says so, as the kubelet shows it. A created container is directories and a record.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use tracing::{Instrument as _, debug_span};

use vaina_proto::cri::ContainerEventType;

use super::{
    Container, ContainerRecord, ContainerState, Exit, Kept, Running, User, bundle, idmap,
    image_volume::{self, Mounted},
};
use crate::{
    app::App,
    error::{Chain, Classify, Kind},
    events,
    image::{HoldError, RemoveError as ReleaseError},
    plan::{Action, Host, Mark, Observed, Seen, Step},
    runtime::{CreateTask, RuntimeError, Shim},
    sandbox,
    snapshot::{self, SnapshotError},
    state::{Durability, WriteError},
    work::{blocking, lock, now},
};

/// One part of what a container consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContainerStep {
    /// The record.
    Record,
    /// The holds on its image and on those of its volumes.
    Image,
    /// The writable layer.
    Rootfs,
    /// The OCI bundle, with the spec.
    Bundle,
    /// The container in the OCI runtime and in the shim.
    Task,
    /// Its process.
    Process,
}

/// The stages of a container's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing of it exists.
    Gone = 0,
    /// Created or exited: what was written stays.
    Held = 1,
    /// Its process runs.
    Running = 2,
}

impl Step for ContainerStep {
    type Level = Level;
    const LIST: &'static [Self] = &[Self::Record, Self::Image, Self::Rootfs, Self::Bundle, Self::Task, Self::Process];
    const GONE: Level = Level::Gone;

    fn level(self) -> Level {
        match self {
            Self::Record | Self::Image | Self::Rootfs | Self::Bundle => Level::Held,
            Self::Task | Self::Process => Level::Running,
        }
    }

    fn needs(self) -> &'static [Self] {
        match self {
            Self::Record => &[],
            Self::Image => &[Self::Record],
            Self::Rootfs => &[Self::Image],
            Self::Bundle => &[Self::Image, Self::Rootfs],
            Self::Task => &[Self::Rootfs, Self::Bundle],
            Self::Process => &[Self::Task],
        }
    }
}

/// Why a step was not made or removed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The record.
    #[error("record the container")]
    Record(#[source] WriteError),
    /// The image went away.
    #[error("hold the container's image")]
    Hold(#[source] HoldError),
    /// The image could not be let go.
    #[error("release the container's image")]
    Release(#[source] ReleaseError),
    /// The writable layer.
    #[error("{step} the container's writable layer")]
    Rootfs {
        /// What was done.
        step: &'static str,
        /// Cause.
        source: SnapshotError,
    },
    /// The bundle.
    #[error("make the container's bundle")]
    Bundle(#[source] bundle::BundleError),
    /// The container whose processes it was to see.
    #[error(transparent)]
    Target(bundle::BundleError),
    /// A file or directory.
    #[error("{step} {}", .path.display())]
    Path {
        /// What was done.
        step: &'static str,
        /// To what.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The shim.
    #[error("{step}")]
    Shim {
        /// What was asked of it.
        step: &'static str,
        /// Cause.
        source: RuntimeError,
    },
    /// There is no shim to ask.
    #[error("{0}: the pod's shim is gone")]
    NoShim(&'static str),
    /// A shim of another project has no way to be told.
    #[error("the shim of handler {0:?} makes no id-mapped volumes")]
    NoIdMap(String),
    /// Its control group.
    #[error(transparent)]
    Cgroup(sandbox::StepError),
}

impl Classify for StepError {
    fn kind(&self) -> Kind {
        match self {
            Self::Record(source) => source.kind(),
            Self::Hold(source) => source.kind(),
            Self::Release(source) => source.kind(),
            Self::Rootfs { source, .. } => source.kind(),
            Self::Bundle(source) | Self::Target(source) => source.kind(),
            Self::Path { .. } => Kind::Internal,
            Self::Shim { source, .. } => source.kind(),
            Self::NoShim(_) => Kind::Unavailable,
            Self::NoIdMap(_) => Kind::Unimplemented,
            Self::Cgroup(source) => source.kind(),
        }
    }
}

/// How long a killed process may take to be reported dead.
const EXIT_LIMIT: Duration = Duration::from_secs(20);

/// Makes and removes the steps of one container.
#[derive(Debug)]
pub(crate) struct Walk<'a> {
    app: &'a App,
    container: &'a Container,
    shim: Option<Arc<Shim>>,
    /// How it ended: written with the next mark.
    exit: Mutex<Option<Exit>>,
    /// What the start made.
    running: Mutex<Option<Running>>,
}

impl<'a> Walk<'a> {
    /// `shim` is the connection, if there is one; `exit` says how the container ended, if it has.
    pub(crate) fn new(app: &'a App, container: &'a Container, exit: Option<Exit>) -> Self {
        let shim = container.sandbox.shim();
        Self { app, container, shim, exit: Mutex::new(exit), running: Mutex::new(None) }
    }

    /// What the start made.
    pub(crate) fn running(&self) -> Option<Running> {
        *lock(&self.running)
    }

    fn shim(&self, step: &'static str) -> Result<&Shim, StepError> {
        self.shim.as_deref().ok_or(StepError::NoShim(step))
    }

    /// Records a change of what is kept.
    pub(super) async fn put(&self, change: impl FnOnce(&mut Kept)) -> Result<(), StepError> {
        let mut kept = lock(&self.container.kept).clone();
        change(&mut kept);
        let record = ContainerRecord::new(self.container, &kept);
        self.app.store.put(&record, Durability::Process).await.map_err(StepError::Record)?;
        *lock(&self.container.kept) = kept;
        Ok(())
    }

    async fn make_rootfs(&self) -> Result<(), StepError> {
        self.rootfs().await.map(drop)
    }

    /// The mount of the root file system; makes what it stands on if it is not there.
    async fn rootfs(&self) -> Result<snapshot::Mount, StepError> {
        let image =
            self.app.images.hold(&self.container.image.id, self.container.id.as_str()).map_err(StepError::Hold)?;
        let root = self.app.config.root.clone();
        let id = self.container.id.clone();
        let user = self.container.sandbox.user_namespace();
        blocking(move || snapshot::prepare(&root, &id, &image, user))
            .await
            .map_err(|source| StepError::Rootfs { step: "make", source })
    }

    /// What is mounted in the bundle beside the root file system, each with its place.
    async fn bundle_mounts(&self) -> Result<Vec<(PathBuf, snapshot::Mount)>, StepError> {
        let mut mounts = self.image_volumes().await?;
        let mapped = idmap::mounts(&self.container.config);
        if let Some(handler) = self.app.handlers.get(&self.container.sandbox.handler)
            && !mapped.is_empty()
            && !handler.has_own_shim()
        {
            return Err(StepError::NoIdMap(handler.name.clone()));
        }
        mounts.extend(mapped);
        Ok(mounts)
    }

    /// The mounts of the images that are volumes, each with its place in the bundle.
    async fn image_volumes(&self) -> Result<Vec<(PathBuf, snapshot::Mount)>, StepError> {
        let mut mounts = Vec::new();
        for (number, image) in Mounted::new(&self.container.volume_images).images.into_iter().enumerate() {
            let image = self.app.images.hold(&image.id, self.container.id.as_str()).map_err(StepError::Hold)?;
            let (root, id) = (self.app.config.root.clone(), self.container.id.clone());
            let user = self.container.sandbox.user_namespace();
            let mount = blocking(move || snapshot::read_only(&root, &id, &image, user))
                .await
                .map_err(|source| StepError::Rootfs { step: "describe a volume for", source })?;
            mounts.push((image_volume::place(number), mount));
        }
        Ok(mounts)
    }

    async fn make_bundle(&self) -> Result<(), StepError> {
        let made = bundle::write(self.app, self.container).await.map_err(StepError::Bundle)?;
        let User { uid, gid, groups } = made;
        lock(&self.container.kept).user = Some(User { uid, gid, groups });
        Ok(())
    }

    async fn remove_bundle(&self) -> Result<(), StepError> {
        let bundle = self.container.bundle(&self.app.config.state);
        blocking(move || {
            vaina_sys::fs::remove_tree(&bundle).map_err(|source| StepError::Path {
                step: "remove",
                path: bundle,
                source,
            })
        })
        .await
    }

    async fn make_task(&self) -> Result<(), StepError> {
        bundle::check_target(self.app, self.container).map_err(StepError::Target)?;
        let rootfs = self.rootfs().instrument(debug_span!("rootfs")).await?;
        let handler = self.app.handlers.get(&self.container.sandbox.handler);
        let config = &self.container.config;
        let request = CreateTask {
            id: &self.container.id,
            bundle: &self.container.bundle(&self.app.config.state),
            rootfs: vec![rootfs],
            volumes: self.bundle_mounts().await?,
            owner: self.container.sandbox.user_namespace().map_or((0, 0), |user| user.root()),
            terminal: config.tty,
            log_path: self.container.log_path(),
            stdin: config.stdin,
            stdin_once: config.stdin_once,
        };
        let shim = self.shim("create the container in the shim")?;
        shim.create_task(handler, &request)
            .await
            .map_err(|source| StepError::Shim { step: "create the container", source })
    }

    async fn remove_task(&self) -> Result<(), StepError> {
        if let Some(shim) = &self.shim {
            match shim.delete_task(&self.container.id).await {
                Ok(()) => {}
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(source) => return Err(StepError::Shim { step: "delete the container", source }),
            }
        }
        // Whatever the OCI runtime left, and all there is to do when the shim is gone.
        let path = self.container.cgroup(&self.app.config.cgroup.parent);
        let group = self.app.cgroups.group(&path);
        let kill = blocking(move || sandbox::steps::kill_and_remove(&group, &path));
        kill.instrument(debug_span!("cgroup")).await.map_err(StepError::Cgroup)
    }

    async fn make_process(&self) -> Result<(), StepError> {
        let shim = self.shim("start the container in the shim")?;
        // Before the start, so that a process that is quickly done does not end before it began.
        let started_at = now().max(self.container.created_at);
        let pid = shim
            .start_task(&self.container.id)
            .await
            .map_err(|source| StepError::Shim { step: "start the container", source })?;
        *lock(&self.running) = Some(Running { pid, started_at });
        lock(&self.container.kept).started_at = started_at;
        Ok(())
    }

    async fn remove_process(&self) -> Result<(), StepError> {
        let Some(shim) = &self.shim else { return Ok(()) };
        match shim.stop(&self.container.id, 0, Duration::ZERO, false).await {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::FailedPrecondition) => return Ok(()),
            Err(source) => return Err(StepError::Shim { step: "kill the container", source }),
        }
        match tokio::time::timeout(EXIT_LIMIT, shim.wait_exit(&self.container.id)).await {
            // Never started counts as ended.
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) if matches!(error.kind(), Kind::NotFound | Kind::FailedPrecondition) => Ok(()),
            Ok(Err(source)) => Err(StepError::Shim { step: "wait for the container to end", source }),
            Err(_) => {
                let path = self.container.cgroup(&self.app.config.cgroup.parent);
                let pids = self.app.cgroups.group(&path).pids().unwrap_or_default();
                let left = pids.into_iter().map(sandbox::steps::describe).collect();
                Err(StepError::Cgroup(sandbox::StepError::Unkillable { path, left }))
            }
        }
    }
}

impl Host<ContainerStep> for Walk<'_> {
    type Error = StepError;

    #[cfg(feature = "failpoints")]
    const KIND: &'static str = "container";

    #[cfg(feature = "failpoints")]
    fn injected(source: io::Error) -> StepError {
        StepError::Path { step: "pass a failpoint of", path: PathBuf::from("the container"), source }
    }

    /// A start that fails, wherever it fails, is how the container ended; recorded with the marks that follow.
    fn failed(&self, action: Action<ContainerStep>, error: &StepError) {
        use ContainerStep::{Process, Task};
        let starts = [Mark::Toward(Level::Running), Mark::At(Level::Running)].map(Action::Write);
        if starts.contains(&action) || matches!(action, Action::Make(Task | Process)) {
            let at = now().max(self.container.created_at);
            lock(&self.exit).get_or_insert_with(|| Exit::start_error(Chain(error).to_string(), at));
        }
    }

    async fn write(&self, mark: Mark<Level>) -> Result<(), StepError> {
        let exit = lock(&self.exit).clone();
        self.put(|kept| {
            kept.mark = Some(mark);
            if let (Mark::At(Level::Held) | Mark::Toward(Level::Held), Some(exit)) = (mark, exit) {
                kept.exit.get_or_insert(exit);
            }
        })
        .await?;
        // An exit is published once it is recorded, and before the rest of the container is cleared away.
        let exit = lock(&self.container.kept).exit.clone();
        if mark == Mark::Toward(Level::Held)
            && matches!(self.container.state(), ContainerState::Running(_))
            && let Some(exit) = exit
        {
            self.container.publish(ContainerState::Exited(Arc::new(exit)));
            events::container(self.app, self.container, ContainerEventType::ContainerStoppedEvent);
        }
        Ok(())
    }

    async fn make(&self, step: ContainerStep) -> Result<(), StepError> {
        match step {
            ContainerStep::Record => self.put(|kept| kept.mark = Some(Mark::Toward(Level::Held))).await,
            // Held together with the record since it is only in memory.
            ContainerStep::Image => self
                .container
                .images()
                .try_for_each(|image| self.app.images.hold(image, self.container.id.as_str()).map(drop))
                .map_err(StepError::Hold),
            ContainerStep::Rootfs => self.make_rootfs().await,
            ContainerStep::Bundle => self.make_bundle().await,
            ContainerStep::Task => self.make_task().await,
            ContainerStep::Process => self.make_process().await,
        }
    }

    async fn remove(&self, step: ContainerStep) -> Result<(), StepError> {
        let id = &self.container.id;
        match step {
            ContainerStep::Record => {
                self.app
                    .store
                    .delete::<ContainerRecord>(id.as_str(), Durability::Process)
                    .await
                    .map_err(StepError::Record)?;
                lock(&self.container.kept).mark = None;
                Ok(())
            }
            ContainerStep::Image => self.app.images.release(id.as_str()).await.map_err(StepError::Release),
            ContainerStep::Rootfs => snapshot::remove(&self.app.config.root, id)
                .await
                .map_err(|source| StepError::Rootfs { step: "remove", source }),
            ContainerStep::Bundle => self.remove_bundle().await,
            ContainerStep::Task => self.remove_task().await,
            ContainerStep::Process => self.remove_process().await,
        }
    }
}

/// What is known of a container that was whole before it was started: its mark speaks of the start or of the end, and
/// neither touches what the create has made. Nothing of that is to be made anew.
pub(crate) fn observed_after_create(mark: Option<Mark<Level>>) -> Observed {
    let mut observed = Observed::from_mark::<ContainerStep>(mark);
    for step in [ContainerStep::Image, ContainerStep::Rootfs, ContainerStep::Bundle] {
        observed.set(step, Seen::Present);
    }
    observed
}

/// Where the OCI bundles of a daemon are.
pub(crate) fn bundles(state: &Path) -> PathBuf {
    state.join("containers")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_stand_before_their_users() {
        for (index, step) in ContainerStep::LIST.iter().enumerate() {
            for need in step.needs() {
                let place = ContainerStep::LIST.iter().position(|other| other == need).unwrap();
                assert!(place < index, "{step:?} needs {need:?}");
                assert!(need.level() <= step.level(), "{step:?} outlives {need:?}");
            }
        }
    }
}
