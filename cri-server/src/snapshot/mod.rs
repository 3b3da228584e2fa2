//! Writable layers of containers, and the overlay mount that puts them onto their image.
//!
//! Only directories are made here; the mount is made by whoever creates the container, in its throw-away mount namespace
//! (the shim), from the [`Mount`] that goes with the create request. So nothing here can leave a mount behind.
//!
//! ```text
//! <root>/containers/<container id>/upper, work    one container
//! <root>/containers/<container id>/empty         below images that have too few layers for an overlay
//! <root>/containers/<container id>/volumes/<n>    volumes that its image declares and does not have
//! <root>/trash/<n>                                renamed away, being deleted
//! ```
//!
//! Overlay options and why: `index=off` and no `userxattr`, since layers are written with `trusted.overlay.*` and shared
//! between mounts; `volatile`, because a writable layer never outlives the loss of power that would have needed the
//! syncs (the kubelet makes new containers), and without it every unmount waits for the disk.

use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use thiserror::Error;

use crate::{
    error::{Classify, Kind},
    id::ContainerId,
    image::Image,
    sandbox::UserNamespace,
};

const CONTAINERS: &str = "containers";
const TRASH: &str = "trash";
const UPPER: &str = "upper";
const WORK: &str = "work";
/// Under an image with too few layers for an overlay.
const EMPTY: &str = "empty";
const VOLUMES: &str = "volumes";
/// What overlayfs stacks at most. That mount data is one page is the mounter's affair: the new mount API has no such
/// limit, and without it the layers' short names leave room for some hundred.
const LAYERS_MAX: usize = 500;

/// A mount as containerd's shim protocol describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// File system type.
    pub type_: String,
    /// Source.
    pub source: String,
    /// Options, one each.
    pub options: Vec<String>,
}

/// The directories that a container's root file system consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rootfs {
    /// Image layers, lowest first.
    pub lower: Vec<PathBuf>,
    /// The writable layer.
    pub upper: PathBuf,
    /// overlayfs's own.
    pub work: PathBuf,
}

/// What a writable layer takes on disk.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes in blocks.
    pub bytes: u64,
    /// Files and directories.
    pub inodes: u64,
}

/// Why a writable layer was not made, read or removed.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// A step on a directory.
    #[error("{step} {}", .path.display())]
    Directory {
        /// Which step.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// More layers than can be stacked.
    #[error("image has {0} layers, overlayfs stacks {LAYERS_MAX} at most")]
    TooManyLayers(usize),
    /// A path that a mount option can't hold.
    #[error("root directory {} contains a character that overlay mount options can't hold", .0.display())]
    Path(PathBuf),
}

impl Classify for SnapshotError {
    fn kind(&self) -> Kind {
        match self {
            Self::Directory { source, .. }
                if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =>
            {
                Kind::ResourceExhausted
            }
            Self::Directory { .. } => Kind::Internal,
            Self::TooManyLayers(_) | Self::Path(_) => Kind::FailedPrecondition,
        }
    }
}

/// Makes the writable layer of a container on `image` and describes the mount. Blocking, some system calls; repeating it is fine.
///
/// In a user namespace the image's files are shown with its owners; the writable layer has the node's numbers of them.
pub fn prepare(
    root: &Path,
    container: &ContainerId,
    image: &Image,
    user: Option<UserNamespace>,
) -> Result<Mount, SnapshotError> {
    let dir = dir(root, container);
    let rootfs = Rootfs { lower: image.layers.clone(), upper: dir.join(UPPER), work: dir.join(WORK) };
    fs::create_dir_all(&dir).map_err(at("create", &dir))?;
    // Setuid files in it are for the container, not for the users of the host.
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).map_err(at("set mode of", &dir))?;
    if !rootfs.upper.exists() {
        // "/" of the container looks as the image says. Made under another name, so that what is there is complete.
        let new = dir.join("upper.new");
        remove_tree(&new)?;
        fs::create_dir(&new).map_err(at("create", &new))?;
        let (mode, uid, gid) = match rootfs.lower.last() {
            Some(top) => {
                let stat = fs::metadata(top).map_err(at("look at", top))?;
                (stat.mode() & 0o7777, stat.uid(), stat.gid())
            }
            None => (0o755, 0, 0),
        };
        // An owner that the namespace does not have stays as it is, and is nobody there.
        let (uid, gid) = user
            .map_or((uid, gid), |user| (user.uids.outside(uid).unwrap_or(uid), user.gids.outside(gid).unwrap_or(gid)));
        chown(&new, Some(uid), Some(gid)).map_err(at("set owner of", &new))?;
        fs::set_permissions(&new, fs::Permissions::from_mode(mode)).map_err(at("set mode of", &new))?;
        fs::rename(&new, &rootfs.upper).map_err(at("create", &rootfs.upper))?;
    }
    // A volatile mount marks its work directory and refuses to start from a marked one.
    remove_tree(&rootfs.work)?;
    fs::create_dir(&rootfs.work).map_err(at("create", &rootfs.work))?;
    let empty = dir.join(EMPTY);
    if rootfs.lower.is_empty() && !empty.exists() {
        fs::create_dir(&empty).map_err(at("create", &empty))?;
    }
    let mut mount = mount(&rootfs, &empty)?;
    mount.options.extend(map_options(user));
    Ok(mount)
}

