//! A CRI server in memory, for the runner's tests: containers are scripts of three words.
//!
//! `exit N` writes a line and ends with N; `sleep` runs until it is stopped; `stubborn` does not hear TERM; `nostart` can't
//! be started.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::stream::BoxStream;
use tokio::{net::UnixListener, task::JoinHandle};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};
use vaina_proto::cri::{
    self,
    image_service_server::{ImageService, ImageServiceServer},
    runtime_service_server::{RuntimeService, RuntimeServiceServer},
};

type Answer<T> = Result<Response<T>, Status>;
type Stream<T> = BoxStream<'static, Result<T, Status>>;

fn done<T: Default>() -> Answer<T> {
    Ok(Response::new(T::default()))
}

fn no<T>() -> Answer<T> {
    Err(Status::unimplemented("not in the fake"))
}

/// What the server knows; tests look and change.
#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) sandboxes: BTreeMap<String, cri::PodSandboxConfig>,
    pub(super) containers: BTreeMap<String, Container>,
    /// Changing calls, with what they were about.
    pub(super) calls: Vec<String>,
    /// Images that are there.
    pub(super) images: Vec<String>,
    /// How many pulls fail before one succeeds.
    pub(super) failing_pulls: usize,
    next: usize,
}

#[derive(Debug, Clone)]
pub(super) struct Container {
    pub(super) sandbox: String,
    pub(super) config: cri::ContainerConfig,
    pub(super) state: cri::ContainerState,
    pub(super) code: i32,
    pub(super) reason: String,
    pub(super) times: [i64; 3],
}

impl World {
    fn id(&mut self, kind: &str) -> String {
        self.next += 1;
        format!("{kind}{}", self.next)
    }

    /// Ends a container as if by itself.
    pub(super) fn end(&mut self, id: &str, code: i32) {
        if let Some(container) = self.containers.get_mut(id)
            && container.state == cri::ContainerState::ContainerRunning
        {
            container.state = cri::ContainerState::ContainerExited;
            container.code = code;
            container.reason = if code == 0 { "Completed" } else { "Error" }.to_owned();
            container.times[2] = now();
        }
    }

    /// The running container of that name.
    pub(super) fn running(&self, name: &str) -> Option<String> {
        let is_it = |container: &Container| {
            container.config.metadata.as_ref().is_some_and(|metadata| metadata.name == name)
                && container.state == cri::ContainerState::ContainerRunning
        };
        self.containers.iter().find(|(_, container)| is_it(container)).map(|(id, _)| id.clone())
    }
}

/// The server; ends when it is dropped.
#[derive(Debug)]
pub(super) struct Fake {
    pub(super) world: Arc<Mutex<World>>,
    pub(super) socket: PathBuf,
    task: JoinHandle<()>,
}

