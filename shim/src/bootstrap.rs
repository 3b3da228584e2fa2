//! `start` and `delete`: the short-lived commands that bring a serving shim up and clean up after one.
//!
//! `start` binds the socket, leaves a serving process behind with the listening socket as its stdin, and prints the address.
//! The caller may connect at once: the kernel queues it until the server accepts. The serving process runs from a sealed form
//! of this executable, since it is seen by containers that share the node's PID namespace.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{
            fs::{DirBuilderExt as _, PermissionsExt as _},
            net::{UnixListener, UnixStream},
            process::CommandExt as _,
        },
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use containerd_shim_protos::{api::DeleteResponse, protobuf::Message as _};
use serde::{Deserialize, Serialize};
use vaina_sys::process;

use crate::{
    args::Args,
    error::{Result, ShimError, Step as _},
    seal, spans,
};

/// Longest path that fits a socket address, with its NUL.
const SOCKET_PATH_LIMIT: usize = 107;

/// What a serving shim leaves in its bundle, for a `delete` after it died.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Legacy {
    /// The serving process, with its start time.
    pub(crate) shim: Option<(u32, u64)>,
    /// The reaping init, likewise.
    pub(crate) init: Option<(u32, u64)>,
    /// Containers by id.
    pub(crate) containers: BTreeMap<String, LegacyContainer>,
}

/// How a container is removed without its shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LegacyContainer {
    /// OCI runtime; empty for our own.
    pub(crate) runtime: String,
    pub(crate) root: PathBuf,
}

impl Legacy {
    const FILE: &'static str = "shim.json";

