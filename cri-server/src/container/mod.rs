//! Containers of a pod.
//!
//! ```text
//!              create             start                exit                 remove
//!  Creating ──────────▶ Created ────────▶ Starting ─▶ Running ─▶ Exited ────────────▶ Removed
//!     │                    │                 │                     ▲
//!     │ failed and undone  │ remove          │ failed: 128,        │ shim gone, or a reboot: 255, Unknown
//!     ▼                    ▼                 └─ StartError ────────┘
//!   Failed (not listed)  Removed
//! ```
//!
//! `Exited` is set by `exits` alone, from what the shim reports, and by a start that failed. What could not be undone or
//! removed keeps its state and is owed; the next stop, remove or start of the daemon goes on. `Unknown` is a record that
//! can't be read; it can only be removed.
//!
//! `gate` orders the changes of one container; it is taken after the sandbox's, and never held while a process, a grace
//! period or a client is waited for. Readers take the published state and never wait.

mod bundle;
pub mod cdi;
mod create;
mod exec_process;
mod exec_sync;
mod host_devices;
pub(crate) mod idmap;
mod image_volume;
mod list;
mod record;
mod remove;
mod reopen_log;
mod signal;
pub mod spec;
mod start;
mod status;
pub(crate) mod steps;
mod stop;
mod update;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use tokio::sync::{Mutex as Gate, MutexGuard, RwLockReadGuard, watch};
use tracing::{Instrument as _, info_span};
use vaina_proto::cri::{ContainerConfig, ContainerMetadata, ImageSpec, LinuxContainerResources};

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::{
    cdi::requested as requested_devices,
    create::{check_log_path, stop_signal},
    idmap::check as check_mappings,
    image_volume::image_of,
};
pub use self::{
    create::{CreateError, create},
    exec_process::ProcessError,
    exec_sync::{ExecSyncError, exec_sync},
    image_volume::ImageVolumeError,
    list::list,
    record::ContainerRecord,
    remove::{RemoveError, remove},
    reopen_log::{ReopenLogError, reopen_log},
    start::{StartError, start},
    status::{StatusError, message, status},
    steps::{Level, StepError},
    stop::{StopError, stop},
    update::{UpdateError, update},
};
pub(crate) use self::{
    exec_process::{DRAIN_LIMIT, ExecProcess, Fifo, process_spec, unique_name},
    remove::remove_known,
    status::messages,
    stop::{StopCallers, settle, stop_known},
};
use crate::{
    error::{Classify, Kind},
    id::{ContainerId, ImageId, SandboxId},
    image::{Image, Reference},
    index::Entry,
    plan::Mark,
    sandbox::Sandbox,
    stats::Memo,
    work::lock,
};

/// What makes a container one of a kind: a retry of the same attempt in the same sandbox means the same container.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ContainerKey {
    /// Its sandbox.
    pub sandbox: SandboxId,
    /// Container name.
    pub name: String,
    /// Attempt.
    pub attempt: u32,
}

/// Where a container stands.
#[derive(Debug, Clone)]
pub enum ContainerState {
    /// Being made.
    Creating,
    /// Could not be made, and nothing is left of it.
    Failed(Arc<CreateError>),
    /// Made, never started.
    Created,
    /// Being started.
    Starting,
    /// Its process runs.
    Running(Running),
    /// Its process has ended, or could not be started.
    Exited(Arc<Exit>),
    /// Gone.
    Removed,
    /// Its record can't be read, for this reason.
    Unknown(Arc<str>),
}

/// What exists only while the process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Running {
    /// Of its init.
    pub pid: u32,
    /// Unix nanoseconds.
    pub started_at: i64,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Exit status, or 128 and the signal's number.
    pub code: i32,
    /// `Completed`, `Error`, `OOMKilled`, `StartError` or `Unknown`.
    pub reason: String,
    /// For people.
    pub message: String,
    /// Unix nanoseconds.
    pub started_at: i64,
    /// Unix nanoseconds.
    pub finished_at: i64,
}

impl Exit {
    /// Of a container that could not be started.
    pub(crate) fn start_error(message: String, at: i64) -> Self {
        Self { code: 128, reason: "StartError".to_owned(), message, started_at: at, finished_at: at }
    }

    /// Of a container whose end nobody saw.
    pub(crate) fn unknown(message: &str, started_at: i64, at: i64) -> Self {
        Self {
            code: 255,
            reason: "Unknown".to_owned(),
            message: message.to_owned(),
            started_at,
            finished_at: at.max(started_at),
        }
    }
}

/// The image of a container, as it was when the container was made: tags move and images are removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerImage {
    /// Digest of its config.
    pub id: ImageId,
    /// A tag, or else what was asked for.
    pub name: String,
    /// A digest in a repository, or else the id.
    pub reference: String,
}

