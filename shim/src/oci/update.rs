//! New limits of a container: from an OCI `LinuxResources` or from single flags.

use libcgroups::common::{CgroupManager as _, ControllerOpt};
use libcontainer::oci_spec::runtime::LinuxResources;
use serde_json::{Value, json};

use super::{OciError, args::Update, container::Container};

/// How a flag's value is written into the resources.
enum Form {
    Number,
    Text,
}

/// `runc update`'s flags with the place of each in `LinuxResources`.
const FLAGS: &[(&str, &str, &str, Form)] = &[
    ("cpu-period", "cpu", "period", Form::Number),
    ("cpu-quota", "cpu", "quota", Form::Number),
    ("cpu-share", "cpu", "shares", Form::Number),
    ("cpu-rt-period", "cpu", "realtimePeriod", Form::Number),
    ("cpu-rt-runtime", "cpu", "realtimeRuntime", Form::Number),
    ("cpuset-cpus", "cpu", "cpus", Form::Text),
    ("cpuset-mems", "cpu", "mems", Form::Text),
    ("memory", "memory", "limit", Form::Number),
    ("memory-reservation", "memory", "reservation", Form::Number),
    ("memory-swap", "memory", "swap", Form::Number),
    ("pids-limit", "pids", "limit", Form::Number),
    ("blkio-weight", "blockIO", "weight", Form::Number),
];

/// Whether `name` is such a flag.
pub(super) fn is_flag(name: &str) -> bool {
    FLAGS.iter().any(|(flag, ..)| *flag == name)
}

/// Reads the new limits.
pub(super) fn resources(source: &Update) -> Result<LinuxResources, OciError> {
    let invalid = |source| OciError::Resources { source };
    match source {
        Update::File(path) => {
            let text = std::fs::read(path).map_err(|source| OciError::Read { path: path.clone(), source })?;
            serde_json::from_slice(&text).map_err(invalid)
        }
        Update::Stdin => serde_json::from_reader(std::io::stdin().lock()).map_err(invalid),
        Update::Flags(flags) => from_flags(flags),
    }
}

fn from_flags(flags: &[(String, String)]) -> Result<LinuxResources, OciError> {
    let mut resources = json!({});
    for (flag, value) in flags {
        let Some((_, part, field, form)) = FLAGS.iter().find(|(name, ..)| name == flag) else { continue };
        let bad = || OciError::Limit { flag: flag.clone(), value: value.clone() };
        let value: Value = match form {
            Form::Number => value.parse::<i64>().map_err(|_| bad())?.into(),
            Form::Text => value.as_str().into(),
        };
        resources[part][field] = value;
    }
    serde_json::from_value(resources).map_err(|source| OciError::Resources { source })
}

/// Applies them. Groups that the new limits do not name keep theirs.
pub(super) fn apply(container: &Container, resources: &LinuxResources) -> Result<(), OciError> {
    let manager = container.cgroup_manager()?;
    let wanted = ControllerOpt { resources, freezer_state: None, oom_score_adj: None, disable_oom_killer: false };
    manager.apply(&wanted).map_err(|error| OciError::Cgroup { step: "apply limits", message: super::chain(&error) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_become_resources() {
        let flags = [("memory", "1048576"), ("cpu-quota", "-1"), ("cpuset-cpus", "0-1")];
        let flags: Vec<_> = flags.iter().map(|(flag, value)| ((*flag).to_owned(), (*value).to_owned())).collect();
        let resources = from_flags(&flags).unwrap();
        assert_eq!(resources.memory().as_ref().unwrap().limit(), Some(1_048_576));
        assert_eq!(resources.cpu().as_ref().unwrap().quota(), Some(-1));
        assert_eq!(resources.cpu().as_ref().unwrap().cpus().as_deref(), Some("0-1"));
        assert!(from_flags(&[("memory".to_owned(), "much".to_owned())]).is_err());
    }
}
