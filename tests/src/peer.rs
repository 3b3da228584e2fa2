//! A containerd in a node, in the place of `vaina serve`: the tests that know only the CRI are run against it too, which
//! tests the tests. [`trial`] runs them. It serves where ours does, so that clients need not know; its images come from a registry in this process.

mod differences;
mod marked;
pub mod trial;
mod verdict;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use anyhow::{Context as _, Result};

use crate::{
    containerd::{self, Launch, Layout, OciRuntime},
    images::{self, Built, layer::Compression},
    leak::Scope,
    registry::{FakeRegistry, Manner},
};

/// Names the endpoint: `containerd-runc` or `containerd-crun`.
pub const ENDPOINT: &str = "VAINA_E2E_ENDPOINT";

const ROOT: &str = "/var/lib/containerd";
const STATE: &str = "/run/containerd";
const BRIDGE: &str = "cni0";

/// See the module.
#[derive(Debug)]
pub struct Peer {
    launch: Launch,
    registry: FakeRegistry,
}

/// The OCI runtime of the endpoint that this run is of; none when it is of ours.
pub fn wanted() -> Result<Option<OciRuntime>> {
    let Some(name) = env::var_os(ENDPOINT).filter(|name| !name.is_empty()) else { return Ok(None) };
    let runtime = name.to_str().and_then(OciRuntime::of_endpoint);
    runtime
        .map(Some)
        .with_context(|| format!("{ENDPOINT}={} is none of containerd-runc, containerd-crun", name.display()))
}

/// Whether this run is of a peer.
pub fn is_wanted() -> bool {
    env::var_os(ENDPOINT).is_some_and(|name| !name.is_empty())
}

impl Peer {
    /// Prepares one with this default runtime, which serves on `socket`, in the node that the calling thread is in.
    pub fn prepare(runtime: OciRuntime, directory: &Path, socket: &Path, image: &str) -> Result<Self> {
        let home = directory.join("containerd");
        fs::create_dir_all(&home).context("create containerd's directory")?;
        let registry = FakeRegistry::start(Manner::Open)?;
        let images = images(&home)?;
        serve(&registry, containerd::PAUSE, &images.pause)?;
        serve(&registry, image, &images.base)?;
        let (host, _) = image.split_once('/').context("a host")?;
        let launch = Layout {
            home: &home,
            root: Path::new(ROOT),
            state: Path::new(STATE),
            socket,
            bridge: BRIDGE,
            subnet: "10.88.0.0/16",
            // Tests name handlers as our defaults do.
            handlers: &[("default", runtime), ("runc", OciRuntime::Runc), ("crun", OciRuntime::Crun)],
            registry: &registry.address,
            mirrored: &["registry.k8s.io", host],
        }
        .configure()?;
        Ok(Self { launch, registry })
    }

    /// Serves an image, whose name must be of the host that [`prepare`](Self::prepare) had an image of.
    pub fn serve(&self, name: &str, image: &Built) -> Result<()> {
        serve(&self.registry, name, image)
    }

    /// Its command.
    pub fn command(&self) -> Command {
        let path = env::var_os("PATH").unwrap_or_default();
        let all = self.launch.path.iter().cloned().chain(env::split_paths(&path));
        let path = env::join_paths(all).unwrap_or(path);
        let mut command = Command::new(&self.launch.program);
        command.args(&self.launch.arguments).env("PATH", path).stdin(Stdio::null());
        command
    }

    /// Where a node has things of its own, with those of containerd in the place of ours. Its images, and what it knows of
    /// them, may change; its descriptors come and go with goroutines.
    pub fn scope(&self, scope: Scope, logs: &Path) -> Scope {
        let own = |name: &str| Path::new(ROOT).join(name);
        let images = [
            "io.containerd.content.v1.content",
            "io.containerd.metadata.v1.bolt",
            "io.containerd.snapshotter.v1.overlayfs",
        ];
        Scope {
            directories: [PathBuf::from("/run"), logs.to_owned(), PathBuf::from(ROOT)].into(),
            ignored: images.into_iter().map(own).collect(),
            stores: Vec::new(),
            daemon: None,
            ..scope
        }
    }
}

/// Serves `host/repository:tag` as a mirror of the host.
fn serve(registry: &FakeRegistry, name: &str, image: &Built) -> Result<()> {
    let (_, name) = name.split_once('/').with_context(|| format!("{name} has no host"))?;
    let (repository, tag) = name.split_once(':').with_context(|| format!("{name} has no tag"))?;
    registry.add(repository, tag, image)
}

/// What every node with a peer has.
struct Images {
    base: Built,
    pause: Built,
}

static IMAGES: OnceLock<Result<Images, String>> = OnceLock::new();

/// Made once per test program.
fn images(home: &Path) -> Result<&'static Images> {
    let made = IMAGES.get_or_init(|| {
        let make = || -> Result<Images> {
            let base = images::base(&images::probe_beside_this_program()?)?.compression(Compression::None).build()?;
            Ok(Images { base, pause: containerd::pause_image(home)? })
        };
        make().map_err(|error| format!("{error:#}"))
    });
    made.as_ref().map_err(|error| anyhow::anyhow!("make the images of a peer: {error}"))
}
