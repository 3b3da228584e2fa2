//! One pod's life under `vaina run`.
//!
//! ```text
//! made (directory, volumes, sandbox) ──▶ each container: waiting ⇄ running ──▶ done ──▶ ended (all taken away)
//!        └─────────── any failure, Ctrl-C, `vaina stop` ──────────────────────────────────▲
//! ```
//!
//! Starts are made one at a time in the manifest's order, as a kubelet makes them. Whatever comes, the way out is the
//! same: stop what runs within the grace period, then the sandbox, then what is on disk. A start that is under way when
//! the end comes is left to the daemon, which removes a container with its sandbox.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use futures::future::join_all;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use thiserror::Error;
use tokio::{sync::watch, task::JoinHandle, time::sleep_until};
use tonic::Code;
use vaina_proto::cri;

use super::{
    back_off::BackOff,
    convert::{self, ConvertError, Host, Identity, Image, Paths},
    daemon::{Daemon, DaemonError},
    directory::{DirectoryError, PodDirectory, Pods, Stop, Waiting, unix_milliseconds},
    end, log,
    terminal::{Level, Subject, Terminal, duration},
    volumes::{self, VolumeError},
};
use crate::{
    config,
    error::{Chain, Classify, Kind},
    network::Network,
};

/// How soon an end of a container is seen where the daemon sends no events.
const LOOK: Duration = Duration::from_millis(100);
/// What a container may leave as its last words (Kubernetes' limits).
const MESSAGE_LIMIT: u64 = 4096;

/// The exit code of one that a grace period was not long enough for.
const KILLED: i32 = 137;
/// What the runtime gives a container that it could not start.
const NOT_STARTED: u8 = 128;
/// So often is a start tried that never worked before: a person waits for it.
const FIRST_TRIES: u32 = 3;

/// What the pods of one `vaina run` have in common.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) daemon: Daemon,
    pub(super) pods: Pods,
    pub(super) host: Host,
    /// The built-in network, to look for firewalls in its way.
    pub(super) network: Option<config::Network>,
    pub(super) terminal: Terminal,
    /// `--grace-period`, instead of each pod's own.
    pub(super) grace: Option<Duration>,
    pub(super) back_off: Duration,
    /// More than one pod: names of containers carry the pod's.
    pub(super) several: bool,
}

/// How often the person said to end, and with which signal at first.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Interrupts {
    pub(super) count: u32,
    pub(super) signal: i32,
}

/// Why a pod did not come up or did not go away.
#[derive(Debug, Error)]
pub(super) enum PodError {
    /// Its directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// A volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The daemon.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// A container that can't be what the manifest wants.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// A file of the pod.
    #[error("write {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// `imagePullPolicy: Never`.
    #[error("find image {image}: it is not here and imagePullPolicy is Never")]
    NoImage {
        /// Its name.
        image: String,
    },
    /// A container that could not be started for the first time, and never will be.
    #[error("start container {container}")]
    Start {
        /// Its name.
        container: String,
        /// What to exit with.
        code: u8,
        /// Cause.
        #[source]
        source: Box<PodError>,
    },
}

impl PodError {
    /// Trying again can't help: something that the manifest names is not there, or not possible.
    fn is_final(&self) -> bool {
        match self {
            Self::Convert(_) | Self::NoImage { .. } | Self::Volume(_) => true,
            Self::Daemon(error) => matches!(
                error.code(),
                Some(
                    Code::InvalidArgument
                        | Code::NotFound
                        | Code::FailedPrecondition
                        | Code::PermissionDenied
                        | Code::Unauthenticated
                        | Code::Unimplemented
                )
            ),
            Self::Directory(_) | Self::File { .. } | Self::Start { .. } => false,
        }
    }
}

impl Classify for PodError {
    fn kind(&self) -> Kind {
        match self {
            Self::Directory(error) => error.kind(),
            Self::Volume(error) => error.kind(),
            Self::Daemon(error) => error.kind(),
            Self::Convert(_) => Kind::InvalidArgument,
            Self::File { .. } => Kind::Internal,
            Self::NoImage { .. } => Kind::NotFound,
            Self::Start { source, .. } => source.kind(),
        }
    }
}

