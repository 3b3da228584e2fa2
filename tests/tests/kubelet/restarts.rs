//! What ends beside a pod or in it, and what the kubelet makes of it.

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use vaina_proto::cri;
use vaina_tests::{http, node::Node, wait};

use crate::kubelet::{Kubelet, container, kubelet};

const POD: &str = "web-and-puller";

#[test]
fn a_container_that_dies_is_started_again_and_later_each_time() {
    kubelet(async |node, kubelet| {
        kubelet.apply_example(POD)?;
        let before = kubelet.wait_ready(POD).await?;
        let sandboxes = sandboxes(node).await?;
        let counted = count(kubelet, 1).await?;

        let first = kill_container(node, &before, "puller").await?;
        let is_again = |pod: &Value| {
            let status = container(pod, "puller");
            status["restartCount"] == 1 && status["state"]["running"].is_object()
        };
        let after = kubelet.wait_pod(POD, "with its container again", is_again).await?;
        let last = &container(&after, "puller")["lastState"]["terminated"];
        assert_eq!((&last["exitCode"], &last["reason"]), (&137.into(), &"Error".into()), "{after:#}");
        assert_eq!(last["containerID"], format!("vaina://{first}"));
        // The pod is the same: its other container, its sandbox, its address, and what was written.
        assert_eq!(container(&after, "web")["containerID"], container(&before, "web")["containerID"]);
        assert_eq!(after["status"]["podIP"], before["status"]["podIP"]);
        assert_eq!(self::sandboxes(node).await?, sandboxes);
        let log = kubelet.container_log(POD, "puller")?;
        let page: u64 =
            log.split("starting at page ").nth(1).and_then(|rest| rest.trim().parse().ok()).context("a page")?;
        ensure!(page >= counted, "at page {page}, and {counted} was there: {log}");
        let path = format!("/containerLogs/default/{}/puller?previous=true", crate::kubelet::full_name(POD));
        let previous = vaina_tests::node::run(&mut kubelet.client(&["get", &path])?)?;
        assert_eq!(previous, "starting at page 0\n");

        kill_container(node, &after, "puller").await?;
        kubelet.allow("CrashLoopBackOff");
        let waits = |pod: &Value| container(pod, "puller")["state"]["waiting"]["reason"] == "CrashLoopBackOff";
        kubelet.wait_pod(POD, "waiting", waits).await?;
        let is_again = |pod: &Value| container(pod, "puller")["restartCount"] == 2;
        kubelet.wait_pod(POD, "with its container a third time", is_again).await?;
        kubelet.wait_ready(POD).await?;
        Ok(())
    });
}

#[test]
fn a_daemon_that_is_killed_or_ended_costs_no_pod_anything() {
    kubelet(async |node, kubelet| {
        // What it asks for while nobody serves.
        kubelet.allow("vaina.sock: connect:");
        kubelet.allow("error reading from server: EOF");
        kubelet.allow("code = Unavailable");
        kubelet.apply_example(POD)?;
        kubelet.wait_ready(POD).await?;
        let before = processes(node).await?;
        for is_killed in [true, false] {
            let counted = count(kubelet, 1).await?;
            if is_killed {
                node.kill_daemon()?;
            } else {
                node.terminate_daemon()?;
            }
            // The kubelet notices, and the pod does not.
            let errors = |kubelet: &Kubelet| kubelet.log().matches("vaina.sock: connect:").count();
            let seen = errors(kubelet);
            wait::until("the kubelet misses its runtime", async || Ok((errors(kubelet) > seen).then_some(()))).await?;
            count(kubelet, counted + 1).await?;
            node.start_daemon().await?;
            settle(kubelet).await?;
            assert_eq!(processes(node).await?, before, "killed: {is_killed}");
        }
        assert_never_restarted(&kubelet.wait_ready(POD).await?);
        Ok(())
    });
}

