//! What verbose answers say under the names that tools read from containerd.

use std::{collections::HashMap, path::Path};

use anyhow::{Context as _, Result, ensure};
use prost::Message as _;
use serde_json::{Value, json};
use vaina_proto::cri::{self, ImageStatusRequest, PodSandboxStatusRequest, StatusRequest};
use vaina_tests::{
    build::Container,
    client::spec,
    node::{IMAGE, e2e},
};

/// An answer's text, which must be JSON.
fn json_of(info: &HashMap<String, String>, name: &str) -> Result<Value> {
    let text = info.get(name).with_context(|| format!("no {name} in {info:?}"))?;
    serde_json::from_str(text).with_context(|| format!("{name}: {text}"))
}

#[test]
fn the_daemon_says_what_it_is_and_how_it_is_configured() {
    e2e(async |node| {
        let quiet = node.cri().status(StatusRequest::default()).await?;
        ensure!(quiet.info.is_empty(), "{:?}", quiet.info);
        let info = node.cri().status(StatusRequest { verbose: true }).await?.info.into_iter().collect();
        let config = json_of(&info, "config")?;
        assert_eq!((&config["root"], &config["network"]["bridge"]), (&json!("/var/lib/vaina"), &json!("vaina0")));
        let version = json_of(&info, "version")?;
        assert_eq!(version["cri"], "v1");
        ensure!(version["kernel"].as_str().is_some_and(|kernel| kernel.contains('.')), "{version}");
        assert_eq!(json_of(&info, "network")?["problem"], Value::Null);
        assert_eq!(info["lastCNILoadStatus"], "OK");
        let handlers = json_of(&info, "handlers")?;
        assert_eq!(handlers[""]["runtimeType"], "io.containerd.vaina.v1");
        assert_eq!(handlers["crun"]["options"]["binary_name"], "crun");
        assert_eq!(json_of(&info, "objects")?["podSandboxes"], 0);
        let pod = node.pod("counted");
        let sandbox = node.run_pod(&pod).await?;
        let info = node.cri().status(StatusRequest { verbose: true }).await?.info.into_iter().collect();
        assert_eq!(json_of(&info, "objects")?["podSandboxes"], 1);
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

#[test]
fn a_pod_says_its_config_network_and_runtime() {
    e2e(async |node| {
        let pod = node.pod("told").handler("crun").annotation("a/b", "c");
        let sandbox = node.run_pod(&pod).await?;
        let request = PodSandboxStatusRequest { pod_sandbox_id: sandbox.clone(), verbose: true };
        let answer = node.cri().pod_sandbox_status(request.clone()).await?;
        let info = json_of(&answer.info.into_iter().collect(), "info")?;
        assert_eq!(
            (&info["config"]["metadata"]["name"], &info["config"]["annotations"]["a/b"]),
            (&json!("told"), &json!("c"))
        );
        assert_eq!((&info["runtimeHandler"], &info["runtimeType"]), (&json!("crun"), &json!("io.containerd.vaina.v1")));
        assert_eq!(info["runtimeOptions"]["binary_name"], "crun");
        assert_eq!((&info["processStatus"], &info["netNamespaceClosed"]), (&json!("Ready"), &json!(false)));
        let address = &info["cniResult"]["Interfaces"]["eth0"]["IPConfigs"][0]["IP"];
        assert_eq!(address.as_str().context("an address")?, node.address(&sandbox).await?);
        let netns = info["runtimeSpec"]["linux"]["namespaces"][0]["path"].as_str().context("a path")?;
        ensure!(Path::new(netns).exists(), "{info}");
        node.cri().stop_pod_sandbox(&sandbox).await?;
        let info = json_of(&node.cri().pod_sandbox_status(request).await?.info.into_iter().collect(), "info")?;
        assert_eq!((&info["netNamespaceClosed"], &info["cniResult"]), (&json!(true), &Value::Null));
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

#[test]
fn a_container_says_its_config_spec_and_runtime_and_stays_small() {
    e2e(async |node| {
        let pod = node.pod("told");
        let sandbox = node.run_pod(&pod).await?;
        let mut container = Container::new("c", IMAGE).sh("exec sleep 1000").env("A", "b");
        container.security().seccomp = Some(cri::SecurityProfile::default());
        let id = node.start(&sandbox, &pod, &container).await?;
        let request = cri::ContainerStatusRequest { container_id: id.clone(), verbose: true };
        let answer = node.cri().container_status(request).await?;
        let size = answer.encoded_len();
        ensure!(size < 64 << 10, "{size} bytes");
        let info = json_of(&answer.info.into_iter().collect(), "info")?;
        assert_eq!((&info["sandboxID"], &info["removing"]), (&json!(sandbox), &json!(false)));
        assert_eq!((&info["snapshotKey"], &info["snapshotter"]), (&json!(id), &json!("overlayfs")));
        assert_eq!(info["runtimeType"], "io.containerd.vaina.v1");
        // As Go writes bytes.
        assert_eq!(info["config"]["envs"], json!([{ "key": "A", "value": "Yg==" }]));
        assert_eq!(info["config"]["log_path"], "c/0.log");
        let spec = &info["runtimeSpec"];
        assert_eq!(spec["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
        let env = spec["process"]["env"].as_array().context("variables")?;
        ensure!(env.contains(&json!("A=b")), "{env:?}");
        // What is too large for an answer is left out of it.
        let large = (0..20).fold(Container::new("large", IMAGE).sh("exec sleep 1000"), |container, number| {
            container.annotation(&format!("large/{number}"), &"x".repeat(60 << 10))
        });
        let id = node.create(&sandbox, &pod, &large).await?;
        let request = cri::ContainerStatusRequest { container_id: id, verbose: true };
        let answer = node.cri().container_status(request).await?;
        let size = answer.encoded_len();
        ensure!(size < 2 << 20, "{size} bytes");
        let info = json_of(&answer.info.into_iter().collect(), "info")?;
        assert_eq!(info["config"], Value::Null);
        ensure!(info["runtimeSpec"]["process"].is_object(), "{info}");
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

#[test]
fn an_image_says_its_chain_and_config() {
    e2e(async |node| {
        let request = ImageStatusRequest { image: Some(spec(IMAGE)), verbose: true };
        let info = json_of(&node.cri().image_status(request).await?.info.into_iter().collect(), "info")?;
        ensure!(info["chainID"].as_str().is_some_and(|id| id.starts_with("sha256:") && id.len() == 71), "{info}");
        assert_eq!(info["imageSpec"]["os"], "linux");
        ensure!(info["imageSpec"]["rootfs"]["diff_ids"].is_array(), "{info}");
        Ok(())
    });
}