/// Runs a pod to its end and takes everything away. The code is what this program exits with.
pub(super) async fn run(
    context: &Arc<Context>,
    pod: Pod,
    directory: PodDirectory,
    color: usize,
    mut interrupts: watch::Receiver<Interrupts>,
) -> u8 {
    let mut life = Life::new(context, pod, directory, color);
    let mut stop = stop_requests(life.directory.path());
    let result = tokio::select! {
        result = life.live() => result,
        outcome = stopped(&mut stop, &mut interrupts) => Ok(outcome),
    };
    let code = match result {
        Ok(Outcome::Completed(code)) => code,
        Ok(Outcome::Interrupted(signal)) => {
            let grace = context.grace.unwrap_or_else(|| grace_period(&life.spec));
            life.event(Level::Normal, "Stopping", &format!("within {}", duration(grace)));
            // Only for `vaina ps`: this process knows already.
            let _ = life.directory.request_stop(Stop::within(grace));
            u8::try_from(128 + signal).unwrap_or(1)
        }
        Ok(Outcome::Stopped(request)) => {
            life.event(Level::Normal, "Stopping", &format!("as asked, within {}", duration(request.left())));
            0
        }
        Err(error) => {
            life.event(Level::Warning, "Failed", &Chain(&error).to_string());
            if let PodError::Start { code, .. } = error { code } else { 1 }
        }
    };
    match life.end(&mut interrupts).await {
        Ok(()) => code,
        Err(error) => {
            life.event(Level::Warning, "NotRemoved", &Chain(&error).to_string());
            if code == 0 { 1 } else { code }
        }
    }
}

/// terminationGracePeriodSeconds, as a length of time.
pub(super) fn grace_period(spec: &PodSpec) -> Duration {
    Duration::from_secs(u64::try_from(convert::grace_period(spec)).unwrap_or(0)).max(end::SMALL_GRACE)
}

/// What ended the pod's life.
enum Outcome {
    /// All containers are done.
    Completed(u8),
    /// A signal came.
    Interrupted(i32),
    /// `vaina stop`.
    Stopped(Stop),
}

/// One container over all its attempts.
struct Member {
    container: Container,
    subject: Subject,
    back_off: BackOff,
    attempt: u32,
    /// Tries at a start that did not get as far as the container.
    failures: u32,
    state: State,
    /// The ended attempt that `vaina logs --previous` reads.
    previous: Option<(String, u32)>,
    log: Option<(watch::Sender<bool>, JoinHandle<()>)>,
}

/// drawn at the top of the module
enum State {
    /// To be started, at once or at a time.
    Waiting(Instant),
    /// The daemon has it.
    Running { id: String, since: Instant },
    /// It will not be started again.
    Done { code: i32 },
}

struct Life {
    context: Arc<Context>,
    pod: Pod,
    spec: PodSpec,
    directory: PodDirectory,
    paths: Paths,
    subject: Subject,
    members: Vec<Member>,
    sandbox: Option<(String, cri::PodSandboxConfig)>,
    /// Counts sandboxes: one that ends under the pod is replaced.
    attempt: u32,
    addresses: Vec<String>,
}

impl Life {
    fn new(context: &Arc<Context>, pod: Pod, directory: PodDirectory, color: usize) -> Self {
        let spec = convert::spec(&pod);
        let name = Identity::of(&pod).name.to_owned();
        let members = spec.containers.iter().enumerate().map(|(index, container)| {
            let label = if context.several { format!("{name}/{}", container.name) } else { container.name.clone() };
            Member {
                container: container.clone(),
                subject: Subject::new(label, color + 1 + index),
                back_off: BackOff::new(context.back_off),
                attempt: 0,
                failures: 0,
                state: State::Waiting(Instant::now()),
                previous: None,
                log: None,
            }
        });
        Self {
            context: Arc::clone(context),
            members: members.collect(),
            paths: directory.paths(),
            subject: Subject::new(name, color),
            sandbox: None,
            attempt: 0,
            addresses: Vec::new(),
            pod,
            spec,
            directory,
        }
    }

