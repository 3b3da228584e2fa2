//! The only place that waits for children. All of them start here or are claimed here.
//!
//! A second waiter would take exit codes away, so nobody else calls `wait`. The shim has one thread: between the spawn of a
//! child and its entry in the table no exit can be collected, so none is lost. A container's init is no child of ours
//! when it starts: the OCI runtime forks it and ends, and it becomes ours as the nearest subreaper. Its exit may come
//! before anybody knows its pid, so exits of unknown pids are kept while a runtime is at work, and only then.

use std::{
    collections::HashMap,
    io,
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use nix::{
    errno::Errno,
    sys::wait::{Id, WaitPidFlag, WaitStatus, waitid},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

use crate::family;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// Exit code, or 128 + signal.
    pub(crate) code: u32,
    /// The signal that ended it, or 0.
    pub(crate) signal: u32,
    /// Unix nanoseconds.
    pub(crate) at: i64,
}

impl Exit {
    pub(crate) fn now(code: u32, signal: u32) -> Self {
        Self { code, signal, at: now() }
    }
}

/// Unix nanoseconds.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// A process whose exit will be told.
#[derive(Debug, Clone)]
pub(crate) struct Child {
    pub(crate) pid: u32,
    /// The process group that it was in when it was claimed, or when it ended before that.
    pub(crate) group: u32,
    exit: watch::Receiver<Option<Exit>>,
}

impl Child {
    /// Waits for its end; answers at once when it has ended.
    pub(crate) async fn wait(&self) -> Exit {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(value) => value.unwrap_or_else(|| Exit::now(255, 0)),
            // The table is dropped only with the shim itself.
            Err(_) => Exit::now(255, 0),
        }
    }

    /// Its exit, if it has ended.
    pub(crate) fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }
}

#[derive(Default)]
struct Table {
    waited: HashMap<u32, watch::Sender<Option<Exit>>>,
    /// Exits that came while a runtime was at work and nobody knew the pid, and the process groups of these.
    unclaimed: HashMap<u32, (Exit, u32)>,
    runtimes: usize,
}

/// Handle to the table of children.
#[derive(Clone, Default)]
pub(crate) struct Reaper(Arc<Mutex<Table>>);

/// While it lives, exits of unknown pids are kept.
pub(crate) struct KeepUnknown(Reaper);

impl Reaper {
    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a program.
    pub(crate) fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        // The handle is dropped on purpose: waiting happens in `collect`.
        let child = command.spawn()?;
        Ok(self.claim(child.id()))
    }

    /// Watches a process that is, or will be, a child of this one.
    pub(crate) fn claim(&self, pid: u32) -> Child {
        let mut table = self.table();
        let known = table.unclaimed.remove(&pid);
        let (sender, exit) = watch::channel(known.map(|(exit, _)| exit));
        let group = match known {
            Some((_, group)) => group,
            None => {
                table.waited.insert(pid, sender);
                family::group(pid).unwrap_or(pid)
            }
        };
        Child { pid, group, exit }
    }

    /// Has the exits of unknown pids kept until the answer is dropped.
    pub(crate) fn keep_unknown(&self) -> KeepUnknown {
        self.table().runtimes += 1;
        KeepUnknown(self.clone())
    }

    /// Collects every child that has ended.
    fn collect(&self) {
        loop {
            // First looked at and then taken: what a process was is gone with it.
            let ended = match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT) {
                Ok(status) => status,
                Err(Errno::EINTR) => continue,
                Err(_) => return,
            };
            let Some(pid) = ended.pid() else { return };
            let group = family::group(pid.as_raw().unsigned_abs());
            let status = match waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG) {
                Ok(status) => status,
                Err(Errno::EINTR) => continue,
                Err(_) => return,
            };
            let (pid, exit) = match status {
                WaitStatus::Exited(pid, code) => (pid, Exit::now(code.unsigned_abs(), 0)),
                WaitStatus::Signaled(pid, signal, _) => {
                    let signal = (signal as i32).unsigned_abs();
                    (pid, Exit::now(128 + signal, signal))
                }
                WaitStatus::StillAlive => return,
                _ => continue,
            };
            let pid = pid.as_raw().unsigned_abs();
            let mut table = self.table();
            if let Some(sender) = table.waited.remove(&pid) {
                sender.send_replace(Some(exit));
            } else if table.runtimes > 0 {
                table.unclaimed.insert(pid, (exit, group.unwrap_or(pid)));
            }
        }
    }

    /// Runs for the life of the shim. `signals` is made before the first child, so no SIGCHLD is missed.
    pub(crate) async fn run(self, mut signals: Signal) {
        loop {
            self.collect();
            if signals.recv().await.is_none() {
                return;
            }
        }
    }

    /// Starts listening for SIGCHLD.
    pub(crate) fn listen() -> io::Result<Signal> {
        signal(SignalKind::child())
    }
}

impl Drop for KeepUnknown {
    fn drop(&mut self) {
        let mut table = self.0.table();
        table.runtimes -= 1;
        if table.runtimes == 0 {
            table.unclaimed.clear();
        }
    }
}
