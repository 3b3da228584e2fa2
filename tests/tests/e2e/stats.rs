//! Statistics and metrics: numbers that a known load makes, filters, and pods that do not answer.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use tonic::Code;
use vaina_proto::cri::{
    ContainerStats, ContainerStatsFilter, ContainerStatsRequest, ListContainerStatsRequest,
    ListMetricDescriptorsRequest, ListPodSandboxMetricsRequest, ListPodSandboxStatsRequest, Metric, NetworkUsage,
    PodSandboxStats, PodSandboxStatsFilter, PodSandboxStatsRequest, UInt64Value,
};
use vaina_tests::{
    build::Container,
    node::{IMAGE, Node, e2e_cri},
    wait,
};

use crate::assert_failed;

fn number(value: Option<UInt64Value>) -> Result<u64> {
    Ok(value.context("the value is there")?.value)
}

async fn container_stats(node: &Node, id: &str) -> Result<ContainerStats> {
    let request = ContainerStatsRequest { container_id: id.to_owned() };
    node.cri().container_stats(request).await?.stats.context("stats")
}

async fn pod_stats(node: &Node, id: &str) -> Result<PodSandboxStats> {
    let request = PodSandboxStatsRequest { pod_sandbox_id: id.to_owned() };
    node.cri().pod_sandbox_stats(request).await?.stats.context("stats")
}

async fn network(node: &Node, id: &str) -> Result<Option<NetworkUsage>> {
    Ok(pod_stats(node, id).await?.linux.context("linux")?.network)
}

async fn listed(node: &Node, filter: ContainerStatsFilter) -> Result<Vec<String>> {
    let request = ListContainerStatsRequest { filter: Some(filter) };
    let stats = node.cri().list_container_stats(request).await?.stats;
    let mut ids: Vec<String> =
        stats.into_iter().filter_map(|stats| stats.attributes).map(|attributes| attributes.id).collect();
    ids.sort();
    Ok(ids)
}

// proves: ContainerStats, ContainerStatsRequest.container_id, ContainerStatsResponse.stats
// proves: ContainerStats.{attributes, cpu, memory, writable_layer}
// proves: ContainerAttributes.{id, metadata, labels, annotations}
// proves: CpuUsage.{timestamp, usage_core_nano_seconds, usage_nano_cores}, UInt64Value.value
// proves: MemoryUsage.{timestamp, working_set_bytes, available_bytes, usage_bytes, rss_bytes, page_faults}
// proves: PodSandboxStats, PodSandboxStatsRequest.pod_sandbox_id, PodSandboxStatsResponse.stats
// proves: PodSandboxStats.{attributes, linux}, PodSandboxAttributes.metadata
// proves: LinuxPodSandboxStats.{cpu, memory, process, containers}, ProcessUsage.process_count
#[test]
fn a_containers_load_shows() {
    e2e_cri(async |node| {
        let pod = node.pod("load");
        let sandbox = node.run_pod(&pod).await?;
        let config = Container::new("c", IMAGE)
            .sh("dd if=/dev/zero of=/written bs=1M count=3 2>/dev/null; probe allocate 40 & while :; do :; done")
            .memory_limit(128 << 20)
            .label("app", "web")
            .annotation("note", "x");
        let id = node.start(&sandbox, &pod, &config).await?;
        node.wait_log(&id, "allocated 40").await?;

        let stats = wait::until("a whole second is spent", async || {
            let stats = container_stats(node, &id).await?;
            // Before it is known it need not be there.
            let spent = stats.cpu.context("cpu")?.usage_core_nano_seconds.map_or(0, |spent| spent.value);
            Ok((spent > 1_000_000_000).then_some(stats))
        })
        .await?;
        let attributes = stats.attributes.context("attributes")?;
        assert_eq!((&attributes.id, attributes.metadata), (&id, config.config.metadata.clone()));
        assert_eq!((attributes.labels, attributes.annotations), (config.config.labels, config.config.annotations));
        let cpu = stats.cpu.context("cpu")?;
        assert!(cpu.timestamp > 0);
        assert!(number(cpu.usage_nano_cores)? > 0, "{cpu:?}");
        let memory = stats.memory.context("memory")?;
        assert!(memory.timestamp > 0);
        assert!(number(memory.rss_bytes)? >= 40 << 20, "{memory:?}");
        assert!(number(memory.usage_bytes)? >= number(memory.working_set_bytes)?, "{memory:?}");
        assert!(number(memory.working_set_bytes)? >= 40 << 20, "{memory:?}");
        assert_eq!(
            number(memory.available_bytes)?,
            (128 << 20) - number(memory.working_set_bytes)?,
            "what the limit leaves"
        );
        assert!(number(memory.page_faults)? > 1000, "{memory:?}");
        let layer = stats.writable_layer.context("writable layer")?;
        assert!(number(layer.used_bytes)? >= 3 << 20, "{layer:?}");
        assert!(number(layer.inodes_used)? >= 1, "{layer:?}");
        ensure!(fs::metadata(layer.fs_id.context("file system")?.mountpoint)?.is_dir());

        let pod_stats = pod_stats(node, &sandbox).await?;
        assert_eq!(pod_stats.attributes.context("attributes")?.metadata, pod.config.metadata);
        let linux = pod_stats.linux.context("linux")?;
        assert!(number(linux.cpu.context("cpu")?.usage_core_nano_seconds)? > 1_000_000_000);
        assert!(number(linux.memory.context("memory")?.working_set_bytes)? >= 40 << 20);
        let processes = number(linux.process.context("process")?.process_count)?;
        assert_eq!(processes, 2, "a shell and its child");
        assert_eq!(linux.containers.len(), 1);
        assert_eq!(linux.containers[0].attributes.as_ref().context("attributes")?.id, id);

        node.cri().stop_container(&id, 0).await?;
        let ended = container_stats(node, &id).await?;
        assert!(ended.cpu.is_none() && ended.memory.is_none(), "{ended:?}");
        assert!(number(ended.writable_layer.context("writable layer")?.used_bytes)? >= 3 << 20);
        node.remove_pod(&sandbox).await?;
        assert_failed(
            node.cri().container_stats(ContainerStatsRequest { container_id: id }).await,
            Code::NotFound,
            &["container"],
        );
        let request = PodSandboxStatsRequest { pod_sandbox_id: sandbox };
        assert_failed(node.cri().pod_sandbox_stats(request).await, Code::NotFound, &["pod sandbox"]);
        Ok(())
    });
}

