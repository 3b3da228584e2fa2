//! The benchmark client itself: a quick run against the node's daemon measures every row that can be measured from outside.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use vaina_tests::{
    node::{SOCKET, e2e, run},
    require,
};

/// Rows that the comparison is read by, as a quick run calls them.
const ROWS: [&str; 21] = [
    "sandbox_host",
    "pod_up_host",
    "pod_up_net",
    "pod_down_host",
    "pod_down_net",
    "lifecycles_host",
    "lifecycles_net",
    "cpu_lifecycle_host",
    "cpu_lifecycle_net",
    "pod_up_net_seccomp",
    "exec_sync",
    "exec_sync_cpu",
    "memavailable_pod",
    "monitor_pss_pod",
    "daemon_pss_4",
    "list_container_stats_4",
    "list_pod_stats_4",
    "list_pod_metrics_4",
    "log_throughput",
    "log_cpu_gib",
    "pull_3mb",
];

#[test]
fn a_quick_run_fills_every_row() {
    e2e(async |node| {
        let json = node.directory().join("bench.json");
        let svg = node.directory().join("bench.svg");
        let endpoint = format!("vaina={SOCKET}");
        let table = run(Command::new(require::beside("vaina-bench")?.context("vaina-bench is not built")?)
            .args(["--quick", "--endpoint", &endpoint])
            .arg("--json")
            .arg(&json)
            .arg("--svg")
            .arg(&svg))?;
        let figures: Vec<Value> = serde_json::from_str(&fs::read_to_string(&json)?)?;
        for row in ROWS {
            let figure = find(&figures, row, "vaina")?;
            ensure!(figure["p50"].is_number() && figure["n"].as_u64() > Some(0), "{figure}\n{table}");
            ensure!(table.contains(row), "{row} is not in the table:\n{table}");
        }
        // Nobody but who started a daemon may end it: the row stays, and says so.
        let restart = find(&figures, "restart_4", "vaina")?;
        ensure!(restart["p50"].is_null() && restart["reason"].is_string(), "{restart}");
        ensure!(find(&figures, "pod_up_net", "floor")?["p50"].is_number());
        let without: Vec<&Value> = figures.iter().filter(|figure| figure["p50"].is_null()).collect();
        ensure!(without.len() == 1, "rows without figures: {without:?}");
        ensure!(fs::read_to_string(&svg)?.contains("Pod up, pod network"));
        Ok(())
    });
}

fn find<'a>(figures: &'a [Value], row: &str, endpoint: &str) -> Result<&'a Value> {
    let is_it = |figure: &&Value| figure["name"] == row && figure["endpoint"] == endpoint;
    figures.iter().find(is_it).with_context(|| format!("no figure {row} of {endpoint}"))
}
