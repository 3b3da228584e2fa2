//! Containers: create, start, run, ps, inspect, update, checkpoint, stop, rm.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use vaina_tests::{
    images::{self, Image},
    node::IMAGE,
    registry::{FakeRegistry, Manner},
};

use super::{pods, session::Session};

/// Writes the configuration of a container that runs a shell script; answers its file.
pub(super) fn file(session: &Session<'_>, name: &str, image: &str, script: &str) -> Result<String> {
    let config = json!({
        "metadata": { "name": name },
        "image": { "image": image },
        "command": ["/bin/sh", "-c", script],
        "log_path": format!("{name}/0.log"),
        "labels": { "role": name, "io.kubernetes.pod.name": "shop", "io.kubernetes.pod.namespace": "e2e" },
        "annotations": { "note": name },
        "linux": { "resources": { "memory_limit_in_bytes": 67_108_864 } },
    });
    session.node.file(&format!("container-{name}.json"), &config.to_string())
}

const HEAD: &str = "CONTAINER  IMAGE  CREATED  STATE  NAME  ATTEMPT  POD ID  POD  NAMESPACE\n";
/// Ends at SIGTERM.
const SERVE: &str = "trap 'exit 3' TERM; echo up; while :; do sleep 0.1; done";

pub(super) async fn scene(session: &mut Session<'_>) -> Result<()> {
    let schema = session.json(&["create", "jsonschema", "--container"])?;
    ensure!(schema["$defs"].is_object(), "{schema:#}");
    let pod = pods::file(session, "shop", &json!({ "app": "shop" }))?;
    let shop = session.make("shop", &["runp", &pod])?;
    let (serve, wait) = (file(session, "serve", IMAGE, SERVE)?, file(session, "wait", IMAGE, "exec sleep 1000")?);
    let serve = session.make("serve", &["create", "--no-pull", "--cancel-timeout", "30s", &shop, &serve, &pod])?;
    session.shows(&["ps"], HEAD)?;
    session.shows(&["ps", "-a"], &format!("{HEAD}<serve>  {IMAGE}  <ago>  Created  serve  0  <shop>  shop  e2e"))?;
    session.shows(&["start", &serve], "<serve>")?;
    session.fails(&["start", &serve], &["starting the container"]).await?;
    session.node.wait_log(&serve, "up").await?;
    let wait = session.make("wait", &["create", &shop, &wait, &pod])?;
    session.shows(&["start", &wait], "<wait>")?;

    list(session, &serve, &shop)?;
    inspect(session, &serve).await?;
    update(session, &serve).await?;

    let ended = session.fails(&["checkpoint", "--export", "/run/checkpoint.tar", &serve], &["Unimplemented"]).await?;
    ensure!(!Path::new("/run/checkpoint.tar").exists(), "{ended:?}");

    session.shows(&["stop", "--timeout", "20", &serve], "<serve>")?;
    session.shows(
        &["ps", "-a", "--state", "Exited"],
        &format!("{HEAD}<serve>  {IMAGE}  <ago>  Exited  serve  0  <shop>  shop  e2e"),
    )?;
    session.has(&["inspect", &serve], "/status/exitCode", &json!(3))?;
    session.fails(&["rm", &wait], &["is running, please stop it first"]).await?;
    let log = session.node.cri().container(&serve).await?.log_path;
    session.shows(&["rm", "--keep-logs", &serve], "<serve>")?;
    ensure!(fs::read_to_string(&log)?.contains("up"), "the log was to be kept");
    let log = session.node.cri().container(&wait).await?.log_path;
    session.shows(&["rm", "--force", &wait], "<wait>\n<wait>")?;
    ensure!(!Path::new(&log).exists(), "the log goes with its container");
    session.fails(&["inspect", &wait], &["NotFound"]).await?;

    with_images(session, &pod, &shop).await?;
    session.run(&["rmp", "-f", "-a"])?;
    session.shows(&["pods", "-q"], "")
}

