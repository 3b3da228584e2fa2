//! SPDY over a byte stream: the two tasks of a connection around the pure [`Session`].

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::mpsc,
};

use super::{
    carrier::{self, Carrier, Command, Feed, Input, Limits, Line, Loss, Output, PIECE},
    spdy::{Decoder, Encoder, Event, Frame, Headers, Session},
};
use crate::work::lock;

/// Streams that wait to be taken.
const OPENED: usize = 16;
/// What is written at once.
const BATCH: usize = 64 << 10;

/// A stream that the client has opened.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) id: u32,
    pub(super) headers: Headers,
    pub(super) input: Input,
    pub(super) output: Output,
}

/// Serves a connection; its streams come out of the receiver, which ends with it.
pub(super) fn serve(
    stream: impl AsyncRead + AsyncWrite + Send + 'static,
    line: Arc<Line>,
    limits: &Limits,
) -> (Carrier, mpsc::Receiver<Opened>) {
    let (from, to) = tokio::io::split(stream);
    let session = Arc::new(Mutex::new(Session::default()));
    let (commands, queue) = carrier::commands();
    let (opened, streams) = mpsc::channel(OPENED);
    let reader = Reader {
        session: Arc::clone(&session),
        line: Arc::clone(&line),
        commands: commands.clone(),
        opened,
        feeds: HashMap::new(),
    };
    let writer = write(to, session, Arc::clone(&line), queue);
    (Carrier::start(line, commands, limits, reader.run(from), writer), streams)
}

struct Reader {
    session: Arc<Mutex<Session>>,
    line: Arc<Line>,
    commands: mpsc::Sender<Command>,
    opened: mpsc::Sender<Opened>,
    feeds: HashMap<u32, Feed>,
}

impl Reader {
    async fn run(mut self, mut from: impl AsyncRead + Unpin) {
        let mut decoder = Decoder::new();
        let mut buffer = vec![0; PIECE];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            self.line.touch();
            decoder.feed(&buffer[..count]);
            loop {
                match decoder.next() {
                    Ok(Some(frame)) => {
                        if self.take(frame).await.is_err() {
                            return;
                        }
                    }
                    Ok(None) => break,
                    Err(error) => {
                        tracing::debug!(%error, "a client's connection is cut");
                        return;
                    }
                }
            }
        }
    }

    async fn take(&mut self, frame: Frame) -> Result<(), carrier::Lost> {
        let reaction = lock(&self.session).receive(frame);
        match reaction.answer {
            // A client that does not read does not need to hear that we are there.
            Some(ping @ Frame::Ping { .. }) => drop(self.commands.try_send(Command::Frame(ping))),
            Some(answer) => self.commands.send(Command::Frame(answer)).await.map_err(|_| carrier::Lost)?,
            None => {}
        }
        for event in reaction.events {
            match event {
                Event::Open { id, headers } => {
                    let (feed, input) = carrier::input(&self.commands);
                    let output = Output::new(id, self.commands.clone());
                    if self.opened.send(Opened { id, headers, input, output }).await.is_err() {
                        drop(self.commands.send(Command::Reset(id)).await);
                    } else {
                        self.feeds.insert(id, feed);
                    }
                }
                Event::Data { id, data } => {
                    if let Some(feed) = self.feeds.get(&id) {
                        feed.data(data, &self.line).await?;
                    }
                }
                Event::End { id } => {
                    if let Some(feed) = self.feeds.remove(&id) {
                        feed.end(&self.line).await?;
                    }
                }
                Event::Reset { id } => drop(self.feeds.remove(&id)),
            }
        }
        Ok(())
    }
}

async fn write(
    mut to: impl AsyncWrite + Unpin,
    session: Arc<Mutex<Session>>,
    line: Arc<Line>,
    mut queue: mpsc::Receiver<Command>,
) {
    let mut encoder = Encoder::new();
    let mut out = Vec::new();
    while let Some(command) = queue.recv().await {
        let mut next = Some(command);
        let mut is_over = false;
        while let Some(command) = next {
            is_over = matches!(command, Command::Close);
            if let Some(frame) = frame(&mut lock(&session), command) {
                encoder.encode(&frame, &mut out);
            }
            next = if is_over || out.len() >= BATCH { None } else { queue.try_recv().ok() };
        }
        let written = async {
            to.write_all(&out).await?;
            to.flush().await
        };
        if written.await.is_err() {
            line.lose(Loss::Gone);
            return;
        }
        line.touch();
        out.clear();
        if is_over {
            drop(to.shutdown().await);
            return;
        }
    }
}

