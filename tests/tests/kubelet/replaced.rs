//! Pods that end: one that another with its name takes the place of, one whose end is interrupted, one without memory.

use anyhow::Result;
use serde_json::Value;
use vaina_proto::cri;
use vaina_tests::wait;

use crate::kubelet::{Kubelet, Log, container, kubelet, wait_exited};

fn manifest(name: &str, grace: u32, script: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: {grace}
  containers:
  - name: c
    image: localhost/vaina-demo/busybox:1
    imagePullPolicy: IfNotPresent
    command: [sh, -c, \"{script}\"]
    resources: {{limits: {{memory: 32Mi}}}}
"
    )
}

#[test]
fn a_pod_whose_file_changes_is_replaced_by_one_with_its_name() {
    kubelet(async |node, kubelet| {
        let script =
            |word: &str| format!("trap 'echo bye; exit 0' TERM; echo {word}; while true; do sleep 1 & wait $!; done");
        kubelet.apply("same", &manifest("same", 5, &script("one")))?;
        let one = kubelet.wait_ready("same").await?;
        let mut log = Log::open(&one, "c")?;
        kubelet.apply("same", &manifest("same", 5, &script("two")))?;
        let uid = one["metadata"]["uid"].clone();
        let is_other = |pod: &Value| pod["metadata"]["uid"] != uid && container(pod, "c")["ready"] == true;
        let two = kubelet.wait_pod("same", "in its new form", is_other).await?;
        assert_eq!(log.text()?, "one\nbye\n");
        assert_eq!(Log::open(&two, "c")?.text()?, "two\n");
        let ready = |sandbox: &cri::PodSandbox| sandbox.state() == cri::PodSandboxState::SandboxReady;
        let sandboxes = node.cri().list_pod_sandbox(cri::ListPodSandboxRequest::default()).await?.items;
        assert_eq!(sandboxes.iter().filter(|sandbox| ready(sandbox)).count(), 1, "{sandboxes:#?}");
        Ok(())
    });
}

/// A pod that hears the signal to end and stays; it is withdrawn, and has heard.
async fn ending(kubelet: &mut Kubelet) -> Result<Log> {
    let script = "trap 'echo told' TERM; echo begun; while true; do sleep 1 & wait $!; done";
    kubelet.apply("stays", &manifest("stays", 10, script))?;
    let mut log = Log::open(&kubelet.wait_ready("stays").await?, "c")?;
    kubelet.withdraw("stays")?;
    wait::until("it is told", async || Ok((log.text()? == "begun\ntold\n").then_some(()))).await?;
    Ok(log)
}

#[test]
fn an_end_during_which_the_daemon_is_killed_is_taken_up_again() {
    kubelet(async |node, kubelet| {
        kubelet.allow("vaina.sock: connect:");
        kubelet.allow("error reading from server: EOF");
        kubelet.allow("code = Unavailable");
        kubelet.allow("Failed to stop sandbox");
        let mut log = ending(kubelet).await?;
        node.kill_daemon()?;
        node.start_daemon().await?;
        // It is told once more, has its whole grace period again, and is killed when it stays.
        let statuses = wait_exited(node, 1).await?;
        assert_eq!(statuses.get("c").map(|status| status.exit_code), Some(137));
        assert_eq!(log.text()?, "begun\ntold\ntold\n");
        Ok(())
    });
}

#[test]
fn an_end_during_which_the_kubelet_is_killed_is_finished() {
    kubelet(async |node, kubelet| {
        ending(kubelet).await?;
        kubelet.kill()?;
        kubelet.start().await?;
        // A pod that no source of pods has is given little time, and then its control group is killed by the kubelet.
        let statuses = wait_exited(node, 1).await?;
        assert_eq!(statuses.get("c").map(|status| status.exit_code), Some(137));
        Ok(())
    });
}

#[test]
fn a_container_that_takes_too_much_memory_is_killed_for_it() {
    kubelet(async |_node, kubelet| {
        kubelet.allow("CrashLoopBackOff");
        kubelet.apply("large", &manifest("large", 1, "tail /dev/zero"))?;
        let is_killed = |pod: &Value| container(pod, "c")["lastState"]["terminated"]["reason"] == "OOMKilled";
        let pod = kubelet.wait_pod("large", "killed", is_killed).await?;
        assert_eq!(container(&pod, "c")["lastState"]["terminated"]["exitCode"], 137, "{pod:#}");
        Ok(())
    });
}
