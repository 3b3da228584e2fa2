//! Device nodes of a container in a user namespace.
//!
//! Nobody makes a node in there, so `libcontainer` binds the node's own, and takes for granted that it has the same path and is
//! owned by whom it should be. So the nodes of the configuration are made here, in a file system of their own, and bound. Those
//! that every container has (`/dev/null` …) are open to all and are left to the library.

use std::{fs, io, path::Path};

use libcontainer::oci_spec::runtime::{LinuxDevice, LinuxDeviceType, MountBuilder, Spec};
use nix::{
    mount::MsFlags,
    sys::stat::{Mode, SFlag, makedev, mknod, umask},
};
use vaina_sys::userns::IdMap;

use super::userns;

/// Directory of the bundle in which the nodes are made.
const DIRECTORY: &str = "devices";

/// Makes the nodes that the configuration lists and turns them into binds.
pub(super) fn stage(spec: &mut Spec, bundle: &Path) -> io::Result<()> {
    let Some(ids) = userns::ids(spec) else { return Ok(()) };
    let devices = spec.linux().as_ref().and_then(|linux| linux.devices().clone()).unwrap_or_default();
    if devices.is_empty() {
        return Ok(());
    }
    crate::mount::enter(bundle, &[])?;
    let directory = bundle.join(DIRECTORY);
    fs::create_dir_all(&directory)?;
    vaina_sys::mount::filesystem("tmpfs", "tmpfs", &directory, MsFlags::empty(), "mode=711,size=1m")?;
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for (number, device) in devices.iter().enumerate() {
        let path = directory.join(number.to_string());
        let fail = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", device.path().display()));
        make(device, &path).map_err(fail)?;
        let outside = |maps: &[IdMap], id: Option<u32>| maps.iter().find_map(|map| map.outside(id.unwrap_or(0)));
        let (uid, gid) = (outside(&ids.uids, device.uid()), outside(&ids.gids, device.gid()));
        // An owner that is not mapped stays the node's, and shows as nobody.
        std::os::unix::fs::chown(&path, uid, gid).map_err(fail)?;
        let bind = MountBuilder::default().destination(device.path()).typ("bind").source(path);
        mounts.push(bind.options(["bind", "rprivate"].map(str::to_owned)).build().map_err(io::Error::other)?);
    }
    spec.set_mounts(Some(mounts));
    if let Some(linux) = spec.linux_mut() {
        linux.set_devices(None);
    }
    Ok(())
}

fn make(device: &LinuxDevice, path: &Path) -> io::Result<()> {
    let kind = match device.typ() {
        LinuxDeviceType::B => SFlag::S_IFBLK,
        LinuxDeviceType::C | LinuxDeviceType::U => SFlag::S_IFCHR,
        LinuxDeviceType::P => SFlag::S_IFIFO,
        LinuxDeviceType::A => return Err(io::Error::new(io::ErrorKind::InvalidInput, "type a is no node")),
    };
    let mode = Mode::from_bits_truncate(device.file_mode().unwrap_or(0o666));
    let old = umask(Mode::empty());
    let made = mknod(path, kind, mode, makedev(device.major().unsigned_abs(), device.minor().unsigned_abs()));
    umask(old);
    Ok(made?)
}
