//! The streaming server: takes a client by its token and hands its connection to what was asked for.
//!
//! It listens on loopback unless told otherwise; who may connect is decided by the token alone. A connection serves one
//! request, since what follows is not HTTP any more.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request as HttpRequest, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::sleep,
};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::{
    Request, attach,
    carrier::{Limits, Line},
    exec, multiplex, port_forward,
    remote_command::{self, Remote, Wanted},
    websocket,
};
use crate::app::App;

/// How long a client may take to say what it wants.
const HEADER_LIMIT: Duration = Duration::from_secs(10);
/// Most connections at a time.
const CONNECTIONS_MAX: usize = 1024;
/// When no connection can be taken, as when descriptors are short.
const PAUSE: Duration = Duration::from_millis(100);

const UPGRADE_SPDY: &str = "SPDY/3.1";
const PROTOCOL: &str = "x-stream-protocol-version";
const ACCEPTED_PROTOCOLS: &str = "x-accepted-stream-protocol-versions";

/// A socket that listens.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    tls: Option<Tls>,
}

struct Tls(TlsAcceptor);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

impl Listener {
    pub(super) async fn bind(address: SocketAddr, tls: Option<TlsAcceptor>) -> io::Result<Self> {
        Ok(Self { socket: TcpListener::bind(address).await?, tls: tls.map(Tls) })
    }

    /// How clients on this node reach it.
    pub(super) fn base(&self) -> io::Result<String> {
        let mut address = self.socket.local_addr()?;
        if address.ip().is_unspecified() {
            let loopback: std::net::IpAddr = match address {
                SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
            };
            address.set_ip(loopback);
        }
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        Ok(format!("{scheme}://{address}"))
    }

    /// Takes clients until the daemon ends.
    pub async fn serve(self, app: Arc<App>) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut stop = app.streaming.stopped();
        let tls = self.tls.map(|Tls(acceptor)| acceptor);
        let accepting = async {
            loop {
                let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
                match self.socket.accept().await {
                    Ok((stream, _)) => {
                        let (app, tls) = (Arc::clone(&app), tls.clone());
                        tokio::spawn(async move {
                            if let Err(error) = connection(app, stream, tls).await {
                                tracing::debug!(%error, "a streaming client was not served");
                            }
                            drop(slot);
                        });
                    }
                    Err(error) => {
                        tracing::debug!(%error, "no streaming client can be taken");
                        sleep(PAUSE).await;
                    }
                }
            }
        };
        tokio::select! {
            () = accepting => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn connection(app: Arc<App>, stream: TcpStream, tls: Option<TlsAcceptor>) -> Result<(), Failure> {
    // Keys of a terminal must not wait for others.
    stream.set_nodelay(true)?;
    let socket = Arc::new(stream.as_fd().try_clone_to_owned()?);
    match tls {
        Some(tls) => {
            let stream = tokio::time::timeout(HEADER_LIMIT, tls.accept(stream)).await??;
            serve(app, socket, stream).await
        }
        None => serve(app, socket, stream).await,
    }
}

async fn serve<S>(app: Arc<App>, socket: Arc<OwnedFd>, stream: S) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // The session, once there is one: it holds this connection's slot, and ends with it.
    let session = std::sync::Mutex::new(None);
    let service = service_fn(|request| {
        let response = match answer(&app, &socket, request) {
            Ok((response, begun)) => {
                *crate::work::lock(&session) = Some(begun);
                response
            }
            Err(Refusal { status, text, accepted }) => {
                let mut response = Response::new(Full::from(text));
                *response.status_mut() = status;
                response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
                for protocol in accepted {
                    response.headers_mut().append(ACCEPTED_PROTOCOLS, header::HeaderValue::from_static(protocol));
                }
                response
            }
        };
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_LIMIT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    let begun = crate::work::lock(&session).take();
    if let Some(session) = begun {
        session.await?;
    }
    Ok(served?)
}

/// Why a client is not served.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    text: String,
    accepted: &'static [&'static str],
}

impl Refusal {
    fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into(), accepted: &[] }
    }
}

