//! Streams of one client, whatever carries them: queues between a connection's two tasks and those who use its streams.
//!
//! The task that reads gives each stream a queue of its own; when one is full nothing is read from the connection, which is
//! all that holds a client back. The task that writes has one queue for all. Who uses a stream sees its end, and sees it
//! differ from the loss of the connection. [`Carrier::lost`] is all that a session can't go on after: the client left,
//! nothing moved for too long, or the daemon ends. In the two last cases the client is still told.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, JoinHandle},
    time::{sleep, sleep_until, timeout},
};

use super::spdy::Frame;
use crate::work::lock;

/// Pieces that wait for the user of a stream; each is of what one read brought, so of at most [`PIECE`] bytes.
const QUEUE: usize = 8;
/// Most bytes of one read.
pub(super) const PIECE: usize = 32 << 10;
/// What waits to be written, of all streams.
const WRITES: usize = 16;
/// How long a client may take to hang up once it has all: what closes a socket with unread input may cost the other side
/// what it has not read yet.
pub(super) const LINGER: Duration = Duration::from_secs(5);
/// How often it is looked whether a client that is not read from has left.
const LOOK: Duration = Duration::from_secs(1);

/// The connection is of no use any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client is gone")]
pub(super) struct Lost;

/// Why a session can't go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Loss {
    #[error("the client is gone")]
    Gone,
    #[error("the session was idle for too long")]
    Idle,
    #[error("the daemon ends")]
    Stop,
}

enum Item {
    Data(Bytes),
    End,
}

/// What a client sends on a stream.
#[derive(Debug)]
pub(super) struct Input(mpsc::Receiver<Item>);

impl std::fmt::Debug for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Data(data) => write!(f, "Data({})", data.len()),
            Self::End => f.write_str("End"),
        }
    }
}

impl Input {
    /// The next bytes; [`None`] when the client has ended the stream. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Lost> {
        match self.0.recv().await {
            Some(Item::Data(data)) => Ok(Some(data)),
            Some(Item::End) => {
                self.0.close();
                Ok(None)
            }
            None => Err(Lost),
        }
    }
}

/// The other end of an [`Input`], for the task that reads the connection.
#[derive(Debug)]
pub(super) struct Feed {
    queue: mpsc::Sender<Item>,
    commands: mpsc::Sender<Command>,
}

/// The two ends of what a client sends on a stream.
pub(super) fn input(commands: &mpsc::Sender<Command>) -> (Feed, Input) {
    let (queue, receiver) = mpsc::channel(QUEUE);
    (Feed { queue, commands: commands.clone() }, Input(receiver))
}

impl Feed {
    /// Hands bytes over. A stream that nobody reads any more swallows them.
    async fn push(&self, item: Item, line: &Line) -> Result<(), Lost> {
        let permit = self.queue.reserve();
        tokio::pin!(permit);
        loop {
            tokio::select! {
                permit = &mut permit => {
                    if let Ok(permit) = permit {
                        permit.send(item);
                    }
                    return Ok(());
                }
                () = sleep(LOOK) => {}
            }
            // Its last word may be behind what we do not read. But to one that is gone nothing can be sent.
            if line.has_hung_up() {
                return Err(Lost);
            }
            // When there is no room something is being sent.
            drop(self.commands.try_send(Command::Nudge));
        }
    }

    pub(super) async fn data(&self, data: Bytes, line: &Line) -> Result<(), Lost> {
        self.push(Item::Data(data), line).await
    }

    pub(super) async fn end(self, line: &Line) -> Result<(), Lost> {
        self.push(Item::End, line).await
    }
}

/// What the task that writes the connection is to do.
#[derive(Debug)]
pub(super) enum Command {
    /// Send bytes of a stream.
    Data(u32, Bytes),
    /// Say that a stream has no more.
    Finish(u32),
    /// End a stream.
    Reset(u32),
    /// Send a frame of the protocol itself.
    Frame(Frame),
    /// Send what the client need not answer.
    Nudge,
    /// Say goodbye; nothing comes after it.
    Close,
}

/// Where a client hears a stream.
#[derive(Debug, Clone)]
pub(super) struct Output {
    id: u32,
    commands: mpsc::Sender<Command>,
}

impl Output {
    pub(super) fn new(id: u32, commands: mpsc::Sender<Command>) -> Self {
        Self { id, commands }
    }

    async fn command(&self, command: Command) -> Result<(), Lost> {
        self.commands.send(command).await.map_err(|_| Lost)
    }

    /// Sends bytes; waits while the client takes none.
    pub(super) async fn send(&self, data: Bytes) -> Result<(), Lost> {
        self.command(Command::Data(self.id, data)).await
    }

