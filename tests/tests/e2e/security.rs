//! The security context: whom a container's process is, what it may see and gain; by each OCI runtime where that is its work.

use anyhow::{Context as _, Result, ensure};
use tonic::Code;
use vaina_proto::cri::{
    ContainerState, Int64Value, ListPodSandboxRequest, NamespaceMode, NamespaceOption, SupplementalGroupsPolicy,
};
use vaina_tests::{
    build::{Container, Pod},
    node::{IMAGE, Node, e2e},
};

use crate::{
    assert_failed,
    handlers::{as_it_is, each},
};

fn joining(name: &str, target: &str) -> Container {
    let mut container = Container::new(name, IMAGE).sh("exec sleep 2002");
    container.security().namespace_options =
        Some(NamespaceOption { pid: NamespaceMode::Target.into(), target_id: target.to_owned(), ..Default::default() });
    container
}

// proves: LinuxContainerSecurityContext.namespace_options, NamespaceOption.{pid, target_id}, NamespaceMode.TARGET
#[test]
fn a_container_may_join_the_processes_of_another() {
    each(as_it_is, async |node, pod, sandbox| {
        let target = node.start(sandbox, pod, &Container::new("target", IMAGE).sh("exec sleep 2001")).await?;
        let debugger = node.start(sandbox, pod, &joining("debugger", &target)).await?;
        let first = node.sh(&debugger, "tr '\\0' ' ' < /proc/1/cmdline").await?;
        ensure!(first.starts_with("sleep 2001"), "the target is process 1: {first:?}");
        node.sh(&debugger, "kill -0 1").await?;
        node.cri().stop_container(&debugger, 0).await?;
        assert_eq!(node.cri().container(&target).await?.state(), ContainerState::ContainerRunning);
        // A PID namespace ends with its first process.
        let other = node.start(sandbox, pod, &joining("other", &target)).await?;
        node.cri().stop_container(&target, 0).await?;
        assert_eq!(node.wait_exited(&other).await?.exit_code, 137);
        Ok(())
    });
}

// proves: NamespaceOption.target_id
#[test]
fn a_container_to_be_joined_must_run_in_the_same_pod() {
    e2e(async |node| {
        let (pod, stranger) = (node.pod("own"), node.pod("stranger"));
        let (sandbox, strangers) = (node.run_pod(&pod).await?, node.run_pod(&stranger).await?);
        let sleeper = Container::new("sleeper", IMAGE).sh("exec sleep 2001");
        let foreign = node.start(&strangers, &stranger, &sleeper).await?;
        let refused = node.create(&sandbox, &pod, &joining("foreign", &foreign)).await;
        assert_failed(refused, Code::FailedPrecondition, &[&foreign, "another pod"]);
        let refused = node.create(&sandbox, &pod, &joining("none", "no-such-container")).await;
        assert_failed(refused, Code::FailedPrecondition, &["no-such-container", "not there"]);
        let target = node.create(&sandbox, &pod, &sleeper).await?;
        let refused = node.create(&sandbox, &pod, &joining("early", &target)).await;
        assert_failed(refused, Code::FailedPrecondition, &[&target, "does not run"]);
        // What ran at the create must run at the start too: its pid may be another's by then.
        node.cri().start_container(&target).await?;
        let late = node.create(&sandbox, &pod, &joining("late", &target)).await?;
        node.cri().stop_container(&target, 0).await?;
        let refused = node.cri().start_container(&late).await;
        assert_failed(refused, Code::FailedPrecondition, &[&target, "does not run"]);
        assert_eq!(node.cri().container(&late).await?.reason, "StartError");
        for sandbox in [&sandbox, &strangers] {
            node.remove_pod(sandbox).await?;
        }
        Ok(())
    });
}

/// What `id` says in the container, and what its status does.
async fn ids(node: &mut Node, sandbox: &str, pod: &Pod, container: Container) -> Result<(String, String)> {
    let (status, text) = node.run_to_exit(sandbox, pod, &container.sh("id -u; id -g; id -G | tr ' ' ,")).await?;
    let user = status.user.and_then(|user| user.linux).context("the status says the user")?;
    let groups: Vec<String> = user.supplemental_groups.iter().map(ToString::to_string).collect();
    Ok((text.replace('\n', " ").trim_end().to_owned(), format!("{} {} {}", user.uid, user.gid, groups.join(","))))
}

// proves: LinuxContainerSecurityContext.{supplemental_groups, supplemental_groups_policy}, SupplementalGroupsPolicy.*
// proves: ContainerStatus.user, ContainerUser.linux, LinuxContainerUser.{uid, gid, supplemental_groups}
#[test]
fn groups_are_merged_with_those_of_the_image_or_not() {
    each(as_it_is, async |node, pod, sandbox| {
        for (name, policy, groups) in [
            ("merge", SupplementalGroupsPolicy::Merge, "1000,1234,50000"),
            ("strict", SupplementalGroupsPolicy::Strict, "1000,1234"),
        ] {
            let mut container = Container::new(name, IMAGE).user(1000);
            container.security().supplemental_groups = vec![1234];
            container.security().supplemental_groups_policy = policy.into();
            let expected = format!("1000 1000 {groups}");
            assert_eq!(ids(node, sandbox, pod, container).await?, (expected.clone(), expected), "{name}");
        }
        Ok(())
    });
}

