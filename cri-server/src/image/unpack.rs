//! A layer's tar into a directory, in the form that overlayfs wants; the only place that writes what an image says.
//!
//! The root is a descriptor and every path is resolved below it by the kernel (`openat2`), so nothing the tar says
//! reaches outside: a name with `..` is refused, an absolute name is taken as relative to the root, a parent that is a
//! symlink is followed only inside the layer, and the last component is never followed at all.
//!
//! Whiteouts become what overlayfs reads: `.wh.name` a character device 0/0, `.wh..wh..opq` the attribute
//! `trusted.overlay.opaque`. They hide *lower* layers only, so what the same layer itself has under that name stays.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    io::{self, Read},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags},
    io::Errno,
};
use thiserror::Error;

use super::tar::{Archive, Entry, EntryKind, TarError, lossy};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Bookkeeping of AUFS that some old layers still carry.
const AUFS: &[u8] = b".wh..wh.";
const OPAQUE_XATTR: &str = "trusted.overlay.opaque";
/// Bound of the paths of directories of one layer, in bytes; real layers have some thousand directories.
const PATHS_MAX: usize = 128 << 20;
const COPY_BUFFER: usize = 128 << 10;
/// What one file or directory costs beside its content.
const ENTRY_BYTES: u64 = 4096;

/// Bounds of what one layer may become, so that a small download can't fill the node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Bytes on disk.
    pub bytes: u64,
    /// Files, directories and links.
    pub entries: u64,
}

/// What was written.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Unpacked {
    /// Bytes on disk, rounded up to blocks.
    pub bytes: u64,
    /// Files, directories and everything else that has an inode.
    pub inodes: u64,
    /// Directories that the tar used but did not describe; they should look like those of the layer below.
    pub implied: BTreeSet<PathBuf>,
}

