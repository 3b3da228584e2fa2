//! Pod sandboxes: what containers of a pod share.
//!
//! ```text
//!              run                    stop, or the shim is gone                 remove
//!  Starting ─────────▶ Ready ──────────────▶ Stopping ──────────▶ NotReady ──────────────▶ Removed
//!     │                                          │ ▲                 │  ▲
//!     │ failed and undone                  owed: │ │ stop again      │  │ what could not be undone is owed:
//!     ▼                                          ▼ │                 ▼  │ shown NotReady, stop and remove go on
//!   Failed (never listed)                       NotReady           Owed ┘
//! ```
//!
//! A sandbox that starts is not listed: a kubelet that lost its answer asks again under the same key, and joins. One that
//! could not be undone is listed NotReady, so that the kubelet's next stop and remove finish it. `Unknown` is a record
//! that can't be read; it can only be removed.
//!
//! `gate` says who may change the pod: run, stop and remove write, what changes its containers reads. It is never held
//! while a container's process, a grace period or a client is waited for. Readers take the published state and never
//! wait.

mod list;
mod pod_files;
mod record;
mod remove;
mod run;
mod status;
pub(crate) mod steps;
mod stop;
mod update;
pub(crate) mod user_namespace;

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use tokio::sync::{RwLock, watch};
use vaina_proto::cri::{LinuxContainerResources, NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata};

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::run::check;
pub use self::{
    list::list,
    pod_files::PodFiles,
    record::SandboxRecord,
    remove::{Receipt, RemoveError, remove},
    run::{RunError, run},
    status::{StatusError, message, status},
    steps::{Level, StepError},
    stop::{StopError, stop},
    update::{UpdateError, update},
    user_namespace::UserNamespace,
};
pub(crate) use self::{remove::remove_known, stop::stop_known};
use crate::{
    error::{Classify, Kind},
    id::SandboxId,
    index::Entry,
    plan::Mark,
    runtime::Shim,
    stats::Memo,
    work::lock,
};

/// What makes a sandbox one of a kind: a retry of the same pod and attempt means the same sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SandboxKey {
    /// Pod name.
    pub name: String,
    /// Pod namespace.
    pub namespace: String,
    /// Pod uid.
    pub uid: String,
    /// Attempt.
    pub attempt: u32,
}

impl From<&PodSandboxMetadata> for SandboxKey {
    fn from(metadata: &PodSandboxMetadata) -> Self {
        let PodSandboxMetadata { name, namespace, uid, attempt } = metadata.clone();
        Self { name, namespace, uid, attempt }
    }
}

/// Where a sandbox stands.
#[derive(Debug, Clone)]
pub enum SandboxState {
    /// Being made.
    Starting,
    /// Could not be made, and nothing is left of it.
    Failed(Arc<RunError>),
    /// Containers can run in it.
    Ready(Arc<Ready>),
    /// Its containers are being killed and its network taken down.
    Stopping(Arc<Ready>),
    /// Stopped, or to be stopped once more since something of it is left.
    NotReady,
    /// Gone.
    Removed,
    /// Its record can't be read, for this reason.
    Unknown(Arc<str>),
}

/// What exists only while containers can run.
#[derive(Debug)]
pub struct Ready {
    /// The pod's addresses; none with the host's network.
    pub addresses: Vec<IpAddr>,
    /// Its shim.
    pub shim: Arc<Shim>,
    /// Whose namespaces containers join: the shim's pid, or the reaping init's.
    pub pid: u32,
}

/// The sandbox is in a state that does not allow the call.
#[derive(Debug, thiserror::Error)]
#[error("pod sandbox {id} is {state}")]
pub struct NotReadyError {
    id: SandboxId,
    state: &'static str,
}

impl Classify for NotReadyError {
    fn kind(&self) -> Kind {
        Kind::FailedPrecondition
    }
}

/// One pod sandbox.
#[derive(Debug)]
pub struct Sandbox {
    /// Id.
    pub id: SandboxId,
    /// As the client gave it.
    pub config: PodSandboxConfig,
    /// RuntimeClass handler.
    pub handler: String,
    /// Unix nanoseconds.
    pub created_at: i64,
    key: Option<SandboxKey>,
    /// May this pod change.
    pub(crate) gate: RwLock<()>,
    state: watch::Sender<SandboxState>,
    /// The part of the record that changes.
    pub(crate) kept: Mutex<Kept>,
    /// What statistics remember of it.
    pub(crate) memo: Memo,
    /// Why it is there and not Ready, for those who joined the operation that made it.
    pub(crate) failure: Mutex<Option<Arc<RunError>>>,
}

/// The part of a sandbox's record that changes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Kept {
    /// Where it stands; [`None`] without a record.
    pub(crate) mark: Option<Mark<Level>>,
    /// Reserved for the pod.
    pub(crate) addresses: Vec<IpAddr>,
    /// Of the shim's socket; empty before it is known.
    pub(crate) shim_address: String,
    /// The boot in which its things were made.
    pub(crate) boot_id: String,
    /// What the pod may use, if an update said so, instead of the config's.
    pub(crate) resources: Option<LinuxContainerResources>,
    /// What comes on top of that, likewise.
    pub(crate) overhead: Option<LinuxContainerResources>,
}

