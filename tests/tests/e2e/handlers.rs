//! The handlers: the shim's own OCI runtime, crun and runc, each put to the same tests. Exec is in `exec`.

use std::fs;

use anyhow::{Context as _, Result, bail};
use nix::mount::MsFlags;
use vaina_proto::cri::{ContainerState, MountPropagation, NamespaceMode};
use vaina_sys::mount;
use vaina_tests::{
    build::{Container, Pod},
    node::{IMAGE, Node, e2e, e2e_cri},
    peer, require, wait,
};

use crate::failed;

/// The default, those that can be chosen, and the default's name, which others do not have.
const HANDLERS: [&str; 4] = ["", "crun", "runc", "vaina"];

/// Runs the same test in a fresh pod of each handler, which it must leave as the leak check wants it.
pub(crate) fn each(prepare: fn(Pod) -> Pod, test: impl AsyncFn(&mut Node, &Pod, &str) -> Result<()> + Send + 'static) {
    e2e(async move |node| with(node, &HANDLERS, prepare, test).await);
}

/// As [`each`], for a test that knows only the CRI.
fn each_cri(prepare: fn(Pod) -> Pod, test: impl AsyncFn(&mut Node, &Pod, &str) -> Result<()> + Send + 'static) {
    let handlers = if peer::is_wanted() { &HANDLERS[..3] } else { &HANDLERS[..] };
    e2e_cri(async move |node| with(node, handlers, prepare, test).await);
}

async fn with(
    node: &mut Node,
    handlers: &[&str],
    prepare: fn(Pod) -> Pod,
    test: impl AsyncFn(&mut Node, &Pod, &str) -> Result<()>,
) -> Result<()> {
    require::tool("crun", "crun")?;
    require::tool("runc", "runc")?;
    require::cgroups_for_crun()?;
    for handler in handlers {
        let pod = prepare(node.pod(&format!("handled-{handler}")).handler(handler));
        let sandbox = node.run_pod(&pod).await.with_context(|| format!("handler {handler:?}"))?;
        assert_eq!(node.cri().sandbox(&sandbox).await?.runtime_handler, *handler);
        test(node, &pod, &sandbox).await.with_context(|| format!("handler {handler:?}"))?;
        node.remove_pod(&sandbox).await.with_context(|| format!("handler {handler:?}"))?;
        node.check_leaks().await.with_context(|| format!("handler {handler:?}"))?;
    }
    Ok(())
}

pub(crate) fn as_it_is(pod: Pod) -> Pod {
    pod
}

fn namespace(pid: u32, kind: &str) -> Result<String> {
    let link = format!("/proc/{pid}/ns/{kind}");
    Ok(fs::read_link(&link).with_context(|| link.clone())?.to_string_lossy().into_owned())
}

#[test]
fn exit_codes_reasons_and_logs_are_the_same() {
    each_cri(as_it_is, async |node, pod, sandbox| {
        for (name, script, code, reason) in [
            ("zero", "echo out; echo err >&2; exit 0", 0, "Completed"),
            ("many", "echo out; echo err >&2; exit 42", 42, "Error"),
            ("most", "echo out; echo err >&2; exit 255", 255, "Error"),
        ] {
            let (status, text) = node.run_to_exit(sandbox, pod, &Container::new(name, IMAGE).sh(script)).await?;
            assert_eq!((status.exit_code, status.reason.as_str()), (code, reason), "{name}");
            assert!(text == "out\nerr\n" || text == "err\nout\n", "{name}: {text:?}");
            assert!(status.finished_at >= status.started_at && status.started_at >= status.created_at, "{status:?}");
        }
        Ok(())
    });
}

#[test]
fn a_missing_command_is_told_in_the_same_words() {
    each_cri(as_it_is, async |node, pod, sandbox| {
        for (name, command) in [("absolute", "/bin/nonsense"), ("searched", "nonsense")] {
            let id = node.create(sandbox, pod, &Container::new(name, IMAGE).command(&[command])).await?;
            let tells = |message: &str| {
                let message = message.to_lowercase();
                message.contains("nonsense")
                    && (message.contains("no such file") || message.contains("executable file not found"))
            };
            let error = failed(node.cri().start_container(&id).await);
            assert!(tells(error.message()), "{error:?}");
            let status = node.cri().container(&id).await?;
            assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"), "{status:?}");
            assert!(tells(&status.message), "{status:?}");
        }
        Ok(())
    });
}

#[test]
fn stops_are_the_same() {
    each_cri(as_it_is, async |node, pod, sandbox| {
        let polite =
            "trap 'echo asked; exit 143' TERM; (setsid sleep 2001 &); echo ready; while :; do sleep 0.05; done";
        for (name, script, grace, code, said) in [
            ("polite", polite, 600, 143, "ready\nasked\n"),
            ("deaf", "trap '' TERM; setsid sleep 2001 & echo ready; while :; do sleep 0.05; done", 1, 137, "ready\n"),
            ("at-once", polite, 0, 137, "ready\n"),
        ] {
            let id = node.start(sandbox, pod, &Container::new(name, IMAGE).sh(script)).await?;
            node.wait_log(&id, "ready").await?;
            node.cri().stop_container(&id, grace).await?;
            let status = node.cri().container(&id).await?;
            assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, code), "{name}");
            assert_eq!(vaina_tests::node::log_text(&node.log(&status)?)?, said, "{name}");
            let left = vaina_tests::leak::processes(&node.scope())?;
            assert!(!left.iter().any(|process| process.command.contains("sleep 2001")), "{name}: {left:?}");
            node.cri().remove_container(&id).await?;
        }
        Ok(())
    });
}

