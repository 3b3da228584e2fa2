//! WebSocket as Kubernetes uses it: channels in binary messages (`v5.channel.k8s.io` and older), and a tunnel for SPDY.
//!
//! A channel's number is the first byte of each message. From version 5 on a message of 255 and a number says that the
//! client sends no more on that channel. Our side of all channels ends with the connection.

use std::sync::Arc;

use bytes::Bytes;
use futures::{
    SinkExt as _, StreamExt as _,
    stream::{SplitSink, SplitStream},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream},
    sync::mpsc,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

use super::carrier::{self, Carrier, Command, Feed, Input, LINGER, Limits, Line, Loss, Output, PIECE};

/// Most bytes of a message; clients of Kubernetes send 32 KiB.
const MESSAGE_MAX: usize = 4 << 20;
/// The channel of version 5 on which the ends of others are told.
const CLOSE: u8 = 255;

/// A connection with channels.
#[derive(Debug)]
pub(super) struct Channels {
    pub(super) carrier: Carrier,
    commands: mpsc::Sender<Command>,
    inputs: Vec<Option<Input>>,
}

impl Channels {
    /// What the client sends on a channel, once; [`None`] for one that it does not send on.
    pub(super) fn input(&mut self, channel: u8) -> Option<Input> {
        self.inputs.get_mut(usize::from(channel))?.take()
    }

    /// Where the client hears a channel.
    pub(super) fn output(&self, channel: u8) -> Output {
        Output::new(channel.into(), self.commands.clone())
    }
}

async fn socket<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> WebSocketStream<S> {
    let config = WebSocketConfig::default().max_message_size(Some(MESSAGE_MAX)).max_frame_size(Some(MESSAGE_MAX));
    WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await
}

fn goodbye() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))
}

/// Serves channels; `sends` says for each whether the client sends on it, `tells_ends` whether it says when it has no more.
pub(super) async fn serve<S>(stream: S, line: Arc<Line>, limits: &Limits, sends: &[bool], tells_ends: bool) -> Channels
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sink, source) = socket(stream).await.split();
    let (commands, queue) = carrier::commands();
    let (feeds, inputs) = sends.iter().map(|sends| sends.then(|| carrier::input(&commands)).unzip()).unzip();
    let reader = read(source, Arc::clone(&line), feeds, tells_ends);
    let writer = write(sink, Arc::clone(&line), queue);
    let carrier = Carrier::start(line, commands.clone(), limits, reader, writer);
    Channels { carrier, commands, inputs }
}

async fn read<S: AsyncRead + AsyncWrite + Unpin>(
    mut source: SplitStream<WebSocketStream<S>>,
    line: Arc<Line>,
    mut feeds: Vec<Option<Feed>>,
    tells_ends: bool,
) {
    while let Some(Ok(message)) = source.next().await {
        line.touch();
        let mut data = match message {
            Message::Binary(data) => data,
            Message::Ping(_) | Message::Pong(_) => continue,
            // None of the protocols that are offered has text.
            Message::Text(_) | Message::Close(_) | Message::Frame(_) => return,
        };
        let Some(channel) = data.first().copied() else { continue };
        let taken = match data.get(1) {
            Some(ended) if tells_ends && channel == CLOSE => {
                match feeds.get_mut(usize::from(*ended)).and_then(Option::take) {
                    Some(feed) => feed.end(&line).await,
                    None => Ok(()),
                }
            }
            _ => {
                let _ = data.split_to(1);
                match feeds.get(usize::from(channel)) {
                    Some(Some(feed)) => push(feed, data, &line).await,
                    // A channel that was not asked for, or has ended.
                    _ => Ok(()),
                }
            }
        };
        if taken.is_err() {
            return;
        }
    }
}

async fn push(feed: &Feed, mut data: Bytes, line: &Line) -> Result<(), carrier::Lost> {
    while !data.is_empty() {
        feed.data(data.split_to(data.len().min(PIECE)), line).await?;
    }
    Ok(())
}

async fn write<S: AsyncRead + AsyncWrite + Unpin>(
    mut sink: SplitSink<WebSocketStream<S>, Message>,
    line: Arc<Line>,
    mut queue: mpsc::Receiver<Command>,
) {
    while let Some(command) = queue.recv().await {
        let message = match command {
            Command::Data(channel, data) => {
                let number = u8::try_from(channel).unwrap_or(CLOSE);
                Message::Binary([&[number], &data[..]].concat().into())
            }
            Command::Close => {
                drop(sink.send(goodbye()).await);
                return;
            }
            // One that nobody asked for is a heartbeat.
            Command::Nudge => Message::Pong(Bytes::new()),
            // They have no words for it.
            Command::Finish(_) | Command::Reset(_) | Command::Frame(_) => continue,
        };
        if sink.send(message).await.is_err() {
            line.lose(Loss::Gone);
            return;
        }
        line.touch();
    }
}

