//! `Attach`: a client sees what a container writes from now on, and writes its stdin.
//!
//! The shim has the container's streams and shows them on FIFOs. They are read here as fast as they are filled, so a client
//! that is slow holds up nobody: what it has not taken waits, up to a limit at which it is let go.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::unix::pipe,
    sync::mpsc,
};
use vaina_proto::cri::AttachRequest;

use super::{
    Request, StreamError,
    carrier::{Input, Loss, Lost, Output, PIECE},
    check_streams,
    remote_command::{Outcome, Remote, Sizes, Wanted},
};
use crate::{
    app::App,
    container::{Container, ContainerState, Fifo, ProcessError, StateError, unique_name},
    error::Chain,
    id::ContainerId,
    index::FindError,
    runtime::{ProcessStreams, RuntimeError, Shim},
    sandbox::PodFiles,
};

/// How far a client may be behind.
const BEHIND_MAX: usize = 16 << 20;
/// What a piece that waits costs beside its bytes.
const PIECE_COST: usize = 64;

/// Answers the address at which the container is attached to.
pub fn attach(app: &App, request: AttachRequest) -> Result<String, StreamError> {
    let AttachRequest { container_id: id, stdin, tty, stdout, stderr } = request;
    let container = app.index.containers.find(&id).map_err(StreamError::Find)?;
    container.running().map_err(StreamError::State)?;
    let wanted = Wanted { stdin, stdout, stderr, tty };
    check_streams(wanted)?;
    app.streaming.offer(Request::Attach { container: container.id.to_string(), wanted })
}