impl ContainerImage {
    fn new(image: &Image, asked: &ImageSpec) -> Self {
        let named = if asked.user_specified_image.is_empty() { &asked.image } else { &asked.user_specified_image };
        // Of several tags the one that the pod has in its manifest.
        let is_named = |tag: &&String| named.parse::<Reference>().is_ok_and(|named| named.to_string() == **tag);
        Self {
            id: image.id.clone(),
            name: image.repo_tags.iter().find(is_named).or(image.repo_tags.first()).unwrap_or(named).clone(),
            reference: image.repo_digests.first().cloned().unwrap_or_else(|| image.id.to_string()),
        }
    }
}

/// The user that the process starts as.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
}

/// The container is in a state that does not allow the call.
#[derive(Debug, thiserror::Error)]
#[error("container {id} is {state}")]
pub struct StateError {
    id: ContainerId,
    state: &'static str,
}

impl Classify for StateError {
    fn kind(&self) -> Kind {
        Kind::FailedPrecondition
    }
}

/// One container.
#[derive(Debug)]
pub struct Container {
    /// Id.
    pub id: ContainerId,
    /// Its pod.
    pub sandbox: Arc<Sandbox>,
    /// As the client gave it.
    pub config: ContainerConfig,
    /// Its image.
    pub image: ContainerImage,
    /// The images of its volumes, in the order of the mounts that name one.
    pub volume_images: Vec<ContainerImage>,
    /// Number of the signal that asks it to end.
    pub stop_signal: i32,
    /// Unix nanoseconds.
    pub created_at: i64,
    key: Option<ContainerKey>,
    /// May this container change.
    pub(crate) gate: Gate<()>,
    state: watch::Sender<ContainerState>,
    /// The part of the record that changes.
    pub(crate) kept: Mutex<Kept>,
    /// Clients that wait for it to stop.
    pub(crate) stop_callers: StopCallers,
    /// What statistics remember of it.
    pub(crate) memo: Memo,
    /// Why it is there though it could not be made, for those who joined the operation.
    pub(crate) failure: Mutex<Option<Arc<CreateError>>>,
}

/// The part of a container's record that changes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Kept {
    /// Where it stands; [`None`] without a record.
    pub(crate) mark: Option<Mark<Level>>,
    /// Unix nanoseconds; 0 if it was never started.
    pub(crate) started_at: i64,
    /// How it ended.
    pub(crate) exit: Option<Exit>,
    /// The boot in which its things were made.
    pub(crate) boot_id: String,
    /// Known once the bundle is made.
    pub(crate) user: Option<User>,
    /// The limits that an update has set, instead of the config's.
    pub(crate) resources: Option<LinuxContainerResources>,
}

impl Entry for Container {
    type Key = ContainerKey;
    const WHAT: &'static str = "container";

    fn id(&self) -> &str {
        self.id.as_str()
    }

    fn key(&self) -> Option<&ContainerKey> {
        self.key.as_ref()
    }
}

/// What a container is made from, checked.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) id: ContainerId,
    pub(crate) sandbox: Arc<Sandbox>,
    pub(crate) config: ContainerConfig,
    pub(crate) image: ContainerImage,
    pub(crate) volume_images: Vec<ContainerImage>,
    pub(crate) stop_signal: i32,
    pub(crate) created_at: i64,
}

impl Container {
    pub(crate) fn new(origin: Origin, kept: Kept) -> Self {
        let Origin { id, sandbox, config, image, volume_images, stop_signal, created_at } = origin;
        let key = config.metadata.as_ref().map(|ContainerMetadata { name, attempt }| ContainerKey {
            sandbox: sandbox.id.clone(),
            name: name.clone(),
            attempt: *attempt,
        });
        Self {
            id,
            sandbox,
            config,
            image,
            volume_images,
            stop_signal,
            created_at,
            key,
            gate: Gate::new(()),
            state: watch::Sender::new(ContainerState::Creating),
            kept: Mutex::new(kept),
            memo: Memo::default(),
            failure: Mutex::new(None),
            stop_callers: StopCallers::default(),
        }
    }

    /// A container of which only the id is known.
    pub(crate) fn unreadable(id: ContainerId, sandbox: Arc<Sandbox>, reason: &str) -> Self {
        let image = ContainerImage { id: ImageId::new("unknown"), name: "unknown".into(), reference: "unknown".into() };
        // Clients refuse a status without a name, and then can't remove it.
        let metadata = ContainerMetadata { name: format!("unknown-{id}"), attempt: 0 };
        let config = ContainerConfig { metadata: Some(metadata), ..ContainerConfig::default() };
        let origin = Origin { id, sandbox, config, image, volume_images: Vec::new(), stop_signal: 15, created_at: 1 };
        let kept = Kept { mark: Some(Mark::Toward(Level::Running)), ..Kept::default() };
        let container = Self::new(origin, kept);
        container.publish(ContainerState::Unknown(reason.into()));
        container
    }

