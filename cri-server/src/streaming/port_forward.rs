//! `PortForward`: connections of a client to ports inside a pod.
//!
//! Over SPDY, also inside a WebSocket, a client opens two streams for each connection: one for data, one on which it hears
//! what went wrong. Over WebSocket channels there is one connection for each port that was asked for over CRI.

use std::{
    collections::HashMap,
    future::pending,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::{sleep_until, timeout},
};
use vaina_proto::cri::PortForwardRequest;
use vaina_sys::netns;

use super::{
    Request, StreamError,
    carrier::{Carrier, Input, Loss, Lost, Output, PIECE},
    multiplex::Opened,
    websocket::Channels,
};
use crate::{
    app::App,
    sandbox::{Sandbox, SandboxState},
    work::{blocking, lock},
};

/// How long one of a pair of streams waits for the other.
const PAIR_LIMIT: Duration = Duration::from_secs(30);
/// How long the port may take to accept.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Once one side has ended, the other may go on as long as it is never silent for so long.
const DRAIN: Duration = Duration::from_secs(10);

/// Protocols over SPDY.
pub(super) const SPDY: &[&str] = &["portforward.k8s.io"];
/// SPDY inside a WebSocket.
pub(super) const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// Protocols over WebSocket.
pub(super) const WEBSOCKET: &[&str] = &[TUNNEL, "v4.channel.k8s.io"];

/// Answers the address at which ports of the pod are reached.
pub fn port_forward(app: &App, request: PortForwardRequest) -> Result<String, StreamError> {
    let PortForwardRequest { pod_sandbox_id: id, port } = request;
    let sandbox = app.index.sandboxes.find(&id).map_err(StreamError::Find)?;
    sandbox.ready().map_err(StreamError::Sandbox)?;
    let ports = port.into_iter().map(|port| u16::try_from(port).ok().filter(|port| *port > 0));
    let ports = ports.collect::<Option<Vec<u16>>>().ok_or(StreamError::Invalid("a port is not between 1 and 65535"))?;
    app.streaming.offer(Request::PortForward { sandbox: sandbox.id.to_string(), ports })
}

/// One connection.
struct Forward {
    port: u16,
    input: Input,
    data: Output,
    error: Output,
}

/// Forwards what a client asks for over SPDY, as long as it is there.
pub(super) async fn over_spdy(app: &App, sandbox: &str, carrier: Carrier, mut streams: mpsc::Receiver<Opened>) {
    let Ok(sandbox) = app.index.sandboxes.find(sandbox) else { return };
    let mut pairs = Pairs::default();
    let mut forwards = JoinSet::new();
    loop {
        tokio::select! {
            opened = streams.recv() => match opened {
                Some(opened) => {
                    if let Some(forward) = pairs.add(opened, Instant::now()).await {
                        forwards.spawn(forward.run(sandbox.netns()));
                    }
                }
                None => return,
            },
            Some(_) = forwards.join_next() => {}
            loss = carrier.lost() => match loss {
                Loss::Gone => return,
                Loss::Idle | Loss::Stop => break,
            },
            () = gone(&sandbox) => break,
        }
    }
    // What was connected is gone with the pod.
    drop(forwards);
    carrier.close().await;
}

/// Forwards the ports that were asked for over CRI.
pub(super) async fn over_channels(app: &App, sandbox: &str, ports: &[u16], mut channels: Channels) {
    let Ok(sandbox) = app.index.sandboxes.find(sandbox) else { return };
    let mut forwards = JoinSet::new();
    for (number, port) in (0..).step_by(2).zip(ports) {
        let Some(input) = channels.input(number) else { return };
        let forward = Forward { port: *port, input, data: channels.output(number), error: channels.output(number + 1) };
        let netns = sandbox.netns();
        forwards.spawn(async move {
            // Both begin with the port, so that the client knows them.
            let port = Bytes::copy_from_slice(&forward.port.to_le_bytes());
            if forward.data.send(port.clone()).await.is_ok() && forward.error.send(port).await.is_ok() {
                forward.run(netns).await;
            }
        });
    }
    let all = async { while forwards.join_next().await.is_some() {} };
    let loss = tokio::select! {
        () = all => None,
        loss = channels.carrier.lost() => Some(loss),
    };
    if loss != Some(Loss::Gone) {
        channels.carrier.close().await;
    }
}

/// Which channels the client sends on.
pub(super) fn sends(ports: &[u16]) -> Vec<bool> {
    [true, false].repeat(ports.len())
}

async fn gone(sandbox: &Sandbox) {
    let mut state = sandbox.watch();
    let is_gone = |state: &SandboxState| !matches!(state, SandboxState::Ready(_));
    if state.wait_for(is_gone).await.is_err() {
        pending::<()>().await;
    }
}

