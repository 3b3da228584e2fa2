//! One endpoint under measurement: a CRI socket, whoever serves it, and the pods that the benchmark has on it.

use std::{
    future::Future,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use tonic::Status;
use vaina_proto::cri::{self, SecurityProfile, security_profile::ProfileType};

use super::daemon::Daemon;
use crate::{
    build::{Container, Pod},
    client::Cri,
};

/// The namespace of all pods of the benchmark; what a run that died left on a foreign endpoint is found by it.
const NAMESPACE: &str = "vaina-bench";

/// No call may take longer: an endpoint that hangs costs its rows only.
const CALL_LIMIT: Duration = Duration::from_secs(120);

/// How long a daemon may take to be ready.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// What every idle container runs: it ends at SIGTERM, with or without a PID namespace of its own.
const IDLE: [&str; 3] = ["/bin/probe", "signals", "SIGTERM=0"];
/// And what it says first.
const IDLE_SAYS: &str = "waiting as";

/// See the module.
#[derive(Debug)]
pub struct Endpoint {
    /// Its name in all figures.
    pub name: String,
    /// Where it serves.
    pub socket: PathBuf,
    /// The daemon, if the benchmark started it.
    pub daemon: Option<Daemon>,
    /// The image of all containers, as this endpoint pulls it.
    pub image: String,
    logs: PathBuf,
    cgroup: String,
    cri: Option<Cri>,
    made: usize,
}

/// Which kind of pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// Its own network, and not the node's.
    pub network: bool,
    /// Under the runtime's default seccomp profile, and not without one.
    pub seccomp: bool,
}

/// A pod with its one container.
#[derive(Debug, Clone)]
pub struct Running {
    /// Sandbox id.
    pub sandbox: String,
    /// Container id.
    pub container: String,
}

/// Milliseconds of RunPodSandbox, CreateContainer, StartContainer.
pub type Up = [f64; 3];
/// Milliseconds of StopContainer, RemoveContainer, StopPodSandbox, RemovePodSandbox.
pub type Down = [f64; 4];

impl Endpoint {
    /// An endpoint that is not connected yet. Logs go below `ground`, cgroups below one of its name.
    pub fn new(name: &str, socket: &Path, daemon: Option<Daemon>, image: &str, ground: &Path) -> Self {
        let base = crate::ground::name(ground);
        Self {
            name: name.to_owned(),
            socket: socket.to_owned(),
            daemon,
            image: image.to_owned(),
            logs: ground.join("logs").join(name),
            cgroup: format!("/{base}/{name}"),
            cri: None,
            made: 0,
        }
    }

