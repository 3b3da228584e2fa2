//! What is measured and what happens: stats, statsp, metricdescs, metricsp, events.

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use vaina_tests::{node::IMAGE, wait};

use super::{containers, pods, session::Session};

pub(super) async fn scene(session: &mut Session<'_>) -> Result<()> {
    events(session).await?;
    let pod = pods::file(session, "busy", &json!({ "app": "busy" }))?;
    let sandbox = session.make("busy", &["runp", &pod])?;
    let script = "dd if=/dev/zero of=/file bs=1M count=1; sync /file; echo ready; while :; do :; done";
    let busy = containers::file(session, "loop", IMAGE, script)?;
    let busy = session.make("loop", &["create", "--no-pull", &sandbox, &busy, &pod])?;
    session.run(&["start", &busy])?;
    session.node.wait_log(&busy, "ready").await?;
    stats(session, &sandbox, &busy).await?;
    metrics(session).await?;
    session.run(&["rmp", "-f", &sandbox]).map(drop)
}

/// A number that the CRI wraps in a message.
fn number(value: &Value, pointer: &str) -> Result<u64> {
    let text = value.pointer(pointer).and_then(Value::as_str);
    text.and_then(|text| text.parse().ok()).with_context(|| format!("{pointer} in {value:#}"))
}

async fn stats(session: &mut Session<'_>, sandbox: &str, busy: &str) -> Result<()> {
    let mut wanted = "\n".to_owned();
    wait::until("the size of the writable layer is known", async || {
        let all = session.json(&["stats", "-o", "json"])?;
        let [stats] = all["stats"].as_array().map_or(&[][..], Vec::as_slice) else { return Ok(None) };
        ensure!(
            stats["attributes"]["id"] == "<loop>" && stats["attributes"]["metadata"]["name"] == "loop",
            "{stats:#}"
        );
        ensure!(number(stats, "/memory/usageBytes/value")? > 100_000, "{stats:#}");
        wanted = format!("{stats:#}");
        Ok((number(stats, "/writableLayer/usedBytes/value")? >= 1 << 20
            && number(stats, "/cpu/usageNanoCores/value")? > 0)
            .then_some(()))
    })
    .await
    .context(wanted)?;
    for filter in [&["--id", busy][..], &["--pod", sandbox], &["--label", "role=loop"], &["--all"], &[busy]] {
        session.has(&[&["stats", "-o", "json"], filter].concat(), "/stats/0/attributes/id", &json!("<loop>"))?;
    }
    session.has(&["stats", "-o", "json", "--label", "role=none"], "/stats", &json!([]))?;
    let table = session.run(&["stats", "--seconds", "1"])?;
    let table = session.masked(&table);
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split("  ").collect()).collect();
    let [head, row] = &rows[..] else { anyhow::bail!("{table}") };
    ensure!(*head == ["CONTAINER", "NAME", "CPU %", "MEM", "DISK", "INODES", "SWAP"], "{table}");
    ensure!(row[..2] == ["<loop>", "loop"] && row[2].parse::<f64>()? > 0.0 && row[3..5] == ["<size>"; 2], "{table}");
    ensure!(session.run(&["stats", "-o", "yaml"])?.contains("usageNanoCores:"));

    for filter in [&["--id", sandbox][..], &["--label", "app=busy"], &[sandbox]] {
        session.has(&[&["statsp", "-o", "json"], filter].concat(), "/stats/0/attributes/id", &json!("<busy>"))?;
    }
    let pods = session.json(&["statsp", "-o", "json"])?;
    let linux = &pods["stats"][0]["linux"];
    ensure!(linux["network"]["defaultInterface"]["name"] == "eth0", "{pods:#}");
    ensure!(linux["containers"][0]["attributes"]["id"] == "<loop>", "{pods:#}");
    ensure!(number(linux, "/process/processCount/value")? >= 1, "{pods:#}");
    let table = session.run(&["statsp"])?;
    let table = session.masked(&table);
    ensure!(table.starts_with("POD  POD ID  CPU %  MEM\nbusy  <busy>  "), "{table}");
    ensure!(session.run(&["statsp", "-o", "yaml"])?.contains("processCount:"));

    for command in ["stats", "statsp"] {
        let watching = session.start(&[command, "--watch"])?;
        watching.wait_for_times("CPU %", 2).await?;
        watching.signal(Signal::SIGINT)?;
        watching.end().await?;
    }
    Ok(())
}

