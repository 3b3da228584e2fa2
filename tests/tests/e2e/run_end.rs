//! How pods without a kubelet end: in good order, in time, and also when the one who ran them is dead.

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use vaina_tests::{
    node::{Node, e2e, e2e_with},
    registry::{FakeRegistry, Manner},
    running::Running,
    wait,
};

use super::run::{alone, container, kill_container, polite, sh};

/// A container that does not care for SIGTERM.
fn stubborn(name: &str) -> Value {
    sh(name, "trap 'echo no' TERM; echo up; while :; do sleep 1 & wait $!; done")
}

fn spec(grace: u32, containers: &[Value]) -> Value {
    json!({ "terminationGracePeriodSeconds": grace, "containers": containers })
}

async fn ps(node: &Node) -> Result<String> {
    Ok(node.ended(&["ps"]).await?.expect(0)?.out)
}

async fn wait_phase(node: &Node, pod: &str, phase: &str) -> Result<()> {
    let mut last = String::new();
    let seen = wait::until(&format!("{pod} is {phase}"), async || {
        last = ps(node).await?;
        let is_so = |line: &str| line.split_whitespace().skip(1).take(2).eq([pod, phase]);
        Ok(last.lines().any(is_so).then_some(()))
    })
    .await;
    seen.with_context(|| last)
}

#[test]
fn containers_get_the_grace_period_and_then_a_kill() {
    e2e_with(alone(), async |node| {
        node.furnish()?;
        let manifest = node.manifest("web", &spec(2, &[polite("good"), stubborn("bad")]))?;
        let running = node.run_manifests(&[&manifest], 1).await?;
        running.wait_for_times("| up", 2).await?;
        running.signal(Signal::SIGINT)?;
        let ended = running.end().await?.expect(130)?;
        for (text, words) in [
            (&ended.err, "web  +"),
            (&ended.err, "Stopping: within 2 s"),
            (&ended.out, "good | bye"),
            (&ended.out, "bad  | no"),
            (&ended.err, "Stopped: done after"),
            (&ended.err, "Killed: exit code 137 after"),
            (&ended.err, "Removed: in"),
        ] {
            assert!(text.contains(words), "no {words:?} in {text}");
        }
        Ok(())
    });
}

#[test]
fn every_signal_that_ends_programs_ends_the_pod() {
    e2e(async |node| {
        let manifest = node.manifest("web", &spec(30, &[polite("c")]))?;
        for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGHUP, 129), (Signal::SIGINT, 130)] {
            let running = node.run_manifests(&[&manifest], 1).await?;
            running.wait_for("| up").await?;
            running.signal(signal)?;
            let ended = running.end().await?.expect(code)?;
            assert!(ended.out.contains("| bye"), "{}", ended.out);
        }
        Ok(())
    });
}

#[test]
fn ctrl_c_ends_the_pod_in_order_and_a_second_one_says_what_is_waited_for() {
    e2e_with(alone(), async |node| {
        node.furnish()?;
        let manifest = node.manifest("web", &spec(600, &[stubborn("bad")]))?;
        let mut running = Running::on_terminal(&node.vaina(&["run", &manifest]))?;
        running.wait_for(" up").await?;
        node.note_sandboxes().await?;
        running.keys("\x03")?;
        running.wait_for("within 10 min").await?;
        running.keys("\x03")?;
        running.wait_for("for bad; killed in 9 min").await?;
        running.wait_for("(sooner: vaina stop web --grace-period=N)").await?;
        node.ended(&["stop", "web", "--grace-period=1"]).await?.expect(0)?;
        let ended = running.end().await?.expect(130)?;
        assert!(ended.out.contains("Killed"), "{}", ended.out);
        Ok(())
    });
}

#[test]
fn a_terminal_that_is_closed_ends_the_pod() {
    e2e(async |node| {
        let manifest = node.manifest("web", &spec(30, &[polite("c")]))?;
        let running = Running::on_terminal(&node.vaina(&["run", &manifest]))?;
        running.wait_for(" up").await?;
        node.note_sandboxes().await?;
        running.signal(Signal::SIGHUP)?;
        running.end().await?.expect(129)?;
        Ok(())
    });
}

