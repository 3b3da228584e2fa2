//! StopContainer: which signal, whom it reaches, the grace period, and that nothing lives on.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tonic::Code;
use vaina_proto::cri::{ContainerState, NamespaceMode, Signal};
use vaina_tests::{
    build::{Container, Pod},
    images,
    node::{IMAGE, Node, e2e, e2e_cri, log_text},
    wait,
};

use crate::failed;

/// A grace period that no test is to wait for.
const LONG: i64 = 600;

/// A shell that obeys a signal by what `then` says, and waits for it.
fn obeys(signal: &str, then: &str) -> String {
    format!("trap '{then}' {signal}; echo ready; while :; do sleep 0.05; done")
}

/// Runs a container until it has said that it is ready.
async fn ready(node: &Node, sandbox: &str, pod: &Pod, container: &Container) -> Result<String> {
    let id = node.start(sandbox, pod, container).await?;
    node.wait_log(&id, "ready").await?;
    Ok(id)
}

/// Exit code, reason and the log's text of a container that must have exited.
async fn end(node: &Node, id: &str) -> Result<(i32, String, String)> {
    let status = node.cri().container(id).await?;
    ensure!(status.state() == ContainerState::ContainerExited, "{status:?}");
    ensure!(status.finished_at >= status.started_at, "{status:?}");
    let text = log_text(&node.log(&status)?)?;
    Ok((status.exit_code, status.reason, text))
}

/// The processes of the node whose command line has this word.
fn processes_with(node: &Node, word: &str) -> Result<Vec<String>> {
    let all = vaina_tests::leak::processes(&node.scope())?;
    Ok(all.into_iter().map(|process| process.command).filter(|command| command.contains(word)).collect())
}

