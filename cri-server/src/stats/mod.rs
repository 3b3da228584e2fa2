//! Statistics and metrics of containers and pods, from control groups, `/proc` and what is remembered.
//!
//! No shim is asked and no lock but leaves is taken, so a pod that hangs costs nobody else an answer. All files of a call
//! are read in one blocking task. What needs an earlier look (a rate, the size of a writable layer) is remembered on the
//! object and goes with it.

mod layer;
mod message;
mod metrics;
mod parse;
mod read;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use tokio::sync::Semaphore;
use vaina_proto::cri::{
    ContainerAttributes, ContainerStats, ContainerStatsFilter, LinuxPodSandboxStats, MetricDescriptor,
    PodSandboxAttributes, PodSandboxMetrics, PodSandboxStats, PodSandboxStatsFilter, ProcessUsage,
};
use vaina_sys::cgroup::Hierarchies;

use self::{
    message::{Rate, Usage, value},
    metrics::Subject,
    read::{Depth, Reader, Sample},
};
use crate::{
    app::App,
    container::{Container, ContainerState},
    error::{Classify, Kind},
    id::SandboxId,
    index::FindError,
    sandbox::{Sandbox, SandboxState},
    snapshot,
    work::{blocking, lock, now},
};

/// What statistics need beside the objects.
#[derive(Debug)]
pub struct Stats {
    reader: Reader,
    /// One writable layer is walked at a time.
    walks: Semaphore,
}

impl Stats {
    /// Reads these hierarchies.
    pub fn new(hierarchies: &Hierarchies) -> Self {
        Self { reader: Reader::new(hierarchies), walks: Semaphore::new(1) }
    }
}

/// What is remembered of an object between two looks.
#[derive(Debug, Default)]
pub(crate) struct Memo {
    rate: Mutex<Option<Rate>>,
    layer: layer::Layer,
}

impl Memo {
    /// The rate of the CPU time, in billionths of a CPU.
    fn nano_cores(&self, sample: &Sample, start: i64, at: i64) -> Option<u64> {
        let usage = sample.cpu?.usage;
        let mut rate = lock(&self.rate);
        let next = Rate::next(*rate, start, at, usage);
        *rate = Some(next);
        Some(next.nano_cores)
    }
}

/// Why there are no statistics.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// No such object.
    #[error(transparent)]
    Find(FindError),
}

impl Classify for StatsError {
    fn kind(&self) -> Kind {
        match self {
            Self::Find(source) => source.kind(),
        }
    }
}

/// `ContainerStats`.
pub async fn container(app: &Arc<App>, id: &str) -> Result<ContainerStats, StatsError> {
    let container = app.index.containers.find(id).map_err(StatsError::Find)?;
    if !container.is_listed() {
        return Err(StatsError::Find(FindError::Missing { what: "container", id: id.to_owned() }));
    }
    let app = Arc::clone(app);
    Ok(blocking(move || Look::new(&app).container(&container).1).await)
}

/// `ListContainerStats`: those that meet every condition.
pub async fn containers(app: &Arc<App>, filter: Option<&ContainerStatsFilter>) -> Vec<ContainerStats> {
    let filter = filter.cloned().unwrap_or_default();
    let mut containers = app.index.containers.list();
    containers.retain(|container| {
        let ids = [
            (container.id.as_str(), filter.id.as_str()),
            (container.sandbox.id.as_str(), filter.pod_sandbox_id.as_str()),
        ];
        container.is_listed() && message::matches(ids, &container.config.labels, &filter.label_selector)
    });
    let app = Arc::clone(app);
    blocking(move || {
        let mut look = Look::new(&app);
        containers.iter().map(|container| look.container(container).1).collect()
    })
    .await
}

/// `PodSandboxStats`.
pub async fn sandbox(app: &Arc<App>, id: &str) -> Result<PodSandboxStats, StatsError> {
    let sandbox = app.index.sandboxes.find(id).map_err(StatsError::Find)?;
    if !sandbox.is_listed() {
        return Err(StatsError::Find(FindError::Missing { what: "pod sandbox", id: id.to_owned() }));
    }
    let pods = Pods::new(app);
    let app = Arc::clone(app);
    Ok(blocking(move || Look::new(&app).sandbox(&sandbox, &pods)).await)
}

