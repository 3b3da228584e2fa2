//! What a sandbox consists of: each step made and removed. The order and what follows from it is the planner's.
//!
//! ```text
//!  Record ─┬─ Directory ──────┬─ Shm
//!          │                  └─ Shim ───────┬─ Namespaces
//!          ├─ User ─── Netns ─┬──────────────┘
//!          │                  └─ Network
//!          └─ Cgroup
//! ```
//!
//! The network is attached while the shim starts. Removal is idempotent everywhere: what is not there is removed.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, AsRawFd as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use nix::mount::MsFlags;
use tracing::{Instrument as _, debug_span};
use vaina_proto::cri::{NamespaceMode, PortMapping as CriPortMapping};

use super::{Kept, Sandbox, SandboxRecord, UserNamespace, pod_files, pod_files::PodFiles};
use crate::{
    app::App,
    error::{Classify, Kind},
    limits,
    network::{Attachment, NetworkError, PortMapping, Protocol},
    plan::{Host, Mark, Step},
    runtime::{RuntimeError, SandboxOptions, Shim},
    state::{Durability, WriteError},
    work::{blocking, lock},
};

/// One part of what a sandbox consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SandboxStep {
    /// The record.
    Record,
    /// Bundle directory and the pod's files.
    Directory,
    /// The control group around containers' groups, where the client names none.
    Cgroup,
    /// The pinned user namespace, which owns the others, for a pod that asks for one.
    User,
    /// The pinned network namespace.
    Netns,
    /// Interface, address, ports.
    Network,
    /// The tmpfs for `/dev/shm`.
    Shm,
    /// The shim process.
    Shim,
    /// The namespaces that the shim makes, joins and holds.
    Namespaces,
}

/// The stages of a sandbox's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing of it exists.
    Gone = 0,
    /// Only its record exists.
    NotReady = 1,
    /// Containers can run in it.
    Ready = 2,
}

impl Step for SandboxStep {
    type Level = Level;
    const LIST: &'static [Self] = &[
        Self::Record,
        Self::Directory,
        Self::Cgroup,
        Self::User,
        Self::Netns,
        Self::Network,
        Self::Shm,
        Self::Shim,
        Self::Namespaces,
    ];
    const GONE: Level = Level::Gone;

    fn level(self) -> Level {
        match self {
            Self::Record => Level::NotReady,
            Self::Directory
            | Self::Cgroup
            | Self::User
            | Self::Netns
            | Self::Network
            | Self::Shm
            | Self::Shim
            | Self::Namespaces => Level::Ready,
        }
    }

    fn needs(self) -> &'static [Self] {
        match self {
            Self::Record => &[],
            Self::Directory | Self::Cgroup | Self::User => &[Self::Record],
            Self::Netns => &[Self::User],
            Self::Network => &[Self::Netns],
            Self::Shm | Self::Shim => &[Self::Directory],
            Self::Namespaces => &[Self::Shim, Self::User, Self::Netns, Self::Directory],
        }
    }
}