    pub(crate) fn load(bundle: &Path) -> Self {
        // A file that can't be read says nothing; what it would have named is found by its cgroup.
        fs::read(bundle.join(Self::FILE)).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    pub(crate) fn save(&self, bundle: &Path) -> io::Result<()> {
        let new = bundle.join("shim.json.new");
        fs::write(&new, serde_json::to_vec(self)?)?;
        fs::rename(new, bundle.join(Self::FILE))
    }
}

/// Bundle of the call: named, or the working directory.
pub(crate) fn bundle(args: &Args) -> Result<PathBuf> {
    let path = if args.bundle.as_os_str().is_empty() { Path::new(".") } else { &args.bundle };
    fs::canonicalize(path).step(|| format!("find bundle {}", path.display()))
}

/// Starts a serving shim unless one answers already; prints its address.
pub(crate) fn start(args: &Args) -> Result<()> {
    let _start = spans::start("start", &args.id);
    let bundle = bundle(args)?;
    let path = socket_path(args, &bundle);
    let address = format!("unix://{}", path.display());
    if UnixStream::connect(&path).is_err() {
        let listener = listen(&path).step(|| format!("listen on {}", path.display()))?;
        serve_behind(args, &bundle, &address, listener).step(|| "start the serving process".to_owned())?;
    }
    fs::write(bundle.join("address"), &address).step(|| "write the address".to_owned())?;
    let newest: u32 = env::var("MAX_SHIM_VERSION").ok().and_then(|version| version.parse().ok()).unwrap_or(2);
    let answer = if newest >= 3 {
        serde_json::json!({ "version": 3, "address": address, "protocol": "ttrpc" }).to_string()
    } else {
        // Read by every containerd since 1.4.
        address
    };
    let mut out = io::stdout();
    out.write_all(answer.as_bytes()).and_then(|()| out.flush()).step(|| "print the address".to_owned())
}

/// The containers of one pod share a shim: under a containerd without the Sandbox API they name it by an annotation.
fn group(args: &Args, bundle: &Path) -> String {
    let annotation = || -> Option<String> {
        let config: serde_json::Value = serde_json::from_slice(&fs::read(bundle.join("config.json")).ok()?).ok()?;
        Some(config["annotations"]["io.kubernetes.cri.sandbox-id"].as_str()?.to_owned())
    };
    annotation().unwrap_or_else(|| args.id.clone())
}

fn socket_path(args: &Args, bundle: &Path) -> PathBuf {
    if !args.address.is_empty() {
        let address = containerd_shim::socket_address(&args.address, &args.namespace, &group(args, bundle));
        return PathBuf::from(address.strip_prefix("unix://").unwrap_or(&address));
    }
    // In the bundle it goes with the pod; a bundle deep in the tree has no room for it.
    let own = bundle.join("shim.sock");
    if own.as_os_str().len() <= SOCKET_PATH_LIMIT {
        return own;
    }
    let name = containerd_shim::socket_address(&bundle.to_string_lossy(), &args.namespace, &args.id);
    Path::new("/run/vaina/s").join(name.rsplit('/').next().unwrap_or_default())
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o711).create(parent)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn serve_behind(args: &Args, bundle: &Path, address: &str, listener: UnixListener) -> io::Result<()> {
    let sealing = spans::start("seal", &args.id);
    let own = seal::own_executable()?;
    drop(sealing);
    // A stream of the caller's would keep its reader waiting for the life of the pod.
    let log = OpenOptions::new().append(true).create(true).open(bundle.join("shim.log"))?;
    let mut command = Command::new(format!("/proc/self/fd/{}", own.as_raw_fd()));
    command
        .arg0("containerd-shim-vaina-v1")
        .args(["-namespace", &args.namespace, "-id", &args.id, "-address", &args.address, "-socket", address])
        .arg("-bundle")
        .arg(bundle)
        .current_dir(bundle)
        .process_group(0)
        .stdin(OwnedFd::from(listener))
        .stdout(Stdio::null())
        .stderr(log);
    let _spawn = spans::start("spawn", &args.id);
    let _child = command.spawn()?;
    Ok(())
}

/// Cleans up after a shim that is gone or hangs.
pub(crate) fn delete(args: &Args) -> Result<()> {
    let bundle = bundle(args)?;
    let mut legacy = Legacy::load(&bundle);
    for (pid, start) in legacy.shim.iter().chain(&legacy.init) {
        kill_if_same(*pid, *start);
    }
    if legacy.containers.is_empty() {
        // Under containerd a bundle is one container's, and its shim may have recorded it in another.
        let root = crate::pod::default_root(&args.namespace);
        legacy.containers.insert(args.id.clone(), LegacyContainer { runtime: String::new(), root });
    }
    let mut failed = Ok(());
    for (id, container) in &legacy.containers {
        let removed = remove_container(id, container).step(|| format!("delete container {id}"));
        // All are tried; the first failure is told.
        failed = failed.and(removed);
    }
    let _ = fs::remove_file(socket_path(args, &bundle));
    failed?;
    let response = DeleteResponse { exit_status: 137, ..DeleteResponse::default() };
    let bytes = response.write_to_bytes().map_err(|error| ShimError::Invalid(error.to_string()))?;
    io::stdout().write_all(&bytes).step(|| "print the answer".to_owned())
}

fn kill_if_same(pid: u32, start: u64) {
    if let Ok(descriptor) = process::open(pid)
        && process::start_time(pid).is_ok_and(|now| now == start)
    {
        let _ = process::signal(descriptor, nix::libc::SIGKILL);
    }
}

fn remove_container(id: &str, container: &LegacyContainer) -> io::Result<()> {
    let own;
    let mut command = if container.runtime.is_empty() {
        own = seal::own_executable()?;
        let mut command = Command::new(format!("/proc/self/fd/{}", own.as_raw_fd()));
        command.arg("oci");
        command
    } else {
        Command::new(&container.runtime)
    };
    let output =
        command.arg("--root").arg(&container.root).args(["delete", "--force", id]).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// Takes the listening socket that `start` left as stdin, and puts `/dev/null` in its place.
pub(crate) fn inherited_listener() -> io::Result<UnixListener> {
    let listener = UnixListener::from(process::inherited(0)?);
    // The lowest free number is 0 now, and stays taken for the life of the process.
    let null = File::open("/dev/null")?;
    std::mem::forget(null);
    Ok(listener)
}

/// The program's arguments without its name.
pub(crate) fn arguments() -> impl Iterator<Item = OsString> {
    env::args_os().skip(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_where_there_is_room_for_it() {
        let args = Args { namespace: "vaina".to_owned(), id: "a".repeat(64), ..Args::default() };
        let near = PathBuf::from("/run/vaina/pods").join(&args.id);
        assert_eq!(socket_path(&args, &near), near.join("shim.sock"));
        let far = PathBuf::from("/tmp").join("x".repeat(60)).join(&args.id);
        let path = socket_path(&args, &far);
        assert!(path.starts_with("/run/vaina/s") && path.as_os_str().len() <= SOCKET_PATH_LIMIT, "{path:?}");
        let containerd = Args { address: "/run/containerd/containerd.sock".to_owned(), ..args };
        assert!(socket_path(&containerd, &near).starts_with("/run/containerd/s"));
    }

    #[test]
    fn what_is_left_for_a_delete_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Legacy::load(dir.path()), Legacy::default());
        let container = LegacyContainer { runtime: "crun".to_owned(), root: "/r".into() };
        let legacy =
            Legacy { shim: Some((1, 2)), init: None, containers: BTreeMap::from([("c".to_owned(), container)]) };
        legacy.save(dir.path()).unwrap();
        assert_eq!(Legacy::load(dir.path()), legacy);
    }
}
