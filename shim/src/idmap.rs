//! Mounts that show files with the owners that a user namespace gives them: what is 0 on disk is root in there. No file is
//! changed.
//!
//! overlayfs itself can't be mounted so, but its lower layers can; so they are shown mapped at a place of their own while the
//! overlay is made, which then keeps them. The writable layer has the node's numbers.

use std::{
    fs, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use vaina_sys::{
    mount as sys,
    userns::{self, IdMap},
};

/// What a user namespace calls the node's ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ids {
    pub(crate) uids: Vec<IdMap>,
    pub(crate) gids: Vec<IdMap>,
}

/// Where mapped layers are while their overlay is made, below the bundle.
const LAYERS: &str = "layers";

impl Ids {
    /// Of the options `uidmap=<inside>:<outside>:<length>` and `gidmap=…`, which containerd's daemon writes as well.
    pub(crate) fn of_options(options: &[String]) -> io::Result<Option<Self>> {
        let maps = |key: &str| -> io::Result<Vec<IdMap>> {
            let values = options.iter().filter_map(|option| option.strip_prefix(key)?.strip_prefix('='));
            values.flat_map(|value| value.split(',')).map(str::parse).collect()
        };
        match (maps("uidmap")?, maps("gidmap")?) {
            (uids, gids) if uids.is_empty() && gids.is_empty() => Ok(None),
            (uids, gids) if !uids.is_empty() && !gids.is_empty() => Ok(Some(Self { uids, gids })),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "uidmap and gidmap go together")),
        }
    }

    /// Whether an option belongs to the mapping, and not to the file system.
    pub(crate) fn is_option(option: &str) -> bool {
        ["uidmap=", "gidmap="].iter().any(|key| option.starts_with(key))
    }
}

/// A user namespace for each mapping that was needed: the kernel takes mappings in no other form.
#[derive(Debug, Default)]
pub(crate) struct Users(Vec<(Ids, OwnedFd)>);

impl Users {
    /// One with this mapping.
    pub(crate) fn of(&mut self, ids: &Ids) -> io::Result<BorrowedFd<'_>> {
        let at = match self.0.iter().position(|(known, _)| known == ids) {
            Some(at) => at,
            None => {
                let user = userns::create(&ids.uids, &ids.gids)
                    .map_err(|error| io::Error::new(error.kind(), format!("make a user namespace: {error}")))?;
                self.0.push((ids.clone(), user));
                self.0.len() - 1
            }
        };
        Ok(self.0[at].1.as_fd())
    }
}

/// How a bind shows owners.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mapped<'a> {
    pub(crate) user: BorrowedFd<'a>,
    /// On the mounts below it too.
    pub(crate) recursive: bool,
}

/// Binds `source` on `target`, which is made as a directory or a file if it is not there. Its propagation stays the source's.
pub(crate) fn bind(source: &Path, target: &Path, recursive: bool, mapped: Option<Mapped<'_>>) -> io::Result<()> {
    let tree = sys::detached(source, recursive)?;
    if let Some(mapped) = mapped {
        sys::map_ids(&tree, mapped.user, mapped.recursive).map_err(|error| refused(source, error))?;
    }
    if fs::metadata(source)?.is_dir() {
        fs::create_dir_all(target)?;
    } else if !target.exists() {
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(target, "")?;
    }
    sys::attach(tree, target)
}

fn refused(path: &Path, error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(nix::libc::EINVAL) => io::Error::new(
            io::ErrorKind::Unsupported,
            format!("the file system of {} can't be id-mapped by this kernel", path.display()),
        ),
        _ => io::Error::new(error.kind(), format!("id-map {}: {error}", path.display())),
    }
}

/// Mapped views of an overlay's lower layers. They go with [`Layers::remove`], or with the mount namespace.
#[derive(Debug)]
pub(crate) struct Layers {
    place: PathBuf,
    parents: Vec<PathBuf>,
    /// Where the layers are, in their order.
    pub(crate) lower: Vec<PathBuf>,
}

impl Layers {
    /// Layers mostly lie beside each other, and then one mount shows them all.
    pub(crate) fn show(lower: &[PathBuf], bundle: &Path, user: BorrowedFd<'_>) -> io::Result<Self> {
        let mut layers = Self { place: bundle.join(LAYERS), parents: Vec::new(), lower: Vec::new() };
        for layer in lower {
            let layer = fs::canonicalize(layer)?;
            let (Some(parent), Some(name)) = (layer.parent(), layer.file_name()) else {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "/ is no layer"));
            };
            let number = match layers.parents.iter().position(|known| known == parent) {
                Some(number) => number,
                None => {
                    let number = layers.parents.len();
                    bind(parent, &layers.at(number), false, Some(Mapped { user, recursive: false }))?;
                    layers.parents.push(parent.to_owned());
                    number
                }
            };
            layers.lower.push(layers.at(number).join(name));
        }
        Ok(layers)
    }

    fn at(&self, number: usize) -> PathBuf {
        self.place.join(number.to_string())
    }

    /// Takes the views away; an overlay that was made of them keeps them.
    pub(crate) fn remove(self) -> io::Result<()> {
        for number in 0..self.parents.len() {
            sys::detach(&self.at(number))?;
            fs::remove_dir(self.at(number))?;
        }
        fs::remove_dir(&self.place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_read_from_options() {
        let ids = |options: &[&str]| {
            let options: Vec<_> = options.iter().map(|option| (*option).to_owned()).collect();
            Ids::of_options(&options).map_err(|error| error.to_string())
        };
        let map = IdMap { inside: 0, outside: 1000, length: 5 };
        let both = Ids { uids: vec![map], gids: vec![map, IdMap { inside: 5, outside: 9000, length: 1 }] };
        assert_eq!(ids(&["ro", "uidmap=0:1000:5", "gidmap=0:1000:5,5:9000:1"]), Ok(Some(both)));
        assert_eq!(ids(&["ro", "lowerdir=/uidmap"]), Ok(None));
        assert!(ids(&["uidmap=0:1000:5"]).unwrap_err().contains("together"));
        assert!(ids(&["uidmap=0:1000", "gidmap=0:1:1"]).unwrap_err().contains("0:1000"));
        assert!(Ids::is_option("gidmap=x") && !Ids::is_option("index=off"));
    }
}