    fn event(&self, level: Level, reason: &str, message: &str) {
        self.context.terminal.event(&self.subject, level, reason, message);
    }

    async fn live(&mut self) -> Result<Outcome, PodError> {
        volumes::make(&self.spec, &self.paths)?;
        self.start_sandbox().await?;
        loop {
            if let Some(index) = self.due() {
                self.start(index).await?;
                continue;
            }
            if let Some(outcome) = self.outcome() {
                return Ok(outcome);
            }
            self.note_waiting();
            let next = self.next_start();
            tokio::select! {
                () = async {
                    match next {
                        Some(at) => sleep_until(at.into()).await,
                        None => std::future::pending().await,
                    }
                } => {}
                ended = self.ended() => {
                    for id in ended? {
                        self.note_end(&id).await?;
                    }
                }
            }
        }
    }

    async fn start_sandbox(&mut self) -> Result<(), PodError> {
        let begin = Instant::now();
        let mut config = convert::sandbox(&self.pod, &self.paths, &self.context.host);
        if let Some(metadata) = &mut config.metadata {
            metadata.attempt = self.attempt;
        }
        let handler = self.spec.runtime_class_name.clone().unwrap_or_default();
        let daemon = &self.context.daemon;
        let request = cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler };
        let answer = daemon
            .call("RunPodSandbox", |daemon| {
                let request = request.clone();
                async move { daemon.runtime().run_pod_sandbox(request).await }
            })
            .await?;
        let id = answer.pod_sandbox_id;
        self.sandbox = Some((id.clone(), config));
        let answer = daemon.sandbox(&id, false).await?;
        let network = answer.status.and_then(|status| status.network).unwrap_or_default();
        self.addresses = std::iter::once(network.ip)
            .chain(network.additional_ips.into_iter().map(|ip| ip.ip))
            .filter(|ip| !ip.is_empty())
            .collect();
        self.write_hosts()?;
        let place = match self.addresses.as_slice() {
            [] => "in the host's network".to_owned(),
            addresses => format!("at {}", addresses.join(", ")),
        };
        self.event(Level::Normal, "Sandbox", &format!("{place}, in {}", duration(begin.elapsed())));
        self.tell_findings().await;
        Ok(())
    }

    /// Names rules of other firewalls that keep traffic from the pod: our accept does not override their drop.
    async fn tell_findings(&self) {
        let addresses: Vec<IpAddr> = self.addresses.iter().filter_map(|address| address.parse().ok()).collect();
        let Some(network) = self.context.network.as_ref().filter(|_| !addresses.is_empty()) else { return };
        match Network::findings_on(network, &addresses).await {
            Ok(findings) => {
                for finding in findings {
                    self.event(Level::Warning, "Firewall", &finding);
                }
            }
            // Only advice: the pod runs without it.
            Err(error) => self.event(Level::Warning, "Firewall", &format!("not looked at: {}", Chain(&error))),
        }
    }

    /// Makes a new sandbox if the pod's has ended (its shim was killed, say), as a kubelet does. What ran in it is noted
    /// as ended in the usual way.
    async fn keep_sandbox(&mut self) -> Result<(), PodError> {
        let (id, _) = self.sandbox.clone().unwrap_or_default();
        let answer = self.context.daemon.sandbox(&id, false).await;
        match answer {
            Ok(answer) => {
                let state = answer.status.map(|status| status.state);
                if state == Some(cri::PodSandboxState::SandboxReady.into()) {
                    return Ok(());
                }
            }
            Err(error) if error.code() == Some(Code::NotFound) => {}
            Err(error) => return Err(error.into()),
        }
        self.event(Level::Warning, "SandboxChanged", "the sandbox has ended under the pod; making a new one");
        end::remove_sandboxes(&self.context.daemon, &self.directory).await?;
        self.attempt += 1;
        self.start_sandbox().await
    }

    fn write_hosts(&self) -> Result<(), PodError> {
        let path = self.paths.hosts();
        let text = if self.spec.host_network == Some(true) {
            convert::host_hosts(&self.spec, &std::fs::read_to_string("/etc/hosts").unwrap_or_default())
        } else {
            let config = self.sandbox.as_ref().map(|(_, config)| config.hostname.as_str());
            convert::hosts(&self.spec, config.unwrap_or(""), &self.addresses)
        };
        vaina_sys::fs::write_atomic(&path, text.as_bytes(), 0o644, false)
            .map_err(|source| PodError::File { path, source })
    }

    /// The first container in the manifest's order that is to be started now.
    fn due(&self) -> Option<usize> {
        let now = Instant::now();
        self.members.iter().position(|member| matches!(member.state, State::Waiting(at) if at <= now))
    }

    fn next_start(&self) -> Option<Instant> {
        let times = self.members.iter().filter_map(|member| match member.state {
            State::Waiting(at) => Some(at),
            State::Running { .. } | State::Done { .. } => None,
        });
        times.min()
    }

    /// Something once every container is done: 0, or the code of the first that failed.
    fn outcome(&self) -> Option<Outcome> {
        let mut codes = Vec::new();
        for member in &self.members {
            match member.state {
                State::Done { code } => codes.push(code),
                State::Waiting(_) | State::Running { .. } => return None,
            }
        }
        let code = codes.into_iter().find(|code| *code != 0).unwrap_or(0);
        Some(Outcome::Completed(u8::try_from(code).unwrap_or(1)))
    }

    /// One attempt at a container. An error only if there can be no other.
    async fn start(&mut self, index: usize) -> Result<(), PodError> {
        let is_first = self.members[index].attempt == 0 && self.members[index].previous.is_none();
        if !is_first && let Err(error) = self.keep_sandbox().await {
            return self.not_started(index, error, "SandboxError", is_first);
        }
        let image = match self.image(index).await {
            Ok(image) => image,
            Err(error) => return self.not_started(index, error, "ErrImagePull", is_first),
        };
        let begin = Instant::now();
        let id = match self.create(index, &image).await {
            Ok(id) => id,
            Err(error) => return self.not_started(index, error, "CreateContainerError", is_first),
        };
        let created = begin.elapsed();
        let request = cri::StartContainerRequest { container_id: id.clone() };
        let started = self
            .context
            .daemon
            .call("StartContainer", |daemon| {
                let request = request.clone();
                async move { daemon.runtime().start_container(request).await }
            })
            .await;
        let member = &mut self.members[index];
        // The first start is no restart: the one after it is at once.
        if !is_first {
            member.back_off.restarted(Instant::now());
        }
        match started {
            Ok(_) => {
                let all = begin.elapsed();
                let text = format!("created in {}, started in {}", duration(created), duration(all - created));
                member.state = State::Running { id, since: Instant::now() };
                self.context.terminal.event(&member.subject, Level::Normal, "Started", &text);
                // From its beginning, and after the word that it began.
                self.follow_log(index);
                Ok(())
            }
            Err(error) => {
                let container = member.container.name.clone();
                if is_first {
                    return Err(PodError::Start { container, code: NOT_STARTED, source: Box::new(error.into()) });
                }
                let text = Chain(&error).to_string();
                self.context.terminal.event(&member.subject, Level::Warning, "Failed", &text);
                // An attempt was made: what became of it decides, as of any that ran.
                member.state = State::Running { id: id.clone(), since: Instant::now() };
                self.note_end(&id).await
            }
        }
    }

    fn not_started(&mut self, index: usize, error: PodError, reason: &str, is_first: bool) -> Result<(), PodError> {
        let never = self.spec.restart_policy.as_deref() == Some("Never");
        let member = &mut self.members[index];
        member.failures += 1;
        if is_first && (never || error.is_final() || member.failures >= FIRST_TRIES) {
            let container = member.container.name.clone();
            return Err(PodError::Start { container, code: 1, source: Box::new(error) });
        }
        let now = Instant::now();
        member.back_off.restarted(now);
        let delay = member.back_off.delay(now);
        member.state = State::Waiting(now + delay);
        let text = format!("{}; trying again in {}", Chain(&error), duration(delay));
        self.context.terminal.event(&member.subject, Level::Warning, reason, &text);
        Ok(())
    }

    /// The container's image, pulled if its policy says so.
    async fn image(&self, index: usize) -> Result<Image, PodError> {
        let member = &self.members[index];
        let name = member.container.image.clone().unwrap_or_default();
        let policy = match member.container.image_pull_policy.as_deref() {
            Some(policy) => policy,
            None => default_pull_policy(&name),
        };
        let event =
            |reason: &str, text: &str| self.context.terminal.event(&member.subject, Level::Normal, reason, text);
        if policy != "Always" {
            if let Some(image) = self.image_status(&name).await? {
                return Ok(image);
            }
            if policy == "Never" {
                return Err(PodError::NoImage { image: name });
            }
        }
        event("Pulling", &format!("image {name}"));
        let begin = Instant::now();
        let request = cri::PullImageRequest {
            image: Some(cri::ImageSpec { image: name.clone(), ..Default::default() }),
            auth: None,
            sandbox_config: self.sandbox.as_ref().map(|(_, config)| config.clone()),
        };
        let answer = self
            .context
            .daemon
            .call("PullImage", |daemon| {
                let request = request.clone();
                async move { daemon.images().pull_image(request).await }
            })
            .await?;
        event("Pulled", &format!("image {name} in {}", duration(begin.elapsed())));
        let image = self.image_status(&answer.image_ref).await?;
        image.ok_or(PodError::NoImage { image: name })
    }

    async fn image_status(&self, name: &str) -> Result<Option<Image>, PodError> {
        let request = cri::ImageStatusRequest {
            image: Some(cri::ImageSpec { image: name.to_owned(), ..Default::default() }),
            verbose: false,
        };
        let answer = self
            .context
            .daemon
            .call("ImageStatus", |daemon| {
                let request = request.clone();
                async move { daemon.images().image_status(request).await }
            })
            .await?;
        Ok(answer.image.map(|image| Image {
            reference: image.id,
            uid: image.uid.map(|uid| uid.value),
            username: image.username,
        }))
    }

    async fn create(&mut self, index: usize, image: &Image) -> Result<String, PodError> {
        let member = &self.members[index];
        let (name, attempt) = (&member.container.name, member.attempt);
        let failed = |source| PodError::File { path: self.paths.message(name, attempt), source };
        self.directory.create_message(name, attempt).map_err(failed)?;
        let config = convert::container(
            &self.pod,
            &member.container,
            attempt,
            image,
            &self.addresses,
            &self.paths,
            &self.context.host,
        )?;
        let (sandbox, sandbox_config) = self.sandbox.clone().unwrap_or_default();
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox,
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let answer = self
            .context
            .daemon
            .call("CreateContainer", |daemon| {
                let request = request.clone();
                async move { daemon.runtime().create_container(request).await }
            })
            .await?;
        Ok(answer.container_id)
    }

    fn log_path(&self, container: &str, attempt: u32) -> PathBuf {
        let directory = convert::log_directory(&self.paths.logs, Identity::of(&self.pod));
        directory.join(container).join(format!("{attempt}.log"))
    }

    fn follow_log(&mut self, index: usize) {
        let path = self.log_path(&self.members[index].container.name, self.members[index].attempt);
        let (done, is_done) = watch::channel(false);
        let (context, member) = (Arc::clone(&self.context), &mut self.members[index]);
        let subject = member.subject.clone();
        let task = tokio::spawn(async move {
            let result = log::follow(&path, is_done, |line| context.terminal.line(&subject, &line)).await;
            if let Err(error) = result {
                let text = format!("read {}: {error}", path.display());
                context.terminal.event(&subject, Level::Warning, "NoLog", &text);
            }
        });
        member.log = Some((done, task));
    }

    /// Waits until a running container is not running any more; also an error if the sandbox itself is gone.
    async fn ended(&self) -> Result<Vec<String>, PodError> {
        let Some((sandbox, _)) = &self.sandbox else { return std::future::pending().await };
        let running: Vec<&String> = self
            .members
            .iter()
            .filter_map(|member| match &member.state {
                State::Running { id, .. } => Some(id),
                State::Waiting(_) | State::Done { .. } => None,
            })
            .collect();
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let containers = match end::containers(&self.context.daemon, sandbox).await {
                Ok(containers) => containers,
                Err(error) if error.kind() == Kind::Unavailable => {
                    let text = format!("{}; the containers go on", Chain(&error));
                    self.event(Level::Warning, "DaemonGone", &text);
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let is_running = |id: &String| {
                let running = i32::from(cri::ContainerState::ContainerRunning);
                containers.iter().any(|container| &container.id == id && container.state == running)
            };
            let ended: Vec<String> = running.iter().filter(|id| !is_running(id)).map(|id| (*id).clone()).collect();
            if !ended.is_empty() {
                return Ok(ended);
            }
        }
    }

    /// Takes note of a container's end and decides whether it is started again.
    async fn note_end(&mut self, id: &str) -> Result<(), PodError> {
        let found =
            self.members.iter().position(|member| matches!(&member.state, State::Running { id: own, .. } if own == id));
        let Some(index) = found else { return Ok(()) };
        let status = match self.context.daemon.container(id, false).await {
            Ok(answer) => answer.status.unwrap_or_default(),
            // Somebody removed it under us.
            Err(error) if error.code() == Some(Code::NotFound) => {
                cri::ContainerStatus { exit_code: 255, reason: "Removed".to_owned(), ..Default::default() }
            }
            Err(error) => return Err(error.into()),
        };
        self.finish_log(index).await;
        let words = self.last_words(index, &status).await;
        let policy = self.spec.restart_policy.clone().unwrap_or_else(|| "Always".to_owned());
        let member = &mut self.members[index];
        let State::Running { since, .. } = member.state else { return Ok(()) };
        let code = status.exit_code;
        let mut text = ending(&status, since);
        if !words.is_empty() {
            text += &format!("\nlast words: {words}");
        }
        let level = if code == 0 { Level::Normal } else { Level::Warning };
        let reason = match status.reason.as_str() {
            "" if code == 0 => "Completed",
            "" => "Error",
            reason => reason,
        };
        self.context.terminal.event(&member.subject, level, reason, &text);
        if policy == "Never" || (policy == "OnFailure" && code == 0) {
            member.state = State::Done { code };
            return Ok(());
        }
        let now = Instant::now();
        let delay = member.back_off.delay(now);
        member.state = State::Waiting(now + delay);
        let older = member.previous.replace((id.to_owned(), member.attempt));
        member.attempt += 1;
        if delay > Duration::ZERO {
            let text = format!("starting again in {}", duration(delay));
            self.context.terminal.event(&member.subject, Level::Warning, "CrashLoopBackOff", &text);
        }
        // One ended attempt is kept, for its log.
        if let Some((older, attempt)) = older {
            let name = self.members[index].container.name.clone();
            let request = cri::RemoveContainerRequest { container_id: older };
            self.context
                .daemon
                .call("RemoveContainer", |daemon| {
                    let request = request.clone();
                    async move { daemon.runtime().remove_container(request).await }
                })
                .await?;
            self.directory.remove_attempt(&self.log_path(&name, attempt), &name, attempt);
        }
        Ok(())
    }

    /// What the container wrote to its terminationMessagePath, or at the end of its log if its policy says so.
    async fn last_words(&self, index: usize, status: &cri::ContainerStatus) -> String {
        const LOG_LINES: usize = 80;
        const LOG_BYTES: usize = 2048;
        let Member { container, attempt, .. } = &self.members[index];
        let message = self.directory.read_message(&container.name, *attempt, MESSAGE_LIMIT);
        let falls_back = container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
        if !message.is_empty() || !falls_back || status.exit_code == 0 {
            return message;
        }
        let mut lines: Vec<String> = Vec::new();
        let done = watch::channel(true).1;
        let path = self.log_path(&container.name, *attempt);
        // What of the log is missing is missing here too.
        let _ = log::follow(&path, done, |line| lines.push(String::from_utf8_lossy(&line.text).into_owned())).await;
        let text = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
        let start = (text.len().saturating_sub(LOG_BYTES)..=text.len()).find(|at| text.is_char_boundary(*at));
        text[start.unwrap_or(0)..].to_owned()
    }

    /// All lines of the attempt are on the screen when this returns.
    async fn finish_log(&mut self, index: usize) {
        if let Some((done, task)) = self.members[index].log.take() {
            let _ = done.send(true);
            let _ = task.await;
        }
    }

    /// For `vaina ps`: who waits, and until when.
    fn note_waiting(&self) {
        let (instant, now) = (Instant::now(), SystemTime::now());
        let waiting: BTreeMap<String, Waiting> = self
            .members
            .iter()
            .filter_map(|member| match member.state {
                State::Waiting(at) => {
                    let reason = if member.previous.is_some() { "CrashLoopBackOff" } else { "ImagePullBackOff" };
                    let until = unix_milliseconds(now + at.saturating_duration_since(instant));
                    Some((member.container.name.clone(), Waiting { reason: reason.to_owned(), until }))
                }
                State::Running { .. } | State::Done { .. } => None,
            })
            .collect();
        let is_same = self.directory.waiting().keys().eq(waiting.keys());
        if !is_same {
            // Only shown: a full disk must not end a pod that runs.
            let _ = self.directory.write_waiting(&waiting);
        }
    }

    /// Within the grace period; who asks again is told what is waited for.
    async fn stop_containers(&self, interrupts: &mut watch::Receiver<Interrupts>) -> Result<(), PodError> {
        let daemon = &self.context.daemon;
        let mut stopping = std::pin::pin!(end::stop_containers(daemon, &self.directory));
        interrupts.mark_unchanged();
        loop {
            tokio::select! {
                result = &mut stopping => return Ok(result?),
                changed = interrupts.changed() => {
                    if changed.is_err() {
                        return Ok(stopping.await?);
                    }
                    let names = end::running(daemon, &self.directory).await.unwrap_or_default().join(", ");
                    let left = self.directory.stop().map_or(Duration::ZERO, Stop::left);
                    let stop = Identity::of(&self.pod).stop_command();
                    let text = format!("for {names}; killed in {} (sooner: {stop} --grace-period=N)", duration(left));
                    self.event(Level::Normal, "Waiting", &text);
                }
            }
        }
    }

    /// Says how a container took its stop.
    async fn tell_stopped(&self, index: usize) {
        let member = &self.members[index];
        let State::Running { id, since } = &member.state else { return };
        // Only told: a pod must go whether or not anybody knows how its containers ended.
        let Some(status) = self.context.daemon.container(id, false).await.ok().and_then(|answer| answer.status) else {
            return;
        };
        let reason = if status.exit_code == KILLED { "Killed" } else { "Stopped" };
        self.context.terminal.event(&member.subject, Level::Normal, reason, &ending(&status, *since));
    }

    /// Takes everything away. The pod is Terminating from here on.
    async fn end(&mut self, interrupts: &mut watch::Receiver<Interrupts>) -> Result<(), PodError> {
        let begin = Instant::now();
        // One that ended by itself has nothing left to be given time.
        if self.directory.stop().is_none() {
            let grace = self.context.grace.unwrap_or_else(|| grace_period(&self.spec));
            self.directory.request_stop(Stop::within(grace))?;
        }
        self.stop_containers(interrupts).await?;
        for index in 0..self.members.len() {
            self.finish_log(index).await;
            self.tell_stopped(index).await;
        }
        end::remove_sandboxes(&self.context.daemon, &self.directory).await?;
        self.directory.remove()?;
        self.event(Level::Normal, "Removed", &format!("in {}", duration(begin.elapsed())));
        Ok(())
    }
}