    /// Where it stands now.
    pub fn state(&self) -> ContainerState {
        self.state.borrow().clone()
    }

    /// Follows its state.
    pub fn watch(&self) -> watch::Receiver<ContainerState> {
        self.state.subscribe()
    }

    /// What its running process is, or why there is none.
    pub fn running(&self) -> Result<Running, StateError> {
        match self.state() {
            ContainerState::Running(running) => Ok(running),
            other => Err(self.refuse(&other)),
        }
    }

    /// Waits until it may change: while its pod is not changed as a whole, and nobody else changes it.
    async fn changing(&self) -> (RwLockReadGuard<'_, ()>, MutexGuard<'_, ()>) {
        let both = async { (self.sandbox.gate.read().await, self.gate.lock().await) };
        both.instrument(info_span!("gate")).await
    }

    pub(crate) fn refuse(&self, state: &ContainerState) -> StateError {
        StateError { id: self.id.clone(), state: state.word() }
    }

    /// Publishes a new state; the only way in which it changes.
    pub(crate) fn publish(&self, state: ContainerState) {
        match &state {
            ContainerState::Creating | ContainerState::Failed(_) | ContainerState::Starting => {}
            ContainerState::Exited(exit) => tracing::info!(
                sandbox = %self.sandbox.id,
                container = %self.id,
                state = state.word(),
                code = exit.code,
                reason = exit.reason,
                "container changed"
            ),
            ContainerState::Created
            | ContainerState::Running(_)
            | ContainerState::Removed
            | ContainerState::Unknown(_) => tracing::info!(
                sandbox = %self.sandbox.id,
                container = %self.id,
                state = state.word(),
                "container changed"
            ),
        }
        self.state.send_replace(state);
    }

    /// Whether CRI's lists name it.
    pub(crate) fn is_listed(&self) -> bool {
        match self.state() {
            ContainerState::Creating | ContainerState::Failed(_) | ContainerState::Removed => false,
            ContainerState::Created
            | ContainerState::Starting
            | ContainerState::Running(_)
            | ContainerState::Exited(_)
            | ContainerState::Unknown(_) => true,
        }
    }

    /// Its limits, as they were set last.
    pub fn resources(&self) -> Option<LinuxContainerResources> {
        let of_config = || self.config.linux.as_ref().and_then(|linux| linux.resources.clone());
        lock(&self.kept).resources.clone().or_else(of_config)
    }

    /// All images that it stands on.
    pub(crate) fn images(&self) -> impl Iterator<Item = &ImageId> {
        [&self.image].into_iter().chain(&self.volume_images).map(|image| &image.id)
    }

    /// Its OCI bundle.
    pub fn bundle(&self, state: &Path) -> PathBuf {
        state.join("containers").join(&self.id)
    }

    /// Its control group.
    pub fn cgroup(&self, default_parent: &str) -> PathBuf {
        self.sandbox.cgroup(default_parent).0.join(&self.id)
    }

    /// Its log file; none if the client wants none.
    pub fn log_path(&self) -> Option<PathBuf> {
        let directory = &self.sandbox.config.log_directory;
        (!directory.is_empty() && !self.config.log_path.is_empty())
            .then(|| Path::new(directory).join(&self.config.log_path))
    }

    #[cfg(test)]
    pub(crate) fn record(&self) -> ContainerRecord {
        ContainerRecord::new(self, &lock(&self.kept))
    }
}

impl ContainerState {
    fn word(&self) -> &'static str {
        match self {
            Self::Creating => "Creating",
            Self::Failed(_) => "Failed",
            Self::Created => "Created",
            Self::Starting => "Starting",
            Self::Running(_) => "Running",
            Self::Exited(_) => "Exited",
            Self::Removed => "Removed",
            Self::Unknown(_) => "Unknown",
        }
    }
}

/// The first field in which two configs differ.
pub(crate) fn difference(old: &ContainerConfig, new: &ContainerConfig) -> Option<&'static str> {
    [
        ("metadata", old.metadata == new.metadata),
        ("image", old.image == new.image),
        ("command", old.command == new.command),
        ("args", old.args == new.args),
        ("working_dir", old.working_dir == new.working_dir),
        ("envs", old.envs == new.envs),
        ("mounts", old.mounts == new.mounts),
        ("devices", old.devices == new.devices),
        ("labels", old.labels == new.labels),
        ("annotations", old.annotations == new.annotations),
        ("log_path", old.log_path == new.log_path),
        ("stdin", old.stdin == new.stdin),
        ("stdin_once", old.stdin_once == new.stdin_once),
        ("tty", old.tty == new.tty),
        ("linux", old.linux == new.linux),
        ("CDI_devices", old.cdi_devices == new.cdi_devices),
        ("stop_signal", old.stop_signal == new.stop_signal),
        ("config", old == new),
    ]
    .into_iter()
    .find_map(|(field, equal)| (!equal).then_some(field))
}