/// Why a layer was not unpacked.
#[derive(Debug, Error)]
pub enum UnpackError {
    /// The stream is not a tar archive that we accept.
    #[error("read layer")]
    Tar(#[source] TarError),
    /// A name that would leave the layer.
    #[error("entry {0:?} climbs out of the layer with '..'")]
    Climbs(String),
    /// A parent is a symlink out of the layer.
    #[error("entry {entry:?} goes through symlink {link:?} -> {target:?}, which leads out of the layer")]
    ThroughSymlink {
        /// The entry.
        entry: String,
        /// Its parent that is a symlink.
        link: String,
        /// Where that points to.
        target: String,
    },
    /// A hard link to something that this layer does not have.
    #[error("hard link {entry:?} to {target:?}, which is not a file of this layer")]
    HardLink {
        /// The link.
        entry: String,
        /// What it names.
        target: String,
        /// The kernel's word.
        #[source]
        source: io::Error,
    },
    /// A whiteout that names nothing.
    #[error("malformed whiteout {0:?}")]
    Whiteout(String),
    /// An owner that no file can have.
    #[error("entry {0:?} has an impossible owner")]
    Owner(String),
    /// One step of one entry.
    #[error("{step} {entry:?}")]
    Entry {
        /// What was tried.
        step: &'static str,
        /// On which entry.
        entry: String,
        /// The kernel's word.
        #[source]
        source: io::Error,
    },
    /// The layer is larger than the disk has room for.
    #[error("layer unpacks to more than {0} bytes, which is all that the disk can spare")]
    TooLarge(u64),
    /// The layer has too many directories.
    #[error("layer has more directories than can be kept track of")]
    Directories,
    /// The layer has more entries than a file system should be asked for.
    #[error("layer has more than {0} entries")]
    TooMany(u64),
}

/// Unpacks `layer` into the empty directory `root`. Blocking. What is there after an error is the caller's to remove.
pub(super) fn unpack<R: Read>(root: BorrowedFd<'_>, layer: R, limits: &Limits) -> Result<(Unpacked, R), UnpackError> {
    let mut archive = Archive::new(layer);
    let mut unpacker = Unpacker {
        root,
        limits,
        parent: None,
        result: Unpacked::default(),
        times: BTreeMap::new(),
        entries: 0,
        remembered: 0,
        buffer: vec![0; COPY_BUFFER],
    };
    while let Some(entry) = archive.next_entry().map_err(UnpackError::Tar)? {
        unpacker.entry(&entry, &mut archive)?;
    }
    unpacker.finish_times()?;
    Ok((unpacker.result, archive.into_inner()))
}

/// Gives directories that a layer used without describing them the looks that they have below, since overlayfs shows the
/// upper one: a layer with nothing but `tmp/file` must not take the sticky bit from `/tmp`. `lowers` are nearest first.
pub(super) fn inherit(layer: &Path, implied: &BTreeSet<PathBuf>, lowers: &[&Path]) -> io::Result<()> {
    for path in implied {
        let Ok(own) = look(layer, path) else { continue };
        let below = lowers.iter().find_map(|lower| match look(lower, path) {
            Err(Errno::NOENT) => None,
            // A file or a symlink there is not continued by our directory.
            found => Some(found.ok()),
        });
        let Some(Some(below)) = below else { continue };
        let stat = rustix::fs::fstat(&below)?;
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        rustix::fs::fchown(&own, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
        rustix::fs::fchmod(&own, mode)?;
        // The layer was synced before this.
        rustix::fs::fsync(&own)?;
    }
    Ok(())
}

/// A directory of a layer, without following anything.
fn look(layer: &Path, path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // The layer is ours, but is named by a symlink of ours.
    let root = rustix::fs::open(layer, flags, Mode::empty())?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(&root, path, flags | OFlags::NOFOLLOW, Mode::empty(), resolve)
}

struct Unpacker<'a> {
    root: BorrowedFd<'a>,
    limits: &'a Limits,
    /// The directory of the last entry: tars are written directory by directory.
    parent: Option<(PathBuf, OwnedFd)>,
    result: Unpacked,
    /// Times of directories are set last, because every entry made inside changes them.
    times: BTreeMap<PathBuf, Timespec>,
    entries: u64,
    /// Length of all paths in `times` and in the result.
    remembered: usize,
    buffer: Vec<u8>,
}

impl Unpacker<'_> {
    fn entry<R: Read>(&mut self, entry: &Entry, archive: &mut Archive<R>) -> Result<(), UnpackError> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(UnpackError::TooMany(self.limits.entries));
        }
        let path = below_root(&entry.path)?;
        let owner = owner(entry)?;
        let (Some(name), Some(dir)) = (path.file_name(), path.parent()) else {
            // "./": the root itself.
            return match entry.kind {
                EntryKind::Directory => {
                    let step = |step| at(step, &entry.path);
                    let fd = rustix::fs::openat(self.root, ".", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                        .map_err(step("open"))?;
                    self.times.insert(path.clone(), timespec(entry));
                    attributes(&fd, entry, owner)
                }
                _ => Err(UnpackError::Climbs(lossy(&entry.path))),
            };
        };
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            return self.whiteout(entry, name.as_bytes(), hidden, dir);
        }
        self.open_parent(dir, &entry.path)?;
        match entry.kind {
            EntryKind::Directory => self.directory(entry, name, &path, owner),
            EntryKind::File => self.file(entry, name, owner, archive),
            EntryKind::HardLink => self.hard_link(entry, name),
            EntryKind::Symlink => {
                let link = OsStr::from_bytes(&entry.link);
                self.create(entry, name, |dir| rustix::fs::symlinkat(link, dir, name))?;
                self.named_attributes(entry, name, owner)
            }
            EntryKind::CharDevice | EntryKind::BlockDevice | EntryKind::Fifo => {
                let kind = match entry.kind {
                    EntryKind::CharDevice => FileType::CharacterDevice,
                    EntryKind::BlockDevice => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                let device = rustix::fs::makedev(entry.device.0, entry.device.1);
                let mode = Mode::from_raw_mode(entry.mode);
                self.create(entry, name, |dir| rustix::fs::mknodat(dir, name, kind, mode, device))?;
                self.named_attributes(entry, name, owner)
            }
        }
    }

    fn directory(&mut self, entry: &Entry, name: &OsStr, path: &Path, owner: Owner) -> Result<(), UnpackError> {
        let step = |step| at(step, &entry.path);
        let parent = self.parent_fd();
        let mut opaque = false;
        match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
            Ok(()) => self.count(0)?,
            Err(Errno::EXIST) if is_directory(parent, name) => {}
            Err(Errno::EXIST) => {
                // A whiteout and then the directory: the lower one is gone, so this one is opaque.
                opaque = is_whiteout(parent, name);
                self.replace(name).map_err(step("replace"))?;
                rustix::fs::mkdirat(self.parent_fd(), name, Mode::RWXU).map_err(step("create directory"))?;
                self.count(0)?;
            }
            Err(error) => return Err(step("create directory")(error)),
        }
        let fd = open_directory(self.parent_fd(), name).map_err(step("open"))?;
        if opaque {
            set_opaque(&fd).map_err(step("mark as opaque"))?;
        }
        self.result.implied.remove(path);
        self.remember(path)?;
        self.times.insert(path.to_owned(), timespec(entry));
        attributes(&fd, entry, owner)
    }

    fn file<R: Read>(
        &mut self,
        entry: &Entry,
        name: &OsStr,
        owner: Owner,
        archive: &mut Archive<R>,
    ) -> Result<(), UnpackError> {
        self.count(entry.size)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = self.create(entry, name, |dir| rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR))?;
        let mut left = entry.size;
        while left > 0 {
            let read = match archive.read(&mut self.buffer) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(UnpackError::Tar(TarError::Truncated));
                }
                Err(error) => return Err(UnpackError::Tar(TarError::Read(error))),
            };
            left = left.saturating_sub(read as u64);
            let mut data = self.buffer.get(..read).unwrap_or_default();
            while !data.is_empty() {
                let written = rustix::io::write(&fd, data).map_err(at("write", &entry.path))?;
                data = data.get(written..).unwrap_or_default();
            }
        }
        attributes(&fd, entry, owner)?;
        rustix::fs::futimens(&fd, &timestamps(entry)).map_err(at("set times of", &entry.path))
    }

    fn hard_link(&mut self, entry: &Entry, name: &OsStr) -> Result<(), UnpackError> {
        let refuse =
            |source: io::Error| UnpackError::HardLink { entry: lossy(&entry.path), target: lossy(&entry.link), source };
        let target = below_root(&entry.link)?;
        let (Some(target_name), Some(target_dir)) = (target.file_name(), target.parent()) else {
            return Err(refuse(Errno::PERM.into()));
        };
        let path = below_root(&entry.path)?;
        if target == path {
            return Err(refuse(Errno::NOENT.into()));
        }
        let dir = match resolve(self.root, target_dir) {
            Ok(dir) => dir,
            Err(error) => return Err(self.explain(target_dir, &entry.path, error, refuse)),
        };
        // Whether the target is there is asked before anything of that name is replaced.
        let stat =
            rustix::fs::statat(&dir, target_name, AtFlags::SYMLINK_NOFOLLOW).map_err(|error| refuse(error.into()))?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Err(refuse(Errno::ISDIR.into()));
        }
        self.create(entry, name, |parent| rustix::fs::linkat(&dir, target_name, parent, name, AtFlags::empty()))
            .map(drop)
    }

    fn whiteout(&mut self, entry: &Entry, full: &[u8], hidden: &[u8], dir: &Path) -> Result<(), UnpackError> {
        let step = |step| at(step, &entry.path);
        if full == OPAQUE {
            self.open_parent(dir, &entry.path)?;
            let fd = open_directory(self.parent_fd(), OsStr::new(".")).map_err(step("open"))?;
            return set_opaque(&fd).map_err(step("mark as opaque"));
        }
        if full.starts_with(AUFS) {
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(UnpackError::Whiteout(lossy(&entry.path)));
        }
        self.open_parent(dir, &entry.path)?;
        let (parent, name) = (self.parent_fd(), OsStr::from_bytes(hidden));
        match rustix::fs::mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => self.count(0),
            // The layer has its own of that name: a directory hides the lower one whole, a file does so anyway.
            Err(Errno::EXIST) if is_directory(parent, name) => {
                let fd = open_directory(parent, name).map_err(step("open"))?;
                set_opaque(&fd).map_err(step("mark as opaque"))
            }
            Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(step("create whiteout")(error)),
        }
    }

    /// Makes a thing under a name that must be new; an earlier one of the same layer gives way, as with every tar.
    fn create<T>(
        &mut self,
        entry: &Entry,
        name: &OsStr,
        make: impl Fn(BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> Result<T, UnpackError> {
        if entry.kind != EntryKind::File && entry.kind != EntryKind::HardLink {
            self.count(0)?;
        }
        match make(self.parent_fd()) {
            Err(Errno::EXIST) => {
                self.replace(name).map_err(at("replace", &entry.path))?;
                make(self.parent_fd())
            }
            result => result,
        }
        .map_err(at("create", &entry.path))
    }

    fn replace(&mut self, name: &OsStr) -> rustix::io::Result<()> {
        let parent = self.parent_fd();
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => {
                // The parent is held by descriptor, and the removal follows no symlink.
                let path = Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string()).join(name);
                vaina_sys::fs::remove_tree(&path).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
            }
            result => result,
        }
    }

    fn named_attributes(&self, entry: &Entry, name: &OsStr, owner: Owner) -> Result<(), UnpackError> {
        let step = |step| at(step, &entry.path);
        let parent = self.parent_fd();
        rustix::fs::chownat(parent, name, Some(owner.0), Some(owner.1), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(step("set owner of"))?;
        if entry.kind != EntryKind::Symlink {
            // chown cleared setuid, and the process's umask the rest. It was made just now and is no symlink.
            rustix::fs::chmodat(parent, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())
                .map_err(step("set mode of"))?;
        }
        let path = Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string()).join(name);
        for (key, value) in xattrs(entry) {
            ignore_unsupported(rustix::fs::lsetxattr(&path, key, value, XattrFlags::empty()))
                .map_err(step("set extended attribute of"))?;
        }
        rustix::fs::utimensat(parent, name, &timestamps(entry), AtFlags::SYMLINK_NOFOLLOW).map_err(step("set times of"))
    }

    fn count(&mut self, size: u64) -> Result<(), UnpackError> {
        self.result.inodes += 1;
        let bytes = size.div_ceil(ENTRY_BYTES).saturating_mul(ENTRY_BYTES).max(ENTRY_BYTES);
        self.result.bytes = self.result.bytes.saturating_add(bytes);
        if self.result.bytes > self.limits.bytes {
            return Err(UnpackError::TooLarge(self.limits.bytes));
        }
        Ok(())
    }

    /// Paths of directories are kept until the end of the layer: they must not become a way to our memory.
    fn remember(&mut self, path: &Path) -> Result<(), UnpackError> {
        self.remembered += path.as_os_str().len() + size_of::<PathBuf>();
        if self.remembered > PATHS_MAX { Err(UnpackError::Directories) } else { Ok(()) }
    }

    fn parent_fd(&self) -> BorrowedFd<'_> {
        self.parent.as_ref().map_or(self.root, |(_, fd)| fd.as_fd())
    }

    /// Makes `dir` the current parent, with whatever of it is missing.
    fn open_parent(&mut self, dir: &Path, entry: &[u8]) -> Result<(), UnpackError> {
        // Replacing a directory is an entry of its parent, which is then the current one: this never names a dead tree.
        if self.parent.as_ref().is_some_and(|(path, _)| path == dir) {
            return Ok(());
        }
        self.parent = None;
        let fd = match resolve(self.root, dir) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => self.make_directories(dir, entry)?,
            Err(error) => {
                return Err(self.explain(dir, entry, error, |source| UnpackError::Entry {
                    step: "open directory of",
                    entry: lossy(entry),
                    source,
                }));
            }
        };
        self.parent = Some((dir.to_owned(), fd));
        Ok(())
    }

    fn make_directories(&mut self, dir: &Path, entry: &[u8]) -> Result<OwnedFd, UnpackError> {
        let mut here = PathBuf::new();
        let mut fd: Option<OwnedFd> = None;
        for component in dir.components() {
            let name = component.as_os_str();
            here.push(name);
            let next = match resolve(self.root, &here) {
                Ok(next) => next,
                Err(error @ (Errno::NOENT | Errno::NOTDIR)) => {
                    let parent = fd.as_ref().map_or(self.root, |fd| fd.as_fd());
                    let whiteout = is_whiteout(parent, name);
                    if whiteout {
                        rustix::fs::unlinkat(parent, name, AtFlags::empty())
                            .map_err(at("create directory of", entry))?;
                    } else if rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
                        return Err(self.explain(&here, entry, error, |source| UnpackError::Entry {
                            step: "open directory of",
                            entry: lossy(entry),
                            source,
                        }));
                    }
                    let mode = Mode::from_raw_mode(0o755);
                    rustix::fs::mkdirat(parent, name, mode)
                        .and_then(|()| rustix::fs::chmodat(parent, name, mode, AtFlags::empty()))
                        .map_err(at("create directory of", entry))?;
                    if !whiteout {
                        self.remember(&here)?;
                        self.result.implied.insert(here.clone());
                    }
                    let next = open_directory(parent, name).map_err(at("open directory of", entry))?;
                    if whiteout {
                        set_opaque(&next).map_err(at("mark as opaque", entry))?;
                    }
                    self.count(0)?;
                    next
                }
                Err(error) => {
                    return Err(self.explain(&here, entry, error, |source| UnpackError::Entry {
                        step: "open directory of",
                        entry: lossy(entry),
                        source,
                    }));
                }
            };
            fd = Some(next);
        }
        match fd {
            Some(fd) => Ok(fd),
            None => open_directory(self.root, OsStr::new(".")).map_err(at("open directory of", entry)),
        }
    }

    /// Says which symlink led away, if one did.
    fn explain(
        &self,
        dir: &Path,
        entry: &[u8],
        error: Errno,
        otherwise: impl FnOnce(io::Error) -> UnpackError,
    ) -> UnpackError {
        match first_symlink(self.root, dir) {
            Some((link, target)) => {
                UnpackError::ThroughSymlink { entry: lossy(entry), link: link.display().to_string(), target }
            }
            None => otherwise(error.into()),
        }
    }

    fn finish_times(&mut self) -> Result<(), UnpackError> {
        for (path, time) in &self.times {
            let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
            // It may have been replaced by something else since.
            let Ok(fd) = rustix::fs::openat2(
                self.root,
                path,
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
                ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
            ) else {
                continue;
            };
            let times = Timestamps { last_access: *time, last_modification: *time };
            rustix::fs::futimens(&fd, &times).map_err(at("set times of", path.as_os_str().as_bytes()))?;
        }
        Ok(())
    }
}

