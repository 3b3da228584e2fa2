//! Random operations of several clients, with kills in between, against a model of what must exist.
//!
//! Each client has pods of its own and repeats a call until it is answered, so after each operation its model is exact: what was
//! made exists under the id that was told, what was removed does not. A kill of a shim may only degrade what exists. At the end
//! List is compared with the model, everything is removed, and the host is compared with what it was.
//!
//! `VAINA_FAULT_SEED` repeats the choices, `VAINA_SOAK_OPERATIONS` says how many there are.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    env,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use futures::future::join_all;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tonic::{Code, Status};
use vaina_proto::cri::{
    ContainerState, CreateContainerRequest, ListContainersRequest, ListPodSandboxRequest, RunPodSandboxRequest,
};
use vaina_tests::{
    build::{Container, Pod},
    client::Cri,
    leak,
    node::{IMAGE, Node, SOCKET, e2e_with},
    wait,
};

use crate::{moments::Moments, points::Points};

const CLIENTS: usize = 3;
const PODS: usize = 2;
const CONTAINERS: usize = 2;
/// Operations between two kills, on average.
const PEACE: usize = 15;

/// A pod as its client knows it.
#[derive(Debug, Default)]
struct Known {
    /// Raised with each sandbox.
    attempt: u32,
    sandbox: Option<String>,
    containers: BTreeMap<usize, String>,
    /// Of each container.
    attempts: BTreeMap<usize, u32>,
}

struct Client {
    pods: Vec<(Pod, Known)>,
    moments: Moments,
}

impl Client {
    /// One random operation.
    async fn operate(&mut self) -> Result<()> {
        let mut below = |bound| self.moments.below(bound);
        let (pod, number, what) = (below(PODS), below(CONTAINERS), below(10));
        let (pod, known) = &mut self.pods[pod];
        match (what, known.sandbox.clone()) {
            (_, None) => run(pod, known).await,
            (0, Some(sandbox)) => {
                settle("RemovePodSandbox", async |cri| cri.remove_pod_sandbox(&sandbox).await).await?;
                known.sandbox = None;
                known.containers.clear();
                known.attempt += 1;
                Ok(())
            }
            (1, Some(sandbox)) => settle("StopPodSandbox", async |cri| cri.stop_pod_sandbox(&sandbox).await).await,
            (_, Some(sandbox)) => match (what, known.containers.get(&number).cloned()) {
                (_, None) => create(pod, &sandbox, number, known).await,
                (2 | 3, Some(id)) => {
                    settle("RemoveContainer", async |cri| cri.remove_container(&id).await).await?;
                    known.containers.remove(&number);
                    *known.attempts.entry(number).or_default() += 1;
                    Ok(())
                }
                (4 | 5, Some(id)) => settle("StopContainer", async |cri| cri.stop_container(&id, 1).await).await,
                // It may have been started, or its pod be stopped: that it was answered is enough.
                (6 | 7, Some(id)) => {
                    let _ = answer("StartContainer", async |cri| cri.start_container(&id).await).await?;
                    Ok(())
                }
                (_, Some(id)) => {
                    let found = answer("ContainerStatus", async |cri| cri.container(&id).await).await?;
                    let found = found.with_context(|| format!("the status of a container that exists, {id}"))?;
                    ensure!(found.state() != ContainerState::ContainerUnknown, "{found:?}");
                    Ok(())
                }
            },
        }
    }
}

async fn run(pod: &Pod, known: &mut Known) -> Result<()> {
    let mut config = pod.config.clone();
    config.metadata.get_or_insert_default().attempt = known.attempt;
    let answered = answer("RunPodSandbox", async |cri| {
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        cri.run_pod_sandbox(request).await.map(|answer| answer.pod_sandbox_id)
    })
    .await?;
    match answered {
        Ok(id) => known.sandbox = Some(id),
        // Its shim was killed meanwhile: nothing is left of it, or a sandbox that is NotReady, which its name finds.
        Err(_) => {
            let all =
                answer("ListPodSandbox", async |cri| cri.list_pod_sandbox(ListPodSandboxRequest::default()).await);
            let metadata = config.metadata.unwrap_or_default();
            let is_it = |item: &vaina_proto::cri::PodSandbox| item.metadata.as_ref() == Some(&metadata);
            known.sandbox = all.await??.items.into_iter().find(is_it).map(|item| item.id);
        }
    }
    Ok(())
}

async fn create(pod: &Pod, sandbox: &str, number: usize, known: &mut Known) -> Result<()> {
    let attempt = *known.attempts.entry(number).or_default();
    let script = "echo up; trap 'exit 7' TERM; while :; do sleep 1000 & wait $!; done";
    let config = Container::new(&format!("c{number}"), IMAGE).sh(script).attempt(attempt).config;
    let created = answer("CreateContainer", async |cri| {
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config.clone()),
            sandbox_config: Some(pod.config.clone()),
        };
        cri.create_container(request).await.map(|answer| answer.container_id)
    })
    .await?;
    match created {
        Ok(id) => drop(known.containers.insert(number, id)),
        // In a pod that is stopped nothing is made; but what an earlier call has made is there.
        Err(_) => {
            let all = answer("ListContainers", async |cri| cri.list_containers(ListContainersRequest::default()).await);
            let metadata = config.metadata.unwrap_or_default();
            let is_it = |item: &vaina_proto::cri::Container| {
                item.pod_sandbox_id == sandbox && item.metadata.as_ref() == Some(&metadata)
            };
            if let Some(found) = all.await??.containers.into_iter().find(is_it) {
                known.containers.insert(number, found.id);
            }
        }
    }
    Ok(())
}