/// How a client speaks after the upgrade.
#[derive(Debug, PartialEq, Eq)]
enum Upgrade {
    Spdy { protocol: &'static str },
    WebSocket { protocol: Option<&'static str>, accept: String },
}

type Session = tokio::task::JoinHandle<()>;

/// Takes the token, starts the session, and answers that it goes on.
fn answer(
    app: &Arc<App>,
    socket: &Arc<OwnedFd>,
    mut request: HttpRequest<Incoming>,
) -> Result<(Response<Full<Bytes>>, Session), Refusal> {
    if !matches!(*request.method(), Method::GET | Method::POST) {
        return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "GET or POST"));
    }
    let unknown = || Refusal::new(StatusCode::NOT_FOUND, "there is no such stream, or no longer");
    let mut parts = request.uri().path().trim_start_matches('/').splitn(2, '/');
    let (verb, token) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let (over_spdy, over_websocket) = match verb {
        "exec" | "attach" => (remote_command::SPDY, remote_command::WEBSOCKET),
        "portforward" => (port_forward::SPDY, port_forward::WEBSOCKET),
        _ => return Err(unknown()),
    };
    // Before the token is spent: a client may come again with another protocol.
    let upgrade = negotiate(request.headers(), over_spdy, over_websocket)?;
    let asked = app.streaming.take(verb, token).ok_or_else(unknown)?;
    let response = response(&upgrade);

    let (app, socket) = (Arc::clone(app), Arc::clone(socket));
    let upgraded = hyper::upgrade::on(&mut request);
    let session = app.changes.clone().spawn(async move {
        match upgraded.await {
            Ok(stream) => session(&app, asked, upgrade, TokioIo::new(stream), socket).await,
            Err(error) => tracing::debug!(%error, "a streaming client left before it was served"),
        }
    });
    Ok((response, session))
}

async fn session<S>(app: &App, asked: Request, upgrade: Upgrade, stream: S, socket: Arc<OwnedFd>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = app.streaming.limits();
    let line = Line::new(move || has_hung_up(&socket));
    match asked {
        Request::Exec { container, command, wanted } => {
            if let Some(remote) = remote(stream, line, &limits, upgrade, wanted).await {
                exec::serve(app, &container, command, wanted, remote).await;
            }
        }
        Request::Attach { container, wanted } => {
            if let Some(remote) = remote(stream, line, &limits, upgrade, wanted).await {
                attach::serve(app, &container, wanted, remote).await;
            }
        }
        Request::PortForward { sandbox, ports } => match upgrade {
            Upgrade::Spdy { .. } => {
                let (carrier, streams) = multiplex::serve(stream, line, &limits);
                port_forward::over_spdy(app, &sandbox, carrier, streams).await;
            }
            Upgrade::WebSocket { protocol: Some(port_forward::TUNNEL), .. } => {
                let (carrier, streams) = multiplex::serve(websocket::tunnel(stream).await, line, &limits);
                port_forward::over_spdy(app, &sandbox, carrier, streams).await;
            }
            Upgrade::WebSocket { .. } => {
                let channels = websocket::serve(stream, line, &limits, &port_forward::sends(&ports), false).await;
                port_forward::over_channels(app, &sandbox, &ports, channels).await;
            }
        },
    }
}

/// The streams of a client that wants a command's or a container's; [`None`] if it left before they were there.
async fn remote<S>(stream: S, line: Arc<Line>, limits: &Limits, upgrade: Upgrade, wanted: Wanted) -> Option<Remote>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match upgrade {
        Upgrade::Spdy { protocol } => {
            let (carrier, streams) = multiplex::serve(stream, line, limits);
            Remote::over_spdy(carrier, streams, wanted, protocol).await.ok()
        }
        Upgrade::WebSocket { protocol, .. } => {
            let protocol = protocol.unwrap_or_default();
            let tells_ends = protocol == "v5.channel.k8s.io";
            let channels = websocket::serve(stream, line, limits, &Remote::sends(wanted), tells_ends).await;
            Remote::over_websocket(channels, wanted, protocol).await.ok()
        }
    }
}

/// Whether the other side has closed, though there may be something to read before that.
fn has_hung_up(socket: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::RDHUP)];
    let no_time = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&no_time)).is_ok_and(|count| count > 0)
}

