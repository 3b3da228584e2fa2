//! The daemon or a shim goes away and comes back: pods, exits and logs are what they were, and nothing runs twice.

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use vaina_proto::cri::{ContainerState, ListContainersRequest, PodSandboxState};
use vaina_tests::{
    build::Container,
    disturb::Disturbance,
    node::{IMAGE, Node, e2e},
    wait,
};

#[test]
fn a_pod_is_the_same_after_the_daemon_was_restarted_or_killed() {
    e2e(async |node| {
        for (number, disturbance) in Disturbance::ALL.into_iter().enumerate() {
            let pod = node.pod(&format!("same-{number}"));
            let id = node.run_pod(&pod).await?;
            let running =
                Container::new("runs", IMAGE).sh("echo begun; trap 'exit 9' TERM; while :; do sleep 0.1; done");
            let running = node.start(&id, &pod, &running).await?;
            let created = node.create(&id, &pod, &Container::new("created", IMAGE).sh("echo later")).await?;
            let (exited, _) = node.run_to_exit(&id, &pod, &Container::new("ended", IMAGE).sh("exit 5")).await?;
            node.wait_log(&running, "begun").await?;
            let before = (node.cri().sandbox(&id).await?, node.cri().container(&running).await?);

            disturbance.apply(node).await?;

            let after = (node.cri().sandbox(&id).await?, node.cri().container(&running).await?);
            assert_eq!(before, after, "{disturbance:?}");
            assert_eq!(node.cri().container(&exited.id).await?, exited, "{disturbance:?}");
            assert_eq!(node.sh(&running, "echo still").await?.trim(), "still");
            node.cri().start_container(&created).await?;
            node.wait_log(&created, "later").await?;
            node.cri().stop_container(&running, 10).await?;
            assert_eq!(node.cri().container(&running).await?.exit_code, 9);
            node.remove_pod(&id).await?;
        }
        Ok(())
    });
}

#[test]
fn an_exit_while_the_daemon_is_down_is_known_when_it_is_back() {
    e2e(async |node| {
        let pod = node.pod("meanwhile");
        let volume = node.volume("gate")?;
        let id = node.run_pod(&pod).await?;
        let container = Container::new("c", IMAGE)
            .mount(&volume, "/gate")
            .sh("while [ ! -e /gate/go ]; do sleep 0.05; done; echo last; touch /gate/gone; exit 6");
        let container = node.start(&id, &pod, &container).await?;
        node.kill_daemon()?;
        std::fs::write(volume.join("go"), "")?;
        wait::until("the container ended", async || Ok(volume.join("gone").exists().then_some(()))).await?;
        node.start_daemon().await?;
        let status = node.wait_exited(&container).await?;
        assert_eq!((status.exit_code, status.reason.as_str()), (6, "Error"));
        assert!(status.finished_at >= status.started_at && status.started_at >= status.created_at);
        node.wait_log(&container, "last").await?;
        node.remove_pod(&id).await?;
        Ok(())
    });
}

#[test]
fn a_pod_whose_shim_was_killed_is_not_ready_and_nothing_of_it_runs_on() {
    e2e(async |node| {
        node.allow("the pod's shim is gone");
        for is_down in [false, true] {
            let pod = node.pod(if is_down { "lost-down" } else { "lost" });
            let id = node.run_pod(&pod).await?;
            let container = node.start(&id, &pod, &Container::new("c", IMAGE).sh("sleep 1000")).await?;
            let init = node.cri().container_pid(&container).await?;
            let shim = node.cri().sandbox_pid(&id).await?;
            if is_down {
                node.kill_daemon()?;
            }
            kill(Pid::from_raw(i32::try_from(shim)?), Signal::SIGKILL).context("kill the shim")?;
            if is_down {
                node.start_daemon().await?;
            }
            let status = node.wait_exited(&container).await?;
            assert_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"));
            wait::until("the process is gone", async || {
                Ok((!std::path::Path::new(&format!("/proc/{init}")).exists()).then_some(()))
            })
            .await?;
            not_ready(node, &id).await?;
            node.remove_pod(&id).await?;
            let left = node.cri().list_containers(ListContainersRequest::default()).await?.containers;
            assert!(left.is_empty(), "{left:?}");
        }
        Ok(())
    });
}

async fn not_ready(node: &Node, id: &str) -> Result<()> {
    wait::until("the pod is not ready", async || {
        let status = node.cri().sandbox(id).await?;
        Ok((status.state() == PodSandboxState::SandboxNotready).then_some(()))
    })
    .await
}

#[test]
fn a_second_stop_with_less_grace_is_not_held_up_by_the_first() {
    e2e(async |node| {
        let pod = node.pod("impatient");
        let id = node.run_pod(&pod).await?;
        let deaf = Container::new("deaf", IMAGE).sh("trap '' TERM; echo deaf; while :; do sleep 0.1; done");
        let deaf = node.start(&id, &pod, &deaf).await?;
        node.wait_log(&deaf, "deaf").await?;
        let cri = node.cri();
        let patient = {
            let (cri, deaf) = (cri.clone(), deaf.clone());
            tokio::spawn(async move { cri.stop_container(&deaf, 600).await })
        };
        tokio::task::yield_now().await;
        let begun = std::time::Instant::now();
        cri.stop_container(&deaf, 1).await?;
        patient.await??;
        assert!(begun.elapsed().as_secs() < 30, "{:?}", begun.elapsed());
        let status = cri.container(&deaf).await?;
        assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 137));
        node.remove_pod(&id).await?;
        Ok(())
    });
}