/// Calls until there is an answer, good or bad.
async fn answer<T>(what: &str, mut call: impl AsyncFnMut(Cri) -> Result<T, Status>) -> Result<Result<T, Status>> {
    wait::until(&format!("{what} is answered"), async || {
        let Ok(cri) = Cri::connect(Path::new(SOCKET)).await else { return Ok(None) };
        Ok(match call(cri).await {
            Err(status) if crate::kubelet::is_cut(&status) => None,
            answer => Some(answer),
        })
    })
    .await
}

/// Calls until it is done: a step may fail when something is killed under it, and then the next call goes on.
async fn settle(what: &str, mut call: impl AsyncFnMut(Cri) -> Result<(), Status>) -> Result<()> {
    let mut last = Ok(());
    for _ in 0..5 {
        last = answer(what, &mut call).await?;
        match &last {
            Ok(()) => return Ok(()),
            Err(status) if status.code() == Code::InvalidArgument => bail!("{what}: {status}"),
            Err(_) => {}
        }
    }
    last.with_context(|| format!("{what} has failed five times"))
}

/// Kills the daemon now or at a failpoint, or a shim, now and then.
async fn disturb(
    node: &mut Node,
    points: &Points,
    moments: &mut Moments,
    done: &Cell<usize>,
    total: usize,
) -> Result<usize> {
    let all: Vec<_> = points.all()?.into_keys().collect();
    let mut kills = 0;
    loop {
        let until = done.get() + 1 + moments.below(2 * PEACE);
        while done.get() < until.min(total) {
            tokio::time::sleep(Duration::from_millis(2)).await;
            if node.has_ended()? {
                kills += 1;
                restart(node).await?;
            }
        }
        if done.get() >= total {
            return Ok(kills);
        }
        match moments.below(4) {
            0 => {
                restart(node).await?;
            }
            1 => {
                let shims: Vec<_> = leak::processes(&node.scope())?
                    .into_iter()
                    .filter(|process| process.pid != node.daemon_pid() && crate::is_shim(process.pid))
                    .collect();
                if let Some(victim) = shims.get(moments.below(shims.len())) {
                    let _ = kill(Pid::from_raw(i32::try_from(victim.pid)?), Signal::SIGKILL);
                }
            }
            _ => {
                let point = &all[moments.below(all.len())];
                points.release(point);
                points.arm(point, "kill")?;
                continue;
            }
        }
        kills += 1;
    }
}

/// Kills the daemon and starts it; a failpoint may kill it again while it recovers.
async fn restart(node: &mut Node) -> Result<()> {
    for _ in 0..10 {
        node.kill_daemon()?;
        match node.start_daemon().await {
            Err(error) if !node.has_ended()? => return Err(error),
            Err(_) => {}
            Ok(()) => return Ok(()),
        }
    }
    bail!("the daemon does not get through its recovery")
}

/// What is listed is what the clients know, no more and no less.
async fn compare(node: &Node, clients: &[Client]) -> Result<()> {
    let cri = node.cri();
    let pods: BTreeSet<_> =
        cri.list_pod_sandbox(ListPodSandboxRequest::default()).await?.items.into_iter().map(|pod| pod.id).collect();
    let listed = cri.list_containers(ListContainersRequest::default()).await?.containers;
    let containers: BTreeSet<_> = listed.into_iter().map(|container| container.id).collect();
    let known = || clients.iter().flat_map(|client| &client.pods).map(|(_, known)| known);
    let (known_pods, known_containers): (BTreeSet<_>, BTreeSet<_>) = (
        known().filter_map(|known| known.sandbox.clone()).collect(),
        known().flat_map(|known| known.containers.values().cloned().collect::<Vec<_>>()).collect(),
    );
    ensure!(pods == known_pods, "pods {pods:?} are listed, and {known_pods:?} were made");
    ensure!(containers == known_containers, "containers {containers:?} are listed, and {known_containers:?} were made");
    Ok(())
}

#[test]
fn random_operations_with_kills_in_between_end_as_the_model_says() {
    let points = Points::new().expect("make the directory of the failpoints");
    e2e_with(points.options().expect("find the programs"), async move |node| {
        node.allow("");
        let mut moments = Moments::from_environment(0);
        let total = env::var("VAINA_SOAK_OPERATIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(200);
        let mut clients: Vec<_> = (0..CLIENTS)
            .map(|client| Client {
                pods: (0..PODS).map(|pod| (node.pod(&format!("soak-{client}-{pod}")), Known::default())).collect(),
                moments: moments.split(),
            })
            .collect();
        let done = Cell::new(0);
        let operate = async |client: &mut Client| {
            while done.get() < total {
                done.set(done.get() + 1);
                client.operate().await?;
            }
            Ok::<_, anyhow::Error>(())
        };
        let seed = moments.to_string();
        let (operated, kills) =
            tokio::join!(join_all(clients.iter_mut().map(operate)), disturb(node, &points, &mut moments, &done, total));
        let kills = kills.with_context(|| seed.clone())?;
        operated.into_iter().collect::<Result<Vec<()>>>().with_context(|| seed.clone())?;
        if node.has_ended()? {
            restart(node).await?;
        }
        for point in points.all()?.keys() {
            points.release(point);
        }
        compare(node, &clients).await.with_context(|| seed.clone())?;
        for (_, known) in clients.iter().flat_map(|client| &client.pods) {
            if let Some(sandbox) = &known.sandbox {
                settle("RemovePodSandbox", async |cri| cri.remove_pod_sandbox(sandbox).await).await?;
            }
        }
        println!("{seed}: {} operations, {kills} kills", done.get());
        for text in ["but not all of it", "panicked at"] {
            ensure!(!node.daemon_log().contains(text), "{seed}: the daemon's log says {text:?}");
        }
        node.check_leaks().await.with_context(|| seed.clone())
    });
}
