//! What containers of a pod share, and what they don't.

use std::fs;

use anyhow::{Context as _, Result};
use nix::{
    mount::MsFlags,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use vaina_proto::cri::{MountPropagation, NamespaceMode};
use vaina_sys::{
    mount,
    sysvipc::{self, Key},
};
use vaina_tests::{
    build::Container,
    node::{IMAGE, e2e_cri},
};

fn namespace(pid: u32, kind: &str) -> Result<String> {
    let link = format!("/proc/{pid}/ns/{kind}");
    Ok(fs::read_link(&link).with_context(|| link.clone())?.to_string_lossy().into_owned())
}

// proves: NamespaceMode.CONTAINER
#[test]
fn containers_are_in_the_shims_namespaces_and_not_in_the_nodes() {
    e2e_cri(async |node| {
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
    e2e_cri(async |node| {
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
    e2e_cri(async |node| {
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
    e2e_cri(async |node| {
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

/// Keys and names that no other test has, since some are seen by the whole machine.
fn own_key(salt: u32) -> i32 {
    (((std::process::id() << 8) | salt) & 0x7fff_ffff).cast_signed()
}

#[test]
fn semaphores_and_memory_are_shared_in_a_pod_and_not_between_pods() {
    e2e_cri(async |node| {
        let (pod, other) = (node.pod("near"), node.pod("far"));
        let (id, other_id) = (node.run_pod(&pod).await?, node.run_pod(&other).await?);
        let idle = |name: &str| Container::new(name, IMAGE).sh("sleep 1000");
        let one = node.start(&id, &pod, &idle("one")).await?;
        let two = node.start(&id, &pod, &idle("two")).await?;
        let far = node.start(&other_id, &other, &idle("far")).await?;
        let (semaphore, segment) = (own_key(1), own_key(2));
        for make in [
            format!("sem-create {semaphore} 5"),
            format!("seg-create {segment} shared-by-all"),
            "shm-create /memory shared-too".to_owned(),
            "psem-create /semaphore 0".to_owned(),
        ] {
            node.sh(&one, &format!("probe {make}")).await?;
        }
        let reads = [
            (format!("sem-value {semaphore}"), "5"),
            (format!("seg-read {segment}"), "shared-by-all"),
            ("shm-read /memory".to_owned(), "shared-too"),
        ];
        for (read, value) in &reads {
            assert_eq!(node.sh(&two, &format!("probe {read}")).await?, *value, "{read}");
            let elsewhere = node.exec(&far, &["/bin/sh", "-c", &format!("probe {read}")]).await?;
            assert!(elsewhere.code == 1 && elsewhere.stderr.contains("No such file"), "{read}: {elsewhere:?}");
        }
        assert!(node.sh(&far, "probe psem-post /semaphore").await.is_err(), "no semaphore of another pod");
        // The node has none of them either.
        assert!(sysvipc::semaphore_value(Key(semaphore)).is_err() && sysvipc::segment_read(Key(segment)).is_err());
        // One waits, the other wakes it.
        let (waited, posted) =
            tokio::join!(node.sh(&one, "probe psem-wait /semaphore"), node.sh(&two, "probe psem-post /semaphore"));
        waited.and(posted)?;
        // The same keys mean other things elsewhere.
        node.sh(&far, &format!("probe sem-create {semaphore} 9")).await?;
        assert_eq!(node.sh(&two, &format!("probe sem-value {semaphore}")).await?, "5");
        // They are the pod's: they outlive who made them.
        node.cri().stop_container(&one, 0).await?;
        node.cri().remove_container(&one).await?;
        let next = node.start(&id, &pod, &idle("one").attempt(1)).await?;
        for (read, value) in &reads {
            assert_eq!(node.sh(&next, &format!("probe {read}")).await?, *value, "{read}");
        }
        node.remove_pod(&id).await?;
        node.remove_pod(&other_id).await?;
        // And end with it.
        let id = node.run_pod(&pod).await?;
        let again = node.start(&id, &pod, &idle("one")).await?;
        for (read, _) in &reads {
            assert!(node.sh(&again, &format!("probe {read}")).await.is_err(), "{read} of a pod that is gone");
        }
        node.remove_pod(&id).await?;
        Ok(())
    });
}

// proves: NamespaceOption.ipc, LinuxSandboxSecurityContext.namespace_options
#[test]
fn a_pod_in_the_nodes_ipc_namespace_shares_it_with_the_node() {
    e2e_cri(async |node| {
        let pod = node.pod("host-ipc").host_ipc();
        let id = node.run_pod(&pod).await?;
        let container = node.start(&id, &pod, &Container::new("c", IMAGE).sh("sleep 1000")).await?;
        let pid = node.cri().container_pid(&container).await?;
        assert_eq!(namespace(pid, "ipc")?, namespace(std::process::id(), "ipc")?);
        assert_ne!(namespace(pid, "uts")?, namespace(std::process::id(), "uts")?);
        let key = own_key(3);
        node.sh(&container, &format!("probe sem-create {key} 3")).await?;
        let seen = sysvipc::semaphore_value(Key(key));
        sysvipc::semaphore_remove(Key(key))?;
        assert_eq!(seen?, 3);
        let name = format!("vaina-e2e-{key}");
        node.sh(&container, &format!("probe shm-create /{name} x")).await?;
        let path = format!("/dev/shm/{name}");
        let seen = fs::read_to_string(&path);
        fs::remove_file(&path)?;
        assert_eq!(seen?, "x");
        node.remove_pod(&id).await?;
        Ok(())
    });
}

#[test]
fn a_volume_outlives_the_restart_of_a_container() {
    e2e_cri(async |node| {
        let pod = node.pod("volume");
        let id = node.run_pod(&pod).await?;
        let volume = node.volume("shared")?;
        let reader = Container::new("reader", IMAGE).mount(&volume, "/in").sh("sleep 1000");
        let reader = node.start(&id, &pod, &reader).await?;
        let config = Container::new("writer", IMAGE).mount(&volume, "/out").sh(
            "cat /own 2>/dev/null; echo x > /own; echo run >> /out/runs; cat /out/runs; echo done; exec sleep 1000",
        );
        for attempt in 0..3 {
            let writer = node.start(&id, &pod, &config.clone().attempt(attempt)).await?;
            let runs = "run\n".repeat(usize::try_from(attempt)? + 1);
            // Its own file system is new each time, the volume is not.
            assert_eq!(node.wait_log(&writer, "done").await?, format!("{runs}done\n"));
            assert_eq!(node.sh(&reader, "cat /in/runs").await?, runs.trim_end());
            // As the OOM killer or an operator would.
            let pid = i32::try_from(node.cri().container_pid(&writer).await?)?;
            kill(Pid::from_raw(pid), Signal::SIGKILL)?;
            let status = node.wait_exited(&writer).await?;
            assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
            assert_eq!(status.log_path, format!("{}/writer/{attempt}.log", pod.config.log_directory));
        }
        node.remove_pod(&id).await?;
        assert_eq!(fs::read_to_string(volume.join("runs"))?, "run\n".repeat(3), "it is the caller's to remove");
        Ok(())
    });
}

#[test]
fn volumes_of_one_container_propagate_each_as_it_says() {
    e2e_cri(async |node| {
        for handler in ["", "crun", "runc"] {
            let pod = node.pod(&format!("mixed-{handler}")).handler(handler).privileged();
            let id = node.run_pod(&pod).await?;
            let volumes = [
                ("private", MountPropagation::PropagationPrivate),
                ("slave", MountPropagation::PropagationHostToContainer),
                ("shared", MountPropagation::PropagationBidirectional),
            ];
            let mut container = Container::new("c", IMAGE).privileged().sh("sleep 1000");
            let mut paths = Vec::new();
            for (name, propagation) in volumes {
                let path = node.volume(&format!("mixed-{handler}-{name}"))?;
                for inner in ["from-host", "from-container"] {
                    fs::create_dir(path.join(inner))?;
                }
                container = container.mount_with(&path, &format!("/v/{name}"), false, propagation);
                paths.push(path);
            }
            let container = node.start(&id, &pod, &container).await?;
            for path in &paths {
                let inner = path.join("from-host");
                mount::filesystem("tmpfs", "late", &inner, MsFlags::empty(), "")?;
                fs::write(inner.join("file"), "")?;
            }
            let seen = node.sh(&container, "cd /v; ls */from-host/file 2>/dev/null; true").await?;
            assert_eq!(seen, "shared/from-host/file\nslave/from-host/file", "{handler:?}");
            node.sh(
                &container,
                "for v in /v/*; do mount -t tmpfs none $v/from-container && touch $v/from-container/file; done",
            )
            .await?;
            let back: Vec<bool> = paths.iter().map(|path| path.join("from-container/file").exists()).collect();
            assert_eq!(back, [false, false, true], "{handler:?}");
            // Before the container goes: what it has mounted on the host is the host's.
            mount::detach(&paths[2].join("from-container"))?;
            for path in &paths {
                mount::detach(&path.join("from-host"))?;
            }
            node.remove_pod(&id).await?;
        }
        Ok(())
    });
}

// proves: Mount.recursive_read_only
#[test]
fn a_recursively_read_only_volume_is_so_below_other_mounts_too() {
    e2e_cri(async |node| {
        let volume = node.volume("deep")?;
        let inner = volume.join("inner");
        fs::create_dir(&inner)?;
        mount::filesystem("tmpfs", "inner", &inner, MsFlags::empty(), "")?;
        for handler in ["", "crun", "runc"] {
            let pod = node.pod(&format!("deep-{handler}")).handler(handler);
            let id = node.run_pod(&pod).await?;
            let mut container =
                Container::new("c", IMAGE).mount_with(&volume, "/plain", true, MountPropagation::PropagationPrivate);
            container =
                container.mount_with(&volume, "/deep", true, MountPropagation::PropagationPrivate).sh("sleep 1000");
            container.config.mounts[1].recursive_read_only = true;
            let container = node.start(&id, &pod, &container).await?;
            let written =
                node.sh(&container, "for d in /plain /deep; do touch $d/x $d/inner/x 2>&1; done; true").await?;
            let refused: Vec<&str> = written.lines().filter(|line| line.contains("Read-only")).collect();
            assert_eq!(refused.len(), 3, "{handler:?}: {written}");
            let status = node.cri().container(&container).await?;
            assert!(status.mounts[1].recursive_read_only, "{handler:?}: {status:?}");
            node.remove_pod(&id).await?;
        }
        mount::detach(&inner)?;
        Ok(())
    });
}
