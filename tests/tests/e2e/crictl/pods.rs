//! Sandboxes: runp, pods, inspectp, stopp, rmp.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::session::Session;

/// Writes the configuration of a pod as a person would; answers its file.
pub(super) fn file(session: &Session<'_>, name: &str, labels: &Value) -> Result<String> {
    let pod = session.node.pod(name).config;
    let linux = pod.linux.unwrap_or_default();
    let config = json!({
        "metadata": { "name": name, "namespace": "e2e", "uid": format!("uid-of-{name}") },
        "hostname": name,
        "log_directory": pod.log_directory,
        "labels": labels,
        "annotations": { "note": name },
        "linux": {
            "cgroup_parent": linux.cgroup_parent,
            "security_context": { "namespace_options": { "network": 0, "pid": 1, "ipc": 0 } },
        },
    });
    session.node.file(&format!("pod-{name}.json"), &config.to_string())
}

const HEAD: &str = "POD ID  CREATED  STATE  NAME  NAMESPACE  ATTEMPT  RUNTIME\n";

pub(super) async fn scene(session: &mut Session<'_>) -> Result<()> {
    let schema = session.json(&["runp", "jsonschema"])?;
    ensure!(schema["$defs"]["PodSandboxConfig"].is_object(), "{schema:#}");
    let (web, side) =
        (file(session, "web", &json!({ "tier": "front" }))?, file(session, "side", &json!({ "tier": "back" }))?);
    session.fails(&["runp", "--runtime", "nonsense", &web], &["run pod sandbox", "nonsense"]).await?;
    let web = session.make("web", &["runp", &web])?;
    let side = session.make("side", &["runp", "--runtime", "crun", "--cancel-timeout", "30s", &side])?;

    // The newest is first.
    let (of_web, of_side) = ("<web>  <ago>  Ready  web  e2e  0  (default)", "<side>  <ago>  Ready  side  e2e  0  crun");
    session.shows(&["pods"], &format!("{HEAD}{of_side}\n{of_web}"))?;
    session.shows(&["pods", "--no-trunc"], &format!("{HEAD}{of_side}\n{of_web}"))?;
    for filter in [
        &["--name", "^we"][..],
        &["--id", &web],
        // Any beginning of it that is no other's.
        &["--id", &web[..12]],
        &["--label", "tier=front"],
        &["--namespace", "e2e", "--name", "web"],
    ] {
        session.shows(&[&["pods"], filter].concat(), &format!("{HEAD}{of_web}"))?;
    }
    for filter in [&["--latest"][..], &["--last", "1"], &["--state", "Ready", "--label", "tier=back"]] {
        session.shows(&[&["pods"], filter].concat(), &format!("{HEAD}{of_side}"))?;
    }
    for filter in
        [&["--state", "NotReady"][..], &["--name", "none"], &["--label", "tier=none"], &["--id", "0123456789ab"]]
    {
        session.shows(&[&["pods", "-q"], filter].concat(), "")?;
    }
    session.shows(&["pods", "-q"], "<side>\n<web>")?;
    session.shows(
        &["pods", "-v", "--name", "web"],
        "ID: <web>\nName: web\nUID: uid-of-web\nNamespace: e2e\nStatus: Ready\nCreated: <time>\n\
         Labels:\n\ttier -> front\nAnnotations:\n\tnote -> web\nRuntime: (default)",
    )?;
    let listed = json!([{
        "id": "<side>",
        "metadata": { "name": "side", "uid": "uid-of-side", "namespace": "e2e", "attempt": 0 },
        "state": "SANDBOX_READY",
        "createdAt": "<time>",
        "labels": { "tier": "back" },
        "annotations": { "note": "side" },
        "runtimeHandler": "crun",
    }]);
    session.has(&["pods", "-o", "json", "--latest"], "/items", &listed)?;
    ensure!(session.run(&["pods", "-o", "yaml"])?.contains("state: SANDBOX_READY"));

    inspect(session, &web).await?;

    session.fails(&["rmp", &web], &["is running, please stop it first"]).await?;
    session.shows(&["stopp", &web], "Stopped sandbox <web>")?;
    session.shows(&["stopp", &web], "Stopped sandbox <web>")?;
    session.shows(&["pods", "--state", "NotReady"], &format!("{HEAD}{}", of_web.replace("Ready", "NotReady")))?;
    session.has(&["inspectp", &web], "/status/network", &json!({ "ip": "", "additionalIps": [] }))?;
    session.shows(&["rmp", &web], "Removed sandbox <web>")?;
    session.fails(&["rmp", &web], &["NotFound"]).await?;
    session.fails(&["inspectp", &web], &["NotFound"]).await?;
    session.shows(&["rmp", "--force", &side], "Stopped sandbox <side>\nRemoved sandbox <side>")?;
    session.shows(&["pods", "-q"], "")
}

async fn inspect(session: &mut Session<'_>, web: &str) -> Result<()> {
    let address = session.node.address(web).await?;
    session.name(&address, "address");
    let status = json!({
        "id": "<web>",
        "metadata": { "name": "web", "uid": "uid-of-web", "namespace": "e2e", "attempt": 0 },
        "state": "SANDBOX_READY",
        "createdAt": "<time>",
        "network": { "ip": "<address>", "additionalIps": [] },
        "linux": { "namespaces": { "options": { "network": "POD", "pid": "CONTAINER", "ipc": "POD", "targetId": "" } } },
        "labels": { "tier": "front" },
        "annotations": { "note": "web" },
        "runtimeHandler": "",
    });
    session.has(&["inspectp", "-q", web], "", &json!({ "status": status }))?;
    session.has(&["inspectp", "--name", "web"], "/status/id", &json!("<web>"))?;
    let verbose = session.json(&["inspectp", web])?;
    ensure!(verbose["info"]["pid"].is_number() && verbose["info"]["runtimeSpec"].is_object(), "{verbose:#}");
    let pid = session.node.cri().sandbox_pid(web).await?.to_string();
    session.shows(&["inspectp", "-o", "go-template", "--template", "{{.info.pid}}", web], &pid)?;
    session.shows(
        &["inspectp", "-q", "-o", "table", web],
        "ID: <web>\nName: web\nUID: uid-of-web\nNamespace: e2e\nAttempt: 0\nStatus: SANDBOX_READY\nCreated: <time>\n\
         IP Addresses: <address>\nLabels:\n\ttier -> front\nAnnotations:\n\tnote -> web",
    )?;
    ensure!(session.run(&["inspectp", "-o", "yaml", web])?.contains("uid: uid-of-web"));
    Ok(())
}
