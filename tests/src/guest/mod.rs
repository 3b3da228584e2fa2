//! The guest node: a Debian machine with systemd and cgroup v2 in QEMU, for what this machine can't show.
//!
//! [`image`] makes the disk once for each recipe; [`Guest`] boots a copy of it, runs programs in it over a virtio-serial
//! port (no network is needed), and can be rebooted or have its power cut in the middle of anything. QEMU runs with
//! software emulation: `/dev/kvm` may open on a machine whose guests then hang, so it is never used.
//!
//! The [`payload`] (our programs, the tests) comes in on a second disk, so that the cached image depends on nothing of
//! ours. What is written to the disks stays over reboots and power cuts of one [`Disk`]. [`group`] is what `make test-vm`
//! runs.

pub mod agent;
pub mod group;
pub mod image;
pub mod payload;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};

use self::{
    agent::{Reply, Request},
    image::{Image, tail},
};
use crate::wait;

/// How long a boot may take: 11 s on a quiet machine, more when the host compiles beside it.
const BOOT_LIMIT: Duration = Duration::from_secs(600);

/// How long the guest may be silent while it runs something, before it is taken for stuck.
const SILENCE_LIMIT: Duration = Duration::from_secs(1200);

/// Variables of this process that programs in the guest get too begin with this.
const FORWARDED: &str = "VAINA_TEST_";

/// Room on the payload's disk for what tests make beside their programs.
const PAYLOAD_ROOM_MIB: u64 = 512;

/// The disks of one guest, which outlive its boots.
#[derive(Debug, Clone)]
pub struct Disk {
    dir: PathBuf,
    image: Image,
}

impl Disk {
    /// A fresh copy-on-write copy of the image, and the payload beside it, both in `dir`.
    pub fn create(image: &Image, dir: &Path, payload: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let disk = Self { dir: dir.to_owned(), image: image.clone() };
        let _ = fs::remove_file(disk.console());
        image::run(
            Command::new("qemu-img")
                .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
                .arg(&image.disk)
                .arg(dir.join(ROOT_DISK)),
        )?;
        image::make_ext4(payload, &dir.join(PAYLOAD_DISK), "payload", payload::size_mib(payload)? + PAYLOAD_ROOM_MIB)?;
        Ok(disk)
    }

    /// The disks that an earlier run left in `dir`.
    pub fn open(image: &Image, dir: &Path) -> Result<Self> {
        for file in [ROOT_DISK, PAYLOAD_DISK] {
            ensure!(
                dir.join(file).exists(),
                "{} is missing: no run has left its disks there",
                dir.join(file).display()
            );
        }
        Ok(Self { dir: dir.to_owned(), image: image.clone() })
    }

    /// What the kernel and systemd print, over all boots.
    pub fn console(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    /// Boots, and waits until the agent inside answers.
    pub fn boot(&self) -> Result<Guest> {
        let socket = self.dir.join("agent.sock");
        let _ = fs::remove_file(&socket);
        let console =
            File::options().create(true).append(true).open(self.console()).context("open the console's log")?;
        // Dies with this process, or a test that is killed would leave a machine behind.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", QEMU])
            .args(self.arguments())
            .args(["-serial", "stdio", "-monitor", "none", "-device", "virtio-serial-pci"])
            .args(["-chardev", &format!("socket,id=agent,path={},server=on,wait=off", socket.display())])
            .args(["-device", "virtserialport,chardev=agent,name=org.vaina.agent"])
            .stdin(Stdio::null())
            .stdout(console.try_clone()?)
            .stderr(console);
        let mut child = command.spawn().context("start setpriv (Debian package util-linux)")?;
        match connect(&socket, &mut child) {
            Ok((reader, writer, boot_id)) => Ok(Guest { disk: self.clone(), child, reader, writer, boot_id }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                let log = fs::read(self.console()).unwrap_or_default();
                let log = tail(&String::from_utf8_lossy(&log));
                Err(error.context(format!("boot the guest; its console ends with:\n{log}")))
            }
        }
    }

    /// Boots with the console on this terminal, for people, until the machine is off.
    pub fn boot_for_people(&self) -> Result<()> {
        let mut command = Command::new(QEMU);
        let status = command.args(self.arguments()).args(["-serial", "mon:stdio"]).status().context("start QEMU")?;
        ensure!(status.success(), "QEMU ended with {status}");
        Ok(())
    }

    fn arguments(&self) -> Vec<String> {
        let path = |path: &Path| path.display().to_string();
        let drive = |file: &str, format: &str| {
            format!("file={},format={format},if=virtio,cache=writeback", path(&self.dir.join(file)))
        };
        let fixed = "-accel tcg,thread=multi -cpu max -smp 2 -m 4096 -nodefaults -no-reboot -nographic -nic none";
        let mut arguments: Vec<String> = fixed.split(' ').map(ToOwned::to_owned).collect();
        for (flag, value) in [
            ("-kernel", path(&self.image.kernel)),
            ("-initrd", path(&self.image.initrd)),
            ("-append", "root=/dev/vda rw console=ttyS0 quiet panic=-1 systemd.show_status=0".to_owned()),
            ("-drive", drive(ROOT_DISK, "qcow2")),
            ("-drive", drive(PAYLOAD_DISK, "raw")),
        ] {
            arguments.extend([flag.to_owned(), value]);
        }
        arguments
    }
}

const QEMU: &str = "qemu-system-x86_64";
const ROOT_DISK: &str = "disk.qcow2";
const PAYLOAD_DISK: &str = "payload.ext4";

/// Connects to the agent and waits for its greeting.
fn connect(socket: &Path, child: &mut Child) -> Result<(BufReader<UnixStream>, UnixStream, String)> {
    let stream = wait::blocking("QEMU has made the agent's port", wait::LIMIT, || match child.try_wait() {
        Ok(None) => UnixStream::connect(socket).ok().map(Ok),
        Ok(Some(status)) => Some(Err(anyhow!("QEMU ended at once: {status}"))),
        Err(error) => Some(Err(error.into())),
    })??;
    stream.set_read_timeout(Some(BOOT_LIMIT))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line).context("wait for the agent's greeting")?;
    ensure!(!line.is_empty(), "the machine went off before its agent greeted");
    let boot_id = match serde_json::from_str(&line).with_context(|| format!("read the agent's greeting {line:?}"))? {
        Reply::Ready { boot_id } => boot_id,
        other => bail!("the agent greeted with {other:?}"),
    };
    stream.set_read_timeout(Some(SILENCE_LIMIT))?;
    Ok((reader, stream, boot_id))
}

