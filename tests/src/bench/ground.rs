//! The ground that the benchmark's own daemons stand on: mount, network and PID namespaces, a directory and a cgroup of one
//! name.
//!
//! Three processes. The *supervisor* stays on the machine, waits and cleans up. PID 1 of the namespace prepares the mounts
//! and collects orphans. The benchmark itself is its child. However any of them ends, the kernel kills all the others and all
//! daemons, shims and containers, since they are in the PID namespace; what a killed supervisor leaves is a directory and
//! empty cgroups, which the next run knows by their name and by their lock, which nobody holds.

use std::{
    env,
    fs::{self, File},
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
use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

use super::endpoint::remove_cgroups;
use crate::{node::run, require};

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
pub struct Plain(TempDir);

impl Plain {
    /// Takes away what dead runs left, and makes a new one.
    pub fn new() -> Result<Self> {
        clean();
        directory().map(Self)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        remove_cgroups(&name(self.path()));
    }
}

/// A directory that says by a lock that it is in use. The lock goes with the process, and with nothing else.
fn directory() -> Result<TempDir> {
    let directory = tempfile::Builder::new().prefix(PREFIX).tempdir().context("make a directory")?;
    // Under its name only when it is locked: until then nobody takes the directory for one of a dead run.
    let (new, path) = (directory.path().join("new"), directory.path().join("lock"));
    let lock = File::create(&new).context("make the lock")?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive).context("lock the directory")?;
    fs::rename(new, path).context("name the lock")?;
    // Held until the process ends; not inherited by what it starts.
    std::mem::forget(lock);
    Ok(directory)
}

/// Takes away what dead runs left.
fn clean() {
    for entry in fs::read_dir(env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_free = |lock: File| flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
        if name.starts_with(PREFIX) && File::open(entry.path().join("lock")).is_ok_and(is_free) {
            let _ = vaina_sys::fs::remove_tree(&entry.path());
            remove_cgroups(&name);
        }
    }
}

fn supervise() -> Result<u8> {
    require::root()?;
    clean();
    let directory = directory()?;
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
    remove_cgroups(&name(directory.path()));
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

/// A ground's name, which is also that of its cgroups.
pub fn name(ground: &Path) -> String {
    ground.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    mod root {
        use super::super::*;

        /// Makes cgroups as an endpoint does, in all hierarchies.
        fn make_cgroups(ground: &Path) -> Vec<PathBuf> {
            let group = vaina_sys::cgroup::Hierarchies::detect()
                .unwrap()
                .group(&Path::new("/").join(name(ground)).join("endpoint").join("pod"));
            group.create().unwrap();
            group.directories().map(Path::to_owned).collect()
        }

        #[test]
        fn a_ground_takes_its_directory_and_its_cgroups_away() {
            let ground = Plain::new().unwrap();
            let mut things = make_cgroups(ground.path());
            things.push(ground.path().to_owned());
            assert!(things.iter().all(|path| path.exists()), "{things:?}");
            // It is in use, and no other run may touch it.
            clean();
            assert!(things.iter().all(|path| path.exists()), "{things:?}");
            drop(ground);
            assert!(things.iter().all(|path| !path.exists()), "{things:?}");
        }

        #[test]
        fn what_a_dead_run_left_goes() {
            let ground = env::temp_dir().join(format!("{PREFIX}dead-{}", std::process::id()));
            fs::create_dir_all(ground.join("logs")).unwrap();
            File::create(ground.join("lock")).unwrap();
            let cgroups = make_cgroups(&ground);
            clean();
            assert!(!ground.exists());
            assert!(cgroups.iter().all(|path| !path.exists()), "{cgroups:?}");
        }
    }
}
