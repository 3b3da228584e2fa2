//! The user namespace of a container, and what must be its own before a process is in it: afterwards the node's root has no more
//! say there than anybody.

use std::{
    fs::File,
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use libcontainer::oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Process, Spec};
use rustix::fs::{FileType, Gid, Uid, fchown, fstat};
use vaina_sys::userns::{self, IdMap};

use crate::idmap::Ids;

/// Whether the container is in a user namespace that is not the node's.
pub(super) fn is_asked(spec: &Spec) -> bool {
    path(spec).is_some()
}

/// The path of the user namespace, which is empty if it is to be made.
fn path(spec: &Spec) -> Option<&Path> {
    let linux = spec.linux().as_ref()?;
    let user = linux.namespaces().iter().flatten().find(|one| one.typ() == LinuxNamespaceType::User)?;
    Some(user.path().as_deref().unwrap_or_else(|| Path::new("")))
}

/// The ids of the container, if it is in a user namespace whose mapping is known.
pub(super) fn ids(spec: &Spec) -> Option<Ids> {
    path(spec)?;
    let linux = spec.linux().as_ref()?;
    Some(Ids { uids: maps(linux.uid_mappings())?, gids: maps(linux.gid_mappings())? })
}

/// Mappings as the specification writes them; nothing for none.
pub(super) fn maps(mappings: &Option<Vec<LinuxIdMapping>>) -> Option<Vec<IdMap>> {
    let map = |one: &LinuxIdMapping| IdMap { inside: one.container_id(), outside: one.host_id(), length: one.size() };
    mappings.as_ref().filter(|all| !all.is_empty()).map(|all| all.iter().map(map).collect())
}

/// Makes the namespace if the configuration wants a new one, and says there where it is as long as the answer is open: with one
/// that it makes itself the library insists on systemd for control groups.
pub(super) fn make(spec: &mut Spec) -> io::Result<Option<OwnedFd>> {
    if path(spec).is_none_or(|path| !path.as_os_str().is_empty()) {
        return Ok(None);
    }
    let ids = ids(spec).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, "a new user namespace needs uidMappings and gidMappings")
    })?;
    let user = userns::create(&ids.uids, &ids.gids)?;
    let namespaces = spec.linux_mut().as_mut().and_then(|linux| linux.namespaces_mut().as_mut());
    for namespace in namespaces.into_iter().flatten().filter(|one| one.typ() == LinuxNamespaceType::User) {
        namespace.set_path(Some(format!("/proc/self/fd/{}", user.as_raw_fd()).into()));
    }
    Ok(Some(user))
}

/// The namespace itself.
pub(super) fn open(spec: &Spec) -> io::Result<Option<OwnedFd>> {
    path(spec).map(|path| Ok(File::open(path)?.into())).transpose()
}

/// Gives the pipes on the standard streams to the process's user, who could write to them and yet not open them as
/// `/dev/stdout`.
pub(super) fn give_streams(spec: &Spec, process: &Process) -> io::Result<()> {
    let (uid, gid) = (process.user().uid(), process.user().gid());
    let ids = ids(spec);
    if path(spec).is_none() && (uid, gid) == (0, 0) || path(spec).is_some() && ids.is_none() {
        return Ok(());
    }
    let outside = |maps: fn(&Ids) -> &Vec<IdMap>, id: u32| match &ids {
        None => Some(id),
        Some(ids) => maps(ids).iter().find_map(|map| map.outside(id)),
    };
    // An id that is not mapped is refused when the process takes it.
    let (Some(uid), Some(gid)) = (outside(|ids| &ids.uids, uid), outside(|ids| &ids.gids, gid)) else { return Ok(()) };
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let streams: [BorrowedFd<'_>; 3] = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    for stream in streams {
        if FileType::from_raw_mode(fstat(stream)?.st_mode) == FileType::Fifo {
            fchown(stream, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(linux: &str) -> Spec {
        serde_json::from_str(&format!(r#"{{"ociVersion":"1.0.2","linux":{linux}}}"#)).unwrap()
    }

    #[test]
    fn the_mapping_is_that_of_the_container() {
        let map = r#"[{"containerID":0,"hostID":1000,"size":10}]"#;
        let mapped = |namespaces: &str| {
            spec(&format!(r#"{{"namespaces":[{namespaces}],"uidMappings":{map},"gidMappings":{map}}}"#))
        };
        let map = IdMap { inside: 0, outside: 1000, length: 10 };
        let joined = mapped(r#"{"type":"user","path":"/x"}"#);
        assert_eq!(ids(&joined), Some(Ids { uids: vec![map], gids: vec![map] }));
        assert!(is_asked(&joined) && is_asked(&mapped(r#"{"type":"user"}"#)));
        assert_eq!(ids(&mapped(r#"{"type":"mount"}"#)), None);
        let unknown = spec(r#"{"namespaces":[{"type":"user","path":"/x"}]}"#);
        assert!(is_asked(&unknown) && ids(&unknown).is_none());
    }
}