/// Streams that wait for their other half.
#[derive(Default)]
struct Pairs(HashMap<String, Pair>);

struct Pair {
    port: u16,
    data: Option<(Input, Output)>,
    error: Option<Output>,
    until: Instant,
}

impl Pairs {
    /// Takes a stream; answers the connection that it completes.
    async fn add(&mut self, opened: Opened, now: Instant) -> Option<Forward> {
        for (_, late) in self.0.extract_if(|_, pair| pair.until <= now) {
            for output in late.data.map(|(_, output)| output).into_iter().chain(late.error) {
                refuse(&output).await;
            }
        }
        let Opened { id, headers, input, output } = opened;
        let port = headers.get("port").and_then(|port| port.parse().ok()).filter(|port| *port > 0);
        let is_error = match headers.get("streamType") {
            Some("error") => true,
            Some("data") => false,
            _ => return refuse(&output).await,
        };
        let Some(port) = port else { return refuse(&output).await };
        // Old clients do not name the pair; they open the stream for errors first, and the other right after.
        let unnamed = || if is_error { id } else { id.wrapping_sub(2) }.to_string();
        let request = headers.get("requestID").map_or_else(unnamed, str::to_owned);
        let pair =
            self.0.entry(request.clone()).or_insert(Pair { port, data: None, error: None, until: now + PAIR_LIMIT });
        let is_taken = if is_error { pair.error.is_some() } else { pair.data.is_some() };
        if is_taken || pair.port != port {
            return refuse(&output).await;
        }
        if is_error {
            pair.error = Some(output);
        } else {
            pair.data = Some((input, output));
        }
        if pair.data.is_none() || pair.error.is_none() {
            return None;
        }
        let Pair { port, data, error, .. } = self.0.remove(&request)?;
        let ((input, data), error) = (data?, error?);
        Some(Forward { port, input, data, error })
    }
}

async fn refuse(output: &Output) -> Option<Forward> {
    // A client that is gone needs no answer.
    let _ = output.reset().await;
    None
}

impl Forward {
    /// Connects and copies until both sides have ended. What fails is told to the client.
    async fn run(self, netns: Option<PathBuf>) {
        let Self { port, mut input, data, error } = self;
        let told = async {
            match connect(netns.as_deref(), port).await {
                Ok(stream) => {
                    copy(stream, &mut input, &data).await?;
                    data.finish().await?;
                }
                Err(cause) => {
                    let message = format!("error forwarding port {port} to the pod: {cause}");
                    tracing::debug!(port, error = %cause, "port not forwarded");
                    error.send(message.into()).await?;
                    data.reset().await?;
                }
            }
            error.finish().await
        };
        // A client that is gone needs no answer.
        let _ = told.await;
    }
}

/// Connects to a port on the pod's loopback, as whoever is inside would.
async fn connect(netns: Option<&Path>, port: u16) -> io::Result<TcpStream> {
    let mut refused = None;
    for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        let connecting = async { socket(netns, address).await?.connect(SocketAddr::new(address, port)).await };
        let limit = || io::Error::new(io::ErrorKind::TimedOut, "no answer");
        match timeout(CONNECT_LIMIT, connecting).await.unwrap_or_else(|_| Err(limit())) {
            Ok(stream) => return Ok(stream),
            Err(error) => drop(refused.get_or_insert(error)),
        }
    }
    Err(refused.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()))
}

/// A socket in the pod's network namespace; where it is made is where it stays.
async fn socket(netns: Option<&Path>, address: IpAddr) -> io::Result<TcpSocket> {
    let make = move || if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    match netns.map(Path::to_owned) {
        Some(path) => blocking(move || netns::run_in(netns::open(&path)?, make)).await,
        None => make(),
    }
}