/// The byte stream that a client sends through binary messages. It is served by a task that ends with either side.
pub(super) async fn tunnel<S>(stream: S) -> DuplexStream
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (near, far) = tokio::io::duplex(2 * PIECE);
    let (mut sink, mut source) = socket(stream).await.split();
    tokio::spawn(async move {
        let (mut from, mut to) = tokio::io::split(far);
        let up = async {
            while let Some(Ok(message)) = source.next().await {
                match message {
                    Message::Binary(data) => {
                        if to.write_all(&data).await.is_err() {
                            return;
                        }
                    }
                    Message::Ping(_) | Message::Pong(_) => {}
                    Message::Text(_) | Message::Close(_) | Message::Frame(_) => return,
                }
            }
        };
        let down = async {
            let mut buffer = vec![0; PIECE];
            while let Ok(count @ 1..) = from.read(&mut buffer).await {
                if sink.send(Message::Binary(Bytes::copy_from_slice(&buffer[..count]))).await.is_err() {
                    return;
                }
            }
            drop(sink.send(goodbye()).await);
        };
        tokio::pin!(up);
        tokio::select! {
            () = &mut up => {}
            () = down => drop(timeout(LINGER, up).await),
        }
    });
    near
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::watch;

    use super::*;

    async fn client(stream: DuplexStream) -> WebSocketStream<DuplexStream> {
        WebSocketStream::from_raw_socket(stream, Role::Client, None).await
    }

    fn limits() -> (Limits, watch::Sender<bool>) {
        let (stop, stopped) = watch::channel(false);
        (Limits { idle: Duration::from_secs(60), stop: stopped }, stop)
    }

    async fn receive(client: &mut WebSocketStream<DuplexStream>) -> Message {
        client.next().await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn channels_are_told_apart_and_end() {
        let (near, far) = tokio::io::duplex(64 << 10);
        let mut client = client(near).await;
        let (limits, _stop) = limits();
        let mut channels = serve(far, Line::new(|| false), &limits, &[true, false, true], true).await;
        assert!(channels.input(1).is_none() && channels.input(9).is_none());
        let (mut first, mut third) = (channels.input(0).unwrap(), channels.input(2).unwrap());
        for message in
            [&[0, b'a'][..], &[1, b'x'], &[77, b'x'], &[], &[0], &[2, b'b'], &[CLOSE, 0], &[0, b'x'], &[CLOSE]]
        {
            client.send(Message::Binary(Bytes::copy_from_slice(message))).await.unwrap();
        }
        client.send(Message::Ping("p".into())).await.unwrap();
        assert_eq!(first.next().await, Ok(Some(Bytes::from_static(b"a"))));
        assert_eq!(first.next().await, Ok(None));
        assert_eq!(third.next().await, Ok(Some(Bytes::from_static(b"b"))));
        assert_eq!(receive(&mut client).await, Message::Pong("p".into()));
        channels.output(3).send(Bytes::from_static(b"out")).await.unwrap();
        channels.output(3).finish().await.unwrap();
        assert_eq!(receive(&mut client).await, Message::binary(&b"\x03out"[..]));
        let closing = tokio::spawn(channels.carrier.close());
        assert_eq!(receive(&mut client).await, goodbye());
        assert!(client.next().await.is_none());
        closing.await.unwrap();
        assert_eq!(third.next().await, Err(carrier::Lost));
    }

    #[tokio::test]
    async fn a_client_that_leaves_is_lost() {
        for message in [Message::text("hello"), goodbye()] {
            let (near, far) = tokio::io::duplex(64 << 10);
            let mut client = client(near).await;
            let (limits, _stop) = limits();
            let channels = serve(far, Line::new(|| false), &limits, &[true], true).await;
            client.send(message).await.unwrap();
            channels.carrier.lost().await;
        }
    }

    #[tokio::test]
    async fn a_tunnel_is_a_byte_stream() {
        let (near, far) = tokio::io::duplex(64 << 10);
        let mut client = client(near).await;
        let mut tunnel = tunnel(far).await;
        client.send(Message::binary(&b"ab"[..])).await.unwrap();
        client.send(Message::binary(&b"cd"[..])).await.unwrap();
        let mut heard = [0; 4];
        tunnel.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"abcd");
        tunnel.write_all(b"back").await.unwrap();
        assert_eq!(receive(&mut client).await, Message::binary(&b"back"[..]));
        drop(tunnel);
        assert_eq!(receive(&mut client).await, goodbye());
    }
}