impl Fake {
    pub(super) fn start(directory: &Path) -> Self {
        let world = Arc::new(Mutex::new(World { images: vec!["i:1".to_owned()], ..World::default() }));
        let socket = directory.join("fake.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let service = Service(Arc::clone(&world));
        let server = tonic::transport::Server::builder()
            .add_service(RuntimeServiceServer::new(service.clone()))
            .add_service(ImageServiceServer::new(service))
            .serve_with_incoming(UnixListenerStream::new(listener));
        let task = tokio::spawn(async move { server.await.unwrap() });
        Self { world, socket, task }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug, Clone)]
struct Service(Arc<Mutex<World>>);

fn now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

fn matches(labels: &BTreeMap<String, String>, selector: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[tonic::async_trait]
impl RuntimeService for Service {
    async fn version(&self, _: Request<cri::VersionRequest>) -> Answer<cri::VersionResponse> {
        Ok(Response::new(cri::VersionResponse { runtime_name: "fake".to_owned(), ..Default::default() }))
    }

    async fn run_pod_sandbox(&self, request: Request<cri::RunPodSandboxRequest>) -> Answer<cri::RunPodSandboxResponse> {
        let mut world = self.0.lock().unwrap();
        let id = world.id("sandbox");
        let config = request.into_inner().config.unwrap();
        world.calls.push(format!("run {}", config.metadata.as_ref().unwrap().name));
        world.sandboxes.insert(id.clone(), config);
        Ok(Response::new(cri::RunPodSandboxResponse { pod_sandbox_id: id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<cri::StopPodSandboxRequest>,
    ) -> Answer<cri::StopPodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        self.0.lock().unwrap().calls.push(format!("stop {id}"));
        done()
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<cri::RemovePodSandboxRequest>,
    ) -> Answer<cri::RemovePodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let mut world = self.0.lock().unwrap();
        world.calls.push(format!("remove {id}"));
        world.sandboxes.remove(&id);
        world.containers.retain(|_, container| container.sandbox != id);
        done()
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<cri::PodSandboxStatusRequest>,
    ) -> Answer<cri::PodSandboxStatusResponse> {
        let id = request.into_inner().pod_sandbox_id;
        if !self.0.lock().unwrap().sandboxes.contains_key(&id) {
            return Err(Status::not_found("no such sandbox"));
        }
        let network = Some(cri::PodSandboxNetworkStatus { ip: "10.88.0.9".to_owned(), additional_ips: Vec::new() });
        let status = Some(cri::PodSandboxStatus { id, network, ..Default::default() });
        Ok(Response::new(cri::PodSandboxStatusResponse { status, ..Default::default() }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<cri::ListPodSandboxRequest>,
    ) -> Answer<cri::ListPodSandboxResponse> {
        let selector = request.into_inner().filter.unwrap_or_default().label_selector;
        let world = self.0.lock().unwrap();
        let items =
            world.sandboxes.iter().filter(|(_, config)| matches(&config.labels, &selector)).map(|(id, config)| {
                cri::PodSandbox {
                    id: id.clone(),
                    metadata: config.metadata.clone(),
                    labels: config.labels.clone(),
                    created_at: 1,
                    ..Default::default()
                }
            });
        Ok(Response::new(cri::ListPodSandboxResponse { items: items.collect() }))
    }

    async fn create_container(
        &self,
        request: Request<cri::CreateContainerRequest>,
    ) -> Answer<cri::CreateContainerResponse> {
        let request = request.into_inner();
        let config = request.config.unwrap();
        if config.command.first().is_some_and(|word| word == "nocreate") {
            return Err(Status::invalid_argument("this container can't be"));
        }
        let mut world = self.0.lock().unwrap();
        let id = world.id("container");
        let metadata = config.metadata.clone().unwrap();
        world.calls.push(format!("create {} {}", metadata.name, metadata.attempt));
        let container = Container {
            sandbox: request.pod_sandbox_id,
            config,
            state: cri::ContainerState::ContainerCreated,
            code: 0,
            reason: String::new(),
            times: [now(), 0, 0],
        };
        world.containers.insert(id.clone(), container);
        Ok(Response::new(cri::CreateContainerResponse { container_id: id }))
    }

    async fn start_container(
        &self,
        request: Request<cri::StartContainerRequest>,
    ) -> Answer<cri::StartContainerResponse> {
        let id = request.into_inner().container_id;
        let mut world = self.0.lock().unwrap();
        let directory = PathBuf::from(&world.sandboxes.values().next().unwrap().log_directory);
        let container = world.containers.get_mut(&id).unwrap();
        container.state = cri::ContainerState::ContainerRunning;
        container.times[1] = now();
        let log = directory.join(&container.config.log_path);
        fs::create_dir_all(log.parent().unwrap()).unwrap();
        let metadata = container.config.metadata.clone().unwrap();
        let text =
            format!("T stdout F hello from {}\nT stderr P attempt \nT stderr F {}\n", metadata.name, metadata.attempt);
        fs::write(log, text).unwrap();
        let words = container.config.command.clone();
        match words[0].as_str() {
            "exit" => world.end(&id, words[1].parse().unwrap()),
            "nostart" => {
                world.end(&id, 128);
                return Err(Status::unknown("start process: executable file not found"));
            }
            _ => {}
        }
        done()
    }

    async fn stop_container(&self, request: Request<cri::StopContainerRequest>) -> Answer<cri::StopContainerResponse> {
        let cri::StopContainerRequest { container_id: id, timeout } = request.into_inner();
        let is_stubborn = {
            let mut world = self.0.lock().unwrap();
            let Some(container) = world.containers.get(&id).cloned() else { return done() };
            let name = container.config.metadata.unwrap().name;
            world.calls.push(format!("stop {name} within {timeout}"));
            container.config.command[0] == "stubborn"
        };
        if is_stubborn {
            tokio::time::sleep(Duration::from_secs(timeout.unsigned_abs())).await;
        }
        self.0.lock().unwrap().end(&id, if is_stubborn { 137 } else { 143 });
        done()
    }

    async fn remove_container(
        &self,
        request: Request<cri::RemoveContainerRequest>,
    ) -> Answer<cri::RemoveContainerResponse> {
        let id = request.into_inner().container_id;
        let mut world = self.0.lock().unwrap();
        world.calls.push(format!("remove {id}"));
        world.containers.remove(&id);
        done()
    }

    async fn list_containers(
        &self,
        request: Request<cri::ListContainersRequest>,
    ) -> Answer<cri::ListContainersResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let world = self.0.lock().unwrap();
        let is_meant = |container: &Container| {
            (filter.pod_sandbox_id.is_empty() || filter.pod_sandbox_id == container.sandbox)
                && matches(&container.config.labels, &filter.label_selector)
        };
        let containers = world.containers.iter().filter(|(_, container)| is_meant(container)).map(|(id, container)| {
            cri::Container {
                id: id.clone(),
                pod_sandbox_id: container.sandbox.clone(),
                metadata: container.config.metadata.clone(),
                state: container.state.into(),
                created_at: container.times[0],
                labels: container.config.labels.clone(),
                ..Default::default()
            }
        });
        Ok(Response::new(cri::ListContainersResponse { containers: containers.collect() }))
    }

    async fn container_status(
        &self,
        request: Request<cri::ContainerStatusRequest>,
    ) -> Answer<cri::ContainerStatusResponse> {
        let id = request.into_inner().container_id;
        let world = self.0.lock().unwrap();
        let container = world.containers.get(&id).ok_or_else(|| Status::not_found("no such container"))?;
        let status = cri::ContainerStatus {
            id,
            metadata: container.config.metadata.clone(),
            state: container.state.into(),
            exit_code: container.code,
            reason: container.reason.clone(),
            created_at: container.times[0],
            started_at: container.times[1],
            finished_at: container.times[2],
            ..Default::default()
        };
        Ok(Response::new(cri::ContainerStatusResponse { status: Some(status), ..Default::default() }))
    }

    type StreamPodSandboxesStream = Stream<cri::StreamPodSandboxesResponse>;
    type StreamContainersStream = Stream<cri::StreamContainersResponse>;
    type StreamContainerStatsStream = Stream<cri::StreamContainerStatsResponse>;
    type StreamPodSandboxStatsStream = Stream<cri::StreamPodSandboxStatsResponse>;
    type GetContainerEventsStream = Stream<cri::ContainerEventResponse>;
    type StreamPodSandboxMetricsStream = Stream<cri::StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandboxes(
        &self,
        _: Request<cri::StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        no()
    }
    async fn stream_containers(
        &self,
        _: Request<cri::StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        no()
    }
    async fn update_container_resources(
        &self,
        _: Request<cri::UpdateContainerResourcesRequest>,
    ) -> Answer<cri::UpdateContainerResourcesResponse> {
        no()
    }
    async fn reopen_container_log(
        &self,
        _: Request<cri::ReopenContainerLogRequest>,
    ) -> Answer<cri::ReopenContainerLogResponse> {
        no()
    }
    async fn exec_sync(&self, _: Request<cri::ExecSyncRequest>) -> Answer<cri::ExecSyncResponse> {
        no()
    }
    async fn exec(&self, _: Request<cri::ExecRequest>) -> Answer<cri::ExecResponse> {
        no()
    }
    async fn attach(&self, _: Request<cri::AttachRequest>) -> Answer<cri::AttachResponse> {
        no()
    }
    async fn port_forward(&self, _: Request<cri::PortForwardRequest>) -> Answer<cri::PortForwardResponse> {
        no()
    }
    async fn container_stats(&self, _: Request<cri::ContainerStatsRequest>) -> Answer<cri::ContainerStatsResponse> {
        no()
    }
    async fn list_container_stats(
        &self,
        _: Request<cri::ListContainerStatsRequest>,
    ) -> Answer<cri::ListContainerStatsResponse> {
        no()
    }
    async fn stream_container_stats(
        &self,
        _: Request<cri::StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        no()
    }
    async fn pod_sandbox_stats(&self, _: Request<cri::PodSandboxStatsRequest>) -> Answer<cri::PodSandboxStatsResponse> {
        no()
    }
    async fn list_pod_sandbox_stats(
        &self,
        _: Request<cri::ListPodSandboxStatsRequest>,
    ) -> Answer<cri::ListPodSandboxStatsResponse> {
        no()
    }
    async fn stream_pod_sandbox_stats(
        &self,
        _: Request<cri::StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        no()
    }
    async fn update_runtime_config(
        &self,
        _: Request<cri::UpdateRuntimeConfigRequest>,
    ) -> Answer<cri::UpdateRuntimeConfigResponse> {
        no()
    }
    async fn status(&self, _: Request<cri::StatusRequest>) -> Answer<cri::StatusResponse> {
        no()
    }
    async fn checkpoint_container(
        &self,
        _: Request<cri::CheckpointContainerRequest>,
    ) -> Answer<cri::CheckpointContainerResponse> {
        no()
    }
    async fn checkpoint_pod(&self, _: Request<cri::CheckpointPodRequest>) -> Answer<cri::CheckpointPodResponse> {
        no()
    }
    async fn restore_pod(&self, _: Request<cri::RestorePodRequest>) -> Answer<cri::RestorePodResponse> {
        no()
    }
    async fn get_container_events(&self, _: Request<cri::GetEventsRequest>) -> Answer<Self::GetContainerEventsStream> {
        no()
    }
    async fn list_metric_descriptors(
        &self,
        _: Request<cri::ListMetricDescriptorsRequest>,
    ) -> Answer<cri::ListMetricDescriptorsResponse> {
        no()
    }
    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<cri::ListPodSandboxMetricsRequest>,
    ) -> Answer<cri::ListPodSandboxMetricsResponse> {
        no()
    }
    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<cri::StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        no()
    }
    async fn runtime_config(&self, _: Request<cri::RuntimeConfigRequest>) -> Answer<cri::RuntimeConfigResponse> {
        no()
    }
    async fn update_pod_sandbox_resources(
        &self,
        _: Request<cri::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<cri::UpdatePodSandboxResourcesResponse> {
        no()
    }
}

#[tonic::async_trait]
impl ImageService for Service {
    async fn image_status(&self, request: Request<cri::ImageStatusRequest>) -> Answer<cri::ImageStatusResponse> {
        let name = request.into_inner().image.unwrap_or_default().image;
        let world = self.0.lock().unwrap();
        let image = world.images.contains(&name).then(|| cri::Image { id: name, size: 1, ..Default::default() });
        Ok(Response::new(cri::ImageStatusResponse { image, ..Default::default() }))
    }

    async fn pull_image(&self, request: Request<cri::PullImageRequest>) -> Answer<cri::PullImageResponse> {
        let name = request.into_inner().image.unwrap_or_default().image;
        let mut world = self.0.lock().unwrap();
        world.calls.push(format!("pull {name}"));
        if name.contains("unknown") {
            return Err(Status::not_found(format!("pull {name}: manifest unknown")));
        }
        if world.failing_pulls > 0 {
            world.failing_pulls -= 1;
            return Err(Status::unavailable("registry does not answer"));
        }
        world.images.push(name.clone());
        Ok(Response::new(cri::PullImageResponse { image_ref: name }))
    }

    type StreamImagesStream = Stream<cri::StreamImagesResponse>;

    async fn list_images(&self, _: Request<cri::ListImagesRequest>) -> Answer<cri::ListImagesResponse> {
        no()
    }
    async fn stream_images(&self, _: Request<cri::StreamImagesRequest>) -> Answer<Self::StreamImagesStream> {
        no()
    }
    async fn remove_image(&self, _: Request<cri::RemoveImageRequest>) -> Answer<cri::RemoveImageResponse> {
        no()
    }
    async fn image_fs_info(&self, _: Request<cri::ImageFsInfoRequest>) -> Answer<cri::ImageFsInfoResponse> {
        no()
    }
}