// proves: LinuxPodSandboxStats.network, NetworkUsage.default_interface
// proves: NetworkInterfaceUsage.{name, rx_bytes, tx_bytes}
#[test]
fn a_pods_traffic_shows_and_the_nodes_does_not() {
    e2e_cri(async |node| {
        let pod = node.pod("traffic");
        let sandbox = node.run_pod(&pod).await?;
        let config = Container::new("c", IMAGE).sh("nc -l -p 9000 > /dev/null; echo received; sleep 1000");
        let id = node.start(&sandbox, &pod, &config).await?;
        let address = node.address(&sandbox).await?;
        let before = network(node, &sandbox).await?.context("network")?.default_interface.context("interface")?;
        assert_eq!(before.name, "eth0");
        wait::until("the container listens", async || {
            let Ok(mut stream) = tokio::net::TcpStream::connect((address.as_str(), 9000)).await else {
                return Ok(None);
            };
            tokio::io::AsyncWriteExt::write_all(&mut stream, &vec![0; 200_000]).await?;
            Ok(Some(()))
        })
        .await?;
        node.wait_log(&id, "received").await?;
        let after = network(node, &sandbox).await?.context("network")?.default_interface.context("interface")?;
        assert!(number(after.rx_bytes)? >= number(before.rx_bytes)? + 200_000, "{before:?} {after:?}");
        assert!(number(after.tx_bytes)? > number(before.tx_bytes)?, "{before:?} {after:?}");

        let host = node.pod("host").host_network();
        let host_sandbox = node.run_pod(&host).await?;
        assert_eq!(network(node, &host_sandbox).await?, None, "the node's traffic is not the pod's");
        node.remove_pod(&host_sandbox).await?;
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

// proves: ListContainerStats, ListContainerStatsRequest.filter, ListContainerStatsResponse.stats
// proves: ContainerStatsFilter.{id, pod_sandbox_id, label_selector}, ListPodSandboxStats
// proves: ListPodSandboxStatsRequest.filter, ListPodSandboxStatsResponse.stats
// proves: PodSandboxStatsFilter.{id, label_selector}, PodSandboxAttributes.id
#[test]
fn conditions_of_a_filter_are_met_together() {
    e2e_cri(async |node| {
        let mut ids = Vec::new();
        let mut sandboxes = Vec::new();
        for name in ["one", "two"] {
            let pod = node.pod(name).label("pod", name);
            let sandbox = node.run_pod(&pod).await?;
            for app in ["web", "db"] {
                let config = Container::new(app, IMAGE).sh("sleep 1000").label("app", app).label("tier", "x");
                ids.push(node.start(&sandbox, &pod, &config).await?);
            }
            sandboxes.push(sandbox);
        }
        let filter = |id: &str, sandbox: &str, labels: &[(&str, &str)]| ContainerStatsFilter {
            id: id.to_owned(),
            pod_sandbox_id: sandbox.to_owned(),
            label_selector: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        };
        let mut all = ids.clone();
        all.sort();
        assert_eq!(listed(node, filter("", "", &[])).await?, all);
        assert_eq!(listed(node, filter(&ids[2], "", &[])).await?, [ids[2].as_str()]);
        assert_eq!(listed(node, filter(&ids[2][..20], &sandboxes[1], &[])).await?, [ids[2].as_str()]);
        assert!(listed(node, filter(&ids[2], &sandboxes[0], &[])).await?.is_empty());
        let both = [("app", "db"), ("tier", "x")];
        assert_eq!(listed(node, filter("", &sandboxes[0], &both)).await?, [ids[1].as_str()]);
        assert!(listed(node, filter("", "", &[("app", "none")])).await?.is_empty());
        let request = ListContainerStatsRequest { filter: None };
        assert_eq!(node.cri().list_container_stats(request).await?.stats.len(), 4);

        let pods = async |filter: Option<PodSandboxStatsFilter>| -> Result<Vec<String>> {
            let stats = node.cri().list_pod_sandbox_stats(ListPodSandboxStatsRequest { filter }).await?.stats;
            Ok(stats.into_iter().filter_map(|stats| stats.attributes).map(|attributes| attributes.id).collect())
        };
        assert_eq!(pods(None).await?.len(), 2);
        let labels = std::collections::BTreeMap::from([("pod".to_owned(), "two".to_owned())]);
        let by_label = PodSandboxStatsFilter { label_selector: labels.clone(), ..Default::default() };
        assert_eq!(pods(Some(by_label)).await?, [sandboxes[1].as_str()]);
        let other = PodSandboxStatsFilter { id: sandboxes[0].clone(), label_selector: labels };
        assert!(pods(Some(other)).await?.is_empty());
        for sandbox in sandboxes {
            node.remove_pod(&sandbox).await?;
        }
        Ok(())
    });
}

/// A shim that hangs costs nobody an answer, not even its own pod.
#[test]
fn a_shim_that_hangs_keeps_nobody_waiting() {
    e2e_cri(async |node| {
        let pod = node.pod("hung");
        let sandbox = node.run_pod(&pod).await?;
        let id = node.start(&sandbox, &pod, &Container::new("c", IMAGE).sh("sleep 1000")).await?;
        let shim = nix::unistd::Pid::from_raw(i32::try_from(node.cri().sandbox_pid(&sandbox).await?)?);
        nix::sys::signal::kill(shim, nix::sys::signal::Signal::SIGSTOP)?;
        let look = async {
            let stats = container_stats(node, &id).await?;
            pod_stats(node, &sandbox).await?;
            node.cri().list_pod_sandbox_metrics(ListPodSandboxMetricsRequest {}).await?;
            node.cri().container(&id).await?;
            anyhow::Ok(stats)
        };
        let looked = tokio::time::timeout(Duration::from_secs(20), look).await;
        nix::sys::signal::kill(shim, nix::sys::signal::Signal::SIGCONT)?;
        assert!(looked.context("statistics wait for a shim")??.memory.is_some());
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

/// Pods that a client put into one control group are told apart by their containers.
#[test]
fn a_group_that_pods_share_is_nobodys() {
    e2e_cri(async |node| {
        let mut first = node.pod("first");
        let parent = first.linux().cgroup_parent.clone();
        first.linux().cgroup_parent.clone_from(&parent);
        let mut second = node.pod("second");
        second.linux().cgroup_parent = parent;
        let (one, two) = (node.run_pod(&first).await?, node.run_pod(&second).await?);
        let allocate = Container::new("c", IMAGE).command(&["/bin/probe", "allocate", "50"]);
        let id = node.start(&one, &first, &allocate).await?;
        node.wait_log(&id, "allocated").await?;
        node.start(&two, &second, &Container::new("c", IMAGE).sh("sleep 1000")).await?;
        let memory = async |sandbox: &str| -> Result<u64> {
            let linux = pod_stats(node, sandbox).await?.linux.context("linux")?;
            number(linux.memory.context("memory")?.rss_bytes)
        };
        assert!(memory(&one).await? >= 50 << 20);
        assert!(memory(&two).await? < 50 << 20);
        for sandbox in [one, two] {
            node.remove_pod(&sandbox).await?;
        }
        Ok(())
    });
}

// proves: ListMetricDescriptors, ListMetricDescriptorsResponse.descriptors, MetricDescriptor.{name, label_keys}
// proves: ListPodSandboxMetrics, ListPodSandboxMetricsResponse.pod_metrics
// proves: PodSandboxMetrics.{pod_sandbox_id, metrics, container_metrics}, ContainerMetrics.{container_id, metrics}
// proves: Metric.{name, label_values, value}
#[test]
fn metrics_have_cadvisors_names_and_labels() {
    e2e_cri(async |node| {
        let pod = node.pod("metrics");
        let sandbox = node.run_pod(&pod).await?;
        let config = Container::new("c", IMAGE).command(&["/bin/probe", "allocate", "20"]).memory_limit(64 << 20);
        let id = node.start(&sandbox, &pod, &config).await?;
        node.wait_log(&id, "allocated").await?;
        let descriptors = node.cri().list_metric_descriptors(ListMetricDescriptorsRequest {}).await?.descriptors;
        let answer = node.cri().list_pod_sandbox_metrics(ListPodSandboxMetricsRequest {}).await?.pod_metrics;
        assert_eq!(answer.len(), 1);
        assert_eq!(answer[0].pod_sandbox_id, sandbox);
        assert_eq!(answer[0].container_metrics.len(), 1);
        assert_eq!(answer[0].container_metrics[0].container_id, id);
        let of_container = &answer[0].container_metrics[0].metrics;
        let label = |metric: &Metric, key: &str| {
            let descriptor = descriptors.iter().find(|descriptor| descriptor.name == metric.name);
            let place = descriptor.and_then(|descriptor| descriptor.label_keys.iter().position(|label| label == key));
            place.and_then(|place| metric.label_values.get(place)).cloned()
        };
        for metric in of_container.iter().chain(&answer[0].metrics) {
            assert_eq!(label(metric, "namespace").as_deref(), Some("e2e"), "{metric:?}");
            assert_eq!(label(metric, "pod").as_deref(), Some("metrics"), "{metric:?}");
        }
        let find = |metrics: &[Metric], name: &str| -> Result<Metric> {
            metrics.iter().find(|metric| metric.name == name).cloned().with_context(|| name.to_owned())
        };
        let rss = find(of_container, "container_memory_rss")?;
        assert!(number(rss.value)? >= 20 << 20, "{rss:?}");
        assert_eq!(label(&rss, "container").as_deref(), Some("c"));
        assert_eq!(label(&rss, "image").as_deref(), Some(IMAGE));
        assert_eq!(label(&rss, "name").as_deref(), Some(id.as_str()));
        assert!(label(&rss, "id").context("id")?.ends_with(&format!("metrics/{id}")));
        assert_eq!(number(find(of_container, "container_spec_memory_limit_bytes")?.value)?, 64 << 20);
        assert_eq!(number(find(of_container, "container_processes")?.value)?, 1);
        assert!(number(find(of_container, "container_file_descriptors")?.value)? >= 3);
        assert!(number(find(of_container, "container_start_time_seconds")?.value)? > 1_000_000_000);
        for name in ["container_cpu_usage_seconds_total", "container_memory_failures_total", "container_threads"] {
            find(of_container, name)?;
        }
        let received = find(&answer[0].metrics, "container_network_receive_bytes_total")?;
        assert_eq!(label(&received, "interface").as_deref(), Some("eth0"));
        assert_eq!(label(&received, "container").as_deref(), Some(""), "the pod's, not a container's");
        // The kernel adds a child's memory to its parent's some time later.
        wait::until("the pod's memory is counted", async || {
            let answer = node.cri().list_pod_sandbox_metrics(ListPodSandboxMetricsRequest {}).await?.pod_metrics;
            Ok((number(find(&answer[0].metrics, "container_memory_rss")?.value)? >= 20 << 20).then_some(()))
        })
        .await?;
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}
