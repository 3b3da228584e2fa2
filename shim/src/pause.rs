//! The namespaces that this process makes or joins for the pod, and stays in.
//!
//! The shim is the pod's pause: its pid is the sandbox pid, and whoever joins `/proc/<pid>/ns/{net,ipc,uts}` is in the pod. Its
//! sockets are paths, so it is reached all the same. It never enters a user or PID namespace; a pod that shares one PID
//! namespace gets the reaping init, whose pid is reported instead (it starts last and so is in the same other namespaces).
//!
//! What belongs to the pod's user namespace can only be made from inside it. A process of its own does that, from which this one
//! takes the namespaces over.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use nix::{
    sched::{CloneFlags, setns, unshare},
    unistd::sethostname,
};
use vaina_sys::userns::{self, Member};

use crate::{
    error::{Result, ShimError, Step as _},
    init,
    reaper::{Child, Reaper},
    spans,
};

/// What the pod's namespaces are to be.
#[derive(Debug, Default)]
pub(crate) struct Namespaces {
    pub(crate) host_network: bool,
    pub(crate) host_ipc: bool,
    pub(crate) shared_pid: bool,
    /// Pin of the network namespace to join; empty to make one.
    pub(crate) netns: String,
    pub(crate) hostname: String,
    pub(crate) sysctls: HashMap<String, String>,
    pub(crate) ipc_pin: String,
    pub(crate) uts_pin: String,
    /// Pin of the pod's user namespace; empty for the node's.
    pub(crate) user_pin: String,
}

/// Makes and joins the namespaces. Answers the init, if the pod has one.
///
/// Half done it is not undone: the shim then ends, and everything unpinned with it.
pub(crate) fn enter(namespaces: &Namespaces, reaper: &Reaper) -> Result<Option<Child>> {
    let user = user(&namespaces.user_pin)?;
    if !namespaces.host_network {
        let network = spans::start("network namespace", "");
        if namespaces.netns.is_empty() {
            make(CloneFlags::CLONE_NEWNET, "net", user.as_ref()).step(|| "make network namespace".to_owned())?;
        } else {
            let pin = File::open(&namespaces.netns).step(|| format!("open network namespace {}", namespaces.netns))?;
            setns(pin, CloneFlags::CLONE_NEWNET).step(|| format!("join network namespace {}", namespaces.netns))?;
        }
        drop(network);
        let _uts = spans::start("UTS namespace", "");
        // A hostname of its own comes with a network of its own; the node's network has the node's name.
        make(CloneFlags::CLONE_NEWUTS, "uts", user.as_ref()).step(|| "make UTS namespace".to_owned())?;
        if !namespaces.hostname.is_empty() {
            sethostname(&namespaces.hostname).step(|| format!("set hostname {:?}", namespaces.hostname))?;
        }
        pin("uts", &namespaces.uts_pin)?;
    }
    if !namespaces.host_ipc {
        let _ipc = spans::start("IPC namespace", "");
        make(CloneFlags::CLONE_NEWIPC, "ipc", user.as_ref()).step(|| "make IPC namespace".to_owned())?;
        pin("ipc", &namespaces.ipc_pin)?;
    }
    let sysctls = spans::start("sysctls", "");
    for (name, value) in &namespaces.sysctls {
        set_sysctl(namespaces, user.as_ref(), name, value)?;
    }
    drop(sysctls);
    if namespaces.shared_pid {
        let _init = spans::start("init", "");
        return init::start(reaper, user.as_ref()).step(|| "start the pod's init".to_owned()).map(Some);
    }
    Ok(None)
}

fn user(pin: &str) -> Result<Option<OwnedFd>> {
    if pin.is_empty() {
        return Ok(None);
    }
    vaina_sys::netns::open(Path::new(pin)).step(|| format!("open user namespace {pin}")).map(Some)
}

/// Makes a namespace that belongs to `user`, or to the node, and enters it.
fn make(flag: CloneFlags, name: &str, user: Option<&OwnedFd>) -> io::Result<()> {
    match user {
        None => unshare(flag)?,
        Some(user) => setns(Member::join(user, flag)?.namespace(name)?, flag)?,
    }
    Ok(())
}

fn pin(name: &str, path: &str) -> Result<()> {
    if path.is_empty() {
        return Ok(());
    }
    let path = Path::new(path);
    let make = || {
        vaina_sys::mount::detach(path)?;
        File::create(path)?;
        vaina_sys::mount::bind(Path::new(&format!("/proc/self/ns/{name}")), path, false)
    };
    make().step(|| format!("pin {name} namespace at {}", path.display()))
}

/// Writes a sysctl from inside the namespaces; one of a namespace that the pod shares with the node is refused, since it
/// would change the node.
fn set_sysctl(namespaces: &Namespaces, user: Option<&OwnedFd>, name: &str, value: &str) -> Result<()> {
    let ipc = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."].iter().any(|own| name.starts_with(own));
    let uts = matches!(name, "kernel.hostname" | "kernel.domainname");
    let network = name.starts_with("net.");
    let allowed = (ipc && !namespaces.host_ipc) || ((network || uts) && !namespaces.host_network);
    if !allowed {
        return Err(ShimError::Invalid(format!(
            "set sysctl {name:?}: it is not of a namespace that the pod has of its own"
        )));
    }
    if name.contains("..") {
        return Err(ShimError::Invalid(format!("set sysctl {name:?}: not a name")));
    }
    // A slash separates as well as a dot, and then dots belong to names (interfaces such as eth0.1).
    let path = if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
    let path = Path::new("/proc/sys").join(path);
    let write = || fs::write(&path, value);
    let written = match user {
        // They are for the namespace's own root, and ids in them are its ids. The names of the pod stay the node's matter.
        Some(user) if !uts => userns::run_in(user.as_fd(), &[], write),
        _ => write(),
    };
    written.step(|| format!("set sysctl {name} to {value:?}"))
}