/// Why a step was not made or removed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The record.
    #[error("record the pod sandbox")]
    Record(#[source] WriteError),
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
    /// What the pod as a whole may use.
    #[error("set the pod's limits")]
    Limit(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Processes that could not be killed.
    #[error("kill what is left in control group {}: {}", .path.display(), .left.join("; "))]
    Unkillable {
        /// The group.
        path: PathBuf,
        /// What each of them does.
        left: Vec<String>,
    },
    /// The built-in network.
    #[error("{step} the pod's network")]
    Network {
        /// What was done.
        step: &'static str,
        /// Cause.
        source: NetworkError,
    },
    /// The shim.
    #[error("{step}")]
    Shim {
        /// What was asked of it.
        step: &'static str,
        /// Cause.
        source: RuntimeError,
    },
    /// A handler that the record names and the configuration does not (any more).
    #[error("runtime handler {0:?} is not configured")]
    Handler(String),
}

impl Classify for StepError {
    fn kind(&self) -> Kind {
        match self {
            Self::Record(source) => source.kind(),
            Self::Path { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Kind::ResourceExhausted,
                _ => Kind::Internal,
            },
            Self::Limit(_) => Kind::FailedPrecondition,
            Self::Unkillable { .. } => Kind::DeadlineExceeded,
            Self::Network { source, .. } => source.kind(),
            Self::Shim { source, .. } => source.kind(),
            Self::Handler(_) => Kind::FailedPrecondition,
        }
    }
}

fn at(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StepError {
    move |source| StepError::Path { step, path: path.to_owned(), source }
}

/// Makes and removes the steps of one sandbox.
#[derive(Debug)]
pub(crate) struct Walk<'a> {
    app: &'a App,
    sandbox: &'a Sandbox,
    shim: Mutex<Option<Arc<Shim>>>,
    pid: Mutex<u32>,
}

/// How long what is left in a control group may take to die.
const KILL_LIMIT: Duration = Duration::from_secs(10);

impl<'a> Walk<'a> {
    /// `shim` is the connection, if there is one.
    pub(crate) fn new(app: &'a App, sandbox: &'a Sandbox, shim: Option<Arc<Shim>>) -> Self {
        Self { app, sandbox, shim: Mutex::new(shim), pid: Mutex::new(0) }
    }

    /// The shim and the sandbox pid, once they are made.
    pub(crate) fn made(&self) -> Option<(Arc<Shim>, u32)> {
        Some((lock(&self.shim).clone()?, *lock(&self.pid)))
    }

    fn directory(&self) -> PathBuf {
        self.sandbox.directory(&self.app.config.state)
    }

    fn files(&self) -> PodFiles {
        PodFiles::new(&self.directory())
    }

    /// Records a change of what is kept.
    pub(super) async fn put(&self, change: impl FnOnce(&mut Kept)) -> Result<(), StepError> {
        let mut kept = lock(&self.sandbox.kept).clone();
        change(&mut kept);
        let record = SandboxRecord::new(self.sandbox, &kept);
        self.app.store.put(&record, Durability::Process).await.map_err(StepError::Record)?;
        *lock(&self.sandbox.kept) = kept;
        Ok(())
    }

    async fn make_directory(&self) -> Result<(), StepError> {
        let directory = self.directory();
        let files = self.files();
        let addresses = lock(&self.sandbox.kept).addresses.clone();
        let dns = self.sandbox.config.dns_config.clone();
        let host_network = self.sandbox.is_host_network();
        let hostname = self.sandbox.config.hostname.clone();
        let user = self.sandbox.user_namespace();
        blocking(move || {
            let write = || {
                std::fs::create_dir_all(&directory)?;
                let node = nix::unistd::gethostname()?.to_string_lossy().into_owned();
                // The node's network comes with the node's name.
                let hostname = if host_network || hostname.is_empty() { node } else { hostname };
                let hosts = if host_network {
                    match std::fs::read_to_string("/etc/hosts") {
                        Ok(text) => text,
                        Err(error) if error.kind() == io::ErrorKind::NotFound => pod_files::hosts(&hostname, &[]),
                        Err(error) => return Err(error),
                    }
                } else {
                    pod_files::hosts(&hostname, &addresses)
                };
                files.write(dns.as_ref(), &hostname, &hosts)?;
                user.map_or(Ok(()), |user| files.give(&directory, user.root()))
            };
            write().map_err(at("write the pod's files in", &directory))
        })
        .await
    }

    async fn remove_directory(&self) -> Result<(), StepError> {
        let directory = self.directory();
        blocking(move || vaina_sys::fs::remove_tree(&directory).map_err(at("remove", &directory))).await
    }

    async fn make_cgroup(&self) -> Result<(), StepError> {
        let (path, own) = self.sandbox.cgroup(&self.app.config.cgroup.parent);
        if !own {
            return Ok(());
        }
        let cgroups = self.app.cgroups.clone();
        let (resources, overhead) = self.sandbox.resources();
        blocking(move || {
            cgroups.group(&path).create().map_err(at("make control group", &path))?;
            let (resources, overhead) = (resources.unwrap_or_default(), overhead.unwrap_or_default());
            limits::apply(&limits::of_pod(&cgroups, &path, &resources, &overhead))
                .map_err(|error| StepError::Limit(Box::new(error)))
        })
        .await
    }

    async fn remove_cgroup(&self) -> Result<(), StepError> {
        let (path, own) = self.sandbox.cgroup(&self.app.config.cgroup.parent);
        if !own {
            return Ok(());
        }
        let group = self.app.cgroups.group(&path);
        blocking(move || kill_and_remove(&group, &path)).await
    }

    async fn make_user(&self) -> Result<(), StepError> {
        let Some(UserNamespace { uids, gids }) = self.sandbox.user_namespace() else { return Ok(()) };
        let pin = self.user_pin();
        blocking(move || {
            let make = || {
                let user = vaina_sys::userns::create(&[uids], &[gids])?;
                vaina_sys::mount::detach(&pin)?;
                std::fs::write(&pin, "")?;
                vaina_sys::mount::bind(Path::new(&format!("/proc/self/fd/{}", user.as_raw_fd())), &pin, false)
            };
            make().map_err(at("make user namespace", &pin))
        })
        .await
    }

    async fn remove_user(&self) -> Result<(), StepError> {
        // Without a readable record it is not known whether there is one.
        let pin = self.user_pin();
        blocking(move || vaina_sys::netns::unpin(&pin).map_err(at("remove user namespace", &pin))).await
    }

    fn user_pin(&self) -> PathBuf {
        super::user_pin(&self.app.config.state, &self.sandbox.id)
    }

    async fn make_netns(&self) -> Result<(), StepError> {
        let Some(pin) = self.sandbox.netns() else { return Ok(()) };
        let user = self.sandbox.user_pin(&self.app.config.state);
        blocking(move || {
            let make = || {
                let user = user.as_deref().map(vaina_sys::netns::open).transpose()?;
                vaina_sys::netns::create_owned(&pin, user.as_ref().map(AsFd::as_fd))
            };
            make().map_err(at("make network namespace", &pin))
        })
        .await
    }

    async fn remove_netns(&self) -> Result<(), StepError> {
        let Some(pin) = self.sandbox.netns() else { return Ok(()) };
        blocking(move || vaina_sys::netns::unpin(&pin).map_err(at("remove network namespace", &pin))).await
    }

    async fn make_network(&self) -> Result<(), StepError> {
        let Some(attachment) = attachment(self.sandbox) else { return Ok(()) };
        let failed = |source| StepError::Network { step: "attach", source };
        self.app.network.attach(&attachment).await.map_err(failed)
    }

    async fn remove_network(&self) -> Result<(), StepError> {
        let Some(netns) = self.sandbox.netns() else { return Ok(()) };
        // Without a readable record the address is not known; what a pod has in the network is found by its id.
        let unknown = || Attachment {
            sandbox: self.sandbox.id.clone(),
            netns,
            address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            ports: Vec::new(),
        };
        let attachment = attachment(self.sandbox).unwrap_or_else(unknown);
        let failed = |source| StepError::Network { step: "detach", source };
        self.app.network.detach(&attachment).await.map_err(failed)
    }

    fn has_own_shm(&self) -> bool {
        self.sandbox.namespaces().ipc != i32::from(NamespaceMode::Node)
    }

    async fn make_shm(&self) -> Result<(), StepError> {
        if !self.has_own_shm() {
            return Ok(());
        }
        let path = self.files().shm;
        let (uid, gid) = self.sandbox.user_namespace().map_or((0, 0), |user| user.root());
        blocking(move || {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            let options = format!("mode=1777,size=65536k,uid={uid},gid={gid}");
            vaina_sys::mount::filesystem("tmpfs", "shm", &path, flags, &options)
                .map_err(at("mount shared memory at", &path))
        })
        .await
    }

    async fn remove_shm(&self) -> Result<(), StepError> {
        let path = self.files().shm;
        blocking(move || vaina_sys::mount::detach(&path).map_err(at("unmount", &path))).await
    }

    async fn make_shim(&self) -> Result<(), StepError> {
        let name = &self.sandbox.handler;
        let handler = self.app.handlers.get(name).ok_or_else(|| StepError::Handler(name.clone()))?;
        let shim = Shim::start(handler, &self.sandbox.id, &self.directory())
            .await
            .map_err(|source| StepError::Shim { step: "start the shim", source })?;
        lock(&self.sandbox.kept).shim_address = shim.address().to_owned();
        *lock(&self.shim) = Some(Arc::new(shim));
        Ok(())
    }

    async fn remove_shim(&self) -> Result<(), StepError> {
        let shim = lock(&self.shim).take();
        if let Some(shim) = shim
            && shim.shutdown().await.is_ok()
        {
            return Ok(());
        }
        // It does not answer, or there is no connection: what containerd calls clean-up after a shim's death, which also
        // kills one that hangs.
        let name = &self.sandbox.handler;
        let handler = self
            .app
            .handlers
            .get(name)
            .or_else(|| self.app.handlers.get(""))
            .ok_or_else(|| StepError::Handler(name.clone()))?;
        let directory = self.directory();
        if !directory.exists() {
            return Ok(());
        }
        Shim::cleanup(handler, &self.sandbox.id, &directory)
            .await
            .map_err(|source| StepError::Shim { step: "clean up after the shim", source })
    }

    async fn make_namespaces(&self) -> Result<(), StepError> {
        let shim = lock(&self.shim).clone();
        let Some(shim) = shim else {
            // By the planner's rules the shim was made in this walk.
            return Err(StepError::Handler(self.sandbox.handler.clone()));
        };
        let files = self.files();
        let options = self.sandbox.namespaces();
        let host_network = self.sandbox.is_host_network();
        let host_ipc = !self.has_own_shm();
        let shared_pid = options.pid == i32::from(NamespaceMode::Pod);
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let request = SandboxOptions {
            hostname: self.sandbox.config.hostname.clone(),
            host_network,
            host_ipc,
            shared_pid,
            sysctls: sysctls(self.sandbox),
            ipc_pin: if host_ipc { String::new() } else { text(&files.ipc) },
            uts_pin: if host_network { String::new() } else { text(&files.uts) },
            user_pin: self.sandbox.user_pin(&self.app.config.state).map(|pin| text(&pin)).unwrap_or_default(),
            ..SandboxOptions::default()
        };
        let failed = |step| move |source| StepError::Shim { step, source };
        shim.create_sandbox(&self.directory(), self.sandbox.netns().as_deref(), &request)
            .await
            .map_err(failed("make the pod's namespaces"))?;
        let pid = shim.start_sandbox().await.map_err(failed("start the pod sandbox in the shim"))?;
        *lock(&self.pid) = pid;
        Ok(())
    }

    async fn remove_namespaces(&self) -> Result<(), StepError> {
        let shim = lock(&self.shim).clone();
        if let Some(shim) = shim {
            // A shim that does not answer is dealt with in its own step, which takes the namespaces with it.
            if let Err(error) = shim.stop_sandbox().await {
                tracing::debug!(sandbox = %self.sandbox.id, %error, "shim did not stop the sandbox");
            }
        }
        let files = self.files();
        let unpin = blocking(move || {
            [files.ipc, files.uts]
                .iter()
                .try_for_each(|pin| vaina_sys::mount::detach(pin).map_err(at("remove namespace pin", pin)))
        });
        unpin.instrument(debug_span!("unpin")).await
    }
}

impl Host<SandboxStep> for Walk<'_> {
    type Error = StepError;

    #[cfg(feature = "failpoints")]
    const KIND: &'static str = "sandbox";

    #[cfg(feature = "failpoints")]
    fn injected(source: io::Error) -> StepError {
        at("pass a failpoint of", Path::new("the sandbox"))(source)
    }

    async fn write(&self, mark: Mark<Level>) -> Result<(), StepError> {
        self.put(|kept| {
            kept.mark = Some(mark);
            if mark == Mark::At(Level::NotReady) {
                kept.shim_address.clear();
                kept.addresses.clear();
            }
        })
        .await?;
        if mark == Mark::At(Level::NotReady) {
            // Only now: as long as a record names the address, nobody else may have it.
            self.app.pool.release(&self.sandbox.id);
        }
        Ok(())
    }

    async fn make(&self, step: SandboxStep) -> Result<(), StepError> {
        match step {
            SandboxStep::Record => self.put(|kept| kept.mark = Some(Mark::Toward(Level::Ready))).await,
            SandboxStep::Directory => self.make_directory().await,
            SandboxStep::Cgroup => self.make_cgroup().await,
            SandboxStep::User => self.make_user().await,
            SandboxStep::Netns => self.make_netns().await,
            SandboxStep::Network => self.make_network().await,
            SandboxStep::Shm => self.make_shm().await,
            SandboxStep::Shim => self.make_shim().await,
            SandboxStep::Namespaces => self.make_namespaces().await,
        }
    }

    async fn remove(&self, step: SandboxStep) -> Result<(), StepError> {
        match step {
            SandboxStep::Record => {
                self.app
                    .store
                    .delete::<SandboxRecord>(self.sandbox.id.as_str(), Durability::Process)
                    .await
                    .map_err(StepError::Record)?;
                lock(&self.sandbox.kept).mark = None;
                self.app.pool.release(&self.sandbox.id);
                Ok(())
            }
            SandboxStep::Directory => self.remove_directory().await,
            SandboxStep::Cgroup => self.remove_cgroup().await,
            SandboxStep::User => self.remove_user().await,
            SandboxStep::Netns => self.remove_netns().await,
            SandboxStep::Network => self.remove_network().await,
            SandboxStep::Shm => self.remove_shm().await,
            SandboxStep::Shim => self.remove_shim().await,
            SandboxStep::Namespaces => self.remove_namespaces().await,
        }
    }
}

