//! The ground that the benchmark's own daemons stand on: mount, network and PID namespaces, a directory and a cgroup of one
//! name.
//!
//! Three processes. The *supervisor* stays on the machine, waits and cleans up. PID 1 of the namespace prepares the mounts
//! and collects orphans. The benchmark itself is its child. However any of them ends, the kernel kills all the others and all
//! daemons, shims and containers, since they are in the PID namespace; what a killed supervisor leaves is a directory and
//! empty cgroups, which the next run knows by their name and by their lock, which nobody holds.

use std::{
    env,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        signal::{SigSet, Signal},
        wait::{WaitStatus, wait},
    },
    unistd::Pid,
};

use crate::{
    ground::{self, Ground},
    node::run,
    require,
};

/// How all grounds are named, in the directory for temporary files and in cgroups.
const PREFIX: &str = "vaina-bench-";

/// Tells the second and the third process where the ground is.
const GROUND: &str = "VAINA_BENCH_GROUND";
/// Tells them apart.
const STAGE: &str = "VAINA_BENCH_STAGE";

/// What the calling process is to do.
#[derive(Debug)]
pub enum Role {
    /// Measure, on this ground.
    Measure(PathBuf),
    /// All is done; end with this code.
    Done(u8),
}

/// Goes through the three processes.
pub fn enter() -> Result<Role> {
    match (env::var(STAGE).as_deref(), env::var_os(GROUND)) {
        (Ok("measure"), Some(ground)) => Ok(Role::Measure(ground.into())),
        (Ok("init"), Some(ground)) => init(Path::new(&ground)).map(Role::Done),
        _ => supervise().map(Role::Done),
    }
}

/// A ground without namespaces of its own, for endpoints that are there already: they must see its directory and registry.
#[derive(Debug)]
pub struct Plain(Ground);

impl Plain {
    /// Takes away what dead runs left, and makes a new one.
    pub fn new() -> Result<Self> {
        ground::clean(PREFIX);
        Ground::new(PREFIX).map(Self)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        ground::remove_cgroups(&self.0.name());
    }
}

fn supervise() -> Result<u8> {
    require::root()?;
    ground::clean(PREFIX);
    let directory = Ground::new(PREFIX)?;
    // Waited for below, and let through again by the child, which inherits the mask.
    let signals: SigSet = [Signal::SIGCHLD, Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
    signals.thread_block().context("block signals")?;
    unshare(CloneFlags::CLONE_NEWPID).context("unshare the PID namespace")?;
    let mut child = this("init", directory.path())?;
    let code = loop {
        if let Some(status) = child.try_wait()? {
            break code(status);
        }
        if signals.wait()? != Signal::SIGCHLD {
            child.kill()?;
            break code(child.wait()?);
        }
    };
    ground::remove_cgroups(&directory.name());
    // Not by `TempDir`, which stops at what it does not expect in root file systems.
    vaina_sys::fs::remove_tree(directory.path()).with_context(|| format!("remove {}", directory.path().display()))?;
    Ok(code)
}

fn init(ground: &Path) -> Result<u8> {
    prctl::set_pdeathsig(Signal::SIGKILL).context("end with the supervisor")?;
    SigSet::all().thread_unblock().context("let signals through")?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)
        .context("unshare namespaces")?;
    let none: Option<&str> = None;
    // Nothing may reach the machine, and all below is shared, as systemd makes it.
    for flags in [MsFlags::MS_PRIVATE, MsFlags::MS_SHARED] {
        mount(none, "/", none, MsFlags::MS_REC | flags, none).context("set the propagation of /")?;
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, none).context("mount /proc")?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=755")).context("mount /run")?;
    run(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    let measure = this("measure", ground)?;
    let measure = Pid::from_raw(i32::try_from(measure.id())?);
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, code)) if pid == measure => return Ok(u8::try_from(code).unwrap_or(1)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == measure => bail!("the benchmark was ended by {signal}"),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("wait for the benchmark"),
        }
    }
}

fn this(stage: &str, ground: &Path) -> Result<Child> {
    let program = env::current_exe().context("find this program")?;
    let mut command = Command::new(program);
    command.args(env::args_os().skip(1)).env(STAGE, stage).env(GROUND, ground);
    command.spawn().with_context(|| format!("start the process that is to {stage}"))
}

fn code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    mod root {
        use super::super::*;

        #[test]
        fn a_ground_takes_its_directory_and_its_cgroups_away() {
            let ground = Plain::new().unwrap();
            let path = Path::new("/").join(ground.0.name()).join("endpoint").join("pod");
            let group = vaina_sys::cgroup::Hierarchies::detect().unwrap().group(&path);
            group.create().unwrap();
            let mut things: Vec<PathBuf> = group.directories().map(Path::to_owned).collect();
            things.push(ground.path().to_owned());
            assert!(things.iter().all(|path| path.exists()), "{things:?}");
            drop(ground);
            assert!(things.iter().all(|path| !path.exists()), "{things:?}");
        }
    }
}
