//! A pod's life by a client that looks, does one thing, and looks again, as a kubelet does: whatever fails is tried again,
//! whatever is dead gets a next attempt, and in the end all that is listed is stopped and removed.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::sync::Notify;
use tonic::Status;
use vaina_proto::cri::{
    ContainerState, CreateContainerRequest, ListContainersRequest, ListPodSandboxRequest, PodSandboxState,
    RunPodSandboxRequest,
};
use vaina_tests::{
    build::{Container, Pod},
    client::Cri,
    node::{IMAGE, Node, SOCKET, log_text},
    wait,
};

/// Lines that the container writes before it is stopped.
const LINES: usize = 20;

/// A life with one disturbance is a second or two; a stop that waits for a dead shim is the longest.
const LIMIT: Duration = Duration::from_secs(90);

/// One pod, and the image that is pulled for it.
#[derive(Debug)]
pub(crate) struct Life {
    pod: Pod,
    image: String,
    volume: PathBuf,
    /// Told when the client is to leave the call that it waits for.
    pub(crate) cut: Notify,
}

/// How the last container ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) code: i32,
    pub(crate) log_is_whole: bool,
}

impl Life {
    pub(crate) fn new(node: &Node, name: &str, image: &str) -> Result<Self> {
        let (pod, volume) = (node.pod(name), node.volume(name)?);
        fs::create_dir_all(&pod.config.log_directory)?;
        Ok(Self { pod, image: image.to_owned(), volume, cut: Notify::new() })
    }

    fn container(&self, attempt: u32) -> Container {
        // A port of the pod that is held as long as the container lives tells of a second copy.
        let script = format!(
            "(nc -l -p 7777 >/dev/null 2>&1 || echo x >>/v/double) & trap 'echo end; exit 7' TERM; \
             i=0; while [ $i -lt {LINES} ]; do echo line $i; i=$((i+1)); done; echo x >/v/up-{attempt}; \
             while :; do sleep 1000 & wait $!; done"
        );
        Container::new("c", IMAGE).sh(&script).mount(&self.volume, "/v").attempt(attempt)
    }

    /// Whether two copies of the container ran at the same time.
    pub(crate) fn was_doubled(&self) -> bool {
        self.volume.join("double").exists()
    }

    /// From the pull to the removal of the image.
    pub(crate) async fn live(&self) -> Result<End> {
        self.until_done("PullImage", async |cri| cri.pull(&self.image).await.map(drop)).await?;
        let deadline = Instant::now() + LIMIT;
        let (mut sandboxes, mut containers) = (0, 0);
        let end = loop {
            ensure!(Instant::now() < deadline, "the pod did not live within {LIMIT:?}");
            if let Some(end) = self.step(&mut sandboxes, &mut containers).await? {
                break end;
            }
        };
        while !self.is_gone().await? {
            ensure!(Instant::now() < deadline, "the pod was not removed within {LIMIT:?}");
        }
        self.until_done("RemoveImage", async |cri| cri.remove_image(&self.image).await).await?;
        Ok(end)
    }

