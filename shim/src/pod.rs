//! The whole of a shim's life: the pod's namespaces, its containers, and what is left on disk for a `delete`.
//!
//! No ttrpc types. The map's lock is held for look-ups only; a name is taken in the map before the container is made, so two
//! calls for one id can't both make it.

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use containerd_shim_protos::{
    events::task::{TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO, TaskOOM, TaskStart},
    protobuf::MessageField,
    topics,
};
use tokio::sync::{Notify, watch};
use vaina_proto::shim::ExitReport;
use vaina_sys::failpoint;

use crate::{
    args::Args,
    bootstrap::Legacy,
    container::{Container, Create},
    error::{Result, ShimError, Step as _},
    events::Events,
    pause::{self, Namespaces},
    process::Stdio,
    reaper::{Child, Reaper, now},
    runtime::Runtime,
    spans,
};

/// The OCI runtime's state directory where nobody says another.
pub(crate) fn default_root(namespace: &str) -> PathBuf {
    Path::new("/run/vaina/oci").join(namespace)
}

/// The pod.
pub(crate) struct Pod {
    pub(crate) id: String,
    pub(crate) namespace: String,
    bundle: PathBuf,
    own: Arc<OwnedFd>,
    reaper: Reaper,
    events: Events,
    sandbox: Mutex<Sandbox>,
    containers: Mutex<BTreeMap<String, Slot>>,
    legacy: Mutex<Legacy>,
    /// When the sandbox was stopped, Unix nanoseconds.
    stopped: watch::Sender<Option<i64>>,
    ended: watch::Sender<bool>,
    /// Told when a container that was being made is there, or is not.
    made: Notify,
}

enum Slot {
    /// It is being made.
    Taken,
    There(Arc<Container>),
}

#[derive(Default)]
enum Sandbox {
    /// No Sandbox API was used: the containers' configurations name their namespaces.
    #[default]
    None,
    Created {
        at: i64,
        init: Option<Child>,
    },
}

/// What readers see of the sandbox.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SandboxStatus {
    pub(crate) pid: u32,
    pub(crate) created_at: i64,
    /// 0 while it has not been stopped.
    pub(crate) exited_at: i64,
}

impl Pod {
    pub(crate) fn new(args: &Args, bundle: PathBuf, own: Arc<OwnedFd>, reaper: Reaper) -> std::io::Result<Arc<Self>> {
        let pid = std::process::id();
        let mut legacy = Legacy::load(&bundle);
        legacy.shim = Some((pid, vaina_sys::process::start_time(pid)?));
        legacy.save(&bundle)?;
        Ok(Arc::new(Self {
            id: args.id.clone(),
            namespace: args.namespace.clone(),
            bundle,
            own,
            reaper,
            events: Events::start(&args.namespace),
            sandbox: Mutex::default(),
            containers: Mutex::default(),
            legacy: Mutex::new(legacy),
            stopped: watch::Sender::new(None),
            ended: watch::Sender::new(false),
            made: Notify::new(),
        }))
    }

