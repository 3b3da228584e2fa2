//! `ContainerStatus`, from memory; verbose also reads the bundle.

use vaina_proto::cri::{
    self, ContainerResources, ContainerStatusResponse, ContainerUser, ImageSpec, LinuxContainerUser,
};

use super::{Container, ContainerState, image_volume, list, signal};
use crate::{
    app::App,
    error::{Classify, Kind},
    id::SandboxId,
    index::FindError,
    info::{self, Info},
    work::lock,
};

/// Why there is no status.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// No such container.
    #[error(transparent)]
    Find(FindError),
}

impl Classify for StatusError {
    fn kind(&self) -> Kind {
        match self {
            Self::Find(source) => source.kind(),
        }
    }
}

/// The status of a container; `verbose` adds what crictl and tools read from other runtimes.
pub async fn status(app: &App, id: &str, verbose: bool) -> Result<ContainerStatusResponse, StatusError> {
    let container = app.index.containers.find(id).map_err(StatusError::Find)?;
    if matches!(container.state(), ContainerState::Creating | ContainerState::Failed(_)) {
        return Err(StatusError::Find(FindError::Missing { what: "container", id: id.to_owned() }));
    }
    let info = if verbose { self::verbose(app, &container).await } else { Info::new() };
    Ok(ContainerStatusResponse { status: Some(message(&container)), info })
}

/// Those of a pod's containers that CRI's lists name, as CRI sees them.
pub(crate) fn messages(app: &App, sandbox: &SandboxId) -> Vec<cri::ContainerStatus> {
    let containers = app.containers_of(sandbox);
    containers.iter().filter(|container| container.is_listed()).map(|container| message(container)).collect()
}

/// As CRI sees it.
pub fn message(container: &Container) -> cri::ContainerStatus {
    // Looked at once: an exit between two looks would be one without a code.
    let state = container.state();
    let (started_at, finished_at, exit_code, reason, message) = match &state {
        ContainerState::Running(running) => (running.started_at, 0, 0, String::new(), String::new()),
        ContainerState::Exited(exit) => {
            (exit.started_at, exit.finished_at, exit.code, exit.reason.clone(), exit.message.clone())
        }
        ContainerState::Unknown(reason) => (0, 0, 255, "Unknown".to_owned(), reason.to_string()),
        ContainerState::Creating
        | ContainerState::Failed(_)
        | ContainerState::Created
        | ContainerState::Starting
        | ContainerState::Removed => (0, 0, 0, String::new(), String::new()),
    };
    let resources = container.resources();
    let user = lock(&container.kept).user.clone();
    cri::ContainerStatus {
        id: container.id.to_string(),
        metadata: Some(container.config.metadata.clone().unwrap_or_default()),
        state: list::state(&state).into(),
        created_at: container.created_at,
        started_at,
        finished_at,
        exit_code,
        image: Some(ImageSpec {
            image: container.image.name.clone(),
            ..container.config.image.clone().unwrap_or_default()
        }),
        image_ref: container.image.reference.clone(),
        image_id: container.image.id.to_string(),
        reason,
        message,
        labels: container.config.labels.clone(),
        annotations: container.config.annotations.clone(),
        mounts: image_volume::told(container),
        log_path: container.log_path().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
        resources: resources.map(|linux| ContainerResources { linux: Some(linux), ..Default::default() }),
        user: user.map(|user| ContainerUser {
            linux: Some(LinuxContainerUser {
                uid: user.uid.into(),
                gid: user.gid.into(),
                supplemental_groups: user.groups.into_iter().map(i64::from).collect(),
            }),
        }),
        stop_signal: signal::name(container.stop_signal).into(),
    }
}

async fn verbose(app: &App, container: &Container) -> Info {
    let pid = container.running().map_or(0, |running| running.pid);
    // After a reboot there is no bundle any more.
    let spec = tokio::fs::read(container.bundle(&app.config.state).join("config.json")).await.unwrap_or_default();
    let spec: serde_json::Value = serde_json::from_slice(&spec).unwrap_or_default();
    let handler = app.handlers.get(&container.sandbox.handler);
    info::one(&serde_json::json!({
        "sandboxID": container.sandbox.id.as_str(),
        "pid": pid,
        // A removal answers when it is done.
        "removing": false,
        "processStatus": container.state().word(),
        "snapshotKey": container.id.as_str(),
        "snapshotter": "overlayfs",
        "runtimeType": handler.map(info::runtime_type),
        "runtimeOptions": handler.map(info::runtime_options),
        "config": info::message("ContainerConfig", &container.config),
        "runtimeSpec": spec,
    }))
}
