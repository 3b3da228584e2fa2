//! User namespaces: made, and entered to make other namespaces that they own.
//!
//! Only a process with one thread can make or join a user namespace, and whoever has joined one has lost the host. So each piece
//! of work gets a process of its own, a copy of this one, that ends with it. Such a copy has no exit signal: no SIGCHLD tells
//! of it and a wait for any child passes it by, so nobody who supervises processes sees it.

use std::{
    fmt, fs, io,
    io::{Read as _, Write as _},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use nix::{
    libc,
    sched::{CloneFlags, setns, unshare},
};

use crate::process;

/// A range of ids: inside a user namespace, and outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdMap {
    /// First id inside.
    pub inside: u32,
    /// First id outside.
    pub outside: u32,
    /// How many.
    pub length: u32,
}

impl IdMap {
    /// The id outside that an id inside is.
    pub fn outside(&self, id: u32) -> Option<u32> {
        let offset = id.checked_sub(self.inside).filter(|offset| *offset < self.length)?;
        self.outside.checked_add(offset)
    }
}

impl fmt::Display for IdMap {
    /// As mount options and `/proc/<pid>/uid_map` order it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.inside, self.outside, self.length)
    }
}

impl std::str::FromStr for IdMap {
    type Err = io::Error;

    fn from_str(text: &str) -> io::Result<Self> {
        let numbers: Option<Vec<u32>> = text.split(':').map(|number| number.parse().ok()).collect();
        match numbers.as_deref() {
            Some([inside, outside, length]) => Ok(Self { inside: *inside, outside: *outside, length: *length }),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{text:?} is no id mapping"))),
        }
    }
}

/// Makes a user namespace. It lives as long as the descriptor, a pin or a process in it.
pub fn create(uids: &[IdMap], gids: &[IdMap]) -> io::Result<OwnedFd> {
    let member = Member::start(None, CloneFlags::CLONE_NEWUSER).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EUSERS) => {
            io::Error::new(error.kind(), format!("{error} (user.max_user_namespaces is reached)"))
        }
        _ => error,
    })?;
    for (file, maps) in [("uid_map", uids), ("gid_map", gids)] {
        let lines: String = maps.iter().map(|map| format!("{} {} {}\n", map.inside, map.outside, map.length)).collect();
        fs::write(format!("/proc/{}/{file}", member.pid), lines)
            .map_err(|error| io::Error::new(error.kind(), format!("write {file}: {error}")))?;
    }
    member.namespace("user")
}

/// A process in a user namespace that waits to be ended.
#[derive(Debug)]
pub struct Member {
    pid: libc::pid_t,
    /// It ends with our side at the latest.
    _link: UnixStream,
}

impl Member {
    /// Starts a process that joins `user` and makes further namespaces there, which then belong to it.
    pub fn join(user: impl AsFd, make: CloneFlags) -> io::Result<Self> {
        Self::start(Some(user.as_fd()), make)
    }

    fn start(user: Option<BorrowedFd<'_>>, make: CloneFlags) -> io::Result<Self> {
        let (mut link, its) = UnixStream::pair()?;
        let pid = match copy(0)? {
            Copy::Child => member(user, make, its, link),
            Copy::Parent(pid) => pid,
        };
        drop(its);
        let mut answer = [0; 4];
        let answered = link.read_exact(&mut answer);
        let member = Self { pid, _link: link };
        answered?;
        match i32::from_ne_bytes(answer) {
            0 => Ok(member),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Where one of its namespaces is, as long as it lives.
    pub fn path(&self, namespace: &str) -> String {
        format!("/proc/{}/ns/{namespace}", self.pid)
    }

    /// One of its namespaces.
    pub fn namespace(&self, namespace: &str) -> io::Result<OwnedFd> {
        Ok(fs::File::open(self.path(namespace))?.into())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // SAFETY: plain system calls on a pid that is ours until the wait has taken it.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        wait(self.pid);
    }
}

/// Runs `work` as root of the user namespace `user` and inside the other namespaces, in a copy of this process.
///
/// Only for a process with one thread (checked): the copy runs any code. Of an error the number comes back, or its text.
pub fn run_in(user: impl AsFd, others: &[BorrowedFd<'_>], work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    if process::threads()? != 1 {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "work in a copy of a process with threads"));
    }
    let (mut link, mut its) = UnixStream::pair()?;
    let pid = match copy(0)? {
        Copy::Child => {
            let done = enter(user.as_fd(), others).and_then(|()| work());
            let said = match done {
                Ok(()) => Ok(()),
                Err(error) => match error.raw_os_error() {
                    Some(errno) => its.write_all(&errno.to_ne_bytes()),
                    None => its.write_all(&0_i32.to_ne_bytes()).and_then(|()| write!(its, "{error}")),
                },
            };
            // SAFETY: ends this copy at once. Nothing that the original registered for its own end must run here.
            unsafe { libc::_exit(i32::from(said.is_err())) }
        }
        Copy::Parent(pid) => pid,
    };
    drop(its);
    let mut said = Vec::new();
    let heard = link.read_to_end(&mut said);
    let code = wait(pid);
    heard?;
    match said.split_first_chunk() {
        None if code == Some(0) => Ok(()),
        None => Err(io::Error::other("the process that did it died")),
        Some((number, text)) => Err(match i32::from_ne_bytes(*number) {
            0 => io::Error::other(String::from_utf8_lossy(text).into_owned()),
            errno => io::Error::from_raw_os_error(errno),
        }),
    }
}

/// Between fork and exec: joins `user` as its root, and goes on as PID 1 of a new PID namespace that belongs to it.
///
/// The first process of a namespace is forked: who goes on is a child of the caller's parent, which reads its pid from the
/// other side of `report`; the caller itself ends. Only for a process with one thread.
pub fn become_first_process(user: impl AsFd, report: impl AsFd) -> io::Result<()> {
    if process::threads()? != 1 {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "fork in a process with threads"));
    }
    enter(user.as_fd(), &[])?;
    unshare(CloneFlags::CLONE_NEWPID)?;
    match copy(libc::CLONE_PARENT | libc::SIGCHLD)? {
        Copy::Child => Ok(()),
        Copy::Parent(pid) => {
            let told = nix::unistd::write(report, &pid.to_ne_bytes());
            // SAFETY: as above.
            unsafe { libc::_exit(i32::from(told.is_err())) }
        }
    }
}

