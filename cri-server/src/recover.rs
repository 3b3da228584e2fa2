//! Recovery: the only way to start. From the records to a true picture of what is, before the socket is served.
//!
//! Assumptions, all of them: the daemon may have died at any instruction; a record was written before its thing; a
//! shim lives on without us and knows its containers; after a reboot nothing that lives in memory is left. So:
//!
//! - A record that can't be read makes its object Unknown. It is listed, and nothing about it is guessed.
//! - What was on its way up is undone: whoever asked for it asks again. What was on its way down is finished.
//! - A pod that was Ready stays so if its shim answers; its containers are what the shim says. Otherwise what is
//!   left of it is killed by control group: its containers are Exited (255, Unknown) and it is NotReady.
//! - After a reboot a container that was created counts as started, or something could run twice.
//! - What can't be finished is owed: it stays listed, and the next stop or remove goes on.
//!
//! Pods are recovered beside each other, with a bound, and one that hangs costs only itself.

use std::{collections::HashMap, sync::Arc};

use futures::{StreamExt as _, stream};
use vaina_proto::shim::{ContainerPhase, ContainerState as ShimContainer};

use crate::{
    app::App,
    container::{
        self, Container, ContainerRecord, ContainerState, Exit, Running,
        steps::{ContainerStep, Walk as ContainerWalk, observed_after_create},
    },
    error::{Chain, Classify, Kind},
    exits,
    id::{ContainerId, SandboxId},
    plan::{Drive, Host as _, Mark, execute},
    sandbox::{
        self, Ready, Sandbox, SandboxRecord, SandboxState,
        steps::{SandboxStep, Walk as SandboxWalk},
    },
    state::{Loaded, WriteError},
    work::{lock, now},
};

/// Pods that are recovered at the same time.
const AT_ONCE: usize = 32;

/// Why the daemon does not start.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The records can't be read at all; starting without them would be answering with a partial list.
    #[error("read the records of {0}")]
    Read(&'static str, #[source] WriteError),
}

impl Classify for RecoverError {
    fn kind(&self) -> Kind {
        match self {
            Self::Read(_, source) => source.kind(),
        }
    }
}

/// What recovery found.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Recovered {
    /// Sandboxes of which there was a record.
    pub sandboxes: usize,
    /// Containers of which there was a record.
    pub containers: usize,
    /// Records that can't be read.
    pub unreadable: usize,
}

/// Leads everything that is recorded to a state that is true.
pub(crate) async fn recover(app: &Arc<App>) -> Result<Recovered, RecoverError> {
    let mut recovered = Recovered::default();
    let mut pods: HashMap<SandboxId, (Arc<Sandbox>, Vec<Arc<Container>>)> = HashMap::new();
    for loaded in app.store.load_all::<SandboxRecord>().await.map_err(|error| RecoverError::Read("pods", error))? {
        recovered.sandboxes += 1;
        let sandbox = match loaded {
            Loaded::Record(record) => record.into_sandbox(),
            Loaded::Unreadable { key, error } => {
                recovered.unreadable += 1;
                tracing::error!(sandbox = key, error = %error, "the record of a pod sandbox can't be read");
                Sandbox::unreadable(SandboxId::new(key), &format!("its record can't be read: {error}"))
            }
        };
        let sandbox = enter_sandbox(app, sandbox);
        pods.insert(sandbox.id.clone(), (sandbox, Vec::new()));
    }
    let containers = app.store.load_all::<ContainerRecord>().await;
    for loaded in containers.map_err(|error| RecoverError::Read("containers", error))? {
        recovered.containers += 1;
        let (id, container) = match loaded {
            Loaded::Record(record) => {
                let id = record.sandbox();
                let (sandbox, _) = pods.entry(id.clone()).or_insert_with(|| orphanage(&id));
                (id, record.into_container(Arc::clone(sandbox)))
            }
            Loaded::Unreadable { key, error } => {
                recovered.unreadable += 1;
                tracing::error!(container = key, error = %error, "the record of a container can't be read");
                // Nobody can say whose it is. A sandbox of no name keeps it in the lists until it is removed.
                let id = SandboxId::new("unknown");
                let (sandbox, _) = pods.entry(id.clone()).or_insert_with(|| orphanage(&id));
                let reason = format!("its record can't be read: {error}");
                (id, Container::unreadable(ContainerId::new(key), Arc::clone(sandbox), &reason))
            }
        };
        let container = Arc::new(container);
        // Keys in records are unique, since they were unique when they were written.
        if let Err(other) = app.index.containers.claim(&container) {
            tracing::error!(container = %container.id, other = %other.id, "two containers have the same key");
        }
        hold_image(app, &container);
        if let Some((_, containers)) = pods.get_mut(&id) {
            containers.push(container);
        }
    }
    stream::iter(pods.into_values())
        .for_each_concurrent(AT_ONCE, async |(sandbox, containers)| pod(app, &sandbox, &containers).await)
        .await;
    restore_ports(app).await;
    if let Err(error) = app.images.sweep().await {
        tracing::warn!(error = %Chain(&error), "images that nobody holds are not removed");
    }
    Ok(recovered)
}

