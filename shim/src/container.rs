//! One container of the pod, from its creation to its removal.
//!
//! Invariants: an exit is published after what it left in its cgroup is killed, its execs have ended, its streams are drained
//! (bounded) and the OOM counter is read. Changes of one container come one after the other; looking never waits for them.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use nix::sys::signal::Signal;
use tokio::{
    task::AbortHandle,
    time::{Instant, sleep, timeout},
};
use vaina_proto::shim::ExitReport;
use vaina_sys::{
    cgroup::{Group, Hierarchies},
    failpoint,
};

use crate::{
    error::{Result, ShimError, Step as _},
    family,
    io::stdio::{self, ConsoleSocket, Input, Owner, Pumps, Triple},
    mount::BundleMount,
    process::{Phase, Process, Stdio},
    reaper::{Child, Exit, Reaper, now},
    runtime::{self, Runtime},
    spans,
};

/// How long a process may take to stop: it may be in the middle of a system call.
const STOP_LIMIT: Duration = Duration::from_millis(500);

/// How long what is killed may take to be gone before the exit is told without it.
const SWEEP_LIMIT: Duration = Duration::from_secs(5);

/// How often it is looked whether an exec has forked while it was being signalled.
const FORK_ROUNDS: usize = 8;

/// What a container is made from.
pub(crate) struct Create {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) mounts: Vec<BundleMount>,
    pub(crate) stdio: Stdio,
    /// What becomes of its streams.
    pub(crate) streams: Streams,
    /// Who owns the streams of its processes.
    pub(crate) owner: Owner,
    pub(crate) runtime: Runtime,
}

/// Who has the other side of a container's streams.
pub(crate) enum Streams {
    /// Those whom `stdio` names.
    Passed,
    /// The shim, for a CRI log and for clients that attach.
    Kept { log: Option<PathBuf>, input: Input },
}

/// One container.
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) created_at: i64,
    pub(crate) init: Arc<Process>,
    execs: Mutex<BTreeMap<String, Arc<Exec>>>,
    owner: Owner,
    runtime: Runtime,
    reaper: Reaper,
    group: Option<Group>,
    /// One change at a time.
    change: tokio::sync::Mutex<()>,
    clock: Mutex<Option<Clock>>,
    paused: Mutex<bool>,
}

/// A further process.
pub(crate) struct Exec {
    pub(crate) process: Arc<Process>,
    /// OCI process, JSON.
    spec: Vec<u8>,
    /// The process group that it was started in; 0 before.
    group: AtomicU32,
}

/// A running stop clock.
struct Clock {
    deadline: Instant,
    /// Unix nanoseconds, for readers.
    at: i64,
    task: AbortHandle,
}