fn negotiate(
    headers: &HeaderMap,
    over_spdy: &'static [&'static str],
    over_websocket: &'static [&'static str],
) -> Result<Upgrade, Refusal> {
    let bad = |text: &str| Refusal::new(StatusCode::BAD_REQUEST, text);
    let has =
        |name: header::HeaderName, word: &str| words(headers, name.as_str()).any(|own| own.eq_ignore_ascii_case(word));
    if !has(header::CONNECTION, "upgrade") {
        return Err(bad("the request is for no upgrade"));
    }
    if has(header::UPGRADE, UPGRADE_SPDY) {
        let mut offered = words(headers, PROTOCOL).peekable();
        if offered.peek().is_none() {
            return Err(bad("X-Stream-Protocol-Version names no protocol"));
        }
        let protocol = offered.find_map(|word| over_spdy.iter().find(|known| **known == word));
        let refused = Refusal { accepted: over_spdy, ..Refusal::new(StatusCode::FORBIDDEN, "no common protocol") };
        return protocol.map(|protocol| Upgrade::Spdy { protocol }).ok_or(refused);
    }
    if !has(header::UPGRADE, "websocket") {
        return Err(bad("the upgrade is to neither SPDY/3.1 nor websocket"));
    }
    if !words(headers, header::SEC_WEBSOCKET_VERSION.as_str()).any(|version| version == "13") {
        return Err(bad("Sec-WebSocket-Version is not 13"));
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).ok_or_else(|| bad("there is no Sec-WebSocket-Key"))?;
    let mut offered = words(headers, header::SEC_WEBSOCKET_PROTOCOL.as_str()).peekable();
    let has_none = offered.peek().is_none();
    let protocol = offered.find_map(|word| over_websocket.iter().find(|known| **known == word)).copied();
    if protocol.is_none() && !has_none {
        return Err(Refusal { accepted: over_websocket, ..Refusal::new(StatusCode::FORBIDDEN, "no common protocol") });
    }
    Ok(Upgrade::WebSocket { protocol, accept: derive_accept_key(key.as_bytes()) })
}

/// The words of a header that may be there several times, each a list.
fn words<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|word| !word.is_empty())
}

fn response(upgrade: &Upgrade) -> Response<Full<Bytes>> {
    let mut response =
        Response::builder().status(StatusCode::SWITCHING_PROTOCOLS).header(header::CONNECTION, "Upgrade");
    match upgrade {
        Upgrade::Spdy { protocol } => {
            response = response.header(header::UPGRADE, UPGRADE_SPDY).header(PROTOCOL, *protocol);
        }
        Upgrade::WebSocket { protocol, accept } => {
            response = response.header(header::UPGRADE, "websocket").header(header::SEC_WEBSOCKET_ACCEPT, accept);
            if let Some(protocol) = protocol {
                response = response.header(header::SEC_WEBSOCKET_PROTOCOL, *protocol);
            }
        }
    }
    // Nothing of it comes from the client but the key's digest.
    response.body(Full::default()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn negotiated(pairs: &[(&'static str, &str)]) -> Result<Upgrade, StatusCode> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        negotiate(&headers, remote_command::SPDY, remote_command::WEBSOCKET).map_err(|refusal| refusal.status)
    }

    #[test]
    fn the_clients_first_protocol_that_is_known_is_taken() {
        let spdy = [("connection", "keep-alive, Upgrade"), ("upgrade", "SPDY/3.1")];
        let with = |versions: &[&'static str]| {
            let mut pairs = spdy.to_vec();
            pairs.extend(versions.iter().map(|version| ("x-stream-protocol-version", *version)));
            negotiated(&pairs)
        };
        assert_eq!(
            with(&["v5.channel.k8s.io", "v4.channel.k8s.io"]),
            Ok(Upgrade::Spdy { protocol: "v4.channel.k8s.io" })
        );
        assert_eq!(with(&["v9, v2.channel.k8s.io"]), Ok(Upgrade::Spdy { protocol: "v2.channel.k8s.io" }));
        assert_eq!(with(&["v9"]), Err(StatusCode::FORBIDDEN));
        assert_eq!(with(&[]), Err(StatusCode::BAD_REQUEST));
        assert_eq!(negotiated(&[("upgrade", "SPDY/3.1")]), Err(StatusCode::BAD_REQUEST));
        assert_eq!(negotiated(&[("connection", "upgrade"), ("upgrade", "h2c")]), Err(StatusCode::BAD_REQUEST));
    }

    #[test]
    fn websocket_clients_get_their_key_back() {
        let pairs = [
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        let accept = || "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".to_owned();
        assert_eq!(negotiated(&pairs), Ok(Upgrade::WebSocket { protocol: None, accept: accept() }));
        let offers = |offered| negotiated(&[&pairs[..], &[("sec-websocket-protocol", offered)]].concat());
        let taken = Some("v5.channel.k8s.io");
        assert_eq!(offers("x, v5.channel.k8s.io"), Ok(Upgrade::WebSocket { protocol: taken, accept: accept() }));
        assert_eq!(offers("x"), Err(StatusCode::FORBIDDEN));
        assert_eq!(negotiated(&pairs[..3]), Err(StatusCode::BAD_REQUEST));
        assert_eq!(negotiated(&pairs[..2]), Err(StatusCode::BAD_REQUEST));
    }
}
