//! System call filters, looked at from inside, by each OCI runtime.

use std::{collections::BTreeMap, fs, os::unix::fs::DirBuilderExt as _, path::Path};

use anyhow::{Context as _, Result};
use serde_json::json;
use tonic::Code;
use vaina_proto::cri::{LinuxContainerSecurityContext, SecurityProfile, security_profile::ProfileType};
use vaina_tests::{
    build::{Container, Pod},
    node::{IMAGE, Node, e2e_cri},
};

use crate::{
    assert_failed,
    handlers::{as_it_is, each},
};

/// All that `probe answers` knows.
const CALLS: &str = "bpf clone-namespace clone3 fchmodat2 io_uring_setup keyctl mount open_by_handle_at personality \
     perf_event_open ptrace setns socket-alg socket-netlink socket-nonsense socket-vsock unshare userfaultfd no-such-call";

fn asks(name: &str, profile_type: ProfileType, file: &str) -> Container {
    let mut container = Container::new(name, IMAGE).sh(&format!("probe answers {CALLS}"));
    container.security().seccomp =
        Some(SecurityProfile { profile_type: profile_type.into(), localhost_ref: file.into() });
    container
}

fn words(text: &str) -> Result<BTreeMap<String, String>> {
    text.lines()
        .map(|line| {
            let (call, word) = line.split_once(' ').with_context(|| format!("no answer in {line:?}"))?;
            Ok((call.to_owned(), word.to_owned()))
        })
        .collect()
}

async fn answers(node: &mut Node, sandbox: &str, pod: &Pod, container: &Container) -> Result<BTreeMap<String, String>> {
    let (status, text) = node.run_to_exit(sandbox, pod, container).await?;
    assert_eq!(status.exit_code, 0, "{text}");
    words(&text)
}

/// Those of the calls that were answered so; those that the library of an OCI runtime may not know are left out.
fn answered<'a>(answers: &'a BTreeMap<String, String>, word: &str) -> Vec<&'a str> {
    let known = |call: &&str| !["fchmodat2", "no-such-call"].contains(call);
    answers.iter().filter(|(_, other)| *other == word).map(|(call, _)| call.as_str()).filter(known).collect()
}

const ALWAYS_REFUSED: [&str; 5] = ["io_uring_setup", "keyctl", "socket-alg", "socket-vsock", "userfaultfd"];
const REFUSED_WITHOUT_ADMIN: [&str; 12] = [
    "bpf",
    "clone-namespace",
    "io_uring_setup",
    "keyctl",
    "mount",
    "open_by_handle_at",
    "perf_event_open",
    "setns",
    "socket-alg",
    "socket-vsock",
    "unshare",
    "userfaultfd",
];

// proves: LinuxContainerSecurityContext.seccomp, SecurityProfile.profile_type
// proves: SecurityProfile.ProfileType.RuntimeDefault
#[test]
fn the_default_profile_refuses_what_leads_out() {
    each(as_it_is, async |node, pod, sandbox| {
        let found = answers(node, sandbox, pod, &asks("default", ProfileType::RuntimeDefault, "")).await?;
        assert_eq!(answered(&found, "EPERM"), REFUSED_WITHOUT_ADMIN, "{found:?}");
        // Programs go on with what an old kernel has. Of unknown calls crun says that they are forbidden.
        let unknown = if pod.handler == "crun" { "EPERM" } else { "ENOSYS" };
        assert_eq!((found["clone3"].as_str(), found["no-such-call"].as_str()), ("ENOSYS", unknown), "{found:?}");
        assert_eq!(found["personality"], "ok");
        assert!(!["EPERM", "ENOSYS"].contains(&found["socket-netlink"].as_str()), "{found:?}");
        Ok(())
    });
}

#[test]
fn a_capability_opens_its_calls() {
    each(as_it_is, async |node, pod, sandbox| {
        let admin = asks("admin", ProfileType::RuntimeDefault, "").capabilities(&["SYS_ADMIN"], &[]);
        let found = answers(node, sandbox, pod, &admin).await?;
        let refused = [&ALWAYS_REFUSED[..], &["open_by_handle_at"]].concat();
        assert!(refused.iter().all(|call| found[*call] == "EPERM"), "{found:?}");
        assert!(["clone3", "mount", "setns", "unshare"].iter().all(|call| found[*call] != "EPERM"), "{found:?}");
        assert_eq!(found["unshare"], "ok");
        let reader = asks("reader", ProfileType::RuntimeDefault, "").capabilities(&["DAC_READ_SEARCH"], &[]);
        let found = answers(node, sandbox, pod, &reader).await?;
        assert_eq!((found["open_by_handle_at"].as_str(), found["unshare"].as_str()), ("EFAULT", "EPERM"), "{found:?}");
        Ok(())
    });
}

