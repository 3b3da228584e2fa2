//! Images that the kubelet pulls.

use serde_json::Value;
use vaina_tests::{
    images::{self, layer::Layer},
    registry::{FakeRegistry, Manner},
};

use crate::kubelet::{container, kubelet};

fn manifest(name: &str, image: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  restartPolicy: Never
  containers:
  - {{name: c, image: '{image}', imagePullPolicy: Always, command: [cat, /text]}}
"
    )
}

#[test]
fn an_image_is_pulled_and_one_that_is_not_there_is_waited_for() {
    kubelet(async |node, kubelet| {
        let registry = FakeRegistry::start(Manner::Open)?;
        let text = Layer::new().file("text", 0o644, b"pulled\n");
        let image = images::base(&images::probe_beside_this_program()?)?.layer(text).build()?;
        let name = format!("{}/app:1", registry.address);
        kubelet.allow("ErrImagePull");
        kubelet.allow("ImagePullBackOff");
        kubelet.allow("PullImage from image service failed");
        kubelet.allow("Failed to pull image");
        node.allow("failed");
        kubelet.apply("pulled", &manifest("pulled", &name))?;
        let waits = |pod: &Value| container(pod, "c")["state"]["waiting"]["reason"] == "ErrImagePull";
        let pod = kubelet.wait_pod("pulled", "without its image", waits).await?;
        let message = container(&pod, "c")["state"]["waiting"]["message"].to_string();
        assert!(message.contains("not found") && message.contains(&name), "{message}");

        registry.add("app", "1", &image)?;
        let pod = kubelet.wait_pod("pulled", "done", |pod| pod["status"]["phase"] == "Succeeded").await?;
        let status = container(&pod, "c");
        assert_eq!(status["image"], name, "{status:#}");
        let digest = format!("{}/app@{}", registry.address, image.manifest.digest);
        assert_eq!(status["imageID"], digest, "{status:#}");
        assert_eq!(kubelet.container_log("pulled", "c")?, "pulled\n");
        kubelet.withdraw("pulled")?;
        kubelet.wait_removed(node).await?;
        Ok(node.cri().remove_image(&name).await?)
    });
}
