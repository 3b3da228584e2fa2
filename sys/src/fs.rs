//! Files: written whole or not at all, removed without leaving the file system, opened below a root.

use std::{
    ffi::{CStr, OsStr},
    fs::{self, File},
    io::{self, Write as _},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::Path,
};

use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags, openat, openat2, renameat_with, statat, unlinkat,
    },
    io::Errno,
};

/// Replaces `path` by a file with these bytes: readers see the old or the new one. With `sync`, also after power loss.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32, sync: bool) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or(OsStr::new("file")).to_owned();
    name.push(".new");
    let next = path.with_file_name(name);
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&next)?;
    file.write_all(bytes)?;
    if sync {
        file.sync_all()?;
    }
    drop(file);
    fs::rename(&next, path)?;
    if sync && let Some(parent) = path.parent() {
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

/// Opens `path` below `root` as if `root` were `/`: neither `..` nor links lead out, and no link of `/proc` is followed.
pub fn open_in_root(root: impl AsFd, path: &Path, flags: OFlags, mode: u32) -> io::Result<OwnedFd> {
    Ok(openat2(
        root,
        path,
        flags | OFlags::CLOEXEC,
        Mode::from_raw_mode(mode),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )?)
}

/// Makes a directory and what is missing above it, below `root` as [`open_in_root`] understands it. One that is there is fine.
pub fn create_dir_all_in_root(root: impl AsFd, path: &Path, mode: u32) -> io::Result<()> {
    let mut above = open_in_root(&root, Path::new("/"), OFlags::PATH | OFlags::DIRECTORY, 0)?;
    let mut so_far = std::path::PathBuf::from("/");
    for part in path.components() {
        so_far.push(part);
        let there = match open_in_root(&root, &so_far, OFlags::PATH | OFlags::DIRECTORY, 0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let std::path::Component::Normal(name) = part {
                    match rustix::fs::mkdirat(&above, name, Mode::from_raw_mode(mode)) {
                        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                        Err(errno) => return Err(errno.into()),
                    }
                }
                open_in_root(&root, &so_far, OFlags::PATH | OFlags::DIRECTORY, 0)?
            }
            other => other?,
        };
        above = there;
    }
    Ok(())
}

/// Removes a file or a tree without following links and without entering other file systems; nothing there is success.
///
/// A mount below is an error (`EBUSY` or `EXDEV`): its content belongs to somebody else.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !metadata.is_dir() {
        return gone(fs::remove_file(path));
    }
    let top = rustix::fs::open(path, DIRECTORY, Mode::empty())?;
    let mut removal = Removal { top, device: metadata.dev(), hoisted: 0 };
    loop {
        let before = removal.hoisted;
        removal.empty(removal.top.try_clone()?, 0)?;
        if removal.hoisted == before {
            return gone(fs::remove_dir(path));
        }
    }
}

/// A tree that is being removed.
///
/// A container may nest directories without end, and every level of a plain recursion costs a descriptor and some
/// stack. So what lies deep is moved up to the top first, and the next round finds it there.
struct Removal {
    top: OwnedFd,
    device: u64,
    hoisted: u64,
}

/// How deep the recursion goes.
const DEPTH_MAX: usize = 32;

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::RDONLY);

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

impl Removal {
    fn empty(&mut self, directory: OwnedFd, depth: usize) -> io::Result<()> {
        // Collected first: removing while reading may skip entries.
        let entries: Vec<_> = rustix::fs::Dir::read_from(&directory)?.collect::<Result<_, _>>()?;
        for entry in entries {
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let is_directory = match entry.file_type() {
                FileType::Directory => true,
                FileType::Unknown => {
                    let found = statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
                    FileType::from_raw_mode(found.st_mode) == FileType::Directory
                }
                _ => false,
            };
            if !is_directory {
                gone(unlinkat(&directory, name, AtFlags::empty()).map_err(Into::into))?;
                continue;
            }
            let inner = openat(&directory, name, DIRECTORY, Mode::empty())?;
            if rustix::fs::fstat(&inner)?.st_dev != self.device {
                return Err(io::Error::new(
                    io::ErrorKind::CrossesDevices,
                    format!("{} is a mount point", name.to_string_lossy()),
                ));
            }
            if depth == DEPTH_MAX {
                self.hoist(&directory, name)?;
                continue;
            }
            self.empty(inner, depth + 1)?;
            gone(unlinkat(&directory, name, AtFlags::REMOVEDIR).map_err(Into::into))?;
        }
        Ok(())
    }

    fn hoist(&mut self, directory: &OwnedFd, name: &CStr) -> io::Result<()> {
        loop {
            self.hoisted += 1;
            let target = format!(".hoisted-{}", self.hoisted);
            match renameat_with(directory, name, &self.top, &target, RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => {}
                result => return Ok(result?),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_made_below_the_root_whatever_links_say() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("there")).unwrap();
        std::os::unix::fs::symlink("/there", root.join("link")).unwrap();
        std::os::unix::fs::symlink("../../../../tmp", root.join("out")).unwrap();
        let opened = File::open(&root).unwrap();
        for path in ["/link/a/b", "there/a/b", "/", "/x/../y"] {
            create_dir_all_in_root(&opened, Path::new(path), 0o755).unwrap();
        }
        assert!(root.join("there/a/b").is_dir() && root.join("y").is_dir());
        assert!(create_dir_all_in_root(&opened, Path::new("/out/a"), 0o755).is_err(), "its target is not in the root");
    }

    #[test]
    fn a_tree_goes_and_what_its_links_name_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        fs::write(tree.join("a/file"), "x").unwrap();
        std::os::unix::fs::symlink(&outside, tree.join("a/link")).unwrap();
        remove_tree(&tree).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists() && outside.join("kept").exists());
    }

    #[test]
    fn depth_costs_neither_stack_nor_descriptors() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let mut here = rustix::fs::open(&tree, DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..20_000 {
            rustix::fs::mkdirat(&here, "d", Mode::RWXU).unwrap();
            here = openat(&here, "d", DIRECTORY, Mode::empty()).unwrap();
        }
        fs::create_dir(tree.join(".hoisted-3")).unwrap();
        // A thread of little stack.
        let removed = std::thread::Builder::new().stack_size(256 << 10).spawn({
            let tree = tree.clone();
            move || remove_tree(&tree)
        });
        removed.unwrap().join().unwrap().unwrap();
        assert!(!tree.exists());
    }

    #[test]
    fn nothing_leads_out_of_a_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        fs::write(dir.path().join("secret"), "x").unwrap();
        std::os::unix::fs::symlink("../secret", root.join("link")).unwrap();
        std::os::unix::fs::symlink("/proc/self/root/etc/passwd", root.join("magic")).unwrap();
        let root = File::open(&root).unwrap();
        for path in ["link", "../secret", "/../../secret", "magic"] {
            assert!(open_in_root(&root, Path::new(path), OFlags::RDONLY, 0).is_err(), "{path}");
        }
    }

    #[test]
    fn a_file_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        write_atomic(&path, b"one", 0o640, false).unwrap();
        write_atomic(&path, b"two", 0o640, true).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
