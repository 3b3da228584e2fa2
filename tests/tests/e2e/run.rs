//! `vaina run`: a pod without a kubelet, from its manifest to its exit code.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use vaina_proto::cri;
use vaina_tests::{
    client::Cri,
    node::{IMAGE, Node, Options, SOCKET, e2e, e2e_with},
    wait,
};

/// A node on which nothing serves: each command is on its own.
pub(crate) fn alone() -> Options {
    Options { without_daemon: true, ..Options::default() }
}

/// A container that runs a shell script.
pub(crate) fn sh(name: &str, script: &str) -> Value {
    json!({ "name": name, "image": IMAGE, "command": ["sh", "-c", script] })
}

/// A container that does something and stays until it is told to go.
pub(crate) fn stay(name: &str, script: &str) -> Value {
    sh(name, &format!("trap 'exit 0' TERM; {script}; while :; do sleep 1 & wait $!; done"))
}

/// A container that stays until it is told to go, and then says so.
pub(crate) fn polite(name: &str) -> Value {
    stay(name, "trap 'echo bye; exit 0' TERM; echo up")
}

/// The running container of that name, whoever is the daemon.
pub(crate) async fn container(name: &str) -> Result<(Cri, cri::Container)> {
    let cri = Cri::connect(Path::new(SOCKET)).await.context("connect to the daemon")?;
    let filter = cri::ContainerFilter {
        state: Some(cri::ContainerStateValue { state: cri::ContainerState::ContainerRunning.into() }),
        label_selector: [("io.kubernetes.container.name".to_owned(), name.to_owned())].into(),
        ..Default::default()
    };
    let found = cri.list_containers(cri::ListContainersRequest { filter: Some(filter) }).await?.containers;
    let container = found.into_iter().next().with_context(|| format!("container {name} runs"))?;
    Ok((cri, container))
}

/// Kills the first process of a container, from outside.
pub(crate) async fn kill_container(name: &str) -> Result<()> {
    let (cri, container) = container(name).await?;
    let pid = cri.container_pid(&container.id).await?;
    kill(nix::unistd::Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL).context("kill the container")
}

fn never(containers: &[Value]) -> Value {
    json!({ "restartPolicy": "Never", "containers": containers })
}

#[test]
fn without_a_daemon_the_run_is_one_and_shows_all_that_happens() {
    e2e_with(alone(), async |node| {
        node.furnish()?;
        let script = "echo one; echo two >&2; printf no-newline; exit 3";
        let manifest = node.manifest("web", &never(&[sh("c", script)]))?;
        let ended = node.ended(&["run", &manifest]).await?.expect(3)?;
        // Containers' standard output and nothing else.
        assert_eq!(ended.out, "c   | one\nc   | no-newline\n");
        let lines: Vec<&str> = ended.err.lines().collect();
        let words = [
            "Serving: ",
            "Sandbox: at 10.88.0.",
            "Started: created in",
            "c   ! two",
            "Error: exit code 3 after",
            "Removed: in",
        ];
        let mut rest = lines.iter();
        for word in words {
            assert!(rest.any(|line| line.contains(word)), "no {word:?}, or not in this order: {}", ended.err);
        }
        assert_eq!(lines.len(), words.len(), "{}", ended.err);
        assert!(!Path::new(SOCKET).exists(), "the daemon went with the run");
        Ok(())
    });
}

#[test]
fn the_daemon_that_runs_is_used_and_sees_an_ordinary_pod() {
    e2e(async |node| {
        let manifest = node.manifest("web", &never(&[polite("c")]))?;
        let running = node.run_manifests(&[&manifest], 1).await?;
        running.wait_for("c   | up").await?;
        assert!(!running.err().contains("Serving"), "{}", running.err());
        let sandboxes = node.cri().list_pod_sandbox(cri::ListPodSandboxRequest::default()).await?.items;
        assert_eq!(sandboxes.len(), 1);
        let metadata = sandboxes[0].metadata.clone().context("metadata")?;
        assert_eq!((metadata.name.as_str(), metadata.namespace.as_str()), ("web", "default"));
        node.ended(&["stop", "web"]).await?.expect(0)?;
        running.end().await?.expect(0)?;
        node.cri().version(cri::VersionRequest::default()).await?;
        Ok(())
    });
}

