//! `RemoveContainer`: kills what runs, then removes all of it. Callers that come together wait for the first.
//!
//! Idempotent, and no error for a container that is not there (`api.proto`, RemoveContainer).

use std::sync::Arc;

use tracing::{Instrument as _, info_span};
use vaina_proto::cri::ContainerEventType;

use super::{
    Container, ContainerState, Level, StepError, StopError,
    steps::{ContainerStep, Walk},
    stop_known,
};
use crate::{
    app::App,
    error::{Chain, Classify, Kind},
    events,
    index::FindError,
    plan::{Drive, Observed, execute},
    work::lock,
};

/// Why a container is not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// The start of an id that several have.
    #[error(transparent)]
    Find(FindError),
    /// It could not be stopped.
    #[error(transparent)]
    Stop(StopError),
    /// A part of it is left.
    #[error("remove the container{}", also(.further))]
    Step {
        /// What went wrong first.
        source: StepError,
        /// What else did.
        further: Vec<StepError>,
    },
}

fn also(further: &[StepError]) -> String {
    further.iter().map(|error| format!(" (also: {})", Chain(error))).collect()
}

impl Classify for RemoveError {
    fn kind(&self) -> Kind {
        match self {
            Self::Find(source) => source.kind(),
            Self::Stop(source) => source.kind(),
            Self::Step { source, .. } => source.kind(),
        }
    }
}

/// Removes a container; one that is not there is removed.
pub async fn remove(app: &Arc<App>, id: &str) -> Result<(), RemoveError> {
    let container = match app.index.containers.find(id) {
        Ok(container) => container,
        Err(FindError::Missing { .. }) => return Ok(()),
        Err(error @ FindError::Ambiguous { .. }) => return Err(RemoveError::Find(error)),
    };
    let app = Arc::clone(app);
    app.changes.clone().run(async move { remove_known(&app, &container).await }).await
}

/// Removes a container that is there.
pub(crate) async fn remove_known(app: &Arc<App>, container: &Arc<Container>) -> Result<(), RemoveError> {
    stop_known(app, container).instrument(info_span!("stop")).await.map_err(RemoveError::Stop)?;
    let _changing = container.changing().await;
    if matches!(container.state(), ContainerState::Removed | ContainerState::Failed(_)) {
        return Ok(());
    }
    let mark = lock(&container.kept).mark;
    let walk = Walk::new(app, container, None);
    let drive = Drive::<ContainerStep>::new(mark, Observed::from_mark::<ContainerStep>(mark), Level::Gone, Level::Gone);
    execute(&walk, drive)
        .await
        .map_err(|failure| RemoveError::Step { source: failure.first, further: failure.further })?;
    app.index.containers.remove(container);
    container.publish(ContainerState::Removed);
    events::container(app, container, ContainerEventType::ContainerDeletedEvent);
    Ok(())
}
