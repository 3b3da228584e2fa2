//! Exits: one watcher for each running container and one for each shim. Nothing else sets `Exited`.
//!
//! The shim's answer is level, not edge: asked before or after the end, it says how the process ended, so no exit is
//! lost whoever was down meanwhile. A watcher records the exit, publishes it, and then clears the task away. A shim that is
//! gone has nobody left to say how its containers ended: what remains of them is killed by control group, and they are
//! `Exited` with reason `Unknown`.

use std::{sync::Arc, time::Duration};

use tracing::{Instrument as _, info_span};

use vaina_proto::cri::ContainerEventType;

use crate::{
    app::App,
    container::{
        Container, ContainerState, Exit, Level, StartError,
        steps::{ContainerStep, Walk},
    },
    error::{Chain, Classify as _, Kind},
    events,
    id::SandboxId,
    plan::{Drive, Observed, execute},
    runtime::{ExitReport, Shim},
    sandbox::{self, Ready, Sandbox, SandboxState},
    work::{lock, now},
};

/// Follows a running container to its end.
pub(crate) fn watch(app: &Arc<App>, container: &Arc<Container>) {
    let app = Arc::clone(app);
    let container = Arc::clone(container);
    tokio::spawn(async move {
        loop {
            let Some(shim) = container.sandbox.shim() else { return };
            match shim.wait_exit(&container.id).await {
                Ok(report) => {
                    let exit = exit(&report, started_at(&container));
                    return app.changes.clone().run(async move { ended(&app, &container, exit).await }).await;
                }
                Err(error) if error.kind() == Kind::NotFound => {
                    let exit = Exit::unknown("the shim does not know the container", started_at(&container), now());
                    return app.changes.clone().run(async move { ended(&app, &container, exit).await }).await;
                }
                Err(error) => {
                    tracing::debug!(container = %container.id, %error, "exit watch is cut");
                    // If the shim is gone, its own watcher ends this container too.
                    if !still(&app, &container.sandbox, &shim).await {
                        return;
                    }
                }
            }
        }
    });
}

/// Follows the shim of a sandbox to its end.
pub(crate) fn watch_sandbox(app: &Arc<App>, sandbox: &Arc<Sandbox>) {
    let app = Arc::clone(app);
    let sandbox = Arc::clone(sandbox);
    tokio::spawn(async move {
        while let SandboxState::Ready(ready) = sandbox.state() {
            let shim = Arc::clone(&ready.shim);
            shim.ended().await;
            if !still(&app, &sandbox, &shim).await {
                if matches!(sandbox.state(), SandboxState::Ready(_)) {
                    tracing::warn!(sandbox = %sandbox.id, "the pod's shim is gone");
                    let changes = app.changes.clone();
                    changes.run(async move { lost(&app, &sandbox).await }).await;
                }
                return;
            }
        }
    });
}

/// Whether the shim lives: a connection may be cut without its end. A new one takes its place in the state.
async fn still(app: &App, sandbox: &Sandbox, shim: &Arc<Shim>) -> bool {
    let SandboxState::Ready(ready) = sandbox.state() else { return false };
    if !Arc::ptr_eq(&ready.shim, shim) {
        // Somebody has connected anew.
        return true;
    }
    let Some(fresh) = connect(&sandbox.id, shim.address()).await else { return false };
    let _changing = sandbox.gate.write().await;
    match sandbox.state() {
        SandboxState::Ready(ready) if Arc::ptr_eq(&ready.shim, shim) => {
            let Ready { addresses, pid, .. } = &*ready;
            let ready = Ready { addresses: addresses.clone(), shim: Arc::new(fresh), pid: *pid };
            sandbox.publish(SandboxState::Ready(Arc::new(ready)));
            app.reconnects.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            true
        }
        SandboxState::Ready(_) => true,
        _ => false,
    }
}

/// How long a shim may take to answer that it is there.
const HELLO_LIMIT: Duration = Duration::from_secs(10);

/// A connection to a shim that answers; [`None`] if none does.
pub(crate) async fn connect(sandbox: &SandboxId, address: &str) -> Option<Shim> {
    tokio::time::timeout(HELLO_LIMIT, Shim::connect(sandbox, address)).await.ok()?.ok()
}

fn started_at(container: &Container) -> i64 {
    lock(&container.kept).started_at.max(container.created_at)
}

