//! Starts the reaping init of a pod that shares one PID namespace.

use std::{
    fs::File,
    io,
    os::fd::AsRawFd as _,
    process::{Command, Stdio},
};

use nix::sched::{CloneFlags, setns, unshare};

use crate::reaper::{Child, Reaper};

/// The program, built beside this one.
const PROGRAM: &[u8] = include_bytes!(env!("VAINA_INIT"));

/// Starts the init as PID 1 of a new PID namespace; the shim itself stays in its own.
///
/// Its pid, as seen from here, is what `/proc/<pid>/ns/pid` of the pod's containers is joined by.
pub(crate) fn start(reaper: &Reaper) -> io::Result<Child> {
    let copy = crate::seal::sealed_copy(&mut &PROGRAM[..])?;

    // Only children are affected, and only those started until the way back: this process has one thread.
    let own = File::open("/proc/self/ns/pid")?;
    unshare(CloneFlags::CLONE_NEWPID)?;
    let mut command = Command::new(format!("/proc/self/fd/{}", copy.as_raw_fd()));
    let arg0 = "vaina-init";
    std::os::unix::process::CommandExt::arg0(&mut command, arg0);
    command.env_clear().current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let started = reaper.spawn(&mut command);
    setns(own, CloneFlags::CLONE_NEWPID)?;
    started
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_is_small() {
        assert!(super::PROGRAM.len() < 10 * 1024, "{} bytes", super::PROGRAM.len());
    }
}