#[test]
fn the_exit_code_is_that_of_the_first_container_that_failed() {
    e2e(async |node| {
        for (name, containers, code) in [
            ("good", vec![sh("a", "exit 0"), sh("b", "true")], 0),
            ("second", vec![sh("a", "exit 0"), sh("b", "exit 5")], 5),
            ("both", vec![sh("a", "sleep 0.2; exit 4"), sh("b", "exit 5")], 4),
            ("killed", vec![sh("a", "kill -9 $$$$; sleep 1000")], 137),
        ] {
            // The first process of a container can't kill itself; one of a pod that shares its processes can. (The
            // manifest's `$$$$` is the shell's `$$`.)
            let mut spec = never(&containers);
            spec["shareProcessNamespace"] = true.into();
            let manifest = node.manifest(name, &spec)?;
            node.ended(&["run", &manifest]).await?.expect(code).context(name)?;
        }
        Ok(())
    });
}

#[test]
fn what_fails_is_run_again_on_failure_and_what_is_done_is_not() {
    e2e(async |node| {
        let script = "test -e /state/x && { echo again; exit 0; }; touch /state/x; echo first; exit 9";
        let mut container = sh("c", script);
        container["volumeMounts"] = json!([{ "name": "state", "mountPath": "/state" }]);
        let spec = json!({
            "restartPolicy": "OnFailure",
            "containers": [container, sh("done", "echo once")],
            "volumes": [{ "name": "state", "emptyDir": {} }],
        });
        let manifest = node.manifest("web", &spec)?;
        let ended = node.ended(&["run", &manifest]).await?.expect(0)?;
        assert_eq!(ended.out.matches("| first").count(), 1, "{}", ended.out);
        assert_eq!(ended.out.matches("| again").count(), 1, "{}", ended.out);
        assert_eq!(ended.out.matches("| once").count(), 1, "{}", ended.out);
        Ok(())
    });
}

#[test]
fn a_container_that_keeps_ending_waits_and_is_ended_while_it_waits() {
    e2e(async |node| {
        let manifest = node.manifest("web", &json!({ "containers": [sh("c", "echo hello; exit 0")] }))?;
        let running = node.run_manifests(&[&manifest], 1).await?;
        // The first restart is at once, as the kubelet's.
        running.wait_for("CrashLoopBackOff: starting again in 10 s").await?;
        assert_eq!(running.out().matches("hello").count(), 2, "{}", running.out());
        let shown = wait::until("the back-off is listed", async || {
            let shown = node.ended(&["ps"]).await?.expect(0)?.out;
            Ok(shown.contains("CrashLoopBackOff").then_some(shown))
        });
        let row = shown.await?;
        let row = row.lines().find(|line| line.contains("web")).context("a row")?.to_owned();
        assert!(row.contains("CrashLoopBackOff") && row.contains("0/1"), "{row}");
        running.signal(Signal::SIGINT)?;
        running.end().await?.expect(130)?;
        Ok(())
    });
}

#[test]
fn restarts_are_counted_and_one_ended_attempt_is_kept() {
    e2e(async |node| {
        let script = "n=$(($(cat /state/n 2>/dev/null || echo 0) + 1)); echo $n > /state/n; echo run $n";
        let mut container = sh("c", script);
        container["volumeMounts"] = json!([{ "name": "state", "mountPath": "/state" }]);
        let spec = json!({ "containers": [container], "volumes": [{ "name": "state", "emptyDir": {} }] });
        let manifest = node.manifest("web", &spec)?;
        let running = node.run_manifests(&["--back-off=20", &manifest], 1).await?;
        running.wait_for("| run 4").await?;
        let containers = node.cri().list_containers(cri::ListContainersRequest::default()).await?.containers;
        assert!((1..=3).contains(&containers.len()), "{containers:#?}");
        running.signal(Signal::SIGTERM)?;
        let ended = running.end().await?.expect(143)?;
        assert!(ended.err.contains("CrashLoopBackOff: starting again in 40 ms"), "{}", ended.err);
        Ok(())
    });
}

