//! containerd with runc or crun, as a peer: what the benchmark measures beside ours, and what the end-to-end tests that know
//! only the CRI are tried on. It has its defaults but for directories, the machine's missing right to lower OOM scores, and
//! the bridge network of the usual plugins.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::{
    images::{Built, Image, layer::Layer},
    node::run,
    require,
};

/// The pause image that containerd asks for.
pub const PAUSE: &str = "registry.k8s.io/pause:3.10.1";

/// Source of the pause program; a static C program as the one that is published.
const PAUSE_SOURCE: &str = include_str!("containerd/pause.c");

/// Source of the program between containerd and Debian's crun.
const CRUN_SOURCE: &str = include_str!("containerd/crun.c");

/// The OCI runtime below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OciRuntime {
    /// Debian's runc.
    Runc,
    /// Debian's crun.
    Crun,
}

impl OciRuntime {
    /// The runtime of `containerd-runc` or `containerd-crun`.
    pub fn of_endpoint(name: &str) -> Option<Self> {
        match name {
            "containerd-runc" => Some(Self::Runc),
            "containerd-crun" => Some(Self::Crun),
            _ => None,
        }
    }

    /// The program; what has to be built for it is put into `home`.
    fn program(self, home: &Path) -> Result<PathBuf> {
        match self {
            Self::Runc => require::tool("runc", "runc"),
            Self::Crun => {
                require::cgroups_for_crun()?;
                let program = home.join("crun");
                if !program.exists() {
                    let crun = require::tool("crun", "crun")?;
                    compile(CRUN_SOURCE, &program, &[&format!("-DCRUN={crun:?}")])?;
                }
                Ok(program)
            }
        }
    }
}

/// Where a containerd has its things.
#[derive(Debug, Clone, Copy)]
pub struct Layout<'a> {
    /// Configuration and addresses in use.
    pub home: &'a Path,
    /// Images, snapshots, records.
    pub root: &'a Path,
    /// What ends with the machine.
    pub state: &'a Path,
    /// Its socket.
    pub socket: &'a Path,
    /// The bridge, and its network.
    pub bridge: &'a str,
    /// Of the bridge.
    pub subnet: &'a str,
    /// Handlers of a RuntimeClass; the first is the default.
    pub handlers: &'a [(&'a str, OciRuntime)],
    /// `host:port` of the registry that has its images.
    pub registry: &'a str,
    /// Hosts that this registry is a mirror of.
    pub mirrored: &'a [&'a str],
}

/// How it is started.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// What it needs in its search path.
    pub path: Vec<PathBuf>,
}

impl Layout<'_> {
    /// Writes its configuration.
    pub fn configure(&self) -> Result<Launch> {
        let tools = require::containerd()?;
        let plugins = require::network_plugins()?;
        let (network, registries) = (self.home.join("net.d"), self.home.join("certs.d"));
        create(&network)?;
        fs::write(network.join("10-bridge.conflist"), self.conflist()).context("write the network")?;
        for host in self.mirrored.iter().chain([&self.registry]) {
            let directory = registries.join(host);
            create(&directory)?;
            let text = format!("[host.\"http://{}\"]\n  capabilities = [\"pull\", \"resolve\"]\n", self.registry);
            fs::write(directory.join("hosts.toml"), text).with_context(|| format!("write the mirror of {host}"))?;
        }
        let Self { root, state, socket, .. } = self;
        let mut text = format!(
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
    default_runtime_name = {default:?}
"#,
            nri = state.join("nri.sock"),
            default = self.handlers.first().map_or("", |(name, _)| name),
        );
        for (name, runtime) in self.handlers {
            let program = runtime.program(self.home)?;
            text.push_str(&format!(
                r#"    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.{name}]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.{name}.options]
        BinaryName = {program:?}
        SystemdCgroup = false
"#
            ));
        }
        let config = self.home.join("config.toml");
        fs::write(&config, text).context("write the configuration")?;
        let config = config.to_str().context("a path is text")?.to_owned();
        Ok(Launch {
            program: tools.join("containerd"),
            arguments: vec!["--config".to_owned(), config],
            path: vec![tools],
        })
    }

    /// The bridge network with masquerade and host ports, as it is usual; the same work that ours does.
    fn conflist(&self) -> String {
        let config = json!({
            "cniVersion": "1.0.0",
            "name": self.bridge,
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": self.bridge,
                    "isGateway": true,
                    "ipMasq": true,
                    "hairpinMode": true,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": self.home.join("ipam"),
                        "ranges": [[{ "subnet": self.subnet }]],
                        "routes": [{ "dst": "0.0.0.0/0" }],
                    },
                },
                { "type": "portmap", "capabilities": { "portMappings": true } },
            ],
        });
        config.to_string()
    }
}

/// The image of [`PAUSE`]; its program is built in `home`.
pub fn pause_image(home: &Path) -> Result<Built> {
    let program = home.join("pause");
    compile(PAUSE_SOURCE, &program, &[])?;
    let layer = Layer::new().file("pause", 0o755, &fs::read(&program)?);
    Image::new().layer(layer).config("Entrypoint", json!(["/pause"])).config("User", json!("65535:65535")).build()
}

/// Compiles a small C program, statically.
fn compile(source: &str, program: &Path, more: &[&str]) -> Result<()> {
    let file = program.with_extension("c");
    fs::write(&file, source).with_context(|| format!("write {}", file.display()))?;
    run(Command::new("cc").args(["-Os", "-static", "-s"]).args(more).arg("-o").arg(program).arg(&file))
        .with_context(|| format!("compile {} (Debian package build-essential)", file.display()))
        .map(drop)
}

fn create(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))
}