#[test]
fn a_stop_ends_the_pod_of_another_terminal_and_meanwhile_it_is_terminating() {
    e2e(async |node| {
        let manifest = node.manifest("web", &spec(600, &[stubborn("bad"), polite("good")]))?;
        let running = node.run_manifests(&[&manifest], 1).await?;
        running.wait_for_times("| up", 2).await?;
        wait_phase(node, "web", "Running").await?;

        // A kill needs a word more.
        let refused = node.ended(&["stop", "web", "--grace-period=0"]).await?.expect(1)?;
        assert_eq!(refused.err, "vaina: read --grace-period: 0 needs --force\n");
        let refused = node.ended(&["stop", "web", "--grace-period=-1"]).await?.expect(1)?;
        assert_eq!(refused.err, "vaina: read --grace-period: -1 is negative\n");
        wait_phase(node, "web", "Running").await?;

        let stopping = node.running(&["stop", "web"])?;
        running.wait_for("Stopping: as asked, within").await?;
        running.wait_for("good | bye").await?;
        wait_phase(node, "web", "Terminating").await?;
        let taken = node.ended(&["run", &manifest]).await?.expect(1)?;
        assert!(taken.err.contains("a pod of this name still ends"), "{}", taken.err);

        node.ended(&["stop", "web", "--grace-period=0", "--force"]).await?.expect(0)?;
        stopping.end().await?.expect(0)?;
        let ended = running.end().await?.expect(0)?;
        assert!(ended.err.contains("bad  +") && ended.err.contains("Killed: exit code 137"), "{}", ended.err);
        assert!(!ps(node).await?.contains("web"));
        Ok(())
    });
}

#[test]
fn a_forced_stop_still_lets_programs_say_their_last_words() {
    e2e(async |node| {
        let manifest = node.manifest("web", &spec(600, &[polite("c")]))?;
        let running = node.run_manifests(&[&manifest], 1).await?;
        running.wait_for("| up").await?;
        node.ended(&["stop", "web", "--force"]).await?.expect(0)?;
        let ended = running.end().await?.expect(0)?;
        assert!(ended.err.contains("Stopping: as asked, within 2 s"), "{}", ended.err);
        assert!(ended.out.contains("| bye") && ended.err.contains("Stopped: done after"), "{}{}", ended.out, ended.err);
        Ok(())
    });
}

#[test]
fn what_is_not_there_can_not_be_stopped() {
    e2e_with(alone(), async |node| {
        node.furnish()?;
        let refused = node.ended(&["stop", "web"]).await?.expect(1)?;
        assert_eq!(refused.err, "vaina: find pod default/web: vaina run has started none of this name\n");
        Ok(())
    });
}

#[test]
fn a_pod_whose_runner_was_killed_goes_on_and_is_ended_by_a_stop() {
    e2e_with(alone(), async |node| {
        node.furnish()?;
        let manifest = node.manifest("web", &spec(30, &[polite("c")]))?;
        let running = node.run_manifests(&[&manifest], 1).await?;
        running.wait_for("| up").await?;
        let (cri, before) = container("c").await?;
        let pid = cri.container_pid(&before.id).await?;
        running.signal(Signal::SIGKILL)?;
        running.end().await?.expect(137)?;
        kill(Pid::from_raw(i32::try_from(pid)?), None).context("the container goes on without runner and daemon")?;

        // The daemon is dead too: what is known is shown, and why it is not more.
        let shown = node.ended(&["ps"]).await?.expect(0)?;
        assert!(shown.err.contains("reach a daemon at /run/vaina/vaina.sock"), "{}", shown.err);
        assert!(shown.out.contains("web") && shown.out.contains("Unknown"), "{}", shown.out);
        // A command that needs a daemon becomes it.
        let seen = node.ended(&["exec", "web", "--", "echo", "still here"]).await?.expect(0)?;
        assert_eq!(seen.out, "still here\n");
        let refused = node.ended(&["run", &manifest]).await?.expect(1)?;
        assert!(
            refused.err.contains("a pod of this name still runs, without its runner (vaina stop web ends it)"),
            "{}",
            refused.err
        );
        let log = node.ended(&["logs", "web"]).await?.expect(0)?;
        assert_eq!(log.out, "up\n");
        node.ended(&["stop", "web"]).await?.expect(0)?;
        Ok(())
    });
}

