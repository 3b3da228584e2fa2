//! Processes: descriptors for them, what survives a parent, and identity across pid reuse.

use std::{
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt as _,
    },
    process::Command,
};

use nix::sys::signal::Signal;
use rustix::process::{Pid, PidfdFlags};

fn to_pid(pid: u32) -> io::Result<Pid> {
    i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("pid {pid}")))
}

/// A descriptor of a process, which never means another one.
pub fn open(pid: u32) -> io::Result<OwnedFd> {
    Ok(rustix::process::pidfd_open(to_pid(pid)?, PidfdFlags::empty())?)
}

/// Sends a signal by number; `ESRCH` once the process has been waited for.
pub fn signal(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    let signal = rustix::process::Signal::from_named_raw(signal)
        .or_else(|| realtime(signal))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("signal {signal}")))?;
    Ok(rustix::process::pidfd_send_signal(pidfd, signal)?)
}

fn realtime(signal: i32) -> Option<rustix::process::Signal> {
    // The kernel's own range; the C library reserves the first few, the kernel does not.
    if !(32..=64).contains(&signal) {
        return None;
    }
    // SAFETY: `from_raw_unchecked` wants a number that is no signal reserved by the C library in use. Sending such a
    // signal to another process through a pidfd gives the C library of *this* process nothing to handle.
    Some(unsafe { rustix::process::Signal::from_raw_unchecked(signal) })
}

/// Sends a signal to a pid; a process that is gone is success.
pub fn kill(pid: u32, signal: Signal) -> io::Result<()> {
    let pid = i32::try_from(pid).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("pid {pid}")))?;
    match nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Makes this process the parent of its orphaned descendants.
pub fn set_subreaper() -> io::Result<()> {
    Ok(nix::sys::prctl::set_child_subreaper(true)?)
}

/// When the process was started, in clock ticks since boot; tells a process from a later one with its pid.
pub fn start_time(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the name in parentheses and may hold anything; count from its end.
    let after = stat.rsplit_once(')').map(|(_, after)| after).unwrap_or_default();
    after
        .split_whitespace()
        .nth(19)
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat: {stat:?}")))
}

/// The id of this boot.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// How many threads this process has.
pub fn threads() -> io::Result<usize> {
    Ok(fs::read_dir("/proc/self/task")?.count())
}

/// Has `command` run `setup` in the child between fork and exec, and fail with its error.
///
/// Only for a process with one thread: `setup` may allocate and take locks, which in a child of a process with more
/// threads could be held for ever. That is checked at each call.
pub fn before_exec(
    command: &mut Command,
    setup: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) -> io::Result<&mut Command> {
    if threads()? != 1 {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "work between fork and exec in a process with threads"));
    }
    // SAFETY: what `pre_exec` asks for is that the closure does nothing that is unsafe after a fork of a threaded
    // process; this process has one thread, so the child is a whole copy and any code may run in it.
    Ok(unsafe { command.pre_exec(setup) })
}

/// Hands an inherited descriptor over to its owner: for a listening socket that a parent left open by its number.
pub fn inherited(fd: i32) -> io::Result<OwnedFd> {
    // A duplicate is taken and the number itself closed, so that a number that is no descriptor is an error here.
    // SAFETY: the borrow lasts for this one call; if the number is not open, the call answers EBADF.
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    let owned = rustix::io::fcntl_dupfd_cloexec(borrowed, 3)?;
    nix::unistd::close(fd)?;
    Ok(owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_another() {
        let own = start_time(std::process::id()).unwrap();
        assert!(own > 0);
        assert_eq!(own, start_time(std::process::id()).unwrap());
        assert!(start_time(u32::MAX).is_err());
        assert_eq!(boot_id().unwrap().len(), 36);
    }

    #[test]
    fn signals_go_through_descriptors() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pidfd = open(child.id()).unwrap();
        assert!(signal(&pidfd, 99).is_err());
        signal(&pidfd, 35).unwrap();
        child.wait().unwrap();
        assert_eq!(signal(&pidfd, 9).unwrap_err().raw_os_error(), Some(nix::libc::ESRCH));
    }
}
