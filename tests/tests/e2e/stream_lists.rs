//! Lists as streams: what the plain calls answer, in messages that every client takes.

use anyhow::{Result, ensure};
use prost::Message;
use tonic::{Status, Streaming};
use vaina_proto::cri;
use vaina_tests::{
    build::Container,
    node::{IMAGE, e2e_cri},
};

/// Far below what a client takes.
const LIMIT: usize = 2 << 20;

async fn gather<M: Message, I>(
    stream: Result<Streaming<M>, Status>,
    items: impl Fn(M) -> Vec<I>,
) -> Result<(Vec<I>, usize)> {
    let mut stream = stream?;
    let (mut all, mut messages) = (Vec::new(), 0);
    while let Some(message) = stream.message().await? {
        ensure!(message.encoded_len() < LIMIT, "a message of {} bytes", message.encoded_len());
        messages += 1;
        all.extend(items(message));
    }
    Ok((all, messages))
}

// proves: StreamPodSandboxes, StreamPodSandboxesRequest.filter, StreamPodSandboxesResponse.pod_sandboxes
// proves: StreamContainers, StreamContainersRequest.filter, StreamContainersResponse.containers, StreamContainerStats
// proves: StreamContainerStatsRequest.filter, StreamContainerStatsResponse.container_stats, StreamPodSandboxStats
// proves: StreamPodSandboxStatsResponse.pod_sandbox_stats, StreamPodSandboxMetrics
// proves: StreamPodSandboxMetricsResponse.pod_sandbox_metrics, StreamImages, StreamImagesRequest.filter
// proves: StreamImagesResponse.images
#[test]
fn streams_answer_what_lists_answer() {
    e2e_cri(async |node| {
        let cri = node.cri();
        let (none, _) =
            gather(cri.stream_containers(cri::StreamContainersRequest::default()).await, |message| message.containers)
                .await?;
        assert!(none.is_empty());
        let mut sandboxes = Vec::new();
        for name in ["one", "two", "three"] {
            let pod = node.pod(name).label("name", name);
            let sandbox = node.run_pod(&pod).await?;
            node.start(&sandbox, &pod, &Container::new("c", IMAGE).sh("sleep 1000").label("pod", name)).await?;
            sandboxes.push(sandbox);
        }
        let (pods, _) = gather(cri.stream_pod_sandboxes(cri::StreamPodSandboxesRequest::default()).await, |message| {
            message.pod_sandboxes
        })
        .await?;
        assert_eq!(pods, cri.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await?.items);
        let filter = cri::PodSandboxFilter { id: sandboxes[1].clone(), ..Default::default() };
        let request = cri::StreamPodSandboxesRequest { filter: Some(filter) };
        let (one, _) = gather(cri.stream_pod_sandboxes(request).await, |message| message.pod_sandboxes).await?;
        assert_eq!(one.iter().map(|pod| &pod.id).collect::<Vec<_>>(), [&sandboxes[1]]);

        let (containers, _) =
            gather(cri.stream_containers(cri::StreamContainersRequest::default()).await, |message| message.containers)
                .await?;
        assert_eq!(containers, cri.list_containers(cri::ListContainersRequest::default()).await?.containers);
        let selector = std::collections::BTreeMap::from([("pod".to_owned(), "two".to_owned())]);
        let filter = cri::ContainerFilter { label_selector: selector.clone(), ..Default::default() };
        let request = cri::StreamContainersRequest { filter: Some(filter) };
        let (one, _) = gather(cri.stream_containers(request).await, |message| message.containers).await?;
        assert_eq!(one.iter().map(|container| &container.pod_sandbox_id).collect::<Vec<_>>(), [&sandboxes[1]]);

        let filter = cri::ContainerStatsFilter { label_selector: selector, ..Default::default() };
        let request = cri::StreamContainerStatsRequest { filter: Some(filter) };
        let (stats, _) = gather(cri.stream_container_stats(request).await, |message| message.container_stats).await?;
        assert_eq!(stats.len(), 1);
        assert!(stats[0].memory.is_some());
        let request = cri::StreamPodSandboxStatsRequest::default();
        let (stats, _) =
            gather(cri.stream_pod_sandbox_stats(request).await, |message| message.pod_sandbox_stats).await?;
        assert_eq!(stats.len(), 3);
        let request = cri::StreamPodSandboxMetricsRequest {};
        let (metrics, _) =
            gather(cri.stream_pod_sandbox_metrics(request).await, |message| message.pod_sandbox_metrics).await?;
        assert_eq!(metrics.len(), 3);
        assert!(metrics.iter().all(|pod| pod.container_metrics.len() == 1));

        let (images, _) =
            gather(cri.stream_images(cri::StreamImagesRequest::default()).await, |message| message.images).await?;
        assert_eq!(images, cri.list_images(cri::ListImagesRequest::default()).await?.images);
        assert_eq!(images.len(), 1);
        let filter = cri::ImageFilter { image: Some(vaina_tests::client::spec("vaina.test/none:1")) };
        let request = cri::StreamImagesRequest { filter: Some(filter) };
        let (images, _) = gather(cri.stream_images(request).await, |message| message.images).await?;
        assert!(images.is_empty());
        for sandbox in sandboxes {
            node.remove_pod(&sandbox).await?;
        }
        Ok(())
    });
}

/// More than fits into one message of a client's: the plain list is refused there, the stream is not.
#[test]
fn a_list_that_no_message_holds_is_streamed() {
    e2e_cri(async |node| {
        let cri = node.cri();
        let pod = node.pod("large");
        let sandbox = node.run_pod(&pod).await?;
        let large = "x".repeat(700_000);
        let mut ids = Vec::new();
        for number in 0..26 {
            let config = Container::new(&format!("c{number}"), IMAGE).sh("true").annotation("large", &large);
            ids.push(node.create(&sandbox, &pod, &config).await?);
        }
        ids.sort();
        assert!(cri.list_containers(cri::ListContainersRequest::default()).await.is_err(), "18 MB in one message");
        let (containers, messages) =
            gather(cri.stream_containers(cri::StreamContainersRequest::default()).await, |message| message.containers)
                .await?;
        assert_eq!(containers.iter().map(|container| container.id.clone()).collect::<Vec<_>>(), ids);
        assert!(messages > 16, "{messages} messages");
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}
