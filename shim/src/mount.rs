//! The throw-away mount namespace in which a container is made.
//!
//! Runs between fork and exec of the OCI runtime. The namespace is unshared from the host's table as it is now, with
//! propagation unchanged: what the kubelet mounted a moment ago is there, and a Bidirectional volume still reaches the
//! host. Only the mount that the bundle lies on must not pass on what is mounted in it, or the root file system would show on
//! the host; our daemon keeps its state directory on a private mount of its own for that. The root file system lives and
//! dies with the container's processes, and the host's table never knows it.

use std::{
    io,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
};

use nix::{
    mount::MsFlags,
    sched::{CloneFlags, unshare},
};
use vaina_sys::mount::{self as sys, Propagation};

use crate::idmap::{self, Ids, Layers, Mapped, Users};

/// A mount of `CreateTaskRequest.rootfs`, onto the bundle's `rootfs`, or of an image that is a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BundleMount {
    /// Below the bundle.
    pub(crate) target: PathBuf,
    pub(crate) fs_type: String,
    pub(crate) source: String,
    pub(crate) options: Vec<String>,
}

/// Enters a new mount namespace and mounts the root file system there, each mount on the one before, and the volumes.
pub(crate) fn enter(bundle: &Path, mounts: &[BundleMount]) -> io::Result<()> {
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
    let mut users = Users::default();
    mounts.iter().try_for_each(|mount| one(mount, &bundle, &mut users))
}

fn one(mount: &BundleMount, bundle: &Path, users: &mut Users) -> io::Result<()> {
    let target = &bundle.join(&mount.target);
    let fail = |error: io::Error| {
        let text = format!("mount {} at {}: {error}", mount.fs_type, mount.target.display());
        io::Error::new(error.kind(), text)
    };
    let ids = Ids::of_options(&mount.options).map_err(fail)?;
    let user = ids.as_ref().map(|ids| users.of(ids)).transpose().map_err(fail)?;
    match mount.fs_type.as_str() {
        "overlay" => overlay(mount, bundle, user).map_err(fail),
        "bind" | "" => {
            let has = |word: &str| mount.options.iter().any(|option| option == word);
            let mapped = user.map(|user| Mapped { user, recursive: has("ridmap") });
            idmap::bind(Path::new(&mount.source), target, has("rbind"), mapped).map_err(fail)?;
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

fn overlay(mount: &BundleMount, bundle: &Path, user: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut lower = Vec::new();
    let mut rest = Vec::new();
    let mut read_only = false;
    for option in mount.options.iter().filter(|option| !Ids::is_option(option)) {
        match option.split_once('=') {
            Some(("lowerdir", layers)) => lower.extend(layers.split(':').map(PathBuf::from)),
            Some((key, value)) => rest.push((key, Some(value))),
            None if option == "ro" => read_only = true,
            None if option == "rw" => {}
            None => rest.push((option.as_str(), None)),
        }
    }
    let target = bundle.join(&mount.target);
    match user {
        None => sys::overlay(&lower, &rest, read_only, &target),
        Some(user) => {
            let layers = Layers::show(&lower, bundle, user)?;
            sys::overlay(&layers.lower, &rest, read_only, &target)?;
            layers.remove()
        }
    }
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
