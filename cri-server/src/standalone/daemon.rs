//! The CRI socket, and a daemon inside this process when nothing answers there.
//!
//! The engine is the same either way, and so is the way to it. An embedded daemon serves the usual socket, so commands
//! in other terminals find it; when it goes with its process, the next one that needs a daemon becomes it.

use std::{
    error::Error,
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::{net::UnixStream, sync::Mutex, time::timeout};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint, Uri},
};
use vaina_proto::cri::{
    self, VersionRequest, image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient,
};

use crate::{
    app::StartError,
    error::{Classify, Kind},
};

/// What answers a Version call at all answers it at once.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// How long two that become the daemon at once may take to agree who is it, recovery included.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Both streams of an exec at their cap, and a little more.
const MESSAGE_LIMIT: usize = 40 << 20;

/// Ends a running daemon in order, and leaves its pods alone.
pub(super) type Running = Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send>;

/// Starts a daemon in this process that serves the endpoint.
pub(super) type Start =
    Arc<dyn Fn() -> BoxFuture<'static, Result<Running, Box<dyn Error + Send + Sync>>> + Send + Sync>;

/// The way to a daemon.
#[derive(Clone)]
pub(super) struct Daemon {
    endpoint: PathBuf,
    channel: Channel,
    start: Option<Start>,
    running: Arc<Mutex<Option<Running>>>,
}

