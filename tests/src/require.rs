//! What the end-to-end tests need from the machine. What is missing fails the test and says how to get it: a test that
//! is skipped in silence tells lies.

use std::{
    env, fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, ensure};

/// The programs under test.
#[derive(Debug, Clone)]
pub struct Programs {
    /// `vaina`, from `VAINA_BIN` or beside the test.
    pub vaina: PathBuf,
    /// `containerd-shim-vaina-v1`, from `VAINA_SHIM` or beside the test.
    pub shim: PathBuf,
}

/// The name that the daemon looks for beside itself.
const SHIM: &str = "containerd-shim-vaina-v1";

/// Finds the programs under test and puts them side by side, as they are installed: a daemon takes the shim beside it first,
/// and where cargo built it that is another one.
pub fn programs() -> Result<Programs> {
    programs_of("VAINA_BIN", "VAINA_SHIM")
}

/// The programs with failpoints, which are built apart.
pub fn programs_with_failpoints() -> Result<Programs> {
    let (vaina, shim) = ("VAINA_FAILPOINTS_BIN", "VAINA_FAILPOINTS_SHIM");
    for variable in [vaina, shim] {
        ensure!(env::var_os(variable).is_some(), "{variable} does not name the program with failpoints: `make fault`");
    }
    programs_of(vaina, shim)
}

fn programs_of(vaina: &str, shim: &str) -> Result<Programs> {
    let (vaina, shim) = (program(vaina, "vaina")?, program(shim, SHIM)?);
    let directory = vaina.parent().context("find the directory of vaina")?.join("e2e");
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    let beside = |program: &Path, name: &str| -> Result<PathBuf> {
        let path = directory.join(name);
        link(program, &path).with_context(|| format!("link {} to {}", program.display(), path.display()))?;
        Ok(path)
    };
    Ok(Programs { vaina: beside(&vaina, "vaina")?, shim: beside(&shim, SHIM)? })
}

/// Makes `path` the same file as `program`, in one step since other tests run it.
fn link(program: &Path, path: &Path) -> Result<()> {
    let identity = |path: &Path| fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
    let wanted = identity(program)?;
    if identity(path).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let new = path.with_extension(format!("{}-{number}", std::process::id()));
    fs::hard_link(program, &new)?;
    fs::rename(&new, path)?;
    // A rename to another name of the same file does nothing.
    let _ = fs::remove_file(&new);
    Ok(())
}

/// A program by an environment variable, or beside the test.
pub fn program(variable: &str, name: &str) -> Result<PathBuf> {
    if let Some(path) = env::var_os(variable) {
        let path = PathBuf::from(path);
        ensure!(path.exists(), "{variable}={} does not exist", path.display());
        return path.canonicalize().with_context(|| format!("canonicalize {}", path.display()));
    }
    beside(name)?.with_context(|| format!("{name} is not built: run `make e2e`, or set {variable}"))
}

/// A program beside the one that runs, or where cargo puts programs beside its test programs.
pub fn beside(name: &str) -> Result<Option<PathBuf>> {
    let this = env::current_exe().context("find this program")?;
    let directory = this.parent().context("find this program's directory")?;
    for candidate in [directory.join(name), directory.join("..").join(name)] {
        if candidate.exists() {
            return Ok(Some(candidate.canonicalize()?));
        }
    }
    Ok(None)
}

/// The directory of the examples: of the source tree, or above this program where that is not (in the guest node).
pub fn examples() -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    if source.is_dir() {
        return Ok(source);
    }
    beside("examples")?.with_context(|| format!("{} is missing", source.display()))
}

/// Fails unless this process may make namespaces and mounts.
pub fn root() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "end-to-end tests need root");
    Ok(())
}

/// Finds a program in PATH, or names the Debian package that has it.
pub fn tool(name: &str, package: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.exists())
        .with_context(|| format!("{name} is missing: install the Debian package {package} (`make deps`)"))
}

/// The directory with containerd and its shim, from `VAINA_CONTAINERD`.
pub fn containerd() -> Result<PathBuf> {
    let path = PathBuf::from(env::var_os("VAINA_CONTAINERD").context("VAINA_CONTAINERD is not set: `make peers`")?);
    for name in ["containerd", "containerd-shim-runc-v2"] {
        ensure!(path.join(name).exists(), "{} is missing: `make peers`", path.join(name).display());
    }
    Ok(path)
}

/// The directory with the network plugins that containerd calls.
pub fn network_plugins() -> Result<PathBuf> {
    let path = PathBuf::from("/usr/lib/cni");
    for name in ["bridge", "host-local", "portmap"] {
        let plugin = path.join(name);
        ensure!(
            plugin.exists(),
            "{} is missing: install the Debian package containernetworking-plugins",
            plugin.display()
        );
    }
    Ok(path)
}

/// Fails unless the cgroup v1 hierarchies that crun insists on are mounted, when this machine is a hybrid.
pub fn cgroups_for_crun() -> Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return Ok(());
    }
    for controller in ["hugetlb", "perf_event", "net_cls", "net_prio"] {
        let known = fs::read_to_string("/proc/cgroups").context("read /proc/cgroups")?;
        if known.lines().any(|line| line.split_whitespace().next() == Some(controller)) {
            ensure!(
                root.join(controller).join("tasks").exists(),
                "cgroup v1 hierarchy {controller} is not mounted, and crun refuses to run without it: `make cgroups`"
            );
        }
    }
    Ok(())
}

/// Where built tools and images are kept over checkouts: `VAINA_TOOLS`, which `make` sets, or below the home directory.
pub fn cache() -> Result<PathBuf> {
    if let Some(path) = env::var_os("VAINA_TOOLS") {
        return Ok(path.into());
    }
    let home = env::var_os("HOME").context("neither VAINA_TOOLS nor HOME is set")?;
    Ok(Path::new(&home).join(".cache/vaina-tools"))
}

/// Finds a program of the Kubernetes project that `make` keeps beside the checkout, by its name and version; in the guest
/// node it lies beside the tests.
pub fn kept_tool(name: &str, target: &str) -> Result<PathBuf> {
    let program = cache()?.join("bin").join(name);
    if program.exists() {
        return Ok(program);
    }
    beside(name)?.with_context(|| format!("{} is missing: run `make {target}`", program.display()))
}
