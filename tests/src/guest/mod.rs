//! The guest node: a Debian machine with systemd and cgroup v2 in QEMU, for what this machine can't show.
//!
//! [`image`] makes the disk once for each recipe; [`Guest`] boots a copy of it, runs programs in it over a virtio-serial
//! port (no network is needed), and can be rebooted or have its power cut in the middle of anything. QEMU runs with
//! software emulation: `/dev/kvm` may open on a machine whose guests then hang, so it is never used.
//!
//! Payload (our binaries, the tests) comes in on a second, read-only disk, so that the cached image depends on nothing
//! of ours. What is written to the first disk stays over reboots and power cuts of one [`Disk`].

pub mod agent;
pub mod image;

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use self::{
    agent::{Reply, Request},
    image::Image,
};

/// How long a boot may take: 11 s on a quiet machine, more when the host compiles beside it.
const BOOT_LIMIT: Duration = Duration::from_secs(300);

/// A disk that belongs to one guest and outlives its boots.
#[derive(Debug)]
pub struct Disk {
    dir: PathBuf,
    image: Image,
}

impl Disk {
    /// A fresh copy-on-write copy of the image, and the payload beside it, both in `dir`.
    pub fn create(image: &Image, dir: &Path, payload: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        image::run(
            Command::new("qemu-img")
                .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
                .arg(&image.disk)
                .arg(dir.join("disk.qcow2")),
        )?;
        image::make_ext4(payload, &dir.join("payload.ext4"), "payload")?;
        Ok(Self { dir: dir.to_owned(), image: image.clone() })
    }

    /// Boots, and waits until the agent inside answers.
    pub fn boot(&self) -> Result<Guest> {
        let socket = self.dir.join("agent.sock");
        let _ = fs::remove_file(&socket);
        let console = fs::OpenOptions::new().create(true).append(true).open(self.dir.join("console.log"))?;
        let drive = |file: &str, format: &str, more: &str| {
            format!("file={},format={format},if=virtio{more}", self.dir.join(file).display())
        };
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "4096", "-nodefaults", "-no-reboot"])
            .args(["-nographic", "-serial", "stdio", "-nic", "none"])
            .arg("-kernel")
            .arg(&self.image.kernel)
            .arg("-initrd")
            .arg(&self.image.initrd)
            .args(["-append", "root=/dev/vda rw console=ttyS0 quiet panic=-1 systemd.show_status=0"])
            .args(["-drive", &drive("disk.qcow2", "qcow2", "")])
            .args(["-drive", &drive("payload.ext4", "raw", ",readonly=on")])
            .args(["-device", "virtio-serial-pci"])
            .args(["-chardev", &format!("socket,id=agent,path={},server=on,wait=off", socket.display())])
            .args(["-device", "virtserialport,chardev=agent,name=org.vaina.agent"])
            .stdin(Stdio::null())
            .stdout(console.try_clone()?)
            .stderr(console);
        let mut child = command.spawn().context("start qemu-system-x86_64 (Debian package qemu-system-x86)")?;
        match connect(&socket, &mut child) {
            Ok((reader, writer)) => Ok(Guest { child, reader, writer, next: 1 }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                let log = fs::read_to_string(self.dir.join("console.log")).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(15).collect();
                let tail: Vec<&str> = tail.into_iter().rev().collect();
                Err(error.context(format!("boot the guest; its console ends with:\n{}", tail.join("\n"))))
            }
        }
    }
}

/// Connects to the agent and waits for its greeting.
fn connect(socket: &Path, child: &mut Child) -> Result<(BufReader<UnixStream>, UnixStream)> {
    let deadline = Instant::now() + BOOT_LIMIT;
    let stream = loop {
        if let Some(status) = child.try_wait()? {
            bail!("QEMU ended at once: {status}");
        }
        match UnixStream::connect(socket) {
            Ok(stream) => break stream,
            Err(error) if Instant::now() > deadline => return Err(error).context("connect to the agent's port"),
            // QEMU makes the socket some milliseconds after its start; there is nothing to wait on but the file.
            Err(_) => std::thread::yield_now(),
        }
    };
    stream.set_read_timeout(Some(BOOT_LIMIT))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line).context("wait for the agent's greeting")?;
    match serde_json::from_str(&line).with_context(|| format!("read the agent's greeting {line:?}"))? {
        Reply::Ready { .. } => {}
        other => bail!("the agent greeted with {other:?}"),
    }
    stream.set_read_timeout(None)?;
    Ok((reader, stream))
}

/// A running guest. Dropping it cuts its power.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    next: u64,
}

/// Why a program in the guest gave no exit code.
#[derive(Debug)]
pub struct PowerLost;

impl std::fmt::Display for PowerLost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the guest lost its power before the program ended")
    }
}

impl std::error::Error for PowerLost {}

impl Guest {
    /// Runs a program to its end, hands its output to `sink` as it comes, and answers its exit code (128 + n for a
    /// signal). [`PowerLost`] if the machine went away under it.
    pub fn run(&mut self, argv: &[&str], sink: &mut dyn FnMut(&[u8])) -> Result<i32> {
        self.start(argv)?;
        loop {
            match self.reply()? {
                Reply::Output { data } => sink(&data),
                Reply::Exit { code } => return Ok(code),
                Reply::Failed { error } => bail!("start {argv:?} in the guest: {error}"),
                Reply::Ready { .. } => return Err(PowerLost.into()),
            }
        }
    }

    /// As [`Guest::run`], with the output as text; a non-zero exit is an error.
    pub fn output(&mut self, argv: &[&str]) -> Result<String> {
        let mut text = Vec::new();
        let code = self.run(argv, &mut |data| text.extend_from_slice(data))?;
        let text = String::from_utf8_lossy(&text).into_owned();
        if code != 0 {
            bail!("{argv:?} in the guest exited with {code}: {text}");
        }
        Ok(text)
    }

    /// Starts a program and does not wait: for what is to be cut in the middle.
    pub fn start(&mut self, argv: &[&str]) -> Result<()> {
        let request = Request { id: self.next, argv: argv.iter().map(|arg| (*arg).to_owned()).collect() };
        self.next += 1;
        let mut line = serde_json::to_vec(&request)?;
        line.push(b'\n');
        self.writer.write_all(&line).map_err(|_| PowerLost)?;
        Ok(())
    }

    fn reply(&mut self) -> Result<Reply> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) | Err(_) => Err(PowerLost.into()),
            Ok(_) => serde_json::from_str(&line).with_context(|| format!("read the agent's answer {line:?}")),
        }
    }

    /// Cuts the power: what the guest had not written to its disk is gone.
    pub fn cut_power(mut self) -> Result<()> {
        self.child.kill().context("kill QEMU")?;
        self.child.wait().context("wait for QEMU")?;
        Ok(())
    }

    /// Shuts down in order and waits for the end of QEMU.
    pub fn shut_down(mut self) -> Result<()> {
        self.start(&["systemctl", "poweroff"])?;
        // QEMU closes the port when the machine is off.
        while self.reply().is_ok() {}
        let status = self.child.wait().context("wait for QEMU")?;
        if !status.success() {
            bail!("QEMU ended with {status}");
        }
        Ok(())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
