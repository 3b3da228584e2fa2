//! Images as volumes: shown whole or in part, read-only, gone with the pod, and never removed from under a container.

use std::fs;

use anyhow::{Context as _, Result};
use tonic::Code;
use vaina_proto::cri::{ContainerState, ImageSpec, Mount, MountPropagation};
use vaina_sys::mount;
use vaina_tests::{
    build::{Container, Pod},
    client,
    images::{
        Image,
        archive::{self, Tagged},
        layer::Layer,
    },
    leak,
    node::{IMAGE, Node, e2e},
};

use crate::{
    assert_failed,
    handlers::{as_it_is, each},
};

const DATA: &str = "vaina.test/data:1";

/// Two layers: the upper hides and replaces. Links lead out of the image, to a file, and to a directory of it.
fn data() -> Image {
    let lower = Layer::new()
        .directory("etc/", 0o755)
        .file("etc/passwd", 0o644, b"of the image")
        .directory("models/", 0o755)
        .directory("models/small/", 0o755)
        .file("models/small/weights", 0o644, b"small")
        .file("models/hidden", 0o644, b"hidden")
        .symlink("current", "models/small")
        .symlink("absolute", "/models/small")
        .symlink("host", "/../../../../etc")
        .symlink("upward", "../../../../etc");
    let upper = Layer::new().whiteout("models/hidden").file("models/small/weights", 0o644, b"small, second").file(
        "models/run",
        0o755,
        b"#!/bin/sh\necho ran\n",
    );
    Image::new().layer(lower).layer(upper)
}

fn import(node: &Node, name: &str, image: &Image) -> Result<()> {
    let path = node.directory().join("volume.tar");
    archive::oci_archive(&path, &[(name, Tagged::Image(&image.build()?))])?;
    node.import(&path).map(drop)
}

fn volume(image: &str, sub_path: &str) -> Mount {
    Mount {
        container_path: "/data".into(),
        readonly: true,
        image: Some(client::spec(image)),
        image_sub_path: sub_path.into(),
        ..Default::default()
    }
}

fn with(mut container: Container, mount: Mount) -> Container {
    container.config.mounts.push(mount);
    container
}

/// Runs a script beside the volume and answers what it printed.
async fn shown(node: &Node, sandbox: &str, pod: &Pod, name: &str, mount: Mount, script: &str) -> Result<String> {
    let (status, text) = node.run_to_exit(sandbox, pod, &with(Container::new(name, IMAGE).sh(script), mount)).await?;
    anyhow::ensure!(status.exit_code == 0, "{name}: {text} {status:?}");
    Ok(text)
}

// proves: Mount.{image, image_sub_path}
#[test]
fn an_image_is_shown_read_only_with_every_handler() {
    each(as_it_is, async |node, pod, sandbox| {
        import(node, DATA, &data())?;
        let host = mount::table()?;
        let script = "cat /data/models/small/weights; echo; ls /data/models; /data/models/run; \
                      for way in touch mkdir; do $way /data/models/new 2>&1 | grep -c Read-only; done; \
                      rm /data/models/run 2>&1 | grep -c Read-only; grep ' /data ' /proc/self/mounts | cut -d' ' -f3";
        let text = shown(node, sandbox, pod, "whole", volume(DATA, ""), script).await?;
        assert_eq!(text, "small, second\nrun\nsmall\nran\n1\n1\n1\noverlay\n");

        // In part, and what a link names of the image itself.
        for (name, sub_path) in [("part", "models/small"), ("link", "current"), ("absolute", "absolute/.")] {
            let text = shown(node, sandbox, pod, name, volume(DATA, sub_path), "ls /data; cat /data/weights").await?;
            assert_eq!(text, "weights\nsmall, second", "{name}");
        }
        // Nothing leads out: what climbs stays below the image's root.
        for name in ["host", "upward"] {
            let text = shown(node, sandbox, pod, name, volume(DATA, name), "ls /data; cat /data/passwd").await?;
            assert_eq!(text, "passwd\nof the image", "{name}");
        }
        // As often as it is asked for, and with the client's own options.
        let mut twice = volume(DATA, "models");
        twice.container_path = "/again/models".into();
        twice.mount_options = vec!["noexec".into()];
        let both = with(
            Container::new("both", IMAGE).sh("/data/models/run; /again/models/run 2>&1 | grep -o denied; sleep 1000"),
            twice,
        );
        let id = node.start(sandbox, pod, &with(both, volume(DATA, ""))).await?;
        assert_eq!(node.wait_log(&id, "denied").await?, "ran\ndenied\n");
        assert_eq!(mount::table()?.len(), host.len(), "the host has no mount of it: {:#?}", mount::table()?);
        node.cri().stop_container(&id, 0).await?;
        node.cri().remove_container(&id).await?;
        Ok(node.cri().remove_image(DATA).await?)
    });
}

