//! The throw-away mount namespace in which a container is made.
//!
//! Runs between fork and exec of the OCI runtime. The namespace is unshared from the host's table as it is now, with
//! propagation unchanged: what the kubelet mounted a moment ago is there, and a Bidirectional volume still reaches the
//! host. Only the mount that the bundle lies on must not pass on what is mounted in it, or the root file system would show on
//! the host; our daemon keeps its state directory on a private mount of its own for that. The root file system lives and
//! dies with the container's processes, and the host's table never knows it.

use std::{
    io,
    path::{Path, PathBuf},
};

use nix::{
    mount::MsFlags,
    sched::{CloneFlags, unshare},
};
use vaina_sys::mount::{self as sys, Propagation};

/// A mount of `CreateTaskRequest.rootfs`, onto the bundle's `rootfs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RootfsMount {
    pub(crate) fs_type: String,
    pub(crate) source: String,
    pub(crate) options: Vec<String>,
}

/// Enters a new mount namespace and mounts the root file system there, each mount on the one before.
pub(crate) fn enter(bundle: &Path, rootfs: &[RootfsMount]) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let bundle = std::fs::canonicalize(bundle)?;
    let table = sys::table()?;
    if let Some(ground) = sys::containing(&table, &bundle)
        && (ground.shared || ground.slave)
    {
        // Under a foreign daemon: volumes on this very mount lose their propagation, which none of its pods has asked for
        // below a runtime's own directory.
        sys::set_propagation(&ground.target, Propagation::Private, false)?;
    }
    let target = bundle.join("rootfs");
    rootfs.iter().try_for_each(|mount| one(mount, &target))
}

fn one(mount: &RootfsMount, target: &Path) -> io::Result<()> {
    let fail = |error: io::Error| io::Error::new(error.kind(), format!("mount {} as rootfs: {error}", mount.fs_type));
    match mount.fs_type.as_str() {
        "overlay" => overlay(mount, target).map_err(fail),
        "bind" | "" => {
            let recursive = mount.options.iter().any(|option| option == "rbind");
            sys::bind(Path::new(&mount.source), target, recursive).map_err(fail)?;
            if mount.options.iter().any(|option| option == "ro") {
                sys::remount_read_only(target).map_err(fail)?;
            }
            Ok(())
        }
        fs_type => {
            let (flags, data) = flags_and_data(&mount.options);
            sys::filesystem(fs_type, &mount.source, target, flags, &data).map_err(fail)
        }
    }
}

fn overlay(mount: &RootfsMount, target: &Path) -> io::Result<()> {
    let mut lower = Vec::new();
    let mut rest = Vec::new();
    let mut read_only = false;
    for option in &mount.options {
        match option.split_once('=') {
            Some(("lowerdir", layers)) => lower.extend(layers.split(':').map(PathBuf::from)),
            Some((key, value)) => rest.push((key, Some(value))),
            None if option == "ro" => read_only = true,
            None if option == "rw" => {}
            None => rest.push((option.as_str(), None)),
        }
    }
    sys::overlay(&lower, &rest, read_only, target)
}

fn flags_and_data(options: &[String]) -> (MsFlags, String) {
    let mut flags = MsFlags::empty();
    let mut data = Vec::new();
    for option in options {
        match option.as_str() {
            "ro" => flags |= MsFlags::MS_RDONLY,
            "nosuid" => flags |= MsFlags::MS_NOSUID,
            "nodev" => flags |= MsFlags::MS_NODEV,
            "noexec" => flags |= MsFlags::MS_NOEXEC,
            "noatime" => flags |= MsFlags::MS_NOATIME,
            "relatime" => flags |= MsFlags::MS_RELATIME,
            "rw" | "suid" | "dev" | "exec" => {}
            other => data.push(other),
        }
    }
    (flags, data.join(","))
}
