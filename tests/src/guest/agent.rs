//! What the host and the guest's agent say to each other: one JSON value a line over a virtio-serial port.

use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    io::{BufRead as _, BufReader, Write},
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Command, Stdio},
    sync::Mutex,
    thread,
};

use anyhow::{Context as _, Result};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};

/// Host to guest: run a program.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Variables beside `HOME` and `PATH`.
    pub environment: BTreeMap<String, String>,
}

/// Guest to host.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// First line after each boot.
    Ready {
        /// Of the kernel, new at each boot.
        boot_id: String,
    },
    /// A piece of stdout or stderr, in the order of arrival.
    Output {
        /// Raw bytes, in base64.
        data: String,
    },
    /// The program ended.
    Exit {
        /// Exit code, or 128 + signal.
        code: i32,
    },
    /// The program was not started.
    Failed {
        /// Why.
        error: String,
    },
}

/// The agent's side: greets, then serves one request after the other until the port goes away.
pub fn serve(port: &Path) -> Result<()> {
    let port =
        OpenOptions::new().read(true).write(true).open(port).with_context(|| format!("open {}", port.display()))?;
    let writer = Mutex::new(port.try_clone()?);
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
    send(&writer, &Reply::Ready { boot_id })?;
    for line in BufReader::new(port).lines() {
        let line = line.context("read the port")?;
        if line.is_empty() {
            continue;
        }
        let reply = match serde_json::from_str::<Request>(&line) {
            Ok(request) => run(&request, &writer)?,
            Err(error) => Reply::Failed { error: error.to_string() },
        };
        send(&writer, &reply)?;
    }
    Ok(())
}

fn send(writer: &Mutex<impl Write>, reply: &Reply) -> Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    let mut writer = writer.lock().expect("no holder of the port panics");
    writer.write_all(&line).context("write the port")
}

fn run(request: &Request, writer: &Mutex<impl Write + Send>) -> Result<Reply> {
    let Some((program, arguments)) = request.argv.split_first() else {
        return Ok(Reply::Failed { error: "empty argv".to_owned() });
    };
    let spawned = Command::new(program)
        .args(arguments)
        .env("HOME", "/root")
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .envs(&request.environment)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => return Ok(Reply::Failed { error: error.to_string() }),
    };
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        scope.spawn(|| stdout.map(|pipe| pump(pipe, writer)));
        scope.spawn(|| stderr.map(|pipe| pump(pipe, writer)));
    });
    let status = child.wait()?;
    Ok(Reply::Exit { code: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()) })
}

fn pump(mut pipe: impl std::io::Read, writer: &Mutex<impl Write>) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(count @ 1..) = pipe.read(&mut buffer) {
        let data = BASE64_STANDARD.encode(&buffer[..count]);
        if send(writer, &Reply::Output { data }).is_err() {
            return;
        }
    }
}
