//! What goes in and out: exec, attach, port-forward, logs.

use std::{
    fs,
    io::{PipeWriter, Read as _, Write as _, pipe},
    net::{Shutdown, TcpStream},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::json;
use vaina_tests::{node::IMAGE, running::Running, wait};

use super::{containers, pods, session::Session};

const TRANSPORTS: [&str; 2] = ["spdy", "websocket"];

pub(super) async fn scene(session: &mut Session<'_>) -> Result<()> {
    let pod = pods::file(session, "talk", &json!({}))?;
    let sandbox = session.make("talk", &["runp", &pod])?;
    let script = "httpd -p 80 -h /www; echo ready; exec sleep 1000";
    let sleeper = containers::file(session, "sleeper", IMAGE, script)?;
    let sleeper = session.make("sleeper", &["create", "--no-pull", &sandbox, &sleeper, &pod])?;
    session.shows(&["start", &sleeper], "<sleeper>")?;
    session.node.wait_log(&sleeper, "ready").await?;
    exec(session, &sleeper).await?;
    attach(session, &pod, &sandbox).await?;
    port_forward(session, &sandbox).await?;
    logs(session, &pod, &sandbox).await?;
    session.run(&["rmp", "-f", &sandbox]).map(drop)
}

async fn exec(session: &mut Session<'_>, sleeper: &str) -> Result<()> {
    session.shows(&["exec", "--sync", sleeper, "echo", "hello"], "hello")?;
    session.fails(&["exec", "--sync", sleeper, "/bin/sh", "-c", "exit 4"], &["exited with 4"]).await?;
    session.fails(&["exec", "--sync", "--timeout", "1", sleeper, "sleep", "100"], &["timed out after 1s"]).await?;
    session.fails(&["exec", "--sync", sleeper, "/nonsense"], &["/nonsense"]).await?;
    for transport in TRANSPORTS {
        let exec = ["exec", "--transport", transport];
        let ended = session
            .start(&[&exec[..], &[sleeper, "/bin/sh", "-c", "echo out; echo err >&2"]].concat())?
            .end()
            .await?
            .expect(0)?;
        ensure!((ended.out.as_str(), ended.err.as_str()) == ("out\n", "err\n"), "{transport}: {ended:?}");
        session.fails(&[&exec[..], &[sleeper, "/bin/sh", "-c", "exit 5"]].concat(), &["exit code 5"]).await?;
        let (running, mut keys) = fed(session, &[&exec[..], &["-i", sleeper, "/bin/cat"]].concat())?;
        keys.write_all(b"typed\n")?;
        running.wait_for("typed").await?;
        drop(keys);
        running.end().await?.expect(0)?;

        let command = session.command(&[&exec[..], &["-it", sleeper, "/bin/sh"]].concat())?;
        let mut terminal = Running::on_terminal(&command)?;
        terminal.keys("stty size; tty; exit 6\n")?;
        let ended = terminal.end().await?;
        ensure!(ended.out.contains("24 80") && ended.out.contains("/dev/pts/"), "{transport}: {ended:?}");
        ensure!(ended.code != 0 && ended.out.contains("exit code 6"), "{transport}: {ended:?}");
    }
    session.shows(&["exec", "--name", "sleeper", "--state", "Running", "echo", "hello"], "<sleeper>:\nhello")?;
    session.shows(&["exec", "-q", "--latest", "echo", "hello"], "hello")?;
    session.shows(&["exec", "--parallel", "--label", "role=sleeper", "echo", "hello"], "hello")?;
    let ended = session.start(&["exec", "-q", "--ignore-errors", "--image", IMAGE, "false"])?.end().await?.expect(0)?;
    ensure!(ended.out.is_empty(), "{ended:?}");
    Ok(())
}

/// A command whose input stays open until the writer is dropped.
fn fed(session: &mut Session<'_>, arguments: &[&str]) -> Result<(Running, PipeWriter)> {
    let (reader, writer) = pipe()?;
    Ok((Running::start(session.command(arguments)?.stdin(reader))?, writer))
}

async fn attach(session: &mut Session<'_>, pod: &str, sandbox: &str) -> Result<()> {
    for transport in TRANSPORTS {
        for tty in [false, true] {
            let name = format!("shell-{transport}-{tty}");
            let path = containers::file(
                session,
                &name,
                IMAGE,
                "while read x; do echo got $x; test $x != end || exit 7; done",
            )?;
            let mut config: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
            config["stdin"] = json!(true);
            config["tty"] = json!(tty);
            fs::write(&path, config.to_string())?;
            let id = session.make(&name, &["create", "--no-pull", sandbox, &path, pod])?;
            session.run(&["start", &id])?;
            if tty {
                let command = session.command(&["attach", "-it", "--transport", transport, &id])?;
                let mut terminal = Running::on_terminal(&command)?;
                terminal.keys("one\n")?;
                terminal.wait_for("got one").await?;
                terminal.keys("end\n")?;
                terminal.wait_for("got end").await?;
                terminal.end().await?;
            } else {
                let (running, mut keys) = fed(session, &["attach", "-i", "--transport", transport, &id])?;
                let second = session.start(&["attach", "--transport", transport, &id])?;
                keys.write_all(b"one\n")?;
                running.wait_for("got one").await?;
                // It may have come after that line.
                wait::until("the second client sees the output", async || {
                    keys.write_all(b"more\n")?;
                    Ok(second.out().contains("got more").then_some(()))
                })
                .await?;
                keys.write_all(b"end\n")?;
                running.wait_for("got end").await?;
                drop(keys);
                running.end().await?.expect(0)?;
                second.end().await?.expect(0)?;
            }
            let status = session.node.wait_exited(&id).await?;
            ensure!(status.exit_code == 7, "{name}: {status:?}");
        }
    }
    Ok(())
}

async fn port_forward(session: &mut Session<'_>, sandbox: &str) -> Result<()> {
    for transport in TRANSPORTS {
        let forward = session.start(&["port-forward", "--transport", transport, sandbox, "0:80"])?;
        forward.wait_for("Forwarding from 127.0.0.1:").await?;
        let told = forward.out() + &forward.err();
        let after = told.split("127.0.0.1:").nth(1).context("a port")?;
        let port: u16 = after.chars().take_while(char::is_ascii_digit).collect::<String>().parse()?;
        for _ in 0..3 {
            let mut stream = TcpStream::connect(("127.0.0.1", port))?;
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
            stream.shutdown(Shutdown::Write)?;
            let mut page = String::new();
            stream.read_to_string(&mut page)?;
            ensure!(page.contains("the page of the image"), "{transport}: {page}");
        }
        forward.signal(Signal::SIGINT)?;
        forward.end().await?;
    }
    session.fails(&["port-forward", "0123456789ab", "0:80"], &["NotFound"]).await.map(drop)
}

async fn logs(session: &mut Session<'_>, pod: &str, sandbox: &str) -> Result<()> {
    // The pauses order the two streams, which are two pipes.
    let script = "echo one; sleep 0.2; echo two >&2; sleep 0.2; echo three; while ! test -e /tmp/go; do sleep 0.05; done; echo four";
    let path = containers::file(session, "writer", IMAGE, script)?;
    let writer = session.make("writer", &["create", "--no-pull", sandbox, &path, pod])?;
    session.run(&["start", &writer])?;
    session.node.wait_log(&writer, "three").await?;

    let read = async |session: &mut Session<'_>, options: &[&str]| -> Result<(String, String)> {
        let ended = session.start(&[&["logs"], options, &[&writer]].concat())?.end().await?.expect(0)?;
        Ok((ended.out, ended.err))
    };
    for (options, out, err) in [
        (&[][..], "one\nthree\n", "two\n"),
        (&["--tail", "1"], "three\n", ""),
        (&["--tail", "2"], "three\n", "two\n"),
        (&["--tail", "0"], "", ""),
        (&["--limit-bytes", "3"], "one", ""),
        (&["--stream", "stdout"], "one\nthree\n", ""),
        (&["--stream", "stderr"], "", "two\n"),
        (&["--since", "1h"], "one\nthree\n", "two\n"),
        (&["--since", "2100-01-01T00:00:00Z"], "", ""),
    ] {
        let printed = read(session, options).await?;
        ensure!(printed == (out.to_owned(), err.to_owned()), "{options:?}: {printed:?}");
    }
    let (out, _) = read(session, &["--timestamps", "--tail", "1"]).await?;
    let (time, text) = out.split_once(' ').context("a time")?;
    ensure!(text == "three\n" && time.starts_with("20") && time.contains('T'), "{out:?}");

    // What was rotated away is not in the new file, and following goes on in it.
    let log = session.node.cri().container(&writer).await?.log_path;
    fs::rename(&log, format!("{log}.old"))?;
    let (out, err) = read(session, &["--reopen"]).await?;
    ensure!(out.is_empty() && err.contains("reopened"), "{out:?} {err:?}");
    let follow = session.start(&["logs", "--follow", &writer])?;
    // The container ends with it, and may take it along before it has ended itself.
    session.start(&["exec", "-s", &writer, "touch", "/tmp/go"])?.end().await?;
    follow.wait_for("four").await?;
    // It ends with its container.
    let ended = follow.end().await?.expect(0)?;
    ensure!(ended.out == "four\n", "{ended:?}");

    session.fails(&["logs", "--previous", &writer], &["previous terminated container"]).await?;
    let text = fs::read_to_string(&path)?.replace(r#""name":"writer""#, r#""attempt":1,"name":"writer""#);
    fs::write(&path, text.replace("writer/0.log", "writer/1.log").replace("echo one", "echo again"))?;
    session.run(&["rm", "--keep-logs", &writer])?;
    let second = session.make("second", &["create", "--no-pull", sandbox, &path, pod])?;
    session.run(&["start", &second])?;
    session.node.wait_log(&second, "three").await?;
    session.shows(&["logs", "--previous", &second], "four")?;
    session.shows(&["logs", "--stream", "stdout", &second], "again\nthree")
}