async fn metrics(session: &mut Session<'_>) -> Result<()> {
    let descriptors = session.json(&["metricdescs", "-o", "json"])?;
    let descriptors = descriptors["descriptors"].as_array().context("descriptors")?;
    let metrics = session.json(&["metricsp", "-o", "json"])?;
    let pod = &metrics["podMetrics"][0];
    ensure!(pod["podSandboxId"] == "<busy>", "{metrics:#}");
    let container = &pod["containerMetrics"][0];
    ensure!(container["containerId"] == "<loop>", "{metrics:#}");
    // Each value has a description, and as many labels as that says.
    let values = [pod, container].into_iter().filter_map(|part| part["metrics"].as_array()).flatten();
    let mut count = 0;
    for value in values {
        let descriptor = descriptors.iter().find(|descriptor| descriptor["name"] == value["name"]);
        let keys = descriptor.and_then(|descriptor| descriptor["labelKeys"].as_array()).map(Vec::len);
        ensure!(keys.is_some() && keys == value["labelValues"].as_array().map(Vec::len), "{value:#} {descriptor:#?}");
        count += 1;
    }
    ensure!(count > 20, "only {count} values");
    ensure!(session.run(&["metricdescs", "-o", "yaml"])?.contains("container_memory_working_set_bytes"));
    ensure!(session.run(&["metricsp", "-o", "yaml"])?.contains("podSandboxId:"));
    let watching = session.start(&["metricsp", "--watch"])?;
    watching.wait_for_times("podMetrics", 2).await?;
    watching.signal(Signal::SIGINT)?;
    watching.end().await.map(drop)
}

async fn events(session: &mut Session<'_>) -> Result<()> {
    let template = "{{.containerEventType}} {{.containerId}}";
    let listener = session.start(&["events", "-o", "go-template", "--template", template])?;
    let as_json = session.start(&["events"])?;
    // It does not say when it listens: pods come and go until it is seen to.
    let mut number = 0;
    wait::until("crictl hears of events", async || {
        number += 1;
        let pod = pods::file(session, &format!("early-{number}"), &json!({}))?;
        let id = session.run(&["runp", &pod])?;
        session.run(&["rmp", "-f", &id])?;
        Ok((!listener.out().is_empty() && !as_json.out().is_empty()).then_some(()))
    })
    .await?;

    let pod = pods::file(session, "told", &json!({}))?;
    let sandbox = session.make("told", &["runp", &pod])?;
    let short = containers::file(session, "short", IMAGE, "exit 3")?;
    let short = session.make("short", &["create", "--no-pull", &sandbox, &short, &pod])?;
    session.run(&["start", &short])?;
    session.node.wait_exited(&short).await?;
    session.run(&["rm", &short])?;
    session.run(&["rmp", "-f", &sandbox])?;
    listener.wait_for(&format!("CONTAINER_DELETED_EVENT {sandbox}")).await?;
    let told = session.masked(&listener.out());
    let told: Vec<&str> = told.lines().filter(|line| line.ends_with('>')).collect();
    let expected = [
        "CONTAINER_CREATED_EVENT <told>",
        "CONTAINER_STARTED_EVENT <told>",
        "CONTAINER_CREATED_EVENT <short>",
        "CONTAINER_STARTED_EVENT <short>",
        "CONTAINER_STOPPED_EVENT <short>",
        "CONTAINER_DELETED_EVENT <short>",
        "CONTAINER_STOPPED_EVENT <told>",
        "CONTAINER_DELETED_EVENT <told>",
    ];
    ensure!(told == expected, "{told:#?}");
    as_json.wait_for("\"exitCode\":  3").await?;
    for running in [listener, as_json] {
        running.signal(Signal::SIGINT)?;
        running.end().await?;
    }
    Ok(())
}