/// Says when the pod's `stop.json` appears.
fn stop_requests(directory: &Path) -> watch::Receiver<Option<Stop>> {
    let (sender, receiver) = watch::channel(None);
    let directory = directory.to_owned();
    tokio::spawn(async move {
        let mut changes = log::Changes::of(&directory);
        while !sender.is_closed() {
            let request = std::fs::read(directory.join("stop.json")).ok();
            if let Some(stop) = request.and_then(|bytes| serde_json::from_slice::<Stop>(&bytes).ok()) {
                // The first is enough: who ends the pod reads the file for what is asked later.
                let _ = sender.send(Some(stop));
                return;
            }
            tokio::select! {
                () = changes.next() => {}
                () = sender.closed() => {}
            }
        }
    });
    receiver
}

async fn stopped(stop: &mut watch::Receiver<Option<Stop>>, interrupts: &mut watch::Receiver<Interrupts>) -> Outcome {
    let requested = async {
        match stop.wait_for(Option::is_some).await {
            Ok(request) => *request,
            Err(_) => None,
        }
    };
    let interrupted = async {
        let signal = interrupts.wait_for(|interrupts| interrupts.count > 0).await.map(|interrupts| interrupts.signal);
        match signal {
            Ok(signal) => signal,
            // Nobody is left to send one.
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        Some(request) = requested => Outcome::Stopped(request),
        signal = interrupted => Outcome::Interrupted(signal),
        else => std::future::pending().await,
    }
}

/// Kubernetes' default: a name that can move is asked for each time.
fn default_pull_policy(image: &str) -> &'static str {
    let name = image.rsplit('/').next().unwrap_or(image);
    let is_fixed = name.contains('@') || name.split_once(':').is_some_and(|(_, tag)| tag != "latest");
    if is_fixed { "IfNotPresent" } else { "Always" }
}