    /// One look, and one thing done; the end of the container once it was up and is stopped.
    async fn step(&self, sandboxes: &mut u32, containers: &mut u32) -> Result<Option<End>> {
        let pods = self.look(async |cri| cri.list_pod_sandbox(ListPodSandboxRequest::default()).await).await?.items;
        let Some(pod) = pods.first() else {
            self.run(*sandboxes).await?;
            return Ok(None);
        };
        ensure!(pods.len() == 1, "several pods for one key: {pods:?}");
        if pod.state() != PodSandboxState::SandboxReady {
            self.call(async |cri| cri.stop_pod_sandbox(&pod.id).await).await;
            if self.call(async |cri| cri.remove_pod_sandbox(&pod.id).await).await.is_some() {
                *sandboxes += 1;
            }
            return Ok(None);
        }
        let listed =
            self.look(async |cri| cri.list_containers(ListContainersRequest::default()).await).await?.containers;
        let Some(container) = listed.first() else {
            self.create(&pod.id, *containers).await?;
            return Ok(None);
        };
        ensure!(listed.len() == 1, "several containers for one key: {listed:?}");
        let is_up = self.volume.join(format!("up-{containers}")).exists();
        match container.state() {
            ContainerState::ContainerCreated => {
                // One that can't be started, since its making has failed half-way, gives way to the next attempt.
                if self.call(async |cri| cri.start_container(&container.id).await).await.is_none()
                    && self.look(async |cri| cri.container(&container.id).await).await?.state()
                        == ContainerState::ContainerCreated
                {
                    self.call(async |cri| cri.remove_container(&container.id).await).await;
                    *containers += 1;
                }
            }
            ContainerState::ContainerRunning if !is_up => {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            ContainerState::ContainerRunning => {
                self.call(async |cri| cri.stop_container(&container.id, 10).await).await;
            }
            ContainerState::ContainerExited | ContainerState::ContainerUnknown => {
                let status = self.look(async |cri| cri.container(&container.id).await).await?;
                // A start that has failed is no life, however far it came.
                if is_up && status.reason != "StartError" {
                    return self.end(status.exit_code, &status.log_path).map(Some);
                }
                if self.call(async |cri| cri.remove_container(&container.id).await).await.is_some() {
                    *containers += 1;
                }
            }
        }
        Ok(None)
    }

    fn end(&self, code: i32, log: &str) -> Result<End> {
        let log = log_text(&fs::read(log).with_context(|| format!("read the log {log}"))?)?;
        let lines = (0..LINES).map(|line| format!("line {line}\n")).collect::<String>();
        Ok(End { code, log_is_whole: log == format!("{lines}end\n") })
    }

    /// RunPodSandbox; once it is answered, the same call has the same answer.
    async fn run(&self, attempt: u32) -> Result<()> {
        let mut config = self.pod.config.clone();
        config.metadata.get_or_insert_default().attempt = attempt;
        let run = async |cri: Cri| {
            let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
            cri.run_pod_sandbox(request).await.map(|answer| answer.pod_sandbox_id)
        };
        let first = self.call(run).await;
        if let (Some(first), Some(second)) = (&first, self.call(run).await) {
            ensure!(*first == second, "RunPodSandbox answered {first}, and {second} when it was repeated");
        }
        Ok(())
    }

    /// CreateContainer; once it is answered, the same call has the same answer.
    async fn create(&self, sandbox: &str, attempt: u32) -> Result<()> {
        let create = async |cri: Cri| {
            let request = CreateContainerRequest {
                pod_sandbox_id: sandbox.to_owned(),
                config: Some(self.container(attempt).config),
                sandbox_config: Some(self.pod.config.clone()),
            };
            cri.create_container(request).await.map(|answer| answer.container_id)
        };
        let first = self.call(create).await;
        if let (Some(first), Some(second)) = (&first, self.call(create).await) {
            ensure!(*first == second, "CreateContainer answered {first}, and {second} when it was repeated");
        }
        Ok(())
    }

    /// Stops and removes what is listed; whether nothing was.
    async fn is_gone(&self) -> Result<bool> {
        let listed =
            self.look(async |cri| cri.list_containers(ListContainersRequest::default()).await).await?.containers;
        for container in &listed {
            self.call(async |cri| cri.stop_container(&container.id, 2).await).await;
            self.call(async |cri| cri.remove_container(&container.id).await).await;
        }
        let pods = self.look(async |cri| cri.list_pod_sandbox(ListPodSandboxRequest::default()).await).await?.items;
        if listed.is_empty() {
            for pod in &pods {
                self.call(async |cri| cri.stop_pod_sandbox(&pod.id).await).await;
                self.call(async |cri| cri.remove_pod_sandbox(&pod.id).await).await;
            }
        }
        Ok(listed.is_empty() && pods.is_empty())
    }

    /// One call over a connection of its own; [`None`] if it failed, was cut off or was left.
    async fn call<T>(&self, call: impl AsyncFnOnce(Cri) -> Result<T, Status>) -> Option<T> {
        let made = async { call(Cri::connect(Path::new(SOCKET)).await.ok()?).await.ok() };
        tokio::select! {
            answer = made => answer,
            () = self.cut.notified() => None,
        }
    }

    /// Looks until it is answered, which is when there is a daemon.
    async fn look<T>(&self, mut call: impl AsyncFnMut(Cri) -> Result<T, Status>) -> Result<T> {
        wait::until("the daemon answers", async || Ok(self.call(&mut call).await)).await
    }

    async fn until_done(&self, what: &str, mut call: impl AsyncFnMut(Cri) -> Result<(), Status>) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let Ok(cri) = Cri::connect(Path::new(SOCKET)).await else {
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            };
            let answer = tokio::select! {
                answer = call(cri) => answer,
                () = self.cut.notified() => continue,
            };
            match answer {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > deadline => bail!("{what}: {error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }
}