/// `ListPodSandboxStats`: those that meet every condition.
pub async fn sandboxes(app: &Arc<App>, filter: Option<&PodSandboxStatsFilter>) -> Vec<PodSandboxStats> {
    let filter = filter.cloned().unwrap_or_default();
    let pods = Pods::new(app);
    let mut sandboxes = app.index.sandboxes.list();
    sandboxes.retain(|sandbox| {
        let ids = [(sandbox.id.as_str(), filter.id.as_str())];
        sandbox.is_listed() && message::matches(ids, &sandbox.config.labels, &filter.label_selector)
    });
    let app = Arc::clone(app);
    blocking(move || {
        let mut look = Look::new(&app);
        sandboxes.iter().map(|sandbox| look.sandbox(sandbox, &pods)).collect()
    })
    .await
}

/// `ListMetricDescriptors`.
pub fn metric_descriptors() -> Vec<MetricDescriptor> {
    metrics::descriptors()
}

/// `ListPodSandboxMetrics`.
pub async fn metrics(app: &Arc<App>) -> Vec<PodSandboxMetrics> {
    let pods = Pods::new(app);
    let mut sandboxes = app.index.sandboxes.list();
    sandboxes.retain(|sandbox| matches!(sandbox.state(), SandboxState::Ready(_)));
    let app = Arc::clone(app);
    blocking(move || {
        let mut look = Look::new(&app);
        sandboxes.iter().map(|sandbox| look.metrics(sandbox, &pods)).collect()
    })
    .await
}

/// What all containers have written, as far as it was measured: bytes and inodes. Never walks.
pub fn written(app: &App) -> snapshot::Usage {
    let mut sum = snapshot::Usage::default();
    for usage in app.index.containers.list().iter().filter_map(|container| layer::last(container)) {
        sum.bytes += usage.bytes;
        sum.inodes += usage.inodes;
    }
    sum
}

/// What belongs to which pod.
struct Pods {
    containers: HashMap<SandboxId, Vec<Arc<Container>>>,
    /// How many pods that run have the same control group.
    groups: HashMap<PathBuf, usize>,
}

impl Pods {
    fn new(app: &App) -> Self {
        let mut pods = Self { containers: HashMap::new(), groups: HashMap::new() };
        for container in app.index.containers.list() {
            if container.is_listed() {
                pods.containers.entry(container.sandbox.id.clone()).or_default().push(container);
            }
        }
        for sandbox in app.index.sandboxes.list() {
            if matches!(sandbox.state(), SandboxState::Ready(_)) {
                *pods.groups.entry(sandbox.cgroup(&app.config.cgroup.parent).0).or_default() += 1;
            }
        }
        pods
    }

    fn of(&self, sandbox: &Sandbox) -> &[Arc<Container>] {
        self.containers.get(&sandbox.id).map_or(&[], Vec::as_slice)
    }
}

/// One call's look at the host. Blocking.
struct Look<'a> {
    app: &'a Arc<App>,
    /// Where images and writable layers are, as `ImageFsInfo` names it.
    mountpoint: String,
    /// Files of writable layers that may still be looked at.
    budget: usize,
}

impl<'a> Look<'a> {
    fn new(app: &'a Arc<App>) -> Self {
        let mountpoint = app.config.root.join("images").to_string_lossy().into_owned();
        Self { app, mountpoint, budget: layer::AT_ONCE }
    }

    fn sample(&self, container: &Container, depth: Depth) -> Sample {
        match container.state() {
            ContainerState::Running(_) => {
                self.app.stats.reader.read(&container.cgroup(&self.app.config.cgroup.parent), depth)
            }
            _ => Sample::default(),
        }
    }

    fn container(&mut self, container: &Arc<Container>) -> (Sample, ContainerStats) {
        let at = now();
        let sample = self.sample(container, Depth::Container);
        let started_at = match container.state() {
            ContainerState::Running(running) => running.started_at,
            _ => container.created_at,
        };
        let nano_cores = container.memo.nano_cores(&sample, started_at, at);
        let Usage { cpu, memory, swap, io } = message::usage(&sample, at, nano_cores);
        let measured = layer::usage(self.app, container, &mut self.budget);
        let stats = ContainerStats {
            attributes: Some(ContainerAttributes {
                id: container.id.to_string(),
                metadata: container.config.metadata.clone(),
                labels: container.config.labels.clone(),
                annotations: container.config.annotations.clone(),
            }),
            cpu,
            memory,
            writable_layer: Some(message::writable_layer(measured, &self.mountpoint)),
            swap,
            io,
        };
        (sample, stats)
    }