impl Container {
    /// Makes the container; its program waits for [`Container::start`].
    pub(crate) async fn create(
        create: Create,
        reaper: &Reaper,
        exited: impl FnOnce(&Self, &ExitReport) + Send + 'static,
    ) -> Result<Arc<Self>> {
        let opening = spans::start("streams", &create.id);
        let console = console_for(create.stdio.terminal, &create.bundle, "console.sock")?;
        let (streams, pumps) = match (&console, &create.streams) {
            (Some(_), _) => (nothing(), Pumps::default()),
            (None, Streams::Kept { log, input }) => stdio::kept(log.as_deref(), *input, create.owner)
                .step(|| format!("open the streams with log {log:?}"))?,
            (None, Streams::Passed) => (passed(&create.stdio, create.owner)?, Pumps::default()),
        };
        let init = Arc::new(Process::new(create.stdio.clone()));
        init.set_pumps(pumps);
        drop(opening);

        // Its exit may come before its pid is read.
        let keep = reaper.keep_unknown();
        let made = create
            .runtime
            .create(
                reaper,
                runtime::Create {
                    id: &create.id,
                    bundle: &create.bundle,
                    mounts: &create.mounts,
                    stdio: streams,
                    console_socket: console.as_ref().map(|console| console.path.as_path()),
                },
            )
            .await;
        let pid = match made {
            Ok(pid) => pid,
            Err(error) => {
                // Runtimes clean up after themselves; one that was killed did not.
                let _ = create.runtime.delete(reaper, &create.id, &create.bundle).await;
                return Err(error.into());
            }
        };
        let child = reaper.claim(pid);
        drop(keep);
        init.created(pid);
        let container = Arc::new(Self {
            group: {
                let _span = spans::start("find control group", &create.id);
                group_of(&create.bundle, pid)
            },
            id: create.id,
            bundle: create.bundle,
            created_at: now(),
            init,
            execs: Mutex::default(),
            owner: create.owner,
            runtime: create.runtime,
            reaper: reaper.clone(),
            change: tokio::sync::Mutex::default(),
            clock: Mutex::default(),
            paused: Mutex::default(),
        });
        if let Some(console) = console {
            let connected = container.connect_terminal(&container.init, &console, &create.streams).await;
            if let Err(error) = connected {
                let _ = container.runtime.delete(reaper, &container.id, &container.bundle).await;
                return Err(error);
            }
        }
        let watched = Arc::clone(&container);
        tokio::spawn(async move {
            let exit = child.wait().await;
            let report = watched.settle(exit).await;
            exited(&watched, &report);
            watched.init.exited(report);
        });
        Ok(container)
    }

    async fn connect_terminal(&self, process: &Process, console: &ConsoleSocket, streams: &Streams) -> Result<()> {
        let master = console.receive().await.step(|| "receive the terminal".to_owned())?;
        let mut pumps = Pumps::default();
        let names = &process.stdio;
        let (log, input) = match streams {
            Streams::Passed => (None, Input::None),
            Streams::Kept { log, input } => (log.as_deref(), *input),
        };
        stdio::terminal(master, log, input, &names.stdin, &names.stdout, &mut pumps)
            .step(|| "connect the terminal".to_owned())?;
        process.set_pumps(pumps);
        Ok(())
    }

    /// What comes between the end of the init and its being told.
    async fn settle(&self, exit: Exit) -> ExitReport {
        let _exit = spans::start("exit", &self.id);
        failpoint!("shim.exit");
        self.stop_clock();
        self.sweep().await;
        let execs: Vec<_> = self.execs().values().cloned().collect();
        for exec in execs.iter().filter(|exec| exec.process.phase().live_pid().is_some()) {
            let _ = timeout(stdio::DRAIN_LIMIT, exec.process.wait()).await;
        }
        let draining = spans::start("drain", &self.id);
        self.init.readers().drain().await;
        drop(draining);
        // The group is the container's own and was made with it, so every kill it counts was in here.
        let oom_killed = exit.signal == Signal::SIGKILL as u32
            && self.group.as_ref().and_then(Group::oom_kills).is_some_and(|kills| kills > 0);
        failpoint!("shim.exit.settled");
        ExitReport { oom_killed, ..report(exit) }
    }

