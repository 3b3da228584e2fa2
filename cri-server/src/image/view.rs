//! The layers of an image as overlayfs would show them, without mounting anything: for the few files that must be read
//! before there is a container. Blocking.
//!
//! Layers are complete and never change, and every step goes over names that were just looked at, so a path is as good as
//! a descriptor here. A symlink is followed by hand, over all layers and never out of them.

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    fs::{self, File, Metadata},
    io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Component, Path, PathBuf},
};

use rustix::fs::OFlags;

/// As many symlinks as the kernel follows.
const LINKS_MAX: usize = 40;
const OPAQUE: &str = "trusted.overlay.opaque";

/// What is at a path.
#[derive(Debug)]
pub enum Seen {
    /// Nothing, or a way that leads nowhere.
    Missing,
    /// A directory.
    Directory,
    /// Anything else but a symlink, and where it lies.
    Other(PathBuf, Metadata),
}

/// What is at a path, and where without links.
#[derive(Debug, PartialEq, Eq)]
pub enum Place {
    /// Nothing, or a way that leads nowhere.
    Missing,
    /// A directory, by the names that lead to it from the image's root.
    Directory(PathBuf),
    /// Anything else but a symlink.
    Other,
}

/// What is at `path` from the root of the image with these layers, lowest first.
pub fn look(layers: &[PathBuf], path: &Path) -> io::Result<Seen> {
    walk(layers, path).map(|(_, seen)| seen)
}

/// Where the directory at `path` is in the image, which never has a link on the way: images don't change.
pub fn find(layers: &[PathBuf], path: &Path) -> io::Result<Place> {
    Ok(match walk(layers, path)? {
        (directory, Seen::Directory) => Place::Directory(directory),
        (_, Seen::Missing) => Place::Missing,
        (_, Seen::Other(..)) => Place::Other,
    })
}

/// What is at `path`, and the last directory on the way to it.
fn walk(layers: &[PathBuf], path: &Path) -> io::Result<(PathBuf, Seen)> {
    let mut here = PathBuf::new();
    // Each directory on the way is the directories of that name in the layers that have a part in it, topmost first.
    let mut way: Vec<Vec<PathBuf>> = vec![visible_roots(layers)?];
    let mut left: VecDeque<OsString> = names(path);
    let mut links = 0;
    while let Some(name) = left.pop_front() {
        if name == ".." {
            // Above the root is the root.
            if way.len() > 1 {
                way.pop();
                here.pop();
            }
            continue;
        }
        match step(way.last().map_or(&[], Vec::as_slice), &name)? {
            Step::Missing => return Ok((here, Seen::Missing)),
            Step::Directory(parts) => {
                way.push(parts);
                here.push(name);
            }
            Step::Other(path, metadata) if metadata.is_symlink() => {
                links += 1;
                if links > LINKS_MAX {
                    return Ok((here, Seen::Missing));
                }
                let target = fs::read_link(path)?;
                if target.is_absolute() {
                    way.truncate(1);
                    here = PathBuf::new();
                }
                for name in names(&target).into_iter().rev() {
                    left.push_front(name);
                }
            }
            Step::Other(path, metadata) if left.is_empty() => return Ok((here, Seen::Other(path, metadata))),
            Step::Other(..) => return Ok((here, Seen::Missing)),
        }
    }
    Ok((here, Seen::Directory))
}

/// Opens a file that [`look`] found. Never blocks and never acts: the image says what lies there.
pub fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    File::options().read(true).custom_flags(flags).open(path)
}

enum Step {
    Missing,
    Directory(Vec<PathBuf>),
    Other(PathBuf, Metadata),
}

fn step(parts: &[PathBuf], name: &OsStr) -> io::Result<Step> {
    let mut directories = Vec::new();
    for part in parts {
        let path = part.join(name);
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            // A name that no file can have is one that is not there.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::InvalidInput | io::ErrorKind::InvalidFilename
                ) =>
            {
                continue;
            }
            Err(error) => return Err(error),
        };
        if !metadata.is_dir() {
            let is_whiteout = metadata.file_type().is_char_device() && metadata.rdev() == 0;
            // Under a directory it hides what is below, and is hidden itself.
            if is_whiteout || !directories.is_empty() {
                break;
            }
            return Ok(Step::Other(path, metadata));
        }
        let is_opaque = is_opaque(&path)?;
        directories.push(path);
        if is_opaque {
            break;
        }
    }
    Ok(if directories.is_empty() { Step::Missing } else { Step::Directory(directories) })
}

fn visible_roots(layers: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
    let mut roots = Vec::new();
    for layer in layers.iter().rev() {
        roots.push(layer.clone());
        if is_opaque(layer)? {
            break;
        }
    }
    Ok(roots)
}

