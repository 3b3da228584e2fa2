//! `ReopenContainerLog`, after the kubelet has renamed the file: the new one exists when this answers.

use super::StateError;
use crate::{
    app::App,
    error::{Classify, Kind},
    index::FindError,
    runtime::RuntimeError,
};

/// Why a log is not opened anew.
#[derive(Debug, thiserror::Error)]
pub enum ReopenLogError {
    /// No such container.
    #[error(transparent)]
    Find(FindError),
    /// It does not run.
    #[error(transparent)]
    State(StateError),
    /// The shim.
    #[error("have the shim reopen the log")]
    Shim(#[source] RuntimeError),
}

impl Classify for ReopenLogError {
    fn kind(&self) -> Kind {
        match self {
            Self::Find(source) => source.kind(),
            Self::State(source) => source.kind(),
            Self::Shim(source) => source.kind(),
        }
    }
}

/// Has the shim open the container's log file anew.
pub async fn reopen_log(app: &App, id: &str) -> Result<(), ReopenLogError> {
    let container = app.index.containers.find(id).map_err(ReopenLogError::Find)?;
    container.running().map_err(ReopenLogError::State)?;
    let Some(shim) = container.sandbox.shim() else {
        return Err(ReopenLogError::State(container.refuse(&container.state())));
    };
    shim.reopen_log(&container.id).await.map_err(ReopenLogError::Shim)
}
