//! Many idle pods with a network of their own: memory, idle CPU, every List, Status and Stats call, and a restart of the
//! daemon under them. Each endpoint is alone meanwhile, with a fresh daemon where it is ours to start: two daemons of one
//! program share its text, and would halve each other's PSS.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use vaina_proto::cri;

use super::{
    Bench,
    endpoint::{Endpoint, Kind, Running, call, timed},
    machine::{self, Processes},
    sheet::Better::Lower,
};

/// The kind of all idle pods.
const KIND: Kind = Kind { network: true, seccomp: false };

/// A call that takes seconds is not made as often as one that takes a millisecond: no more than these after this time.
const LEAST_READS: usize = 3;
const READS_LIMIT: Duration = Duration::from_secs(5);

/// All of it.
pub async fn pods(bench: &mut Bench) -> Result<()> {
    let (half, all) = (bench.scale.idle / 2, bench.scale.idle);
    let mut names = Vec::new();
    let mut row = |name: String, unit| {
        bench.sheet.row(&name, unit, Lower);
        names.push(name);
    };
    row(format!("memavailable_pod_{half}"), "kB");
    row("memavailable_pod".to_owned(), "kB");
    row(format!("monitor_pss_pod_{half}"), "kB");
    row("monitor_pss_pod".to_owned(), "kB");
    row("shim_pss_pod".to_owned(), "kB");
    row("pause_pss_pod".to_owned(), "kB");
    row("daemon_pss_0".to_owned(), "kB");
    row(format!("daemon_pss_{half}"), "kB");
    row(format!("daemon_pss_{all}"), "kB");
    row(format!("idle_cpu_{all}"), "ms/s");
    for read in READS {
        row(format!("{}_{all}", read.name()), "ms");
    }
    row(format!("restart_{all}"), "ms");
    bench
        .turns(&names, bench.scale.idle_rounds, async |bench, index, _| {
            for other in &mut bench.endpoints {
                other.rest()?;
            }
            bench.endpoints[index].ready().await?;
            bench.settle().await;
            let result = measure(bench, index, half, all).await;
            if result.is_err() {
                bench.endpoints[index].sweep().await.context("remove the idle pods")?;
            }
            result
        })
        .await?;
    for endpoint in &mut bench.endpoints {
        endpoint.ready().await?;
    }
    Ok(())
}

async fn measure(bench: &mut Bench, index: usize, half: usize, all: usize) -> Result<()> {
    let name = bench.endpoints[index].name.clone();
    let daemon = bench.endpoints[index].daemon_pid()?;
    let before: BTreeSet<u32> = machine::processes()?.into_keys().collect();
    let free = free_memory().await?;
    bench.sheet.add("daemon_pss_0", &name, machine::pss(daemon)?);

    let mut pods = Vec::new();
    for (count, suffix, total_suffix) in
        [(half, format!("_{half}"), format!("_{half}")), (all, String::new(), format!("_{all}"))]
    {
        raise(&mut bench.endpoints[index], &mut pods, count).await?;
        bench.settle().await;
        let memory = Memory::of(daemon, &before)?;
        let pods = count as f64;
        bench.sheet.add(&format!("memavailable_pod{suffix}"), &name, (free - free_memory().await?) / pods);
        bench.sheet.add(&format!("monitor_pss_pod{suffix}"), &name, (memory.shims + memory.others) / pods);
        bench.sheet.add(&format!("daemon_pss{total_suffix}"), &name, memory.daemon);
        if count == all {
            bench.sheet.add("shim_pss_pod", &name, memory.shims / pods);
            bench.sheet.add("pause_pss_pod", &name, memory.others / pods);
        }
    }

    let watched: Vec<u32> = monitors(daemon, &before)?.into_keys().chain([daemon]).collect();
    let (start, used) = (Instant::now(), scheduled(&watched));
    tokio::time::sleep(bench.scale.idle_time).await;
    let used = scheduled_since(&watched, &used);
    bench.sheet.add(&format!("idle_cpu_{all}"), &name, used * 1e3 / start.elapsed().as_secs_f64());

    for read in READS {
        let row = format!("{}_{all}", read.name());
        let begun = Instant::now();
        for number in 0..bench.scale.reads {
            if number >= LEAST_READS && begun.elapsed() > READS_LIMIT {
                break;
            }
            match read.time(&bench.endpoints[index], &pods[0], all).await {
                Ok(time) => bench.sheet.add(&row, &name, time),
                Err(error) => {
                    bench.sheet.refuse(&row, &name, &format!("{error:#}"));
                    break;
                }
            }
        }
    }

    let row = format!("restart_{all}");
    for _ in 0..bench.scale.restarts {
        match restart(&mut bench.endpoints[index], all).await? {
            Some(time) => bench.sheet.add(&row, &name, time),
            None => bench.sheet.refuse(&row, &name, "the benchmark did not start this daemon, and won't end it"),
        }
    }

    let endpoint = &bench.endpoints[index];
    stream::iter(&pods).map(|pod| endpoint.down(pod)).buffer_unordered(10).try_collect::<Vec<_>>().await?;
    Ok(())
}