#[test]
fn a_kubelet_that_comes_back_finds_its_pods() {
    kubelet(async |node, kubelet| {
        kubelet.apply_example(POD)?;
        kubelet.wait_ready(POD).await?;
        let before = processes(node).await?;
        for is_killed in [true, false] {
            if is_killed {
                kubelet.kill()?;
            } else {
                kubelet.terminate()?;
            }
            kubelet.start().await?;
            assert_never_restarted(&kubelet.wait_ready(POD).await?);
            settle(kubelet).await?;
            assert_eq!(processes(node).await?, before, "killed: {is_killed}");
        }
        // Both at once, and the pod's file goes while neither is there.
        kubelet.kill()?;
        node.kill_daemon()?;
        node.start_daemon().await?;
        kubelet.start().await?;
        assert_never_restarted(&kubelet.wait_ready(POD).await?);
        assert_eq!(processes(node).await?, before);
        kubelet.kill()?;
        node.kill_daemon()?;
        kubelet.withdraw(POD)?;
        node.start_daemon().await?;
        kubelet.start().await?;
        wait::until("nothing of the pod runs", async || {
            let containers = node.cri().list_containers(cri::ListContainersRequest::default()).await?.containers;
            let is_running = |container: &cri::Container| container.state() == cri::ContainerState::ContainerRunning;
            Ok((!containers.iter().any(is_running)).then_some(()))
        })
        .await
    });
}

/// The sandboxes of the daemon, with their states.
async fn sandboxes(node: &Node) -> Result<Vec<(String, i32)>> {
    let list = node.cri().list_pod_sandbox(cri::ListPodSandboxRequest::default()).await?;
    Ok(list.items.into_iter().map(|sandbox| (sandbox.id, sandbox.state)).collect())
}

/// The first processes of all running containers: their pids and when they began, by container.
async fn processes(node: &Node) -> Result<BTreeMap<String, (u32, String)>> {
    let cri = node.cri();
    let mut found = BTreeMap::new();
    for container in cri.list_containers(cri::ListContainersRequest::default()).await?.containers {
        if container.state() == cri::ContainerState::ContainerRunning {
            let pid = cri.container_pid(&container.id).await?;
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("read the stat of a process")?;
            let begun = stat.rsplit(')').next().and_then(|rest| rest.split(' ').nth(20)).context("a start time")?;
            found.insert(container.id, (pid, begun.to_owned()));
        }
    }
    Ok(found)
}

/// Kills the first process of a container from outside; answers the container's id.
async fn kill_container(node: &Node, pod: &Value, name: &str) -> Result<String> {
    let id = container(pod, name)["containerID"].as_str().and_then(|id| id.strip_prefix("vaina://"));
    let id = id.context("the container has an id")?.to_owned();
    let pid = node.cri().container_pid(&id).await?;
    kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL).context("kill the container")?;
    Ok(id)
}

/// Waits until the served page has at least this number; answers its number.
async fn count(kubelet: &Kubelet, least: u64) -> Result<u64> {
    let pod = kubelet.pod(POD)?.context("the kubelet shows the pod")?;
    let server = format!("{}:80", pod["status"]["podIP"].as_str().context("the pod has an address")?);
    wait::until("pages are written", async || {
        let page = http::get(&server, "/").unwrap_or_default();
        let number = page.strip_prefix("<h1>page ").and_then(|rest| rest.split('<').next()?.parse().ok());
        Ok(number.filter(|number| *number >= least))
    })
    .await
}

/// Waits until the kubelet has looked at all pods again, and so would have done what it finds to be done.
async fn settle(kubelet: &Kubelet) -> Result<()> {
    let looks = |kubelet: &Kubelet| kubelet.log().matches("\"Retrieved pods from runtime\" all=true").count();
    let seen = looks(kubelet);
    wait::until("the kubelet has looked at its pods", async || Ok((looks(kubelet) > seen + 2).then_some(()))).await
}

fn assert_never_restarted(pod: &Value) {
    for name in ["web", "puller"] {
        assert_eq!(container(pod, name)["restartCount"], 0, "{pod:#}");
    }
}