/// Kills what is in a control group and removes it.
pub(crate) fn kill_and_remove(group: &vaina_sys::cgroup::Group, path: &Path) -> Result<(), StepError> {
    if !group.exists() {
        return Ok(());
    }
    // Round and round: what was being started may come in after the last look, and a process that is dead but not yet
    // reaped keeps the directory busy for a moment.
    let deadline = std::time::Instant::now() + KILL_LIMIT;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        if !group.kill(left).map_err(at("kill what is left in control group", path))? {
            let pids = group.pids().unwrap_or_default();
            return Err(StepError::Unkillable {
                path: path.to_owned(),
                left: pids.into_iter().map(describe).collect(),
            });
        }
        match group.remove() {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && !left.is_zero() => {
                std::thread::sleep(Duration::from_millis(2));
            }
            other => return other.map_err(at("remove control group", path)),
        }
    }
}

/// What a process that does not die is doing, for the person who has to find out why.
pub(crate) fn describe(pid: u32) -> String {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let status = read("status");
    let state = status.lines().find_map(|line| line.strip_prefix("State:")).unwrap_or(" unknown").trim();
    format!("{} (pid {pid}) is in state {state}, waits in {}", read("comm").trim(), or_none(read("wchan").trim()))
}

fn or_none(text: &str) -> &str {
    if matches!(text, "" | "0") { "no kernel function" } else { text }
}

