//! The end of a pod, the same for its runner and for `vaina stop`: containers within the grace period, then the
//! sandbox. (Then the directory, [`PodDirectory::remove`].) Every step may be done twice.

use std::{collections::BTreeMap, time::Duration};

use futures::future::join_all;
use vaina_proto::cri;

use super::{
    convert::keys,
    daemon::{Daemon, DaemonError},
    directory::{PodDirectory, Stop},
    log::Changes,
    pod::all,
};

/// What a container gets at least: Kubernetes never sends KILL alone.
pub(super) const SMALL_GRACE: Duration = Duration::from_secs(2);

/// Stops all containers of the pod at the same time. A deadline that is moved up meanwhile holds for those that remain.
pub(super) async fn stop_containers(daemon: &Daemon, directory: &PodDirectory) -> Result<(), DaemonError> {
    let mut changes = Changes::of(directory.path());
    loop {
        let deadline = directory.stop();
        let left = deadline.map_or(SMALL_GRACE, Stop::left);
        let containers = running_containers(daemon, directory).await?;
        if containers.is_empty() {
            return Ok(());
        }
        let stops = containers.iter().map(|container| stop(daemon, &container.id, left));
        let sooner = async {
            loop {
                changes.next().await;
                if directory.stop() != deadline {
                    return;
                }
            }
        };
        tokio::select! {
            // All at once, and all are waited for: the daemon kills what is left when the time is over.
            results = join_all(stops) => return results.into_iter().collect(),
            () = sooner => {}
        }
    }
}

/// Stops and removes every sandbox of the pod, with whatever is in it.
pub(super) async fn remove_sandboxes(daemon: &Daemon, directory: &PodDirectory) -> Result<(), DaemonError> {
    let sandboxes = sandboxes(daemon, directory).await?;
    all(sandboxes.iter().map(|sandbox| remove_sandbox(daemon, &sandbox.id))).await
}

/// The names of the containers that still run.
pub(super) async fn running(daemon: &Daemon, directory: &PodDirectory) -> Result<Vec<String>, DaemonError> {
    let containers = running_containers(daemon, directory).await?;
    Ok(containers.into_iter().filter_map(|container| container.metadata).map(|metadata| metadata.name).collect())
}

/// All containers of a sandbox.
pub(super) async fn containers(daemon: &Daemon, sandbox: &str) -> Result<Vec<cri::Container>, DaemonError> {
    let filter = cri::ContainerFilter { pod_sandbox_id: sandbox.to_owned(), ..Default::default() };
    daemon.containers(filter).await
}

/// The sandboxes of a pod: one, unless somebody was killed at the wrong moment.
pub(super) async fn sandboxes(daemon: &Daemon, directory: &PodDirectory) -> Result<Vec<cri::PodSandbox>, DaemonError> {
    let label_selector = BTreeMap::from([(keys::POD_UID.to_owned(), directory.uid())]);
    let filter = cri::PodSandboxFilter { label_selector, ..Default::default() };
    daemon.sandboxes(filter).await
}

async fn running_containers(daemon: &Daemon, directory: &PodDirectory) -> Result<Vec<cri::Container>, DaemonError> {
    let label_selector = BTreeMap::from([(keys::POD_UID.to_owned(), directory.uid())]);
    let filter = cri::ContainerFilter { label_selector, ..Default::default() };
    let containers = daemon.containers(filter).await?;
    // What is Unknown may run, and a stop of what does not is no harm.
    let may_run = |state: i32| {
        [cri::ContainerState::ContainerRunning, cri::ContainerState::ContainerUnknown]
            .iter()
            .any(|s| i32::from(*s) == state)
    };
    Ok(containers.into_iter().filter(|container| may_run(container.state)).collect())
}

async fn stop(daemon: &Daemon, id: &str, left: Duration) -> Result<(), DaemonError> {
    // CRI counts in whole seconds.
    let seconds = left.max(SMALL_GRACE).as_millis().div_ceil(1000);
    let timeout = i64::try_from(seconds).unwrap_or(i64::MAX);
    let request = cri::StopContainerRequest { container_id: id.to_owned(), timeout };
    let call = daemon.call("StopContainer", |daemon| {
        let request = request.clone();
        async move { daemon.runtime().stop_container(request).await }
    });
    call.await.map(drop)
}

async fn remove_sandbox(daemon: &Daemon, id: &str) -> Result<(), DaemonError> {
    let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
    let call = daemon.call("StopPodSandbox", |daemon| {
        let request = request.clone();
        async move { daemon.runtime().stop_pod_sandbox(request).await }
    });
    call.await?;
    let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
    let call = daemon.call("RemovePodSandbox", |daemon| {
        let request = request.clone();
        async move { daemon.runtime().remove_pod_sandbox(request).await }
    });
    call.await.map(drop)
}