/// The mapping as containerd writes it in mounts.
fn map_options(user: Option<UserNamespace>) -> impl Iterator<Item = String> {
    user.into_iter().flat_map(|user| [format!("uidmap={}", user.uids), format!("gidmap={}", user.gids)])
}

/// A path in mount options.
fn text(path: &Path) -> Result<String, SnapshotError> {
    match path.to_str() {
        // ':' separates layers and ',' options; overlayfs knows escapes, other readers of the options don't.
        Some(text) if !text.contains([':', ',', '\\']) => Ok(text.to_owned()),
        _ => Err(SnapshotError::Path(path.to_owned())),
    }
}

fn mount(rootfs: &Rootfs, empty: &Path) -> Result<Mount, SnapshotError> {
    if rootfs.lower.len() > LAYERS_MAX {
        return Err(SnapshotError::TooManyLayers(rootfs.lower.len()));
    }
    let mut lower = rootfs.lower.iter().rev().map(|layer| text(layer)).collect::<Result<Vec<_>, _>>()?;
    if lower.is_empty() {
        lower.push(text(empty)?);
    }
    let options = vec![
        "index=off".to_owned(),
        "volatile".to_owned(),
        format!("lowerdir={}", lower.join(":")),
        format!("upperdir={}", text(&rootfs.upper)?),
        format!("workdir={}", text(&rootfs.work)?),
    ];
    Ok(Mount { type_: "overlay".to_owned(), source: "overlay".to_owned(), options })
}

/// Describes the mount of an image to be read only, for a container. Blocking.
pub fn read_only(
    root: &Path,
    container: &ContainerId,
    image: &Image,
    user: Option<UserNamespace>,
) -> Result<Mount, SnapshotError> {
    let empty = dir(root, container).join(EMPTY);
    fs::create_dir_all(&empty).map_err(at("create", &empty))?;
    let mut lower = image.layers.iter().rev().map(|layer| text(layer)).collect::<Result<Vec<_>, _>>()?;
    let ro = "ro".to_owned();
    let mut mount = match lower.len() {
        0 => Mount { type_: "bind".to_owned(), source: text(&empty)?, options: vec![ro] },
        1..=LAYERS_MAX => {
            // overlayfs wants two; a bind of a single one would show its whiteouts.
            lower.push(text(&empty)?);
            let options = vec![ro, "index=off".to_owned(), format!("lowerdir={}", lower.join(":"))];
            Mount { type_: "overlay".to_owned(), source: "overlay".to_owned(), options }
        }
        count => return Err(SnapshotError::TooManyLayers(count)),
    };
    mount.options.extend(map_options(user));
    Ok(mount)
}

/// Where volumes of a container lie that end with it, like its writable layer.
pub fn volumes(root: &Path, container: &ContainerId) -> PathBuf {
    dir(root, container).join(VOLUMES)
}

/// Removes the writable layer of a container; one that is not there is removed.
///
/// It is gone from its place when this answers; the files are deleted behind it, since that can take long.
pub async fn remove(root: &Path, container: &ContainerId) -> Result<(), SnapshotError> {
    let (root, path) = (root.to_owned(), dir(root, container));
    let renamed = tokio::task::spawn_blocking(move || to_trash(&root, &path)).await;
    match renamed {
        Ok(Ok(Some(trash))) => {
            tokio::task::spawn_blocking(move || empty_out(&trash));
            Ok(())
        }
        Ok(Ok(None)) => Ok(()),
        Ok(Err(error)) => Err(error),
        Err(died) => std::panic::resume_unwind(died.into_panic()),
    }
}

/// Deletes what an earlier daemon left in the trash, on a thread of its own.
pub fn recover(root: &Path) -> Result<(), SnapshotError> {
    let trash = root.join(TRASH);
    let entries = match fs::read_dir(&trash) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(at("list", &trash)(error)),
    };
    let old: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    if !old.is_empty() {
        let thread = std::thread::Builder::new().name("trash".to_owned());
        thread
            .spawn(move || old.iter().for_each(|path| empty_out(path)))
            .map_err(at("start the thread that deletes in", &trash))?;
    }
    Ok(())
}

