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

use crate::{node::run, require, wait};

/// The pause image that containerd asks for.
pub const PAUSE: &str = "registry.k8s.io/pause:3.10.1";

/// Source of the program between containerd and Debian's crun.
const CRUN: &str = include_str!("crun.c");

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
            "containerd-runc" => Self::containerd(name, "runc", 89, ground, registry),
            "containerd-crun" => Self::containerd(name, "crun", 90, ground, registry),
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

    /// containerd with an OCI runtime, with its defaults but for directories, the machine's missing right to lower OOM
    /// scores, and the bridge network of the usual plugins.
    fn containerd(name: &str, runtime: &str, net: u8, ground: &Path, registry: &str) -> Result<(Self, PathBuf)> {
        let tools = require::containerd()?;
        let plugins = require::network_plugins()?;
        let home = home(ground, name)?;
        let mut runtime = require::tool(runtime, runtime)?;
        if name == "containerd-crun" {
            require::cgroups_for_crun()?;
            runtime = crun_of_debian(&runtime, &home)?;
        }
        let state = PathBuf::from("/run").join(name);
        let socket = state.join("containerd.sock");
        let (network, registries) = (home.join("net.d"), home.join("certs.d"));
        for directory in [&network, &registries.join("registry.k8s.io"), &registries.join(registry)] {
            fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
            fs::write(
                directory.join("hosts.toml"),
                format!("[host.\"http://{registry}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"),
            )?;
        }
        fs::remove_file(network.join("hosts.toml"))?;
        fs::write(network.join("10-bench.conflist"), conflist(net, &home))?;
        let config = home.join("config.toml");
        let toml = format!(
            r#"version = 3
root = {root:?}
state = {state:?}

[grpc]
  address = {socket:?}

[plugins."io.containerd.nri.v1.nri"]
  socket_path = {nri:?}

[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{PAUSE}"
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = {registries:?}

[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = [{plugins:?}]
    conf_dir = {network:?}
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "bench"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.bench]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.bench.options]
        BinaryName = {runtime:?}
        SystemdCgroup = false
"#,
            root = home.join("root"),
            nri = state.join("nri.sock"),
        );
        fs::write(&config, toml)?;
        let daemon = Self {
            program: tools.join("containerd"),
            arguments: vec!["--config".to_owned(), text(&config)?],
            path: vec![tools],
            log: home.join("log"),
            child: None,
        };
        Ok((daemon, socket))
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

/// The bridge network with masquerade and host ports, as it is usual; the same work that ours does.
fn conflist(net: u8, home: &Path) -> String {
    let config = serde_json::json!({
        "cniVersion": "1.0.0",
        "name": format!("bench{net}"),
        "plugins": [
            {
                "type": "bridge",
                "bridge": format!("bench{net}"),
                "isGateway": true,
                "ipMasq": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": home.join("ipam"),
                    "ranges": [[{ "subnet": format!("10.{net}.0.0/16") }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    });
    config.to_string()
}

/// A program that lowers the version in a bundle's config and becomes crun; see its source.
fn crun_of_debian(crun: &Path, home: &Path) -> Result<PathBuf> {
    let program = home.join("crun");
    compile(CRUN, &program, &[&format!("-DCRUN={crun:?}")])?;
    Ok(program)
}

/// Compiles a small C program, statically.
pub fn compile(source: &str, program: &Path, more: &[&str]) -> Result<()> {
    let file = program.with_extension("c");
    fs::write(&file, source).with_context(|| format!("write {}", file.display()))?;
    run(Command::new("cc").args(["-Os", "-static", "-s"]).args(more).arg("-o").arg(program).arg(&file))
        .with_context(|| format!("compile {} (Debian package build-essential)", file.display()))
        .map(drop)
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
