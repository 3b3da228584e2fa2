//! The other examples, which `vaina run` runs without a kubelet, do the same under one.

use serde_json::Value;

use crate::kubelet::{container, full_name, kubelet};

#[test]
fn what_runs_without_a_kubelet_runs_under_it() {
    kubelet(async |_node, kubelet| {
        for example in ["job", "locked-down", "node-agent", "shared-processes"] {
            kubelet.apply_example(example)?;
        }
        let has_succeeded = |pod: &Value| pod["status"]["phase"] == "Succeeded";
        let job = kubelet.wait_pod("job", "done", has_succeeded).await?;
        assert_eq!(container(&job, "job")["restartCount"], 1, "{job:#}");
        let last = &container(&job, "job")["lastState"]["terminated"];
        assert_eq!((&last["exitCode"], &last["message"]), (&3.into(), &"failing once\n".into()), "{job:#}");
        assert_eq!(kubelet.container_log("job", "job")?, format!("done by {}\n", full_name("job")));

        kubelet.wait_pod("locked-down", "done", |pod| pod["status"]["phase"] != "Pending").await?;
        assert_log(
            &kubelet.container_log("locked-down", "shell")?,
            &[
                "uid=1000(default-user) gid=1000(default-user)",
                "CapEff:\t0000000000000000",
                "NoNewPrivs:\t1",
                "Seccomp:\t2",
                "1000     2000",
                "touch: /x: Read-only file system",
            ],
        );

        kubelet.wait_pod("node-agent", "done", has_succeeded).await?;
        let host = nix::unistd::gethostname()?.to_string_lossy().into_owned();
        assert_log(&kubelet.container_log("node-agent", "agent")?, &[&format!("node {host} runs "), "its /etc has "]);

        let is_again = |pod: &Value| container(pod, "worker")["restartCount"].as_u64() > Some(0);
        let shared = kubelet.wait_pod("shared-processes", "with its worker ended by its neighbour", is_again).await?;
        assert_eq!(container(&shared, "worker")["lastState"]["terminated"]["exitCode"], 137, "{shared:#}");
        kubelet.allow("CrashLoopBackOff");
        Ok(())
    });
}

#[track_caller]
fn assert_log(log: &str, words: &[&str]) {
    for words in words {
        assert!(log.contains(words), "no {words:?} in {log}");
    }
}