#[test]
fn a_killed_container_comes_back_and_finds_its_volume() {
    e2e_with(alone(), async |node| {
        node.furnish()?;
        let mount = json!([{ "name": "v", "mountPath": "/v" }]);
        let mut writer = stay("writer", "echo $HOSTNAME >> /v/file; echo up");
        writer["volumeMounts"] = mount.clone();
        let mut other = stay("other", ":");
        other["volumeMounts"] = mount;
        let spec = json!({
            "containers": [writer, other],
            "volumes": [{ "name": "v", "emptyDir": {} }],
        });
        let manifest = node.manifest("web", &spec)?;
        let running = node.run_manifests(&[&manifest], 1).await?;
        running.wait_for("writer | up").await?;
        running.wait_for("other  +").await?;
        let (_, before) = container("other").await?;
        kill_container("writer").await?;
        running.wait_for_times("writer | up", 2).await?;
        assert!(running.err().contains("Error: exit code 137"), "{}", running.err());
        assert_eq!(container("other").await?.1.id, before.id, "the other container goes on");
        let seen = node.ended(&["exec", "web", "-c", "other", "--", "cat", "/v/file"]).await?.expect(0)?;
        assert_eq!(seen.out, "web\nweb\n");
        running.signal(Signal::SIGINT)?;
        running.end().await?.expect(130)?;
        Ok(())
    });
}

#[test]
fn a_pod_whose_shim_is_killed_gets_a_new_sandbox() {
    e2e_with(alone(), async |node| {
        node.furnish()?;
        let manifest = node.manifest("web", &json!({ "containers": [polite("c")] }))?;
        let running = node.run_manifests(&[&manifest], 1).await?;
        running.wait_for("| up").await?;
        let (cri, before) = container("c").await?;
        let shim = cri.sandbox_pid(&before.pod_sandbox_id).await?;
        kill(nix::unistd::Pid::from_raw(i32::try_from(shim)?), Signal::SIGKILL)?;
        running.wait_for("SandboxChanged: ").await?;
        node.await_sandboxes(&running, 2).await?;
        running.wait_for_times("| up", 2).await?;
        assert_ne!(container("c").await?.1.pod_sandbox_id, before.pod_sandbox_id);
        running.signal(Signal::SIGINT)?;
        running.end().await?.expect(130)?;
        Ok(())
    });
}

#[test]
fn a_name_is_taken_until_its_pod_has_ended_and_then_is_another_pods() {
    e2e(async |node| {
        let mut c = polite("c");
        c["env"] = json!([{ "name": "UID_OF_POD", "valueFrom": { "fieldRef": { "fieldPath": "metadata.uid" } } }]);
        let manifest = node.manifest("web", &json!({ "containers": [c] }))?;
        let mut uids = Vec::new();
        for _ in 0..2 {
            let running = node.run_manifests(&[&manifest], 1).await?;
            running.wait_for("| up").await?;
            let uid = node.ended(&["exec", "web", "--", "sh", "-c", "echo $UID_OF_POD"]).await?.expect(0)?.out;
            uids.push(uid);
            let refused = node.ended(&["run", &manifest]).await?.expect(1)?;
            let words = "vaina: run pod default/web: a pod of this name still runs (vaina stop web ends it)\n";
            assert_eq!(refused.err, words);
            running.signal(Signal::SIGINT)?;
            running.end().await?.expect(130)?;
        }
        assert!(uids[0] != uids[1] && uids[0].len() == 37, "{uids:?}");
        Ok(())
    });
}

#[test]
fn several_pods_run_beside_each_other_and_lines_say_whose_they_are() {
    e2e_with(alone(), async |node| {
        node.furnish()?;
        let one = node.manifest("one", &never(&[sh("c", "echo of one")]))?;
        let two = node.manifest("two", &never(&[sh("c", "echo of two; exit 6")]))?;
        let ended = node.ended(&["run", &one, &two]).await?.expect(6)?;
        assert!(ended.out.contains("one/c | of one\n") && ended.out.contains("two/c | of two\n"), "{}", ended.out);
        let both = format!("{}\n---\n{}", fs::read_to_string(&one)?, fs::read_to_string(&two)?);
        let both = node.file("both.yaml", &both)?;
        node.ended(&["run", &both]).await?.expect(6)?;
        let refused = node.ended(&["run", &one, &both]).await?.expect(1)?;
        assert!(refused.err.contains("run pod default/one: it is in more than one of the files"), "{}", refused.err);
        Ok(())
    });
}

#[test]
fn a_manifest_may_come_from_standard_input() {
    e2e_with(alone(), async |node: &mut Node| {
        node.furnish()?;
        let manifest = node.manifest("web", &never(&[sh("c", "echo hello")]))?;
        let mut command = node.vaina(&["run", "-"]);
        command.stdin(fs::File::open(manifest)?);
        let ended = vaina_tests::running::Running::start(&mut command)?.end().await?.expect(0)?;
        assert_eq!(ended.out, "c   | hello\n");
        Ok(())
    });
}
