//! Devices of the host: one by its path, all below a directory, all that there are. Blocking.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::Path,
};

use super::spec::HostDevice;

/// The device at `path`, also by way of a link.
pub(super) fn at(path: &Path) -> Option<HostDevice> {
    let found = fs::metadata(path).ok()?;
    let kind = found.file_type();
    if !kind.is_block_device() && !kind.is_char_device() {
        return None;
    }
    Some(HostDevice {
        path: path.to_string_lossy().into_owned(),
        is_block: kind.is_block_device(),
        major: rustix::fs::major(found.rdev()),
        minor: rustix::fs::minor(found.rdev()),
        mode: found.mode() & 0o7777,
        uid: found.uid(),
        gid: found.gid(),
    })
}

/// What a client means by a path: the device, or of a directory all devices below it. None if there is none.
pub(super) fn asked(path: &Path) -> io::Result<Vec<HostDevice>> {
    if path.is_dir() { below(path) } else { Ok(at(path).into_iter().collect()) }
}

/// All devices of the host but those that a container gets anew (terminals, its console).
pub(super) fn all() -> io::Result<Vec<HostDevice>> {
    below(Path::new("/dev"))
}

fn below(directory: &Path) -> io::Result<Vec<HostDevice>> {
    fn walk(directory: &Path, devices: &mut Vec<HostDevice>) -> io::Result<()> {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let path = entry.path();
            let kind = match entry.file_type() {
                Ok(kind) => kind,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if kind.is_dir() {
                let own = ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"];
                if !own.iter().any(|name| entry.file_name() == *name) {
                    walk(&path, devices)?;
                }
            } else if entry.file_name() != "console" && !kind.is_symlink() {
                devices.extend(at(&path));
            }
        }
        Ok(())
    }
    let mut devices = Vec::new();
    walk(directory, &mut devices)?;
    devices.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(devices)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_found_by_its_path_and_below_a_directory() {
        let null = &asked(Path::new("/dev/null")).unwrap()[0];
        assert_eq!((null.is_block, null.major, null.minor), (false, 1, 3));
        let all = asked(Path::new("/dev")).unwrap();
        assert!(all.contains(null) && all.iter().all(|device| !device.path.starts_with("/dev/pts/")));
        for none in ["/dev/none", "/etc/passwd", "/etc/ssl"] {
            assert_eq!(asked(Path::new(none)).unwrap(), [], "{none}");
        }
    }
}
