//! Mounts of the calling thread's mount namespace, and the table of them.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

/// Whether mounts made on one side of a peer group show on the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Neither way.
    Private,
    /// From the peer group to here.
    Slave,
    /// Both ways.
    Shared,
}

const NONE: Option<&str> = None;

/// Binds `source` (file or directory) on `target`; with `recursive`, what is mounted below comes along.
pub fn bind(source: &Path, target: &Path, recursive: bool) -> io::Result<()> {
    let flags = if recursive { MsFlags::MS_BIND | MsFlags::MS_REC } else { MsFlags::MS_BIND };
    Ok(mount(Some(source), target, NONE, flags, NONE)?)
}

/// Makes the mount at `target` read-only, keeping its other flags. Only this mount, not those below it.
pub fn remount_read_only(target: &Path) -> io::Result<()> {
    let tree =
        rustix::fs::open(target, rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC, rustix::fs::Mode::empty())?;
    make_read_only(&tree)
}

fn make_read_only(tree: &OwnedFd) -> io::Result<()> {
    set_attributes(tree, libc::MOUNT_ATTR_RDONLY, None, false)
}

/// Shows the files of a detached mount with other owners: what `user` calls 0 is 0 on disk. With `recursive` the mounts below
/// it too. A file system that can't is `EINVAL`.
pub fn map_ids(tree: impl AsFd, user: impl AsFd, recursive: bool) -> io::Result<()> {
    set_attributes(tree, libc::MOUNT_ATTR_IDMAP, Some(user.as_fd()), recursive)
}

/// `mount_setattr(2)` (5.12) on the mount that `tree` stands for.
fn set_attributes(tree: impl AsFd, set: u64, user: Option<BorrowedFd<'_>>, recursive: bool) -> io::Result<()> {
    let userns_fd = user.map_or(0, |user| u64::from(user.as_raw_fd().unsigned_abs()));
    let attributes = libc::mount_attr { attr_set: set, attr_clr: 0, propagation: 0, userns_fd };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the descriptors are open for the length of the call, the path is an empty NUL-terminated string (allowed by
    // AT_EMPTY_PATH), the pointer is to a live `mount_attr`, and the size is that structure's. The kernel writes to none.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Mounts a file system: `fs_type` from `source` with the file system's own `options`.
pub fn filesystem(fs_type: &str, source: &str, target: &Path, flags: MsFlags, options: &str) -> io::Result<()> {
    Ok(mount(Some(source), target, Some(fs_type), flags, Some(options))?)
}

/// Mounts an overlay of `lower` (topmost first) with further options (`upperdir`, `workdir` …) at `target`.
///
/// The old interface takes all options in one page, some dozen layers; the new one (`lowerdir+`, 6.7) takes a layer at a
/// time. Where it is missing, the layers are named relative to the directory that they have in common.
pub fn overlay(lower: &[PathBuf], options: &[(&str, Option<&str>)], read_only: bool, target: &Path) -> io::Result<()> {
    match overlay_by_layers(lower, options, read_only, target) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::EPERM)) => {
            overlay_in_a_page(lower, options, read_only, target)
        }
        other => other,
    }
}

fn overlay_by_layers(
    lower: &[PathBuf],
    options: &[(&str, Option<&str>)],
    read_only: bool,
    target: &Path,
) -> io::Result<()> {
    use rustix::mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount,
        fsopen,
    };
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", "overlay")?;
    for layer in lower {
        fsconfig_set_string(&context, "lowerdir+", layer)?;
    }
    for (key, value) in options {
        match value {
            Some(value) => fsconfig_set_string(&context, *key, *value)?,
            None => fsconfig_set_flag(&context, *key)?,
        }
    }
    fsconfig_create(&context)?;
    let attributes = if read_only { MountAttrFlags::MOUNT_ATTR_RDONLY } else { MountAttrFlags::empty() };
    let tree = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    attach(tree, target)
}

