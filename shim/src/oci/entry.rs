//! How a further process gets into the user namespace of its container, which `libcontainer` leaves out.
//!
//! The library brings the process into the other namespaces as the node's root. Its last step is then ours: the terminal is handed
//! over, the user namespace is joined, and only there does the process take its user and give up capabilities. Until then it is
//! nothing that the container's processes could trace or look into: it has the node's credentials and is not dumpable.

use std::{
    fs::File,
    io::{self, IsTerminal as _},
    os::fd::{AsFd as _, OwnedFd},
    rc::Rc,
};

use libcontainer::{
    capabilities::drop_privileges,
    oci_spec::runtime::{Capability, LinuxCapabilities, Process, Spec, UserBuilder},
    syscall::syscall::SyscallType,
};
use nix::{
    sched::{CloneFlags, setns},
    unistd::{Gid, Uid, User, setgroups, setresgid, setresuid},
};

use super::{OciError, container::Container, spec, userns};

/// What the step on the node's side takes: handing over the terminal, joining.
const LENT: &[Capability] = &[Capability::Chown, Capability::SysAdmin];

/// The namespace, and who the process becomes there.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    namespace: Rc<OwnedFd>,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    capabilities: LinuxCapabilities,
    /// The user on the node, for the terminal.
    owner: Option<u32>,
    has_home: bool,
}

impl Entry {
    /// Takes the identity out of the process's description if the container has a user namespace: it can't be had before.
    pub(super) fn of(spec: &Spec, container: &Container, process: &mut Process) -> Result<Option<Self>, OciError> {
        if !userns::is_asked(spec) {
            return Ok(None);
        }
        let pid = container.live().ok_or_else(|| OciError::State("container not running".to_owned()))?;
        let namespace = File::open(format!("/proc/{pid}/ns/user"))
            .map_err(|source| OciError::Prepare { step: "open the container's user namespace", source })?;
        let user = process.user().clone();
        let entry = Self {
            namespace: Rc::new(namespace.into()),
            uid: user.uid(),
            gid: user.gid(),
            groups: user.additional_gids().clone().unwrap_or_default(),
            capabilities: process.capabilities().clone().unwrap_or_default(),
            owner: userns::ids(spec).and_then(|ids| ids.uids.iter().find_map(|map| map.outside(user.uid()))),
            has_home: process.env().iter().flatten().any(|entry| entry.starts_with("HOME=") && entry != "HOME="),
        };
        let mut root = UserBuilder::default().uid(0_u32).gid(0_u32);
        if let Some(umask) = user.umask() {
            root = root.umask(umask);
        }
        process.set_user(root.build().map_err(|error| OciError::library("describe the process", &error))?);
        spec::lend(process, LENT);
        Ok(Some(entry))
    }

    /// Goes in. Nothing of the node's rights is left afterwards.
    pub(super) fn enter(&self) -> Result<(), String> {
        let join = || -> io::Result<()> {
            if io::stdin().is_terminal()
                && let Some(owner) = self.owner
            {
                rustix::fs::fchown(io::stdin().as_fd(), Some(rustix::fs::Uid::from_raw(owner)), None)?;
            }
            setns(&*self.namespace, CloneFlags::CLONE_NEWUSER)?;
            setgroups(&self.groups.iter().map(|gid| Gid::from_raw(*gid)).collect::<Vec<_>>())?;
            let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
            setresgid(gid, gid, gid)?;
            Ok(setresuid(uid, uid, uid)?)
        };
        join().map_err(|error| format!("join the container's user namespace: {error}"))?;
        // Joining gives all capabilities of the namespace.
        drop_privileges(&self.capabilities, &*SyscallType::default().create_syscall())
            .map_err(|error| format!("drop capabilities: {error}"))
    }

    /// The home directory of the user, if the description names none: the library has looked for root's.
    pub(super) fn home(&self) -> Option<Option<String>> {
        if self.has_home {
            return None;
        }
        let found = User::from_uid(Uid::from_raw(self.uid)).ok().flatten();
        Some(found.and_then(|user| user.dir.into_os_string().into_string().ok()))
    }
}
