//! `UpdatePodSandboxResources`: what the pod as a whole may use. With a kubelet its group is the kubelet's, and this is only
//! remembered; a group of ours gets the limits.

use std::sync::Arc;

use vaina_proto::cri::LinuxContainerResources;

use super::{Sandbox, SandboxState, StepError, steps::Walk};
use crate::{
    app::App,
    error::{Chain, Classify, Kind},
    index::FindError,
    limits,
    work::blocking,
};

/// Why limits stay as they were.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// No such sandbox.
    #[error(transparent)]
    Find(FindError),
    /// Its control group.
    #[error("set the pod's limits")]
    Limit(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The record.
    #[error(transparent)]
    Record(StepError),
}

impl Classify for UpdateError {
    fn kind(&self) -> Kind {
        match self {
            Self::Find(source) => source.kind(),
            Self::Limit(_) => Kind::FailedPrecondition,
            Self::Record(source) => source.kind(),
        }
    }
}

/// Gives a pod other limits; what the request leaves out stays.
pub async fn update(
    app: &Arc<App>,
    id: &str,
    overhead: Option<LinuxContainerResources>,
    resources: Option<LinuxContainerResources>,
) -> Result<(), UpdateError> {
    let sandbox = app.index.sandboxes.find(id).map_err(UpdateError::Find)?;
    let app = Arc::clone(app);
    app.changes.clone().run(async move { update_known(&app, &sandbox, overhead, resources).await }).await
}

async fn update_known(
    app: &App,
    sandbox: &Sandbox,
    overhead: Option<LinuxContainerResources>,
    resources: Option<LinuxContainerResources>,
) -> Result<(), UpdateError> {
    let _changing = sandbox.gate.write().await;
    if !sandbox.is_listed() {
        let missing = FindError::Missing { what: "pod sandbox", id: sandbox.id.to_string() };
        return Err(UpdateError::Find(missing));
    }
    let (old_resources, old_overhead) = sandbox.resources();
    let is_ours = sandbox.cgroup(&app.config.cgroup.parent).1 && matches!(sandbox.state(), SandboxState::Ready(_));
    let new = (resources.or_else(|| old_resources.clone()), overhead.or_else(|| old_overhead.clone()));
    if is_ours {
        limit(app, sandbox, new.0.clone(), new.1.clone()).await?;
    }
    let kept = Walk::new(app, sandbox, None)
        .put(|kept| (kept.resources, kept.overhead) = new)
        .await
        .map_err(UpdateError::Record);
    if kept.is_err()
        && is_ours
        && let Err(error) = limit(app, sandbox, old_resources, old_overhead).await
    {
        tracing::warn!(sandbox = %sandbox.id, error = %Chain(&error), "limits are not brought back");
    }
    kept
}

/// Sets the limits of a group of ours, all or none.
async fn limit(
    app: &App,
    sandbox: &Sandbox,
    resources: Option<LinuxContainerResources>,
    overhead: Option<LinuxContainerResources>,
) -> Result<(), UpdateError> {
    let (cgroups, path) = (app.cgroups.clone(), sandbox.cgroup(&app.config.cgroup.parent).0);
    blocking(move || {
        let (resources, overhead) = (resources.unwrap_or_default(), overhead.unwrap_or_default());
        limits::apply_or_restore(&limits::of_pod(&cgroups, &path, &resources, &overhead))
    })
    .await
    .map_err(|error| UpdateError::Limit(Box::new(error)))
}
