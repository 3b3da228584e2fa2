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
        .filter(|container| container.is_listed())
        // One look at the state, or it could be another than the filter wants by the time that it is told.
        .map(|container| message(&container))
        .filter(|message| matches(message, filter))
        .collect()
}

pub(super) fn state(state: &ContainerState) -> cri::ContainerState {
    match state {
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

fn matches(container: &cri::Container, filter: Option<&ContainerFilter>) -> bool {
    let Some(filter) = filter else { return true };
    container.id.starts_with(&filter.id)
        && container.pod_sandbox_id.starts_with(&filter.pod_sandbox_id)
        && filter.state.as_ref().is_none_or(|wanted| wanted.state == container.state)
        && filter.label_selector.iter().all(|(key, value)| container.labels.get(key) == Some(value))
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
        state: state(&container.state()).into(),
        created_at: container.created_at,
        labels: container.config.labels.clone(),
        annotations: container.config.annotations.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // proves: ContainerState.CONTAINER_UNKNOWN
    #[test]
    fn a_container_of_which_nothing_is_known_is_neither_running_nor_exited() {
        let unknown = ContainerState::Unknown("its record can't be read".into());
        assert_eq!(state(&unknown), cri::ContainerState::ContainerUnknown);
        assert_eq!(state(&ContainerState::Created), cri::ContainerState::ContainerCreated);
    }
}