fn frame(session: &mut Session, command: Command) -> Option<Frame> {
    match command {
        Command::Data(id, data) => session.data(id, data),
        Command::Finish(id) => session.finish(id),
        Command::Reset(id) => session.reset(id),
        Command::Frame(frame) => Some(frame),
        Command::Nudge => Some(Frame::Settings),
        Command::Close => Some(session.leave()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use tokio::{io::DuplexStream, sync::watch, time::timeout};

    use super::*;

    /// The client's side, in frames.
    struct Client {
        stream: DuplexStream,
        encoder: Encoder,
        decoder: Decoder,
    }

    impl Client {
        async fn send(&mut self, frame: Frame) {
            let mut bytes = Vec::new();
            self.encoder.encode(&frame, &mut bytes);
            self.stream.write_all(&bytes).await.unwrap();
        }

        async fn open(&mut self, id: u32, kind: &str) {
            let headers = [("streamType", kind)].into_iter().collect();
            self.send(Frame::SynStream { id, fin: false, unidirectional: false, headers }).await;
            let reply = self.receive().await;
            assert!(matches!(reply, Some(Frame::SynReply { id: answered, .. }) if answered == id), "{reply:?}");
        }

        async fn data(&mut self, id: u32, fin: bool, data: &'static [u8]) {
            self.send(Frame::Data { id, fin, data: Bytes::from_static(data) }).await;
        }

        async fn receive(&mut self) -> Option<Frame> {
            let mut buffer = [0; 4096];
            loop {
                if let Some(frame) = self.decoder.next().unwrap() {
                    return Some(frame);
                }
                match self.stream.read(&mut buffer).await.unwrap() {
                    0 => return None,
                    count => self.decoder.feed(&buffer[..count]),
                }
            }
        }
    }

    fn connect(idle: Duration) -> (Client, Carrier, mpsc::Receiver<Opened>, watch::Sender<bool>) {
        let (near, far) = tokio::io::duplex(64 << 10);
        let (stop, stopped) = watch::channel(false);
        let limits = Limits { idle, stop: stopped };
        let (carrier, streams) = serve(far, Line::new(|| false), &limits);
        (Client { stream: near, encoder: Encoder::new(), decoder: Decoder::new() }, carrier, streams, stop)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn streams_carry_data_both_ways_and_end_apart() {
        let (mut client, carrier, mut streams, _stop) = connect(LONG);
        client.open(1, "stdin").await;
        let mut opened = streams.recv().await.unwrap();
        assert_eq!((opened.id, opened.headers.get("streamType")), (1, Some("stdin")));
        client.data(1, true, b"in").await;
        assert_eq!(opened.input.next().await, Ok(Some(Bytes::from_static(b"in"))));
        assert_eq!(opened.input.next().await, Ok(None));
        opened.output.send(Bytes::from_static(b"out")).await.unwrap();
        opened.output.finish().await.unwrap();
        assert_eq!(client.receive().await, Some(Frame::Data { id: 1, fin: false, data: Bytes::from_static(b"out") }));
        assert_eq!(client.receive().await, Some(Frame::Data { id: 1, fin: true, data: Bytes::new() }));
        client.send(Frame::Ping { id: 1 }).await;
        assert_eq!(client.receive().await, Some(Frame::Ping { id: 1 }));
        let closing = tokio::spawn(carrier.close());
        assert_eq!(client.receive().await, Some(Frame::GoAway { last_good: 1, status: 0 }));
        assert_eq!(client.receive().await, None);
        drop(client);
        closing.await.unwrap();
    }

    #[tokio::test]
    async fn a_lost_connection_is_no_end_of_a_stream() {
        let (mut client, carrier, mut streams, _stop) = connect(LONG);
        client.open(1, "stdin").await;
        client.open(3, "data").await;
        let (mut one, mut two) = (streams.recv().await.unwrap(), streams.recv().await.unwrap());
        client.send(Frame::RstStream { id: 3, status: 5 }).await;
        assert_eq!(two.input.next().await, Err(carrier::Lost));
        drop(client);
        assert_eq!(one.input.next().await, Err(carrier::Lost));
        carrier.lost().await;
        assert!(streams.recv().await.is_none());
    }

    #[tokio::test]
    async fn a_stream_that_nobody_reads_stops_no_other() {
        let (mut client, _carrier, mut streams, _stop) = connect(LONG);
        client.open(1, "stdin").await;
        drop(streams.recv().await.unwrap());
        client.open(3, "data").await;
        let mut opened = streams.recv().await.unwrap();
        for _ in 0..100 {
            client.data(1, false, &[b'x'; 10_000]).await;
        }
        client.data(3, true, b"heard").await;
        assert_eq!(opened.input.next().await, Ok(Some(Bytes::from_static(b"heard"))));
    }

    #[tokio::test]
    async fn a_full_queue_holds_the_client_back_until_it_is_read() {
        let (mut client, _carrier, mut streams, _stop) = connect(LONG);
        client.open(1, "stdin").await;
        let mut opened = streams.recv().await.unwrap();
        let filling = async {
            for _ in 0..200 {
                client.data(1, false, &[b'x'; 10_000]).await;
            }
        };
        tokio::pin!(filling);
        assert!(timeout(Duration::from_millis(200), &mut filling).await.is_err(), "nobody reads");
        let reading = async {
            let mut count = 0;
            while count < 2_000_000 {
                count += opened.input.next().await.unwrap().unwrap().len();
            }
        };
        tokio::join!(filling, reading);
    }

    #[tokio::test]
    async fn what_is_no_spdy_what_is_idle_and_what_must_stop_is_lost() {
        let (mut client, carrier, _streams, _stop) = connect(LONG);
        client.stream.write_all(b"\x80\x02\0\x01\0\0\0\0").await.unwrap();
        assert_eq!(carrier.lost().await, Loss::Gone);
        let (_client, carrier, _streams, _stop) = connect(Duration::from_millis(20));
        assert_eq!(carrier.lost().await, Loss::Idle);
        let (_client, carrier, _streams, stop) = connect(LONG);
        assert!(timeout(Duration::from_millis(20), carrier.lost()).await.is_err());
        stop.send(true).unwrap();
        assert_eq!(carrier.lost().await, Loss::Stop);
    }
}