impl Entry for Sandbox {
    type Key = SandboxKey;
    const WHAT: &'static str = "pod sandbox";

    fn id(&self) -> &str {
        self.id.as_str()
    }

    fn key(&self) -> Option<&SandboxKey> {
        self.key.as_ref()
    }
}

impl Sandbox {
    pub(crate) fn new(id: SandboxId, config: PodSandboxConfig, handler: String, created_at: i64, kept: Kept) -> Self {
        Self {
            id,
            key: config.metadata.as_ref().map(SandboxKey::from),
            config,
            handler,
            created_at,
            gate: RwLock::new(()),
            state: watch::Sender::new(SandboxState::Starting),
            kept: Mutex::new(kept),
            memo: Memo::default(),
            failure: Mutex::new(None),
        }
    }

    /// A sandbox of which only the id is known.
    pub(crate) fn unreadable(id: SandboxId, reason: &str) -> Self {
        let kept = Kept { mark: Some(Mark::Toward(Level::Ready)), ..Kept::default() };
        // Clients refuse a status without a name, and then can't remove it.
        let metadata = PodSandboxMetadata {
            name: "unknown".to_owned(),
            namespace: "unknown".to_owned(),
            uid: id.to_string(),
            attempt: 0,
        };
        let config = PodSandboxConfig { metadata: Some(metadata), ..PodSandboxConfig::default() };
        let sandbox = Self::new(id, config, String::new(), 1, kept);
        sandbox.publish(SandboxState::Unknown(reason.into()));
        sandbox
    }

    /// Where it stands now.
    pub fn state(&self) -> SandboxState {
        self.state.borrow().clone()
    }

    /// Follows its state.
    pub fn watch(&self) -> watch::Receiver<SandboxState> {
        self.state.subscribe()
    }

    /// What containers need, or why they can't have it.
    pub fn ready(&self) -> Result<Arc<Ready>, NotReadyError> {
        match self.state() {
            SandboxState::Ready(ready) => Ok(ready),
            other => Err(NotReadyError { id: self.id.clone(), state: other.word() }),
        }
    }

    /// The shim, as long as there is one to talk to.
    pub(crate) fn shim(&self) -> Option<Arc<Shim>> {
        match self.state() {
            SandboxState::Ready(ready) | SandboxState::Stopping(ready) => Some(Arc::clone(&ready.shim)),
            _ => None,
        }
    }

    /// Publishes a new state; the only way in which it changes.
    pub(crate) fn publish(&self, state: SandboxState) {
        if !matches!(state, SandboxState::Starting | SandboxState::Failed(_)) {
            tracing::info!(sandbox = %self.id, state = state.word(), "pod sandbox changed");
        }
        self.state.send_replace(state);
    }

    /// Whether CRI's lists name it.
    pub(crate) fn is_listed(&self) -> bool {
        match self.state() {
            SandboxState::Starting | SandboxState::Failed(_) | SandboxState::Removed => false,
            SandboxState::Ready(_) | SandboxState::Stopping(_) | SandboxState::NotReady | SandboxState::Unknown(_) => {
                true
            }
        }
    }

    /// Which namespaces the pod shares with the node; all its own if the client did not say.
    pub fn namespaces(&self) -> NamespaceOption {
        namespaces(&self.config)
    }

    /// Whether it lives in the node's network.
    pub fn is_host_network(&self) -> bool {
        self.namespaces().network == i32::from(NamespaceMode::Node)
    }

    /// Directory of its shim's bundle and the pod's files.
    pub fn directory(&self, state: &Path) -> PathBuf {
        directory(state, &self.id)
    }

    /// Pin of its network namespace; none with the host's network.
    pub fn netns(&self) -> Option<PathBuf> {
        (!self.is_host_network()).then(|| netns_pin(&self.id))
    }

    /// The ids of its user namespace; none with the node's. What can't be was refused before it was recorded.
    pub fn user_namespace(&self) -> Option<UserNamespace> {
        user_namespace::asked(&self.namespaces()).ok().flatten()
    }

    /// Where its user namespace is pinned, if it has one.
    pub fn user_pin(&self, state: &Path) -> Option<PathBuf> {
        self.user_namespace().map(|_| user_pin(state, &self.id))
    }

    /// The control group that containers' groups are made in, and whether it is ours to make and remove.
    pub fn cgroup(&self, default_parent: &str) -> (PathBuf, bool) {
        match self.config.linux.as_ref().map(|linux| linux.cgroup_parent.as_str()) {
            Some(parent) if !parent.is_empty() => (PathBuf::from(parent), false),
            _ => (Path::new(default_parent).join(&self.id), true),
        }
    }

