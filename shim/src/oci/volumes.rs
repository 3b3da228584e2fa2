//! Binds that the library can't make as they are meant. They are bound in the bundle first, and the library clones that.
//!
//! - `libcontainer` gives one propagation to the whole root file system and none to single binds, which then stay peers of
//!   their sources: beside a Bidirectional volume a private one would see what the host mounts later, and pass on what the
//!   container mounts. So a bind that is to propagate less than the root is bound here with its own propagation.
//! - It refuses mounts that are to show other owners (`uidMappings`, `idmap`).
//! - In a user namespace it can't look into directories that only the node's root can.
//!
//! It happens in the mount namespace of the create, on the private ground of the bundle, and ends with it.

use std::{
    fs, io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::PermissionsExt as _,
    },
    path::{Path, PathBuf},
};

use libcontainer::oci_spec::runtime::{Mount, Spec};
use vaina_sys::mount::{self as sys, Propagation};

use super::userns;
use crate::idmap::{self, Ids, Mapped, Users};

/// Directory of the bundle in which volumes are bound.
const DIRECTORY: &str = "volumes";

/// Binds what needs it and names the new places in the configuration.
pub(super) fn stage(spec: &mut Spec, bundle: &Path) -> io::Result<()> {
    let root = spec.linux().as_ref().and_then(|linux| linux.rootfs_propagation().clone());
    let root = root.as_deref().map_or(Some(Propagation::Private), word);
    let in_user_namespace = userns::is_asked(spec);
    let Some(mut mounts) = spec.mounts().clone() else { return Ok(()) };
    let mut ground = Ground { bundle, directory: None };
    let mut users = Users::default();
    let mut own = None;
    for (number, mount) in mounts.iter_mut().enumerate() {
        let Some(source) = source(mount) else { continue };
        let propagation = less_than(root, mount);
        let map = Map::of(mount)?;
        if propagation.is_none() && map.is_none() && !in_user_namespace {
            continue;
        }
        let target = ground.directory()?.join(number.to_string());
        let recursive = has(mount, &["rbind"]);
        let mapped = match &map {
            None => None,
            Some(Map { ids: Some(ids), recursive }) => Some(Mapped { user: users.of(ids)?, recursive: *recursive }),
            Some(Map { ids: None, recursive }) => {
                Some(Mapped { user: container_user(&mut own, spec)?.as_fd(), recursive: *recursive })
            }
        };
        idmap::bind(&source, &target, recursive, mapped)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", source.display())))?;
        if let Some(propagation) = propagation {
            sys::set_propagation(&target, propagation, recursive)?;
        }
        mount.set_source(Some(target));
        if map.is_some() {
            forget_map(mount);
        }
    }
    if ground.directory.is_some() {
        spec.set_mounts(Some(mounts));
    }
    Ok(())
}

/// Where volumes are bound, made when the first of them needs it.
struct Ground<'a> {
    bundle: &'a Path,
    directory: Option<PathBuf>,
}

impl Ground<'_> {
    fn directory(&mut self) -> io::Result<&Path> {
        if self.directory.is_none() {
            // Where the caller made no throw-away namespace, this one is ours to throw away.
            crate::mount::enter(self.bundle, &[])?;
            let path = self.bundle.join(DIRECTORY);
            fs::create_dir_all(&path)?;
            // The root of a user namespace is "others" here.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o711))?;
            self.directory = Some(path);
        }
        Ok(self.directory.as_deref().unwrap_or(self.bundle))
    }
}

/// How a bind is to show owners.
#[derive(Debug, PartialEq, Eq)]
struct Map {
    /// Nothing for those of the container.
    ids: Option<Ids>,
    recursive: bool,
}

impl Map {
    fn of(mount: &Mount) -> io::Result<Option<Self>> {
        let recursive = has(mount, &["ridmap"]);
        match (userns::maps(mount.uid_mappings()), userns::maps(mount.gid_mappings())) {
            (Some(uids), Some(gids)) => Ok(Some(Self { ids: Some(Ids { uids, gids }), recursive })),
            (None, None) if recursive || has(mount, &["idmap"]) => Ok(Some(Self { ids: None, recursive })),
            (None, None) => Ok(None),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{}: uidMappings and gidMappings go together", mount.destination().display()),
            )),
        }
    }
}

fn container_user<'a>(own: &'a mut Option<OwnedFd>, spec: &Spec) -> io::Result<&'a OwnedFd> {
    if own.is_none() {
        *own = userns::open(spec)?;
    }
    own.as_ref().ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, "idmap without mappings needs a user namespace of the container")
    })
}