/// Brings pods up until there are so many.
async fn raise(endpoint: &mut Endpoint, pods: &mut Vec<Running>, count: usize) -> Result<()> {
    let numbers: Vec<usize> = (pods.len()..count).map(|_| endpoint.next_number()).collect();
    let endpoint = &*endpoint;
    let new: Vec<_> =
        stream::iter(numbers).map(|number| endpoint.up(KIND, number)).buffer_unordered(4).try_collect().await?;
    pods.extend(new.into_iter().map(|(running, _)| running));
    Ok(())
}

/// `MemAvailable`, as the mean of some looks: the kernel's counters are per CPU and folded now and then.
async fn free_memory() -> Result<f64> {
    let mut sum = 0.0;
    for _ in 0..5 {
        sum += machine::available()?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(sum / 5.0)
}

/// PSS in kB.
struct Memory {
    daemon: f64,
    shims: f64,
    others: f64,
}

impl Memory {
    fn of(daemon: u32, before: &BTreeSet<u32>) -> Result<Self> {
        let mut memory = Self { daemon: machine::pss(daemon)?, shims: 0.0, others: 0.0 };
        for (pid, command) in monitors(daemon, before)? {
            let pss = machine::pss(pid).with_context(|| format!("PSS of {command:?}"))?;
            let program = command[0].rsplit('/').next().unwrap_or_default();
            *if program.contains("shim") { &mut memory.shims } else { &mut memory.others } += pss;
        }
        Ok(memory)
    }
}

/// What came with the pods and is not their workload: shims, pauses, whatever an endpoint needs.
fn monitors(daemon: u32, before: &BTreeSet<u32>) -> Result<Processes> {
    let mut found = machine::processes()?;
    found.retain(|pid, command| !before.contains(pid) && *pid != daemon && !Endpoint::is_workload(command));
    Ok(found)
}

/// Nanoseconds that each thread of the processes was on a CPU, by the scheduler's own clock, which the shortest wake-up
/// moves.
fn scheduled(pids: &[u32]) -> BTreeMap<PathBuf, f64> {
    let tasks =
        pids.iter().flat_map(|pid| std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten());
    let time = |task: &Path| -> Option<f64> {
        std::fs::read_to_string(task.join("schedstat")).ok()?.split(' ').next()?.parse().ok()
    };
    tasks.filter_map(|task| time(&task.path()).map(|time| (task.path(), time))).collect()
}

/// Seconds of CPU since then. A thread that ended takes its own away with it, and not that of others.
fn scheduled_since(pids: &[u32], before: &BTreeMap<PathBuf, f64>) -> f64 {
    let used = scheduled(pids).into_iter().map(|(task, time)| time - before.get(&task).unwrap_or(&0.0));
    used.sum::<f64>() / 1e9
}

/// Milliseconds from the start of a daemon until it tells of all pods as ready and running; `None` if it is not ours.
async fn restart(endpoint: &mut Endpoint, all: usize) -> Result<Option<f64>> {
    if endpoint.daemon.is_none() {
        return Ok(None);
    }
    endpoint.rest()?;
    let start = Instant::now();
    endpoint.ready().await?;
    loop {
        let cri = endpoint.cri()?;
        let pods = call(cri.list_pod_sandbox(cri::ListPodSandboxRequest::default())).await?.items;
        let containers = call(cri.list_containers(cri::ListContainersRequest::default())).await?.containers;
        let ready = pods.iter().filter(|pod| pod.state() == cri::PodSandboxState::SandboxReady).count();
        let running = containers.iter().filter(|one| one.state() == cri::ContainerState::ContainerRunning).count();
        if ready >= all && running >= all {
            return Ok(Some(start.elapsed().as_secs_f64() * 1e3));
        }
        if start.elapsed() > Duration::from_secs(60) {
            bail!("after the restart {ready} pods are ready and {running} containers running, of {all}");
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// The calls that only read.
#[derive(Debug, Clone, Copy)]
enum Read {
    Version,
    Status,
    RuntimeConfig,
    ListPodSandbox,
    PodSandboxStatus,
    ListContainers,
    ContainerStatus,
    ListContainerStats,
    ContainerStats,
    ListPodSandboxStats,
    PodSandboxStats,
    ListMetricDescriptors,
    ListPodSandboxMetrics,
    ListImages,
    ImageStatus,
    ImageFsInfo,
}

const READS: [Read; 16] = [
    Read::Version,
    Read::Status,
    Read::RuntimeConfig,
    Read::ListPodSandbox,
    Read::PodSandboxStatus,
    Read::ListContainers,
    Read::ContainerStatus,
    Read::ListContainerStats,
    Read::ContainerStats,
    Read::ListPodSandboxStats,
    Read::PodSandboxStats,
    Read::ListMetricDescriptors,
    Read::ListPodSandboxMetrics,
    Read::ListImages,
    Read::ImageStatus,
    Read::ImageFsInfo,
];

impl Read {
    const fn name(self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::Status => "status",
            Self::RuntimeConfig => "runtime_config",
            Self::ListPodSandbox => "list_pods",
            Self::PodSandboxStatus => "pod_status",
            Self::ListContainers => "list_containers",
            Self::ContainerStatus => "container_status",
            Self::ListContainerStats => "list_container_stats",
            Self::ContainerStats => "container_stats",
            Self::ListPodSandboxStats => "list_pod_stats",
            Self::PodSandboxStats => "pod_stats",
            Self::ListMetricDescriptors => "list_metric_descriptors",
            Self::ListPodSandboxMetrics => "list_pod_metrics",
            Self::ListImages => "list_images",
            Self::ImageStatus => "image_status",
            Self::ImageFsInfo => "image_fs_info",
        }
    }

    /// Milliseconds of one call. An answer that tells of less than is there is none.
    async fn time(self, endpoint: &Endpoint, pod: &Running, all: usize) -> Result<f64> {
        let cri = endpoint.cri()?;
        let (sandbox, container) = (pod.sandbox.clone(), pod.container.clone());
        let (count, wanted, time) = match self {
            Self::Version => (1, 1, timed(cri.version(cri::VersionRequest::default())).await?.1),
            Self::Status => (1, 1, timed(cri.status(cri::StatusRequest::default())).await?.1),
            Self::RuntimeConfig => (1, 1, timed(cri.runtime_config(cri::RuntimeConfigRequest::default())).await?.1),
            Self::ListPodSandbox => {
                let (answer, time) = timed(cri.list_pod_sandbox(cri::ListPodSandboxRequest::default())).await?;
                (answer.items.len(), all, time)
            }
            Self::PodSandboxStatus => (1, 1, timed(cri.sandbox(&sandbox)).await?.1),
            Self::ListContainers => {
                let (answer, time) = timed(cri.list_containers(cri::ListContainersRequest::default())).await?;
                (answer.containers.len(), all, time)
            }
            Self::ContainerStatus => (1, 1, timed(cri.container(&container)).await?.1),
            Self::ListContainerStats => {
                let (answer, time) = timed(cri.list_container_stats(cri::ListContainerStatsRequest::default())).await?;
                (answer.stats.iter().filter(|stats| stats.memory.is_some()).count(), all, time)
            }
            Self::ContainerStats => {
                let request = cri::ContainerStatsRequest { container_id: container };
                let (answer, time) = timed(cri.container_stats(request)).await?;
                (usize::from(answer.stats.is_some_and(|stats| stats.memory.is_some())), 1, time)
            }
            Self::ListPodSandboxStats => {
                let request = cri::ListPodSandboxStatsRequest::default();
                let (answer, time) = timed(cri.list_pod_sandbox_stats(request)).await?;
                (answer.stats.iter().filter(|stats| stats.linux.is_some()).count(), all, time)
            }
            Self::PodSandboxStats => {
                let request = cri::PodSandboxStatsRequest { pod_sandbox_id: sandbox };
                let (answer, time) = timed(cri.pod_sandbox_stats(request)).await?;
                (usize::from(answer.stats.is_some_and(|stats| stats.linux.is_some())), 1, time)
            }
            Self::ListMetricDescriptors => {
                let request = cri::ListMetricDescriptorsRequest::default();
                let (answer, time) = timed(cri.list_metric_descriptors(request)).await?;
                (answer.descriptors.len(), 1, time)
            }
            Self::ListPodSandboxMetrics => {
                let request = cri::ListPodSandboxMetricsRequest::default();
                let (answer, time) = timed(cri.list_pod_sandbox_metrics(request)).await?;
                (answer.pod_metrics.iter().filter(|pod| !pod.container_metrics.is_empty()).count(), all, time)
            }
            Self::ListImages => {
                let (answer, time) = timed(cri.list_images(cri::ListImagesRequest::default())).await?;
                (answer.images.len(), 1, time)
            }
            Self::ImageStatus => {
                let request =
                    cri::ImageStatusRequest { image: Some(crate::client::spec(&endpoint.image)), verbose: false };
                let (answer, time) = timed(cri.image_status(request)).await?;
                (usize::from(answer.image.is_some()), 1, time)
            }
            Self::ImageFsInfo => {
                let (answer, time) = timed(cri.image_fs_info(cri::ImageFsInfoRequest::default())).await?;
                (answer.image_filesystems.len(), 1, time)
            }
        };
        ensure!(count >= wanted, "the answer tells of {count}, and there are {wanted}");
        Ok(time)
    }
}