#[test]
fn what_ended_without_its_runner_is_taken_away_by_the_next_run() {
    e2e_with(alone(), async |node| {
        node.furnish()?;
        let mut c = polite("c");
        c["volumeMounts"] = json!([{ "name": "memory", "mountPath": "/memory" }]);
        let mut pod = spec(30, &[c]);
        pod["volumes"] = json!([{ "name": "memory", "emptyDir": { "medium": "Memory" } }]);
        let manifest = node.manifest("web", &pod)?;
        let running = node.run_manifests(&[&manifest], 1).await?;
        running.wait_for("| up").await?;
        let (cri, before) = container("c").await?;
        let pid = cri.container_pid(&before.id).await?;
        running.signal(Signal::SIGKILL)?;
        running.end().await?.expect(137)?;
        kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL).context("the container goes on")?;
        // Of the same name or another.
        let other =
            node.manifest("other", &json!({ "restartPolicy": "Never", "containers": [sh("c", "echo other")] }))?;
        wait::until("the container's end is seen", async || {
            let ended = node.ended(&["run", &other]).await?.expect(0)?;
            assert_eq!(ended.out, "c     | other\n");
            let shown = node.ended(&["ps"]).await?.expect(0)?;
            Ok((!shown.out.contains("web")).then_some(()))
        })
        .await?;
        Ok(())
    });
}

#[test]
fn pods_outlive_the_process_that_was_their_daemon() {
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        e2e_with(alone(), async move |node| {
            node.furnish()?;
            let first = node.manifest("first", &spec(30, &[polite("a")]))?;
            let second = node.manifest("second", &spec(30, &[polite("b")]))?;
            let one = node.run_manifests(&[&first], 1).await?;
            one.wait_for("| up").await?;
            let two = node.run_manifests(&[&second], 1).await?;
            two.wait_for("| up").await?;
            assert!(one.err().contains("Serving: ") && !two.err().contains("Serving: "), "{}{}", one.err(), two.err());
            let before = container("b").await?.1.id;

            one.signal(signal)?;
            one.end().await?;
            // The one that is left becomes the daemon by itself, since it looks after its container.
            wait::until("a daemon answers again", async || Ok(container("b").await.ok())).await?;
            kill_container("b").await?;
            two.wait_for_times("| up", 2).await?;
            assert_ne!(container("b").await?.1.id, before);
            if signal == Signal::SIGKILL {
                node.ended(&["stop", "first"]).await?.expect(0)?;
            }
            two.signal(Signal::SIGINT)?;
            two.end().await?.expect(130)?;
            Ok(())
        });
    }
}

#[test]
fn a_pull_that_hangs_does_not_hold_the_end_up() {
    e2e_with(alone(), async |node| {
        node.furnish()?;
        let registry = FakeRegistry::start(Manner::Hang)?;
        let c = json!({ "name": "c", "image": format!("{}/image:1", registry.address) });
        let manifest = node.manifest("web", &spec(30, &[c]))?;
        let running = node.run_manifests(&[&manifest], 1).await?;
        running.wait_for("Pulling: image").await?;
        let refused = node.ended(&["exec", "web", "--", "true"]).await?.expect(1)?;
        assert_eq!(refused.err, "vaina: find a container in pod default/web: none has been started yet\n");
        running.signal(Signal::SIGINT)?;
        running.end().await?.expect(130)?;
        Ok(())
    });
}