/// A running guest. Dropping it cuts its power.
#[derive(Debug)]
pub struct Guest {
    disk: Disk,
    child: Child,
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    boot_id: String,
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
        self.wait(argv, sink)
    }

    /// As [`Guest::run`], with the output as text; a non-zero exit is an error.
    pub fn output(&mut self, argv: &[&str]) -> Result<String> {
        let mut text = Vec::new();
        let code = self.run(argv, &mut |data| text.extend_from_slice(data))?;
        let text = String::from_utf8_lossy(&text).into_owned();
        ensure!(code == 0, "{argv:?} in the guest exited with {code}: {text}");
        Ok(text)
    }

    /// Starts a program and does not wait: for what is to be cut in the middle.
    pub fn start(&mut self, argv: &[&str]) -> Result<()> {
        let environment: BTreeMap<String, String> =
            std::env::vars().filter(|(name, _)| name.starts_with(FORWARDED)).collect();
        let request = Request { argv: argv.iter().map(|arg| (*arg).to_owned()).collect(), environment };
        let mut line = serde_json::to_vec(&request)?;
        line.push(b'\n');
        self.writer.write_all(&line).map_err(|_| PowerLost)?;
        Ok(())
    }

    /// Reads the output of a started program until it contains `text`.
    pub fn wait_output(&mut self, text: &str) -> Result<()> {
        let mut seen = Vec::new();
        while !seen.windows(text.len()).any(|window| window == text.as_bytes()) {
            match self.reply()? {
                Reply::Output { data } => seen.extend(BASE64_STANDARD.decode(data).context("decode output")?),
                other => bail!("{other:?} before {text:?} in {:?}", String::from_utf8_lossy(&seen)),
            }
        }
        Ok(())
    }

    fn wait(&mut self, argv: &[&str], sink: &mut dyn FnMut(&[u8])) -> Result<i32> {
        loop {
            match self.reply()? {
                Reply::Output { data } => sink(&BASE64_STANDARD.decode(data).context("decode output")?),
                Reply::Exit { code } => return Ok(code),
                Reply::Failed { error } => bail!("start {argv:?} in the guest: {error}"),
                Reply::Ready { boot_id } if boot_id == self.boot_id => bail!("the guest's agent was started again"),
                Reply::Ready { .. } => return Err(PowerLost.into()),
            }
        }
    }

    fn reply(&mut self) -> Result<Reply> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                bail!("the guest was silent for {SILENCE_LIMIT:?}; its console is in {}", self.disk.console().display())
            }
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

    /// Cuts the power and boots again on the same disks.
    pub fn cut_power_and_boot(self) -> Result<Self> {
        let disk = self.disk.clone();
        self.cut_power()?;
        disk.boot()
    }

    /// Shuts down in order and waits for the end of QEMU.
    pub fn shut_down(self) -> Result<()> {
        self.end("poweroff")
    }

    /// Shuts down in order and boots again on the same disks. (QEMU ends at a reset, so that each boot has one.)
    pub fn reboot(self) -> Result<Self> {
        let disk = self.disk.clone();
        self.end("reboot")?;
        disk.boot()
    }

    fn end(mut self, how: &str) -> Result<()> {
        self.start(&["systemctl", how])?;
        // QEMU closes the port when the machine is off.
        loop {
            match self.reply() {
                Ok(_) => {}
                Err(error) if error.is::<PowerLost>() => break,
                Err(error) => return Err(error.context(format!("wait for the guest's {how}"))),
            }
        }
        let status = self.child.wait().context("wait for QEMU")?;
        ensure!(status.success(), "QEMU ended with {status}");
        Ok(())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
