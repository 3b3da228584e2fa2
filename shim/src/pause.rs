//! The namespaces that this process makes or joins for the pod, and stays in.
//!
//! The shim is the pod's pause: its pid is the sandbox pid, and whoever joins `/proc/<pid>/ns/{net,ipc,uts}` is in the pod. Its
//! sockets are paths, so it is reached all the same. It never enters a user or PID namespace; a pod that shares one PID
//! namespace gets the reaping init, whose pid is reported instead (it starts last and so is in the same other namespaces).

use std::{
    collections::HashMap,
    fs::{self, File},
    path::Path,
};

use nix::{
    sched::{CloneFlags, setns, unshare},
    unistd::sethostname,
};

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
}

/// Makes and joins the namespaces. Answers the init, if the pod has one.
///
/// Half done it is not undone: the shim then ends, and everything unpinned with it.
pub(crate) fn enter(namespaces: &Namespaces, reaper: &Reaper) -> Result<Option<Child>> {
    if !namespaces.host_network {
        let network = spans::start("network namespace", "");
        if namespaces.netns.is_empty() {
            unshare(CloneFlags::CLONE_NEWNET).step(|| "make network namespace".to_owned())?;
        } else {
            let pin = File::open(&namespaces.netns).step(|| format!("open network namespace {}", namespaces.netns))?;
            setns(pin, CloneFlags::CLONE_NEWNET).step(|| format!("join network namespace {}", namespaces.netns))?;
        }
        drop(network);
        let _uts = spans::start("UTS namespace", "");
        // A hostname of its own comes with a network of its own; the node's network has the node's name.
        unshare(CloneFlags::CLONE_NEWUTS).step(|| "make UTS namespace".to_owned())?;
        if !namespaces.hostname.is_empty() {
            sethostname(&namespaces.hostname).step(|| format!("set hostname {:?}", namespaces.hostname))?;
        }
        pin("uts", &namespaces.uts_pin)?;
    }
    if !namespaces.host_ipc {
        let _ipc = spans::start("IPC namespace", "");
        unshare(CloneFlags::CLONE_NEWIPC).step(|| "make IPC namespace".to_owned())?;
        pin("ipc", &namespaces.ipc_pin)?;
    }
    let sysctls = spans::start("sysctls", "");
    for (name, value) in &namespaces.sysctls {
        set_sysctl(namespaces, name, value)?;
    }
    drop(sysctls);
    if namespaces.shared_pid {
        let _init = spans::start("init", "");
        return init::start(reaper).step(|| "start the pod's init".to_owned()).map(Some);
    }
    Ok(None)
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
fn set_sysctl(namespaces: &Namespaces, name: &str, value: &str) -> Result<()> {
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
    fs::write(Path::new("/proc/sys").join(path), value).step(|| format!("set sysctl {name} to {value:?}"))
}