/// Pods that run have their ports published, whoever flushed the rules meanwhile.
async fn restore_ports(app: &App) {
    let attached: Vec<_> = app
        .index
        .sandboxes
        .list()
        .iter()
        .filter(|sandbox| matches!(sandbox.state(), SandboxState::Ready(_)))
        .filter_map(|sandbox| crate::sandbox::steps::attachment(sandbox))
        .collect();
    if let Err(error) = app.network.restore(&attached).await {
        tracing::error!(error = %Chain(&error), "ports of pods are not published again");
    }
}

fn enter_sandbox(app: &App, sandbox: Sandbox) -> Arc<Sandbox> {
    let sandbox = Arc::new(sandbox);
    if let Err(other) = app.index.sandboxes.claim(&sandbox) {
        tracing::error!(sandbox = %sandbox.id, other = %other.id, "two pod sandboxes have the same key");
    }
    for address in lock(&sandbox.kept).addresses.clone() {
        if let Err(error) = app.pool.reserve(&sandbox.id, address) {
            tracing::warn!(sandbox = %sandbox.id, error = %Chain(&error), "the pod's address is not reserved");
        }
    }
    sandbox
}

/// A stand-in for a sandbox of which there is no record; it is in no list.
fn orphanage(id: &SandboxId) -> (Arc<Sandbox>, Vec<Arc<Container>>) {
    let sandbox = Sandbox::unreadable(id.clone(), "it has no record");
    sandbox.publish(SandboxState::Removed);
    (Arc::new(sandbox), Vec::new())
}

fn hold_image(app: &App, container: &Container) {
    if matches!(container.state(), ContainerState::Unknown(_)) {
        return;
    }
    for image in container.images() {
        if let Err(error) = app.images.hold(image, container.id.as_str()) {
            tracing::warn!(container = %container.id, error = %Chain(&error), "the image of a container is gone");
        }
    }
}

async fn pod(app: &Arc<App>, sandbox: &Arc<Sandbox>, containers: &[Arc<Container>]) {
    if matches!(sandbox.state(), SandboxState::Unknown(_) | SandboxState::Removed) {
        for container in containers.iter().filter(|container| matches!(container.state(), ContainerState::Creating)) {
            container.publish(ContainerState::Unknown("the record of its pod can't be read".into()));
        }
        return;
    }
    let (mark, address, same_boot) = {
        let kept = lock(&sandbox.kept);
        (kept.mark, kept.shim_address.clone(), kept.boot_id == app.boot_id)
    };
    match mark {
        Some(Mark::At(sandbox::Level::Ready)) if same_boot => match adopt(sandbox, &address).await {
            Some(known) => {
                for container in containers {
                    adopt_container(app, container, known.get(container.id.as_str())).await;
                }
                exits::watch_sandbox(app, sandbox);
            }
            None => {
                tracing::warn!(sandbox = %sandbox.id, "the pod's shim is gone");
                end(app, sandbox, containers, "the pod's shim is gone").await;
            }
        },
        Some(Mark::At(sandbox::Level::Ready)) => end(app, sandbox, containers, "the node was restarted").await,
        Some(Mark::At(sandbox::Level::NotReady) | Mark::Toward(sandbox::Level::NotReady)) => {
            end(app, sandbox, containers, "the pod was stopped").await;
        }
        // Nobody was told of it, or somebody asked for its removal.
        Some(Mark::Toward(sandbox::Level::Ready | sandbox::Level::Gone) | Mark::At(sandbox::Level::Gone)) | None => {
            end(app, sandbox, containers, "the pod was being removed").await;
            if let Err(error) = sandbox::remove_known(app, sandbox).await {
                tracing::warn!(sandbox = %sandbox.id, error = %Chain(&error), "a pod is not removed");
            }
        }
    }
}