/// Deletes what is in the trash, together with whoever else does. Blocking.
pub fn finish(root: &Path) {
    for entry in fs::read_dir(root.join(TRASH)).into_iter().flatten().flatten() {
        empty_out(&entry.path());
    }
}

/// Ids of the containers that have a writable layer: for recovery and the leak check.
pub fn list(root: &Path) -> Result<Vec<ContainerId>, SnapshotError> {
    let path = root.join(CONTAINERS);
    match fs::read_dir(&path) {
        Ok(entries) => Ok(entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok().map(ContainerId::new))
            .collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(at("list", &path)(error)),
    }
}

/// What a container has written. Walks its writable layer: blocking. Each file takes one of `budget`; [`None`] once there
/// is none left.
pub fn usage(root: &Path, container: &ContainerId, budget: &mut usize) -> Result<Option<Usage>, SnapshotError> {
    let mut usage = Usage::default();
    let mut linked = HashSet::new();
    let mut pending = vec![dir(root, container).join(UPPER), volumes(root, container)];
    while let Some(path) = pending.pop() {
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            // The container goes on while we look, and may nest deeper than a path can name: then what lies there is not
            // counted.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidFilename) => continue,
            Err(error) => return Err(at("list", &path)(error)),
        };
        for entry in entries.flatten() {
            let Some(left) = budget.checked_sub(1) else { return Ok(None) };
            *budget = left;
            let Ok(stat) = entry.metadata() else { continue };
            if stat.is_dir() {
                pending.push(entry.path());
            } else if stat.nlink() > 1 && !linked.insert(stat.ino()) {
                continue;
            }
            usage.bytes += stat.blocks() * 512;
            usage.inodes += 1;
        }
    }
    Ok(Some(usage))
}

fn dir(root: &Path, container: &ContainerId) -> PathBuf {
    root.join(CONTAINERS).join(container)
}

fn to_trash(root: &Path, path: &Path) -> Result<Option<PathBuf>, SnapshotError> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let trash = root.join(TRASH);
    fs::create_dir_all(&trash).map_err(at("create", &trash))?;
    loop {
        let target = trash.join(NEXT.fetch_add(1, Ordering::Relaxed).to_string());
        match rustix::fs::renameat_with(
            rustix::fs::CWD,
            path,
            rustix::fs::CWD,
            &target,
            rustix::fs::RenameFlags::NOREPLACE,
        ) {
            Ok(()) => return Ok(Some(target)),
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            // An earlier daemon's, still being deleted.
            Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(at("move to the trash", path)(error.into())),
        }
    }
}

fn empty_out(path: &Path) {
    if let Err(error) = vaina_sys::fs::remove_tree(path) {
        tracing::warn!(path = %path.display(), %error, "deleted writable layer stays on disk until the next start");
    }
}

fn remove_tree(path: &Path) -> Result<(), SnapshotError> {
    vaina_sys::fs::remove_tree(path).map_err(at("empty", path))
}