    /// Kills what is left in the cgroup: with a PID namespace of its own nothing is, in the pod's or the node's it may be.
    async fn sweep(&self) {
        let Some(group) = &self.group else { return };
        let _span = spans::start("sweep", &self.id);
        let deadline = Instant::now() + SWEEP_LIMIT;
        let mut pause = Duration::from_micros(500);
        loop {
            match group.pids() {
                Ok(pids) if pids.is_empty() => return,
                Ok(_) if Instant::now() < deadline => {}
                Ok(pids) => {
                    crate::log::warning!("container {}: processes {pids:?} do not end after SIGKILL", self.id);
                    return;
                }
                Err(error) => {
                    crate::log::warning!("container {}: list processes: {error}", self.id);
                    return;
                }
            }
            let _ = group.signal_all(Signal::SIGKILL);
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    fn execs(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Exec>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The init, or an exec by its id.
    pub(crate) fn process(&self, exec_id: &str) -> Result<Arc<Process>> {
        if exec_id.is_empty() {
            return Ok(Arc::clone(&self.init));
        }
        Ok(Arc::clone(&self.exec(exec_id)?.process))
    }

    fn exec(&self, exec_id: &str) -> Result<Arc<Exec>> {
        let missing = || ShimError::NotFound { what: "exec", id: exec_id.to_owned() };
        self.execs().get(exec_id).cloned().ok_or_else(missing)
    }

    /// Starts the container's program.
    pub(crate) async fn start(&self) -> Result<u32> {
        let _change = self.change.lock().await;
        match self.init.phase() {
            Phase::Created { pid } => {
                self.runtime.start(&self.reaper, &self.id, &self.bundle).await?;
                self.init.started(pid, now());
                Ok(pid)
            }
            Phase::Running { .. } => Err(ShimError::Precondition(format!("container {:?} runs already", self.id))),
            Phase::Prepared | Phase::Exited { .. } => {
                Err(ShimError::Precondition(format!("container {:?} has ended", self.id)))
            }
        }
    }

    /// Describes a further process; it is made by [`Container::start_exec`].
    pub(crate) fn prepare_exec(&self, exec_id: &str, stdio: Stdio, spec: Vec<u8>) -> Result<()> {
        // It names files.
        if exec_id.is_empty() || exec_id.starts_with('.') || exec_id.contains('/') {
            return Err(ShimError::Invalid(format!("exec id {exec_id:?} is not valid")));
        }
        let mut execs = self.execs();
        if execs.contains_key(exec_id) {
            return Err(ShimError::AlreadyExists { what: "exec", id: exec_id.to_owned() });
        }
        let exec = Exec { process: Arc::new(Process::new(stdio)), spec, group: AtomicU32::new(0) };
        execs.insert(exec_id.to_owned(), Arc::new(exec));
        Ok(())
    }

    /// Starts a prepared exec.
    pub(crate) async fn start_exec(
        self: &Arc<Self>,
        exec_id: &str,
        exited: impl FnOnce(u32, &ExitReport) + Send + 'static,
    ) -> Result<u32> {
        let exec = self.exec(exec_id)?;
        if !matches!(exec.process.phase(), Phase::Prepared) {
            return Err(ShimError::Precondition(format!("exec {exec_id:?} was started already")));
        }
        let started = self.run_exec(exec_id, &exec).await;
        match started {
            Ok(child) => {
                let pid = child.pid;
                exec.process.started(pid, now());
                let this = Arc::clone(self);
                tokio::spawn(async move {
                    let exit = child.wait().await;
                    this.sweep_exec(&exec, pid).await;
                    exec.process.readers().drain().await;
                    let report = report(exit);
                    exited(pid, &report);
                    exec.process.exited(report);
                });
                Ok(pid)
            }
            Err(error) => {
                // Who waits for it must not wait for ever.
                exec.process.exited(ExitReport { exit_code: 127, exited_at: now(), ..ExitReport::default() });
                Err(error)
            }
        }
    }

    async fn run_exec(&self, exec_id: &str, exec: &Exec) -> Result<Child> {
        let file = |suffix: &str| self.bundle.join(format!("exec-{exec_id}.{suffix}"));
        let (process, pid_file, log) = (file("json"), file("pid"), file("log"));
        std::fs::write(&process, &exec.spec).step(|| format!("write {}", process.display()))?;
        let names = &exec.process.stdio;
        // Short: a socket's path has a limit, and an exec's id has none.
        let console = console_for(names.terminal, &self.bundle, &format!("e{:x}.sock", now() & 0xffff_ffff))?;
        let streams = if console.is_some() { nothing() } else { passed(names, self.owner)? };
        let keep = self.reaper.keep_unknown();
        let made = self
            .runtime
            .exec(
                &self.reaper,
                runtime::Exec {
                    id: &self.id,
                    process: &process,
                    pid_file: &pid_file,
                    log: &log,
                    stdio: streams,
                    console_socket: console.as_ref().map(|console| console.path.as_path()),
                },
            )
            .await;
        let _ = std::fs::remove_file(&process);
        let _ = std::fs::remove_file(&pid_file);
        let child = self.reaper.claim(made?);
        drop(keep);
        exec.group.store(child.group, Ordering::Relaxed);
        if let Some(console) = console {
            self.connect_terminal(&exec.process, &console, &Streams::Passed).await?;
        }
        Ok(child)
    }

    /// Connects a client to its streams; answers whether what it writes reaches the container.
    pub(crate) fn attach(&self, stdin: &str, stdout: &str, stderr: &str) -> Result<bool> {
        if !matches!(self.init.phase(), Phase::Running { .. }) {
            return Err(ShimError::Precondition(format!("container {:?} does not run", self.id)));
        }
        self.init.attach(stdin, stdout, stderr).step(|| "open the client's streams".to_owned())
    }

    /// Signals a process, or with `all` everything that belongs to it.
    pub(crate) async fn kill(&self, exec_id: &str, signal: i32, all: bool) -> Result<()> {
        let process = self.process(exec_id)?;
        let failed = |source| ShimError::Io { step: format!("send signal {signal}"), source };
        let finished =
            || ShimError::NotFound { what: "process", id: format!("{} {exec_id} (already finished)", self.id) };
        let pid = match process.phase() {
            Phase::Prepared => return Err(ShimError::Precondition(format!("exec {exec_id:?} was not started"))),
            phase => phase.live_pid(),
        };
        if all && exec_id.is_empty() {
            let Some(group) = &self.group else { return Err(ShimError::Unimplemented("signalling a host's cgroup")) };
            for pid in group.pids().map_err(failed)? {
                send(pid, signal).map_err(failed)?;
            }
            return Ok(());
        }
        let pid = pid.ok_or_else(finished)?;
        if all {
            if signal == Signal::SIGKILL as i32 {
                // Or a shell would see its children die and exit by itself, before it is killed too; and one that is in the
                // middle of a fork would have a child after the last look.
                send(pid, Signal::SIGSTOP as i32).map_err(failed)?;
                stopped(pid).await;
            }
            // Before their leader: the children of one that is gone are nobody's.
            self.signal_family(&*self.exec(exec_id)?, pid, signal).map_err(failed)?;
        }
        send(pid, signal).map_err(failed)
    }

    /// Signals all processes of an exec but its leader; answers whether there were any.
    fn signal_family(&self, exec: &Exec, leader: u32, signal: i32) -> std::io::Result<bool> {
        let Some(group) = &self.group else { return Ok(false) };
        let mut signalled = BTreeSet::new();
        // Some may have forked meanwhile. A few rounds, since what a signal makes them start is no end in itself.
        for _ in 0..FORK_ROUNDS {
            let members = family::members(&group.pids()?, leader, exec.group.load(Ordering::Relaxed));
            let new: Vec<_> = members.difference(&signalled).copied().collect();
            if new.is_empty() {
                break;
            }
            for pid in &new {
                send(*pid, signal)?;
            }
            signalled.extend(new);
        }
        Ok(!signalled.is_empty())
    }

    /// Kills what an exec has left and waits until it is gone.
    async fn sweep_exec(&self, exec: &Exec, leader: u32) {
        let deadline = Instant::now() + SWEEP_LIMIT;
        let mut pause = Duration::from_micros(500);
        while let Ok(true) = self.signal_family(exec, leader, Signal::SIGKILL as i32)
            && Instant::now() < deadline
        {
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Sends a signal (0 for none) and arms the clock at whose end everything is killed. A further call can only shorten it,
    /// unless it begins `anew`.
    pub(crate) fn stop(self: &Arc<Self>, signal: i32, grace: Duration, anew: bool) -> Result<()> {
        let Some(pid) = self.init.phase().live_pid() else { return Ok(()) };
        if grace.is_zero() {
            self.stop_clock();
            self.kill_everything(pid);
            return Ok(());
        }
        if signal != 0 {
            send(pid, signal).step(|| format!("send signal {signal} to container {}", self.id))?;
        }
        failpoint!(blocking "shim.stop.signalled", |source| ShimError::Io { step: "arm the stop clock".to_owned(), source });
        let deadline = Instant::now() + grace;
        let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        if !anew && clock.as_ref().is_some_and(|clock| clock.deadline <= deadline) {
            return Ok(());
        }
        let this = Arc::clone(self);
        let task = tokio::spawn(async move {
            tokio::time::sleep_until(deadline).await;
            if let Some(pid) = this.init.phase().live_pid() {
                this.kill_everything(pid);
            }
        });
        let at = now().saturating_add(i64::try_from(grace.as_nanos()).unwrap_or(i64::MAX));
        if let Some(old) = clock.replace(Clock { deadline, at, task: task.abort_handle() }) {
            old.task.abort();
        }
        failpoint!(blocking "shim.stop.armed", |source| ShimError::Io { step: "answer the stop".to_owned(), source });
        Ok(())
    }

    /// The rest is swept when the init's end is seen.
    fn kill_everything(&self, init: u32) {
        let _ = send(init, Signal::SIGKILL as i32);
        if let Some(group) = &self.group {
            let _ = group.signal_all(Signal::SIGKILL);
        }
        if *self.paused.lock().unwrap_or_else(PoisonError::into_inner) {
            // A frozen process does not see its end.
            let (runtime, reaper, id, bundle) =
                (self.runtime.clone(), self.reaper.clone(), self.id.clone(), self.bundle.clone());
            tokio::spawn(async move {
                let _ = runtime.freeze(&reaper, &id, &bundle, false).await;
            });
        }
    }

    fn stop_clock(&self) {
        if let Some(clock) = self.clock.lock().unwrap_or_else(PoisonError::into_inner).take() {
            clock.task.abort();
        }
    }

    /// When everything will be killed, as Unix nanoseconds; 0 without a clock.
    pub(crate) fn stop_deadline(&self) -> i64 {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map_or(0, |clock| clock.at)
    }

    /// Freezes or thaws it.
    pub(crate) async fn freeze(&self, pause: bool) -> Result<()> {
        let _change = self.change.lock().await;
        self.runtime.freeze(&self.reaper, &self.id, &self.bundle, pause).await?;
        *self.paused.lock().unwrap_or_else(PoisonError::into_inner) = pause;
        Ok(())
    }

    pub(crate) fn is_paused(&self) -> bool {
        *self.paused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes its limits; `resources` are OCI `LinuxResources` as JSON.
    pub(crate) async fn update(&self, resources: &[u8]) -> Result<()> {
        let _change = self.change.lock().await;
        let file = self.bundle.join("resources.json");
        std::fs::write(&file, resources).step(|| format!("write {}", file.display()))?;
        let updated = self.runtime.update(&self.reaper, &self.id, &self.bundle, &file).await;
        let _ = std::fs::remove_file(&file);
        Ok(updated?)
    }

    /// The pids in its cgroup.
    pub(crate) fn pids(&self) -> Result<Vec<u32>> {
        match &self.group {
            Some(group) => Ok(group.pids().step(|| "list processes".to_owned())?.into_iter().collect()),
            None => Ok(self.init.phase().live_pid().into_iter().collect()),
        }
    }

    /// Removes what the OCI runtime keeps of it. One that runs is refused, one that never started is killed.
    pub(crate) async fn delete(&self) -> Result<ExitReport> {
        let _change = self.change.lock().await;
        if matches!(self.init.phase(), Phase::Running { .. }) {
            return Err(ShimError::Precondition(format!("container {:?} runs", self.id)));
        }
        self.runtime.delete(&self.reaper, &self.id, &self.bundle).await?;
        Ok(self.init.wait().await)
    }

    /// Forgets an exec that has ended or was never started.
    pub(crate) fn delete_exec(&self, exec_id: &str) -> Result<(u32, ExitReport)> {
        let exec = self.exec(exec_id)?;
        let (pid, report) = match exec.process.phase() {
            Phase::Exited { pid, report, .. } => (pid, report),
            Phase::Prepared => (0, ExitReport::default()),
            Phase::Created { .. } | Phase::Running { .. } => {
                return Err(ShimError::Precondition(format!("exec {exec_id:?} runs")));
            }
        };
        self.execs().remove(exec_id);
        Ok((pid, report))
    }
}

fn report(exit: Exit) -> ExitReport {
    ExitReport { exit_code: exit.code, signal: exit.signal, exited_at: exit.at, ..ExitReport::default() }
}

fn nothing() -> Triple {
    use std::process::Stdio;
    Triple { stdin: Stdio::null(), stdout: Stdio::null(), stderr: Stdio::null() }
}

fn passed(names: &Stdio, owner: Owner) -> Result<Triple> {
    stdio::passed(&names.stdin, &names.stdout, &names.stderr, owner).step(|| format!("open streams {names:?}"))
}

fn console_for(terminal: bool, bundle: &Path, name: &str) -> Result<Option<ConsoleSocket>> {
    let open = || ConsoleSocket::new(bundle, name).step(|| "listen for the terminal".to_owned());
    terminal.then(open).transpose()
}

/// Sends a signal by number to a process that is a child not yet waited for, or was listed a moment ago.
fn send(pid: u32, signal: i32) -> std::io::Result<()> {
    match vaina_sys::process::open(pid).and_then(|process| vaina_sys::process::signal(process, signal)) {
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(()),
        other => other,
    }
}

/// Waits until a process has stopped, or is gone.
async fn stopped(pid: u32) {
    let deadline = Instant::now() + STOP_LIMIT;
    while family::is_running(pid) && Instant::now() < deadline {
        sleep(Duration::from_micros(200)).await;
    }
}

/// The cgroup that the container has for itself: as its configuration says, or where its init is.
fn group_of(bundle: &Path, pid: u32) -> Option<Group> {
    let configured = || -> Option<PathBuf> {
        let text = std::fs::read(bundle.join("config.json")).ok()?;
        let config: serde_json::Value = serde_json::from_slice(&text).ok()?;
        let path = PathBuf::from(config["linux"]["cgroupsPath"].as_str()?);
        path.is_absolute().then_some(path)
    };
    let actual = || -> Option<PathBuf> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let path = cgroup_path(&text)?;
        // In a root there is more than the container.
        (path != Path::new("/")).then_some(path)
    };
    let path = configured().or_else(actual)?;
    Some(Hierarchies::detect().ok()?.group(&path))
}

/// The path of a `/proc/<pid>/cgroup`: of the memory controller on v1, of the one hierarchy on v2.
fn cgroup_path(text: &str) -> Option<PathBuf> {
    let of = |wanted: &str| {
        text.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let controllers = fields.next()?;
            let path = fields.next()?;
            controllers.split(',').any(|name| name == wanted).then(|| PathBuf::from(path))
        })
    };
    of("memory").or_else(|| of(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup_of_a_process_is_found_in_both_versions() {
        assert_eq!(cgroup_path("5:devices:/a\n4:memory:/b\n0::/\n"), Some("/b".into()));
        assert_eq!(cgroup_path("0::/kubepods/x\n"), Some("/kubepods/x".into()));
        assert_eq!(cgroup_path(""), None);
    }
}