    /// What the pod may use, and what comes on top, as they were set last.
    pub fn resources(&self) -> (Option<LinuxContainerResources>, Option<LinuxContainerResources>) {
        let linux = self.config.linux.as_ref();
        let kept = lock(&self.kept);
        (
            kept.resources.clone().or_else(|| linux?.resources.clone()),
            kept.overhead.clone().or_else(|| linux?.overhead.clone()),
        )
    }

    #[cfg(test)]
    pub(crate) fn record(&self) -> SandboxRecord {
        SandboxRecord::new(self, &lock(&self.kept))
    }
}

impl SandboxState {
    fn word(&self) -> &'static str {
        match self {
            Self::Starting => "Starting",
            Self::Failed(_) => "Failed",
            Self::Ready(_) => "Ready",
            Self::Stopping(_) => "Stopping",
            Self::NotReady => "NotReady",
            Self::Removed => "Removed",
            Self::Unknown(_) => "Unknown",
        }
    }
}

pub(crate) fn namespaces(config: &PodSandboxConfig) -> NamespaceOption {
    config
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
        .and_then(|context| context.namespace_options.clone())
        .unwrap_or_default()
}

/// Where pods' directories are.
pub(crate) fn directory(state: &Path, id: &SandboxId) -> PathBuf {
    state.join("pods").join(id)
}

/// Where CNI plugins and people look for network namespaces.
pub(crate) const NETNS_DIRECTORY: &str = "/run/netns";

pub(crate) fn netns_pin(id: &SandboxId) -> PathBuf {
    Path::new(NETNS_DIRECTORY).join(format!("vaina-{id}"))
}

/// Where user namespaces are pinned, below the state directory. Not in the pods' directories: the network namespace, which
/// belongs to one, is made while such a directory is.
pub(crate) const USER_PINS: &str = "userns";

pub(crate) fn user_pin(state: &Path, id: &SandboxId) -> PathBuf {
    state.join(USER_PINS).join(id)
}

/// The first field in which two configs differ.
pub(crate) fn difference(old: &PodSandboxConfig, new: &PodSandboxConfig) -> Option<&'static str> {
    let old_linux = old.linux.clone().unwrap_or_default();
    let new_linux = new.linux.clone().unwrap_or_default();
    [
        ("metadata", old.metadata == new.metadata),
        ("hostname", old.hostname == new.hostname),
        ("log_directory", old.log_directory == new.log_directory),
        ("dns_config", old.dns_config == new.dns_config),
        ("port_mappings", old.port_mappings == new.port_mappings),
        ("labels", old.labels == new.labels),
        ("annotations", old.annotations == new.annotations),
        ("linux.cgroup_parent", old_linux.cgroup_parent == new_linux.cgroup_parent),
        ("linux.security_context", old_linux.security_context == new_linux.security_context),
        ("linux.sysctls", old_linux.sysctls == new_linux.sysctls),
        ("linux.overhead", old_linux.overhead == new_linux.overhead),
        ("linux.resources", old_linux.resources == new_linux.resources),
        ("linux", old.linux == new.linux),
        ("config", old == new),
    ]
    .into_iter()
    .find_map(|(field, equal)| (!equal).then_some(field))
}

#[cfg(test)]
mod tests {
    use vaina_proto::cri::{DnsConfig, LinuxPodSandboxConfig};

    use super::*;

    #[test]
    fn a_difference_is_named() {
        let old = PodSandboxConfig { hostname: "a".into(), ..Default::default() };
        assert_eq!(difference(&old, &old.clone()), None);
        let with = |change: fn(&mut PodSandboxConfig)| {
            let mut new = old.clone();
            change(&mut new);
            difference(&old, &new)
        };
        assert_eq!(with(|new| new.hostname = "b".into()), Some("hostname"));
        assert_eq!(with(|new| new.dns_config = Some(DnsConfig::default())), Some("dns_config"));
        assert_eq!(with(|new| drop(new.labels.insert("a".into(), "b".into()))), Some("labels"));
        assert_eq!(
            with(|new| {
                new.linux = Some(LinuxPodSandboxConfig { cgroup_parent: "/a".into(), ..Default::default() });
            }),
            Some("linux.cgroup_parent")
        );
        assert_eq!(with(|new| new.linux = Some(LinuxPodSandboxConfig::default())), Some("linux"));
    }

    #[test]
    fn a_group_of_the_kubelet_is_not_ours() {
        let sandbox = |config| Sandbox::new(SandboxId::new("ab"), config, String::new(), 1, Kept::default());
        let own = sandbox(PodSandboxConfig::default());
        assert_eq!(own.cgroup("/vaina"), (PathBuf::from("/vaina/ab"), true));
        let linux = LinuxPodSandboxConfig { cgroup_parent: "/kubepods/pod1".into(), ..Default::default() };
        let given = sandbox(PodSandboxConfig { linux: Some(linux), ..Default::default() });
        assert_eq!(given.cgroup("/vaina"), (PathBuf::from("/kubepods/pod1"), false));
    }
}