/// Changes the working directory: for a process that is about to exec.
fn overlay_in_a_page(
    lower: &[PathBuf],
    options: &[(&str, Option<&str>)],
    read_only: bool,
    target: &Path,
) -> io::Result<()> {
    let mut common: PathBuf = lower.first().cloned().unwrap_or_default();
    while !lower.iter().all(|layer| layer.starts_with(&common)) {
        common.pop();
    }
    if lower.len() == 1 {
        common.pop();
    }
    std::env::set_current_dir(&common)?;
    let layers: Vec<_> =
        lower.iter().map(|layer| layer.strip_prefix(&common).unwrap_or(layer).to_string_lossy()).collect();
    let mut data = format!("lowerdir={}", layers.join(":"));
    for (key, value) in options {
        data.push(',');
        data.push_str(key);
        if let Some(value) = value {
            data.push('=');
            data.push_str(value);
        }
    }
    if data.len() >= 4096 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} layers need {} bytes of mount options; this kernel takes 4095", lower.len(), data.len()),
        ));
    }
    let flags = if read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
    filesystem("overlay", "overlay", target, flags, &data)
}

/// Changes the propagation of the mount at `target`, with `recursive` of all below it too.
pub fn set_propagation(target: &Path, propagation: Propagation, recursive: bool) -> io::Result<()> {
    let mut flags = match propagation {
        Propagation::Private => MsFlags::MS_PRIVATE,
        Propagation::Slave => MsFlags::MS_SLAVE,
        Propagation::Shared => MsFlags::MS_SHARED,
    };
    flags.set(MsFlags::MS_REC, recursive);
    Ok(mount(NONE, target, NONE, flags, NONE)?)
}

/// Takes the mount at `target` out of the table; what uses it keeps it alive. No mount there is success.
pub fn detach(target: &Path) -> io::Result<()> {
    match umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        // EINVAL: the path is there and is no mount point.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// A read-only mount of `path` that stands in no mount table: what is opened or executed through the descriptor can't
/// be written through it, whatever its file's mode says. It goes with the last descriptor.
pub fn detached_read_only(path: &Path) -> io::Result<OwnedFd> {
    let tree = detached(path, false)?;
    make_read_only(&tree)?;
    Ok(tree)
}

/// A mount of `path` (file or directory) that stands in no mount table, with `recursive` of what is mounted below it too. Its
/// propagation is that of the mount that it is taken from.
pub fn detached(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    Ok(open_tree(rustix::fs::CWD, path, flags)?)
}

/// Puts a detached mount at `target`.
pub fn attach(tree: impl AsFd, target: &Path) -> io::Result<()> {
    Ok(move_mount(tree, c"", rustix::fs::CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// One line of a mountinfo table (`proc_pid_mountinfo(5)`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPoint {
    /// Unique while the mount exists.
    pub id: u32,
    /// Of the mount that this one stands on.
    pub parent: u32,
    /// Which directory of the file system is mounted.
    pub root: PathBuf,
    /// Where, as this process sees it.
    pub target: PathBuf,
    /// Options of the mount, comma-separated.
    pub options: String,
    /// It is in a peer group.
    pub shared: bool,
    /// It receives from a peer group.
    pub slave: bool,
    /// File system type.
    pub fs_type: String,
    /// What it is mounted from.
    pub source: String,
    /// Options of the file system, comma-separated.
    pub super_options: String,
}

/// The mounts that this process sees, in the kernel's order: a later one at the same target covers an earlier one.
pub fn table() -> io::Result<Vec<MountPoint>> {
    parse_table(&fs::read("/proc/thread-self/mountinfo")?)
}

/// Reads a mountinfo table.
pub fn parse_table(text: &[u8]) -> io::Result<Vec<MountPoint>> {
    text.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| {
            parse_line(line).ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("mountinfo line {:?}", String::from_utf8_lossy(line)),
                )
            })
        })
        .collect()
}

/// The mount that `path` (absolute, without links) lies on.
pub fn containing<'a>(table: &'a [MountPoint], path: &Path) -> Option<&'a MountPoint> {
    // The last of the longest: a later mount covers an earlier one at the same target.
    table
        .iter()
        .filter(|mount| path.starts_with(&mount.target))
        .max_by_key(|mount| mount.target.components().count())
        .map(|longest| table.iter().rfind(|mount| mount.target == longest.target).unwrap_or(longest))
}