    fn containers(&self) -> MutexGuard<'_, BTreeMap<String, Slot>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sandbox(&self) -> MutexGuard<'_, Sandbox> {
        self.sandbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, change: impl FnOnce(&mut Legacy)) -> Result<()> {
        let _span = spans::start("record", &self.id);
        let mut legacy = self.legacy.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut legacy);
        legacy.save(&self.bundle).step(|| "record what a clean-up needs".to_owned())
    }

    // === sandbox ===

    /// Makes the pod's namespaces and enters them. A repeated call finds them made.
    pub(crate) fn create_sandbox(&self, namespaces: &Namespaces) -> Result<()> {
        let mut sandbox = self.sandbox();
        if matches!(*sandbox, Sandbox::Created { .. }) {
            return Ok(());
        }
        let init = pause::enter(namespaces, &self.reaper)?;
        if let Some(init) = &init {
            let start = vaina_sys::process::start_time(init.pid).step(|| "look at the pod's init".to_owned())?;
            self.record(|legacy| legacy.init = Some((init.pid, start)))?;
        }
        *sandbox = Sandbox::Created { at: now(), init };
        Ok(())
    }

    /// Whose namespaces are the pod's.
    pub(crate) fn sandbox_status(&self) -> SandboxStatus {
        let exited_at = self.stopped.borrow().unwrap_or(0);
        match &*self.sandbox() {
            Sandbox::Created { at, init } => {
                let pid = init.as_ref().map_or_else(std::process::id, |init| init.pid);
                SandboxStatus { pid, created_at: *at, exited_at }
            }
            Sandbox::None => SandboxStatus { pid: std::process::id(), created_at: 0, exited_at },
        }
    }

    /// Kills what is left in the pod, and its init. The namespaces stay until the shim ends.
    pub(crate) async fn stop_sandbox(&self) {
        let all = self.all();
        for container in &all {
            // With no grace it only sends signals, which can't be refused.
            let _ = container.stop(0, Duration::ZERO, false);
        }
        for container in &all {
            container.init.wait().await;
        }
        let init = match &*self.sandbox() {
            Sandbox::Created { init, .. } => init.clone(),
            Sandbox::None => None,
        };
        if let Some(init) = init {
            if init.exit().is_none()
                && let Ok(process) = vaina_sys::process::open(init.pid)
            {
                let _ = vaina_sys::process::signal(process, nix::libc::SIGKILL);
            }
            init.wait().await;
            let _ = self.record(|legacy| legacy.init = None);
        }
        self.stopped.send_if_modified(|at| at.is_none().then(|| *at = Some(now())).is_some());
    }

    /// Waits for the stop; answers when it was.
    pub(crate) async fn sandbox_stopped(&self) -> i64 {
        let mut stopped = self.stopped.subscribe();
        stopped.wait_for(Option::is_some).await.map_or_else(|_| now(), |at| at.unwrap_or_default())
    }

    // === containers ===

    /// A container by its id.
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>> {
        match self.containers().get(id) {
            Some(Slot::There(container)) => Ok(Arc::clone(container)),
            Some(Slot::Taken) | None => Err(ShimError::NotFound { what: "container", id: id.to_owned() }),
        }
    }

    /// As [`Pod::container`], but one that is being made is waited for: a daemon that died over its creation and now deletes
    /// it must not hear that it is not there.
    async fn settled(&self, id: &str) -> Result<Arc<Container>> {
        loop {
            let made = self.made.notified();
            tokio::pin!(made);
            // Before the look, so that nothing is missed between it and the wait.
            made.as_mut().enable();
            if !matches!(self.containers().get(id), Some(Slot::Taken)) {
                return self.container(id);
            }
            made.await;
        }
    }

    /// All containers that are there.
    pub(crate) fn all(&self) -> Vec<Arc<Container>> {
        let there = |slot: &Slot| match slot {
            Slot::There(container) => Some(Arc::clone(container)),
            Slot::Taken => None,
        };
        self.containers().values().filter_map(there).collect()
    }

    /// The runtime of that name.
    pub(crate) fn runtime(&self, binary: &str, root: &str, systemd_cgroup: bool) -> Runtime {
        let root = if root.is_empty() { default_root(&self.namespace) } else { PathBuf::from(root) };
        Runtime::new(binary, &self.own, root, systemd_cgroup)
    }

    /// Makes a container; answers its pid.
    pub(crate) async fn create(self: &Arc<Self>, create: Create) -> Result<u32> {
        let id = create.id.clone();
        {
            let mut containers = self.containers();
            if containers.contains_key(&id) {
                return Err(ShimError::AlreadyExists { what: "container", id });
            }
            containers.insert(id.clone(), Slot::Taken);
        }
        let made = self.make(create).await;
        let answer = match made {
            Ok(container) => {
                let pid = container.init.phase().pid();
                self.containers().insert(id, Slot::There(container));
                Ok(pid)
            }
            Err(error) => {
                self.containers().remove(&id);
                // The first failure is the one to tell; a record of nothing is harmless.
                let _ = self.record(|legacy| drop(legacy.containers.remove(&id)));
                Err(error)
            }
        };
        self.made.notify_waiters();
        answer
    }

    async fn make(self: &Arc<Self>, create: Create) -> Result<Arc<Container>> {
        // Recorded before it is made.
        failpoint!("shim.create", injected);
        let removal = create.runtime.legacy();
        self.record(|legacy| drop(legacy.containers.insert(create.id.clone(), removal)))?;
        let event = TaskCreate {
            container_id: create.id.clone(),
            bundle: create.bundle.to_string_lossy().into_owned(),
            io: MessageField::some(io(&create.stdio)),
            ..TaskCreate::default()
        };
        let pod = Arc::clone(self);
        let container = Container::create(create, &self.reaper, move |container, report| {
            if report.oom_killed {
                let event = TaskOOM { container_id: container.id.clone(), ..TaskOOM::default() };
                pod.events.send(topics::TASK_OOM_EVENT_TOPIC, &event);
            }
            pod.exit_event(&container.id, &container.id, container.init.phase().pid(), report);
        })
        .await?;
        failpoint!("shim.created");
        let event = TaskCreate { pid: container.init.phase().pid(), ..event };
        self.events.send(topics::TASK_CREATE_EVENT_TOPIC, &event);
        Ok(container)
    }

    fn exit_event(&self, container_id: &str, id: &str, pid: u32, report: &ExitReport) {
        let event = TaskExit {
            container_id: container_id.to_owned(),
            id: id.to_owned(),
            pid,
            exit_status: report.exit_code,
            exited_at: MessageField::some(timestamp(report.exited_at)),
            ..TaskExit::default()
        };
        self.events.send(topics::TASK_EXIT_EVENT_TOPIC, &event);
    }

    /// Starts a container's program, or a prepared exec; answers its pid.
    pub(crate) async fn start(self: &Arc<Self>, id: &str, exec_id: &str) -> Result<u32> {
        let container = self.container(id)?;
        if exec_id.is_empty() {
            failpoint!("shim.start", injected);
            let pid = container.start().await?;
            failpoint!("shim.started", injected);
            let event = TaskStart { container_id: id.to_owned(), pid, ..TaskStart::default() };
            self.events.send(topics::TASK_START_EVENT_TOPIC, &event);
            return Ok(pid);
        }
        let (pod, names) = (Arc::clone(self), (id.to_owned(), exec_id.to_owned()));
        let pid =
            container.start_exec(exec_id, move |pid, report| pod.exit_event(&names.0, &names.1, pid, report)).await?;
        let event = TaskExecStarted {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            pid,
            ..TaskExecStarted::default()
        };
        self.events.send(topics::TASK_EXEC_STARTED_EVENT_TOPIC, &event);
        Ok(pid)
    }

    /// Describes a further process.
    pub(crate) fn prepare_exec(&self, id: &str, exec_id: &str, stdio: Stdio, spec: Vec<u8>) -> Result<()> {
        self.container(id)?.prepare_exec(exec_id, stdio, spec)?;
        let event =
            TaskExecAdded { container_id: id.to_owned(), exec_id: exec_id.to_owned(), ..TaskExecAdded::default() };
        self.events.send(topics::TASK_EXEC_ADDED_EVENT_TOPIC, &event);
        Ok(())
    }

    /// Removes a container or an exec; answers its pid and how it ended.
    pub(crate) async fn delete(&self, id: &str, exec_id: &str) -> Result<(u32, ExitReport)> {
        let container = self.settled(id).await?;
        if !exec_id.is_empty() {
            return container.delete_exec(exec_id);
        }
        failpoint!("shim.delete", injected);
        let report = container.delete().await?;
        failpoint!("shim.deleted", injected);
        let pid = container.init.phase().pid();
        self.containers().remove(id);
        self.record(|legacy| drop(legacy.containers.remove(id)))?;
        let event = TaskDelete {
            container_id: id.to_owned(),
            id: id.to_owned(),
            pid,
            exit_status: report.exit_code,
            exited_at: MessageField::some(timestamp(report.exited_at)),
            ..TaskDelete::default()
        };
        self.events.send(topics::TASK_DELETE_EVENT_TOPIC, &event);
        Ok((pid, report))
    }

    // === end ===

    /// Whether nothing would be lost if the shim ended.
    pub(crate) fn is_empty(&self) -> bool {
        self.containers().is_empty()
    }

    /// Ends the shim: what is left of its containers is killed and removed first.
    pub(crate) async fn shut_down(&self) {
        self.stop_sandbox().await;
        for container in self.all() {
            if let Err(error) = self.delete(&container.id, "").await {
                crate::log::warning!("shut down: delete container {}: {}", container.id, error.chain());
            }
        }
        self.ended.send_replace(true);
    }

    /// Waits until the shim is to end.
    pub(crate) async fn ended(&self) {
        let mut ended = self.ended.subscribe();
        // The sender lives in `self`.
        let _ = ended.wait_for(|ended| *ended).await;
    }
}

/// What a failpoint fails with.
#[cfg(feature = "failpoints")]
fn injected(source: std::io::Error) -> ShimError {
    ShimError::Io { step: "pass a failpoint of the shim".to_owned(), source }
}

fn io(stdio: &Stdio) -> TaskIO {
    TaskIO {
        stdin: stdio.stdin.clone(),
        stdout: stdio.stdout.clone(),
        stderr: stdio.stderr.clone(),
        terminal: stdio.terminal,
        ..TaskIO::default()
    }
}

/// Unix nanoseconds as protobuf has them.
pub(crate) fn timestamp(nanoseconds: i64) -> protobuf::well_known_types::timestamp::Timestamp {
    protobuf::well_known_types::timestamp::Timestamp {
        seconds: nanoseconds.div_euclid(1_000_000_000),
        nanos: i32::try_from(nanoseconds.rem_euclid(1_000_000_000)).unwrap_or_default(),
        ..Default::default()
    }
}
