//! The default profile beside containerd's, call by call; and what a config may name.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use nix::libc::EPERM;
use serde::Deserialize;
use vaina_proto::cri::SecurityProfile;

use super::*;
use crate::error::Chain;

/// Printed by `tests/seccomp` (`make seccomp-reference`).
#[cfg(target_arch = "x86_64")]
const REFERENCE: &str = include_str!("../../../../../tests/seccomp/amd64.json");
#[cfg(target_arch = "aarch64")]
const REFERENCE: &str = include_str!("../../../../../tests/seccomp/arm64.json");

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Reference {
    calls: Vec<String>,
    default_action: String,
    architectures: Vec<String>,
    common: Vec<Rule>,
    sets: Vec<Set>,
}

#[derive(Deserialize)]
struct Set {
    capabilities: Vec<String>,
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    names: Vec<String>,
    action: String,
    errno_ret: Option<i32>,
    #[serde(default)]
    args: Vec<Condition>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    index: usize,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

impl Condition {
    fn holds(&self, argument: u64) -> bool {
        assert_eq!(self.index, 0, "the values that are tried are those of a first argument");
        match self.op.as_str() {
            "SCMP_CMP_EQ" => argument == self.value,
            "SCMP_CMP_LT" => argument < self.value,
            "SCMP_CMP_GT" => argument > self.value,
            "SCMP_CMP_MASKED_EQ" => argument & self.value == self.value_two,
            other => panic!("{other} is not read by this test"),
        }
    }
}

/// What a call answers; [`None`] if it is let through.
type Answer = Option<i32>;

struct Filter {
    default: Answer,
    rules: BTreeMap<String, Vec<Rule>>,
}

fn answer(action: &str, errno: Option<i32>) -> Answer {
    match action {
        "SCMP_ACT_ALLOW" => None,
        "SCMP_ACT_ERRNO" => Some(errno.unwrap_or(EPERM)),
        other => panic!("{other} is not read by this test"),
    }
}

impl Filter {
    fn new(default: Answer, list: &[Rule]) -> Self {
        let mut rules = BTreeMap::<_, Vec<_>>::new();
        for rule in list {
            for name in &rule.names {
                rules.entry(name.clone()).or_default().push(Rule { names: Vec::new(), ..rule.clone() });
            }
        }
        Self { default, rules }
    }

    fn rules(&self, call: &str) -> &[Rule] {
        self.rules.get(call).map_or(&[], Vec::as_slice)
    }

    /// Which of several rules wins is the library's secret, so that they must agree.
    fn answer(&self, call: &str, argument: u64) -> Answer {
        // Several conditions on one argument are alternatives.
        let holds = |rule: &&Rule| rule.args.is_empty() || rule.args.iter().any(|condition| condition.holds(argument));
        let mut answers = self.rules(call).iter().filter(holds).map(|rule| answer(&rule.action, rule.errno_ret));
        let Some(first) = answers.next() else { return self.default };
        assert!(answers.all(|other| other == first), "rules for {call}({argument:#x}) contradict each other");
        first
    }

