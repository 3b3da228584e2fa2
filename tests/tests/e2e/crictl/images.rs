//! Images: pull, images, inspecti, imagefsinfo, rmi.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use vaina_tests::{
    images::{Image, layer::Layer},
    node::IMAGE,
    registry::{FakeRegistry, Manner, PASSWORD, USER},
};

use super::session::Session;

pub(super) async fn scene(session: &mut Session<'_>) -> Result<()> {
    let small = |text: &str| Image::new().layer(Layer::new().file("text", 0o644, text.as_bytes())).build();
    let (tool, secret) = (small("a tool")?, small("a secret")?);
    let (open, closed) = (FakeRegistry::start(Manner::Open)?, FakeRegistry::start(Manner::Token)?);
    open.add("lib/tool", "1", &tool)?;
    open.add("lib/tool", "2", &tool)?;
    closed.add("lib/secret", "1", &secret)?;
    session.name(&open.address, "open");
    session.name(&closed.address, "closed");
    for (image, name) in [(&tool, "tool"), (&secret, "secret")] {
        session.name(image.id(), name);
        session.name(&image.manifest.digest, &format!("{name}-digest"));
    }
    let base = session.json(&["inspecti", IMAGE])?["status"]["id"].as_str().context("an id")?.to_owned();
    session.name(&base, "base");

    // By tag, by digest, with a pod's configuration, with an annotation, and with credentials.
    let name = format!("{}/lib/tool", open.address);
    let (tagged, digested) = (format!("{name}:1"), format!("{name}@{}", tool.manifest.digest));
    session.shows(&["pull", &tagged], "Image is up to date for <tool>")?;
    session.shows(&["pull", &digested], "Image is up to date for <tool>")?;
    let pod = session.node.file("pull.json", r#"{"metadata":{"name":"puller","namespace":"e2e","uid":"1"}}"#)?;
    session.shows(
        &["pull", "--pod-config", &pod, "--annotation", "a=b", &format!("{name}:2")],
        "Image is up to date for <tool>",
    )?;
    session.fails(&["pull", &format!("{name}:3")], &["pulling image", "not found"]).await?;
    let private = format!("{}/lib/secret:1", closed.address);
    session.fails(&["pull", &private], &["pulling image"]).await?;
    session.fails(&["pull", "--creds", "tester:wrong", &private], &["pulling image"]).await?;
    session.shows(&["pull", "--creds", &format!("{USER}:{PASSWORD}"), &private], "Image is up to date for <secret>")?;
    let hangs = FakeRegistry::start(Manner::Hang)?;
    session.fails(&["pull", "--pull-timeout", "1s", &format!("{}/a:1", hangs.address)], &["DeadlineExceeded"]).await?;

    let size = |image: Option<vaina_proto::cri::Image>| image.map(|image| image.size.to_string()).context("an image");
    let (tool_size, size) =
        (size(session.node.cri().image(&tagged).await?)?, size(session.node.cri().image(&private).await?)?);
    session.shows(
        &["images", "--digests", "--pinned", &tagged],
        "IMAGE  TAG  DIGEST  IMAGE ID  SIZE  PINNED\n\
         <open>/lib/tool  1  <tool-digest>  <tool>  <size>  false\n\
         <open>/lib/tool  2  <tool-digest>  <tool>  <size>  false",
    )?;
    session.shows(
        &["images", "--no-trunc", &private],
        "IMAGE  TAG  IMAGE ID  SIZE\n<closed>/lib/secret  1  <secret>  <size>",
    )?;
    session.shows(
        &["images", "-v", &private],
        &format!("ID: <secret>\nRepoTags: <closed>/lib/secret:1\nRepoDigests: <closed>/lib/secret@<secret-digest>\nSize: {size}\nUid:"),
    )?;
    session.shows(&["images", "-q", &tagged], "<tool>")?;
    session.shows(&["images", "-q", "--filter", "reference=lib/secret"], "<secret>")?;
    session.shows(&["images", "-q", "--filter", "dangling=true"], "")?;
    session.has(
        &["images", "-o", "json", &tagged],
        "/images/0/repoTags",
        &json!(["<open>/lib/tool:1", "<open>/lib/tool:2"]),
    )?;
    let yaml = session.run(&["images", "-o", "yaml"])?;
    ensure!(yaml.contains(IMAGE) && yaml.contains("pinned: false"), "{yaml}");

    let expected = json!({
        "id": "<tool>",
        "repoTags": ["<open>/lib/tool:1", "<open>/lib/tool:2"],
        "repoDigests": ["<open>/lib/tool@<tool-digest>"],
        "size": tool_size,
        "uid": { "value": "0" },
        "username": "",
        "pinned": false,
        "spec": { "image": "<tool>", "imageRef": "", "annotations": {}, "userSpecifiedImage": "", "runtimeHandler": "" },
    });
    for reference in [&tagged, &digested, tool.id(), &tool.id()["sha256:".len()..]] {
        session.has(&["inspecti", "-q", reference], "/status", &expected)?;
    }
    session.has(&["inspecti", IMAGE], "/info/imageSpec/config/Cmd", &json!(["/bin/sh"]))?;
    session.shows(&["inspecti", "-o", "go-template", "--template", "{{.status.size}}", &private], &size)?;
    session.shows(
        &["inspecti", "-q", "-o", "table", &private],
        "ID: <secret>\nTag: <closed>/lib/secret:1\nDigest: <closed>/lib/secret@<secret-digest>\nSize: <size>",
    )?;
    session.has(&["inspecti", "--name", &private], "/status/id", &json!("<secret>"))?;
    let yaml = session.run(&["inspecti", "-o", "yaml", &private])?;
    ensure!(yaml.contains(&format!("size: \"{size}\"")), "{yaml}");
    session.fails(&["inspecti", "vaina.test/nothing:1"], &["no such image"]).await?;

    let usage = session.json(&["imagefsinfo"])?;
    let [images, containers] = ["imageFilesystems", "containerFilesystems"].map(|kind| &usage["status"][kind][0]);
    ensure!(
        images["fsId"]["mountpoint"] == "/var/lib/vaina/images" && images["usedBytes"]["value"] != "0",
        "{usage:#}"
    );
    ensure!(containers["inodesUsed"]["value"] == "0", "there is no container: {usage:#}");
    session.shows(
        &["imagefsinfo", "-o", "go-template", "--template", "{{(index .status.imageFilesystems 0).fsId.mountpoint}}"],
        "/var/lib/vaina/images",
    )?;
    let table = session.run(&["imagefsinfo", "-o", "table"])?;
    ensure!(table.contains("Mountpoint[0]: /var/lib/vaina/images"), "{table}");
    ensure!(session.run(&["imagefsinfo", "-o", "yaml"])?.contains("imageFilesystems:"));

    // By a tag only that tag goes, whatever crictl says; by its id an image goes with all names.
    session.shows(&["rmi", &tagged], "Deleted: <open>/lib/tool:1\nDeleted: <open>/lib/tool:2")?;
    session.fails(&["rmi", &tagged], &["no such image"]).await?;
    session.has(&["inspecti", "-q", tool.id()], "/status/repoTags", &json!(["<open>/lib/tool:2"]))?;
    session.shows(&["rmi", tool.id()], "Deleted: <open>/lib/tool:2")?;
    session.shows(&["rmi", secret.id()], "Deleted: <closed>/lib/secret:1")?;
    session.shows(&["images", "-q"], "<base>")
}
