//! A client that does for one pod what a kubelet does: the same calls again when one was cut off, a new attempt when a
//! container has failed, and a stop and removal of whatever is listed in the end.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use tonic::{Code, Status};
use vaina_proto::cri::{
    ContainerState, CreateContainerRequest, ListContainersRequest, ListPodSandboxRequest, PodSandboxState,
    RunPodSandboxRequest,
};
use vaina_tests::{
    build::{Container, Pod},
    client::Cri,
    node::{IMAGE, Node, SOCKET},
    wait,
};

/// Lines that the container writes before it is stopped.
const LINES: usize = 40;

/// One pod's kubelet.
#[derive(Debug)]
pub(crate) struct Kubelet {
    pod: Pod,
    volume: PathBuf,
}

/// How a pod has lived.
#[derive(Debug)]
pub(crate) struct Life {
    /// Of each attempt at its container.
    pub(crate) exit_codes: Vec<i32>,
    /// From the first call to the answer of the last.
    pub(crate) took: Duration,
    /// The last attempt's log.
    pub(crate) log: String,
    /// Whether the log has each line once, in order.
    pub(crate) log_is_whole: bool,
}

impl Kubelet {
    /// For a pod of this name.
    pub(crate) fn new(node: &Node, name: &str) -> Result<Self> {
        let volume = node.volume(name)?;
        // Without a log directory of its own, a kubelet's start would fail.
        let pod = node.pod(name);
        fs::create_dir_all(&pod.config.log_directory)?;
        Ok(Self { pod, volume })
    }

    /// The volume of the pod.
    pub(crate) fn volume(&self) -> &Path {
        &self.volume
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

    /// From RunPodSandbox to RemovePodSandbox. Calls that are cut off are repeated; nothing else may fail.
    pub(crate) async fn live(&self) -> Result<Life> {
        let start = Instant::now();
        let mut exit_codes = Vec::new();
        let sandbox = again(async |cri| {
            let request =
                RunPodSandboxRequest { config: Some(self.pod.config.clone()), runtime_handler: String::new() };
            cri.run_pod_sandbox(request).await.map(|response| response.pod_sandbox_id)
        })
        .await
        .context("RunPodSandbox")?;
        let mut attempt = 0;
        let id = loop {
            ensure!(attempt < 5, "five attempts have failed");
            let state = again(async |cri| cri.sandbox(&sandbox).await).await.context("PodSandboxStatus")?.state();
            ensure!(state == PodSandboxState::SandboxReady, "a pod whose run was answered is not ready");
            let id = again(async |cri| {
                let request = CreateContainerRequest {
                    pod_sandbox_id: sandbox.clone(),
                    config: Some(self.container(attempt).config),
                    sandbox_config: Some(self.pod.config.clone()),
                };
                cri.create_container(request).await.map(|response| response.container_id)
            })
            .await
            .context("CreateContainer")?;
            if let Some(code) = self.start(&id).await? {
                exit_codes.push(code);
                again(async |cri| cri.remove_container(&id).await)
                    .await
                    .context("RemoveContainer after a failed start")?;
                attempt += 1;
            } else {
                break id;
            }
        };
        let up = self.volume.join(format!("up-{attempt}"));
        wait::until("the container is up", async || Ok(up.exists().then_some(()))).await?;
        again(async |cri| cri.stop_container(&id, 10).await).await.context("StopContainer")?;
        let status = again(async |cri| cri.container(&id).await).await.context("ContainerStatus")?;
        ensure!(status.state() == ContainerState::ContainerExited, "stopped, and not exited: {status:?}");
        exit_codes.push(status.exit_code);
        let log = vaina_tests::node::log_text(&fs::read(&status.log_path).context("read the log")?)?;
        let lines = (0..LINES).map(|line| format!("line {line}\n")).collect::<String>();
        let log_is_whole = log == format!("{lines}end\n");
        again(async |cri| cri.remove_container(&id).await).await.context("RemoveContainer")?;
        again(async |cri| cri.stop_pod_sandbox(&sandbox).await).await.context("StopPodSandbox")?;
        again(async |cri| cri.remove_pod_sandbox(&sandbox).await).await.context("RemovePodSandbox")?;
        Ok(Life { exit_codes, took: start.elapsed(), log, log_is_whole })
    }

    /// Starts a container; the exit code if the start has failed.
    async fn start(&self, id: &str) -> Result<Option<i32>> {
        // A start can't be repeated blindly: what a kubelet does is look.
        loop {
            let started = once(async |cri| cri.start_container(id).await).await;
            let status = again(async |cri| cri.container(id).await).await.context("ContainerStatus")?;
            match (started, status.state()) {
                (_, ContainerState::ContainerRunning) => return Ok(None),
                (_, ContainerState::ContainerExited) => return Ok(Some(status.exit_code)),
                (Some(Err(error)), _) => bail!("StartContainer: {error}"),
                (Some(Ok(())), state) => bail!("started, and {state:?}"),
                (None, _) => {}
            }
        }
    }

    /// As [`live`](Self::live), but it may fail at any point; then all that is listed is stopped and removed.
    pub(crate) async fn live_or_end(&self) -> Result<()> {
        if self.live().await.is_ok() {
            return Ok(());
        }
        wait::until("all is removed", async || {
            let containers =
                again(async |cri| cri.list_containers(ListContainersRequest::default()).await).await?.containers;
            for container in &containers {
                let _ = again(async |cri| cri.stop_container(&container.id, 2).await).await;
                let _ = again(async |cri| cri.remove_container(&container.id).await).await;
            }
            let pods = again(async |cri| cri.list_pod_sandbox(ListPodSandboxRequest::default()).await).await?.items;
            for pod in &pods {
                let _ = again(async |cri| cri.stop_pod_sandbox(&pod.id).await).await;
                let _ = again(async |cri| cri.remove_pod_sandbox(&pod.id).await).await;
            }
            Ok((containers.is_empty() && pods.is_empty()).then_some(()))
        })
        .await
    }
}

/// Calls once over a connection of its own; [`None`] if the daemon was not there, or went away meanwhile.
async fn once<T>(call: impl AsyncFnOnce(Cri) -> Result<T, Status>) -> Option<Result<T, Status>> {
    let cri = Cri::connect(Path::new(SOCKET)).await.ok()?;
    match call(cri).await {
        Err(status) if is_cut(&status) => None,
        answer => Some(answer),
    }
}

/// Calls until the daemon answers.
async fn again<T>(mut call: impl AsyncFnMut(Cri) -> Result<T, Status>) -> Result<T> {
    let answer = wait::until("the daemon answers", async || Ok(once(async |cri| call(cri).await).await)).await?;
    answer.map_err(|status| anyhow::anyhow!("{:?}: {}", status.code(), status.message()))
}

/// The connection broke, rather than the call.
pub(crate) fn is_cut(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Cancelled)
        || (status.code() == Code::Unknown && status.message().contains("transport error"))
        || status.message().contains("h2 protocol error")
}