/// What the network has to know of a pod; nothing of one in the host's.
pub(crate) fn attachment(sandbox: &Sandbox) -> Option<Attachment> {
    let netns = sandbox.netns()?;
    let addresses = lock(&sandbox.kept).addresses.clone();
    let address = *addresses.first()?;
    Some(Attachment { sandbox: sandbox.id.clone(), netns, address, ports: ports(&sandbox.config.port_mappings) })
}

/// Ports without a host port only say what a container listens on.
fn ports(mappings: &[CriPortMapping]) -> Vec<PortMapping> {
    mappings
        .iter()
        .filter_map(|mapping| {
            let host_port = u16::try_from(mapping.host_port).ok().filter(|port| *port > 0)?;
            let container_port = u16::try_from(mapping.container_port).ok().filter(|port| *port > 0)?;
            let protocol = match mapping.protocol {
                1 => Protocol::Udp,
                2 => Protocol::Sctp,
                _ => Protocol::Tcp,
            };
            Some(PortMapping { host_ip: mapping.host_ip.parse().ok(), host_port, container_port, protocol })
        })
        .collect()
}

/// What the client asks for, and the two defaults that let ordinary users bind low ports and ping.
pub(crate) fn sysctls(sandbox: &Sandbox) -> std::collections::HashMap<String, String> {
    let mut sysctls = std::collections::HashMap::new();
    if !sandbox.is_host_network() {
        sysctls.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned());
        // In a user namespace these are its groups, and only those that it has can be named.
        let last = sandbox.user_namespace().map_or(i32::MAX.unsigned_abs(), |user| user.gids.length - 1);
        sysctls.insert("net.ipv4.ping_group_range".to_owned(), format!("0 {last}"));
    }
    if let Some(linux) = &sandbox.config.linux {
        for (name, value) in &linux.sysctls {
            // The same name with slashes is the same sysctl.
            sysctls.insert(name.replace('/', "."), value.clone());
        }
    }
    sysctls
}

