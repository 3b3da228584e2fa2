//! Starts the reaping init of a pod that shares one PID namespace.

use std::{
    fs::File,
    io::{self, Read as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Command, Stdio},
};

use nix::sched::{CloneFlags, setns, unshare};

use crate::reaper::{Child, Reaper};

/// The program, built beside this one.
const PROGRAM: &[u8] = include_bytes!(env!("VAINA_INIT"));

/// Starts the init as PID 1 of a new PID namespace; the shim itself stays in its own.
///
/// Its pid, as seen from here, is what `/proc/<pid>/ns/pid` of the pod's containers is joined by.
///
/// With `user` both belong to that user namespace, and the init is its root.
pub(crate) fn start(reaper: &Reaper, user: Option<&OwnedFd>) -> io::Result<Child> {
    let copy = crate::seal::sealed_copy(&mut &PROGRAM[..])?;
    let mut command = Command::new(format!("/proc/self/fd/{}", copy.as_raw_fd()));
    let arg0 = "vaina-init";
    std::os::unix::process::CommandExt::arg0(&mut command, arg0);
    command.env_clear().current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if let Some(user) = user {
        return start_in(reaper, command, user);
    }

    // Only children are affected, and only those started until the way back: this process has one thread.
    let own = File::open("/proc/self/ns/pid")?;
    unshare(CloneFlags::CLONE_NEWPID)?;
    let started = reaper.spawn(&mut command);
    setns(own, CloneFlags::CLONE_NEWPID)?;
    started
}

/// The process that is spawned makes the namespace and forks the init, which is our child as well.
fn start_in(reaper: &Reaper, mut command: Command, user: &OwnedFd) -> io::Result<Child> {
    let (mut pid, report) = UnixStream::pair()?;
    let user = user.try_clone()?;
    let become_first = move || vaina_sys::userns::become_first_process(&user, &report);
    vaina_sys::process::before_exec(&mut command, become_first)?;
    let keep = reaper.keep_unknown();
    reaper.spawn(&mut command)?;
    // Our copy of the other side, so that a missing answer is an end.
    drop(command);
    let mut answer = [0; 4];
    pid.read_exact(&mut answer)?;
    let init = reaper.claim(u32::from_ne_bytes(answer));
    drop(keep);
    Ok(init)
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_is_small() {
        assert!(super::PROGRAM.len() < 10 * 1024, "{} bytes", super::PROGRAM.len());
    }
}