/// What a report means in CRI's words.
fn exit(report: &ExitReport, started_at: i64) -> Exit {
    let finished_at = report.exited_at.max(started_at);
    if report.unknown {
        return Exit::unknown("the exit status is lost", started_at, finished_at);
    }
    let reason = match (report.oom_killed, report.exit_code) {
        (true, _) => "OOMKilled",
        (false, 0) => "Completed",
        (false, _) => "Error",
    };
    let code = i32::try_from(report.exit_code).unwrap_or(255);
    Exit { code, reason: reason.to_owned(), message: String::new(), started_at, finished_at }
}

/// Records and publishes an exit, and clears the task away.
pub(crate) async fn ended(app: &App, container: &Container, exit: Exit) {
    let span = info_span!("exit", sandbox = %container.sandbox.id, container = %container.id);
    clear_away(app, container, exit).instrument(span).await;
}

async fn clear_away(app: &App, container: &Container, exit: Exit) {
    let _changing = container.gate.lock().instrument(info_span!("gate")).await;
    if !matches!(container.state(), ContainerState::Running(_)) {
        return;
    }
    let walk = Walk::new(app, container, Some(exit.clone()));
    let mark = lock(&container.kept).mark;
    let drive = Drive::<ContainerStep>::new(mark, Observed::from_mark::<ContainerStep>(mark), Level::Held, Level::Held);
    if let Err(failure) = execute(&walk, drive).await {
        // The record says that it is owed; the container's removal, its pod's stop or the next start goes on.
        tracing::warn!(container = %container.id, error = %Chain(&failure.first), "an ended container is not cleared away");
    }
    // Even an exit that could not be recorded is a fact.
    if matches!(container.state(), ContainerState::Running(_)) {
        lock(&container.kept).exit.get_or_insert_with(|| exit.clone());
        container.publish(ContainerState::Exited(Arc::new(exit)));
        events::container(app, container, ContainerEventType::ContainerStoppedEvent);
    }
}

/// A start that failed: the container has exited without ever having run.
pub(crate) fn failed_start(app: &App, container: &Container, error: &StartError) {
    let exit = lock(&container.kept)
        .exit
        .get_or_insert_with(|| Exit::start_error(Chain(error).to_string(), now().max(container.created_at)))
        .clone();
    container.publish(ContainerState::Exited(Arc::new(exit)));
    events::container(app, container, ContainerEventType::ContainerStoppedEvent);
}

/// The shim of a pod is gone: its containers are ended and the pod is stopped.
pub(crate) async fn lost(app: &Arc<App>, sandbox: &Arc<Sandbox>) {
    {
        let _changing = sandbox.gate.write().await;
        if !matches!(sandbox.state(), SandboxState::Ready(_) | SandboxState::Starting) {
            return;
        }
        // From here on nobody asks the shim.
        sandbox.publish(SandboxState::NotReady);
        events::sandbox(app, sandbox, ContainerEventType::ContainerStoppedEvent);
    }
    for container in app.containers_of(&sandbox.id) {
        if let ContainerState::Running(running) = container.state() {
            let exit = Exit::unknown("the pod's shim is gone", running.started_at, now());
            ended(app, &container, exit).await;
        }
    }
    if let Err(error) = sandbox::stop_known(app, sandbox).await {
        tracing::warn!(sandbox = %sandbox.id, error = %Chain(&error), "a pod whose shim is gone is not taken down");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_become_reasons() {
        let report = |exit_code, oom_killed, unknown| ExitReport {
            exit_code,
            oom_killed,
            unknown,
            exited_at: 9,
            ..Default::default()
        };
        let reason = |report: ExitReport| {
            let exit = exit(&report, 5);
            (exit.code, exit.reason)
        };
        assert_eq!(reason(report(0, false, false)), (0, "Completed".to_owned()));
        assert_eq!(reason(report(1, false, false)), (1, "Error".to_owned()));
        assert_eq!(reason(report(143, false, false)), (143, "Error".to_owned()));
        assert_eq!(reason(report(137, true, false)), (137, "OOMKilled".to_owned()));
        assert_eq!(reason(report(0, false, true)), (255, "Unknown".to_owned()));
        // A clock that was set back does not turn the order round.
        assert_eq!(exit(&report(0, false, false), 20).finished_at, 20);
    }
}