fn list(session: &mut Session<'_>, serve: &str, shop: &str) -> Result<()> {
    let row = |name: &str, image: &str| format!("<{name}>  {image}  <ago>  Running  {name}  0  <shop>  shop  e2e");
    let (of_serve, of_wait) = (row("serve", IMAGE), row("wait", IMAGE));
    session.shows(&["ps"], &format!("{HEAD}{of_wait}\n{of_serve}"))?;
    session.shows(&["ps", "--no-trunc", "--resolve-image-path"], &format!("{HEAD}{of_wait}\n{of_serve}"))?;
    for filter in [
        &["--name", "^ser"][..],
        &["--id", serve],
        &["--id", &serve[..12]],
        &["--label", "role=serve"],
        &["--pod", shop, "--name", "serve"],
        &["--image", IMAGE, "--state", "Running", "--namespace", "e2e", "--label", "role=serve"],
    ] {
        session.shows(&[&["ps"], filter].concat(), &format!("{HEAD}{of_serve}"))?;
    }
    for filter in [&["--latest"][..], &["--last", "1"]] {
        session.shows(&[&["ps", "-q"], filter].concat(), "<wait>")?;
    }
    for filter in
        [&["--state", "Created"][..], &["--name", "none"], &["--pod", "0123456789ab"], &["--label", "role=none"]]
    {
        session.shows(&[&["ps", "-aq"], filter].concat(), "")?;
    }
    session.shows(
        &["ps", "-v", "--name", "serve"],
        &format!(
            "ID: <serve>\nPodID: <shop>\nNamespace: e2e\nName: serve\nAttempt: 0\nState: Running\nImage: {IMAGE}\nCreated: <ago>\n\
             Labels:\n\tio.kubernetes.pod.name -> shop\n\tio.kubernetes.pod.namespace -> e2e\n\trole -> serve\n\
             Annotations:\n\tnote -> serve"
        ),
    )?;
    let image = json!({
        "image": IMAGE, "userSpecifiedImage": IMAGE, "imageRef": "", "annotations": {}, "runtimeHandler": "",
    });
    let listed = json!([{
        "id": "<serve>",
        "podSandboxId": "<shop>",
        "metadata": { "name": "serve", "attempt": 0 },
        "image": image,
        "imageRef": "<base>",
        "imageId": "<base>",
        "state": "CONTAINER_RUNNING",
        "createdAt": "<time>",
        "labels": { "role": "serve", "io.kubernetes.pod.name": "shop", "io.kubernetes.pod.namespace": "e2e" },
        "annotations": { "note": "serve" },
    }]);
    session.has(&["ps", "-o", "json", "--name", "serve"], "/containers", &listed)?;
    ensure!(session.run(&["ps", "-o", "yaml"])?.contains("state: CONTAINER_RUNNING"));
    Ok(())
}

async fn inspect(session: &mut Session<'_>, serve: &str) -> Result<()> {
    let verbose = session.json(&["inspect", serve])?;
    let spec = &verbose["info"]["runtimeSpec"];
    ensure!(spec["process"]["args"] == json!(["/bin/sh", "-c", SERVE]), "{spec:#}");
    ensure!(verbose["info"]["sandboxID"] == "<shop>", "{verbose:#}");
    let pid = session.node.cri().container_pid(serve).await?.to_string();
    session.shows(&["inspect", "-o", "go-template", "--template", "{{.info.pid}}", serve], &pid)?;
    let quiet = session.json(&["inspect", "-q", "--label", "role=serve"])?;
    ensure!(quiet["info"].is_null(), "{quiet:#}");
    let status = &quiet["status"];
    for (key, value) in [
        ("state", json!("CONTAINER_RUNNING")),
        ("createdAt", json!("<time>")),
        ("startedAt", json!("<time>")),
        ("exitCode", json!(0)),
        ("reason", json!("")),
        ("imageId", json!("<base>")),
        ("stopSignal", json!("SIGTERM")),
        ("user", json!({ "linux": { "uid": "0", "gid": "0", "supplementalGroups": ["0"] } })),
        ("annotations", json!({ "note": "serve" })),
    ] {
        ensure!(status[key] == value, "{key} of {quiet:#}");
    }
    session.shows(
        &["inspect", "-q", "-o", "table", serve],
        "ID: <serve>\nName: serve\nState: CONTAINER_RUNNING\nCreated: <ago>\nStarted: <ago>\n\
         Labels:\n\tio.kubernetes.pod.name -> shop\n\tio.kubernetes.pod.namespace -> e2e\n\trole -> serve\n\
         Annotations:\n\tnote -> serve",
    )?;
    ensure!(session.run(&["inspect", "-o", "yaml", serve])?.contains("state: CONTAINER_RUNNING"));
    Ok(())
}