fn is_opaque(directory: &Path) -> io::Result<bool> {
    let mut value = [0; 1];
    match rustix::fs::getxattr(directory, OPAQUE, &mut value[..]) {
        Ok(_) => Ok(value == *b"y"),
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::NOTSUP | rustix::io::Errno::RANGE) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The steps of a path.
fn names(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// The text of a file, or what else is there.
    fn seen(layers: &[PathBuf], path: &str) -> String {
        match look(layers, Path::new(path)).unwrap() {
            Seen::Missing => "missing".to_owned(),
            Seen::Directory => "directory".to_owned(),
            Seen::Other(path, metadata) if metadata.is_file() => io::read_to_string(open(&path).unwrap()).unwrap(),
            Seen::Other(..) => "other".to_owned(),
        }
    }

    fn layers(dir: &Path, count: usize) -> Vec<PathBuf> {
        let layers: Vec<PathBuf> = (0..count).map(|number| dir.join(number.to_string())).collect();
        layers.iter().for_each(|layer| fs::create_dir(layer).unwrap());
        layers
    }

    fn write(path: PathBuf, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn the_topmost_counts() {
        let dir = tempfile::tempdir().unwrap();
        let layers = layers(dir.path(), 3);
        assert_eq!(seen(&layers, "a"), "missing");
        assert_eq!(seen(&[], "/"), "directory");
        write(layers[0].join("d/a"), "low");
        write(layers[0].join("d/only-low"), "low");
        write(layers[2].join("d/a"), "high");
        write(layers[1].join("d/a/file-below-a-file"), "hidden");
        assert_eq!(seen(&layers, "/d/a"), "high");
        assert_eq!(seen(&layers, "d/../d/./a"), "high");
        assert_eq!(seen(&layers, "d/only-low"), "low");
        assert_eq!(seen(&layers, "../../d"), "directory");
        assert_eq!(seen(&layers, "d/a/file-below-a-file"), "missing");
        assert_eq!(seen(&layers[..2], "d/a"), "directory");
        assert_eq!(seen(&layers, "d/only-low/.."), "missing");
        assert_eq!(seen(&layers, "d/\0"), "missing");
        assert_eq!(seen(&layers, &"n".repeat(300)), "missing");
    }

    #[test]
    fn symlinks_lead_over_all_layers_and_never_out() {
        let dir = tempfile::tempdir().unwrap();
        let layers = layers(dir.path(), 2);
        write(dir.path().join("secret"), "secret");
        write(layers[0].join("usr/etc/passwd"), "of the image");
        for (link, target) in [
            ("etc", "usr/etc"),
            ("absolute", "/usr/etc/passwd"),
            ("out", "../../../usr/etc/passwd"),
            ("secret", "../secret"),
            ("self", "self"),
            ("deep", "etc/../etc/passwd"),
        ] {
            symlink(target, layers[1].join(link)).unwrap();
        }
        symlink(dir.path().join("secret"), layers[1].join("host")).unwrap();
        for (path, expected) in [
            ("etc/passwd", "of the image"),
            ("etc", "directory"),
            ("absolute", "of the image"),
            ("out", "of the image"),
            ("deep", "of the image"),
            ("secret", "missing"),
            ("host", "missing"),
            ("self", "missing"),
        ] {
            assert_eq!(seen(&layers, path), expected, "{path}");
        }
        fs::create_dir(layers[0].join("usr/etc/deep")).unwrap();
        for (path, place) in [
            ("", Place::Directory("".into())),
            ("etc", Place::Directory("usr/etc".into())),
            ("usr/../etc/./deep", Place::Directory("usr/etc/deep".into())),
            ("out/../..", Place::Missing),
            ("etc/../..", Place::Directory("".into())),
            ("etc/passwd", Place::Other),
            ("etc/none", Place::Missing),
            ("host", Place::Missing),
        ] {
            assert_eq!(find(&layers, Path::new(path)).unwrap(), place, "{path}");
        }
        nix::unistd::mkfifo(&layers[1].join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(seen(&layers, "fifo"), "other");
    }

    mod root {
        use super::*;

        #[test]
        fn whiteouts_and_opaque_directories_hide() {
            use nix::sys::stat::{Mode, SFlag, mknod};
            let dir = tempfile::tempdir().unwrap();
            let layers = layers(dir.path(), 3);
            write(layers[0].join("etc/passwd"), "low");
            write(layers[0].join("etc/group"), "low");
            write(layers[0].join("gone/file"), "low");
            write(layers[1].join("etc/shadow"), "middle");
            mknod(&layers[1].join("gone"), SFlag::S_IFCHR, Mode::empty(), 0).unwrap();
            mknod(&layers[1].join("etc/group"), SFlag::S_IFCHR, Mode::empty(), 0).unwrap();
            assert_eq!(seen(&layers, "etc/passwd"), "low");
            assert_eq!(seen(&layers, "etc/group"), "missing");
            assert_eq!(seen(&layers, "gone/file"), "missing");
            write(layers[2].join("gone/new"), "new");
            assert_eq!(seen(&layers, "gone/new"), "new");
            assert_eq!(seen(&layers, "gone/file"), "missing");
            rustix::fs::setxattr(layers[1].join("etc"), OPAQUE, b"y", rustix::fs::XattrFlags::empty()).unwrap();
            assert_eq!(seen(&layers, "etc/passwd"), "missing");
            assert_eq!(seen(&layers, "etc/shadow"), "middle");
            rustix::fs::setxattr(&layers[2], OPAQUE, b"y", rustix::fs::XattrFlags::empty()).unwrap();
            assert_eq!(seen(&layers, "etc/shadow"), "missing");
        }
    }
}
