//! Fields that few clients set and every client may.

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MsFlags, mount, umount};
use tonic::Code;
use vaina_proto::cri::{Capability, ImageFsInfoRequest, ListContainerStatsRequest, RuntimeCondition, StatusRequest};
use vaina_tests::{
    build::Container,
    node::{IMAGE, Node, e2e, e2e_cri},
};

use crate::assert_failed;

async fn runtime_ready(node: &Node) -> Result<RuntimeCondition> {
    let status = node.cri().status(StatusRequest::default()).await?.status.context("status")?;
    let ready = status.conditions.into_iter().find(|condition| condition.r#type == "RuntimeReady");
    ready.context("the condition is there")
}

// proves: Mount.mount_options, StatusResponse.features, RuntimeFeatures.{mount_options, supplemental_groups_policy}
#[test]
fn mount_options_act_and_others_are_refused() {
    e2e_cri(async |node| {
        let features = node.cri().status(StatusRequest::default()).await?.features.context("features")?;
        ensure!(features.mount_options && features.supplemental_groups_policy, "{features:?}");
        let source = node.volume("v")?;
        for handler in ["", "crun", "runc"] {
            let pod = node.pod(&format!("options{handler}")).handler(handler);
            let sandbox = node.run_pod(&pod).await?;
            let mut config = Container::new("c", IMAGE).sh("sleep 1000").mount(&source, "/v");
            config.config.mounts[0].mount_options = ["noexec", "nosuid", "nodev"].map(str::to_owned).into();
            let id = node.start(&sandbox, &pod, &config).await?;
            let line = node.sh(&id, "grep ' /v ' /proc/mounts").await?;
            let options = line.split(' ').nth(3).context("options")?.split(',').collect::<Vec<_>>();
            for option in ["noexec", "nosuid", "nodev", "rw"] {
                ensure!(options.contains(&option), "{handler}: {line}");
            }
            node.sh(&id, "cp /bin/busybox /v/program && ! /v/program true").await?;
            let mut wrong = Container::new("wrong", IMAGE).mount(&source, "/v");
            wrong.config.mounts[0].mount_options = vec!["size=1g".to_owned()];
            assert_failed(node.create(&sandbox, &pod, &wrong).await, Code::InvalidArgument, &["size=1g"]);
            node.remove_pod(&sandbox).await?;
        }
        Ok(())
    });
}

// proves: Capability.add_ambient_capabilities
#[test]
fn ambient_capabilities_reach_a_process_without_root() {
    e2e_cri(async |node| {
        let pod = node.pod("ambient");
        let sandbox = node.run_pod(&pod).await?;
        let sets = "grep -E '^Cap(Eff|Amb)' /proc/self/status";
        let plain = Container::new("plain", IMAGE).sh(sets).user(1000);
        let (_, text) = node.run_to_exit(&sandbox, &pod, &plain).await?;
        assert_eq!(text.matches("0000000000000000").count(), 2, "{text}");
        let mut config = Container::new("ambient", IMAGE).sh(sets).user(1000);
        config.security().capabilities =
            Some(Capability { add_ambient_capabilities: vec!["NET_BIND_SERVICE".to_owned()], ..Default::default() });
        let (_, text) = node.run_to_exit(&sandbox, &pod, &config).await?;
        assert_eq!(text.matches("0000000000000400").count(), 2, "{text}");
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

// proves: ImageFsInfoResponse.container_filesystems
#[test]
fn both_file_systems_are_counted() {
    e2e_cri(async |node| {
        let pod = node.pod("written");
        let sandbox = node.run_pod(&pod).await?;
        let config = Container::new("c", IMAGE).sh("dd if=/dev/zero of=/written bs=1M count=5; echo done; sleep 1000");
        let id = node.start(&sandbox, &pod, &config).await?;
        node.wait_log(&id, "done").await?;
        // Layers are measured for statistics, and not for this call.
        node.cri().list_container_stats(ListContainerStatsRequest::default()).await?;
        let info = node.cri().image_fs_info(ImageFsInfoRequest {}).await?;
        let (image, container) = (&info.image_filesystems[0], &info.container_filesystems[0]);
        assert_eq!(image.fs_id, container.fs_id, "a kubelet takes two mount points for two disks");
        let used = container.used_bytes.context("used bytes")?.value;
        ensure!(used >= 5 << 20, "{info:?}");
        ensure!(image.used_bytes.context("used bytes")?.value > 0, "{info:?}");
        ensure!(container.inodes_used.context("inodes")?.value > 0, "{info:?}");
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

// proves: RuntimeCondition.{status, reason, message}
#[test]
fn a_node_that_can_run_nothing_says_so() {
    e2e(async |node| {
        let ready = runtime_ready(node).await?;
        ensure!(ready.status && ready.reason.is_empty(), "{ready:?}");
        // Over the store, whose own file system can't become read-only as long as the record is open.
        mount(Some("tmpfs"), "/var/lib/vaina", Some("tmpfs"), MsFlags::MS_RDONLY, None::<&str>)?;
        let refused = runtime_ready(node).await;
        umount("/var/lib/vaina")?;
        let refused = refused?;
        assert_eq!((refused.status, refused.reason.as_str()), (false, "StoreReadOnly"), "{refused:?}");
        ensure!(refused.message.contains("/var/lib/vaina"), "{refused:?}");
        ensure!(runtime_ready(node).await?.status);
        Ok(())
    });
}
