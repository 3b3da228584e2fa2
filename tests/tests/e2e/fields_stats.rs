//! Fields of statistics and metrics that no load makes.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use vaina_proto::cri::{
    ListMetricDescriptorsRequest, ListPodSandboxMetricsRequest, ListPodSandboxStatsRequest, MetricType,
    PodSandboxStatsFilter, StreamPodSandboxStatsRequest,
};
use vaina_tests::{
    build::Container,
    node::{IMAGE, e2e},
};

// proves: StreamPodSandboxStatsRequest.filter, StreamPodSandboxStatsResponse.pod_sandbox_stats
// proves: PodSandboxAttributes.{id, metadata, labels, annotations}
// proves: ContainerStats.{swap, io}, LinuxPodSandboxStats.io, NetworkUsage.timestamp, ProcessUsage.{timestamp, process_count}
#[test]
fn statistics_say_whose_and_of_when_they_are() {
    e2e(async |node| {
        let pods = ["one", "two"].map(|name| node.pod(name).label("pod", name).annotation("note", name));
        let is_v2 = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let mut ids = Vec::new();
        for pod in &pods {
            let id = node.run_pod(pod).await?;
            node.start(&id, pod, &Container::new("c", IMAGE).command(&["/bin/sleep", "1000"])).await?;
            ids.push(id);
        }
        let label_selector = BTreeMap::from([("pod".to_owned(), "two".to_owned())]);
        let filter = Some(PodSandboxStatsFilter { label_selector, ..Default::default() });
        let request = StreamPodSandboxStatsRequest { filter: filter.clone() };
        let mut stream = node.cri().stream_pod_sandbox_stats(request).await?;
        let mut streamed = Vec::new();
        while let Some(message) = stream.message().await? {
            streamed.extend(message.pod_sandbox_stats);
        }
        let listed = node.cri().list_pod_sandbox_stats(ListPodSandboxStatsRequest { filter }).await?.stats;
        for stats in [&streamed, &listed] {
            assert_eq!(stats.len(), 1);
            let attributes = stats[0].attributes.as_ref().context("attributes")?;
            assert_eq!((&attributes.id, &attributes.metadata), (&ids[1], &pods[1].config.metadata));
            assert_eq!(attributes.labels, pods[1].config.labels);
            assert_eq!(attributes.annotations, pods[1].config.annotations);
            let created = node.cri().sandbox(&ids[1]).await?.created_at;
            let linux = stats[0].linux.as_ref().context("linux")?;
            ensure!(linux.network.as_ref().context("network")?.timestamp > created, "{linux:?}");
            let process = linux.process.context("process")?;
            ensure!(process.timestamp > created, "{process:?}");
            assert_eq!(process.process_count.context("count")?.value, 1);
            ensure!(linux.containers[0].swap.is_some(), "{linux:?}");
            // Groups of v1 have no pressure.
            if is_v2 {
                for io in [linux.io, linux.containers[0].io] {
                    let io = io.context("io")?;
                    ensure!(io.timestamp > created && io.psi.is_some(), "{io:?}");
                }
            }
        }
        for id in ids {
            node.remove_pod(&id).await?;
        }
        Ok(())
    });
}

// proves: MetricDescriptor.help, Metric.{timestamp, metric_type}, MetricType.{COUNTER, GAUGE}
#[test]
fn metrics_say_what_they_count() {
    e2e(async |node| {
        let pod = node.pod("metrics");
        let sandbox = node.run_pod(&pod).await?;
        node.start(&sandbox, &pod, &Container::new("c", IMAGE).sh("sleep 1000")).await?;
        let descriptors = node.cri().list_metric_descriptors(ListMetricDescriptorsRequest {}).await?.descriptors;
        for descriptor in &descriptors {
            ensure!(descriptor.help.ends_with('.') && descriptor.help.len() > 10, "{descriptor:?}");
        }
        let answer = node.cri().list_pod_sandbox_metrics(ListPodSandboxMetricsRequest {}).await?.pod_metrics;
        let metrics = &answer[0].container_metrics[0].metrics;
        for (name, kind) in [
            ("container_cpu_usage_seconds_total", MetricType::Counter),
            ("container_memory_failures_total", MetricType::Counter),
            ("container_memory_rss", MetricType::Gauge),
            ("container_processes", MetricType::Gauge),
        ] {
            let metric = metrics.iter().find(|metric| metric.name == name).with_context(|| name.to_owned())?;
            assert_eq!(metric.metric_type(), kind, "{name}");
            // The CRI's word for "made for this answer".
            assert_eq!(metric.timestamp, 0, "{name}");
        }
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}