// proves: ContainerStatus.mounts, Mount.image, ImageSpec.{image, image_ref, user_specified_image}
#[test]
fn a_status_tells_the_image_and_the_kubelets_collector_finds_it_in_use() {
    e2e(async |node| {
        import(node, DATA, &data())?;
        let image = node.cri().image(DATA).await?.context("it was imported")?;
        let pod = node.pod("told").host_network();
        let sandbox = node.run_pod(&pod).await?;
        // By the kubelet's way: the id that the pull answered, beside what the author wrote.
        let spec = ImageSpec { image: image.id.clone(), user_specified_image: DATA.into(), ..Default::default() };
        let mount = Mount { image: Some(spec), ..volume("", "models") };
        let other = node.volume("other")?;
        let container = with(Container::new("c", IMAGE).mount(&other, "/other").sh("sleep 1000"), mount);
        let id = node.start(&sandbox, &pod, &container).await?;
        node.kill_daemon()?;
        node.start_daemon().await?;
        let status = node.cri().container(&id).await?;
        assert_eq!(status.state(), ContainerState::ContainerRunning);
        let [plain, told] = &status.mounts[..] else { anyhow::bail!("two mounts: {:?}", status.mounts) };
        assert_eq!((plain.host_path.as_str(), &plain.image), (other.to_str().context("text")?, &None));
        let spec = told.image.clone().context("the mount's image")?;
        assert_eq!((spec.image.as_str(), spec.user_specified_image.as_str()), (image.id.as_str(), DATA));
        let reference = image.repo_digests.first().unwrap_or(&image.id);
        assert_eq!((&spec.image_ref, told.image_sub_path.as_str(), told.readonly), (reference, "models", true));
        node.remove_pod(&sandbox).await?;
        Ok(node.cri().remove_image(DATA).await?)
    });
}

#[test]
fn an_image_that_is_removed_stays_on_disk_for_those_who_show_it() {
    e2e(async |node| {
        let before = leak::image_store(&node.images())?;
        import(node, DATA, &data())?;
        let with_it = leak::image_store(&node.images())?;
        let pod = node.pod("held").host_network();
        let sandbox = node.run_pod(&pod).await?;
        let running = with(Container::new("running", IMAGE).sh("sleep 1000"), volume(DATA, "models"));
        let running = node.start(&sandbox, &pod, &running).await?;
        let created = with(Container::new("created", IMAGE).sh("cat /data/small/weights"), volume(DATA, "models"));
        let created = node.create(&sandbox, &pod, &created).await?;
        node.cri().remove_image(DATA).await?;
        assert!(node.cri().image(DATA).await?.is_none(), "it is gone from the list at once");
        // Also for the daemon that comes after.
        node.kill_daemon()?;
        node.start_daemon().await?;
        assert!(node.cri().image(DATA).await?.is_none());
        assert_eq!(leak::image_store(&node.images())?, with_it);
        assert_eq!(node.sh(&running, "cat /data/small/weights").await?, "small, second");
        node.cri().start_container(&created).await?;
        let status = node.wait_exited(&created).await?;
        assert_eq!((status.exit_code, node.wait_log(&created, "small").await?.as_str()), (0, "small, second"));
        node.remove_pod(&sandbox).await?;
        node.check_images(&before).await
    });
}