// proves: LinuxContainerSecurityContext.{run_as_user, run_as_group, run_as_username}, ContainerStatus.user
// proves: LinuxContainerUser.{uid, gid}
#[test]
fn the_user_has_a_number_or_a_name_and_any_group() {
    each(as_it_is, async |node, pod, sandbox| {
        let mut named = Container::new("named", IMAGE);
        named.security().run_as_username = "www-data".to_owned();
        let mut grouped = Container::new("grouped", IMAGE).user(1000);
        grouped.security().run_as_group = Some(Int64Value { value: 2000 });
        let mut both = Container::new("both", IMAGE);
        both.security().run_as_username = "default-user".to_owned();
        both.security().run_as_group = Some(Int64Value { value: 2000 });
        for (container, expected) in [
            (named, "33 33 33"),
            (grouped, "1000 2000 2000,50000"),
            (both, "1000 2000 2000,50000"),
            (Container::new("unknown", IMAGE).user(4321), "4321 0 0"),
        ] {
            assert_eq!(ids(node, sandbox, pod, container).await?, (expected.to_owned(), expected.to_owned()));
        }
        let mut alone = Container::new("alone", IMAGE);
        alone.security().run_as_group = Some(Int64Value { value: 2000 });
        assert_failed(node.create(sandbox, pod, &alone).await, Code::InvalidArgument, &["run_as_group"]);
        Ok(())
    });
}

// proves: LinuxContainerSecurityContext.no_new_privs
#[test]
fn new_privileges_are_to_be_had_or_not() {
    each(as_it_is, async |node, pod, sandbox| {
        // A shell that belongs to root and runs as its owner.
        let steal = "cp /bin/probe /tmp/probe && chmod 4755 /tmp/probe && exec sleep 1000";
        for (name, no_new_privs, uid) in [("open", false, "0"), ("closed", true, "1000")] {
            let mut container = Container::new(name, IMAGE).sh(steal);
            container.security().no_new_privs = no_new_privs;
            let id = node.start(sandbox, pod, &container).await?;
            let word = format!("NoNewPrivs:\t{}", u8::from(no_new_privs));
            assert_eq!(node.sh(&id, "grep NoNewPrivs /proc/1/status").await?, word, "{name}");
            assert_eq!(node.sh(&id, "grep NoNewPrivs /proc/self/status").await?, word, "{name}, exec");
            let said =
                node.sh(&id, "until [ -u /tmp/probe ]; do :; done; su default-user -c '/tmp/probe effective-uid'");
            assert_eq!(said.await?, format!("Effective uid: {uid}"), "{name}");
        }
        Ok(())
    });
}

// proves: LinuxContainerSecurityContext.{masked_paths, readonly_paths}
#[test]
fn paths_are_hidden_and_read_only_as_listed() {
    each(as_it_is, async |node, pod, sandbox| {
        let script = "wc -c < /proc/uptime | grep -c '^0$'; ls /proc/tty | wc -l; echo x 2>/dev/null > /tmp/x || echo no; \
                      (echo x > /proc/sys/kernel/domainname) 2>/dev/null || echo no";
        let mut listed = Container::new("listed", IMAGE).sh(script);
        listed.security().masked_paths = ["/proc/uptime", "/proc/tty", "/nowhere"].map(str::to_owned).into();
        listed.security().readonly_paths = ["/tmp", "/proc/sys", "/nowhere"].map(str::to_owned).into();
        let (_, text) = node.run_to_exit(sandbox, pod, &listed).await?;
        assert_eq!(text, "1\n0\nno\nno\n");
        // An unmasked /proc has two empty lists.
        let mut open = Container::new("open", IMAGE).sh(&format!("{script}; ls /proc/scsi /proc/acpi | wc -l"));
        open.security().masked_paths = Vec::new();
        open.security().readonly_paths = Vec::new();
        let (_, text) = node.run_to_exit(sandbox, pod, &open).await?;
        let words: Vec<&str> = text.lines().collect();
        ensure!(words[0] == "0" && words[1] != "0" && !words[2..].contains(&"no"), "{text}");
        Ok(())
    });
}

// proves: RunPodSandboxRequest.runtime_handler, PodSandboxStatus.runtime_handler, PodSandbox.runtime_handler
#[test]
fn a_pod_says_its_handler_wherever_it_is_shown() {
    each(as_it_is, async |node, pod, sandbox| {
        let listed = node.cri().list_pod_sandbox(ListPodSandboxRequest::default()).await?.items;
        let handlers: Vec<_> = listed.iter().filter(|one| one.id == sandbox).map(|one| &one.runtime_handler).collect();
        assert_eq!(handlers, [&pod.handler]);
        assert_eq!(node.cri().sandbox(sandbox).await?.runtime_handler, pod.handler);
        Ok(())
    });
}