/// Why a client is not attached, or no longer.
#[derive(Debug, thiserror::Error)]
enum AttachError {
    #[error(transparent)]
    Find(FindError),
    #[error(transparent)]
    State(StateError),
    #[error(transparent)]
    Fifo(#[from] ProcessError),
    #[error("attach to the container in its shim")]
    Shim(#[source] RuntimeError),
    #[error("the client is more than {} MiB behind what the container writes", BEHIND_MAX >> 20)]
    Behind,
    #[error(transparent)]
    Send(#[from] Lost),
    #[error("the client was detached")]
    Lost(#[source] Loss),
}

/// Attaches a client that has come, until either side ends.
pub(super) async fn serve(app: &App, container: &str, wanted: Wanted, mut remote: Remote) {
    let outcome = match run(app, container, wanted, &mut remote).await {
        Ok(()) => Outcome::Exit(0),
        Err(AttachError::Send(Lost) | AttachError::Lost(Loss::Gone)) => return,
        Err(error) => Outcome::Failed(Chain(&error).to_string()),
    };
    tracing::debug!(container, ?outcome, "attach ended");
    remote.word.end(remote.carrier, [remote.stdout, remote.stderr], &outcome).await;
}

async fn run(app: &App, container: &str, wanted: Wanted, remote: &mut Remote) -> Result<(), AttachError> {
    let container: Arc<Container> = app.index.containers.find(container).map_err(AttachError::Find)?;
    container.running().map_err(AttachError::State)?;
    let Some(shim) = container.sandbox.shim() else {
        return Err(AttachError::State(container.refuse(&container.state())));
    };
    let directory = PodFiles::new(&container.sandbox.directory(&app.config.state)).io;
    let name = unique_name("attach");
    let fifo = |wanted: bool, stream: &str| wanted.then(|| Fifo::make(&directory, &name, stream)).transpose();
    let fifos = [fifo(wanted.stdin, "in")?, fifo(wanted.stdout, "out")?, fifo(wanted.stderr, "err")?];
    let [stdin, stdout, stderr] = &fifos;
    let sender = stdin.as_ref().map(Fifo::keep).transpose()?;
    let out = stdout.as_ref().map(Fifo::receiver).transpose()?;
    let err = stderr.as_ref().map(Fifo::receiver).transpose()?;
    let path = |fifo| Option::map(Option::as_ref(fifo), Fifo::path);
    let streams =
        ProcessStreams { stdin: path(stdin), stdout: path(stdout), stderr: path(stderr), terminal: wanted.tty };
    let is_fed = shim.attach(&container.id, &streams).await.map_err(AttachError::Shim)?;
    // Both sides have them open; nobody needs their names.
    drop(fifos);

    let has_output = out.is_some() || err.is_some();
    let outputs = async {
        tokio::try_join!(relay(out, remote.stdout.as_ref()), relay(err, remote.stderr.as_ref()))?;
        if !has_output {
            ended(&container).await;
        }
        Ok(())
    };
    let input = async {
        let sender = sender.filter(|_| is_fed);
        feed(remote.stdin.take(), sender).await;
        let goes_on = !is_fed || container.config.stdin_once && !container.config.tty;
        if goes_on {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        result = outputs => result,
        () = input => Ok(()),
        () = resize(remote.resize.take(), &shim, &container.id) => Ok(()),
        loss = remote.carrier.lost() => Err(AttachError::Lost(loss)),
    }
}

async fn ended(container: &Container) {
    let mut state = container.watch();
    // The container is held by who calls this, and its state with it.
    drop(state.wait_for(|state| !matches!(state, ContainerState::Running(_))).await);
}

/// Passes on what the container writes without ever letting the FIFO fill.
async fn relay(from: Option<pipe::Receiver>, to: Option<&Output>) -> Result<(), AttachError> {
    let (Some(mut from), Some(to)) = (from, to) else { return Ok(()) };
    let (queue, mut waiting) = mpsc::unbounded_channel::<Bytes>();
    let behind = AtomicUsize::new(0);
    let reading = async {
        let mut buffer = vec![0; PIECE];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            if behind.fetch_add(count + PIECE_COST, Ordering::Relaxed) > BEHIND_MAX {
                return Err(AttachError::Behind);
            }
            if queue.send(Bytes::copy_from_slice(&buffer[..count])).is_err() {
                break;
            }
        }
        drop(queue);
        Ok(())
    };
    let sending = async {
        while let Some(data) = waiting.recv().await {
            let count = data.len() + PIECE_COST;
            to.send(data).await?;
            behind.fetch_sub(count, Ordering::Relaxed);
        }
        Ok(())
    };
    tokio::try_join!(reading, sending).map(drop)
}

/// Passes on what the client writes; without anybody who takes it, it is thrown away.
async fn feed(input: Option<Input>, to: Option<pipe::Sender>) {
    let Some(mut input) = input else { return std::future::pending().await };
    let Some(mut to) = to else { return };
    while let Ok(Some(data)) = input.next().await {
        if to.write_all(&data).await.is_err() {
            return;
        }
    }
}

async fn resize(input: Option<Input>, shim: &Shim, container: &ContainerId) {
    if let Some(input) = input {
        let mut sizes = Sizes::new(input);
        while let Some(size) = sizes.next().await {
            // A wrong size is no reason to end.
            drop(shim.resize_process(container, "", size.width, size.height).await);
        }
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::streaming::carrier::{Command, commands};

    #[tokio::test]
    async fn a_client_that_is_too_slow_is_let_go_and_one_that_reads_is_not() {
        for reads in [true, false] {
            let (mut writer, reader) = pipe::pipe().unwrap();
            let (sender, mut queue) = commands();
            let output = Output::new(1, sender);
            let relaying = tokio::spawn(async move { relay(Some(reader), Some(&output)).await });
            let client = tokio::spawn(async move {
                let mut count = 0;
                while let Some(Command::Data(1, data)) = queue.recv().await {
                    count += data.len();
                    if !reads {
                        std::future::pending::<()>().await;
                    }
                }
                count
            });
            let chunk = vec![b'x'; 64 << 10];
            let writing = async {
                for _ in 0..512 {
                    if writer.write_all(&chunk).await.is_err() {
                        break;
                    }
                }
                drop(writer);
            };
            timeout(Duration::from_secs(30), writing).await.expect("the container never waits");
            let result = relaying.await.unwrap();
            if reads {
                result.unwrap();
                assert_eq!(client.await.unwrap(), 32 << 20);
            } else {
                assert!(matches!(result, Err(AttachError::Behind)));
                client.abort();
            }
        }
    }
}
