//! One process of a container: the init or an exec, its streams and how it ended.
//!
//! ```text
//!   prepared ──▶ created ──▶ running ──▶ exited
//!      │  (exec: one step) ────▲           ▲
//!      └──────────────────────────────────┘  (an exec that could not be started)
//! ```
//! The exit is a `watch`: level, not edge. Whoever asks later is answered at once.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;
use vaina_proto::shim::ExitReport;

use crate::io::stdio::{Pumps, Readers};

/// Where a client wants its streams.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stdio {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

/// How far it is.
#[derive(Debug, Clone)]
pub(crate) enum Phase {
    /// Described, not yet made.
    Prepared,
    /// Made by the OCI runtime; its program has not started.
    Created {
        pid: u32,
    },
    Running {
        pid: u32,
        started_at: i64,
    },
    Exited {
        pid: u32,
        started_at: i64,
        report: ExitReport,
    },
}

impl Phase {
    pub(crate) fn pid(&self) -> u32 {
        match self {
            Self::Prepared => 0,
            Self::Created { pid } | Self::Running { pid, .. } | Self::Exited { pid, .. } => *pid,
        }
    }

    /// Its pid while it lives; never another process's, since it has not been waited for.
    pub(crate) fn live_pid(&self) -> Option<u32> {
        match self {
            Self::Created { pid } | Self::Running { pid, .. } => Some(*pid),
            Self::Prepared | Self::Exited { .. } => None,
        }
    }

    pub(crate) fn started_at(&self) -> i64 {
        match self {
            Self::Prepared | Self::Created { .. } => 0,
            Self::Running { started_at, .. } | Self::Exited { started_at, .. } => *started_at,
        }
    }
}

/// One process.
pub(crate) struct Process {
    pub(crate) stdio: Stdio,
    phase: Mutex<Phase>,
    pumps: Mutex<Pumps>,
    exit: watch::Sender<Option<ExitReport>>,
}

impl Process {
    pub(crate) fn new(stdio: Stdio) -> Self {
        Self { stdio, phase: Mutex::new(Phase::Prepared), pumps: Mutex::default(), exit: watch::Sender::new(None) }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn pumps(&self) -> MutexGuard<'_, Pumps> {
        self.pumps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_pumps(&self, pumps: Pumps) {
        *self.pumps() = pumps;
    }

    pub(crate) fn readers(&self) -> Readers {
        self.pumps().readers()
    }

    pub(crate) fn close_stdin(&self) {
        self.pumps().close_stdin();
    }

    pub(crate) fn attach(&self, stdin: &str, stdout: &str, stderr: &str) -> std::io::Result<bool> {
        self.pumps().attach(stdin, stdout, stderr)
    }

    pub(crate) fn reopen_log(&self) -> Option<std::io::Result<()>> {
        self.pumps().reopen_log()
    }

    pub(crate) fn terminal(&self) -> Option<Arc<OwnedFd>> {
        self.pumps().terminal.clone()
    }

    pub(crate) fn created(&self, pid: u32) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = Phase::Created { pid };
    }

    /// Notes the start, unless it has ended meanwhile: an end is final.
    pub(crate) fn started(&self, pid: u32, at: i64) {
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *phase {
            Phase::Exited { started_at, .. } => *started_at = at,
            other => *other = Phase::Running { pid, started_at: at },
        }
    }

    /// Publishes how it ended.
    pub(crate) fn exited(&self, report: ExitReport) {
        {
            let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
            *phase = Phase::Exited { pid: phase.pid(), started_at: phase.started_at(), report: report.clone() };
        }
        self.exit.send_replace(Some(report));
    }

    /// Waits for its end.
    pub(crate) async fn wait(&self) -> ExitReport {
        let mut exit = self.exit.subscribe();
        match exit.wait_for(Option::is_some).await {
            Ok(report) => report.clone().unwrap_or_default(),
            // The sender lives in `self`.
            Err(_) => ExitReport { unknown: true, ..ExitReport::default() },
        }
    }
}
