//! `StopContainer`: the stop signal, a grace period, then everything is killed.
//!
//! The clock runs in the shim, so a daemon that dies meanwhile changes nothing. While a client waits for it, another can only
//! shorten it. A call that finds nobody waiting (the kubelet or this daemon was restarted) begins anew, with the signal and
//! its full grace; if nobody calls again, the old clock stands. Nothing is locked while the process has its grace.
//! Idempotent, and no error for a container that is not there (`api.proto`, StopContainer).

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tracing::{Instrument as _, info_span};
use vaina_proto::cri::ContainerEventType;
use vaina_sys::failpoint;

use super::{
    Container, ContainerState, Level, StepError,
    steps::{ContainerStep, Walk, observed_after_create},
};
use crate::{
    app::App,
    error::{Classify, Kind},
    events,
    index::FindError,
    plan::{Drive, Mark, Observed, execute},
    runtime::RuntimeError,
    sandbox::steps::describe,
    work::lock,
};

/// Why a container is not stopped.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// The start of an id that several have.
    #[error(transparent)]
    Find(FindError),
    /// The shim.
    #[error("ask the shim to stop the container")]
    Shim(#[source] RuntimeError),
    /// It lives on though it was killed.
    #[error("wait for the killed container to end: {}", if .0.is_empty() { "its exit was not reported".to_owned() } else { .0.join("; ") })]
    Alive(Vec<String>),
    /// What it left could not be cleared away.
    #[error("clear away the container")]
    Step(#[source] StepError),
}

#[cfg(feature = "failpoints")]
impl StopError {
    /// What a failpoint fails with.
    fn injected(source: std::io::Error) -> Self {
        Self::Step(<Walk<'_> as crate::plan::Host<ContainerStep>>::injected(source))
    }
}

impl Classify for StopError {
    fn kind(&self) -> Kind {
        match self {
            Self::Find(source) => source.kind(),
            Self::Shim(source) => source.kind(),
            Self::Alive(_) => Kind::DeadlineExceeded,
            Self::Step(source) => source.kind(),
        }
    }
}

/// How long the end of a killed container may take to be reported: death, drained logs, the shim's word.
const REPORT_LIMIT: Duration = Duration::from_secs(30);

/// Stops a container; one that is not there, or does not run, is stopped.
pub async fn stop(app: &Arc<App>, id: &str, grace_seconds: i64) -> Result<(), StopError> {
    let container = match app.index.containers.find(id) {
        Ok(container) => container,
        Err(FindError::Missing { .. }) => return Ok(()),
        Err(error @ FindError::Ambiguous { .. }) => return Err(StopError::Find(error)),
    };
    let grace = u64::try_from(grace_seconds).unwrap_or(0);
    // Until the client leaves, which drops this call but not the change.
    let caller = container.stop_callers.enter();
    let anew = caller.is_first;
    let app = Arc::clone(app);
    let stopping = Arc::clone(&container);
    app.changes.clone().run(async move { run(&app, &stopping, grace, anew).await }).await
}

/// Stops a container that is there, at once.
pub(crate) async fn stop_known(app: &Arc<App>, container: &Arc<Container>) -> Result<(), StopError> {
    run(app, container, 0, false).await
}

/// How many clients wait for a container to stop.
#[derive(Debug, Default)]
pub(crate) struct StopCallers(AtomicUsize);

/// One of them, while it waits.
struct StopCaller<'a> {
    callers: &'a StopCallers,
    is_first: bool,
}

impl StopCallers {
    fn enter(&self) -> StopCaller<'_> {
        StopCaller { callers: self, is_first: self.0.fetch_add(1, Ordering::AcqRel) == 0 }
    }
}

impl Drop for StopCaller<'_> {
    fn drop(&mut self) {
        self.callers.0.fetch_sub(1, Ordering::AcqRel);
    }
}

async fn run(app: &Arc<App>, container: &Arc<Container>, grace_seconds: u64, anew: bool) -> Result<(), StopError> {
    if matches!(container.state(), ContainerState::Creating | ContainerState::Starting) {
        // Both are short; what they end in is what is stopped.
        drop(container.gate.lock().instrument(info_span!("gate")).await);
    }
    let mut state = container.watch();
    if !matches!(*state.borrow_and_update(), ContainerState::Running(_)) {
        return Ok(());
    }
    let grace = Duration::from_secs(grace_seconds.min(u64::from(u32::MAX)));
    if let Some(shim) = container.sandbox.shim() {
        // Without grace it is killed at once, and hears no signal; and it hears it once while somebody waits.
        let signal = if grace.is_zero() || !anew { 0 } else { container.stop_signal };
        failpoint!("stop.signal", StopError::injected);
        match shim.stop(&container.id, signal, grace, anew).instrument(info_span!("signal")).await {
            Ok(()) => {}
            // It ended meanwhile, and its end is on the way.
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::FailedPrecondition) => {}
            // A shim that is gone is seen by whoever watches it, who kills what it left.
            Err(error) if !matches!(*state.borrow_and_update(), ContainerState::Running(_)) => {
                tracing::debug!(container = %container.id, %error, "the container ended while it was being stopped");
            }
            Err(error) => return Err(StopError::Shim(error)),
        }
        failpoint!("stop.signalled", StopError::injected);
    }
    let ended =
        state.wait_for(|state| !matches!(state, ContainerState::Running(_))).instrument(info_span!("wait_for_exit"));
    match tokio::time::timeout(grace + REPORT_LIMIT, ended).await {
        Ok(_) => Ok(()),
        Err(_) => {
            let path = container.cgroup(&app.config.cgroup.parent);
            let pids = app.cgroups.group(&path).pids().unwrap_or_default();
            Err(StopError::Alive(pids.into_iter().map(describe).collect()))
        }
    }
}

/// Waits until what is being done to a stopped container is done, and finishes what is owed.
pub(crate) async fn settle(app: &Arc<App>, container: &Arc<Container>) -> Result<(), StopError> {
    let _changing = container.gate.lock().instrument(info_span!("gate")).await;
    let mark = lock(&container.kept).mark;
    let Some(Mark::Toward(_) | Mark::At(Level::Running)) = mark else { return Ok(()) };
    if matches!(container.state(), ContainerState::Running(_) | ContainerState::Unknown(_)) {
        return Ok(());
    }
    // A container whose making failed half-way has no use; its wanted level was nothing at all.
    let wanted = if lock(&container.failure).is_some() { Level::Gone } else { Level::Held };
    let walk = Walk::new(app, container, None);
    let observed =
        if wanted == Level::Gone { Observed::from_mark::<ContainerStep>(mark) } else { observed_after_create(mark) };
    let drive = Drive::<ContainerStep>::new(mark, observed, wanted, wanted);
    execute(&walk, drive).await.map_err(|failure| StopError::Step(failure.first))?;
    if wanted == Level::Gone {
        app.index.containers.remove(container);
        container.publish(ContainerState::Removed);
        events::container(app, container, ContainerEventType::ContainerDeletedEvent);
    }
    Ok(())
}