#[cfg(test)]
mod tests {
    use vaina_proto::cri::{LinuxPodSandboxConfig, PodSandboxConfig};

    use super::*;
    use crate::id::SandboxId;

    #[test]
    fn needs_stand_before_their_users() {
        for (index, step) in SandboxStep::LIST.iter().enumerate() {
            for need in step.needs() {
                let place = SandboxStep::LIST.iter().position(|other| other == need).unwrap();
                assert!(place < index, "{step:?} needs {need:?}");
                assert!(need.level() <= step.level(), "{step:?} outlives {need:?}");
            }
        }
    }

    #[test]
    fn only_mappings_with_a_host_port_are_published() {
        let mapping = |host_port, container_port, protocol| CriPortMapping {
            protocol,
            container_port,
            host_port,
            host_ip: String::new(),
        };
        let mapped = ports(&[mapping(0, 80, 0), mapping(-1, 80, 0), mapping(8080, 80, 1), mapping(70_000, 80, 0)]);
        assert_eq!(mapped.len(), 1);
        assert_eq!((mapped[0].host_port, mapped[0].container_port, mapped[0].protocol), (8080, 80, Protocol::Udp));
    }

    #[test]
    fn sysctls_of_the_client_win() {
        let linux = LinuxPodSandboxConfig {
            sysctls: [("net/ipv4/ip_unprivileged_port_start".to_owned(), "1024".to_owned())].into(),
            ..Default::default()
        };
        let config = PodSandboxConfig { linux: Some(linux), ..Default::default() };
        let sandbox = Sandbox::new(SandboxId::new("a"), config, String::new(), 1, Kept::default());
        let sysctls = sysctls(&sandbox);
        assert_eq!(sysctls["net.ipv4.ip_unprivileged_port_start"], "1024");
        assert_eq!(sysctls["net.ipv4.ping_group_range"], "0 2147483647");
    }
}
