//! A typed CRI client over the unix socket. Each method is one RPC and answers what the RPC answers or its status, so
//! that tests and the benchmark see codes and messages as a kubelet would.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Request, Status, Streaming,
    transport::{Channel, Endpoint, Uri},
};
use vaina_proto::cri::{self, image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient};

/// What the kubelet and crictl take in one message.
const MESSAGE_LIMIT: usize = 16 << 20;

/// The two services of one endpoint.
#[derive(Debug, Clone)]
pub struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

macro_rules! unary {
    ($($(#[$doc:meta])* $service:ident.$name:ident($request:ident) -> $response:ident;)*) => {
        $($(#[$doc])*
        pub async fn $name(&self, request: cri::$request) -> Result<cri::$response, Status> {
            self.$service.clone().$name(request).await.map(tonic::Response::into_inner)
        })*
    };
}

macro_rules! streams {
    ($($(#[$doc:meta])* $service:ident.$name:ident($request:ident) -> $response:ident;)*) => {
        $($(#[$doc])*
        pub async fn $name(&self, request: cri::$request) -> Result<Streaming<cri::$response>, Status> {
            self.$service.clone().$name(request).await.map(tonic::Response::into_inner)
        })*
    };
}

impl Cri {
    /// Connects to a socket.
    pub async fn connect(socket: &Path) -> Result<Self> {
        let path = socket.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://cri.invalid")
            .connect_with_connector(connector)
            .await
            .with_context(|| format!("connect to {}", socket.display()))?;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_LIMIT),
            images: ImageServiceClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT),
        })
    }

    unary! {
        /// `Version`.
        runtime.version(VersionRequest) -> VersionResponse;
        /// `Status`.
        runtime.status(StatusRequest) -> StatusResponse;
        /// `RuntimeConfig`.
        runtime.runtime_config(RuntimeConfigRequest) -> RuntimeConfigResponse;
        /// `RunPodSandbox`.
        runtime.run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse;
        /// `PodSandboxStatus`.
        runtime.pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse;
        /// `ListPodSandbox`.
        runtime.list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse;
        /// `CreateContainer`.
        runtime.create_container(CreateContainerRequest) -> CreateContainerResponse;
        /// `ContainerStatus`.
        runtime.container_status(ContainerStatusRequest) -> ContainerStatusResponse;
        /// `ListContainers`.
        runtime.list_containers(ListContainersRequest) -> ListContainersResponse;
        /// `ExecSync`.
        runtime.exec_sync(ExecSyncRequest) -> ExecSyncResponse;
        /// `ContainerStats`.
        runtime.container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
        /// `ListContainerStats`.
        runtime.list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
        /// `PodSandboxStats`.
        runtime.pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse;
        /// `ListPodSandboxStats`.
        runtime.list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse;
        /// `ListMetricDescriptors`.
        runtime.list_metric_descriptors(ListMetricDescriptorsRequest) -> ListMetricDescriptorsResponse;
        /// `ListPodSandboxMetrics`.
        runtime.list_pod_sandbox_metrics(ListPodSandboxMetricsRequest) -> ListPodSandboxMetricsResponse;
        /// `UpdateContainerResources`.
        runtime.update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
        /// `UpdatePodSandboxResources`.
        runtime.update_pod_sandbox_resources(UpdatePodSandboxResourcesRequest) -> UpdatePodSandboxResourcesResponse;
        /// `Exec`.
        runtime.exec(ExecRequest) -> ExecResponse;
        /// `PortForward`.
        runtime.port_forward(PortForwardRequest) -> PortForwardResponse;
        /// `CheckpointContainer`.
        runtime.checkpoint_container(CheckpointContainerRequest) -> CheckpointContainerResponse;
        /// `CheckpointPod`.
        runtime.checkpoint_pod(CheckpointPodRequest) -> CheckpointPodResponse;
        /// `RestorePod`.
        runtime.restore_pod(RestorePodRequest) -> RestorePodResponse;
        /// `UpdateRuntimeConfig`.
        runtime.update_runtime_config(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse;
        /// `Attach`.
        runtime.attach(AttachRequest) -> AttachResponse;
        /// `PullImage`.
        images.pull_image(PullImageRequest) -> PullImageResponse;
        /// `ListImages`.
        images.list_images(ListImagesRequest) -> ListImagesResponse;
        /// `ImageStatus`.
        images.image_status(ImageStatusRequest) -> ImageStatusResponse;
        /// `ImageFsInfo`.
        images.image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse;
    }

    streams! {
        /// `StreamPodSandboxes`.
        runtime.stream_pod_sandboxes(StreamPodSandboxesRequest) -> StreamPodSandboxesResponse;
        /// `StreamContainers`.
        runtime.stream_containers(StreamContainersRequest) -> StreamContainersResponse;
        /// `StreamContainerStats`.
        runtime.stream_container_stats(StreamContainerStatsRequest) -> StreamContainerStatsResponse;
        /// `StreamPodSandboxStats`.
        runtime.stream_pod_sandbox_stats(StreamPodSandboxStatsRequest) -> StreamPodSandboxStatsResponse;
        /// `StreamPodSandboxMetrics`.
        runtime.stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest) -> StreamPodSandboxMetricsResponse;
        /// `GetContainerEvents`.
        runtime.get_container_events(GetEventsRequest) -> ContainerEventResponse;
        /// `StreamImages`.
        images.stream_images(StreamImagesRequest) -> StreamImagesResponse;
    }

    /// `StopPodSandbox`.
    pub async fn stop_pod_sandbox(&self, id: &str) -> Result<(), Status> {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.runtime.clone().stop_pod_sandbox(request).await.map(drop)
    }

    /// `RemovePodSandbox`.
    pub async fn remove_pod_sandbox(&self, id: &str) -> Result<(), Status> {
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.runtime.clone().remove_pod_sandbox(request).await.map(drop)
    }

    /// `StartContainer`.
    pub async fn start_container(&self, id: &str) -> Result<(), Status> {
        let request = cri::StartContainerRequest { container_id: id.to_owned() };
        self.runtime.clone().start_container(request).await.map(drop)
    }

    /// `StopContainer`, with the grace period in seconds.
    pub async fn stop_container(&self, id: &str, timeout: i64) -> Result<(), Status> {
        let request = cri::StopContainerRequest { container_id: id.to_owned(), timeout };
        self.runtime.clone().stop_container(request).await.map(drop)
    }

    /// `StopContainer` by a client that gives up after `patience`.
    pub async fn stop_container_impatiently(&self, id: &str, timeout: i64, patience: Duration) -> Result<(), Status> {
        let mut request = Request::new(cri::StopContainerRequest { container_id: id.to_owned(), timeout });
        request.set_timeout(patience);
        self.runtime.clone().stop_container(request).await.map(drop)
    }

    /// `RemoveContainer`.
    pub async fn remove_container(&self, id: &str) -> Result<(), Status> {
        let request = cri::RemoveContainerRequest { container_id: id.to_owned() };
        self.runtime.clone().remove_container(request).await.map(drop)
    }

    /// `ReopenContainerLog`.
    pub async fn reopen_container_log(&self, id: &str) -> Result<(), Status> {
        let request = cri::ReopenContainerLogRequest { container_id: id.to_owned() };
        self.runtime.clone().reopen_container_log(request).await.map(drop)
    }

    /// `RemoveImage`.
    pub async fn remove_image(&self, image: &str) -> Result<(), Status> {
        let request = cri::RemoveImageRequest { image: Some(spec(image)) };
        self.images.clone().remove_image(request).await.map(drop)
    }

    /// The status of a container, without the verbose part.
    pub async fn container(&self, id: &str) -> Result<cri::ContainerStatus, Status> {
        let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let response = self.container_status(request).await?;
        response.status.ok_or_else(|| Status::internal("ContainerStatus without a status"))
    }

    /// The status of a sandbox, without the verbose part.
    pub async fn sandbox(&self, id: &str) -> Result<cri::PodSandboxStatus, Status> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        let response = self.pod_sandbox_status(request).await?;
        response.status.ok_or_else(|| Status::internal("PodSandboxStatus without a status"))
    }

    /// The pid that stands for the sandbox, from the verbose status.
    pub async fn sandbox_pid(&self, id: &str) -> Result<u32> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
        pid_of(&self.pod_sandbox_status(request).await?.info)
    }

    /// The pid of a container's init on the host, from the verbose status.
    pub async fn container_pid(&self, id: &str) -> Result<u32> {
        let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
        pid_of(&self.container_status(request).await?.info)
    }

    /// Pulls an image without credentials and answers its id.
    pub async fn pull(&self, image: &str) -> Result<String, Status> {
        self.pull_as(image, None).await
    }

    /// Pulls an image and answers its id.
    pub async fn pull_as(&self, image: &str, auth: Option<cri::AuthConfig>) -> Result<String, Status> {
        let request = cri::PullImageRequest { image: Some(spec(image)), auth, sandbox_config: None };
        self.pull_image(request).await.map(|response| response.image_ref)
    }

    /// What the store knows of an image; `None` when it has none of that name.
    pub async fn image(&self, image: &str) -> Result<Option<cri::Image>, Status> {
        let request = cri::ImageStatusRequest { image: Some(spec(image)), verbose: false };
        self.image_status(request).await.map(|response| response.image)
    }
}

/// The spec of an image of that name.
pub fn spec(image: &str) -> cri::ImageSpec {
    cri::ImageSpec { image: image.to_owned(), ..Default::default() }
}

/// `info["info"]` is JSON with a `pid`, as crictl and tools read it from containerd.
fn pid_of(info: &std::collections::BTreeMap<String, String>) -> Result<u32> {
    let text = info.get("info").context("verbose status without `info`")?;
    let value: serde_json::Value = serde_json::from_str(text).context("parse the verbose `info`")?;
    let pid = value["pid"].as_u64().context("verbose `info` without a pid")?;
    Ok(u32::try_from(pid)?)
}
