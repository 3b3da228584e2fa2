//! Exec, Attach and PortForward with the Kubernetes project's own client, over SPDY and over WebSocket.

use std::{
    fs,
    io::{PipeWriter, Read as _, Write as _, pipe},
    net::{Shutdown, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use nix::sys::signal::Signal;
use tonic::Code;
use vaina_proto::cri;
use vaina_tests::{
    build::{Container, Pod},
    crictl::crictl,
    node::{IMAGE, Node, Options, e2e, e2e_cri, e2e_with},
    peer, require,
    running::Running,
    wait,
};

use crate::assert_failed;

/// How clients may be connected. containerd 2.3 knows WebSocket without v5.channel.k8s.io only, which crictl 1.36 insists on.
static TRANSPORTS: LazyLock<&[&str]> =
    LazyLock::new(|| if peer::is_wanted() { &["spdy"] } else { &["spdy", "websocket"] });

/// crictl with a standard input that stays open until the writer is dropped.
fn fed(arguments: &[&str]) -> Result<(Running, PipeWriter)> {
    let (reader, writer) = pipe()?;
    Ok((Running::start(crictl(arguments)?.stdin(reader))?, writer))
}

async fn pod(node: &mut Node, name: &str) -> Result<(Pod, String)> {
    let pod = node.pod(name);
    let sandbox = node.run_pod(&pod).await?;
    Ok((pod, sandbox))
}

/// A container that sleeps, in a pod of its own.
async fn sleeper(node: &mut Node) -> Result<(String, String)> {
    let (pod, sandbox) = pod(node, "sleeper").await?;
    let id = node.start(&sandbox, &pod, &Container::new("c", IMAGE).command(&["/bin/sleep", "1000"])).await?;
    Ok((sandbox, id))
}

fn interactive(name: &str, tty: bool, once: bool) -> Container {
    let mut container = Container::new(name, IMAGE).command(&["/bin/sh"]);
    container.config.stdin = true;
    container.config.stdin_once = once;
    container.config.tty = tty;
    container
}

/// Waits until so many processes of this name run in a container. Those that ended count no more, though its init, which is
/// no init, never waits for them.
async fn wait_processes(node: &Node, id: &str, name: &str, count: usize) -> Result<()> {
    wait::until(&format!("{count} processes {name} run"), async || {
        let list = node.exec(id, &["/bin/ps", "-o", "stat,comm"]).await?.stdout;
        let runs = |line: &&str| {
            line.split_once(' ').is_some_and(|(stat, comm)| !stat.starts_with('Z') && comm.trim() == name)
        };
        Ok((list.lines().filter(runs).count() == count).then_some(()))
    })
    .await
}

// proves: Exec, ExecRequest.{container_id, cmd, stdout, stderr}, ExecResponse.url
#[test]
fn exec_has_streams_apart_and_the_commands_exit_code() {
    e2e_cri(async |node| {
        let (sandbox, id) = sleeper(node).await?;
        for transport in TRANSPORTS.iter().copied() {
            let exec =
                |script: &str| Running::start(&mut crictl(&["exec", "-r", transport, &id, "/bin/sh", "-c", script])?);
            let ended = exec("echo out; echo err >&2")?.end().await?.expect(0)?;
            assert_eq!((ended.out.as_str(), ended.err.as_str()), ("out\n", "err\n"), "{transport}");
            for code in [1, 42, 255] {
                let ended = exec(&format!("exit {code}"))?.end().await?.expect(1)?;
                let told = format!("command terminated with exit code {code}");
                assert!(ended.err.contains(&told), "{transport}: {ended:?}");
            }
            let missing = Running::start(&mut crictl(&["exec", "-r", transport, &id, "/nonsense"])?)?.end().await?;
            assert!(
                missing.code != 0 && missing.err.to_lowercase().contains("no such file"),
                "{transport}: {missing:?}"
            );
            // More than all buffers on the way hold, and nothing of it is lost at the end.
            let ended = exec("seq 1 1000000")?.end().await?.expect(0)?;
            assert!(ended.out.ends_with("\n999999\n1000000\n"), "{transport}");
            assert_eq!(ended.out.len(), 6_888_896, "{transport}");
        }
        Ok(node.remove_pod(&sandbox).await?)
    });
}

// proves: ExecRequest.stdin
#[test]
fn execs_stdin_arrives_whole_and_ends() {
    e2e_cri(async |node| {
        let (sandbox, id) = sleeper(node).await?;
        let text: Vec<u8> = (0..2_000_000).flat_map(|number: u32| number.to_le_bytes()).collect();
        let file = node.directory().join("input");
        fs::write(&file, &text)?;
        let sum = vaina_tests::node::run(Command::new("sha256sum").stdin(fs::File::open(&file)?))?;
        for transport in TRANSPORTS.iter().copied() {
            let mut command = crictl(&["exec", "-i", "-r", transport, &id, "/bin/sha256sum"])?;
            let ended = Running::start(command.stdin(fs::File::open(&file)?))?.end().await?.expect(0)?;
            assert_eq!(ended.out, sum, "{transport}");
            // One that takes its time: meanwhile the client is held back, and hears what it must ignore.
            let mut command = crictl(&["exec", "-i", "-r", transport, &id, "/bin/sh", "-c", "sleep 3; sha256sum"])?;
            let ended = Running::start(command.stdin(fs::File::open(&file)?))?.end().await?.expect(0)?;
            assert_eq!(ended.out, sum, "{transport}");
            // One that does not read its input to the end.
            let mut command = crictl(&["exec", "-i", "-r", transport, &id, "/bin/head", "-c", "4"])?;
            let ended = Running::start(command.stdin(fs::File::open(&file)?))?.end().await?.expect(0)?;
            assert_eq!(ended.out.as_bytes(), [0; 4], "{transport}");
            // A conversation.
            let (running, mut keys) = fed(&["exec", "-i", "-r", transport, &id, "/bin/sh"])?;
            keys.write_all(b"echo first\n")?;
            running.wait_for("first\n").await?;
            keys.write_all(b"echo second; exit 3\n")?;
            let ended = running.end().await?.expect(1)?;
            assert_eq!(ended.out, "first\nsecond\n", "{transport}");
            assert!(ended.err.contains("exit code 3"), "{transport}: {ended:?}");
        }
        Ok(node.remove_pod(&sandbox).await?)
    });
}

// proves: ExecRequest.tty
#[test]
fn execs_terminal_is_one() {
    e2e_cri(async |node| {
        let ways = [("", "spdy"), ("", "websocket"), ("crun", "spdy"), ("runc", "spdy")];
        for (handler, transport) in ways.into_iter().filter(|(_, transport)| TRANSPORTS.contains(transport)) {
            let pod = node.pod(&format!("terminal-{handler}-{transport}")).handler(handler);
            let sandbox = node.run_pod(&pod).await?;
            let id = node.start(&sandbox, &pod, &Container::new("c", IMAGE).command(&["/bin/sleep", "1000"])).await?;
            let command = crictl(&["exec", "-it", "-r", transport, &id, "/bin/sh"])?;
            let mut running = Running::on_terminal(&command)?;
            running.keys("tty; echo $TERM-ed; until stty size | grep '^24 80'; do :; done\r")?;
            running.wait_for("\n24 80").await?;
            running.wait_for("xterm-ed").await?;
            running.keys("sleep 1000\r")?;
            wait_processes(node, &id, "sleep", 2).await?;
            running.keys("\x03")?;
            wait_processes(node, &id, "sleep", 1).await?;
            running.keys("exit 5\r")?;
            let ended = running.end().await?.expect(1)?;
            assert!(ended.out.contains("/dev/pts/") && ended.out.contains("exit code 5"), "{handler:?}: {ended:?}");
            node.remove_pod(&sandbox).await?;
        }
        Ok(())
    });
}

#[test]
fn a_client_that_leaves_takes_its_command_with_it() {
    e2e_cri(async |node| {
        let (sandbox, id) = sleeper(node).await?;
        for transport in TRANSPORTS.iter().copied() {
            let script = "trap '' HUP TERM; sleep 1000 & sleep 1000 & echo begun; wait";
            let (running, keys) = fed(&["exec", "-i", "-r", transport, &id, "/bin/sh", "-c", script])?;
            running.wait_for("begun").await?;
            wait_processes(node, &id, "sleep", 3).await?;
            running.signal(Signal::SIGKILL)?;
            wait_processes(node, &id, "sleep", 1).await.context("it talked")?;
            drop(keys);
            // Also one whose input nobody reads.
            let mut command = crictl(&["exec", "-i", "-r", transport, &id, "/bin/sleep", "1000"])?;
            let running = Running::start(command.stdin(fs::File::open("/dev/zero")?))?;
            wait_processes(node, &id, "sleep", 2).await?;
            running.signal(Signal::SIGKILL)?;
            wait_processes(node, &id, "sleep", 1).await.with_context(|| format!("it was fed over {transport}"))?;
        }
        Ok(node.remove_pod(&sandbox).await?)
    });
}

#[test]
fn a_daemon_that_ends_does_not_wait_for_streams() {
    e2e(async |node| {
        let (sandbox, id) = sleeper(node).await?;
        let (exec, _keys) = fed(&["exec", "-i", &id, "/bin/sh", "-c", "echo begun; sleep 1000"])?;
        exec.wait_for("begun").await?;
        let forward = Running::start(&mut crictl(&["port-forward", &sandbox, "0:80"])?)?;
        forward.wait_for("Forwarding from").await?;
        node.terminate_daemon()?;
        let ended = exec.end().await?.expect(1)?;
        assert!(ended.err.contains("the daemon ends"), "{ended:?}");
        assert!(forward.end().await?.code != 0);
        node.start_daemon().await?;
        wait_processes(node, &id, "sleep", 1).await?;
        Ok(node.remove_pod(&sandbox).await?)
    });
}

#[test]
fn a_killed_daemon_costs_its_clients_their_streams_and_nothing_else() {
    e2e(async |node| {
        let (pod, sandbox) = pod(node, "killed").await?;
        let id = node.start(&sandbox, &pod, &interactive("c", false, false)).await?;
        let (attached, mut keys) = fed(&["attach", "-i", &id])?;
        keys.write_all(b"echo one\n")?;
        attached.wait_for("one").await?;
        let (exec, _keys) = fed(&["exec", "-i", &id, "/bin/sh", "-c", "echo begun; cat"])?;
        exec.wait_for("begun").await?;
        node.kill_daemon()?;
        attached.end().await?;
        exec.end().await?;
        node.start_daemon().await?;
        // The command sees the end of its input, and the container sees nothing.
        wait_processes(node, &id, "cat", 0).await?;
        let (attached, mut keys) = fed(&["attach", "-i", &id])?;
        keys.write_all(b"echo two; exit 6\n")?;
        assert_eq!(attached.end().await?.expect(0)?.out, "two\n");
        assert_eq!(node.wait_exited(&id).await?.exit_code, 6);
        Ok(node.remove_pod(&sandbox).await?)
    });
}

#[test]
fn many_execs_run_at_once() {
    e2e_cri(async |node| {
        let (sandbox, id) = sleeper(node).await?;
        let running = (0..24).map(|number: usize| {
            let script = format!("echo begun; cat; echo {number}");
            fed(&["exec", "-i", "-r", TRANSPORTS[number % TRANSPORTS.len()], &id, "/bin/sh", "-c", &script])
        });
        let running = running.collect::<Result<Vec<_>>>()?;
        for (running, _) in &running {
            running.wait_for("begun").await?;
        }
        let ended = running.into_iter().enumerate().map(async |(number, (running, mut keys))| -> Result<()> {
            keys.write_all(b"text\n")?;
            drop(keys);
            assert_eq!(running.end().await?.expect(0)?.out, format!("begun\ntext\n{number}\n"));
            Ok(())
        });
        try_join_all(ended).await?;
        Ok(node.remove_pod(&sandbox).await?)
    });
}

// proves: ExecRequest.{stdin, stdout, stderr}, AttachRequest.{stdin, stdout, stderr, tty}
#[test]
fn what_can_not_be_is_refused() {
    e2e_cri(async |node| {
        let (pod, sandbox) = pod(node, "refused").await?;
        let id = node.start(&sandbox, &pod, &Container::new("c", IMAGE).command(&["/bin/sleep", "1000"])).await?;
        let cri = node.cri();
        let request = |id: &str, tty, [stdin, stdout, stderr]: [bool; 3]| cri::ExecRequest {
            container_id: id.to_owned(),
            cmd: vec!["/bin/true".to_owned()],
            tty,
            stdin,
            stdout,
            stderr,
        };
        let attach = |exec: cri::ExecRequest| {
            let cri::ExecRequest { container_id, tty, stdin, stdout, stderr, .. } = exec;
            cri::AttachRequest { container_id, stdin, tty, stdout, stderr }
        };
        let created = node.create(&sandbox, &pod, &Container::new("created", IMAGE)).await?;
        for (request, code, words) in [
            (request("0123", false, [true; 3]), Code::NotFound, "0123"),
            (request(&id, true, [true; 3]), Code::InvalidArgument, "tty"),
            (request(&id, false, [false; 3]), Code::InvalidArgument, "stdin"),
            (request(&created, false, [true; 3]), Code::FailedPrecondition, "Created"),
        ] {
            assert_failed(cri.exec(request.clone()).await, code, &[words]);
            assert_failed(cri.attach(attach(request)).await, code, &[words]);
        }
        let no_command = cri::ExecRequest { cmd: Vec::new(), ..request(&id, false, [true; 3]) };
        assert_failed(cri.exec(no_command).await, Code::InvalidArgument, &["command"]);
        let forward = |id: &str, port| cri::PortForwardRequest { pod_sandbox_id: id.to_owned(), port: vec![port] };
        assert_failed(cri.port_forward(forward("0123", 80)).await, Code::NotFound, &["0123"]);
        assert_failed(cri.port_forward(forward(&sandbox, 65_536)).await, Code::InvalidArgument, &["port"]);
        cri.stop_pod_sandbox(&sandbox).await?;
        assert_failed(cri.port_forward(forward(&sandbox, 80)).await, Code::FailedPrecondition, &["NotReady"]);
        Ok(cri.remove_pod_sandbox(&sandbox).await?)
    });
}

/// Sends a request with an upgrade to SPDY; answers the status line.
fn upgrade(address: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    let upgrade = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n";
    stream.write_all(format!("POST {path} HTTP/1.1\r\nHost: x\r\n{upgrade}\r\n").as_bytes())?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[test]
fn an_address_is_good_once_and_for_what_it_was_made() {
    e2e_cri(async |node| {
        let (sandbox, id) = sleeper(node).await?;
        let request =
            cri::ExecRequest { container_id: id, cmd: vec!["/bin/true".into()], stdout: true, ..Default::default() };
        let url = node.cri().exec(request.clone()).await?.url;
        let rest = url.strip_prefix("http://").context("plain http by default")?;
        let (address, token) = rest.split_once("/exec/").context("a path")?;
        assert!(address.starts_with("127.0.0.1:"), "{url}");
        assert_eq!(upgrade(address, &format!("/exec/{token}"))?, "HTTP/1.1 101");
        assert_eq!(upgrade(address, &format!("/exec/{token}"))?, "HTTP/1.1 404");
        let url = node.cri().exec(request).await?.url;
        let (_, token) = url.split_once("/exec/").context("a path")?;
        assert_eq!(upgrade(address, &format!("/attach/{token}"))?, "HTTP/1.1 404");
        for path in ["/", "/exec", "/exec/", "/exec/x/y", "/other/x"] {
            assert_eq!(upgrade(address, path)?, "HTTP/1.1 404", "{path}");
        }
        Ok(node.remove_pod(&sandbox).await?)
    });
}

// proves: Attach, AttachRequest.{container_id, stdin, stdout, stderr}, AttachResponse.url
// proves: ContainerConfig.{stdin, stdin_once}
#[test]
fn attached_clients_see_what_comes_and_one_writes() {
    e2e_cri(async |node| {
        let (pod, sandbox) = pod(node, "attach").await?;
        for (number, transport) in TRANSPORTS.iter().copied().enumerate() {
            let id = node.start(&sandbox, &pod, &interactive(&format!("c{number}"), false, true)).await?;
            let (first, mut keys) = fed(&["attach", "-i", "-r", transport, &id])?;
            keys.write_all(b"echo one\n")?;
            first.wait_for("one\n").await?;
            let second = Running::start(&mut crictl(&["attach", "-r", transport, &id])?)?;
            // It says nothing when it is there: the shell tells until it hears.
            let mut rounds = 0;
            while !second.out().contains("two") {
                keys.write_all(b"echo two; echo err >&2\n")?;
                rounds += 1;
                first.wait_for_times("two\n", rounds).await?;
            }
            keys.write_all(b"echo three\n")?;
            drop(keys);
            let (first, second) = (first.end().await?.expect(0)?, second.end().await?.expect(0)?);
            assert!(first.out.starts_with("one\ntwo\n") && first.out.ends_with("two\nthree\n"), "{first:?}");
            assert!(
                !second.out.contains("one") && second.out.ends_with("two\nthree\n"),
                "nothing is repeated: {second:?}"
            );
            assert!(first.err.contains("err\n") && second.err.contains("err\n"));
            let status = node.wait_exited(&id).await?;
            assert_eq!(status.exit_code, 0, "stdin ended with its first client");
            let log = vaina_tests::node::log_text(&node.log(&status)?)?;
            assert!(log.starts_with("one\n") && log.ends_with("three\n"), "{log}");
        }
        Ok(node.remove_pod(&sandbox).await?)
    });
}

// proves: ContainerConfig.stdin_once
#[test]
fn stdin_that_is_not_for_one_client_outlives_it() {
    e2e_cri(async |node| {
        let (pod, sandbox) = pod(node, "stdin").await?;
        let mut container = interactive("c", false, false);
        // Nobody needs a log to be seen.
        container.config.log_path.clear();
        let id = node.start(&sandbox, &pod, &container).await?;
        for text in ["one", "two"] {
            let (running, mut keys) = fed(&["attach", "-i", &id])?;
            keys.write_all(format!("echo {text}\n").as_bytes())?;
            running.wait_for(text).await?;
            drop(keys);
            assert_eq!(running.end().await?.expect(0)?.out, format!("{text}\n"));
        }
        assert_eq!(node.cri().container(&id).await?.state(), cri::ContainerState::ContainerRunning);
        let (running, mut keys) = fed(&["attach", "-i", &id])?;
        keys.write_all(b"echo last; exit 3\n")?;
        assert_eq!(running.end().await?.expect(0)?.out, "last\n");
        assert_eq!(node.wait_exited(&id).await?.exit_code, 3);
        Ok(node.remove_pod(&sandbox).await?)
    });
}

// proves: AttachRequest.tty, ContainerConfig.tty
#[test]
fn a_containers_terminal_is_attached_to() {
    e2e_cri(async |node| {
        let (pod, sandbox) = pod(node, "terminal").await?;
        for (number, transport) in TRANSPORTS.iter().copied().enumerate() {
            let id = node.start(&sandbox, &pod, &interactive(&format!("c{number}"), true, true)).await?;
            let mut running = Running::on_terminal(&crictl(&["attach", "-it", "-r", transport, &id])?)?;
            running.keys("until stty size | grep '^24 80'; do :; done; tty\r")?;
            running.wait_for("\n24 80").await?;
            running.wait_for("/dev/pts/").await?;
            running.keys("echo done; exit 4\r")?;
            running.end().await?;
            let status = node.wait_exited(&id).await?;
            assert_eq!(status.exit_code, 4, "{transport}");
            assert!(vaina_tests::node::log_text(&node.log(&status)?)?.contains("done"));
        }
        Ok(node.remove_pod(&sandbox).await?)
    });
}

#[test]
fn a_client_that_does_not_read_stops_neither_container_nor_log() {
    e2e_cri(async |node| {
        let (pod, sandbox) = pod(node, "slow").await?;
        let id = node.start(&sandbox, &pod, &interactive("c", false, false)).await?;
        let (slow, mut keys) = fed(&["attach", "-i", &id])?;
        keys.write_all(b"echo begun\n")?;
        slow.wait_for("begun").await?;
        slow.signal(Signal::SIGSTOP)?;
        node.sh(&id, "exec > /proc/1/fd/1; seq 1 9000000 | head -c 60000000; echo; echo over").await?;
        node.wait_log(&id, "\nover\n").await?;
        node.cri().stop_container(&id, 0).await?;
        let log = vaina_tests::node::log_text(&node.log(&node.cri().container(&id).await?)?)?;
        assert_eq!(log.len(), "begun\n".len() + 60_000_000 + "\nover\n".len());
        slow.signal(Signal::SIGCONT)?;
        let slow = slow.end().await?;
        assert!(slow.code != 0 && slow.err.contains("behind"), "{}: {}", slow.code, slow.err);
        Ok(node.remove_pod(&sandbox).await?)
    });
}

/// `crictl port-forward`, and the local port of each.
async fn forward(sandbox: &str, transport: &str, ports: &[&str]) -> Result<(Running, Vec<u16>)> {
    let arguments = [&["port-forward", "-r", transport, sandbox], ports].concat();
    let running = Running::start(&mut crictl(&arguments)?)?;
    running.wait_for_times("Forwarding from 127.0.0.1:", ports.len()).await?;
    let out = running.out();
    let local = out.lines().filter_map(|line| line.strip_prefix("Forwarding from 127.0.0.1:")?.split_once(' '));
    let local = local.map(|(port, _)| Ok(port.parse()?)).collect::<Result<Vec<u16>>>()?;
    ensure!(local.len() == ports.len(), "{out}");
    Ok((running, local))
}

/// Sends all, says that there is no more, and answers what comes back.
fn exchange(port: u16, text: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut answer = Vec::new();
    thread::scope(|scope| {
        let mut writer = stream.try_clone()?;
        let writing = scope.spawn(move || {
            writer.write_all(text)?;
            writer.shutdown(Shutdown::Write)
        });
        stream.read_to_end(&mut answer)?;
        writing.join().expect("the writer does not panic")
    })?;
    Ok(answer)
}

// proves: PortForward, PortForwardRequest.pod_sandbox_id, PortForwardResponse.url
#[test]
fn ports_are_forwarded() {
    e2e_cri(async |node| {
        let (pod, sandbox) = pod(node, "ports").await?;
        let script = "mkdir /srv; echo served > /srv/index.html; httpd -p '[::1]:80' -h /srv; \
                      nc -ll -p 8 -e sha256sum & exec probe echo 7";
        let id = node.start(&sandbox, &pod, &Container::new("c", IMAGE).sh(script)).await?;
        wait::until("the servers listen", async || {
            let list = node.sh(&id, "netstat -tln").await?;
            Ok([":80 ", ":7 ", ":8 "].iter().all(|port| list.contains(port)).then_some(()))
        })
        .await?;
        let text: Vec<u8> = (0..300_000).flat_map(|number: u32| number.to_le_bytes()).collect();
        for transport in TRANSPORTS.iter().copied() {
            let (running, ports) = forward(&sandbox, transport, &["0:80", "0:7", "0:8"]).await?;
            let (web, echo, sum) = (ports[0], ports[1], ports[2]);
            let page = exchange(web, b"GET / HTTP/1.0\r\n\r\n")?;
            assert!(page.starts_with(b"HTTP/1.") && page.ends_with(b"served\n"), "over IPv6: {page:?}");
            assert_eq!(exchange(sum, b"abc")?.len(), 68, "an answer that comes after the end of the question");
            assert!(exchange(echo, &text)? == text, "{transport}");
            thread::scope(|scope| {
                let all: Vec<_> = (0..40)
                    .map(|number: usize| {
                        scope.spawn(move || {
                            let text = vec![b'a'; 1000 * number];
                            Ok::<_, anyhow::Error>(exchange(echo, &text)? == text)
                        })
                    })
                    .collect();
                all.into_iter().map(|one| one.join().expect("it does not panic")).collect::<Result<Vec<_>>>()
            })?
            .iter()
            .enumerate()
            .for_each(|(number, same)| assert!(same, "{transport}: connection {number}"));
            running.signal(Signal::SIGINT)?;
            running.end().await?;
            // Nobody listens on that port.
            let (running, ports) = forward(&sandbox, transport, &["0:81"]).await?;
            assert!(exchange(ports[0], b"").unwrap_or_default().is_empty());
            running.wait_for("refused").await?;
            running.signal(Signal::SIGINT)?;
            running.end().await?;
        }
        // In the node's own network.
        let own = node.pod("own").host_network();
        let other = node.run_pod(&own).await?;
        let id = node.start(&other, &own, &Container::new("c", IMAGE).command(&["/bin/probe", "echo", "7"])).await?;
        node.wait_log(&id, "echoing").await?;
        let (running, ports) = forward(&other, "spdy", &["0:7"]).await?;
        assert_eq!(exchange(ports[0], b"abc")?, b"abc");
        running.signal(Signal::SIGINT)?;
        running.end().await?;
        node.remove_pod(&other).await?;
        // The client sees the pod's end.
        let (running, _) = forward(&sandbox, "spdy", &["0:7"]).await?;
        node.remove_pod(&sandbox).await?;
        assert!(running.end().await?.code != 0);
        Ok(())
    });
}

/// A client that speaks WebSocket channels, as some others than Go's do.
struct Channels(TcpStream);

impl Channels {
    fn open(url: &str, protocol: &str) -> Result<Self> {
        let rest = url.strip_prefix("http://").context("plain http")?;
        let (address, path) = rest.split_once('/').context("a path")?;
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        write!(
            stream,
            "GET /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: {protocol}\r\n\r\n"
        )?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            answer.extend(byte);
        }
        let answer = String::from_utf8(answer)?.to_lowercase();
        ensure!(answer.contains(" 101 ") && answer.contains(protocol), "{answer}");
        Ok(Self(stream))
    }

    /// Sends a message of up to 124 bytes, with a mask that changes nothing.
    fn send(&mut self, channel: u8, text: &[u8]) -> Result<()> {
        let mut message = vec![0x82, 0x80 | u8::try_from(text.len() + 1)?, 0, 0, 0, 0, channel];
        message.extend_from_slice(text);
        Ok(self.0.write_all(&message)?)
    }

    /// The next message, which must be shorter than 64 KiB: its kind and its content.
    fn receive(&mut self) -> Result<(u8, Vec<u8>)> {
        let mut head = [0; 2];
        self.0.read_exact(&mut head)?;
        let mut length = u16::from(head[1]);
        ensure!(length < 127, "a message of 64 KiB or more");
        if length == 126 {
            let mut longer = [0; 2];
            self.0.read_exact(&mut longer)?;
            length = u16::from_be_bytes(longer);
        }
        let mut content = vec![0; length.into()];
        self.0.read_exact(&mut content)?;
        Ok((head[0] & 15, content))
    }
}

// proves: PortForwardRequest.port
#[test]
fn channels_serve_other_clients() {
    e2e_cri(async |node| {
        let (pod, sandbox) = pod(node, "channels").await?;
        let id = node.start(&sandbox, &pod, &Container::new("c", IMAGE).command(&["/bin/probe", "echo", "7"])).await?;
        node.wait_log(&id, "echoing").await?;
        let port = vec![7, 9];
        let request = cri::PortForwardRequest { pod_sandbox_id: sandbox.clone(), port };
        let mut ports = Channels::open(&node.cri().port_forward(request).await?.url, "v4.channel.k8s.io")?;
        let mut greetings = vec![ports.receive()?, ports.receive()?, ports.receive()?, ports.receive()?];
        let mut refusal = Vec::new();
        if let Some(early) = greetings.iter().position(|(_, content)| content.len() > 3) {
            refusal = greetings.remove(early).1;
            greetings.push(ports.receive()?);
        }
        greetings.sort();
        let greeting = |channel, port| (2, vec![channel, port, 0]);
        assert_eq!(greetings, [greeting(0, 7), greeting(1, 7), greeting(2, 9), greeting(3, 9)]);
        if refusal.is_empty() {
            refusal = ports.receive()?.1;
        }
        assert!(refusal[0] == 3 && String::from_utf8_lossy(&refusal).contains("refused"), "{refusal:?}");
        ports.send(0, b"text")?;
        assert_eq!(ports.receive()?, (2, b"\0text".to_vec()));
        drop(ports);
        // The oldest protocol has no status, and nobody can end its stdin.
        let cmd = ["/bin/sh", "-c", "read x; echo got $x; exit 3"].map(str::to_owned).to_vec();
        let request =
            cri::ExecRequest { container_id: id, cmd, stdin: true, stdout: true, ..cri::ExecRequest::default() };
        let mut exec = Channels::open(&node.cri().exec(request).await?.url, "channel.k8s.io")?;
        assert_eq!(exec.receive()?, (2, vec![1]), "it is there");
        exec.send(0, b"it\n")?;
        assert_eq!(exec.receive()?, (2, b"\x01got it\n".to_vec()));
        let word = exec.receive()?.1;
        // Its words are the server's own.
        let text = String::from_utf8_lossy(&word);
        assert!(word[0] == 3 && text.contains("exit") && text.ends_with(" 3"), "{text}");
        assert_eq!(exec.receive()?, (8, 1000_u16.to_be_bytes().to_vec()), "a normal end");
        Ok(node.remove_pod(&sandbox).await?)
    });
}

/// A certificate for loopback, made by openssl.
fn certificate(directory: &Path) -> Result<(PathBuf, PathBuf)> {
    let (certificate, key) = (directory.join("tls.crt"), directory.join("tls.key"));
    let mut openssl = Command::new(require::tool("openssl", "openssl")?);
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]);
    openssl.args(["-subj", "/CN=localhost", "-keyout"]).arg(&key).arg("-out").arg(&certificate);
    vaina_tests::node::run(&mut openssl)?;
    Ok((certificate, key))
}