// proves: Mount.{image, image_sub_path, readonly}
#[test]
fn what_can_not_be_shown_is_refused_with_the_kubelets_word() {
    e2e(async |node| {
        let before = leak::image_store(&node.images())?;
        import(node, DATA, &data())?;
        let pod = node.pod("refused").host_network();
        let sandbox = node.run_pod(&pod).await?;
        let writable = Mount { readonly: false, ..volume(DATA, "") };
        let both = Mount { host_path: "/srv".into(), ..volume(DATA, "") };
        let shared = Mount { propagation: MountPropagation::PropagationBidirectional.into(), ..volume(DATA, "") };
        for (mount, code, words) in [
            (volume("vaina.test/none:1", ""), Code::NotFound, &["vaina.test/none:1", "/data", "must be pulled"][..]),
            (volume(DATA, "models/none"), Code::NotFound, &["image_sub_path \"models/none\"", "does not exist", DATA]),
            (volume(DATA, "models/hidden"), Code::NotFound, &["models/hidden", "does not exist"]),
            (volume(DATA, "models/run"), Code::InvalidArgument, &["models/run", "is not a directory"]),
            (volume(DATA, "../etc"), Code::InvalidArgument, &["image_sub_path \"../etc\"", "below the image's root"]),
            (volume(DATA, "/etc"), Code::InvalidArgument, &["image_sub_path \"/etc\"", "below the image's root"]),
            (writable, Code::InvalidArgument, &["readonly", "must be set"]),
            (both, Code::InvalidArgument, &["host_path", "/srv"]),
            (shared, Code::InvalidArgument, &["propagation", "bidirectional"]),
        ] {
            let tried = node.create(&sandbox, &pod, &with(Container::new("c", IMAGE), mount)).await;
            let message = tried.as_ref().map_err(|status| status.message().to_owned()).unwrap_err();
            assert!(message.starts_with("ImageVolumeMountFailed"), "the kubelet counts by it: {message}");
            assert_failed(tried, code, words);
        }
        let mut lost = volume("", "models");
        lost.image = None;
        lost.host_path = "/srv".into();
        let tried = node.create(&sandbox, &pod, &with(Container::new("c", IMAGE), lost)).await;
        assert_failed(tried, Code::InvalidArgument, &["image_sub_path", "needs an image"]);
        assert!(fs::read_dir("/run/vaina/containers")?.next().is_none(), "nothing is left of them");
        // Nobody holds it.
        node.cri().remove_image(DATA).await?;
        node.check_images(&before).await?;
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

#[test]
fn images_of_one_layer_and_of_none_are_shown_too() {
    e2e(async |node| {
        let pod = node.pod("small").host_network();
        let sandbox = node.run_pod(&pod).await?;
        // A whiteout of nothing shows as nothing.
        let one = Image::new().layer(Layer::new().directory("d/", 0o755).file("d/file", 0o644, b"x").whiteout("gone"));
        for (name, image, expected) in [("one", one, "/data/d/file\n"), ("none", Image::new(), "")] {
            import(node, DATA, &image)?;
            let text = shown(
                node,
                &sandbox,
                &pod,
                name,
                volume(DATA, ""),
                "find /data ! -type d; touch /data/x 2>/dev/null && echo written; true",
            )
            .await?;
            assert_eq!(text, expected, "{name}");
            node.cri().remove_image(DATA).await?;
        }
        // More layers than one page of mount options holds.
        let many = (0..150).fold(Image::new(), |image, number| {
            image.layer(Layer::new().directory("d/", 0o755).file(&format!("d/{number}"), 0o644, b"x"))
        });
        import(node, DATA, &many)?;
        assert_eq!(shown(node, &sandbox, &pod, "many", volume(DATA, "d"), "ls /data | wc -l").await?, "150\n");
        node.remove_pod(&sandbox).await?;
        Ok(node.cri().remove_image(DATA).await?)
    });
}
