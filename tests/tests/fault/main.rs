//! Fault tests: the daemon, shims and OCI runtimes are killed at any moment of a pod's life, again and again. What a
//! kubelet does then must lead to the same end, with nothing lost, doubled or left behind.
//!
//! Moments come from a seed, which a failure names: `VAINA_FAULT_SEED` repeats it, `VAINA_FAULT_ROUNDS` says how many pods live
//! and die (few by default; the long run is a target of its own). A moment is a time, so this is the one place where a
//! test waits for the clock: not for something to have happened, but to be at an arbitrary place when it strikes.

mod failpoints;
mod kubelet;
mod life;
mod moments;
mod points;
mod soak;

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use vaina_proto::cri::{ListContainersRequest, ListPodSandboxRequest};
use vaina_tests::{
    leak,
    node::{Node, e2e},
};

use self::{kubelet::Kubelet, moments::Moments};

/// Nothing may be listed, nothing may be left, and no two copies may have run.
async fn check(node: &mut Node, kubelet: &Kubelet) -> Result<()> {
    let pods = node.cri().list_pod_sandbox(ListPodSandboxRequest::default()).await?.items;
    ensure!(pods.is_empty(), "listed after its removal: {pods:?}");
    let containers = node.cri().list_containers(ListContainersRequest::default()).await?.containers;
    ensure!(containers.is_empty(), "listed after their removal: {containers:?}");
    ensure!(!kubelet.volume().join("double").exists(), "two copies of the container ran at the same time");
    node.check_leaks().await
}

#[test]
fn a_daemon_that_is_killed_at_any_moment_loses_and_doubles_nothing() {
    e2e(async |node| {
        let mut moments = Moments::from_environment(25);
        let whole = Kubelet::new(node, "undisturbed")?.live().await?.took;
        for round in 0..moments.rounds {
            let kubelet = Kubelet::new(node, &format!("round-{round}"))?;
            let at = moments.within(whole);
            let life = kubelet.live();
            let strike = async {
                tokio::time::sleep(at).await;
                node.kill_daemon()?;
                node.start_daemon().await
            };
            let (lived, struck) = tokio::join!(life, strike);
            struck.with_context(|| format!("{moments}, round {round}: restart the daemon killed at {at:?}"))?;
            let lived = lived.with_context(|| format!("{moments}, round {round}: killed at {at:?}"))?;
            // A start that was cut short is told as such, and then the next attempt runs.
            ensure!(lived.exit_codes.ends_with(&[7]), "{moments}, round {round}, {at:?}: exits {:?}", lived.exit_codes);
            ensure!(lived.log_is_whole, "{moments}, round {round}, {at:?}: lines are lost: {:?}", lived.log);
            check(node, &kubelet).await.with_context(|| format!("{moments}, round {round}: killed at {at:?}"))?;
        }
        Ok(())
    });
}

#[test]
fn any_other_process_that_is_killed_at_any_moment_leaves_nothing() {
    e2e(async |node| {
        for text in [
            "the pod's shim is gone",
            // What was cut off is told where the call is answered.
            "failed",
        ] {
            node.allow(text);
        }
        let mut moments = Moments::from_environment(25);
        let whole = Kubelet::new(node, "undisturbed")?.live().await?.took;
        for round in 0..moments.rounds {
            let kubelet = Kubelet::new(node, &format!("round-{round}"))?;
            let at = moments.within(whole);
            let life = kubelet.live_or_end();
            let mut victims = Vec::new();
            let strike = async {
                tokio::time::sleep(at).await;
                let mut others = leak::processes(&node.scope())?;
                others.retain(|process| process.pid != node.daemon_pid() && is_shim(process.pid));
                if !others.is_empty() {
                    let victim = others.swap_remove(moments.below(others.len()));
                    let _ = kill(Pid::from_raw(i32::try_from(victim.pid)?), Signal::SIGKILL);
                    victims.push(victim.command);
                }
                Ok::<_, anyhow::Error>(())
            };
            let (lived, struck) = tokio::join!(life, strike);
            struck?;
            let context = || format!("{moments}, round {round}: {victims:?} killed at {at:?}");
            lived.with_context(context)?;
            check(node, &kubelet).await.with_context(context)?;
        }
        Ok(())
    });
}

#[test]
fn a_daemon_and_shims_that_are_killed_together_leave_nothing() {
    e2e(async |node| {
        node.allow("the pod's shim is gone");
        let mut moments = Moments::from_environment(15);
        let whole = Kubelet::new(node, "undisturbed")?.live().await?.took;
        for round in 0..moments.rounds {
            let kubelet = Kubelet::new(node, &format!("round-{round}"))?;
            let at = moments.within(whole);
            let life = kubelet.live_or_end();
            let strike = async {
                tokio::time::sleep(at).await;
                node.kill_daemon()?;
                for process in leak::processes(&node.scope())? {
                    if is_shim(process.pid) {
                        let _ = kill(Pid::from_raw(i32::try_from(process.pid)?), Signal::SIGKILL);
                    }
                }
                node.start_daemon().await
            };
            let (lived, struck) = tokio::join!(life, strike);
            let context = || format!("{moments}, round {round}: killed at {at:?}");
            struck.with_context(context)?;
            lived.with_context(context)?;
            check(node, &kubelet).await.with_context(context)?;
        }
        Ok(())
    });
}

/// Whether it is a shim or an OCI runtime of ours, rather than a container's program.
fn is_shim(pid: u32) -> bool {
    let executable = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    executable.to_string_lossy().contains("containerd-shim-vaina-v1")
}

/// How much longer than a life a moment may lie, so that the very end is struck too.
const MARGIN: Duration = Duration::from_millis(10);
