//! `vaina ps`, `logs` and `exec`: looking at pods without a kubelet, and into them.

use std::process::Stdio;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use serde_json::json;
use vaina_tests::{
    node::{Node, e2e, e2e_with},
    running::Running,
    wait,
};

use super::run::{alone, kill_container, polite, sh, stay};

async fn finish(running: Running) -> Result<()> {
    running.signal(Signal::SIGINT)?;
    running.end().await?.expect(130)?;
    Ok(())
}

async fn exec(node: &Node, arguments: &[&str], input: &str) -> Result<vaina_tests::running::Ended> {
    let file = node.file("input", input)?;
    let mut command = node.vaina(&[&["exec"], arguments].concat());
    command.stdin(std::fs::File::open(file)?);
    Running::start(&mut command)?.end().await
}

#[test]
fn pods_and_containers_are_listed_with_state_restarts_and_address() {
    e2e_with(alone(), async |node| {
        node.furnish()?;
        let empty = node.ended(&["ps"]).await?.expect(0)?;
        assert_eq!(empty.out, "NAMESPACE  NAME  PHASE  READY  RESTARTS  IP  AGE\n");
        let spec = json!({ "containers": [polite("web"), polite("side")] });
        let manifest = node.manifest("pod", &spec)?;
        let running = node.run_manifests(&[&manifest], 1).await?;
        running.wait_for_times("| up", 2).await?;
        kill_container("web").await?;
        running.wait_for_times("web  | up", 2).await?;
        let shown = wait::until("both run", async || {
            let shown = node.ended(&["ps"]).await?.expect(0)?.out;
            Ok(shown.contains("2/2").then_some(shown))
        })
        .await?;
        let words = |index: usize| -> Vec<String> {
            shown.lines().nth(index).unwrap_or_default().split_whitespace().map(ToOwned::to_owned).collect()
        };
        assert_eq!(words(1)[..5], ["default", "pod", "Running", "2/2", "1"], "{shown}");
        assert!(words(1)[5].starts_with("10.88.0."), "{shown}");
        assert_eq!(
            (&words(2)[..3], &words(3)[..3]),
            (&["side", "Running", "0"].map(String::from)[..], &["web", "Running", "1"].map(String::from)[..])
        );
        assert_eq!(node.ended(&["ps", "--pods"]).await?.out.lines().count(), 2);
        assert_eq!(node.ended(&["ps", "-n", "other"]).await?.out.lines().count(), 1);
        finish(running).await
    });
}

#[test]
fn logs_are_those_of_the_container_the_attempt_and_the_lines_that_are_asked_for() {
    e2e(async |node| {
        let script = "n=$(cat /s/n 2>/dev/null || echo 0); echo $((n + 1)) > /s/n; echo out $n; echo err $n >&2";
        let mut first = stay("first", script);
        first["volumeMounts"] = json!([{ "name": "s", "mountPath": "/s" }]);
        let spec = json!({
            "containers": [first, polite("second")],
            "volumes": [{ "name": "s", "emptyDir": {} }],
        });
        let manifest = node.manifest("pod", &spec)?;
        let running = node.run_manifests(&[&manifest], 1).await?;
        running.wait_for("first  ! err 0").await?;
        running.wait_for("second | up").await?;
        let none = node.ended(&["logs", "pod", "--previous"]).await?.expect(1)?;
        assert_eq!(
            none.err,
            "vaina: find a log of the previous container first: it has not been started more than once\n"
        );
        kill_container("first").await?;
        running.wait_for("first  ! err 1").await?;

        for (arguments, out, err) in [
            (&["pod"][..], "out 1\n", "err 1\n"),
            (&["pod", "-p"], "out 0\n", "err 0\n"),
            (&["pod", "-c", "second"], "up\n", ""),
            (&["pod", "--tail=1"], "", "err 1\n"),
            (&["pod", "--tail=0"], "", ""),
        ] {
            let ended = node.ended(&[&["logs"], arguments].concat()).await?.expect(0)?;
            assert_eq!((ended.out.as_str(), ended.err.as_str()), (out, err), "{arguments:?}");
        }
        let timed = node.ended(&["logs", "pod", "-c", "second", "--timestamps"]).await?.expect(0)?.out;
        assert!(timed.starts_with("20") && timed.ends_with("Z up\n"), "{timed}");
        let wrong = node.ended(&["logs", "pod", "-c", "third"]).await?.expect(1)?;
        assert_eq!(wrong.err, "vaina: find container third in pod pod: it has first, second\n");
        let wrong = node.ended(&["logs", "none"]).await?.expect(1)?;
        assert_eq!(wrong.err, "vaina: find pod default/none: there is none of this name\n");

        // Until the container ends, and no longer.
        let following = node.running(&["logs", "pod", "-f", "-c", "second"])?;
        following.wait_for("up").await?;
        finish(running).await?;
        assert_eq!(following.end().await?.expect(0)?.out, "up\nbye\n");
        Ok(())
    });
}

