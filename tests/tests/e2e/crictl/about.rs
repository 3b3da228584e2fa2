//! The runtime itself, and crictl itself: version, info, runtime-config, update-runtime-config, config, completion.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use vaina_tests::node::{SOCKET, run};

use super::session::Session;

pub(super) async fn scene(session: &mut Session<'_>) -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let expected = format!("Version:  0.1.0\nRuntimeName:  vaina\nRuntimeVersion:  {version}\nRuntimeApiVersion:  v1");
    session.shows(&["version"], &expected)?;
    session.fails(&["version", "--nonsense"], &[]).await?;
    let mut nobody = session.with(&["--timeout", "500ms", "--runtime-endpoint", "unix:///run/nobody"], &["version"])?;
    ensure!(!nobody.output()?.status.success(), "nobody serves there");

    session.has(
        &["info", "-q"],
        "/status/conditions",
        &json!([
            { "type": "RuntimeReady", "status": true, "reason": "", "message": "" },
            { "type": "NetworkReady", "status": true, "reason": "", "message": "" },
        ]),
    )?;
    session.shows(
        &["info", "-o", "go-template", "--template", "{{range .status.conditions}}{{.type}}: {{.status}}; {{end}}"],
        "RuntimeReady: true; NetworkReady: true;",
    )?;
    let verbose = session.json(&["info"])?;
    let handlers = verbose["runtimeHandlers"].as_array().context("handlers")?;
    let handlers: Vec<_> = handlers.iter().map(|handler| handler["name"].as_str().unwrap_or_default()).collect();
    ensure!(handlers == ["", "crun", "runc", "vaina"], "{verbose:#}");
    ensure!(verbose.get("config").is_some(), "verbose info has the configuration: {verbose:#}");
    let yaml = session.run(&["info", "-o", "yaml"])?;
    ensure!(yaml.contains("type: RuntimeReady"), "{yaml}");

    session.shows(&["runtime-config"], "cgroup driver:  CGROUPFS")?;
    let updated = session.start(&["update-runtime-config", "--pod-cidr", "10.99.0.0/24"])?.end().await?.expect(0)?;
    ensure!(updated.err.contains("successfully updated"), "{updated:?}");
    session.start(&["update-runtime-config", "--pod-cidr", ""])?.end().await?.expect(0)?;

    // On a file of its own: the session's must stay as it is.
    let endpoint = format!("unix://{SOCKET}");
    let file = session.node.file("crictl.yaml", &format!("runtime-endpoint: {endpoint}\n"))?;
    let own = ["--config", file.as_str()];
    for arguments in [&["config", "--set", "timeout=7,debug=true"][..], &["config", "pull-image-on-create", "true"]] {
        run(&mut session.with(&own, arguments)?)?;
    }
    for (key, value) in
        [("timeout", "7"), ("debug", "true"), ("pull-image-on-create", "true"), ("runtime-endpoint", &endpoint)]
    {
        let printed = run(&mut session.with(&own, &["config", "--get", key])?)?;
        ensure!(printed.trim() == value, "{key}: {printed}");
    }
    let list = session.run(&["config", "--list"])?;
    ensure!(session.masked(&list).contains(&format!("runtime-endpoint  {endpoint}\n")), "{list}");

    for shell in ["bash", "zsh", "fish"] {
        let script = session.run(&["completion", shell])?;
        ensure!(script.contains("inspectp") && script.contains("crictl"), "{shell}: {script}");
    }
    session.fails(&["completion", "tcsh"], &["only bash, zsh or fish"]).await.map(drop)
}