#[test]
fn streams_are_encrypted_where_that_is_configured() {
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = certificate(directory.path()).unwrap();
    let config = format!(
        "[streaming]\naddress = '127.0.0.1:0'\nidle_timeout_seconds = 60\n[streaming.tls]\ncertificate = '{}'\nkey = '{}'\n",
        certificate.display(),
        key.display()
    );
    e2e_with(Options { config: Some(config), ..Options::default() }, async |node| {
        let (sandbox, id) = sleeper(node).await?;
        for transport in TRANSPORTS.iter().copied() {
            let mut command = crictl(&["exec", "-i", "-r", transport, &id, "/bin/cat"])?;
            let (reader, mut writer) = pipe()?;
            writer.write_all(b"secret")?;
            drop(writer);
            let ended = Running::start(command.stdin(reader))?.end().await?.expect(0)?;
            assert_eq!(ended.out, "secret", "{transport}");
        }
        Ok(node.remove_pod(&sandbox).await?)
    });
}

#[test]
fn a_session_in_which_nothing_moves_is_cut() {
    let config = "[streaming]\nidle_timeout_seconds = 1\n".to_owned();
    e2e_with(Options { config: Some(config), ..Options::default() }, async |node| {
        let (sandbox, id) = sleeper(node).await?;
        let (running, _keys) = fed(&["exec", "-i", &id, "/bin/sleep", "1001"])?;
        let ended = running.end().await?.expect(1)?;
        assert!(ended.err.contains("idle"), "{ended:?}");
        wait_processes(node, &id, "sleep", 1).await?;
        Ok(node.remove_pod(&sandbox).await?)
    });
}