fn at(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SnapshotError {
    let path = path.to_owned();
    move |source| SnapshotError::Directory { step, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_name_layers_top_first() {
        let rootfs = |count: usize| Rootfs {
            lower: (0..count).map(|number| PathBuf::from(format!("/var/lib/vaina/images/l/{number:08}"))).collect(),
            upper: PathBuf::from("/u"),
            work: PathBuf::from("/w"),
        };
        let options = mount(&rootfs(2), Path::new("/empty")).unwrap().options;
        let lower = "lowerdir=/var/lib/vaina/images/l/00000001:/var/lib/vaina/images/l/00000000";
        assert_eq!(options, ["index=off", "volatile", lower, "upperdir=/u", "workdir=/w"]);
        assert_eq!(mount(&rootfs(0), Path::new("/empty")).unwrap().options[2], "lowerdir=/empty");
        mount(&rootfs(500), Path::new("/empty")).unwrap();
        assert!(matches!(mount(&rootfs(501), Path::new("/e")), Err(SnapshotError::TooManyLayers(501))));
        let odd = Rootfs { upper: PathBuf::from("/a:b"), ..rootfs(1) };
        assert!(matches!(mount(&odd, Path::new("/e")), Err(SnapshotError::Path(_))));
    }

    mod root {
        use std::{
            fs::File,
            time::{Duration, Instant},
        };

        use serde_json::json;

        use super::*;
        use crate::{
            image::{
                ImageConfig, ImageStore,
                testing::{Format, Member, TestImage, dir, file, gzip, layer},
            },
            state::Store,
        };

        /// Mounts in a namespace of its own, which ends with the thread.
        fn with_mounted(mount: &Mount, look: impl FnOnce(&Path) + Send) {
            let target = tempfile::tempdir().unwrap();
            let data = mount.options.join(",");
            std::thread::scope(|scope| {
                scope
                    .spawn(|| {
                        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
                        let none = None::<&str>;
                        let private = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
                        nix::mount::mount(none, "/", none, private, none).unwrap();
                        let (source, type_) = (Some(mount.source.as_str()), Some(mount.type_.as_str()));
                        let flags = nix::mount::MsFlags::empty();
                        nix::mount::mount(source, target.path(), type_, flags, Some(data.as_str())).unwrap();
                        look(target.path());
                        nix::mount::umount(target.path()).unwrap();
                    })
                    .join()
                    .unwrap();
            });
        }

        async fn image(root: &Path) -> std::sync::Arc<Image> {
            let state = Store::open(&root.join("state.db")).unwrap();
            let store = ImageStore::open(ImageConfig::new(root.join("images")), state).await.unwrap();
            let base = layer(&[
                Member { mode: 0o1777, ..dir("tmp") },
                dir("etc"),
                file("etc/passwd", "base"),
                file("etc/group", "base"),
                dir("opt"),
                file("opt/hidden", "base"),
            ]);
            let top = layer(&[
                Member { mode: 0o711, owner: (3, 4), ..dir("./") },
                file("etc/.wh.passwd", ""),
                dir("opt"),
                file("opt/.wh..wh..opq", ""),
                file("opt/shown", "top"),
                // No entry for its directory: that must not change.
                file("tmp/file", "top"),
            ]);
            let image = TestImage::new(Format::Oci, &[(base.clone(), gzip(&base)), (top.clone(), gzip(&top))]);
            let path = root.join("archive");
            fs::write(&path, image.oci_archive(&json!({}))).unwrap();
            store.import(&path, None).await.unwrap().remove(0)
        }

        #[tokio::test]
        async fn containers_see_the_image_and_write_their_own() {
            let root = tempfile::tempdir().unwrap();
            let image = image(root.path()).await;
            let [one, two] = ["1", "2"].map(|digit| ContainerId::new(digit.repeat(64)));
            let mount = prepare(root.path(), &one, &image, None).unwrap();
            with_mounted(&mount, |rootfs| {
                let stat = fs::metadata(rootfs).unwrap();
                assert_eq!((stat.mode() & 0o7777, stat.uid(), stat.gid()), (0o711, 3, 4));
                assert!(!rootfs.join("etc/passwd").exists());
                assert_eq!(fs::read_to_string(rootfs.join("etc/group")).unwrap(), "base");
                let names: Vec<_> =
                    fs::read_dir(rootfs.join("opt")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
                assert_eq!(names, ["shown"]);
                assert_eq!(fs::metadata(rootfs.join("tmp")).unwrap().mode() & 0o7777, 0o1777);
                fs::write(rootfs.join("etc/group"), vec![b'x'; 10_000]).unwrap();
                File::open(rootfs.join("etc/group")).unwrap().sync_all().unwrap();
            });
            let all = &mut usize::MAX.clone();
            let written = usage(root.path(), &one, all).unwrap().unwrap();
            assert!(written.bytes >= 10_000 && written.inodes == 2, "{written:?}");
            assert_eq!(usage(root.path(), &one, &mut 1).unwrap(), None);
            // A second create of the same container (after a crash) mounts what is there.
            let again = prepare(root.path(), &one, &image, None).unwrap();
            assert_eq!(again, mount);
            with_mounted(&again, |rootfs| assert_eq!(fs::metadata(rootfs.join("etc/group")).unwrap().len(), 10_000));
            let mount = prepare(root.path(), &two, &image, None).unwrap();
            with_mounted(&mount, |rootfs| assert_eq!(fs::read_to_string(rootfs.join("etc/group")).unwrap(), "base"));

            assert_eq!(list(root.path()).unwrap().len(), 2);
            for id in [&one, &two, &two] {
                remove(root.path(), id).await.unwrap();
            }
            assert!(list(root.path()).unwrap().is_empty());
            assert_eq!(usage(root.path(), &one, all).unwrap(), Some(Usage::default()));
            let deadline = Instant::now() + Duration::from_secs(10);
            while fs::read_dir(root.path().join(TRASH)).unwrap().count() > 0 {
                assert!(Instant::now() < deadline);
                tokio::task::yield_now().await;
            }
            fs::create_dir_all(root.path().join("trash/99/x")).unwrap();
            recover(root.path()).unwrap();
            while root.path().join("trash/99").exists() {
                assert!(Instant::now() < deadline);
                tokio::task::yield_now().await;
            }
        }
    }
}