    /// Starts the daemon if it is ours and down, connects, and waits until the runtime says that it is ready.
    pub async fn ready(&mut self) -> Result<()> {
        if let Some(daemon) = &mut self.daemon {
            daemon.start()?;
        }
        let start = Instant::now();
        loop {
            match self.try_connect().await {
                Ok(cri) => {
                    self.cri = Some(cri);
                    return Ok(());
                }
                Err(error) if self.daemon.is_none() || start.elapsed() > READY_LIMIT => {
                    return Err(error.context(format!("{} does not serve", self.name)));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
            if let Some(daemon) = &mut self.daemon {
                daemon.check()?;
            }
        }
    }

    async fn try_connect(&self) -> Result<Cri> {
        let cri = Cri::connect(&self.socket).await?;
        let status = call(cri.status(cri::StatusRequest::default())).await.context("Status")?;
        let conditions = status.status.map(|status| status.conditions).unwrap_or_default();
        // There are further ones, such as containerd's on deprecated settings, and with them pods run all the same.
        let is_needed = |name: &str| ["RuntimeReady", "NetworkReady"].contains(&name);
        if let Some(bad) = conditions.iter().find(|condition| !condition.status && is_needed(&condition.r#type)) {
            bail!("{}: {} {}", bad.r#type, bad.reason, bad.message);
        }
        Ok(cri)
    }

    /// Ends the daemon if it is ours. Pods go on.
    pub fn rest(&mut self) -> Result<()> {
        self.cri = None;
        self.daemon.as_mut().map_or(Ok(()), Daemon::stop)
    }

    /// The client of a connected endpoint.
    pub fn cri(&self) -> Result<&Cri> {
        self.cri.as_ref().with_context(|| format!("{} is not connected", self.name))
    }

    /// Who listens on the socket, as the kernel knows it.
    pub fn daemon_pid(&self) -> Result<u32> {
        if let Some(daemon) = &self.daemon {
            return daemon.pid().context("the daemon is down");
        }
        let stream =
            UnixStream::connect(&self.socket).with_context(|| format!("connect to {}", self.socket.display()))?;
        let pid = getsockopt(&stream, PeerCredentials)?.pid();
        ensure!(pid > 0, "the daemon is in a foreign PID namespace");
        Ok(u32::try_from(pid)?)
    }

    /// Pulls the image of all containers.
    pub async fn pull(&self) -> Result<()> {
        call(self.cri()?.pull(&self.image)).await.with_context(|| format!("PullImage {}", self.image))?;
        Ok(())
    }

    /// Removes it again.
    pub async fn forget(&self) -> Result<()> {
        call(self.cri()?.remove_image(&self.image)).await.with_context(|| format!("RemoveImage {}", self.image))
    }

    /// A fresh name for a pod.
    pub fn next_number(&mut self) -> usize {
        self.made += 1;
        self.made
    }

    /// A pod of a kind, the so-manieth.
    pub fn pod(&self, kind: Kind, number: usize) -> Pod {
        let mut pod = Pod::new(&format!("bench-{number}"));
        pod.config.metadata.get_or_insert_default().namespace = NAMESPACE.to_owned();
        if !kind.network {
            pod = pod.host_network();
            pod.config.hostname.clear();
        }
        pod.config.log_directory = self.logs.join(number.to_string()).to_string_lossy().into_owned();
        pod.linux().cgroup_parent = self.cgroup.clone();
        pod.security().seccomp = Some(profile(kind));
        pod
    }

    /// A container that waits for SIGTERM.
    pub fn container(&self, pod: &Pod, kind: Kind) -> Container {
        let mut container = Container::new("c", &self.image).command(&IDLE);
        container.security().seccomp = Some(profile(kind));
        container.security().namespace_options =
            pod.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref()?.namespace_options.clone());
        container
    }

    /// Whether a process is what an idle container runs.
    pub fn is_workload(command: &[String]) -> bool {
        command.iter().map(String::as_str).eq(IDLE)
    }

    /// Brings a pod with a waiting container up.
    pub async fn up(&self, kind: Kind, number: usize) -> Result<(Running, Up)> {
        let pod = self.pod(kind, number);
        let container = self.container(&pod, kind);
        let up = self.up_with(&pod, &container).await?;
        // Not counted, but needed: to a PID 1 that has not asked for SIGTERM yet the kernel gives none, and the whole grace
        // period would pass.
        let log = Path::new(&pod.config.log_directory).join(&container.config.log_path);
        let start = Instant::now();
        while !std::fs::read_to_string(&log).is_ok_and(|text| text.contains(IDLE_SAYS)) {
            ensure!(start.elapsed() < READY_LIMIT, "the container does not say that it is waiting");
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
        Ok(up)
    }

    /// Brings a pod with a container up. What failed half-way is found by [`sweep`](Self::sweep).
    pub async fn up_with(&self, pod: &Pod, container: &Container) -> Result<(Running, Up)> {
        let cri = self.cri()?;
        // As a kubelet does.
        let log = Path::new(&pod.config.log_directory).join(&container.config.log_path);
        let directory = log.parent().unwrap_or(&log);
        std::fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        let request = cri::RunPodSandboxRequest { config: Some(pod.config.clone()), ..Default::default() };
        let (sandbox, run) = timed(cri.run_pod_sandbox(request)).await.context("RunPodSandbox")?;
        let sandbox = sandbox.pod_sandbox_id;
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox.clone(),
            config: Some(container.config.clone()),
            sandbox_config: Some(pod.config.clone()),
        };
        let (container, create) = timed(cri.create_container(request)).await.context("CreateContainer")?;
        let container = container.container_id;
        let ((), start) = timed(cri.start_container(&container)).await.context("StartContainer")?;
        Ok((Running { sandbox, container }, [run, create, start]))
    }

    /// Takes a pod down.
    pub async fn down(&self, running: &Running) -> Result<Down> {
        let cri = self.cri()?;
        let ((), stop) = timed(cri.stop_container(&running.container, 10)).await.context("StopContainer")?;
        let ((), remove) = timed(cri.remove_container(&running.container)).await.context("RemoveContainer")?;
        let ((), sandbox_stop) = timed(cri.stop_pod_sandbox(&running.sandbox)).await.context("StopPodSandbox")?;
        let ((), sandbox_remove) = timed(cri.remove_pod_sandbox(&running.sandbox)).await.context("RemovePodSandbox")?;
        Ok([stop, remove, sandbox_stop, sandbox_remove])
    }

    /// Runs a command in a container, which must succeed.
    pub async fn exec(&self, container: &str, command: &[&str]) -> Result<(String, f64)> {
        let request = cri::ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: command.iter().map(ToString::to_string).collect(),
            timeout: 30,
        };
        let (response, time) = timed(self.cri()?.exec_sync(request)).await.context("ExecSync")?;
        let text = String::from_utf8_lossy(&response.stdout).into_owned();
        ensure!(response.exit_code == 0, "{command:?} in the container: {} {text}", response.exit_code);
        Ok((text, time))
    }

    /// Removes every pod of the benchmark, of this run or another.
    pub async fn sweep(&self) -> Result<()> {
        let Some(cri) = &self.cri else { return Ok(()) };
        let list = call(cri.list_pod_sandbox(cri::ListPodSandboxRequest::default())).await.context("ListPodSandbox")?;
        for sandbox in list.items {
            if sandbox.metadata.is_some_and(|metadata| metadata.namespace == NAMESPACE) {
                call(cri.stop_pod_sandbox(&sandbox.id)).await.context("StopPodSandbox")?;
                call(cri.remove_pod_sandbox(&sandbox.id)).await.context("RemovePodSandbox")?;
            }
        }
        Ok(())
    }
}

fn profile(kind: Kind) -> SecurityProfile {
    let kind = if kind.seccomp { ProfileType::RuntimeDefault } else { ProfileType::Unconfined };
    SecurityProfile { profile_type: kind.into(), ..Default::default() }
}

/// A call with its limit; the error has code and message.
pub async fn call<T>(future: impl Future<Output = Result<T, Status>>) -> Result<T> {
    match tokio::time::timeout(CALL_LIMIT, future).await {
        Ok(result) => result.map_err(|status| anyhow::anyhow!("{:?}: {}", status.code(), status.message())),
        Err(_) => bail!("no answer within {CALL_LIMIT:?}"),
    }
}

/// A call and its milliseconds.
pub async fn timed<T>(future: impl Future<Output = Result<T, Status>>) -> Result<(T, f64)> {
    let start = Instant::now();
    let answer = call(future).await?;
    Ok((answer, start.elapsed().as_secs_f64() * 1e3))
}
