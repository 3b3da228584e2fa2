//! Containers: states, times, reasons, exit codes, and what their process finds.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use tonic::Code;
use vaina_proto::cri::{
    self, ContainerFilter, ContainerState, ContainerStateValue, ListContainersRequest, MountPropagation, NamespaceMode,
    Signal,
};
use vaina_tests::{
    build::{Container, Pod},
    node::{IMAGE, Node, e2e_cri},
};

use crate::{assert_failed, failed};

async fn list(node: &Node, filter: ContainerFilter) -> Result<Vec<cri::Container>> {
    Ok(node.cri().list_containers(ListContainersRequest { filter: Some(filter) }).await?.containers)
}

/// A pod for tests that only look at a container; removed by [`done`].
async fn prepare(node: &mut Node, name: &str) -> Result<(Pod, String)> {
    let pod = node.pod(name);
    let id = node.run_pod(&pod).await?;
    Ok((pod, id))
}

// proves: CreateContainer, StartContainer, StopContainer, RemoveContainer, ContainerStatus
// proves: CreateContainerRequest.config, CreateContainerResponse.container_id, StartContainerRequest.container_id
// proves: StopContainerRequest.container_id, RemoveContainerRequest.container_id, ContainerStatusRequest.container_id
// proves: ContainerStatusResponse.status
// proves: ContainerStatus.{metadata, state, created_at, started_at, finished_at, reason, labels, annotations}
// proves: ContainerStatus.{mounts, image, image_id}, ContainerConfig.{metadata, labels, annotations, image, mounts}
// proves: ContainerMetadata.name, ContainerState.{CONTAINER_CREATED, CONTAINER_RUNNING, CONTAINER_EXITED}
// proves: Mount.{container_path, host_path}
#[test]
fn a_container_is_created_runs_and_exits() {
    e2e_cri(async |node| {
        let (pod, sandbox) = prepare(node, "life").await?;
        let volume = node.volume("v")?;
        let config = Container::new("c", IMAGE)
            .command(&["/bin/probe", "signals", "SIGTERM=0"])
            .label("app", "web")
            .annotation("note", "a b\"c\n")
            .mount(&volume, "/volume");
        let id = node.create(&sandbox, &pod, &config).await?;
        ensure!(id.len() == 64, "{id}");

        let created = node.cri().container(&id).await?;
        assert_eq!(created.state(), ContainerState::ContainerCreated);
        assert!(created.created_at > 0 && created.started_at == 0 && created.finished_at == 0, "{created:?}");
        assert_eq!(created.metadata, config.config.metadata);
        assert_eq!((&created.labels, &created.annotations), (&config.config.labels, &config.config.annotations));

        node.cri().start_container(&id).await?;
        let running = node.cri().container(&id).await?;
        assert_eq!(running.state(), ContainerState::ContainerRunning);
        assert!(running.started_at >= created.created_at && running.finished_at == 0, "{running:?}");
        assert_eq!(running.created_at, created.created_at);
        assert_failed(node.cri().start_container(&id).await, Code::FailedPrecondition, &[]);

        node.wait_log(&id, "waiting").await?;
        node.cri().stop_container(&id, 30).await?;
        let exited = node.cri().container(&id).await?;
        assert_eq!(exited.state(), ContainerState::ContainerExited);
        assert_eq!((exited.exit_code, exited.reason.as_str()), (0, "Completed"));
        assert_eq!(exited.started_at, running.started_at);
        assert!(exited.finished_at >= exited.started_at, "{exited:?}");

        // What the kubelet reads after the end: mounts with their host path, the log, the image.
        assert_eq!(exited.mounts.len(), 1);
        assert_eq!(exited.mounts[0].host_path, volume.to_string_lossy());
        assert_eq!(exited.mounts[0].container_path, "/volume");
        assert!(Path::new(&exited.log_path).is_absolute());
        assert_eq!(exited.image.context("image")?.image, IMAGE);
        let image = node.cri().image(IMAGE).await?.context("the image")?;
        assert_eq!(exited.image_id, image.id);
        assert!(!exited.image_ref.is_empty());

        node.cri().stop_container(&id, 30).await.context("stop again")?;
        node.cri().remove_container(&id).await?;
        assert_failed(node.cri().container(&id).await, Code::NotFound, &[]);
        node.cri().remove_container(&id).await.context("remove again")?;
        node.cri().stop_container(&id, 0).await.context("stop after remove")?;
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

// proves: ContainerStatus.{exit_code, reason}
#[test]
fn exit_codes_and_reasons() {
    e2e_cri(async |node| {
        // One PID namespace, so that the containers' processes are not PID 1 and the default of a signal applies.
        let pod = node.pod("codes").pid(NamespaceMode::Pod);
        let sandbox = node.run_pod(&pod).await?;
        for (name, script, code, reason) in [
            ("zero", "exit 0", 0, "Completed"),
            ("one", "exit 1", 1, "Error"),
            ("forty-two", "exit 42", 42, "Error"),
            ("killed", "kill -KILL $$", 137, "Error"),
            ("terminated", "kill -TERM $$", 143, "Error"),
            ("aborted", "kill -ABRT $$", 134, "Error"),
        ] {
            let (status, _) = node.run_to_exit(&sandbox, &pod, &Container::new(name, IMAGE).sh(script)).await?;
            assert_eq!((status.exit_code, status.reason.as_str()), (code, reason), "{name}");
            assert!(status.finished_at >= status.started_at && status.started_at >= status.created_at, "{status:?}");
        }
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

// proves: ContainerStatus.message
#[test]
fn a_command_that_is_missing_is_128_and_says_so() {
    e2e_cri(async |node| {
        let (pod, sandbox) = prepare(node, "missing").await?;
        for (name, command) in [("absolute", "/bin/nonsense"), ("searched", "nonsense")] {
            let config = Container::new(name, IMAGE).command(&[command]);
            let id =
                node.create(&sandbox, &pod, &config).await.context("create, which does not look at the command")?;
            let status = failed(node.cri().start_container(&id).await);
            let tells = |message: &str| {
                let message = message.to_lowercase();
                message.contains("no such file") || message.contains("executable file not found")
            };
            assert!(tells(status.message()), "{status:?}");
            assert!(status.message().contains("nonsense"), "{status:?}");
            let status = node.cri().container(&id).await?;
            assert_eq!(status.state(), ContainerState::ContainerExited);
            assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
            assert!(tells(&status.message), "{status:?}");
            assert!(status.finished_at > 0, "{status:?}");
            node.cri().remove_container(&id).await?;
        }
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

// proves: LinuxContainerResources.memory_limit_in_bytes
#[test]
fn what_outgrows_its_memory_limit_is_oom_killed() {
    e2e_cri(async |node| {
        let (pod, sandbox) = prepare(node, "oom").await?;
        let config = Container::new("c", IMAGE).command(&["/bin/probe", "allocate", "200"]).memory_limit(32 << 20);
        let id = node.start(&sandbox, &pod, &config).await?;
        let status = node.wait_exited(&id).await?;
        assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"), "{status:?}");

        // A kill without memory pressure is not called one.
        let config = Container::new("d", IMAGE).sh("trap '' TERM; sleep 1000").memory_limit(32 << 20);
        let id = node.start(&sandbox, &pod, &config).await?;
        node.cri().stop_container(&id, 0).await?;
        let status = node.cri().container(&id).await?;
        assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"), "{status:?}");
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

#[test]
fn unknown_ids_are_done_or_not_found() {
    e2e_cri(async |node| {
        let cri = node.cri();
        let id = "fedcba9876543210".repeat(4);
        cri.stop_container(&id, 10).await?;
        cri.remove_container(&id).await?;
        assert_failed(cri.container(&id).await, Code::NotFound, &[]);
        assert_failed(cri.start_container(&id).await, Code::NotFound, &[]);
        let exec = cri::ExecSyncRequest { container_id: id.clone(), cmd: vec!["true".to_owned()], timeout: 5 };
        assert_failed(cri.exec_sync(exec).await, Code::NotFound, &[]);
        assert_failed(cri.reopen_container_log(&id).await, Code::NotFound, &[]);
        Ok(())
    });
}

// proves: ContainerMetadata.attempt
#[test]
fn a_retry_gets_the_same_container_and_another_config_is_refused() {
    e2e_cri(async |node| {
        let (pod, sandbox) = prepare(node, "retry").await?;
        let config = Container::new("c", IMAGE).sh("sleep 1000");
        let id = node.create(&sandbox, &pod, &config).await?;
        assert_eq!(node.create(&sandbox, &pod, &config).await?, id);
        let other = config.clone().env("A", "b");
        assert_failed(node.create(&sandbox, &pod, &other).await, Code::AlreadyExists, &["envs"]);
        // The next attempt is a container of its own.
        let next = node.create(&sandbox, &pod, &config.clone().attempt(1)).await?;
        assert_ne!(next, id);
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

// proves: ListContainers, ListContainersRequest.filter, ListContainersResponse.containers
// proves: ContainerFilter.{id, state, pod_sandbox_id, label_selector}, ContainerStateValue.state
// proves: CreateContainerRequest.pod_sandbox_id
#[test]
fn filters_narrow_each_other() {
    e2e_cri(async |node| {
        let (pod, sandbox) = prepare(node, "filters").await?;
        let (other_pod, other_sandbox) = prepare(node, "others").await?;
        let config = |name: &str| Container::new(name, IMAGE).sh("sleep 1000").label("name", name).label("app", "web");
        let running = node.start(&sandbox, &pod, &config("running")).await?;
        let created = node.create(&sandbox, &pod, &config("created")).await?;
        let other = node.start(&other_sandbox, &other_pod, &config("running")).await?;

        let labels = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let state = |state: ContainerState| Some(ContainerStateValue { state: state.into() });
        for (filter, expected) in [
            (ContainerFilter::default(), vec![&running, &created, &other]),
            (ContainerFilter { pod_sandbox_id: sandbox.clone(), ..Default::default() }, vec![&running, &created]),
            (
                ContainerFilter { pod_sandbox_id: sandbox[..10].to_owned(), ..Default::default() },
                vec![&running, &created],
            ),
            (ContainerFilter { id: other[..10].to_owned(), ..Default::default() }, vec![&other]),
            (ContainerFilter { state: state(ContainerState::ContainerCreated), ..Default::default() }, vec![&created]),
            (
                ContainerFilter { label_selector: labels(&[("name", "running")]), ..Default::default() },
                vec![&running, &other],
            ),
            (
                ContainerFilter {
                    label_selector: labels(&[("app", "web")]),
                    pod_sandbox_id: other_sandbox.clone(),
                    state: state(ContainerState::ContainerRunning),
                    ..Default::default()
                },
                vec![&other],
            ),
            (
                ContainerFilter { id: running.clone(), pod_sandbox_id: other_sandbox.clone(), ..Default::default() },
                vec![],
            ),
        ] {
            let mut found: Vec<String> = list(node, filter.clone()).await?.into_iter().map(|item| item.id).collect();
            let mut expected: Vec<String> = expected.into_iter().cloned().collect();
            found.sort();
            expected.sort();
            assert_eq!(found, expected, "{filter:?}");
        }
        node.remove_pod(&sandbox).await?;
        node.remove_pod(&other_sandbox).await?;
        Ok(())
    });
}

#[test]
fn a_running_container_can_be_removed_and_a_created_one_stopped() {
    e2e_cri(async |node| {
        let (pod, sandbox) = prepare(node, "force").await?;
        let running = node.start(&sandbox, &pod, &Container::new("a", IMAGE).sh("trap '' TERM; sleep 1000")).await?;
        node.cri().remove_container(&running[..13]).await?;
        assert_failed(node.cri().container(&running).await, Code::NotFound, &[]);
        let created = node.create(&sandbox, &pod, &Container::new("b", IMAGE)).await?;
        node.cri().stop_container(&created, 10).await?;
        node.cri().remove_container(&created).await?;
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

// proves: ContainerConfig.{envs, working_dir, command, args, linux}, LinuxContainerConfig.security_context
// proves: LinuxContainerSecurityContext.{run_as_user, readonly_rootfs, capabilities}, Int64Value.value
// proves: Capability.{drop_capabilities, add_capabilities}
#[test]
fn the_process_is_what_config_and_image_say() {
    e2e_cri(async |node| {
        let (pod, sandbox) = prepare(node, "process").await?;
        for (name, config, expected) in [
            (
                "env",
                Container::new("env", IMAGE).env("A", "x y").sh("echo \"$A\" \"$PATH\""),
                "x y /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n",
            ),
            ("cwd", Container::new("cwd", IMAGE).working_dir("/tmp").sh("pwd"), "/tmp\n"),
            ("new-cwd", Container::new("new-cwd", IMAGE).working_dir("/made/here").sh("pwd"), "/made/here\n"),
            ("args", Container::new("args", IMAGE).command(&["/bin/echo", "a"]).args(&["b", "$HOME"]), "a b $HOME\n"),
            ("user", Container::new("user", IMAGE).user(1000).sh("id -u; id -g; id -G"), "1000\n1000\n1000 50000\n"),
            ("root", Container::new("root", IMAGE).sh("id -u"), "0\n"),
            ("pid", Container::new("pid", IMAGE).sh("echo $$"), "1\n"),
            (
                "readonly",
                Container::new("readonly", IMAGE).readonly().sh("touch /x 2>&1; ls /x 2>/dev/null"),
                "touch: /x: Read-only file system\n",
            ),
            ("tmp", Container::new("tmp", IMAGE).sh("stat -c %a /tmp; echo ok > /tmp/x && cat /tmp/x"), "1777\nok\n"),
            (
                "devices",
                Container::new("devices", IMAGE).sh("ls /dev/null /dev/zero /dev/urandom /dev/tty /dev/ptmx"),
                "/dev/null\n/dev/ptmx\n/dev/tty\n/dev/urandom\n/dev/zero\n",
            ),
            (
                "masked",
                Container::new("masked", IMAGE)
                    .sh("cat /proc/kcore 2>/dev/null | wc -c; echo a 2>/dev/null >/proc/sysrq-trigger || echo no"),
                "0\nno\n",
            ),
            (
                "cap-drop",
                Container::new("cap-drop", IMAGE).capabilities(&[], &["CHOWN"]).sh("chown 1 /tmp 2>&1"),
                "chown: /tmp: Operation not permitted\n",
            ),
            (
                "cap-add",
                Container::new("cap-add", IMAGE).capabilities(&["SYS_TIME"], &["ALL"]).sh("grep CapEff /proc/1/status"),
                "CapEff:\t0000000002000000\n",
            ),
        ] {
            let (_, text) = node.run_to_exit(&sandbox, &pod, &config).await.context(name)?;
            assert_eq!(text, expected, "{name}");
        }
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

// proves: LinuxContainerSecurityContext.privileged, LinuxSandboxSecurityContext.privileged
// proves: LinuxPodSandboxConfig.security_context
#[test]
fn a_privileged_container_has_all_of_it() {
    e2e_cri(async |node| {
        let pod = node.pod("privileged").privileged();
        let sandbox = node.run_pod(&pod).await?;
        let config = Container::new("c", IMAGE).privileged().sh(
            "mount -t tmpfs none /mnt 2>&1 || mkdir /mnt && mount -t tmpfs none /mnt && echo mounted; \
                 grep -c . /proc/kallsyms >/dev/null && echo unmasked; touch /sys/fs/x 2>&1 | grep -c Read-only; \
                 ls /dev/vda /dev/kmsg 2>/dev/null | wc -l",
        );
        let (_, text) = node.run_to_exit(&sandbox, &pod, &config).await?;
        assert!(text.contains("mounted") && text.contains("unmasked"), "{text}");
        let devices = ["/dev/vda", "/dev/kmsg"].iter().filter(|path| Path::new(path).exists()).count();
        assert!(text.ends_with(&format!("\n{devices}\n")), "{text}");
        // A plain container in a privileged pod is plain.
        let (_, text) = node
            .run_to_exit(&sandbox, &pod, &Container::new("d", IMAGE).sh("mount -t tmpfs none /tmp 2>&1 | head -c 30"))
            .await?;
        assert!(text.contains("mount"), "{text}");
        node.remove_pod(&sandbox).await?;

        // And a privileged container wants a privileged pod.
        let (pod, sandbox) = prepare(node, "plain").await?;
        let status = failed(node.create(&sandbox, &pod, &Container::new("c", IMAGE).privileged()).await);
        assert!(status.message().contains("privileged"), "{status:?}");
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

// proves: ContainerConfig.mounts, Mount.{container_path, host_path, readonly}
#[test]
fn mounts_are_writable_or_not_and_made_when_missing() {
    e2e_cri(async |node| {
        let (pod, sandbox) = prepare(node, "mounts").await?;
        let volume = node.volume("v")?;
        fs::write(volume.join("given"), "from the host\n")?;
        let missing = node.directory().join("not/there/yet");
        let file = node.directory().join("a-file");
        fs::write(&file, "one file\n")?;
        let config = Container::new("c", IMAGE)
            .mount(&volume, "/rw")
            .mount_with(&volume, "/ro", true, MountPropagation::PropagationPrivate)
            .mount(&missing, "/missing")
            .mount(&file, "/etc/one")
            .sh("cat /rw/given /etc/one; echo back > /rw/taken; touch /ro/x 2>&1; echo m > /missing/m; ls -d /missing");
        let (_, text) = node.run_to_exit(&sandbox, &pod, &config).await?;
        assert_eq!(text, "from the host\none file\ntouch: /ro/x: Read-only file system\n/missing\n");
        assert_eq!(fs::read_to_string(volume.join("taken"))?, "back\n");
        assert_eq!(fs::read_to_string(missing.join("m"))?, "m\n");
        node.remove_pod(&sandbox).await?;
        assert!(volume.join("taken").exists(), "the volume is the caller's");
        Ok(())
    });
}

// proves: LinuxContainerConfig.resources, LinuxContainerResources.{memory_limit_in_bytes, cpu_quota}
// proves: LinuxPodSandboxConfig.cgroup_parent
#[test]
fn resources_arrive_in_the_cgroup() {
    e2e_cri(async |node| {
        let (pod, sandbox) = prepare(node, "resources").await?;
        let mut config = Container::new("c", IMAGE).sh("sleep 1000").memory_limit(64 << 20);
        config.resources().cpu_shares = 512;
        config.resources().cpu_period = 100_000;
        config.resources().cpu_quota = 50_000;
        let id = node.start(&sandbox, &pod, &config).await?;
        let parent = pod.config.linux.as_ref().context("linux")?.cgroup_parent.trim_start_matches('/').to_owned();
        let read = |v1: &str, v2: &str| -> Result<String> {
            let root = Path::new("/sys/fs/cgroup");
            let unified = root.join(&parent).join(&id).join(v2.split('/').next_back().unwrap_or(v2));
            let (controller, file) = v1.split_once('/').context("controller/file")?;
            let legacy = root.join(controller).join(&parent).join(&id).join(file);
            let path = if legacy.exists() { legacy } else { unified };
            Ok(fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?.trim().to_owned())
        };
        assert_eq!(read("memory/memory.limit_in_bytes", "memory.max")?, (64 << 20).to_string());
        let quota = read("cpu/cpu.cfs_quota_us", "cpu.max")?;
        assert!(quota.starts_with("50000"), "{quota}");
        let procs = read("memory/cgroup.procs", "cgroup.procs")?;
        let pid = node.cri().container_pid(&id).await?;
        assert!(procs.lines().any(|line| line == pid.to_string()), "{pid} is not in {procs:?}");
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

// proves: ContainerStatusRequest.verbose, ContainerStatusResponse.info, ContainerConfig.stop_signal
// proves: ContainerStatus.stop_signal
#[test]
fn verbose_status_carries_pid_and_spec() {
    e2e_cri(async |node| {
        let (pod, sandbox) = prepare(node, "verbose").await?;
        let config = Container::new("c", IMAGE).sh("sleep 1000").stop_signal(Signal::Sigusr1);
        let id = node.start(&sandbox, &pod, &config).await?;
        let request = cri::ContainerStatusRequest { container_id: id.clone(), verbose: true };
        let response = node.cri().container_status(request).await?;
        assert_eq!(response.status.context("status")?.stop_signal(), Signal::Sigusr1);
        let info: serde_json::Value = serde_json::from_str(response.info.get("info").context("info")?)?;
        let pid = info["pid"].as_u64().context("pid")?;
        assert!(fs::read_to_string(format!("/proc/{pid}/cmdline"))?.contains("sleep"));
        assert!(info["runtimeSpec"]["process"]["args"].is_array(), "{info}");
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

#[test]
fn bad_configs_are_refused_and_leave_nothing() {
    e2e_cri(async |node| {
        let (pod, sandbox) = prepare(node, "bad").await?;
        let mut nameless = Container::new("c", IMAGE);
        nameless.config.metadata = None;
        assert_failed(node.create(&sandbox, &pod, &nameless).await, Code::InvalidArgument, &["metadata"]);
        let mut imageless = Container::new("c", IMAGE);
        imageless.config.image = None;
        assert_failed(node.create(&sandbox, &pod, &imageless).await, Code::InvalidArgument, &["image"]);
        let unknown = Container::new("c", "vaina.test/nonsense:1");
        assert_failed(node.create(&sandbox, &pod, &unknown).await, Code::NotFound, &["vaina.test/nonsense:1"]);
        let ghost = "0".repeat(64);
        assert_failed(node.create(&ghost, &pod, &Container::new("c", IMAGE)).await, Code::NotFound, &[]);
        let capability = Container::new("c", IMAGE).capabilities(&["NONSENSE"], &[]);
        let status = failed(node.create(&sandbox, &pod, &capability).await);
        assert!(status.message().contains("NONSENSE"), "{status:?}");
        let mut user = Container::new("c", IMAGE);
        user.security().run_as_username = "no-such-user".to_owned();
        let status = failed(node.create(&sandbox, &pod, &user).await);
        assert!(status.message().contains("no-such-user"), "{status:?}");
        assert!(list(node, ContainerFilter::default()).await?.is_empty(), "a refused container is not listed");
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}
