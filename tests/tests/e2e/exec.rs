//! ExecSync: what a command finds, what comes back of it, and that nothing of it is left.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use tonic::{Code, Status};
use vaina_proto::cri::{self, ContainerState, NamespaceMode};
use vaina_tests::{
    build::{Container, Pod},
    node::{IMAGE, Node, e2e_cri},
    wait,
};

use crate::{assert_failed, failed};

/// The default runtime and those that can be chosen.
const HANDLERS: [&str; 3] = ["", "crun", "runc"];

/// What the kubelet and crictl take in one message, and so our client.
const MESSAGE: usize = 16 << 20;

async fn exec_for(node: &Node, id: &str, command: &[&str], timeout: i64) -> Result<cri::ExecSyncResponse, Status> {
    let cmd = command.iter().map(ToString::to_string).collect();
    node.cri().exec_sync(cri::ExecSyncRequest { container_id: id.to_owned(), cmd, timeout }).await
}

/// The command lines of all that runs in a container, from its cgroup on the host.
fn running(node: &Node, pod: &Pod, container: &str) -> Result<Vec<String>> {
    let parent = &pod.config.linux.as_ref().context("linux")?.cgroup_parent;
    let mark = format!("{parent}/{container}");
    let mut scope = node.scope();
    scope.cgroup_marks = vec![mark.clone()];
    let mut found = Vec::new();
    for process in vaina_tests::leak::processes(&scope)? {
        let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", process.pid)).unwrap_or_default();
        if cgroup.contains(&mark) {
            found.push(process.command);
        }
    }
    found.sort();
    Ok(found)
}

/// As [`running`], once the container's program is what its config says.
async fn settled(node: &Node, pod: &Pod, container: &str) -> Result<Vec<String>> {
    wait::until("the container runs its program", async || {
        let found = running(node, pod, container)?;
        Ok((found == ["/bin/sleep 1000"]).then_some(found))
    })
    .await
}

// proves: ExecSync, ExecSyncRequest.{container_id, cmd}, ExecSyncResponse.{stdout, stderr, exit_code}
#[test]
fn streams_are_apart_and_the_exit_code_is_the_commands() {
    e2e_cri(async |node| {
        for handler in HANDLERS {
            let pod = node.pod(&format!("codes-{handler}")).handler(handler);
            let sandbox = node.run_pod(&pod).await?;
            let id = node.start(&sandbox, &pod, &Container::new("c", IMAGE).sh("sleep 1000")).await?;
            for (script, code) in [
                ("exit 0", 0),
                ("exit 1", 1),
                ("exit 42", 42),
                ("exit 255", 255),
                ("touch /tmp/plain; /tmp/plain 2>/dev/null", 126),
                ("nonsense 2>/dev/null", 127),
                ("kill -TERM $$", 143),
                ("kill -KILL $$", 137),
            ] {
                let script = format!("echo to stdout; echo to stderr >&2; {script}");
                let result = node.exec(&id, &["/bin/sh", "-c", &script]).await?;
                assert_eq!(
                    (result.stdout.as_str(), result.stderr.as_str(), result.code),
                    ("to stdout\n", "to stderr\n", code),
                    "{handler:?}: {script}"
                );
            }
            // No newline is added, none is taken, and no byte is changed.
            let raw = exec_for(node, &id, &["/bin/printf", r"\377\000a\n\r\n"], 30).await?;
            assert_eq!(raw.stdout, b"\xff\0a\n\r\n", "{handler:?}");
            node.remove_pod(&sandbox).await?;
        }
        Ok(())
    });
}

#[test]
fn a_command_that_is_missing_is_an_error_that_says_so() {
    e2e_cri(async |node| {
        for handler in HANDLERS {
            let pod = node.pod(&format!("missing-{handler}")).handler(handler);
            let sandbox = node.run_pod(&pod).await?;
            let id = node.start(&sandbox, &pod, &Container::new("c", IMAGE).sh("sleep 1000")).await?;
            for command in ["/bin/nonsense", "nonsense"] {
                let status = failed(exec_for(node, &id, &[command], 30).await);
                let message = status.message().to_lowercase();
                assert!(message.contains("nonsense"), "{handler:?}: {status:?}");
                assert!(
                    message.contains("no such file") || message.contains("executable file not found"),
                    "{handler:?}: {status:?}"
                );
            }
            assert_failed(exec_for(node, &id, &[], 30).await, Code::InvalidArgument, &["command"]);
            // It is the same container after it.
            assert_eq!(node.sh(&id, "echo fine").await?, "fine");
            node.remove_pod(&sandbox).await?;
        }
        Ok(())
    });
}

