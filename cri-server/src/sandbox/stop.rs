//! `StopPodSandbox`: kills everything without grace and takes the network down.
//!
//! "If there are any running containers in the sandbox, they must be forcibly terminated"; idempotent, and no error for a
//! sandbox that is not there (`api.proto`, StopPodSandbox).

use std::sync::Arc;

use futures::future::join_all;
use tracing::{Instrument as _, info_span};
use vaina_proto::cri::ContainerEventType;

use super::{
    Level, Sandbox, SandboxState, StepError,
    steps::{SandboxStep, Walk},
};
use crate::{
    app::App,
    container,
    error::{Chain, Classify, Kind},
    events,
    index::FindError,
    plan::{Drive, Observed, execute},
    work::lock,
};

/// Why a sandbox is not stopped.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// The start of an id that several have.
    #[error(transparent)]
    Find(FindError),
    /// A container lives on.
    #[error("stop container {id}")]
    Container {
        /// Which.
        id: crate::id::ContainerId,
        /// Cause.
        source: Box<container::StopError>,
    },
    /// A part of it is left.
    #[error("stop the pod sandbox{}", more(.further))]
    Step {
        /// What went wrong first.
        source: StepError,
        /// What else did.
        further: Vec<StepError>,
    },
}

fn more(further: &[StepError]) -> String {
    further.iter().map(|error| format!(" (also: {})", Chain(error))).collect()
}

impl Classify for StopError {
    fn kind(&self) -> Kind {
        match self {
            Self::Find(source) => source.kind(),
            Self::Container { source, .. } => source.kind(),
            Self::Step { source, .. } => source.kind(),
        }
    }
}

/// Stops a sandbox; one that is not there is stopped.
pub async fn stop(app: &Arc<App>, id: &str) -> Result<(), StopError> {
    let sandbox = match app.index.sandboxes.find(id) {
        Ok(sandbox) => sandbox,
        Err(FindError::Missing { .. }) => return Ok(()),
        Err(error @ FindError::Ambiguous { .. }) => return Err(StopError::Find(error)),
    };
    let app = Arc::clone(app);
    app.changes.clone().run(async move { stop_known(&app, &sandbox).await }).await
}

/// Stops a sandbox that is there.
pub(crate) async fn stop_known(app: &Arc<App>, sandbox: &Arc<Sandbox>) -> Result<(), StopError> {
    {
        let _changing = sandbox.gate.write().instrument(info_span!("gate")).await;
        match sandbox.state() {
            SandboxState::Ready(ready) => sandbox.publish(SandboxState::Stopping(ready)),
            SandboxState::Failed(_) | SandboxState::Removed | SandboxState::Unknown(_) => return Ok(()),
            SandboxState::Starting | SandboxState::Stopping(_) | SandboxState::NotReady => {}
        }
    }
    // From here on no container is created or started. They are killed with the gate open: a call that reads it is not
    // to wait for a process.
    let containers = app.containers_of(&sandbox.id);
    let stops = containers.iter().map(async |container| {
        container::stop_known(app, container)
            .await
            .map_err(|source| StopError::Container { id: container.id.clone(), source: Box::new(source) })
    });
    // Each is tried; a container that does not die must not keep the others alive.
    let results = join_all(stops).instrument(info_span!("stop_containers")).await;
    results.into_iter().collect::<Result<Vec<()>, _>>()?;

    let _changing = sandbox.gate.write().instrument(info_span!("gate")).await;
    for container in &containers {
        // The tasks go before the shim that holds them.
        container::settle(app, container)
            .instrument(info_span!("settle_containers"))
            .await
            .map_err(|source| StopError::Container { id: container.id.clone(), source: Box::new(source) })?;
    }
    tear_down(app, sandbox, Level::NotReady).await?;
    if !matches!(sandbox.state(), SandboxState::NotReady) {
        sandbox.publish(SandboxState::NotReady);
        events::sandbox(app, sandbox, ContainerEventType::ContainerStoppedEvent);
    }
    Ok(())
}

/// Leads a sandbox whose containers are dead down to `level`, with its gate held for writing.
pub(super) async fn tear_down(app: &App, sandbox: &Sandbox, level: Level) -> Result<(), StopError> {
    let mark = lock(&sandbox.kept).mark;
    if mark.is_none() {
        return Ok(());
    }
    let walk = Walk::new(app, sandbox, sandbox.shim());
    let drive = Drive::<SandboxStep>::new(mark, Observed::from_mark::<SandboxStep>(mark), level, level);
    execute(&walk, drive).await.map_err(|failure| StopError::Step { source: failure.first, further: failure.further })
}