/// Copies both ways. After the end of one side the other is copied on, until it ends too or has nothing to say.
async fn copy(stream: TcpStream, input: &mut Input, output: &Output) -> Result<(), Lost> {
    let (mut from, mut to) = stream.into_split();
    let moved = Mutex::new(Instant::now());
    let up = async {
        while let Some(data) = input.next().await? {
            if to.write_all(&data).await.is_err() {
                // It reads no more, but may have said something.
                return Ok(());
            }
            *lock(&moved) = Instant::now();
        }
        drop(to.shutdown().await);
        Ok(())
    };
    let down = async {
        let mut buffer = vec![0; PIECE];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            output.send(Bytes::copy_from_slice(&buffer[..count])).await?;
            *lock(&moved) = Instant::now();
        }
        output.finish().await
    };
    tokio::pin!(up, down);
    let is_up = tokio::select! {
        result = &mut up => { result?; false }
        result = &mut down => { result?; true }
    };
    *lock(&moved) = Instant::now();
    loop {
        let until = *lock(&moved) + DRAIN;
        if until <= Instant::now() {
            return Ok(());
        }
        let other = async { if is_up { (&mut up).await } else { (&mut down).await } };
        tokio::select! {
            result = other => return result,
            () = sleep_until(until.into()) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::streaming::carrier::{self, Command, Line};

    fn opened(id: u32, headers: &[(&str, &str)]) -> (Opened, mpsc::Receiver<Command>, carrier::Feed) {
        let (commands, queue) = carrier::commands();
        let (feed, input) = carrier::input(&commands);
        let headers = headers.iter().copied().collect();
        (Opened { id, headers, input, output: Output::new(id, commands) }, queue, feed)
    }

    #[tokio::test]
    async fn streams_are_paired_by_request_or_by_their_order() {
        let now = Instant::now();
        for named in [true, false] {
            let mut pairs = Pairs::default();
            let headers = |kind: &'static str| {
                let mut headers = vec![("streamtype", kind), ("port", "80")];
                headers.extend(named.then_some(("requestid", "7")));
                headers
            };
            let (error, _queue, _feed) = opened(5, &headers("error"));
            assert!(pairs.add(error, now).await.is_none());
            let (data, _queue, _feed) = opened(7, &headers("data"));
            assert_eq!(pairs.add(data, now).await.unwrap().port, 80);
            assert!(pairs.0.is_empty());
        }
    }

    #[tokio::test]
    async fn streams_that_make_no_sense_are_refused_and_lonely_ones_forgotten() {
        let now = Instant::now();
        let mut pairs = Pairs::default();
        for headers in [
            &[("streamType", "data")][..],
            &[("streamType", "data"), ("port", "0")],
            &[("streamType", "data"), ("port", "65536")],
            &[("streamType", "other"), ("port", "80")],
            &[("port", "80")],
        ] {
            let (opened, mut queue, _feed) = opened(1, headers);
            assert!(pairs.add(opened, now).await.is_none());
            assert!(matches!(queue.try_recv(), Ok(Command::Reset(1))), "{headers:?}");
        }
        let headers = [("streamType", "error"), ("port", "80"), ("requestID", "1")];
        let (first, _queue, _feed) = opened(1, &headers);
        assert!(pairs.add(first, now).await.is_none());
        let (second, mut queue, _feed) = opened(3, &headers);
        assert!(pairs.add(second, now).await.is_none());
        assert!(matches!(queue.try_recv(), Ok(Command::Reset(3))));
        let (later, _queue, _feed) = opened(5, &[("streamType", "error"), ("port", "80"), ("requestID", "2")]);
        assert!(pairs.add(later, now + PAIR_LIMIT).await.is_none());
        assert_eq!(pairs.0.len(), 1);
    }

    /// Runs a connection against a server; answers what the client got.
    async fn forwarded(
        sent: &'static [u8],
        server: impl AsyncFnOnce(TcpStream) + Send + 'static,
        port: Option<u16>,
    ) -> (Vec<u8>, Vec<u8>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = port.unwrap_or(listener.local_addr().unwrap().port());
        let (commands, mut queue) = carrier::commands();
        let (feed, input) = carrier::input(&commands);
        let (data, error) = (Output::new(1, commands.clone()), Output::new(3, commands));
        let line = Line::new(|| false);
        let client = async {
            feed.data(Bytes::from_static(sent), &line).await.unwrap();
            feed.end(&line).await.unwrap();
            let (mut heard, mut errors) = (Vec::new(), Vec::new());
            while let Some(command) = queue.recv().await {
                match command {
                    Command::Data(1, data) => heard.extend_from_slice(&data),
                    Command::Data(3, data) => errors.extend_from_slice(&data),
                    _ => {}
                }
            }
            (heard, errors)
        };
        let serving = async {
            if let Ok(Ok((stream, _))) = timeout(Duration::from_secs(1), listener.accept()).await {
                server(stream).await;
            }
        };
        let (result, (), ()) = tokio::join!(client, Forward { port, input, data, error }.run(None), serving);
        result
    }

    #[tokio::test]
    async fn an_answer_comes_after_the_clients_end() {
        let answer = async |mut stream: TcpStream| {
            let mut question = Vec::new();
            stream.read_to_end(&mut question).await.unwrap();
            question.reverse();
            stream.write_all(&question).await.unwrap();
        };
        assert_eq!(forwarded(b"abc", answer, None).await, (b"cba".to_vec(), Vec::new()));
    }

    #[tokio::test]
    async fn a_port_that_refuses_is_told() {
        let unused = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let (heard, errors) = forwarded(b"abc", async |_| {}, Some(unused)).await;
        assert!(heard.is_empty());
        let text = String::from_utf8(errors).unwrap();
        assert!(text.contains(&unused.to_string()) && text.contains("refused"), "{text}");
    }
}