    /// Ends our side of the stream.
    pub(super) async fn finish(&self) -> Result<(), Lost> {
        self.command(Command::Finish(self.id)).await
    }

    /// Ends the stream in both directions.
    pub(super) async fn reset(&self) -> Result<(), Lost> {
        self.command(Command::Reset(self.id)).await
    }
}

/// What both tasks of a connection know of it.
pub(super) struct Line {
    moved: Mutex<Instant>,
    lost: watch::Sender<Option<Loss>>,
    has_hung_up: Box<dyn Fn() -> bool + Send + Sync>,
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Line").field("lost", &*self.lost.borrow()).finish_non_exhaustive()
    }
}

impl Line {
    /// `has_hung_up` asks the socket without reading it.
    pub(super) fn new(has_hung_up: impl Fn() -> bool + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            moved: Mutex::new(Instant::now()),
            lost: watch::Sender::new(None),
            has_hung_up: Box::new(has_hung_up),
        })
    }

    fn has_hung_up(&self) -> bool {
        (self.has_hung_up)()
    }

    /// Bytes came or went.
    pub(super) fn touch(&self) {
        *lock(&self.moved) = Instant::now();
    }

    /// Nothing more will, or must.
    pub(super) fn lose(&self, loss: Loss) {
        self.lost.send_if_modified(|lost| {
            // Who is gone can't be told anything any more, whatever came first.
            let is_news = lost.is_none() || loss == Loss::Gone && *lost != Some(Loss::Gone);
            if is_news {
                *lost = Some(loss);
            }
            is_news
        });
    }

    async fn lost(&self, wanted: fn(Loss) -> bool) -> Loss {
        let mut lost = self.lost.subscribe();
        let seen = lost.wait_for(|lost| lost.is_some_and(wanted)).await;
        // The sender lives in `self`.
        seen.map_or(Loss::Gone, |lost| lost.unwrap_or(Loss::Gone))
    }

    async fn is_idle(&self, limit: Duration) {
        loop {
            let until = *lock(&self.moved) + limit;
            if until <= Instant::now() {
                return;
            }
            sleep_until(until.into()).await;
        }
    }
}

/// One client's connection. Dropped, it is cut.
#[derive(Debug)]
pub(super) struct Carrier {
    commands: mpsc::Sender<Command>,
    line: Arc<Line>,
    reader: JoinHandle<()>,
    writer: AbortHandle,
    watch: AbortHandle,
}

/// The queue that a connection's writing task takes commands from, and the one to put them in.
pub(super) fn commands() -> (mpsc::Sender<Command>, mpsc::Receiver<Command>) {
    mpsc::channel(WRITES)
}

impl Carrier {
    /// Starts the tasks of a connection.
    pub(super) fn start(
        line: Arc<Line>,
        commands: mpsc::Sender<Command>,
        limits: &Limits,
        reader: impl Future<Output = ()> + Send + 'static,
        writer: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        let run = |task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
            let line = Arc::clone(&line);
            tokio::spawn(async move {
                task.await;
                line.lose(Loss::Gone);
            })
        };
        let (reader, writer) = (run(Box::pin(reader)), tokio::spawn(writer).abort_handle());
        let (idle, mut stop, watched) = (limits.idle, limits.stop.clone(), Arc::clone(&line));
        let watch = tokio::spawn(async move {
            let loss = tokio::select! {
                () = watched.is_idle(idle) => Loss::Idle,
                _ = stop.wait_for(|stop| *stop) => Loss::Stop,
            };
            watched.lose(loss);
        });
        Self { commands, line, reader, writer, watch: watch.abort_handle() }
    }

    /// Waits until the session can't go on.
    pub(super) async fn lost(&self) -> Loss {
        self.line.lost(|_| true).await
    }

    /// Waits until nothing can be told any more: a session that was cut has a moment to say so.
    pub(super) async fn given_up(&self) {
        if self.lost().await != Loss::Gone {
            drop(timeout(LINGER, self.line.lost(|loss| loss == Loss::Gone)).await);
        }
    }

    /// Says goodbye once all is written, and hangs up after the client.
    pub(super) async fn close(mut self) {
        let goodbye = async {
            drop(self.commands.send(Command::Close).await);
            // The writer's end of the queue goes with it.
            self.commands.closed().await;
        };
        let is_said = tokio::select! {
            () = goodbye => true,
            () = self.given_up() => false,
        };
        if is_said {
            drop(timeout(LINGER, &mut self.reader).await);
        }
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        self.reader.abort();
        self.writer.abort();
        self.watch.abort();
    }
}

/// How long a session lasts at most.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    /// Without a byte in either direction.
    pub(super) idle: Duration,
    /// The daemon ends.
    pub(super) stop: watch::Receiver<bool>,
}
