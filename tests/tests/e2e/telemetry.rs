//! What the daemon says of itself: one line for each changing call, with where its time went, and a profile's spans.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tonic::Code;
use vaina_tests::{
    build::Container,
    node::{IMAGE, Node, Options, e2e, e2e_with},
    profile::{self, Span},
};

use crate::assert_failed;

/// The lines about a call, by the name of its RPC.
fn lines(node: &Node, rpc: &str) -> Result<Vec<Value>> {
    let log = node.daemon_log();
    let all = log.lines().map(|line| serde_json::from_str::<Value>(line).with_context(|| line.to_owned()));
    let lines = all.collect::<Result<Vec<_>>>()?;
    let of_call = |line: &Value| line["span"]["rpc"] == rpc && !line["ms"].is_null();
    Ok(lines.into_iter().filter(of_call).collect())
}

/// The only line about a call.
fn line(node: &Node, rpc: &str) -> Result<Value> {
    let mut lines = lines(node, rpc)?;
    ensure!(lines.len() == 1, "{} lines about {rpc}: {lines:?}", lines.len());
    Ok(lines.remove(0))
}

/// The phases of a line with their milliseconds.
fn phases(line: &Value) -> Result<BTreeMap<String, f64>> {
    let text = line["phases"].as_str().with_context(|| format!("no phases: {line}"))?;
    text.split(' ')
        .map(|phase| {
            let (name, took) = phase.split_once('=').with_context(|| text.to_owned())?;
            Ok((name.to_owned(), took.strip_suffix("ms").with_context(|| text.to_owned())?.parse()?))
        })
        .collect()
}

#[test]
fn each_changing_call_has_one_line_that_says_where_its_time_went() {
    e2e(async |node| {
        let pod = node.pod("told");
        let sandbox = node.run_pod(&pod).await?;
        let id = node.start(&sandbox, &pod, &Container::new("c", IMAGE).command(&["sleep", "1000"])).await?;
        let cri = node.cri();
        cri.stop_container(&id, 0).await?;
        cri.remove_container(&id).await?;
        cri.stop_pod_sandbox(&sandbox).await?;
        cri.remove_pod_sandbox(&sandbox).await?;
        for (rpc, object, parts) in [
            (
                "RunPodSandbox",
                ("sandbox", &sandbox),
                &["gate", "record", "directory", "netns", "network", "shm", "shim", "namespaces"][..],
            ),
            ("CreateContainer", ("container", &id), &["gate", "record", "image", "rootfs", "bundle", "sync"]),
            ("StartContainer", ("container", &id), &["gate", "mark_toward_running", "task", "process"]),
            ("StopContainer", ("container", &id), &["signal", "wait_for_exit"]),
            ("RemoveContainer", ("container", &id), &["gate", "remove_bundle", "remove_rootfs", "remove_record"]),
            ("StopPodSandbox", ("sandbox", &sandbox), &["stop_containers", "remove_shim", "remove_netns"]),
            ("RemovePodSandbox", ("sandbox", &sandbox), &["stop", "remove_record", "receipt"]),
        ] {
            let line = line(node, rpc)?;
            assert_eq!((&line["level"], &line["message"]), (&"INFO".into(), &"done".into()), "{line}");
            assert_eq!(line["span"][object.0], **object.1, "{line}");
            let ms = line["ms"].as_f64().with_context(|| format!("no duration: {line}"))?;
            let phases = phases(&line)?;
            for part in parts {
                let took = phases.get(*part).with_context(|| format!("{part} is missing: {line}"))?;
                // None takes longer than the whole but by what rounding adds.
                ensure!(*took <= ms + 0.1, "{part} takes longer than the call: {line}");
            }
        }
        let run = line(node, "RunPodSandbox")?;
        assert_eq!((&run["span"]["pod"], &run["span"]["namespace"]), (&"told".into(), &"e2e".into()), "{run}");
        Ok(())
    });
}