type Owner = (Uid, Gid);

fn owner(entry: &Entry) -> Result<Owner, UnpackError> {
    // The highest value means "no change" to the kernel.
    let id = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX);
    match (id(entry.uid), id(entry.gid)) {
        (Some(uid), Some(gid)) => Ok((Uid::from_raw(uid), Gid::from_raw(gid))),
        _ => Err(UnpackError::Owner(lossy(&entry.path))),
    }
}

/// The name as a path below the root: slashes at the ends and `.` dropped, `..` refused.
fn below_root(name: &[u8]) -> Result<PathBuf, UnpackError> {
    let mut path = PathBuf::new();
    for component in name.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err(UnpackError::Climbs(lossy(name))),
            component => path.push(OsStr::from_bytes(component)),
        }
    }
    Ok(path)
}

/// Opens a directory of the layer. A symlink on the way may lead anywhere *inside*: relative ones that climb are refused
/// (EXDEV), absolute ones mean the layer's own root, as they will in the container.
fn resolve(root: BorrowedFd<'_>, dir: &Path) -> rustix::io::Result<OwnedFd> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    let open = |resolve| {
        rustix::fs::openat2(
            root,
            dir,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            resolve | ResolveFlags::NO_MAGICLINKS,
        )
    };
    match open(ResolveFlags::BENEATH) {
        Err(Errno::XDEV) if first_symlink(root, dir).is_some_and(|(_, target)| target.starts_with('/')) => {
            open(ResolveFlags::IN_ROOT)
        }
        result => result,
    }
}

