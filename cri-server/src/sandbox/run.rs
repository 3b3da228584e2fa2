//! `RunPodSandbox`: a retry under the same key joins the operation, or gets its result.

use std::{io, sync::Arc};

use tracing::{Instrument as _, info_span};
use vaina_proto::cri::{ContainerEventType, NamespaceMode, PodSandboxConfig};

use super::{
    Kept, Level, Ready, Sandbox, SandboxState, StepError, difference, namespaces,
    steps::{SandboxStep, Walk},
    user_namespace,
};
use crate::{
    app::App,
    error::{Classify, Kind},
    events, exits,
    id::{self, SandboxId},
    network::PoolError,
    plan::{Drive, Failure, Observed, execute},
    work::{lock, now},
};

/// Why a sandbox does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A field that must be there.
    #[error("pod sandbox config has no {0}")]
    Missing(&'static str),
    /// A field that can't be as it is.
    #[error("pod sandbox config: {field} {reason}")]
    Invalid {
        /// Which.
        field: &'static str,
        /// Why.
        reason: String,
    },
    /// A handler that the configuration does not name.
    #[error("runtime handler {0:?} is not configured")]
    UnknownHandler(String),
    /// A pod in a user namespace, which the handler or the node can't have.
    #[error("runtime handler {handler:?} runs no pod in a user namespace: {reason}")]
    NoUserNamespace {
        /// As given.
        handler: String,
        /// Why not.
        reason: String,
    },
    /// The key is taken by a sandbox that was asked for with another config.
    #[error("pod sandbox {id} has the same name ({name}), namespace, uid and attempt, and a different {field}")]
    Differs {
        /// The one that is there.
        id: SandboxId,
        /// Of the pod.
        name: String,
        /// The first field that differs.
        field: &'static str,
    },
    /// The key is taken by a sandbox that has run and was not removed yet.
    #[error("pod sandbox {0} has the same name, namespace, uid and attempt, and is stopped; it must be removed first")]
    Stopped(SandboxId),
    /// No random numbers.
    #[error("make an id")]
    Id(#[source] io::Error),
    /// No address.
    #[error("give the pod an address")]
    Address(#[source] PoolError),
    /// A step failed; what was made is undone.
    #[error("run the pod sandbox")]
    Step(#[source] StepError),
    /// A step failed, and so did undoing what was made.
    #[error("run the pod sandbox, of which {id} is left: {}", undo(.further))]
    StepAndUndo {
        /// The sandbox that is listed NotReady.
        id: SandboxId,
        /// What went wrong first.
        source: StepError,
        /// What went wrong while it was undone.
        further: Vec<StepError>,
    },
    /// A bug of ours.
    #[error("run the pod sandbox: the operation ended without an answer")]
    Lost,
}

fn undo(further: &[StepError]) -> String {
    further.iter().map(|error| crate::error::Chain(error).to_string()).collect::<Vec<_>>().join("; ")
}

impl Classify for RunError {
    fn kind(&self) -> Kind {
        match self {
            Self::Missing(_) | Self::Invalid { .. } | Self::UnknownHandler(_) => Kind::InvalidArgument,
            Self::NoUserNamespace { .. } => Kind::Unimplemented,
            Self::Differs { .. } | Self::Stopped(_) => Kind::AlreadyExists,
            Self::Id(_) | Self::Lost => Kind::Internal,
            Self::Address(source) => source.kind(),
            Self::Step(source) | Self::StepAndUndo { source, .. } => source.kind(),
        }
    }
}

/// Makes a sandbox, or answers the one that was made under the same key.
pub async fn run(app: &Arc<App>, config: PodSandboxConfig, handler: &str) -> Result<SandboxId, Arc<RunError>> {
    check(&config)?;
    let Some(found) = app.handlers.get(handler) else {
        return Err(Arc::new(RunError::UnknownHandler(handler.to_owned())));
    };
    if user_namespace::asked(&namespaces(&config)).is_ok_and(|asked| asked.is_some())
        && let Some(reason) = app.handlers.user_namespace_problem(found)
    {
        return Err(Arc::new(RunError::NoUserNamespace { handler: handler.to_owned(), reason }));
    }
    loop {
        let id = SandboxId::new(id::random().map_err(RunError::Id)?);
        let kept = Kept { boot_id: app.boot_id.clone(), ..Kept::default() };
        let sandbox = Arc::new(Sandbox::new(id, config.clone(), handler.to_owned(), now(), kept));
        let sandbox = match app.index.sandboxes.claim(&sandbox) {
            Ok(()) => {
                let operation = make(Arc::clone(app), Arc::clone(&sandbox));
                drop(app.changes.spawn(operation));
                sandbox
            }
            Err(other) => {
                let differs = (other.handler != handler).then_some("runtime_handler");
                if let Some(field) = difference(&other.config, &config).or(differs) {
                    let name = config.metadata.unwrap_or_default().name;
                    return Err(Arc::new(RunError::Differs { id: other.id.clone(), name, field }));
                }
                other
            }
        };
        if let Some(answer) = outcome(&sandbox).await {
            return answer;
        }
    }
}

/// Waits for the operation on this sandbox; [`None`] if it was removed in between, so that the key is free again.
async fn outcome(sandbox: &Arc<Sandbox>) -> Option<Result<SandboxId, Arc<RunError>>> {
    let mut state = sandbox.watch();
    let Ok(state) = state.wait_for(|state| !matches!(state, SandboxState::Starting)).await else {
        return Some(Err(Arc::new(RunError::Lost)));
    };
    match &*state {
        SandboxState::Ready(_) => Some(Ok(sandbox.id.clone())),
        SandboxState::Failed(error) => Some(Err(Arc::clone(error))),
        SandboxState::Removed => None,
        SandboxState::Starting | SandboxState::Stopping(_) | SandboxState::NotReady | SandboxState::Unknown(_) => {
            let failed = lock(&sandbox.failure).clone();
            Some(Err(failed.unwrap_or_else(|| Arc::new(RunError::Stopped(sandbox.id.clone())))))
        }
    }
}

pub(crate) fn check(config: &PodSandboxConfig) -> Result<(), Arc<RunError>> {
    let invalid = |field, reason: &str| Arc::new(RunError::Invalid { field, reason: reason.to_owned() });
    let metadata = config.metadata.as_ref().ok_or(RunError::Missing("metadata"))?;
    if metadata.name.is_empty() {
        return Err(Arc::new(RunError::Missing("metadata.name")));
    }
    if metadata.namespace.is_empty() {
        return Err(Arc::new(RunError::Missing("metadata.namespace")));
    }
    if metadata.uid.is_empty() {
        return Err(Arc::new(RunError::Missing("metadata.uid")));
    }
    if config.hostname.len() > 64 {
        return Err(invalid("hostname", "is longer than the 64 bytes that the kernel takes"));
    }
    let parent = config.linux.as_ref().map_or("", |linux| linux.cgroup_parent.as_str());
    if parent.ends_with(".slice") {
        return Err(invalid("linux.cgroup_parent", "is a systemd slice, but the cgroup driver is cgroupfs"));
    }
    if parent.split('/').any(|part| part == "..") {
        return Err(invalid("linux.cgroup_parent", "climbs out with `..`"));
    }
    let options = namespaces(config);
    let (pod, container, node) =
        (i32::from(NamespaceMode::Pod), i32::from(NamespaceMode::Container), i32::from(NamespaceMode::Node));
    for (field, mode) in [("network", options.network), ("ipc", options.ipc)] {
        if ![pod, node].contains(&mode) {
            return Err(invalid("linux.security_context.namespace_options", &format!("{field} must be POD or NODE")));
        }
    }
    if ![pod, container, node].contains(&options.pid) {
        return Err(invalid("linux.security_context.namespace_options", "pid must be POD, CONTAINER or NODE"));
    }
    let field = "linux.security_context.namespace_options";
    if user_namespace::asked(&options).map_err(|reason| invalid(field, &reason))?.is_some() {
        let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        let privileged = security.is_some_and(|security| security.privileged);
        if let Some(reason) = user_namespace::conflict(&options, privileged) {
            return Err(invalid(field, reason));
        }
    }
    if config
        .port_mappings
        .iter()
        .any(|mapping| !mapping.host_ip.is_empty() && mapping.host_ip.parse::<std::net::IpAddr>().is_err())
    {
        return Err(invalid("port_mappings", "has a host_ip that is not an address"));
    }
    Ok(())
}

/// Whatever happens to the operation, nobody waits for it for ever.
struct Settled<'a>(&'a Sandbox);

impl Drop for Settled<'_> {
    fn drop(&mut self) {
        if matches!(self.0.state(), SandboxState::Starting) {
            *lock(&self.0.failure) = Some(Arc::new(RunError::Lost));
            self.0.publish(SandboxState::NotReady);
        }
    }
}

async fn make(app: Arc<App>, sandbox: Arc<Sandbox>) {
    let _settled = Settled(&sandbox);
    let _changing = sandbox.gate.write().instrument(info_span!("gate")).await;
    if !sandbox.is_host_network() {
        match app.pool.allocate(&sandbox.id) {
            Ok(address) => lock(&sandbox.kept).addresses = vec![address],
            Err(error) => return failed(&app, &sandbox, RunError::Address(error)),
        }
    }
    let walk = Walk::new(&app, &sandbox, None);
    let drive = Drive::<SandboxStep>::new(None, Observed::from_mark::<SandboxStep>(None), Level::Ready, Level::Gone);
    let result = execute(&walk, drive).await;
    match (result, walk.made()) {
        (Ok(()), Some((shim, pid))) => {
            let addresses = lock(&sandbox.kept).addresses.clone();
            sandbox.publish(SandboxState::Ready(Arc::new(Ready { addresses, shim, pid })));
            events::sandbox(&app, &sandbox, ContainerEventType::ContainerCreatedEvent);
            events::sandbox(&app, &sandbox, ContainerEventType::ContainerStartedEvent);
            exits::watch_sandbox(&app, &sandbox);
        }
        (Ok(()), None) => failed(&app, &sandbox, RunError::Lost),
        (Err(Failure { first, further, owed: true }), _) => {
            let error = RunError::StepAndUndo { id: sandbox.id.clone(), source: first, further };
            *lock(&sandbox.failure) = Some(Arc::new(error));
            sandbox.publish(SandboxState::NotReady);
            events::sandbox(&app, &sandbox, ContainerEventType::ContainerCreatedEvent);
        }
        (Err(Failure { first, owed: false, .. }), _) => failed(&app, &sandbox, RunError::Step(first)),
    }
}

/// Nothing is left of it: the key is free before anybody hears of the failure.
fn failed(app: &App, sandbox: &Sandbox, error: RunError) {
    app.pool.release(&sandbox.id);
    app.index.sandboxes.remove(sandbox);
    sandbox.publish(SandboxState::Failed(Arc::new(error)));
}

#[cfg(test)]
mod tests {
    use vaina_proto::cri::{LinuxPodSandboxConfig, PodSandboxMetadata};

    use super::*;

    fn config() -> PodSandboxConfig {
        let metadata = PodSandboxMetadata { name: "a".into(), namespace: "b".into(), uid: "c".into(), attempt: 0 };
        PodSandboxConfig { metadata: Some(metadata), ..Default::default() }
    }

    #[test]
    fn broken_configs_are_refused_by_field() {
        check(&config()).unwrap();
        let error = |change: fn(&mut PodSandboxConfig)| {
            let mut config = config();
            change(&mut config);
            let error = check(&config).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument);
            error.to_string()
        };
        assert!(error(|config| config.metadata = None).contains("metadata"));
        assert!(error(|config| config.metadata.as_mut().unwrap().uid.clear()).contains("metadata.uid"));
        assert!(error(|config| config.hostname = "x".repeat(65)).contains("hostname"));
        let parent = |parent: &str| Some(LinuxPodSandboxConfig { cgroup_parent: parent.into(), ..Default::default() });
        let with_parent = |text| {
            let config = PodSandboxConfig { linux: parent(text), ..config() };
            check(&config).map_err(|error| error.to_string())
        };
        assert!(with_parent("kubepods.slice").unwrap_err().contains("cgroupfs"));
        assert!(with_parent("/a/../..").unwrap_err().contains(".."));
        with_parent("/kubepods/pod1").unwrap();
    }
}