/// How long it ran, by the runtime's clock if it has told both times.
fn ran(status: &cri::ContainerStatus, since: Instant) -> Duration {
    let time = |nanos: i64| u64::try_from(nanos).ok().filter(|nanos| *nanos > 0);
    match (time(status.started_at), time(status.finished_at)) {
        (Some(started), Some(finished)) if finished >= started => Duration::from_nanos(finished - started),
        _ => since.elapsed(),
    }
}

/// A container's end in words.
fn ending(status: &cri::ContainerStatus, since: Instant) -> String {
    let code = status.exit_code;
    let time = duration(ran(status, since));
    let mut text = if code == 0 { format!("done after {time}") } else { format!("exit code {code} after {time}") };
    if let Some(signal) = signal_name(code) {
        text += &format!(" ({signal})");
    }
    if !status.message.is_empty() {
        text += &format!(": {}", status.message);
    }
    text
}

/// The signal that such an exit code stands for.
fn signal_name(code: i32) -> Option<&'static str> {
    nix::sys::signal::Signal::try_from(code.checked_sub(128)?).ok().map(nix::sys::signal::Signal::as_str)
}

/// When a container was created, for people who count in ages.
pub(super) fn age(created_at: i64) -> Duration {
    let created = UNIX_EPOCH + Duration::from_nanos(u64::try_from(created_at).unwrap_or(0));
    SystemTime::now().duration_since(created).unwrap_or_default()
}

/// Waits for all, so that one that fails does not keep the others from ending.
pub(super) async fn all<T, E>(futures: impl IntoIterator<Item = impl Future<Output = Result<T, E>>>) -> Result<(), E> {
    let results = join_all(futures).await;
    results.into_iter().try_for_each(|result| result.map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_of_signals() {
        assert_eq!(
            [143, 137, 128, 255, 1, -1].map(signal_name),
            [Some("SIGTERM"), Some("SIGKILL"), None, None, None, None]
        );
    }

    #[test]
    fn pull_policies() {
        for (image, policy) in [
            ("busybox", "Always"),
            ("busybox:latest", "Always"),
            ("busybox:1", "IfNotPresent"),
            ("localhost:5000/busybox", "Always"),
            ("localhost:5000/busybox:1", "IfNotPresent"),
            ("busybox@sha256:abc", "IfNotPresent"),
            ("a/b@sha256:abc", "IfNotPresent"),
        ] {
            assert_eq!(default_pull_policy(image), policy, "{image}");
        }
    }
}
