//! The example of two containers that share a volume and an address, as a static pod: from its file to its end.

use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;
use vaina_tests::{crictl, http, running::Running, wait};

use crate::kubelet::{Kubelet, Log, container, full_name, kubelet, kubelet_with, wait_exited};

const POD: &str = "web-and-puller";

#[test]
fn the_example_becomes_ready_and_ends_when_its_file_goes() {
    kubelet(async |node, kubelet| {
        kubelet.apply_example(POD)?;
        let pod = kubelet.wait_ready(POD).await?;
        assert_eq!(pod["status"]["phase"], "Running", "{pod:#}");
        for name in ["web", "puller"] {
            let status = container(&pod, name);
            assert_eq!(status["restartCount"], 0, "{status:#}");
            assert_eq!(status["image"], vaina_tests::images::DEMO, "{status:#}");
        }

        let address = pod["status"]["podIP"].as_str().context("the pod has an address")?;
        for server in [&format!("{address}:80"), "127.0.0.1:8080"] {
            wait::until("a page is served", async || Ok(http::get(server, "/").ok())).await?;
            let page = http::get(server, "/")?;
            assert!(page.contains(&format!("written by {}", full_name(POD))), "{page}");
        }
        crictl_shows(address)?;

        // Both get the signal to end, and what they say then is in their logs.
        let logs = [Log::open(&pod, "web")?, Log::open(&pod, "puller")?];
        kubelet.withdraw(POD)?;
        for (name, status) in wait_exited(node, 2).await? {
            assert_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"), "{name}: {status:#?}");
        }
        for mut log in logs {
            let text = log.text()?;
            assert!(text.ends_with("stopping\n"), "{text}");
        }
        wait::until("the kubelet shows no pod", async || Ok(kubelet.pod(POD)?.is_none().then_some(()))).await?;
        Ok(())
    });
}

fn crictl_shows(address: &str) -> Result<()> {
    let pods = crictl::json(&["pods", "--name", &full_name(POD), "-o", "json"])?;
    let [pod] = pods["items"].as_array().map_or(&[][..], Vec::as_slice) else { panic!("one pod and not {pods:#}") };
    assert_eq!(pod["state"], "SANDBOX_READY", "{pod:#}");
    let id = pod["id"].as_str().context("a pod has an id")?;
    let status = crictl::json(&["inspectp", id])?;
    assert_eq!(status["status"]["network"]["ip"], address, "{status:#}");
    let containers = crictl::json(&["ps", "--pod", id, "-o", "json"])?;
    let mut names: Vec<_> = containers["containers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|container| container["state"] == "CONTAINER_RUNNING")
        .map(|container| container["metadata"]["name"].as_str().unwrap_or_default())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["puller", "web"], "{containers:#}");
    Ok(())
}

#[test]
fn the_kubelets_servers_tell_of_the_pod() {
    kubelet(async |_node, kubelet| {
        kubelet.apply_example(POD)?;
        kubelet.wait_ready(POD).await?;
        let log = kubelet.container_log(POD, "web")?;
        assert!(log.starts_with("serving /www at "), "{log}");
        summary_counts_the_pod(kubelet, true).await?;
        metrics_name_the_pod(kubelet).await?;
        exec_through_the_kubelet(kubelet).await?;
        forward_through_the_kubelet(kubelet).await
    });
}

#[test]
fn without_its_gate_for_runtimes_the_kubelet_counts_all_but_the_network() {
    kubelet_with("", async |_node, kubelet| {
        kubelet.apply_example(POD)?;
        kubelet.wait_ready(POD).await?;
        summary_counts_the_pod(kubelet, false).await
    });
}

async fn summary_counts_the_pod(kubelet: &Kubelet, has_network: bool) -> Result<()> {
    let mut last = Value::Null;
    let counted = |stats: &Value| {
        let is_counted = |value: &Value| value.as_u64().is_some_and(|value| value > 0);
        // A rate needs two looks of the kubelet.
        is_counted(&stats["cpu"]["usageCoreNanoSeconds"])
            && stats["cpu"]["usageNanoCores"].is_u64()
            && is_counted(&stats["memory"]["workingSetBytes"])
            && is_counted(&stats["memory"]["rssBytes"])
    };
    let seen = wait::until("the summary counts the pod and its containers", async || {
        let summary: Value = serde_json::from_str(&kubelet.tell("/stats/summary")?)?;
        let pods = summary["pods"].as_array().cloned().unwrap_or_default();
        last = pods.into_iter().find(|pod| pod["podRef"]["name"] == *full_name(POD)).unwrap_or_default();
        let containers = last["containers"].as_array().map_or(&[][..], Vec::as_slice);
        let is_whole = containers.len() == 2 && containers.iter().all(counted) && counted(&last);
        let received = !has_network || last["network"]["rxBytes"].as_u64().is_some_and(|bytes| bytes > 0);
        let written = last["ephemeral-storage"]["usedBytes"].as_u64().is_some_and(|bytes| bytes > 0);
        Ok((is_whole && received && written).then_some(()))
    });
    seen.await.with_context(|| format!("it has {last:#}"))
}

async fn metrics_name_the_pod(kubelet: &Kubelet) -> Result<()> {
    let mut last = String::new();
    let pod = format!("pod=\"{}\"", full_name(POD));
    // What metrics-server reads.
    let resources = kubelet.tell("/metrics/resource")?;
    for metric in ["container_cpu_usage_seconds_total", "container_memory_working_set_bytes"] {
        for container in ["web", "puller"] {
            let start = format!("{metric}{{container=\"{container}\"");
            assert!(resources.lines().any(|line| line.starts_with(&start) && line.contains(&pod)), "{resources}");
        }
    }
    let seen = wait::until("the metrics name the pod", async || {
        last = kubelet.tell("/metrics/cadvisor")?;
        let has = |metric: &str, labels: &[&str]| {
            last.lines()
                .any(|line| line.starts_with(&format!("{metric}{{")) && labels.iter().all(|label| line.contains(label)))
        };
        let both = ["container=\"web\"", "container=\"puller\""].iter().all(|container| {
            has("container_cpu_usage_seconds_total", &[&pod, container])
                && has("container_memory_working_set_bytes", &[&pod, container])
        });
        Ok((both && has("container_network_receive_bytes_total", &[&pod])).then_some(()))
    });
    let of_pods = |text: &str| text.lines().filter(|line| line.contains(&pod)).collect::<Vec<_>>().join("\n");
    seen.await.with_context(|| format!("they have\n{}", of_pods(&last)))
}

/// Where the kubelet's server runs a shell script in the container `web`.
fn exec_path(script: &str, streams: &str) -> String {
    let script: String = script.bytes().map(|byte| format!("%{byte:02x}")).collect();
    format!("/exec/default/{}/web?command=sh&command=-c&command={script}&{streams}", full_name(POD))
}

fn over(command: &mut Command, transport: &str) -> Result<Running> {
    if transport == "websocket" {
        command.env("WEBSOCKET", "1");
    }
    Running::start(command)
}

async fn exec_through_the_kubelet(kubelet: &Kubelet) -> Result<()> {
    for transport in ["spdy", "websocket"] {
        let path = exec_path("hostname; cat; echo err >&2; exit 7", "input=1&output=1&error=1");
        let mut command = kubelet.client(&["exec", &path])?;
        let ended = over(&mut command, transport)?.end().await?.expect(7)?;
        assert_eq!((ended.out, ended.err), (format!("{}\n", full_name(POD)), "err\n".to_owned()), "{transport}");
    }
    Ok(())
}

async fn forward_through_the_kubelet(kubelet: &mut Kubelet) -> Result<()> {
    // A client that is killed says no farewell.
    kubelet.allow("Error proxying data from client to backend");
    kubelet.allow("use of closed network connection");
    for transport in ["spdy", "websocket"] {
        let path = format!("/portForward/default/{}?port=80", full_name(POD));
        let running = over(&mut kubelet.client(&["forward", &path, "0:80"])?, transport)?;
        running.wait_for("Forwarding from ").await?;
        let out = running.out();
        let port = out.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next()).context("a port")?;
        let page = http::get(&format!("127.0.0.1:{port}"), "/")?;
        assert!(page.starts_with("<h1>page "), "{transport}: {page}");
    }
    Ok(())
}