fn enter(user: BorrowedFd<'_>, others: &[BorrowedFd<'_>]) -> io::Result<()> {
    setns(user, CloneFlags::CLONE_NEWUSER)?;
    for other in others {
        setns(other, CloneFlags::empty())?;
    }
    let (root, group) = (nix::unistd::Uid::from_raw(0), nix::unistd::Gid::from_raw(0));
    nix::unistd::setresgid(group, group, group)?;
    Ok(nix::unistd::setresuid(root, root, root)?)
}

enum Copy {
    Child,
    Parent(libc::pid_t),
}

/// `fork`, with an exit signal (or none) and flags of `clone`.
fn copy(flags: i32) -> io::Result<Copy> {
    let flags = libc::c_long::from(flags);
    // SAFETY: without a stack of its own and without CLONE_VM the child goes on with copies of everything, as after `fork`. All
    // callers either have one thread (checked by them), or run `member` only, which is made of system calls.
    let answer = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match libc::pid_t::try_from(answer) {
        Ok(0) => Ok(Copy::Child),
        Ok(pid) if pid > 0 => Ok(Copy::Parent(pid)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The life of a [`Member`]. It may be the copy of one thread among many, whose locks are held for ever: nothing in here is more
/// than a system call.
fn member(user: Option<BorrowedFd<'_>>, make: CloneFlags, mut link: UnixStream, parents: UnixStream) -> ! {
    // So that the end of the parent is the end of the link.
    drop(parents);
    let joined = user.map_or(Ok(()), |user| setns(user, CloneFlags::CLONE_NEWUSER));
    let errno = joined.and_then(|()| unshare(make)).err().map_or(0, |errno| errno as i32);
    // Who does not hear it is gone, and then so is the other side of the link.
    let _ = link.write_all(&errno.to_ne_bytes());
    let _ = link.read(&mut [0]);
    // SAFETY: ends this copy at once. Nothing that the original registered for its own end must run here.
    unsafe { libc::_exit(0) }
}

/// Its exit code; nothing if it was killed.
fn wait(pid: libc::pid_t) -> Option<i32> {
    let mut status = 0;
    loop {
        // SAFETY: the status is a live integer. `__WALL`, since the child has no exit signal.
        let answer = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) };
        if answer >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return (answer == pid && libc::WIFEXITED(status)).then(|| libc::WEXITSTATUS(status));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: IdMap = IdMap { inside: 0, outside: 70_000, length: 1000 };

    #[test]
    fn ids_are_mapped_within_their_range() {
        assert_eq!(MAP.outside(0), Some(70_000));
        assert_eq!(MAP.outside(999), Some(70_999));
        assert_eq!(MAP.outside(1000), None);
        let high = IdMap { inside: 5, outside: u32::MAX, length: 2 };
        assert_eq!((high.outside(4), high.outside(5), high.outside(6)), (None, Some(u32::MAX), None));
        assert_eq!("0:70000:1000".parse::<IdMap>().unwrap(), MAP);
        assert_eq!(MAP.to_string(), "0:70000:1000");
        for bad in ["", "1:2", "1:2:3:4", "a:1:2", "-1:0:1"] {
            assert!(bad.parse::<IdMap>().is_err(), "{bad}");
        }
    }

    mod root {
        use std::os::{fd::AsRawFd as _, unix::fs::MetadataExt as _};

        use super::*;

        fn inode(namespace: &OwnedFd) -> u64 {
            fs::metadata(format!("/proc/self/fd/{}", namespace.as_raw_fd())).unwrap().ino()
        }

        #[test]
        fn a_member_makes_what_belongs_to_its_namespace_and_leaves_nothing() {
            let user = create(&[MAP], &[MAP]).unwrap();
            let member = Member::join(&user, CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC).unwrap();
            assert_eq!(inode(&member.namespace("user").unwrap()), inode(&user));
            for kind in ["net", "ipc"] {
                let own = fs::metadata(format!("/proc/self/ns/{kind}")).unwrap().ino();
                assert_ne!(inode(&member.namespace(kind).unwrap()), own);
            }
            let map = fs::read_to_string(format!("/proc/{}/gid_map", member.pid)).unwrap();
            assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "70000", "1000"]);
            let path = member.path("net");
            drop(member);
            assert!(fs::metadata(path).is_err());
        }

        #[test]
        fn what_can_not_be_mapped_is_an_error() {
            let twice = [MAP, MAP];
            assert!(create(&twice, &[MAP]).unwrap_err().to_string().contains("uid_map"));
            let file = tempfile::tempfile().unwrap();
            assert_eq!(Member::join(file, CloneFlags::empty()).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        }
    }
}
