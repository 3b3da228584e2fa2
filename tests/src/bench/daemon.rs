//! The daemons that the benchmark starts itself: ours, and containerd with runc or crun. All on the benchmark's own ground,
//! with their own directories, sockets and networks.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    containerd::{Launch, Layout, OciRuntime},
    require, wait,
};

/// How long a daemon may take to end.
const END_LIMIT: Duration = Duration::from_secs(60);

/// A daemon and how to start it.
#[derive(Debug)]
pub struct Daemon {
    program: PathBuf,
    arguments: Vec<String>,
    path: Vec<PathBuf>,
    log: PathBuf,
    child: Option<Child>,
}

impl Daemon {
    /// The daemon of a known name, and its socket.
    pub fn known(name: &str, ground: &Path, registry: &str) -> Result<(Self, PathBuf)> {
        match name {
            "vaina" => Self::vaina(ground),
            "containerd-runc" => Self::containerd(name, 89, ground, registry),
            "containerd-crun" => Self::containerd(name, 90, ground, registry),
            _ => bail!("no daemon {name:?}: vaina, containerd-runc, containerd-crun, or --endpoint NAME=SOCKET"),
        }
    }

    /// Ours, as it is shipped.
    fn vaina(ground: &Path) -> Result<(Self, PathBuf)> {
        let programs = require::programs()?;
        let home = home(ground, "vaina")?;
        // A file of the machine's own must not change figures.
        let config = home.join("config.toml");
        fs::write(&config, format!("root = {:?}\nstate = \"/run/vaina\"\n", home.join("root")))?;
        let shims = programs.shim.parent().context("the shim's directory")?.to_owned();
        let daemon = Self {
            program: programs.vaina,
            arguments: ["serve", "--config"].map(str::to_owned).into_iter().chain([text(&config)?]).collect(),
            path: vec![shims],
            log: home.join("log"),
            child: None,
        };
        Ok((daemon, "/run/vaina/vaina.sock".into()))
    }

    fn containerd(name: &str, net: u8, ground: &Path, registry: &str) -> Result<(Self, PathBuf)> {
        let runtime = OciRuntime::of_endpoint(name).with_context(|| format!("{name} has no OCI runtime"))?;
        let home = home(ground, name)?;
        let state = PathBuf::from("/run").join(name);
        let socket = state.join("containerd.sock");
        let layout = Layout {
            home: &home,
            root: &home.join("root"),
            state: &state,
            socket: &socket,
            bridge: &format!("bench{net}"),
            subnet: &format!("10.{net}.0.0/16"),
            handlers: &[("bench", runtime)],
            registry,
            mirrored: &["registry.k8s.io"],
        };
        let Launch { program, arguments, path } = layout.configure()?;
        Ok((Self { program, arguments, path, log: home.join("log"), child: None }, socket))
    }

    /// Starts it, unless it runs.
    pub fn start(&mut self) -> Result<()> {
        if self.child.is_some() {
            return Ok(());
        }
        let log = File::options().create(true).append(true).open(&self.log).context("open the daemon's log")?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(self.path.iter().cloned().chain(std::env::split_paths(&path)))?;
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .env("PATH", path)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", self.program.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// Fails with the end of its log if it has ended by itself.
    pub fn check(&mut self) -> Result<()> {
        if let Some(child) = &mut self.child
            && let Some(status) = child.try_wait()?
        {
            self.child = None;
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(10)..].join("\n");
            bail!("{} ended by itself: {status}\n{tail}", self.program.display());
        }
        Ok(())
    }

    /// Ends it with SIGTERM and waits. Pods go on.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGTERM).context("terminate the daemon")?;
        let ended = wait::blocking("the daemon ended", END_LIMIT, || child.try_wait().transpose());
        if ended.is_err() {
            child.kill()?;
            child.wait()?;
        }
        ended?.context("wait for the daemon").map(drop)
    }

    /// Its pid while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn home(ground: &Path, name: &str) -> Result<PathBuf> {
    let home = ground.join(name);
    fs::create_dir_all(&home).with_context(|| format!("create {}", home.display()))?;
    Ok(home)
}

fn text(path: &Path) -> Result<String> {
    let text = path.to_str().with_context(|| format!("{} is not text", path.display()))?;
    ensure!(!text.is_empty(), "an empty path");
    Ok(text.to_owned())
}