async fn update(session: &mut Session<'_>, serve: &str) -> Result<()> {
    session.shows(
        &[
            "update",
            "--memory",
            "134217728",
            "--cpu-share",
            "512",
            "--cpu-quota",
            "50000",
            "--cpu-period",
            "100000",
            serve,
        ],
        "<serve>",
    )?;
    let linux = session.json(&["inspect", "-q", serve])?["status"]["resources"]["linux"].clone();
    for (key, value) in
        [("memoryLimitInBytes", "134217728"), ("cpuShares", "512"), ("cpuQuota", "50000"), ("cpuPeriod", "100000")]
    {
        ensure!(linux[key] == value, "{key} of {linux:#}");
    }
    session.fails(&["update", "--cpuset-cpus", "nonsense", serve], &["nonsense", "cpuset.cpus"]).await.map(drop)
}

/// What pulls first: `create --with-pull`, and `run`.
async fn with_images(session: &mut Session<'_>, pod: &str, shop: &str) -> Result<()> {
    let image = Image::new().layer(images::busybox(images::Applets::HardLinks)?).build()?;
    let registry = FakeRegistry::start(Manner::Token)?;
    registry.add("lib/busybox", "1", &image)?;
    let reference = format!("{}/lib/busybox:1", registry.address);
    let pulled = file(session, "pulled", &reference, "echo from the registry")?;
    session.fails(&["create", "--with-pull", shop, &pulled, pod], &["creating container"]).await?;
    session.fails(&["create", "--no-pull", shop, &pulled, pod], &["creating container", "lib/busybox"]).await?;
    let login = ["--with-pull", "--pull-timeout", "60s", "--auth", "dGVzdGVyOnNlY3JldA=="];
    let id = session.make("pulled", &[&["create"], &login[..], &[shop, &pulled, pod]].concat())?;
    session.shows(&["start", &id], "<pulled>")?;
    session.node.wait_exited(&id).await?;
    session.shows(&["logs", &id], "from the registry")?;

    // A pod of its own around a container.
    let (other, wait) = (pods::file(session, "other", &json!({}))?, file(session, "other", IMAGE, SERVE)?);
    let id = session.make("other", &["run", "--no-pull", "--runtime", "runc", &wait, &other])?;
    session.node.wait_log(&id, "up").await?;
    session.has(&["ps", "-o", "json", "--id", &id], "/containers/0/state", &json!("CONTAINER_RUNNING"))?;
    let again = pods::file(session, "again", &json!({}))?;
    let id = session.make("again", &[&["run"], &login[..], &[&pulled, &again]].concat())?;
    session.node.wait_exited(&id).await?;
    // All at once.
    let stopped = session.run(&["stop", "--all"])?;
    ensure!(session.masked(&stopped) == "<other>", "{stopped}");
    session.run(&["rm", "--all", "--force"])?;
    session.shows(&["ps", "-aq"], "")?;
    session.run(&["rmi", image.id()]).context("remove what was pulled").map(drop)
}