#[test]
fn a_filter_is_that_of_later_commands_too() {
    each(as_it_is, async |node, pod, sandbox| {
        let id = node.start(sandbox, pod, &asks("c", ProfileType::RuntimeDefault, "").sh("sleep 1000")).await?;
        let found = words(&node.sh(&id, &format!("probe answers {CALLS}")).await?)?;
        assert_eq!(answered(&found, "EPERM"), REFUSED_WITHOUT_ADMIN, "{found:?}");
        assert_eq!(node.sh(&id, "grep -c '^Seccomp:.2$' /proc/self/status").await?, "1");
        Ok(())
    });
}

// proves: SecurityProfile.profile_type, SecurityProfile.ProfileType.Unconfined
#[test]
fn without_a_profile_all_calls_are_the_kernels() {
    each(as_it_is, async |node, pod, sandbox| {
        let mut none = asks("none", ProfileType::Unconfined, "");
        none.security().seccomp = None;
        for container in [none, asks("unconfined", ProfileType::Unconfined, "")] {
            let found = answers(node, sandbox, pod, &container).await?;
            assert_eq!(found["unshare"], "ok", "{found:?}");
            assert_ne!(found["clone3"], "ENOSYS", "{found:?}");
            assert_ne!(found["socket-vsock"], "EPERM", "{found:?}");
        }
        let id = node.start(sandbox, pod, &asks("c", ProfileType::Unconfined, "").sh("sleep 1000")).await?;
        assert_eq!(node.sh(&id, "grep -c '^Seccomp:.0$' /proc/1/status").await?, "1");
        Ok(())
    });
}

/// A profile that lets all through but one call.
fn refusing(call: &str, errno: u32) -> String {
    let rule = json!({ "names": [call], "action": "SCMP_ACT_ERRNO", "errnoRet": errno });
    json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] }).to_string()
}

// proves: LinuxContainerSecurityContext.{seccomp, seccomp_profile_path}, SecurityProfile.localhost_ref
// proves: SecurityProfile.ProfileType.Localhost
#[test]
fn a_profile_of_the_host_acts() {
    each(as_it_is, async |node, pod, sandbox| {
        let file = node.directory().join("refuses-unshare.json");
        fs::write(&file, refusing("unshare", 28))?;
        let path = file.to_str().context("path")?;
        let found = answers(node, sandbox, pod, &asks("localhost", ProfileType::Localhost, path)).await?;
        assert_eq!(answered(&found, "ENOSPC"), ["unshare"], "{found:?}");
        let mut old = asks("old", ProfileType::Localhost, path);
        old_words(old.security(), &format!("localhost/{path}"));
        let found = answers(node, sandbox, pod, &old).await?;
        assert_eq!(answered(&found, "ENOSPC"), ["unshare"], "{found:?}");
        let mut old = asks("old-default", ProfileType::RuntimeDefault, "");
        old_words(old.security(), "runtime/default");
        let found = answers(node, sandbox, pod, &old).await?;
        assert_eq!(answered(&found, "EPERM"), REFUSED_WITHOUT_ADMIN, "{found:?}");
        Ok(())
    });
}

fn old_words(security: &mut LinuxContainerSecurityContext, words: &str) {
    security.seccomp = None;
    #[expect(deprecated, reason = "old clients know no other")]
    words.clone_into(&mut security.seccomp_profile_path);
}

#[test]
fn profiles_that_can_not_be_are_refused_by_name() {
    e2e_cri(async |node| {
        let pod = node.pod("refused");
        let sandbox = node.run_pod(&pod).await?;
        let broken = node.directory().join("broken.json");
        fs::write(&broken, "{\"defaultAction\": \"SCMP_ACT_NONSENSE\"}")?;
        let broken = broken.to_str().context("path")?;
        for (name, file, words) in [
            ("missing", "/nowhere/profile.json", ["/nowhere/profile.json", "No such file or directory"]),
            ("kubelets", "pods/own.json", ["/var/lib/kubelet/seccomp/pods/own.json", "No such file or directory"]),
            ("broken", broken, [broken, "SCMP_ACT_NONSENSE"]),
            ("directory", "/etc", ["/etc", "is not a file"]),
            ("climbing", "../own.json", ["../own.json", ".."]),
        ] {
            let refused = node.create(&sandbox, &pod, &asks(name, ProfileType::Localhost, file)).await;
            assert_failed(refused, Code::InvalidArgument, &words);
        }
        // A name without a root is one below the kubelet's.
        let root = Path::new("/var/lib/kubelet/seccomp/pods");
        fs::DirBuilder::new().recursive(true).mode(0o755).create(root)?;
        fs::write(root.join("own.json"), refusing("unshare", 28))?;
        let found = answers(node, &sandbox, &pod, &asks("own", ProfileType::Localhost, "pods/own.json")).await?;
        assert_eq!(answered(&found, "ENOSPC"), ["unshare"], "{found:?}");
        fs::remove_dir_all("/var/lib/kubelet")?;
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}