// proves: ExecSyncRequest.timeout
#[test]
fn when_the_time_is_up_all_that_the_command_started_is_killed() {
    e2e_cri(async |node| {
        for handler in HANDLERS {
            // One PID namespace for the pod: nothing dies only because an init did.
            let pod = node.pod(&format!("late-{handler}")).pid(NamespaceMode::Pod).handler(handler);
            let sandbox = node.run_pod(&pod).await?;
            let id = node.start(&sandbox, &pod, &Container::new("c", IMAGE).command(&["/bin/sleep", "1000"])).await?;
            let before = settled(node, &pod, &id).await?;
            let script = "trap '' TERM HUP INT; sleep 1001 & (sleep 1002 & sleep 1003) & setsid sleep 1004 & \
                          setsid sh -c 'sleep 1005 & sleep 1006' & echo begun; while :; do sleep 1; done";
            assert_failed(
                exec_for(node, &id, &["/bin/sh", "-c", script], 1).await,
                Code::DeadlineExceeded,
                &["/bin/sh", "timed out", "1 s"],
            );
            assert_eq!(running(node, &pod, &id)?, before, "{handler:?}: the exec's processes are gone with its answer");
            assert_eq!(node.cri().container(&id).await?.state(), ContainerState::ContainerRunning);
            assert_eq!(node.sh(&id, "echo fine").await?, "fine");
            node.remove_pod(&sandbox).await?;
        }
        Ok(())
    });
}

