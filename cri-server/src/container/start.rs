//! `StartContainer`.

use std::sync::Arc;

use vaina_proto::cri::ContainerEventType;

use super::{
    Container, ContainerState, Level, StateError, StepError,
    steps::{ContainerStep, Walk},
};
use crate::{
    app::App,
    error::{Chain, Classify, Kind},
    events, exits,
    index::FindError,
    plan::{Drive, Failure, Observed, execute},
    sandbox::NotReadyError,
    work::lock,
};

/// Why a container is not started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No such container.
    #[error(transparent)]
    Find(FindError),
    /// It runs or has run.
    #[error(transparent)]
    State(StateError),
    /// Its pod is stopped.
    #[error(transparent)]
    Sandbox(NotReadyError),
    /// A step failed; the container is Exited with code 128.
    #[error("start the container{}", also(.further))]
    Step {
        /// What went wrong first.
        source: StepError,
        /// What went wrong while it was undone.
        further: Vec<StepError>,
    },
    /// Another call started it, and failed.
    #[error("start the container: {0}")]
    Joined(String),
}

fn also(further: &[StepError]) -> String {
    further.iter().map(|error| format!(" (also: {})", Chain(error))).collect()
}

impl Classify for StartError {
    fn kind(&self) -> Kind {
        match self {
            Self::Find(source) => source.kind(),
            Self::State(source) => source.kind(),
            Self::Sandbox(source) => source.kind(),
            Self::Step { source, .. } => source.kind(),
            Self::Joined(_) => Kind::Internal,
        }
    }
}

/// Starts a created container. A call that comes while it is being started gets the answer of that start.
pub async fn start(app: &Arc<App>, id: &str) -> Result<(), StartError> {
    let container = app.index.containers.find(id).map_err(StartError::Find)?;
    if matches!(container.state(), ContainerState::Starting) {
        let mut state = container.watch();
        let state = state.wait_for(|state| !matches!(state, ContainerState::Starting)).await;
        return match state.as_deref() {
            Ok(ContainerState::Exited(exit)) if exit.reason == "StartError" => {
                Err(StartError::Joined(exit.message.clone()))
            }
            Ok(ContainerState::Running(_) | ContainerState::Exited(_)) => Ok(()),
            Ok(other) => Err(StartError::State(container.refuse(other))),
            Err(_) => Err(StartError::State(container.refuse(&ContainerState::Starting))),
        };
    }
    let app = Arc::clone(app);
    app.changes.clone().run(async move { start_known(&app, &container).await }).await
}

async fn start_known(app: &Arc<App>, container: &Arc<Container>) -> Result<(), StartError> {
    let _changing = container.changing().await;
    match container.state() {
        ContainerState::Created if lock(&container.failure).is_none() => {}
        other => return Err(StartError::State(container.refuse(&other))),
    }
    container.sandbox.ready().map_err(StartError::Sandbox)?;
    app.group_moves.announce();
    container.publish(ContainerState::Starting);
    let walk = Walk::new(app, container, None);
    let mark = lock(&container.kept).mark;
    let drive =
        Drive::<ContainerStep>::new(mark, Observed::from_mark::<ContainerStep>(mark), Level::Running, Level::Held);
    let result = execute(&walk, drive).await;
    if let (Ok(()), Some(running)) = (&result, walk.running()) {
        container.publish(ContainerState::Running(running));
        events::container(app, container, ContainerEventType::ContainerStartedEvent);
        exits::watch(app, container);
        return Ok(());
    }
    // Even if its exit could not be recorded or what was made could not be removed, it did not start.
    let failure = match result {
        Err(Failure { first, further, .. }) => StartError::Step { source: first, further },
        Ok(()) => StartError::Joined("it has no process".to_owned()),
    };
    exits::failed_start(app, container, &failure);
    Err(failure)
}