/// The library knows it no more.
fn forget_map(mount: &mut Mount) {
    mount.set_uid_mappings(None);
    mount.set_gid_mappings(None);
    let left = mount.options().iter().flatten().filter(|option| !["idmap", "ridmap"].contains(&option.as_str()));
    let left = left.cloned().collect();
    mount.set_options(Some(left));
}

/// What is bound, if it is a bind.
fn source(mount: &Mount) -> Option<PathBuf> {
    let is_bind = has(mount, &["bind", "rbind"]) || mount.typ().as_deref() == Some("bind");
    mount.source().clone().filter(|_| is_bind)
}

/// The propagation of a bind, if it is less than the root's.
fn less_than(root: Option<Propagation>, mount: &Mount) -> Option<Propagation> {
    source(mount)?;
    let own = mount.options().iter().flatten().rev().find_map(|option| word(option))?;
    let is_less = match (root?, own) {
        (Propagation::Shared, Propagation::Slave | Propagation::Private) => true,
        (Propagation::Slave, Propagation::Private) => true,
        (Propagation::Shared | Propagation::Slave | Propagation::Private, _) => false,
    };
    is_less.then_some(own)
}

fn has(mount: &Mount, words: &[&str]) -> bool {
    mount.options().iter().flatten().any(|option| words.contains(&option.as_str()))
}

fn word(option: &str) -> Option<Propagation> {
    match option {
        "shared" | "rshared" => Some(Propagation::Shared),
        "slave" | "rslave" => Some(Propagation::Slave),
        "private" | "rprivate" => Some(Propagation::Private),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(options: &[&str]) -> Mount {
        let json = serde_json::json!({ "destination": "/v", "type": "bind", "source": "/s", "options": options });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn what_propagates_less_than_the_root_is_bound_first() {
        use Propagation::{Private, Shared, Slave};
        let own = |root, options: &[&str]| less_than(Some(root), &mount(options));
        assert_eq!(own(Shared, &["rbind", "rprivate", "rw"]), Some(Private));
        assert_eq!(own(Shared, &["rbind", "rslave", "rw"]), Some(Slave));
        assert_eq!(own(Shared, &["rbind", "rshared", "rw"]), None);
        assert_eq!(own(Slave, &["rbind", "rprivate", "rw"]), Some(Private));
        assert_eq!(own(Slave, &["rbind", "rslave", "rw"]), None);
        assert_eq!(own(Private, &["rbind", "rprivate", "rw"]), None);
        assert_eq!(own(Shared, &["rbind", "rw"]), None);
        let proc =
            serde_json::json!({ "destination": "/proc", "type": "proc", "source": "proc", "options": ["rprivate"] });
        assert!(less_than(Some(Shared), &serde_json::from_value(proc).unwrap()).is_none());
    }

    #[test]
    fn other_owners_are_asked_for_in_two_ways() {
        let map = serde_json::json!([{ "containerID": 0, "hostID": 9, "size": 1 }]);
        let mapped = |uids: &serde_json::Value, gids: &serde_json::Value, options: &[&str]| {
            let json = serde_json::json!({ "destination": "/v", "type": "bind", "source": "/s", "options": options,
                "uidMappings": uids, "gidMappings": gids });
            serde_json::from_value::<Mount>(json).unwrap()
        };
        let (own, none) = (vaina_sys::userns::IdMap { inside: 0, outside: 9, length: 1 }, serde_json::Value::Null);
        let ids = Some(Ids { uids: vec![own], gids: vec![own] });
        let of = |mount: &Mount| Map::of(mount).map_err(|error| error.to_string());
        assert_eq!(of(&mapped(&map, &map, &["rbind"])), Ok(Some(Map { ids: ids.clone(), recursive: false })));
        let mut both = mapped(&map, &map, &["rbind", "ridmap", "ro"]);
        assert_eq!(of(&both), Ok(Some(Map { ids, recursive: true })));
        assert_eq!(of(&mapped(&none, &none, &["idmap"])), Ok(Some(Map { ids: None, recursive: false })));
        assert_eq!(of(&mapped(&none, &none, &["rbind"])), Ok(None));
        assert!(of(&mapped(&map, &none, &["rbind"])).unwrap_err().contains("/v: uidMappings"));
        forget_map(&mut both);
        assert_eq!(of(&both), Ok(None));
        assert_eq!(both.options().as_deref(), Some(&["rbind".to_owned(), "ro".to_owned()][..]));
    }
}
