//! Logs that the kubelet rotates.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use vaina_tests::{
    node::{LOGS, log_text},
    wait,
};

use crate::kubelet::{full_name, kubelet_with};

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: talkative}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: localhost/vaina-demo/busybox:1
    imagePullPolicy: IfNotPresent
    command: [sh, -c, \"n=0; while true; do n=$((n+1)); echo line $n; [ $((n % 200)) != 0 ] || sleep 0.1; done\"]
";

#[test]
fn a_log_that_the_kubelet_rotates_loses_no_line() {
    kubelet_with(
        "containerLogMaxSize: 100Ki\ncontainerLogMaxFiles: 5\ncontainerLogMonitorInterval: 3s\n",
        async |_node, kubelet| {
            kubelet.apply("talkative", POD)?;
            let pod = kubelet.wait_ready("talkative").await?;
            let uid = pod["metadata"]["uid"].as_str().context("a uid")?;
            let directory = Path::new(LOGS).join(format!("default_{}_{uid}/c", full_name("talkative")));
            let parts = || -> Result<Vec<_>> {
                let mut names: Vec<_> = fs::read_dir(&directory)?.flatten().map(|entry| entry.path()).collect();
                // `0.log.<time>` are older than `0.log`.
                names.sort();
                names.rotate_left(1);
                Ok(names)
            };
            wait::until("the log is rotated twice", async || Ok((parts()?.len() == 3).then_some(()))).await?;
            // The newest of the rotated ones and the log itself are not compressed.
            let parts = parts()?;
            let mut lines = Vec::new();
            for part in &parts[1..] {
                ensure!(part.extension().is_none_or(|end| end != "gz"), "{parts:?}");
                let text = fs::read(part)?;
                let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
                lines.extend(log_text(&text[..whole])?.lines().map(ToOwned::to_owned));
            }
            let number = |line: &String| line.strip_prefix("line ").and_then(|number| number.parse::<u64>().ok());
            let numbers: Vec<u64> = lines.iter().filter_map(number).collect();
            assert_eq!(numbers.len(), lines.len());
            assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "a line is missing or twice: {numbers:?}");
            wait::until("the kubelet shows the newest lines", async || {
                Ok(kubelet.container_log("talkative", "c")?.starts_with("line ").then_some(()))
            })
            .await
        },
    );
}