#[test]
fn output_is_kept_up_to_the_cap_and_drained_beyond_it() {
    e2e_cri(async |node| {
        let pod = node.pod("much");
        let sandbox = node.run_pod(&pod).await?;
        let id = node.start(&sandbox, &pod, &Container::new("c", IMAGE).sh("sleep 1000")).await?;
        // A writer that blocks would end by the limit and not with its code.
        let script = "yes out | head -c 40000000; yes err | head -c 20000000 >&2; exit 3";
        let result = exec_for(node, &id, &["/bin/sh", "-c", script], 120).await?;
        let (out, err) = (result.stdout.len(), result.stderr.len());
        assert_eq!(result.exit_code, 3);
        assert!(out > 8_000_000 && err > 8_000_000, "{out} and {err}: each has its share");
        assert!(out + err <= MESSAGE, "{out} and {err}: the kubelet takes no more");
        assert!(result.stdout.chunks(4).all(|line| line == b"out\n"), "other bytes on stdout");
        assert!(result.stderr.chunks(4).all(|line| line == b"err\n"), "other bytes on stderr");
        // One stream alone may fill it.
        let result = exec_for(node, &id, &["/bin/sh", "-c", "yes | head -c 20000000"], 120).await?;
        assert!((16_000_000..=MESSAGE).contains(&result.stdout.len()), "{}", result.stdout.len());
        // Below it every byte is there.
        let script = "head -c 5000001 /dev/zero; head -c 300 /dev/zero >&2";
        let result = exec_for(node, &id, &["/bin/sh", "-c", script], 120).await?;
        assert_eq!((result.stdout.len(), result.stderr.len(), result.exit_code), (5_000_001, 300, 0));
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

#[test]
fn where_nothing_runs_a_command_is_refused_at_once() {
    e2e_cri(async |node| {
        let pod = node.pod("still");
        let sandbox = node.run_pod(&pod).await?;
        let created = node.create(&sandbox, &pod, &Container::new("created", IMAGE).sh("sleep 1000")).await?;
        let (exited, _) = node.run_to_exit(&sandbox, &pod, &Container::new("exited", IMAGE).sh("exit 0")).await?;
        let missing = Container::new("failed", IMAGE).command(&["/bin/nonsense"]);
        let failed_start = node.create(&sandbox, &pod, &missing).await?;
        failed(node.cri().start_container(&failed_start).await);
        // Without a limit of its own the call could only end by being refused.
        for (id, state) in [(&created, "Created"), (&exited.id, "Exited"), (&failed_start, "Exited")] {
            assert_failed(exec_for(node, id, &["/bin/true"], 0).await, Code::FailedPrecondition, &[state]);
        }
        node.remove_pod(&sandbox).await?;
        assert_failed(exec_for(node, &created, &["/bin/true"], 0).await, Code::NotFound, &[]);
        Ok(())
    });
}

#[test]
fn a_child_that_keeps_the_streams_does_not_hold_the_answer() {
    e2e_cri(async |node| {
        for handler in HANDLERS {
            let pod = node.pod(&format!("kept-{handler}")).pid(NamespaceMode::Pod).handler(handler);
            let sandbox = node.run_pod(&pod).await?;
            let id = node.start(&sandbox, &pod, &Container::new("c", IMAGE).command(&["/bin/sleep", "1000"])).await?;
            let before = settled(node, &pod, &id).await?;
            // In the command's session, and so part of it: it ends with it.
            let answer = exec_for(node, &id, &["/bin/sh", "-c", "sleep 1001 & echo said; exit 4"], 0).await?;
            assert_eq!((answer.stdout.as_slice(), answer.exit_code), (&b"said\n"[..], 4), "{handler:?}");
            assert_eq!(running(node, &pod, &id)?, before, "{handler:?}");
            // A daemon that left the session on purpose: it lives on, and the answer does not wait for it.
            let script = "setsid sh -c 'touch /tmp/apart; exec sleep 1002' & echo said; \
                          while [ ! -e /tmp/apart ]; do :; done; exit 5";
            let answer = exec_for(node, &id, &["/bin/sh", "-c", script], 0).await?;
            assert_eq!((answer.stdout.as_slice(), answer.exit_code), (&b"said\n"[..], 5), "{handler:?}");
            node.remove_pod(&sandbox).await?;
        }
        Ok(())
    });
}

// proves: LinuxContainerSecurityContext.{supplemental_groups, no_new_privs}
#[test]
fn a_command_is_in_all_that_the_container_is_in() {
    e2e_cri(async |node| {
        for handler in HANDLERS {
            let pod = node.pod(&format!("same-{handler}")).handler(handler);
            let sandbox = node.run_pod(&pod).await?;
            let mut config = Container::new("c", IMAGE)
                .command(&["/bin/sleep", "1000"])
                .env("A", "x y")
                .env("EMPTY", "")
                .working_dir("/tmp")
                .user(1000)
                .capabilities(&["NET_ADMIN"], &["CHOWN", "SETUID"])
                .memory_limit(64 << 20);
            config.security().supplemental_groups = vec![4242];
            config.security().no_new_privs = true;
            config.config.linux.get_or_insert_default().resources.get_or_insert_default().oom_score_adj = 500;
            let id = node.start(&sandbox, &pod, &config).await?;
            // Each is read of the command itself and of the container's own process, by one and the same program.
            for path in ["environ", "cgroup", "limits", "mounts"] {
                let own = node.exec(&id, &["/bin/cat", &format!("/proc/self/{path}")]).await?;
                let init = node.exec(&id, &["/bin/cat", &format!("/proc/1/{path}")]).await?;
                ensure!(own.code == 0 && init.code == 0, "{handler:?} {path}: {own:?} {init:?}");
                assert_eq!(own.stdout, init.stdout, "{handler:?} {path}");
                assert!(!own.stdout.is_empty(), "{handler:?} {path}");
            }
            let fields = "^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp|Umask|SigBlk)";
            let own = node.exec(&id, &["/bin/grep", "-E", fields, "/proc/self/status"]).await?;
            let init = node.exec(&id, &["/bin/grep", "-E", fields, "/proc/1/status"]).await?;
            assert_eq!(own, init, "{handler:?}");
            assert!(own.stdout.contains("Uid:\t1000\t1000"), "{handler:?}: {own:?}");
            assert!(own.stdout.contains("4242") && own.stdout.contains("NoNewPrivs:\t1"), "{handler:?}: {own:?}");
            for link in ["cwd", "root", "ns/net", "ns/ipc", "ns/uts", "ns/pid", "ns/mnt", "ns/cgroup", "ns/user"] {
                let own = node.exec(&id, &["/bin/readlink", &format!("/proc/self/{link}")]).await?;
                let init = node.exec(&id, &["/bin/readlink", &format!("/proc/1/{link}")]).await?;
                assert_eq!((&own.stdout, own.code), (&init.stdout, 0), "{handler:?} {link}");
            }
            assert_eq!(node.exec(&id, &["/bin/pwd"]).await?.stdout, "/tmp\n", "{handler:?}");
            // No terminal, and nothing to read.
            assert_eq!(node.sh(&id, "cat; test -t 0 || test -t 1 || echo none").await?, "none", "{handler:?}");
            node.remove_pod(&sandbox).await?;
        }
        Ok(())
    });
}

#[test]
fn many_commands_at_once_have_their_own_output_and_code() {
    e2e_cri(async |node| {
        let pod = node.pod("many");
        let sandbox = node.run_pod(&pod).await?;
        let mut ids = Vec::new();
        for name in ["one", "two"] {
            ids.push(node.start(&sandbox, &pod, &Container::new(name, IMAGE).sh("sleep 1000")).await?);
        }
        let calls = (0..60_i32).map(|number| {
            let id = &ids[usize::from(number % 2 == 1)];
            let node = &*node;
            async move {
                let script = format!("echo out {number}; echo err {number} >&2; exit {number}");
                node.exec(id, &["/bin/sh", "-c", &script]).await.map(|result| (number, result))
            }
        });
        for (number, result) in try_join_all(calls).await? {
            assert_eq!(result.stdout, format!("out {number}\n"));
            assert_eq!(result.stderr, format!("err {number}\n"));
            assert_eq!(result.code, number);
        }
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

#[test]
fn commands_leave_nothing_behind_in_the_pod() {
    e2e_cri(async |node| {
        for handler in HANDLERS {
            let pod = node.pod(&format!("clean-{handler}")).handler(handler);
            let sandbox = node.run_pod(&pod).await?;
            let id = node.start(&sandbox, &pod, &Container::new("c", IMAGE).sh("sleep 1000")).await?;
            let shim = node.cri().sandbox_pid(&sandbox).await?;
            node.sh(&id, "true").await?;
            let (files, descriptors) = (files_below("/run")?, descriptors(shim)?);
            for _ in 0..5 {
                node.sh(&id, "true").await?;
                failed(exec_for(node, &id, &["/bin/nonsense"], 30).await);
            }
            failed(exec_for(node, &id, &["/bin/sleep", "1000"], 1).await);
            assert_eq!(files_below("/run")?, files, "{handler:?}");
            wait::until("the shim has as many descriptors as before", async || {
                Ok((self::descriptors(shim)? == descriptors).then_some(()))
            })
            .await?;
            node.remove_pod(&sandbox).await?;
        }
        Ok(())
    });
}

fn files_below(directory: &str) -> Result<BTreeSet<String>> {
    fn walk(directory: &Path, found: &mut BTreeSet<String>) -> Result<()> {
        for entry in fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))? {
            let entry = entry?;
            found.insert(entry.path().to_string_lossy().into_owned());
            if entry.file_type()?.is_dir() {
                walk(&entry.path(), found)?;
            }
        }
        Ok(())
    }
    let mut found = BTreeSet::new();
    walk(Path::new(directory), &mut found)?;
    Ok(found)
}

fn descriptors(pid: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

#[test]
fn a_command_ends_with_its_container() {
    e2e_cri(async |node| {
        for handler in HANDLERS {
            for mode in [NamespaceMode::Container, NamespaceMode::Pod] {
                let pod = node.pod(&format!("ends-{handler}-{}", i32::from(mode))).pid(mode).handler(handler);
                let sandbox = node.run_pod(&pod).await?;
                let id = node.start(&sandbox, &pod, &Container::new("c", IMAGE).sh("sleep 1000")).await?;
                let long = async {
                    let script = "echo begun; touch /tmp/begun; sleep 1000";
                    exec_for(node, &id, &["/bin/sh", "-c", script], 0).await
                };
                let stop = async {
                    wait::until("the command runs", async || {
                        let seen = exec_for(node, &id, &["/bin/test", "-e", "/tmp/begun"], 30).await?;
                        Ok((seen.exit_code == 0).then_some(()))
                    })
                    .await?;
                    Ok::<_, anyhow::Error>(node.cri().stop_container(&id, 0).await?)
                };
                let (long, stopped) = tokio::join!(long, stop);
                stopped?;
                let long = long?;
                assert_eq!((long.stdout.as_slice(), long.exit_code), (&b"begun\n"[..], 137), "{handler:?} {mode:?}");
                node.remove_pod(&sandbox).await?;
            }
        }
        Ok(())
    });
}