/// Connects to the shim of a pod and takes it over; answers what the shim knows, or [`None`] if it is gone.
async fn adopt(sandbox: &Arc<Sandbox>, address: &str) -> Option<HashMap<String, ShimContainer>> {
    let shim = exits::connect(&sandbox.id, address).await?;
    let known = match shim.inspect().await {
        Ok(known) => known,
        Err(error) => {
            tracing::warn!(sandbox = %sandbox.id, error = %Chain(&error), "the pod's shim does not say what it has");
            return None;
        }
    };
    if let Some(netns) = sandbox.netns()
        && !crate::work::blocking(move || vaina_sys::netns::is_pinned(&netns)).await
    {
        tracing::warn!(sandbox = %sandbox.id, "the pod's network namespace is gone");
        return None;
    }
    let addresses = lock(&sandbox.kept).addresses.clone();
    sandbox.publish(SandboxState::Ready(Arc::new(Ready { addresses, shim: Arc::new(shim), pid: known.sandbox_pid })));
    Some(known.containers.into_iter().map(|container| (container.id.clone(), container)).collect())
}

/// Brings a container of a Ready pod to what the shim says of it.
async fn adopt_container(app: &Arc<App>, container: &Arc<Container>, known: Option<&ShimContainer>) {
    let (mark, exit, started_at) = {
        let kept = lock(&container.kept);
        (kept.mark, kept.exit.clone(), kept.started_at)
    };
    let phase = known.map(|known| known.phase.enum_value_or_default());
    let has_run = matches!(phase, Some(ContainerPhase::RUNNING | ContainerPhase::EXITED));
    match (mark, exit) {
        (Some(Mark::At(container::Level::Running) | Mark::Toward(container::Level::Running)), _) if has_run => {
            let reported = known.map_or(0, |known| known.started_at);
            let started_at = [started_at, reported].into_iter().find(|at| *at > 0).unwrap_or_else(now);
            let started_at = started_at.max(container.created_at);
            lock(&container.kept).started_at = started_at;
            if mark != Some(Mark::At(container::Level::Running)) {
                // The start was under way and has succeeded; only its record was not finished.
                let walk = ContainerWalk::new(app, container, None);
                if let Err(error) = walk.write(Mark::At(container::Level::Running)).await {
                    tracing::warn!(container = %container.id, error = %Chain(&error), "an adopted container is not recorded");
                }
            }
            let pid = known.map_or(0, |known| known.pid);
            container.publish(ContainerState::Running(Running { pid, started_at }));
            // If it has ended meanwhile, the shim says so at once.
            exits::watch(app, container);
        }
        (Some(Mark::At(container::Level::Running)), _) => {
            let exit =
                Exit::unknown("the shim does not know the container", started_at.max(container.created_at), now());
            down(app, container, Some(exit)).await;
        }
        (Some(Mark::Toward(container::Level::Running)), _) => {
            let at = now().max(container.created_at);
            down(app, container, Some(Exit::start_error("the daemon ended while it was being started".to_owned(), at)))
                .await;
        }
        (Some(Mark::At(container::Level::Held)), Some(exit)) => {
            container.publish(ContainerState::Exited(Arc::new(exit)))
        }
        (Some(Mark::At(container::Level::Held)), None) => container.publish(ContainerState::Created),
        (Some(Mark::Toward(container::Level::Held)), Some(exit)) => down(app, container, Some(exit)).await,
        // It was being made or removed.
        (
            Some(Mark::Toward(container::Level::Held | container::Level::Gone) | Mark::At(container::Level::Gone))
            | None,
            _,
        ) => {
            gone(app, container).await;
        }
    }
}

