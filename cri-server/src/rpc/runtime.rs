//! The CRI's runtime service.

use std::{convert::Infallible, sync::Arc};

use futures::StreamExt as _;
use tonic::{Request, Response, Status, async_trait};
use tracing::Instrument as _;
use vaina_proto::cri::{self, runtime_service_server::RuntimeService};

use super::{
    chunks::{Chunks, chunks},
    status::status,
    trace::{About, change, made, read},
};
use crate::{app::App, container, error::Chain, info, readiness, sandbox, stats, streaming};

pub(super) struct Runtime {
    pub(super) app: Arc<App>,
}

fn condition(name: &str, problem: Option<(&str, String)>) -> cri::RuntimeCondition {
    let status = problem.is_none();
    let (reason, message) = problem.unwrap_or_default();
    cri::RuntimeCondition { r#type: name.to_owned(), status, reason: reason.to_owned(), message }
}

#[async_trait]
impl RuntimeService for Runtime {
    async fn version(&self, _: Request<cri::VersionRequest>) -> Result<Response<cri::VersionResponse>, Status> {
        read(
            "Version",
            Ok::<_, Infallible>(cri::VersionResponse {
                // Of the kubelet's runtime API; every runtime answers this.
                version: "0.1.0".to_owned(),
                runtime_name: "vaina".to_owned(),
                runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
                runtime_api_version: "v1".to_owned(),
            }),
        )
    }

    async fn status(&self, request: Request<cri::StatusRequest>) -> Result<Response<cri::StatusResponse>, Status> {
        let network = self.app.network.status().await.err().map(|error| {
            let message = format!("Network plugin returns error: {}", Chain(&error));
            ("NetworkPluginNotReady", message)
        });
        let handlers = self.app.handlers.iter().map(|handler| cri::RuntimeHandler {
            name: handler.name.clone(),
            features: Some(cri::RuntimeHandlerFeatures {
                recursive_read_only_mounts: handler.makes_recursive_read_only(),
                user_namespaces: self.app.handlers.user_namespace_problem(handler).is_none(),
            }),
        });
        let mut response = cri::StatusResponse {
            status: Some(cri::RuntimeStatus {
                // Recovery is over before anybody can ask.
                conditions: vec![
                    condition("RuntimeReady", readiness::problem(&self.app).await),
                    condition("NetworkReady", network),
                ],
            }),
            runtime_handlers: handlers.collect(),
            features: Some(cri::RuntimeFeatures {
                supplemental_groups_policy: true,
                mount_options: true,
                user_namespaces_host_network: true,
            }),
            ..Default::default()
        };
        if request.into_inner().verbose {
            response.info = info::status(&self.app).await;
        }
        read("Status", Ok::<_, Infallible>(response))
    }

    async fn runtime_config(
        &self,
        _: Request<cri::RuntimeConfigRequest>,
    ) -> Result<Response<cri::RuntimeConfigResponse>, Status> {
        let linux = cri::LinuxRuntimeConfiguration { cgroup_driver: cri::CgroupDriver::Cgroupfs.into() };
        read("RuntimeConfig", Ok::<_, Infallible>(cri::RuntimeConfigResponse { linux: Some(linux) }))
    }

    /// The kubelet tells the node's pod CIDR to plugins; the built-in network has its own from the configuration.
    async fn update_runtime_config(
        &self,
        _: Request<cri::UpdateRuntimeConfigRequest>,
    ) -> Result<Response<cri::UpdateRuntimeConfigResponse>, Status> {
        read("UpdateRuntimeConfig", Ok::<_, Infallible>(cri::UpdateRuntimeConfigResponse {}))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<cri::RunPodSandboxRequest>,
    ) -> Result<Response<cri::RunPodSandboxResponse>, Status> {
        let request = request.into_inner();
        let config = request.config.ok_or_else(|| Status::invalid_argument("the request has no config"))?;
        let metadata = config.metadata.clone().unwrap_or_default();
        let about = About { pod: Some(metadata.name), namespace: Some(metadata.namespace), ..About::default() };
        change("RunPodSandbox", about, async {
            let id = sandbox::run(&self.app, config, &request.runtime_handler).await?;
            made("sandbox", id.as_str());
            Ok::<_, Arc<sandbox::RunError>>(cri::RunPodSandboxResponse { pod_sandbox_id: id.to_string() })
        })
        .await
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<cri::StopPodSandboxRequest>,
    ) -> Result<Response<cri::StopPodSandboxResponse>, Status> {
        let id = request.into_inner().pod_sandbox_id;
        change("StopPodSandbox", About::sandbox(&id), async {
            sandbox::stop(&self.app, &id).await.map(|()| cri::StopPodSandboxResponse {})
        })
        .await
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<cri::RemovePodSandboxRequest>,
    ) -> Result<Response<cri::RemovePodSandboxResponse>, Status> {
        let id = request.into_inner().pod_sandbox_id;
        change("RemovePodSandbox", About::sandbox(&id), async {
            sandbox::remove(&self.app, &id).await.map(|()| cri::RemovePodSandboxResponse {})
        })
        .await
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<cri::PodSandboxStatusRequest>,
    ) -> Result<Response<cri::PodSandboxStatusResponse>, Status> {
        let request = request.into_inner();
        read("PodSandboxStatus", sandbox::status(&self.app, &request.pod_sandbox_id, request.verbose))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<cri::ListPodSandboxRequest>,
    ) -> Result<Response<cri::ListPodSandboxResponse>, Status> {
        let items = sandbox::list(&self.app, request.into_inner().filter.as_ref());
        read("ListPodSandbox", Ok::<_, Infallible>(cri::ListPodSandboxResponse { items }))
    }

    async fn create_container(
        &self,
        request: Request<cri::CreateContainerRequest>,
    ) -> Result<Response<cri::CreateContainerResponse>, Status> {
        // The sandbox's config comes with the request, but what counts is what the sandbox was made with.
        let request = request.into_inner();
        let config = request.config.ok_or_else(|| Status::invalid_argument("the request has no config"))?;
        let sandbox = request.pod_sandbox_id;
        change("CreateContainer", About::sandbox(&sandbox), async {
            let id = container::create(&self.app, &sandbox, config).await?;
            made("container", id.as_str());
            Ok::<_, Arc<container::CreateError>>(cri::CreateContainerResponse { container_id: id.to_string() })
        })
        .await
    }

    async fn start_container(
        &self,
        request: Request<cri::StartContainerRequest>,
    ) -> Result<Response<cri::StartContainerResponse>, Status> {
        let id = request.into_inner().container_id;
        change("StartContainer", About::container(&id), async {
            container::start(&self.app, &id).await.map(|()| cri::StartContainerResponse {})
        })
        .await
    }

    async fn stop_container(
        &self,
        request: Request<cri::StopContainerRequest>,
    ) -> Result<Response<cri::StopContainerResponse>, Status> {
        let cri::StopContainerRequest { container_id: id, timeout } = request.into_inner();
        change("StopContainer", About::container(&id), async {
            container::stop(&self.app, &id, timeout).await.map(|()| cri::StopContainerResponse {})
        })
        .await
    }

    async fn remove_container(
        &self,
        request: Request<cri::RemoveContainerRequest>,
    ) -> Result<Response<cri::RemoveContainerResponse>, Status> {
        let id = request.into_inner().container_id;
        change("RemoveContainer", About::container(&id), async {
            container::remove(&self.app, &id).await.map(|()| cri::RemoveContainerResponse {})
        })
        .await
    }

    async fn list_containers(
        &self,
        request: Request<cri::ListContainersRequest>,
    ) -> Result<Response<cri::ListContainersResponse>, Status> {
        let containers = container::list(&self.app, request.into_inner().filter.as_ref());
        read("ListContainers", Ok::<_, Infallible>(cri::ListContainersResponse { containers }))
    }

    async fn container_status(
        &self,
        request: Request<cri::ContainerStatusRequest>,
    ) -> Result<Response<cri::ContainerStatusResponse>, Status> {
        let request = request.into_inner();
        read("ContainerStatus", container::status(&self.app, &request.container_id, request.verbose).await)
    }

    async fn reopen_container_log(
        &self,
        request: Request<cri::ReopenContainerLogRequest>,
    ) -> Result<Response<cri::ReopenContainerLogResponse>, Status> {
        let id = request.into_inner().container_id;
        change("ReopenContainerLog", About::container(&id), async {
            container::reopen_log(&self.app, &id).await.map(|()| cri::ReopenContainerLogResponse {})
        })
        .await
    }

    async fn exec_sync(
        &self,
        request: Request<cri::ExecSyncRequest>,
    ) -> Result<Response<cri::ExecSyncResponse>, Status> {
        let cri::ExecSyncRequest { container_id: id, cmd, timeout } = request.into_inner();
        // Probes come every second; their lines would drown all others.
        let span = About::container(&id).detail("ExecSync");
        read("ExecSync", container::exec_sync(&self.app, &id, cmd, timeout).instrument(span).await)
    }

    async fn update_container_resources(
        &self,
        request: Request<cri::UpdateContainerResourcesRequest>,
    ) -> Result<Response<cri::UpdateContainerResourcesResponse>, Status> {
        // Annotations of an update are for plugins, of which there are none.
        let cri::UpdateContainerResourcesRequest { container_id: id, linux, .. } = request.into_inner();
        change("UpdateContainerResources", About::container(&id), async {
            container::update(&self.app, &id, linux).await.map(|()| cri::UpdateContainerResourcesResponse {})
        })
        .await
    }

    async fn exec(&self, request: Request<cri::ExecRequest>) -> Result<Response<cri::ExecResponse>, Status> {
        let request = request.into_inner();
        let about = About::container(&request.container_id);
        change("Exec", about, async { streaming::exec(&self.app, request).map(|url| cri::ExecResponse { url }) }).await
    }

    async fn attach(&self, request: Request<cri::AttachRequest>) -> Result<Response<cri::AttachResponse>, Status> {
        let request = request.into_inner();
        let about = About::container(&request.container_id);
        change("Attach", about, async { streaming::attach(&self.app, request).map(|url| cri::AttachResponse { url }) })
            .await
    }

    async fn port_forward(
        &self,
        request: Request<cri::PortForwardRequest>,
    ) -> Result<Response<cri::PortForwardResponse>, Status> {
        let request = request.into_inner();
        let about = About::sandbox(&request.pod_sandbox_id);
        change("PortForward", about, async {
            streaming::port_forward(&self.app, request).map(|url| cri::PortForwardResponse { url })
        })
        .await
    }

    async fn container_stats(
        &self,
        request: Request<cri::ContainerStatsRequest>,
    ) -> Result<Response<cri::ContainerStatsResponse>, Status> {
        let stats = stats::container(&self.app, &request.into_inner().container_id).await;
        read("ContainerStats", stats.map(|stats| cri::ContainerStatsResponse { stats: Some(stats) }))
    }

    async fn list_container_stats(
        &self,
        request: Request<cri::ListContainerStatsRequest>,
    ) -> Result<Response<cri::ListContainerStatsResponse>, Status> {
        let stats = stats::containers(&self.app, request.into_inner().filter.as_ref()).await;
        read("ListContainerStats", Ok::<_, Infallible>(cri::ListContainerStatsResponse { stats }))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<cri::PodSandboxStatsRequest>,
    ) -> Result<Response<cri::PodSandboxStatsResponse>, Status> {
        let stats = stats::sandbox(&self.app, &request.into_inner().pod_sandbox_id).await;
        read("PodSandboxStats", stats.map(|stats| cri::PodSandboxStatsResponse { stats: Some(stats) }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<cri::ListPodSandboxStatsRequest>,
    ) -> Result<Response<cri::ListPodSandboxStatsResponse>, Status> {
        let stats = stats::sandboxes(&self.app, request.into_inner().filter.as_ref()).await;
        read("ListPodSandboxStats", Ok::<_, Infallible>(cri::ListPodSandboxStatsResponse { stats }))
    }

    async fn checkpoint_container(
        &self,
        _: Request<cri::CheckpointContainerRequest>,
    ) -> Result<Response<cri::CheckpointContainerResponse>, Status> {
        Err(Status::unimplemented("CheckpointContainer"))
    }

    async fn checkpoint_pod(
        &self,
        _: Request<cri::CheckpointPodRequest>,
    ) -> Result<Response<cri::CheckpointPodResponse>, Status> {
        Err(Status::unimplemented("CheckpointPod"))
    }

    async fn restore_pod(
        &self,
        _: Request<cri::RestorePodRequest>,
    ) -> Result<Response<cri::RestorePodResponse>, Status> {
        Err(Status::unimplemented("RestorePod"))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<cri::ListMetricDescriptorsRequest>,
    ) -> Result<Response<cri::ListMetricDescriptorsResponse>, Status> {
        let descriptors = stats::metric_descriptors();
        read("ListMetricDescriptors", Ok::<_, Infallible>(cri::ListMetricDescriptorsResponse { descriptors }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<cri::ListPodSandboxMetricsRequest>,
    ) -> Result<Response<cri::ListPodSandboxMetricsResponse>, Status> {
        let pod_metrics = stats::metrics(&self.app).await;
        read("ListPodSandboxMetrics", Ok::<_, Infallible>(cri::ListPodSandboxMetricsResponse { pod_metrics }))
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<cri::UpdatePodSandboxResourcesRequest>,
    ) -> Result<Response<cri::UpdatePodSandboxResourcesResponse>, Status> {
        let cri::UpdatePodSandboxResourcesRequest { pod_sandbox_id: id, overhead, resources } = request.into_inner();
        change("UpdatePodSandboxResources", About::sandbox(&id), async {
            let updated = sandbox::update(&self.app, &id, overhead, resources).await;
            updated.map(|()| cri::UpdatePodSandboxResourcesResponse {})
        })
        .await
    }

    type StreamPodSandboxesStream = Chunks<cri::StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        request: Request<cri::StreamPodSandboxesRequest>,
    ) -> Result<Response<Self::StreamPodSandboxesStream>, Status> {
        let items = sandbox::list(&self.app, request.into_inner().filter.as_ref());
        let message = |pod_sandboxes| cri::StreamPodSandboxesResponse { pod_sandboxes };
        Ok(chunks("StreamPodSandboxes", items, message))
    }

    type StreamContainersStream = Chunks<cri::StreamContainersResponse>;

    async fn stream_containers(
        &self,
        request: Request<cri::StreamContainersRequest>,
    ) -> Result<Response<Self::StreamContainersStream>, Status> {
        let items = container::list(&self.app, request.into_inner().filter.as_ref());
        Ok(chunks("StreamContainers", items, |containers| cri::StreamContainersResponse { containers }))
    }

    type StreamContainerStatsStream = Chunks<cri::StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        request: Request<cri::StreamContainerStatsRequest>,
    ) -> Result<Response<Self::StreamContainerStatsStream>, Status> {
        let items = stats::containers(&self.app, request.into_inner().filter.as_ref()).await;
        let message = |container_stats| cri::StreamContainerStatsResponse { container_stats };
        Ok(chunks("StreamContainerStats", items, message))
    }

    type StreamPodSandboxStatsStream = Chunks<cri::StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<cri::StreamPodSandboxStatsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxStatsStream>, Status> {
        let items = stats::sandboxes(&self.app, request.into_inner().filter.as_ref()).await;
        let message = |pod_sandbox_stats| cri::StreamPodSandboxStatsResponse { pod_sandbox_stats };
        Ok(chunks("StreamPodSandboxStats", items, message))
    }

    type StreamPodSandboxMetricsStream = Chunks<cri::StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<cri::StreamPodSandboxMetricsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxMetricsStream>, Status> {
        let items = stats::metrics(&self.app).await;
        let message = |pod_sandbox_metrics| cri::StreamPodSandboxMetricsResponse { pod_sandbox_metrics };
        Ok(chunks("StreamPodSandboxMetrics", items, message))
    }

    type GetContainerEventsStream = Chunks<cri::ContainerEventResponse>;

    async fn get_container_events(
        &self,
        _: Request<cri::GetEventsRequest>,
    ) -> Result<Response<Self::GetContainerEventsStream>, Status> {
        let events = self.app.events.listen();
        let events = events.map(|event| event.map(Arc::unwrap_or_clone).map_err(|error| status(&error)));
        Ok(Response::new(events.boxed()))
    }
}
