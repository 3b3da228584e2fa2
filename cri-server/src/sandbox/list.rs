//! `ListPodSandbox`, from memory.

use vaina_proto::cri::{PodSandbox, PodSandboxFilter, PodSandboxState};

use super::{Sandbox, SandboxState};
use crate::app::App;

/// All sandboxes that meet every condition of the filter.
pub fn list(app: &App, filter: Option<&PodSandboxFilter>) -> Vec<PodSandbox> {
    app.index
        .sandboxes
        .list()
        .into_iter()
        .filter(|sandbox| sandbox.is_listed())
        // One look at the state, or it could be another than the filter wants by the time that it is told.
        .map(|sandbox| message(&sandbox))
        .filter(|message| matches(message, filter))
        .collect()
}

pub(super) fn state(state: &SandboxState) -> PodSandboxState {
    match state {
        SandboxState::Ready(_) => PodSandboxState::SandboxReady,
        SandboxState::Starting
        | SandboxState::Failed(_)
        | SandboxState::Stopping(_)
        | SandboxState::NotReady
        | SandboxState::Removed
        | SandboxState::Unknown(_) => PodSandboxState::SandboxNotready,
    }
}

fn matches(sandbox: &PodSandbox, filter: Option<&PodSandboxFilter>) -> bool {
    let Some(filter) = filter else { return true };
    sandbox.id.starts_with(&filter.id)
        && filter.state.as_ref().is_none_or(|wanted| wanted.state == sandbox.state)
        && filter.label_selector.iter().all(|(key, value)| sandbox.labels.get(key) == Some(value))
}

fn message(sandbox: &Sandbox) -> PodSandbox {
    PodSandbox {
        id: sandbox.id.to_string(),
        metadata: Some(sandbox.config.metadata.clone().unwrap_or_default()),
        state: state(&sandbox.state()).into(),
        created_at: sandbox.created_at,
        labels: sandbox.config.labels.clone(),
        annotations: sandbox.config.annotations.clone(),
        runtime_handler: sandbox.handler.clone(),
    }
}

#[cfg(test)]
mod tests {
    use vaina_proto::cri::{PodSandboxConfig, PodSandboxStateValue};

    use super::*;
    use crate::{id::SandboxId, sandbox::Kept};

    #[test]
    fn every_condition_of_a_filter_counts() {
        let config = PodSandboxConfig {
            labels: [("app".to_owned(), "web".to_owned()), ("tier".to_owned(), "front".to_owned())].into(),
            ..Default::default()
        };
        let sandbox = Sandbox::new(SandboxId::new("abc123"), config, String::new(), 1, Kept::default());
        sandbox.publish(SandboxState::NotReady);
        let filter = |id: &str, state: Option<PodSandboxState>, labels: &[(&str, &str)]| PodSandboxFilter {
            id: id.to_owned(),
            state: state.map(|state| PodSandboxStateValue { state: state.into() }),
            label_selector: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        };
        let not_ready = Some(PodSandboxState::SandboxNotready);
        for (wanted, filter) in [
            (true, filter("", None, &[])),
            (true, filter("abc", not_ready, &[("app", "web"), ("tier", "front")])),
            (false, filter("abd", not_ready, &[("app", "web")])),
            (false, filter("abc", Some(PodSandboxState::SandboxReady), &[("app", "web")])),
            (false, filter("abc", not_ready, &[("app", "web"), ("tier", "back")])),
            (false, filter("abc", not_ready, &[("none", "")])),
        ] {
            assert_eq!(matches(&message(&sandbox), Some(&filter)), wanted, "{filter:?}");
        }
        assert!(matches(&message(&sandbox), None));
    }
}