fn parse_line(line: &[u8]) -> Option<MountPoint> {
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse().ok();
    let mut fields = line.split(|byte| *byte == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let _device = fields.next()?;
    let root = path(fields.next()?);
    let target = path(fields.next()?);
    let options = text(fields.next()?);
    let (mut shared, mut slave) = (false, false);
    for field in fields.by_ref().take_while(|field| *field != b"-") {
        shared |= field.starts_with(b"shared:");
        slave |= field.starts_with(b"master:");
    }
    let fs_type = text(fields.next()?);
    let source = text(fields.next()?);
    let super_options = text(fields.next().unwrap_or_default());
    Some(MountPoint { id, parent, root, target, options, shared, slave, fs_type, source, super_options })
}

/// Undoes the kernel's octal escapes of space, tab, newline and backslash.
fn path(field: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStringExt as _;
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = (first == b'\\').then(|| tail.get(..3)).flatten();
        let value = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        if let Some(value) = value {
            bytes.push(value);
            rest = &tail[3..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
        30 22 0:25 / /run rw - tmpfs tmpfs rw,size=10k\n\
        31 30 0:4 net:[4026532008] /run/netns/a\\040b rw shared:7 master:3 - nsfs nsfs rw\n";

    #[test]
    fn lines_are_read_with_optional_fields_and_escapes() {
        let table = parse_table(TABLE.as_bytes()).unwrap();
        assert_eq!(table.len(), 3);
        assert!(table[0].shared && !table[0].slave);
        assert!(!table[1].shared && !table[1].slave);
        assert_eq!(table[2].target, Path::new("/run/netns/a b"));
        assert!(table[2].shared && table[2].slave);
        assert_eq!((table[2].fs_type.as_str(), table[2].parent), ("nsfs", 30));
        assert!(parse_table(b"garbage\n").is_err());
    }

    #[test]
    fn a_path_lies_on_the_deepest_mount() {
        let table = parse_table(TABLE.as_bytes()).unwrap();
        assert_eq!(containing(&table, Path::new("/run/x")).unwrap().id, 30);
        assert_eq!(containing(&table, Path::new("/running")).unwrap().id, 22);
    }

    mod root {
        use super::*;

        #[test]
        fn a_detached_read_only_mount_refuses_writers() {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("file");
            fs::write(&file, "x").unwrap();
            let tree = detached_read_only(&file).unwrap();
            use std::os::fd::AsRawFd as _;
            let through = format!("/proc/self/fd/{}", tree.as_raw_fd());
            assert_eq!(fs::read_to_string(&through).unwrap(), "x");
            let error = fs::OpenOptions::new().write(true).open(&through).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(nix::libc::EROFS));
            assert!(!table().unwrap().iter().any(|mount| mount.target == file));
        }

        #[test]
        fn a_detached_mount_shows_other_owners() {
            use std::os::unix::fs::MetadataExt as _;
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("file"), "x").unwrap();
            let map = [crate::userns::IdMap { inside: 0, outside: 70_000, length: 1000 }];
            let tree = detached(dir.path(), false).unwrap();
            map_ids(&tree, crate::userns::create(&map, &map).unwrap(), false).unwrap();
            let through = format!("/proc/self/fd/{}/file", tree.as_raw_fd());
            let seen = fs::metadata(&through).unwrap();
            assert_eq!((seen.uid(), seen.gid()), (70_000, 70_000));
        }

        #[test]
        fn detach_is_idempotent() {
            let dir = tempfile::tempdir().unwrap();
            let target = dir.path().join("t");
            detach(&target).unwrap();
            fs::create_dir(&target).unwrap();
            detach(&target).unwrap();
            filesystem("tmpfs", "shm", &target, MsFlags::MS_NODEV, "size=64k").unwrap();
            remount_read_only(&target).unwrap();
            assert!(fs::write(target.join("x"), "x").is_err());
            detach(&target).unwrap();
            assert!(!table().unwrap().iter().any(|mount| mount.target == target));
        }
    }
}