fn first_symlink(root: BorrowedFd<'_>, dir: &Path) -> Option<(PathBuf, String)> {
    let mut here = PathBuf::new();
    for component in dir.components() {
        here.push(component);
        let fd = rustix::fs::openat2(
            root,
            &here,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
        )
        .ok()?;
        if let Ok(target) = rustix::fs::readlinkat(&fd, "", Vec::new()) {
            return Some((here, lossy(target.to_bytes())));
        }
    }
    None
}

fn open_directory(dir: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

fn is_directory(dir: BorrowedFd<'_>, name: &OsStr) -> bool {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

fn is_whiteout(dir: BorrowedFd<'_>, name: &OsStr) -> bool {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0)
}

fn set_opaque(fd: &OwnedFd) -> rustix::io::Result<()> {
    rustix::fs::fsetxattr(fd, OPAQUE_XATTR, b"y", XattrFlags::empty())
}

/// Owner first: it clears setuid and file capabilities, which come after it.
fn attributes(fd: &OwnedFd, entry: &Entry, owner: Owner) -> Result<(), UnpackError> {
    let step = |step| at(step, &entry.path);
    rustix::fs::fchown(fd, Some(owner.0), Some(owner.1)).map_err(step("set owner of"))?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(entry.mode)).map_err(step("set mode of"))?;
    for (key, value) in xattrs(entry) {
        ignore_unsupported(rustix::fs::fsetxattr(fd, key, value, XattrFlags::empty()))
            .map_err(step("set extended attribute of"))?;
    }
    Ok(())
}

/// Attributes that belong to content. An image may not speak to overlayfs (`trusted.overlay.*` would redirect into other
/// layers), nor bring labels of another host's security module.
fn xattrs(entry: &Entry) -> impl Iterator<Item = (&OsStr, &[u8])> {
    entry
        .xattrs
        .iter()
        .filter(|(name, _)| {
            name.starts_with(b"user.") && !name.starts_with(b"user.overlay.")
                || name.as_slice() == b"security.capability"
                || name.starts_with(b"system.posix_acl_")
        })
        .map(|(name, value)| (OsStr::from_bytes(name), value.as_slice()))
}

/// A file system or file type without such attributes (`user.*` on a device) is no reason to refuse an image.
fn ignore_unsupported(result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match result {
        Err(Errno::NOTSUP | Errno::PERM) => Ok(()),
        result => result,
    }
}

fn timespec(entry: &Entry) -> Timespec {
    Timespec { tv_sec: entry.mtime.0, tv_nsec: entry.mtime.1.into() }
}

fn timestamps(entry: &Entry) -> Timestamps {
    Timestamps { last_access: timespec(entry), last_modification: timespec(entry) }
}

fn at(step: &'static str, entry: &[u8]) -> impl Fn(Errno) -> UnpackError {
    move |error| UnpackError::Entry { step, entry: lossy(entry), source: error.into() }
}

#[cfg(test)]
mod tests;