    /// First arguments at which some rule for this call may change its mind.
    fn arguments(&self, call: &str) -> Vec<u64> {
        let conditions = self.rules(call).iter().flat_map(|rule| &rule.args);
        let edges = conditions
            .flat_map(|condition| [condition.value, condition.value_two])
            .flat_map(|value| [value.wrapping_sub(1), value, value.wrapping_add(1)]);
        edges.chain((0..32).map(|bit| 1 << bit)).chain([0, 17, u64::from(u32::MAX)]).collect()
    }
}

#[test]
fn the_default_profile_has_the_effect_of_containerds() {
    let reference: Reference = serde_json::from_str(REFERENCE).unwrap();
    assert!(reference.calls.len() > 400 && reference.sets.len() > 15, "the reference is complete");
    let mut differences = Vec::new();
    for set in &reference.sets {
        let capabilities: Vec<&str> = set.capabilities.iter().map(String::as_str).collect();
        let ours = default::profile(&capabilities);
        assert_eq!(ours["architectures"], serde_json::json!(reference.architectures));
        let rules: Vec<Rule> = serde_json::from_value(ours["syscalls"].clone()).unwrap();
        let ours = Filter::new(answer(ours["defaultAction"].as_str().unwrap(), None), &rules);
        let rules = [&reference.common[..], &set.rules].concat();
        let theirs = Filter::new(answer(&reference.default_action, None), &rules);
        let calls: BTreeSet<&String> =
            reference.calls.iter().chain(ours.rules.keys()).chain(theirs.rules.keys()).collect();
        for call in calls {
            for argument in [ours.arguments(call), theirs.arguments(call)].concat() {
                let (our, their) = (ours.answer(call, argument), theirs.answer(call, argument));
                if our != their {
                    differences.push(format!("{capabilities:?}: {call}({argument:#x}): {our:?}, containerd {their:?}"));
                }
            }
        }
    }
    differences.dedup();
    println!(
        "{} calls, {} sets of capabilities, {} differences",
        reference.calls.len(),
        reference.sets.len(),
        differences.len()
    );
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

fn security(profile_type: ProfileType, reference: &str) -> LinuxContainerSecurityContext {
    let profile = SecurityProfile { profile_type: profile_type.into(), localhost_ref: reference.into() };
    LinuxContainerSecurityContext { seccomp: Some(profile), ..Default::default() }
}

fn in_words(path: &str) -> LinuxContainerSecurityContext {
    #[expect(deprecated, reason = "old clients know no other")]
    LinuxContainerSecurityContext { seccomp_profile_path: path.into(), ..Default::default() }
}

#[test]
fn a_profile_is_asked_for_by_type_or_in_the_old_words() {
    let asked = |security| asked(&security).map_err(|error| error.to_string());
    let kubelets = || Ok(Asked::Localhost("/var/lib/kubelet/seccomp/a/b.json".into()));
    assert_eq!(asked(LinuxContainerSecurityContext::default()), Ok(Asked::Unconfined));
    assert_eq!(asked(security(ProfileType::Unconfined, "")), Ok(Asked::Unconfined));
    assert_eq!(asked(security(ProfileType::RuntimeDefault, "")), Ok(Asked::RuntimeDefault));
    assert_eq!(asked(security(ProfileType::Localhost, "/x.json")), Ok(Asked::Localhost("/x.json".into())));
    assert_eq!(asked(security(ProfileType::Localhost, "a/b.json")), kubelets());
    assert!(asked(security(ProfileType::Localhost, "")).unwrap_err().contains("localhost_ref"));
    assert!(asked(security(ProfileType::Localhost, "../../shadow")).unwrap_err().contains("../../shadow"));
    assert!(asked(security(ProfileType::RuntimeDefault, "/x.json")).unwrap_err().contains("/x.json"));
    assert_eq!(asked(in_words("unconfined")), Ok(Asked::Unconfined));
    assert_eq!(asked(in_words("runtime/default")), Ok(Asked::RuntimeDefault));
    assert_eq!(asked(in_words("localhost/a/b.json")), kubelets());
    assert!(asked(in_words("nonsense")).unwrap_err().contains("nonsense"));
    let privileged = LinuxContainerSecurityContext { privileged: true, ..security(ProfileType::RuntimeDefault, "") };
    assert_eq!(asked(privileged), Ok(Asked::Unconfined));
}

#[test]
fn a_profile_of_the_host_is_read_or_refused_with_path_and_cause() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("profile.json");
    let named = || of_host(&security(ProfileType::Localhost, path.to_str().unwrap()));
    let refused = |cause: &str| {
        let text = Chain(&named().unwrap_err()).to_string();
        assert!(text.contains(path.to_str().unwrap()) && text.contains(cause), "{text}");
    };
    refused("No such file or directory");
    for (text, cause) in [
        ("", "line 1 column 0"),
        ("{", "line 1 column 1"),
        ("{}", "defaultAction"),
        (r#"{"defaultAction":"SCMP_ACT_NONSENSE"}"#, "SCMP_ACT_NONSENSE"),
        (r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_PDP11"]}"#, "SCMP_ARCH_PDP11"),
        (r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"action":"SCMP_ACT_ALLOW"}]}"#, "names"),
    ] {
        fs::write(&path, text).unwrap();
        refused(cause);
    }
    fs::write(&path, vec![b' '; (1 << 20) + 1]).unwrap();
    refused("larger");
    fs::remove_file(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    refused("not a file");
    fs::remove_file(&path).unwrap();
    fs::write(&path, r#"{"defaultAction":"SCMP_ACT_ALLOW","archMap":[],"syscalls":null}"#).unwrap();
    let profile = named().unwrap().unwrap();
    assert_eq!(serde_json::to_value(&profile).unwrap()["defaultAction"], "SCMP_ACT_ALLOW");
    assert!(of_host(&security(ProfileType::RuntimeDefault, "")).unwrap().is_none());
}
