//! Exec, Attach and PortForward: CRI answers an address, and the streaming server serves it once.
//!
//! ```text
//!  Exec ─▶ token ─▶ URL ──▶ client ──HTTP upgrade──▶ server ─┬─ SPDY ─────── multiplex ─┬─▶ exec         ─▶ FIFOs of the shim
//!                                                            └─ WebSocket ── websocket ─┼─▶ attach       ─▶ FIFOs of the shim
//!                                                                 └ tunnel of SPDY ─────┴─▶ port_forward ─▶ pod's loopback
//! ```
//! `spdy` is pure; `carrier` is what both transports have in common, so sessions know only inputs, outputs and loss.

mod attach;
mod carrier;
mod exec;
mod multiplex;
mod port_forward;
mod remote_command;
mod server;
mod spdy;
mod tokens;
mod websocket;

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::exec::check as check_exec;
pub use self::{attach::attach, exec::exec, port_forward::port_forward, server::Listener, tokens::TokenError};
use self::{carrier::Limits, remote_command::Wanted, tokens::Tokens};
use crate::{
    config,
    container::StateError,
    error::{Classify, Kind},
    index::FindError,
    sandbox::NotReadyError,
};

/// What a client was promised.
#[derive(Debug)]
enum Request {
    Exec { container: String, command: Vec<String>, wanted: Wanted },
    Attach { container: String, wanted: Wanted },
    PortForward { sandbox: String, ports: Vec<u16> },
}

impl Request {
    /// The first part of its path.
    fn verb(&self) -> &'static str {
        match self {
            Self::Exec { .. } => "exec",
            Self::Attach { .. } => "attach",
            Self::PortForward { .. } => "portforward",
        }
    }
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// No such container or sandbox.
    #[error(transparent)]
    Find(FindError),
    /// The container does not run.
    #[error(transparent)]
    State(StateError),
    /// The sandbox is not ready.
    #[error(transparent)]
    Sandbox(NotReadyError),
    /// What is asked for can't be.
    #[error("open a stream: {0}")]
    Invalid(&'static str),
    /// No token.
    #[error("open a stream")]
    Token(#[source] TokenError),
}

impl Classify for StreamError {
    fn kind(&self) -> Kind {
        match self {
            Self::Find(source) => source.kind(),
            Self::State(source) => source.kind(),
            Self::Sandbox(source) => source.kind(),
            Self::Invalid(_) => Kind::InvalidArgument,
            Self::Token(TokenError::TooMany) => Kind::ResourceExhausted,
            Self::Token(TokenError::Random(_)) => Kind::Internal,
        }
    }
}

/// Why the server does not start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its address.
    #[error("listen for streams on {address}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Cause.
        source: io::Error,
    },
    /// Its certificate or key.
    #[error("read {}", .path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: rustls::pki_types::pem::Error,
    },
    /// Both together.
    #[error("use the certificate and the key for streams")]
    Tls(#[source] rustls::Error),
}

impl Classify for OpenError {
    fn kind(&self) -> Kind {
        Kind::FailedPrecondition
    }
}

/// The part of the daemon that hands out streams.
#[derive(Debug)]
pub struct Streaming {
    tokens: Tokens,
    base: String,
    idle: Duration,
    stop: watch::Sender<bool>,
}

impl Streaming {
    /// Opens the server's socket; it serves once there is all that sessions need.
    pub async fn open(config: &config::Streaming) -> Result<(Self, Listener), OpenError> {
        let tls = config.tls.as_ref().map(acceptor).transpose()?;
        let failed = |source| OpenError::Listen { address: config.address, source };
        let listener = Listener::bind(config.address, tls).await.map_err(failed)?;
        let streaming = Self {
            tokens: Tokens::default(),
            base: listener.base().map_err(failed)?,
            idle: Duration::from_secs(config.idle_timeout_seconds),
            stop: watch::Sender::new(false),
        };
        Ok((streaming, listener))
    }

    /// Ends all sessions, and takes no more.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    fn stopped(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    fn limits(&self) -> Limits {
        Limits { idle: self.idle, stop: self.stopped() }
    }

    /// The address for a request.
    fn offer(&self, request: Request) -> Result<String, StreamError> {
        let verb = request.verb();
        let token = self.tokens.insert(request, Instant::now()).map_err(StreamError::Token)?;
        Ok(format!("{}/{verb}/{token}", self.base))
    }

    /// The request of an address, once.
    fn take(&self, verb: &str, token: &str) -> Option<Request> {
        self.tokens.take(token, Instant::now()).filter(|request| request.verb() == verb)
    }
}

fn acceptor(config: &config::Tls) -> Result<TlsAcceptor, OpenError> {
    let failed = |path: &PathBuf| {
        let path = path.clone();
        move |source| OpenError::Pem { path, source }
    };
    let certificates = CertificateDer::pem_file_iter(&config.certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(failed(&config.certificate))?;
    let key = PrivateKeyDer::from_pem_file(&config.key).map_err(failed(&config.key))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(certificates, key))
        .map_err(OpenError::Tls)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn check_streams(wanted: Wanted) -> Result<(), StreamError> {
    if wanted.tty && wanted.stderr {
        return Err(StreamError::Invalid("a terminal has no stderr of its own: tty and stderr can't both be true"));
    }
    if !wanted.stdin && !wanted.stdout && !wanted.stderr {
        return Err(StreamError::Invalid("at least one of stdin, stdout and stderr must be true"));
    }
    Ok(())
}
