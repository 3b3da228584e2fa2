//! `vaina doctor`: what is wrong is named, what can be mended is mended, and nothing else is touched.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use vaina_proto::cri::PodSandboxState;
use vaina_tests::{
    build::Container,
    node::{IMAGE, Node, Options, e2e, e2e_with},
};

/// The exit code, and all lines.
fn doctor(node: &Node, arguments: &[&str]) -> Result<(i32, String)> {
    let output = node.vaina(&["doctor"]).args(arguments).output().context("run vaina doctor")?;
    let code = output.status.code().context("an exit code")?;
    Ok((code, String::from_utf8_lossy(&output.stdout).into_owned()))
}

#[track_caller]
fn assert_told(text: &str, verdict: &str, words: &[&str]) {
    let is_told = text.lines().any(|line| line.starts_with(verdict) && words.iter().all(|word| line.contains(word)));
    assert!(is_told, "no line {verdict} with {words:?}:\n{text}");
}

#[test]
fn a_sound_node_is_all_ok_and_nothing_changes() {
    e2e(async |node| {
        let pod = node.pod("sound");
        let id = node.run_pod(&pod).await?;
        let container = node.start(&id, &pod, &Container::new("c", IMAGE).sh("sleep 1000")).await?;
        for arguments in [&[][..], &["--json"]] {
            let (code, text) = doctor(node, arguments)?;
            assert_eq!(code, 0, "{text}");
        }
        let checks: Value = serde_json::from_str(&doctor(node, &["--json"])?.1)?;
        let checks = checks["checks"].as_array().context("checks")?;
        assert!(checks.iter().all(|check| check["verdict"] == "ok"), "{checks:?}");
        // A daemon runs, so nothing is repaired; and without one, what runs goes on.
        let (code, text) = doctor(node, &["--repair"])?;
        assert_eq!(code, 1, "{text}");
        assert_told(&text, "warn", &["repair", "another daemon"]);
        node.terminate_daemon()?;
        let (code, text) = doctor(node, &["--repair"])?;
        assert_eq!(code, 0, "{text}");
        node.start_daemon().await?;
        assert_eq!(node.sh(&container, "echo still").await?.trim(), "still");
        node.remove_pod(&id).await?;
        Ok(())
    });
}

#[test]
fn a_pod_without_its_shim_is_named_and_mended_without_a_daemon() {
    e2e(async |node| {
        let pod = node.pod("shimless");
        let id = node.run_pod(&pod).await?;
        let shim = node.cri().sandbox_pid(&id).await?;
        node.kill_daemon()?;
        kill(Pid::from_raw(i32::try_from(shim)?), Signal::SIGKILL)?;
        let (code, text) = doctor(node, &[])?;
        assert_eq!(code, 2, "{text}");
        assert_told(&text, "fail", &[&id, "shim is gone"]);
        let (code, text) = doctor(node, &["--repair"])?;
        assert_eq!(code, 0, "{text}");
        node.start_daemon().await?;
        assert_eq!(node.cri().sandbox(&id).await?.state(), PodSandboxState::SandboxNotready);
        node.remove_pod(&id).await?;
        Ok(())
    });
}

#[test]
fn what_has_no_record_is_named_and_removed_and_a_foreign_pin_is_left() {
    e2e(async |node| {
        let foreign = format!("vaina-{}", "ab".repeat(32));
        let pin = Path::new("/run/netns").join(&foreign);
        let pod = node.pod("orphan");
        let id = node.run_pod(&pod).await?;
        node.kill_daemon()?;
        // Images are recorded too, so only the pod's record goes.
        let database = Path::new("/var/lib/vaina/state.db");
        let connection = rusqlite::Connection::open(database)?;
        connection.execute("DELETE FROM record WHERE kind = 'sandbox'", [])?;
        drop(connection);
        vaina_sys::netns::create(&pin)?;
        let (code, text) = doctor(node, &[])?;
        assert_eq!(code, 2, "{text}");
        assert_told(&text, "fail", &["orphan pod", &id]);
        assert_told(&text, "warn", &[&foreign]);
        // No record at all looks like a lost database.
        let (code, text) = doctor(node, &["--repair"])?;
        assert_eq!(code, 2, "{text}");
        assert_told(&text, "fail", &["repair", "left alone"]);
        assert!(Path::new("/run/netns").join(format!("vaina-{id}")).exists());
        let (code, text) = doctor(node, &["--repair", "--all-unrecorded"])?;
        assert_eq!(code, 1, "{text}");
        assert_told(&text, "ok", &["orphan pod", &id, "removed"]);
        assert!(!Path::new("/run/netns").join(format!("vaina-{id}")).exists());
        assert!(vaina_sys::netns::is_pinned(&pin), "somebody else's");
        vaina_sys::netns::unpin(&pin)?;
        node.start_daemon().await
    });
}

#[test]
fn a_damaged_record_and_a_drop_of_another_table_are_named() {
    e2e(async |node| {
        let nft = |line: &str| -> Result<()> {
            ensure!(Command::new("nft").arg(line).status()?.success(), "nft {line}");
            Ok(())
        };
        nft("add table inet blocker")?;
        nft("add chain inet blocker gate { type filter hook forward priority 0; policy drop; }")?;
        let connection = rusqlite::Connection::open("/var/lib/vaina/state.db")?;
        let damaged = "INSERT INTO record (kind, key, version, body) VALUES ('sandbox', 'damaged', 1, x'ff')";
        connection.execute(damaged, [])?;
        let (code, text) = doctor(node, &[])?;
        assert_eq!(code, 2, "{text}");
        assert_told(&text, "fail", &["firewall", "blocker", "gate"]);
        assert_told(&text, "fail", &["damaged", "can't be read"]);
        connection.execute("DELETE FROM record WHERE key = 'damaged'", [])?;
        nft("delete table inet blocker")?;
        let (code, text) = doctor(node, &[])?;
        assert_eq!(code, 0, "{text}");
        Ok(())
    });
}

#[test]
fn a_missing_runtime_and_a_wrong_configuration_are_named() {
    e2e_with(Options { without_daemon: true, ..Options::default() }, async |node| {
        node.remember()?;
        let path = node.file("doctor.toml", "[handlers.odd]\nruntime = \"/nonexistent/oci\"\n")?;
        let (code, text) = doctor(node, &["--config", &path])?;
        assert_eq!(code, 2, "{text}");
        assert_told(&text, "fail", &["handler odd", "/nonexistent/oci"]);
        fs::write(&path, "nonsense = 1\n")?;
        let (code, text) = doctor(node, &["--config", &path])?;
        assert_eq!(code, 2, "{text}");
        assert_told(&text, "fail", &["configuration", "nonsense"]);
        Ok(())
    });
}
