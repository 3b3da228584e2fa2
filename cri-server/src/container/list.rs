//! `ListContainers`, from memory.

use vaina_proto::cri::{self, ContainerFilter, ImageSpec};

use super::{Container, ContainerState};
use crate::app::App;

/// All containers that meet every condition of the filter.
pub fn list(app: &App, filter: Option<&ContainerFilter>) -> Vec<cri::Container> {
    app.index
        .containers
        .list()
        .into_iter()
        .filter(|container| container.is_listed() && matches(container, filter))
        .map(|container| message(&container))
        .collect()
}

pub(super) fn state(container: &Container) -> cri::ContainerState {
    match container.state() {
        ContainerState::Creating | ContainerState::Created | ContainerState::Starting => {
            cri::ContainerState::ContainerCreated
        }
        ContainerState::Running(_) => cri::ContainerState::ContainerRunning,
        ContainerState::Exited(_) | ContainerState::Failed(_) | ContainerState::Removed => {
            cri::ContainerState::ContainerExited
        }
        ContainerState::Unknown(_) => cri::ContainerState::ContainerUnknown,
    }
}

fn matches(container: &Container, filter: Option<&ContainerFilter>) -> bool {
    let Some(filter) = filter else { return true };
    container.id.as_str().starts_with(&filter.id)
        && container.sandbox.id.as_str().starts_with(&filter.pod_sandbox_id)
        && filter.state.as_ref().is_none_or(|wanted| wanted.state == i32::from(state(container)))
        && filter.label_selector.iter().all(|(key, value)| container.config.labels.get(key) == Some(value))
}

fn message(container: &Container) -> cri::Container {
    cri::Container {
        id: container.id.to_string(),
        pod_sandbox_id: container.sandbox.id.to_string(),
        metadata: Some(container.config.metadata.clone().unwrap_or_default()),
        image: Some(ImageSpec {
            image: container.image.name.clone(),
            ..container.config.image.clone().unwrap_or_default()
        }),
        // The kubelet's image collector compares these with the ids of images.
        image_ref: container.image.id.to_string(),
        image_id: container.image.id.to_string(),
        state: state(container).into(),
        created_at: container.created_at,
        labels: container.config.labels.clone(),
        annotations: container.config.annotations.clone(),
    }
}