    /// What the pod's group uses; if others are in it as well, what its containers do.
    fn pod<'s>(
        &self,
        sandbox: &Sandbox,
        pods: &Pods,
        depth: Depth,
        containers: impl Iterator<Item = &'s Sample>,
    ) -> Sample {
        let (group, _) = sandbox.cgroup(&self.app.config.cgroup.parent);
        let is_alone = group != Path::new("/") && pods.groups.get(&group).is_none_or(|count| *count <= 1);
        let sample = if is_alone { self.app.stats.reader.read(&group, depth) } else { Sample::default() };
        // A group that was not made yet, since no container was started, is empty.
        if sample.cpu.is_some() { sample } else { message::sum(containers) }
    }

    fn sandbox(&mut self, sandbox: &Arc<Sandbox>, pods: &Pods) -> PodSandboxStats {
        let (samples, containers): (Vec<Sample>, Vec<ContainerStats>) =
            pods.of(sandbox).iter().map(|container| self.container(container)).unzip();
        let attributes = PodSandboxAttributes {
            id: sandbox.id.to_string(),
            metadata: sandbox.config.metadata.clone(),
            labels: sandbox.config.labels.clone(),
            annotations: sandbox.config.annotations.clone(),
        };
        let linux = match sandbox.state() {
            SandboxState::Ready(ready) => {
                let at = now();
                let sample = self.pod(sandbox, pods, Depth::Pod, samples.iter());
                let nano_cores = sandbox.memo.nano_cores(&sample, sandbox.created_at, at);
                let Usage { cpu, memory, swap: _, io } = message::usage(&sample, at, nano_cores);
                let processes = samples.iter().filter_map(|sample| sample.processes).sum();
                LinuxPodSandboxStats {
                    cpu,
                    memory,
                    network: interfaces(sandbox, ready.pid).map(|interfaces| message::network(&interfaces, at)),
                    process: Some(ProcessUsage { timestamp: at, process_count: value(processes) }),
                    containers,
                    io,
                }
            }
            _ => LinuxPodSandboxStats { containers, ..LinuxPodSandboxStats::default() },
        };
        PodSandboxStats { attributes: Some(attributes), linux: Some(linux), windows: None }
    }

    fn metrics(&mut self, sandbox: &Arc<Sandbox>, pods: &Pods) -> PodSandboxMetrics {
        let metadata = sandbox.config.metadata.clone().unwrap_or_default();
        let interfaces = match sandbox.state() {
            SandboxState::Ready(ready) => interfaces(sandbox, ready.pid),
            _ => None,
        };
        let (group, _) = sandbox.cgroup(&self.app.config.cgroup.parent);
        let subject = Subject { namespace: &metadata.namespace, pod: &metadata.name, ..Subject::default() };
        let mut samples = Vec::new();
        let mut container_metrics = Vec::new();
        for container in pods.of(sandbox) {
            let ContainerState::Running(running) = container.state() else { continue };
            let sample = self.sample(container, Depth::All);
            let measured = layer::usage(self.app, container, &mut self.budget);
            let id = container.cgroup(&self.app.config.cgroup.parent);
            let subject = Subject {
                container: &container.config.metadata.clone().unwrap_or_default().name,
                id: &id.to_string_lossy(),
                image: &container.image.name,
                name: container.id.as_str(),
                started_at: running.started_at,
                written: measured.map(|measured| measured.usage),
                ..subject
            };
            container_metrics.push(vaina_proto::cri::ContainerMetrics {
                container_id: container.id.to_string(),
                metrics: metrics::of(&subject, &sample, &[], now()),
            });
            samples.push(sample);
        }
        let sample = self.pod(sandbox, pods, Depth::All, samples.iter());
        let subject = Subject {
            id: &group.to_string_lossy(),
            name: sandbox.id.as_str(),
            started_at: sandbox.created_at,
            ..subject
        };
        PodSandboxMetrics {
            pod_sandbox_id: sandbox.id.to_string(),
            metrics: metrics::of(&subject, &sample, &interfaces.unwrap_or_default(), now()),
            container_metrics,
        }
    }
}

/// The pod's interfaces; none of one in the node's network, whose traffic is not its own.
fn interfaces(sandbox: &Sandbox, pid: u32) -> Option<Vec<parse::Interface>> {
    if sandbox.is_host_network() {
        return None;
    }
    read::interfaces(pid)
}