#[test]
fn a_call_that_fails_says_how_far_it_came() {
    e2e(async |node| {
        let pod = node.pod("failed");
        let sandbox = node.run_pod(&pod).await?;
        let nothing = Container::new("c", IMAGE).command(&["/nonexistent"]);
        let id = node.create(&sandbox, &pod, &nothing).await?;
        assert_failed(node.cri().start_container(&id).await, Code::FailedPrecondition, &["/nonexistent"]);
        let line = line(node, "StartContainer")?;
        assert_eq!((&line["level"], &line["message"]), (&"INFO".into(), &"failed".into()), "{line}");
        assert!(line["error"].as_str().is_some_and(|error| error.contains("/nonexistent")), "{line}");
        let phases = phases(&line)?;
        assert!(phases.contains_key("task") && !phases.contains_key("process"), "{line}");
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

#[test]
fn daemon_shim_and_oci_runtime_tell_their_spans_to_one_file() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("spans");
    let environment = vec![("VAINA_SPANS".to_owned(), path.to_string_lossy().into_owned())];
    e2e_with(Options { environment, ..Options::default() }, async move |node| {
        let pod = node.pod("measured");
        let sandbox = node.run_pod(&pod).await?;
        let id = node.start(&sandbox, &pod, &Container::new("c", IMAGE).command(&["sleep", "1000"])).await?;
        // It is the node's matter, and no container's.
        let inside = node.sh(&id, "env; cat /proc/1/environ").await?;
        assert!(!inside.contains("VAINA_SPANS"), "{inside}");
        node.cri().stop_container(&id, 0).await?;
        node.remove_pod(&sandbox).await?;

        let spans = profile::parse(&std::fs::read_to_string(&path)?)?;
        let of = |process: &str, name: &str| -> Result<Span> {
            let mut found = spans.iter().filter(|span| span.process == process && span.name == name);
            let span = found.next().with_context(|| format!("no span {name} of {process}"))?;
            ensure!(span.start_ns <= span.end_ns, "{span:?} ends before it begins");
            Ok(span.clone())
        };
        // Each is where it was called from.
        for chain in [
            &[("daemon", "RunPodSandbox"), ("daemon", "shim"), ("daemon", "shim.start"), ("shim", "start")][..],
            &[("daemon", "namespaces"), ("daemon", "shim.CreateSandbox"), ("shim", "CreateSandbox")],
            &[("daemon", "task"), ("daemon", "shim.Create"), ("shim", "Create"), ("shim", "oci.create")],
            &[("shim", "oci.create"), ("oci", "create"), ("oci", "libcontainer"), ("oci", "join control groups")],
            &[("oci", "libcontainer"), ("oci", "mount /proc")],
            &[("oci", "libcontainer"), ("oci", "privileges")],
            &[("shim", "oci.create"), ("oci", "mount root file system")],
            &[("daemon", "process"), ("shim", "Start"), ("shim", "oci.start"), ("oci", "start")],
            &[("daemon", "ExecSync"), ("daemon", "shim.Start"), ("shim", "oci.exec"), ("oci", "exec")],
            &[("daemon", "StopContainer"), ("daemon", "shim.Stop")],
            &[("shim", "oci.delete"), ("oci", "delete")],
            &[("daemon", "StopPodSandbox"), ("daemon", "shim.ShutdownSandbox")],
        ] {
            for pair in chain.windows(2) {
                let (outer, inner) = (pair[0], pair[1]);
                let around = |span: &&Span| (span.process.as_str(), span.name.as_str()) == outer;
                let span = of(inner.0, inner.1)?;
                let all: Vec<&Span> =
                    spans.iter().filter(|span| (span.process.as_str(), span.name.as_str()) == inner).collect();
                let is_inside = all.iter().any(|inner| spans.iter().filter(around).any(|outer| outer.encloses(inner)));
                ensure!(is_inside, "{span:?} is not in a {outer:?}");
            }
        }
        Ok(())
    });
    Ok(())
}

#[test]
fn a_file_of_spans_that_can_not_be_is_refused() {
    e2e_with(Options { without_daemon: true, ..Options::default() }, async |node| {
        node.remember()?;
        for path in ["spans", "/nonexistent/spans"] {
            let output = node.vaina(&["serve"]).env("VAINA_SPANS", path).output()?;
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success());
            assert!(stderr.contains("VAINA_SPANS") && stderr.contains(path), "{stderr}");
        }
        Ok(())
    });
}