#[test]
fn a_command_in_a_container_has_its_code_and_its_streams() {
    e2e(async |node| {
        let manifest = node.manifest("pod", &json!({ "containers": [polite("a"), polite("b")] }))?;
        let running = node.run_manifests(&[&manifest], 1).await?;
        running.wait_for_times("| up", 2).await?;

        let ended =
            exec(node, &["pod", "--", "sh", "-c", "echo out; echo err >&2; exit 7"], "unseen").await?.expect(7)?;
        assert_eq!((ended.out.as_str(), ended.err.as_str()), ("out\n", "err\n"));
        let ended = exec(node, &["pod", "--", "cat"], "unseen").await?.expect(0)?;
        assert_eq!(ended.out, "");
        let input = "line\n".repeat(100_000);
        let ended = exec(node, &["-i", "pod", "-c", "b", "--", "cat"], &input).await?.expect(0)?;
        assert_eq!(ended.out.len(), input.len());
        exec(node, &["pod", "--", "sh", "-c", "kill -9 $$"], "").await?.expect(137)?;
        let ended = exec(node, &["pod", "--", "/bin/nonsense"], "").await?;
        assert!(ended.code != 0 && ended.err.contains("/bin/nonsense"), "{ended:?}");
        let ended = exec(node, &["-t", "pod", "--", "true"], "").await?.expect(1)?;
        assert_eq!(ended.err, "vaina: use the terminal: standard input is none (leave out --tty)\n");
        let ended = exec(node, &["pod", "-c", "c", "--", "true"], "").await?.expect(1)?;
        assert_eq!(ended.err, "vaina: find container c in pod pod: it has a, b\n");
        let ended = exec(node, &["none", "--", "true"], "").await?.expect(1)?;
        assert_eq!(ended.err, "vaina: find pod default/none: there is none of this name\n");

        // A signal to us is one for the command.
        let mut command = node.vaina(&[
            "exec",
            "pod",
            "--",
            "sh",
            "-c",
            "trap 'exit 3' TERM; echo up; while :; do sleep 1 & wait $!; done",
        ]);
        let execution = Running::start(command.stdin(Stdio::null()))?;
        execution.wait_for("up").await?;
        execution.signal(Signal::SIGTERM)?;
        execution.end().await?.expect(3)?;
        finish(running).await
    });
}

#[test]
fn a_command_on_a_terminal_has_its_size_and_its_keys() {
    e2e(async |node| {
        let manifest = node.manifest("pod", &json!({ "containers": [polite("a")] }))?;
        let running = node.run_manifests(&[&manifest], 1).await?;
        running.wait_for("| up").await?;
        let script = "until stty size 2>/dev/null | grep '[0-9]'; do :; done; echo $TERM; tty; \
            trap 'exit 5' INT; echo ready; while :; do sleep 1000 & wait $!; done";
        let mut shell = Running::on_terminal(&node.vaina(&["exec", "-it", "pod", "--", "sh", "-c", script]))?;
        shell.wait_for("ready").await?;
        let lines = ["24 80\r\n", "xterm\r\n", "/dev/pts/0\r\n"];
        assert!(shell.out().starts_with(&lines.concat()), "{}", shell.out());
        // The key is the command's and not ours.
        shell.keys("\x03")?;
        shell.end().await?.expect(5)?;
        let mut shell = Running::on_terminal(&node.vaina(&["exec", "-it", "pod", "--", "sh"]))?;
        shell.keys("echo do''ne; exit 6\n")?;
        let ended = shell.end().await?.expect(6)?;
        assert!(ended.out.contains("done\r\n"), "{}", ended.out);
        finish(running).await
    });
}

#[test]
fn a_container_that_does_not_run_takes_no_commands() {
    e2e(async |node| {
        let spec = json!({ "restartPolicy": "Never", "containers": [sh("done", "exit 0"), polite("a")] });
        let manifest = node.manifest("pod", &spec)?;
        let running = node.run_manifests(&[&manifest], 1).await?;
        running.wait_for("Completed: ").await?;
        running.wait_for("| up").await?;
        let ended = exec(node, &["pod", "-c", "done", "--", "true"], "").await?.expect(1)?;
        assert_eq!(ended.err, "vaina: run a command in container done: it does not run\n");
        finish(running).await.context("end")
    });
}