#[test]
fn the_main_process_is_asked_and_ends_as_it_likes() {
    e2e_cri(async |node| {
        let pod = node.pod("asked");
        let sandbox = node.run_pod(&pod).await?;
        for (name, then, code, reason) in [
            ("as-usual", "echo asked; exit 143", 143, "Error"),
            ("well", "echo asked; exit 0", 0, "Completed"),
            ("late", "echo asked; sleep 0.3; echo late; exit 3", 3, "Error"),
        ] {
            let id = ready(node, &sandbox, &pod, &Container::new(name, IMAGE).sh(&obeys("TERM", then))).await?;
            node.cri().stop_container(&id, LONG).await?;
            let (found, why, text) = end(node, &id).await?;
            assert_eq!((found, why.as_str()), (code, reason), "{name}");
            assert!(text.starts_with("ready\nasked\n"), "{name}: {text:?}");
            assert_eq!(text.contains("late"), name == "late", "{text:?}");
        }
        node.remove_pod(&sandbox).await?;

        // Where it is not PID 1 the default of the signal applies.
        let pod = node.pod("default").pid(NamespaceMode::Pod);
        let sandbox = node.run_pod(&pod).await?;
        let id = ready(node, &sandbox, &pod, &Container::new("c", IMAGE).sh("echo ready; exec sleep 1000")).await?;
        node.cri().stop_container(&id, LONG).await?;
        assert_eq!(end(node, &id).await?, (143, "Error".to_owned(), "ready\n".to_owned()));
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

#[test]
fn only_the_main_process_is_asked() {
    e2e_cri(async |node| {
        for mode in [NamespaceMode::Container, NamespaceMode::Pod, NamespaceMode::Node] {
            let pod = node.pod(&format!("only-{}", i32::from(mode))).pid(mode);
            let sandbox = node.run_pod(&pod).await?;
            // The child would say so before the parent, who waits for it, has ended.
            let child = obeys("TERM", "echo child was asked").replace("ready", "child began");
            let script = format!(
                "({child}) & until grep -q began /log/c/0.log; do sleep 0.02; done; \
                 trap 'echo main was asked; sleep 0.3; exit 4' TERM; echo ready; while :; do sleep 0.05; done"
            );
            let logs = Path::new(&pod.config.log_directory).to_owned();
            let config = Container::new("c", IMAGE).mount(&logs, "/log").sh(&script);
            let id = ready(node, &sandbox, &pod, &config).await?;
            node.cri().stop_container(&id, LONG).await?;
            let (code, _, text) = end(node, &id).await?;
            assert_eq!((code, text.as_str()), (4, "child began\nready\nmain was asked\n"), "{mode:?}");
            node.remove_pod(&sandbox).await?;
        }
        Ok(())
    });
}

// proves: ContainerConfig.stop_signal, ContainerStatus.stop_signal
#[test]
fn the_stop_signal_is_the_containers_or_the_images() {
    e2e_cri(async |node| {
        let probe = images::probe_beside_this_program()?;
        for (tag, signal) in [("name", "SIGUSR1"), ("number", "12"), ("realtime", "SIGRTMIN+3")] {
            let image = images::base(&probe)?.config("StopSignal", json!(signal)).build()?;
            node.give(&format!("vaina.test/stop:{tag}"), &image).await?;
        }
        let pod = node.pod("signals");
        let sandbox = node.run_pod(&pod).await?;
        let all = "trap 'exit 10' USR1; trap 'exit 12' USR2; trap 'exit 15' TERM; trap 'exit 2' INT; \
                   trap 'exit 37' 37; echo ready; while :; do sleep 0.05; done";
        for (name, image, own, code, told) in [
            ("image-by-name", "vaina.test/stop:name", None, 10, Signal::Sigusr1),
            ("image-by-number", "vaina.test/stop:number", None, 12, Signal::Sigusr2),
            ("image-realtime", "vaina.test/stop:realtime", None, 37, Signal::Sigrtminplus3),
            ("container-wins", "vaina.test/stop:name", Some(Signal::Sigint), 2, Signal::Sigint),
            ("container-alone", IMAGE, Some(Signal::Sigusr2), 12, Signal::Sigusr2),
            ("neither", IMAGE, None, 15, Signal::Sigterm),
        ] {
            let mut config = Container::new(name, image).sh(all);
            if let Some(signal) = own {
                config = config.stop_signal(signal);
            }
            let id = ready(node, &sandbox, &pod, &config).await?;
            assert_eq!(node.cri().container(&id).await?.stop_signal(), told, "{name}");
            // It was noted when the container was created; the image need not be there any more.
            if image != IMAGE {
                node.cri().remove_image(image).await.with_context(|| format!("{name}: remove {image}"))?;
            }
            node.cri().stop_container(&id, LONG).await?;
            assert_eq!(end(node, &id).await?.0, code, "{name}");
            if name == "image-by-name" {
                // For the next one but two.
                node.give(image, &images::base(&probe)?.config("StopSignal", json!("SIGUSR1")).build()?).await?;
            }
        }
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

// proves: StopContainerRequest.timeout
#[test]
fn who_outlives_the_grace_period_is_killed() {
    e2e_cri(async |node| {
        for mode in [NamespaceMode::Container, NamespaceMode::Pod, NamespaceMode::Node] {
            let pod = node.pod(&format!("deaf-{}", i32::from(mode))).pid(mode);
            let sandbox = node.run_pod(&pod).await?;
            let deaf = Container::new("deaf", IMAGE).command(&["/bin/probe", "signals"]);
            let deaf = node.start(&sandbox, &pod, &deaf).await?;
            node.wait_log(&deaf, "waiting").await?;
            node.cri().stop_container(&deaf, 1).await?;
            let (code, reason, text) = end(node, &deaf).await?;
            assert_eq!((code, reason.as_str()), (137, "Error"), "{mode:?}");
            let lines: Vec<&str> = text.lines().skip(1).collect();
            assert_eq!(lines, ["SIGTERM"], "{mode:?}: asked once and then killed");

            // Stopped by job control it hears nothing, and is killed all the same.
            // It is ready when it has stopped, and that another process must say.
            let script =
                "(until grep -q '^State:.T' /proc/$$/status; do :; done; echo ready) & kill -STOP $$; echo went on";
            let mut config = Container::new("frozen", IMAGE).sh(script);
            if mode == NamespaceMode::Container {
                // An init can't stop itself.
                config = Container::new("frozen", IMAGE).command(&["/bin/sh", "-c", "sh -c \"$0\"; exit 1", script]);
            }
            let frozen = ready(node, &sandbox, &pod, &config).await?;
            node.cri().stop_container(&frozen, 1).await?;
            let (code, _, text) = end(node, &frozen).await?;
            assert_eq!((code, text.as_str()), (137, "ready\n"), "{mode:?}");
            node.remove_pod(&sandbox).await?;
        }
        Ok(())
    });
}

// proves: StopContainerRequest.timeout
#[test]
fn without_grace_nobody_is_asked() {
    e2e_cri(async |node| {
        let pod = node.pod("at-once");
        let sandbox = node.run_pod(&pod).await?;
        let id = node.start(&sandbox, &pod, &Container::new("c", IMAGE).command(&["/bin/probe", "signals"])).await?;
        node.wait_log(&id, "waiting").await?;
        node.cri().stop_container(&id, 0).await?;
        let (code, reason, text) = end(node, &id).await?;
        assert_eq!((code, reason.as_str(), text.as_str()), (137, "Error", "waiting as 1\n"));
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

#[test]
fn a_client_that_leaves_does_not_end_the_grace_period() {
    e2e_cri(async |node| {
        let pod = node.pod("leaves");
        let gate = node.volume("gate")?;
        let sandbox = node.run_pod(&pod).await?;
        let then = "echo asked; while [ ! -e /gate/go ]; do sleep 0.02; done; echo finished; exit 8";
        let config = Container::new("c", IMAGE).mount(&gate, "/gate").sh(&obeys("TERM", then));
        let id = ready(node, &sandbox, &pod, &config).await?;
        for _ in 0..2 {
            let left = node.cri().stop_container_impatiently(&id, LONG, Duration::from_millis(200)).await;
            let code = failed(left).code();
            ensure!(matches!(code, Code::DeadlineExceeded | Code::Cancelled), "{code:?}");
            node.wait_log(&id, "asked").await?;
            assert_eq!(node.cri().container(&id).await?.state(), ContainerState::ContainerRunning);
        }
        let cri = node.cri();
        let next = async { cri.stop_container(&id, LONG).await };
        let finish = async { fs::write(gate.join("go"), "") };
        let (stopped, written) = tokio::join!(next, finish);
        written?;
        stopped?;
        let (code, _, text) = end(node, &id).await?;
        assert_eq!(code, 8);
        assert!(text.ends_with("asked\nfinished\n"), "{text:?}");
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

/// Children in every place where they could hide, none of which obeys; the main process obeys.
const LITTER: &str = "for number in 1 2 3; do \
      setsid sh -c \"trap '' TERM HUP INT; while :; do sleep 2001; done\" & \
      (trap '' TERM HUP; sleep 2002) & \
      (setsid sh -c 'sleep 2003 & setsid sleep 2004 & exit' &) ; \
    done; \
    until [ \"$(cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n' | grep -c '^200[2-4]$')\" -ge 9 ]; do sleep 0.02; done; ";

#[test]
fn nothing_survives_the_main_process() {
    e2e_cri(async |node| {
        for mode in [NamespaceMode::Container, NamespaceMode::Pod, NamespaceMode::Node] {
            let pod = node.pod(&format!("all-{}", i32::from(mode))).pid(mode);
            let sandbox = node.run_pod(&pod).await?;
            let bystander =
                ready(node, &sandbox, &pod, &Container::new("b", IMAGE).sh("echo ready; exec sleep 3000")).await?;
            let obedient = format!("{LITTER}{}", obeys("TERM", "exit 5"));
            let suicidal = format!("{LITTER}echo ready; exit 6");
            for (name, script, grace, code) in
                [("asked", &obedient, LONG, 5), ("at-once", &obedient, 0, 137), ("by-itself", &suicidal, LONG, 6)]
            {
                let id = ready(node, &sandbox, &pod, &Container::new(name, IMAGE).sh(script)).await?;
                if name == "by-itself" {
                    node.wait_exited(&id).await?;
                } else {
                    node.cri().stop_container(&id, grace).await?;
                }
                assert_eq!(processes_with(node, "sleep 200")?, [""; 0], "{mode:?} {name}");
                assert_eq!(end(node, &id).await?.0, code, "{mode:?} {name}");
            }
            assert_eq!(node.cri().container(&bystander).await?.state(), ContainerState::ContainerRunning);
            assert_eq!(processes_with(node, "sleep 3000")?.len(), 1, "{mode:?}: the other container goes on");
            // The pod's end is no gentler.
            ready(node, &sandbox, &pod, &Container::new("last", IMAGE).sh(&obedient)).await?;
            node.cri().stop_pod_sandbox(&sandbox).await?;
            assert_eq!(processes_with(node, "sleep ")?, [""; 0], "{mode:?}");
            node.cri().remove_pod_sandbox(&sandbox).await?;
        }
        Ok(())
    });
}

#[test]
fn the_clock_runs_on_when_the_daemon_is_killed() {
    e2e(async |node| {
        let pod = node.pod("clock");
        let gate = node.volume("gate")?;
        let sandbox = node.run_pod(&pod).await?;
        let deaf = Container::new("deaf", IMAGE).command(&["/bin/probe", "signals"]);
        let deaf = node.start(&sandbox, &pod, &deaf).await?;
        node.wait_log(&deaf, "waiting").await?;
        let then = "echo asked; while [ ! -e /gate/go ]; do sleep 0.02; done; echo finished; exit 9";
        let polite = Container::new("polite", IMAGE).mount(&gate, "/gate").sh(&obeys("TERM", then));
        let polite = ready(node, &sandbox, &pod, &polite).await?;
        let patient = Container::new("patient", IMAGE).sh(&obeys("TERM", "echo asked"));
        let patient = ready(node, &sandbox, &pod, &patient).await?;

        let deaf_pid = node.cri().container_pid(&deaf).await?;
        let polite_pid = node.cri().container_pid(&polite).await?;
        let calls: Vec<_> = [(&deaf, 2), (&polite, LONG), (&patient, LONG)]
            .into_iter()
            .map(|(id, grace)| {
                let (cri, id) = (node.cri(), id.clone());
                tokio::spawn(async move { cri.stop_container(&id, grace).await })
            })
            .collect();
        node.wait_log(&deaf, "SIGTERM").await?;
        node.wait_log(&polite, "asked").await?;
        node.wait_log(&patient, "asked").await?;
        node.kill_daemon()?;
        for call in calls {
            failed(call.await?);
        }
        // One obeys and one is killed while there is no daemon.
        fs::write(gate.join("go"), "")?;
        for pid in [deaf_pid, polite_pid] {
            wait::until("the process is gone", async || {
                Ok((!Path::new(&format!("/proc/{pid}")).exists()).then_some(()))
            })
            .await?;
        }
        node.start_daemon().await?;
        node.wait_exited(&deaf).await?;
        assert_eq!(end(node, &deaf).await?, (137, "Error".to_owned(), "waiting as 1\nSIGTERM\n".to_owned()));
        node.wait_exited(&polite).await?;
        assert_eq!(end(node, &polite).await?, (9, "Error".to_owned(), "ready\nasked\nfinished\n".to_owned()));
        // The third still has its grace; the next call asks again and may shorten it.
        assert_eq!(node.cri().container(&patient).await?.state(), ContainerState::ContainerRunning);
        node.cri().stop_container(&patient, 1).await?;
        assert_eq!(end(node, &patient).await?, (137, "Error".to_owned(), "ready\nasked\nasked\n".to_owned()));
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

#[test]
fn calls_at_the_same_time_stop_a_container_once() {
    e2e_cri(async |node| {
        let pod = node.pod("together");
        let sandbox = node.run_pod(&pod).await?;
        let id = ready(node, &sandbox, &pod, &Container::new("c", IMAGE).sh(&obeys("TERM", "exit 7"))).await?;
        let calls = (0..8).map(|number| {
            let (cri, id) = (node.cri(), id.clone());
            async move {
                if number % 2 == 0 { cri.stop_container(&id, LONG).await } else { cri.remove_container(&id).await }
            }
        });
        // Some remove what others stop: whoever comes later finds it done.
        futures::future::try_join_all(calls).await?;
        failed(node.cri().container(&id).await);
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

/// Notes each request to end, and that it lives on.
const STUBBORN: &str = "trap 'echo asked' TERM; echo ready; while :; do sleep 0.1; echo tick; done";

fn count(text: &str, word: &str) -> usize {
    text.lines().filter(|line| *line == word).count()
}

#[test]
fn while_a_client_waits_another_can_only_shorten_the_grace_period() {
    e2e(async |node| {
        let pod = node.pod("shorter");
        let sandbox = node.run_pod(&pod).await?;
        let longer = ready(node, &sandbox, &pod, &Container::new("longer", IMAGE).sh(STUBBORN)).await?;
        let shorter = ready(node, &sandbox, &pod, &Container::new("shorter", IMAGE).sh(STUBBORN)).await?;
        for (id, first, second) in [(&longer, 2, LONG), (&shorter, LONG, 1)] {
            let cri = node.cri();
            let begun = async { cri.stop_container(id, first).await };
            let further = async {
                node.wait_log(id, "asked").await?;
                cri.stop_container(id, second).await.map_err(anyhow::Error::from)
            };
            let (begun, further) = tokio::join!(begun, further);
            begun?;
            further?;
            let (code, _, text) = end(node, id).await?;
            assert_eq!((code, count(&text, "asked")), (137, 1), "{text}");
        }
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

#[test]
fn a_call_that_finds_nobody_waiting_begins_anew() {
    e2e(async |node| {
        let pod = node.pod("anew");
        let sandbox = node.run_pod(&pod).await?;
        let id = ready(node, &sandbox, &pod, &Container::new("c", IMAGE).sh(STUBBORN)).await?;
        let (grace, ticks) = (3, 35);
        let left = node.cri().stop_container_impatiently(&id, grace, Duration::from_millis(200)).await;
        failed(left);
        node.wait_log(&id, "asked").await?;
        // As after a restart of the kubelet: the whole grace period again, however little was left of the first.
        let cri = node.cri();
        let again = tokio::spawn({
            let (cri, id) = (cri.clone(), id.clone());
            async move { cri.stop_container(&id, LONG).await }
        });
        wait::until("it is asked again and outlives the first clock", async || {
            let text = log_text(&node.log(&node.cri().container(&id).await?)?)?;
            let after = text.rsplit("asked\n").next().unwrap_or_default();
            Ok((count(&text, "asked") == 2 && count(after, "tick") > ticks).then_some(()))
        })
        .await?;
        assert_eq!(node.cri().container(&id).await?.state(), ContainerState::ContainerRunning);
        node.cri().stop_container(&id, 0).await?;
        again.await??;
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}
