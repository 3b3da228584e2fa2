//! What containers of a pod share, and what they don't.

use std::fs;

use anyhow::{Context as _, Result};
use nix::mount::MsFlags;
use vaina_proto::cri::{MountPropagation, NamespaceMode};
use vaina_sys::mount;
use vaina_tests::{
    build::Container,
    node::{IMAGE, e2e},
};

fn namespace(pid: u32, kind: &str) -> Result<String> {
    let link = format!("/proc/{pid}/ns/{kind}");
    Ok(fs::read_link(&link).with_context(|| link.clone())?.to_string_lossy().into_owned())
}

#[test]
fn containers_are_in_the_shims_namespaces_and_not_in_the_nodes() {
    e2e(async |node| {
        let pod = node.pod("ns");
        let id = node.run_pod(&pod).await?;
        let shim = node.cri().sandbox_pid(&id).await?;
        let mut pids = Vec::new();
        for name in ["one", "two"] {
            let container = node.start(&id, &pod, &Container::new(name, IMAGE).sh("sleep 1000")).await?;
            pids.push(node.cri().container_pid(&container).await?);
        }
        for kind in ["net", "ipc", "uts"] {
            let of_shim = namespace(shim, kind)?;
            assert_ne!(of_shim, namespace(std::process::id(), kind)?, "{kind}");
            for pid in &pids {
                assert_eq!(namespace(*pid, kind)?, of_shim, "{kind}");
            }
        }
        for kind in ["pid", "mnt"] {
            assert_ne!(namespace(pids[0], kind)?, namespace(pids[1], kind)?, "{kind}");
        }
        node.remove_pod(&id).await?;
        Ok(())
    });
}

#[test]
fn a_pod_with_one_pid_namespace_sees_all_its_processes_and_reaps_them() {
    e2e(async |node| {
        let pod = node.pod("pids").pid(NamespaceMode::Pod);
        let id = node.run_pod(&pod).await?;
        let mut one = Container::new("one", IMAGE).sh("sleep 1111");
        one.security().namespace_options = Some(pod.clone().options().clone());
        let one = node.start(&id, &pod, &one).await?;
        let mut two = Container::new("two", IMAGE).sh("sleep 2222");
        two.security().namespace_options = Some(pod.clone().options().clone());
        let two = node.start(&id, &pod, &two).await?;
        let seen = node.sh(&two, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").await?;
        assert!(seen.contains("sleep 1111") && seen.contains("sleep 2222"), "{seen}");
        node.cri().stop_container(&one, 0).await?;
        let seen = node.sh(&two, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").await?;
        assert!(!seen.contains("sleep 1111") && seen.contains("sleep 2222"), "{seen}");
        node.remove_pod(&id).await?;
        Ok(())
    });
}

#[test]
fn containers_of_a_pod_reach_each_other_on_localhost_and_by_shared_memory() {
    e2e(async |node| {
        let pod = node.pod("shared");
        let id = node.run_pod(&pod).await?;
        let other_pod = node.pod("other");
        let other_id = node.run_pod(&other_pod).await?;
        let serve = "echo x > /dev/shm/x; echo page > /tmp/index.html; httpd -p 8080 -h /tmp; echo up; sleep 1000";
        let one = node.start(&id, &pod, &Container::new("one", IMAGE).sh(serve)).await?;
        let two = node.start(&id, &pod, &Container::new("two", IMAGE).sh("sleep 1000")).await?;
        let far = node.start(&other_id, &other_pod, &Container::new("far", IMAGE).sh("sleep 1000")).await?;
        node.wait_log(&one, "up").await?;
        assert_eq!(node.sh(&two, "wget -qO- http://127.0.0.1:8080/").await?.trim(), "page");
        assert_eq!(node.sh(&two, "cat /dev/shm/x").await?.trim(), "x");
        assert_eq!(node.sh(&far, "ls /dev/shm").await?.trim(), "");
        let address = node.address(&id).await?;
        assert_eq!(node.sh(&far, &format!("wget -qO- http://{address}:8080/")).await?.trim(), "page");
        node.remove_pod(&id).await?;
        node.remove_pod(&other_id).await?;
        Ok(())
    });
}

#[test]
fn mounts_made_on_the_host_later_are_seen_as_propagation_says() {
    e2e(async |node| {
        let pod = node.pod("late");
        let id = node.run_pod(&pod).await?;
        let volume = node.volume("later")?;
        let inner = volume.join("inner");
        fs::create_dir(&inner)?;
        // After the pod has started, before the container is made: the kubelet's way of mounting volumes.
        mount::filesystem("tmpfs", "late", &inner, MsFlags::empty(), "")?;
        fs::write(inner.join("file"), "seen")?;
        let container = Container::new("c", IMAGE)
            .mount_with(&volume, "/later", false, MountPropagation::PropagationHostToContainer)
            .sh("sleep 1000");
        let container = node.start(&id, &pod, &container).await?;
        assert_eq!(node.sh(&container, "cat /later/inner/file").await?.trim(), "seen");
        // And while it runs, both ways that the host goes.
        let second = volume.join("second");
        fs::create_dir(&second)?;
        mount::filesystem("tmpfs", "late", &second, MsFlags::empty(), "")?;
        fs::write(second.join("file"), "too")?;
        assert_eq!(node.sh(&container, "cat /later/second/file").await?.trim(), "too");
        mount::detach(&inner)?;
        assert_eq!(node.sh(&container, "ls /later/inner").await?.trim(), "");
        mount::detach(&second)?;
        node.remove_pod(&id).await?;
        Ok(())
    });
}