/// Ends the containers of a pod that has no shim (any more), and stops the pod.
async fn end(app: &Arc<App>, sandbox: &Arc<Sandbox>, containers: &[Arc<Container>], why: &str) {
    sandbox.publish(SandboxState::NotReady);
    // A shim that is gone for us may still be there, with a pod that was being made or stopped.
    clear_shim(app, sandbox).await;
    for container in containers {
        let (mark, exit, started_at, same_boot) = {
            let kept = lock(&container.kept);
            (kept.mark, kept.exit.clone(), kept.started_at, kept.boot_id == app.boot_id)
        };
        let unknown = || Exit::unknown(why, started_at.max(container.created_at), now());
        match (mark, exit) {
            (Some(Mark::At(container::Level::Running) | Mark::Toward(container::Level::Running)), exit) => {
                down(app, container, Some(exit.unwrap_or_else(unknown))).await;
            }
            (Some(Mark::At(container::Level::Held)), Some(exit)) => {
                container.publish(ContainerState::Exited(Arc::new(exit)));
            }
            // A loss of power may have taken the record of its start.
            (Some(Mark::At(container::Level::Held)), None) if !same_boot => down(app, container, Some(unknown())).await,
            (Some(Mark::At(container::Level::Held)), None) => container.publish(ContainerState::Created),
            (Some(Mark::Toward(container::Level::Held)), Some(exit)) => down(app, container, Some(exit)).await,
            (
                Some(Mark::Toward(container::Level::Held | container::Level::Gone) | Mark::At(container::Level::Gone))
                | None,
                _,
            ) => gone(app, container).await,
        }
    }
    if let Err(error) = sandbox::stop_known(app, sandbox).await {
        tracing::warn!(sandbox = %sandbox.id, error = %Chain(&error), "a pod is not taken down");
    }
}

/// Has a shim that may still run clean up after itself, before anything is done to what it holds.
async fn clear_shim(app: &App, sandbox: &Sandbox) {
    let mark = lock(&sandbox.kept).mark;
    if mark == Some(Mark::At(sandbox::Level::NotReady)) {
        return;
    }
    let walk = SandboxWalk::new(app, sandbox, None);
    if let Err(error) = walk.remove(SandboxStep::Shim).await {
        tracing::warn!(sandbox = %sandbox.id, error = %Chain(&error), "the shim of a pod is not cleared away");
    }
}

/// Leads a container down to where nothing of it runs. Its exit is published whether or not all could be cleared away.
async fn down(app: &App, container: &Container, exit: Option<Exit>) {
    let mark = lock(&container.kept).mark;
    let walk = ContainerWalk::new(app, container, exit.clone());
    let level = container::Level::Held;
    let drive = Drive::<ContainerStep>::new(mark, observed_after_create(mark), level, level);
    if let Err(failure) = execute(&walk, drive).await {
        tracing::warn!(container = %container.id, error = %Chain(&failure.first), "a container is not cleared away");
    }
    let exit = lock(&container.kept).exit.clone().or(exit);
    match exit {
        Some(exit) => container.publish(ContainerState::Exited(Arc::new(exit))),
        None => container.publish(ContainerState::Created),
    }
}

/// Removes a container that was being made or removed.
async fn gone(app: &Arc<App>, container: &Arc<Container>) {
    // Whatever becomes of the removal, it can't be started.
    *lock(&container.failure) = Some(Arc::new(container::CreateError::Lost));
    container.publish(ContainerState::Created);
    if let Err(error) = container::remove_known(app, container).await {
        tracing::warn!(container = %container.id, error = %Chain(&error), "a container is not removed");
    }
}
