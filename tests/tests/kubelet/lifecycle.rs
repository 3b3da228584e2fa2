//! What the kubelet does with a container between its start and its end: probes, hooks, and containers before and beside
//! others.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use vaina_tests::{node::run, wait};

use crate::kubelet::{Kubelet, Log, condition, container, full_name, kubelet, wait_exited};

/// Runs a command in a container by way of the kubelet's server.
fn exec(kubelet: &Kubelet, pod: &str, container: &str, command: &[&str]) -> Result<()> {
    let words: String = command.iter().map(|word| format!("command={}&", word.replace('/', "%2f"))).collect();
    let path = format!("/exec/default/{}/{container}?{words}output=1&error=1", full_name(pod));
    run(&mut kubelet.client(&["exec", &path])?).map(drop)
}

#[test]
fn probes_decide_who_is_ready_and_who_is_started_again() {
    kubelet(async |_node, kubelet| {
        kubelet.apply_example("probes")?;
        let pod = kubelet.wait_ready("probes").await?;
        let first = container(&pod, "web")["containerID"].clone();
        assert_eq!(container(&pod, "web")["started"], true, "{pod:#}");

        exec(kubelet, "probes", "web", &["mv", "/www/index.html", "/www/away"])?;
        let is_not_ready = |pod: &Value| condition(pod, "Ready") == Some("False");
        let pod = kubelet.wait_pod("probes", "without its page", is_not_ready).await?;
        assert_eq!(container(&pod, "web")["restartCount"], 0, "{pod:#}");
        exec(kubelet, "probes", "web", &["mv", "/www/away", "/www/index.html"])?;
        let pod = kubelet.wait_ready("probes").await?;
        assert_eq!(container(&pod, "web")["containerID"], first, "{pod:#}");

        let mut log = Log::open(&pod, "web")?;
        exec(kubelet, "probes", "web", &["rm", "/tmp/well"])?;
        let is_again =
            |pod: &Value| container(pod, "web")["restartCount"] == 1 && condition(pod, "Ready") == Some("True");
        let pod = kubelet.wait_pod("probes", "started again", is_again).await?;
        let last = &container(&pod, "web")["lastState"]["terminated"];
        assert_eq!((&last["exitCode"], &last["containerID"]), (&json!(0), &first), "it is ended gracefully: {pod:#}");
        assert_eq!(log.text()?, "serving\nstopping\n");
        Ok(())
    });
}

#[test]
fn hooks_run_after_the_start_and_before_the_end_within_the_grace_period() {
    kubelet(async |node, kubelet| {
        kubelet.apply_example("hooks")?;
        let pod = kubelet.wait_ready("hooks").await?;
        let mut log = Log::open(&pod, "polite")?;
        // The deaf one's hook is cut off.
        kubelet.allow("PreStop hook");
        kubelet.allow("ExecSync cmd from runtime service failed");
        kubelet.withdraw("hooks")?;
        let statuses = wait_exited(node, 2).await?;
        let code = |name: &str| statuses.get(name).map(|status| status.exit_code);
        assert_eq!((code("polite"), code("deaf")), (Some(0), Some(137)));
        let text = log.text()?;
        let mut begun: Vec<&str> = text.lines().take(2).collect();
        begun.sort_unstable();
        assert_eq!(begun, ["begun", "postStart"], "in either order");
        assert_eq!(text.lines().skip(2).collect::<Vec<_>>(), ["preStop", "prepared", "signal"]);
        Ok(())
    });
}

#[test]
fn init_containers_run_first_and_a_sidecar_is_there_from_start_to_end() {
    kubelet(async |node, kubelet| {
        kubelet.apply_example("init-and-sidecar")?;
        let pod = kubelet.wait_ready("init-and-sidecar").await?;
        let inits = pod["status"]["initContainerStatuses"].as_array().context("it has init containers")?;
        let [prepare, cache] = &inits[..] else { panic!("two and not {inits:#?}") };
        assert_eq!(prepare["state"]["terminated"]["reason"], "Completed", "{prepare:#}");
        assert_eq!((&cache["ready"], &cache["restartCount"]), (&json!(true), &json!(0)), "{cache:#}");
        let (mut main, mut sidecar) = (Log::open(&pod, "main")?, Log::open(&pod, "cache")?);
        assert_eq!(Log::open(&pod, "prepare")?.text()?, "done\n");
        wait::until("the sidecar is asked", async || Ok((main.text()? == "at the start: prepared\n").then_some(())))
            .await?;

        kubelet.withdraw("init-and-sidecar")?;
        let statuses = wait_exited(node, 3).await?;
        assert_eq!(main.text()?, "at the start: prepared\nat the end: prepared\n");
        assert_eq!(sidecar.text()?, "stopping\n");
        let end = |name: &str| statuses.get(name).map(|status| status.finished_at);
        assert!(end("main") < end("cache"), "{statuses:#?}");
        Ok(())
    });
}