#[test]
fn containers_are_in_the_shims_namespaces() {
    each_cri(as_it_is, async |node, pod, sandbox| {
        let shim = node.cri().sandbox_pid(sandbox).await?;
        let id = node.start(sandbox, pod, &Container::new("c", IMAGE).sh("sleep 1000")).await?;
        let pid = node.cri().container_pid(&id).await?;
        for kind in ["net", "ipc", "uts"] {
            assert_eq!(namespace(pid, kind)?, namespace(shim, kind)?, "{kind}");
            assert_ne!(namespace(pid, kind)?, namespace(std::process::id(), kind)?, "{kind}");
        }
        for kind in ["mnt", "pid"] {
            assert_ne!(namespace(pid, kind)?, namespace(shim, kind)?, "{kind}");
        }
        assert_eq!(node.sh(&id, "hostname").await?, pod.config.hostname);
        assert_eq!(node.sh(&id, "echo x > /dev/shm/x; stat -f -c %T /dev/shm").await?, "tmpfs");
        Ok(())
    });
}

// proves: NamespaceOption.pid, NamespaceMode.POD
#[test]
fn a_pod_may_have_one_pid_namespace() {
    each_cri(
        |pod| pod.pid(NamespaceMode::Pod),
        async |node, pod, sandbox| {
            let one = node.start(sandbox, pod, &Container::new("one", IMAGE).sh("sleep 2001 & sleep 2002")).await?;
            let two = node.start(sandbox, pod, &Container::new("two", IMAGE).sh("exec sleep 2003")).await?;
            let seen = async || node.sh(&two, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").await;
            wait::until("each sees the other's processes", async || {
                let seen = seen().await?;
                Ok(["sleep 2001", "sleep 2002", "sleep 2003"].iter().all(|word| seen.contains(word)).then_some(()))
            })
            .await?;
            // The pod's init is PID 1, and the end of a container takes all that is its own and nothing else.
            assert!(!node.sh(&two, "tr '\\0' ' ' < /proc/1/cmdline").await?.contains("sleep"));
            let (one_pid, two_pid) = (node.cri().container_pid(&one).await?, node.cri().container_pid(&two).await?);
            assert_eq!(namespace(one_pid, "pid")?, namespace(two_pid, "pid")?);
            node.cri().stop_container(&one, 0).await?;
            let left = seen().await?;
            assert!(!left.contains("sleep 2001") && !left.contains("sleep 2002") && left.contains("2003"), "{left}");
            // Containers can be added to a namespace that has many processes already.
            let many = "for i in $(seq 60); do sleep 2004 & done; echo ready; wait";
            let many = node.start(sandbox, pod, &Container::new("many", IMAGE).sh(many)).await?;
            node.wait_log(&many, "ready").await?;
            let (status, text) = node.run_to_exit(sandbox, pod, &Container::new("late", IMAGE).sh("echo late")).await?;
            assert_eq!((status.exit_code, text.as_str()), (0, "late\n"));
            Ok(())
        },
    );
}

// proves: ContainerConfig.tty
#[test]
fn a_container_may_have_a_terminal() {
    each_cri(as_it_is, async |node, pod, sandbox| {
        let mut config =
            Container::new("c", IMAGE).sh("test -t 0 && test -t 1 && test -t 2 && echo terminal; tty; exit 3");
        config.config.tty = true;
        config.config.stdin = true;
        let (status, text) = node.run_to_exit(sandbox, pod, &config).await?;
        assert_eq!(status.exit_code, 3);
        // A terminal ends lines in a return and a newline.
        assert_eq!(text, "terminal\n/dev/pts/0\n");
        assert!(node.log(&status)?.ends_with(b"stdout F /dev/pts/0\r\n"), "{text:?}");
        // Its exec has none unless it asks for one, and its stop is as any.
        let mut config = Container::new("d", IMAGE).sh("trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done");
        config.config.tty = true;
        let id = node.start(sandbox, pod, &config).await?;
        node.wait_log(&id, "ready").await?;
        assert_eq!(node.sh(&id, "test -t 1 || echo plain").await?, "plain");
        node.cri().stop_container(&id, 600).await?;
        assert_eq!(node.cri().container(&id).await?.exit_code, 5);
        Ok(())
    });
}

#[test]
fn who_outgrows_the_memory_limit_is_oom_killed() {
    each_cri(as_it_is, async |node, pod, sandbox| {
        let greedy = Container::new("c", IMAGE).command(&["/bin/probe", "allocate", "200"]).memory_limit(32 << 20);
        let (status, _) = node.run_to_exit(sandbox, pod, &greedy).await?;
        assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"), "{status:?}");
        Ok(())
    });
}

#[test]
fn root_in_a_container_can_not_lift_its_limits() {
    each_cri(as_it_is, async |node, pod, sandbox| {
        let limited = Container::new("c", IMAGE).memory_limit(64 << 20).sh("sleep 1000");
        let id = node.start(sandbox, pod, &limited).await?;
        let files = "find /sys/fs/cgroup -maxdepth 2 -name 'memory.limit_in_bytes' -o -maxdepth 2 -name 'memory.max'";
        let limit = node.sh(&id, &format!("cat $({files})")).await?;
        assert_eq!(limit, (64 << 20).to_string(), "its own group is seen there");
        let script = format!(
            "for file in $({files}); do echo 999999999 > $file && echo lifted $file; \
             mkdir ${{file%/*}}/below && echo made ${{file%/*}}; done; true"
        );
        assert_eq!(node.sh(&id, &format!("({script}) 2>/dev/null")).await?, "");
        assert_eq!(node.sh(&id, &format!("cat $({files})")).await?, (64 << 20).to_string());
        Ok(())
    });
}

#[test]
fn a_privileged_container_has_all_of_it() {
    each_cri(Pod::privileged, async |node, pod, sandbox| {
        let script = "mkdir -p /mnt && mount -t tmpfs none /mnt && echo mounted; \
                      grep CapEff /proc/1/status; touch /proc/sys/kernel/domainname 2>/dev/null && echo writable; \
                      ls -l /dev/kmsg >/dev/null 2>&1 && echo devices; ls -d /sys/fs/cgroup/* >/dev/null && echo groups";
        let config = Container::new("c", IMAGE).privileged().sh(script);
        let (_, text) = node.run_to_exit(sandbox, pod, &config).await?;
        let status = fs::read_to_string("/proc/self/status")?;
        let all = status.lines().find(|line| line.starts_with("CapBnd")).context("CapBnd")?.replace("Bnd", "Eff");
        let devices = if std::path::Path::new("/dev/kmsg").exists() { "devices\n" } else { "" };
        assert_eq!(text, format!("mounted\n{all}\nwritable\n{devices}groups\n"));
        Ok(())
    });
}

// proves: Mount.propagation, MountPropagation.*
#[test]
fn mounts_pass_on_as_they_are_told_to() {
    each_cri(Pod::privileged, async |node, pod, sandbox| {
        let name = if pod.handler.is_empty() { "default" } else { &pod.handler };
        let volume = node.volume(name)?;
        mount::filesystem("tmpfs", "given", &volume, MsFlags::empty(), "")?;
        for directory in ["before", "after", "inside"] {
            fs::create_dir(volume.join(directory))?;
        }
        let host = |directory: &str| -> Result<()> {
            mount::filesystem("tmpfs", "host", &volume.join(directory), MsFlags::empty(), "")?;
            Ok(fs::write(volume.join(directory).join("file"), "seen")?)
        };
        host("before")?;
        // One container for each, so that what one of them needs of its root does not help another.
        let mut ids = Vec::new();
        for (word, readonly, propagation) in [
            ("private", false, MountPropagation::PropagationPrivate),
            ("slave", false, MountPropagation::PropagationHostToContainer),
            ("shared", false, MountPropagation::PropagationBidirectional),
            ("readonly", true, MountPropagation::PropagationPrivate),
        ] {
            let config = Container::new(word, IMAGE).privileged().sh("sleep 1000");
            ids.push(node.start(sandbox, pod, &config.mount_with(&volume, "/volume", readonly, propagation)).await?);
        }
        let [private, slave, shared, readonly] = &ids[..] else { bail!("four containers") };
        host("after")?;
        let sees = async |id: &str, directory: &str| {
            node.sh(id, &format!("cat /volume/{directory}/file 2>/dev/null || true")).await
        };
        for (id, later) in [(private, ""), (slave, "seen"), (shared, "seen"), (readonly, "")] {
            assert_eq!((sees(id, "before").await?.as_str(), sees(id, "after").await?.as_str()), ("seen", later));
        }
        assert!(node.sh(readonly, "touch /volume/x 2>&1 || true").await?.contains("Read-only"));
        // From the container to the host, where that is asked for.
        let make = async |id: &str, file: &str| {
            node.sh(id, &format!("mount -t tmpfs own /volume/inside && touch /volume/inside/{file}")).await
        };
        for (id, file) in [(private, "private"), (slave, "slave")] {
            make(id, file).await?;
            assert!(!volume.join("inside").join(file).exists(), "{file} keeps its mounts");
        }
        make(shared, "shared").await?;
        assert!(volume.join("inside/shared").exists(), "a shared mount reaches the host");
        for id in &ids {
            node.cri().stop_container(id, 0).await?;
        }
        for directory in ["inside", "after", "before"] {
            mount::detach(&volume.join(directory))?;
        }
        Ok(mount::detach(&volume)?)
    });
}