impl fmt::Debug for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Daemon").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl Daemon {
    /// Nothing is connected yet; without `start` nothing is started either.
    pub(super) fn new(endpoint: &Path, start: Option<Start>) -> Self {
        let path = endpoint.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The channel connects anew by itself when the daemon was restarted.
        let channel = Endpoint::from_static("http://cri.invalid").connect_with_connector_lazy(connector);
        Self { endpoint: endpoint.to_owned(), channel, start, running: Arc::default() }
    }

    pub(super) fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LIMIT)
    }

    pub(super) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(super) fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LIMIT)
    }

    /// Whether a daemon answers.
    pub(super) async fn answers(&self) -> Result<(), DaemonError> {
        let silent = |reason| DaemonError::Silent { endpoint: self.endpoint.clone(), reason };
        match timeout(ANSWER_LIMIT, self.runtime().version(VersionRequest::default())).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) => Err(silent(root_cause(&status))),
            Err(_) => Err(silent("no answer in time".to_owned())),
        }
    }

    /// Returns once a daemon answers; says whether it was started here.
    pub(super) async fn ensure(&self) -> Result<bool, DaemonError> {
        let Err(silent) = self.answers().await else { return Ok(false) };
        let Some(start) = &self.start else { return Err(silent) };
        let mut running = self.running.lock().await;
        let attempts = async {
            loop {
                // Another task, or another process, may have been faster.
                if self.answers().await.is_ok() {
                    return Ok(false);
                }
                match start().await {
                    Ok(daemon) => {
                        *running = Some(daemon);
                        return self.answers().await.map(|()| true);
                    }
                    Err(source) if is_taken(&*source) => tokio::time::sleep(Duration::from_millis(50)).await,
                    Err(source) => return Err(DaemonError::Start { source }),
                }
            }
        };
        timeout(START_LIMIT, attempts).await.unwrap_or(Err(silent))
    }

    /// Ends the daemon that was started here, if one was.
    pub(super) async fn end(&self) {
        let running = self.running.lock().await.take();
        if let Some(end) = running {
            end().await;
        }
    }

    /// Calls; when the daemon went away meanwhile, sees to one and calls again. Every changing call of the CRI may be
    /// made twice: the second one joins the first or gets its answer.
    pub(super) async fn call<T, F>(&self, verb: &'static str, call: impl Fn(Self) -> F) -> Result<T, DaemonError>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        const ATTEMPTS: usize = 3;
        let mut attempt = 1;
        loop {
            match call(self.clone()).await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) if is_disconnection(&status) && attempt < ATTEMPTS => {
                    attempt += 1;
                    self.ensure().await?;
                }
                Err(status) => return Err(DaemonError::Call { verb, status: Box::new(status) }),
            }
        }
    }

    /// ListContainers.
    pub(super) async fn containers(&self, filter: cri::ContainerFilter) -> Result<Vec<cri::Container>, DaemonError> {
        let request = cri::ListContainersRequest { filter: Some(filter) };
        let answer = self
            .call("ListContainers", |daemon| {
                let request = request.clone();
                async move { daemon.runtime().list_containers(request).await }
            })
            .await?;
        Ok(answer.containers)
    }

    /// ContainerStatus.
    pub(super) async fn container(&self, id: &str, verbose: bool) -> Result<cri::ContainerStatusResponse, DaemonError> {
        let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose };
        self.call("ContainerStatus", |daemon| {
            let request = request.clone();
            async move { daemon.runtime().container_status(request).await }
        })
        .await
    }

    /// ListPodSandbox.
    pub(super) async fn sandboxes(&self, filter: cri::PodSandboxFilter) -> Result<Vec<cri::PodSandbox>, DaemonError> {
        let request = cri::ListPodSandboxRequest { filter: Some(filter) };
        let answer = self
            .call("ListPodSandbox", |daemon| {
                let request = request.clone();
                async move { daemon.runtime().list_pod_sandbox(request).await }
            })
            .await?;
        Ok(answer.items)
    }

    /// PodSandboxStatus.
    pub(super) async fn sandbox(&self, id: &str, verbose: bool) -> Result<cri::PodSandboxStatusResponse, DaemonError> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose };
        self.call("PodSandboxStatus", |daemon| {
            let request = request.clone();
            async move { daemon.runtime().pod_sandbox_status(request).await }
        })
        .await
    }
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum DaemonError {
    /// Nothing serves the socket.
    #[error("reach a daemon at {}: {reason}", endpoint.display())]
    Silent {
        /// The socket.
        endpoint: PathBuf,
        /// What connecting or the answer said.
        reason: String,
    },
    /// None could be started here.
    #[error("start a daemon in this process")]
    Start {
        /// Cause.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// It said no.
    #[error("{verb}: {}", status.message())]
    Call {
        /// The RPC.
        verb: &'static str,
        /// Its status; not a source, since its message is all that a person wants of it.
        status: Box<Status>,
    },
}

impl DaemonError {
    /// gRPC's code of what the daemon said.
    pub(super) fn code(&self) -> Option<Code> {
        match self {
            Self::Call { status, .. } => Some(status.code()),
            Self::Silent { .. } | Self::Start { .. } => None,
        }
    }
}

impl Classify for DaemonError {
    fn kind(&self) -> Kind {
        match self.code() {
            Some(Code::NotFound) => Kind::NotFound,
            Some(Code::AlreadyExists) => Kind::AlreadyExists,
            Some(Code::InvalidArgument) => Kind::InvalidArgument,
            Some(Code::FailedPrecondition) => Kind::FailedPrecondition,
            Some(Code::DeadlineExceeded) => Kind::DeadlineExceeded,
            Some(Code::ResourceExhausted) => Kind::ResourceExhausted,
            Some(Code::Unimplemented) => Kind::Unimplemented,
            Some(Code::Unavailable) | None => Kind::Unavailable,
            Some(_) => Kind::Internal,
        }
    }
}

/// A status that the other side did not send: the connection broke or never was.
fn is_disconnection(status: &Status) -> bool {
    status.source().is_some()
}

/// Of a broken connection only the innermost cause says something to a person.
fn root_cause(status: &Status) -> String {
    let mut cause = match status.source() {
        Some(cause) => cause,
        None => return status.message().to_owned(),
    };
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// Somebody else holds the socket or the state: a daemon that is about to serve.
fn is_taken(error: &(dyn Error + 'static)) -> bool {
    let mut error = Some(error);
    while let Some(current) = error {
        if let Some(StartError::Running(_)) = current.downcast_ref::<StartError>() {
            return true;
        }
        if let Some(io) = current.downcast_ref::<io::Error>() {
            return matches!(
                io.kind(),
                io::ErrorKind::AddrInUse | io::ErrorKind::WouldBlock | io::ErrorKind::ResourceBusy
            );
        }
        error = current.source();
    }
    false
}
