//! `Exec`: a command in a container, with the streams of a client.
//!
//! The shim runs it on FIFOs in the pod's directory, whose other ends are here. It reads and writes as fast as the client
//! does. When the client leaves, the command and all that it started are killed: nobody would hear of it any more.

use std::sync::Arc;

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::unix::pipe,
    sync::watch,
    time::sleep,
};
use vaina_proto::cri::ExecRequest;

use super::{
    Request, StreamError,
    carrier::{Input, Loss, Output, PIECE},
    check_streams,
    remote_command::{Outcome, Remote, Sizes, Wanted},
};
use crate::{
    app::App,
    container::{Container, DRAIN_LIMIT, ExecProcess, Fifo, ProcessError, StateError, process_spec},
    error::Chain,
    index::FindError,
    runtime::ProcessStreams,
    sandbox::PodFiles,
};

/// Answers the address at which the command is run.
pub fn exec(app: &App, request: ExecRequest) -> Result<String, StreamError> {
    let container = app.index.containers.find(&request.container_id).map_err(StreamError::Find)?;
    container.running().map_err(StreamError::State)?;
    check(&request)?;
    let ExecRequest { cmd: command, tty, stdin, stdout, stderr, .. } = request;
    let wanted = Wanted { stdin, stdout, stderr, tty };
    app.streaming.offer(Request::Exec { container: container.id.to_string(), command, wanted })
}

pub(crate) fn check(request: &ExecRequest) -> Result<(), StreamError> {
    let ExecRequest { tty, stdin, stdout, stderr, .. } = *request;
    check_streams(Wanted { stdin, stdout, stderr, tty })?;
    if request.cmd.is_empty() {
        return Err(StreamError::Invalid("the command is empty"));
    }
    Ok(())
}

/// Why the command did not run, or not to its end.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error(transparent)]
    Find(FindError),
    #[error(transparent)]
    State(StateError),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error("the command was killed")]
    Lost(#[source] Loss),
}

/// Runs the command for a client that has come.
pub(super) async fn serve(app: &App, container: &str, command: Vec<String>, wanted: Wanted, mut remote: Remote) {
    let outcome = match run(app, container, command, wanted, &mut remote).await {
        Ok(code) => Outcome::Exit(code),
        Err(RunError::Lost(Loss::Gone)) => return,
        Err(error) => Outcome::Failed(Chain(&error).to_string()),
    };
    tracing::debug!(container, ?outcome, "exec ended");
    remote.word.end(remote.carrier, [remote.stdout, remote.stderr], &outcome).await;
}

async fn run(
    app: &App,
    container: &str,
    command: Vec<String>,
    wanted: Wanted,
    remote: &mut Remote,
) -> Result<u32, RunError> {
    let container: Arc<Container> = app.index.containers.find(container).map_err(RunError::Find)?;
    container.running().map_err(RunError::State)?;
    let Some(shim) = container.sandbox.shim() else {
        return Err(RunError::State(container.refuse(&container.state())));
    };
    app.group_moves.announce();
    let process = ExecProcess::new(&shim, &container.id, "exec");
    let spec = process_spec(&container.bundle(&app.config.state), command, wanted.tty).await?;
    let directory = PodFiles::new(&container.sandbox.directory(&app.config.state)).io;
    let fifo = |wanted: bool, stream: &str| wanted.then(|| Fifo::make(&directory, process.id(), stream)).transpose();
    let fifos = [fifo(wanted.stdin, "in")?, fifo(wanted.stdout, "out")?, fifo(wanted.stderr, "err")?];
    let result = Run { process: &process, remote, fifos }.run(&spec, wanted.tty).await;
    // Whatever happened, the shim forgets it.
    process.forget().await;
    result
}

struct Run<'a> {
    process: &'a ExecProcess<'a>,
    remote: &'a mut Remote,
    fifos: [Option<Fifo>; 3],
}

impl Run<'_> {
    async fn run(self, spec: &[u8], terminal: bool) -> Result<u32, RunError> {
        let Self { process, remote, fifos: [stdin, stdout, stderr] } = self;
        // Ours are open before anybody opens the others, so that nobody waits and no stream has ended before it began.
        let keeper = stdin.as_ref().map(Fifo::keep).transpose()?;
        let [out, err] = [&stdout, &stderr].map(|fifo| fifo.as_ref().map(Fifo::receiver).transpose());
        let (out, err) = (out?, err?);
        let [stdin_path, stdout_path, stderr_path] =
            [&stdin, &stdout, &stderr].map(|fifo| fifo.as_ref().map(Fifo::path));
        let streams = ProcessStreams { stdin: stdin_path, stdout: stdout_path, stderr: stderr_path, terminal };
        process.prepare(spec, &streams).await?;
        process.start().await?;
        // From now on a command that does not read its input can be told from one that has not got to it yet.
        let input = remote.stdin.take().zip(stdin.as_ref().and_then(|fifo| fifo.sender().ok()));
        drop((keeper, stdin, stdout, stderr));

        let (end, ended) = watch::channel(false);
        let outputs = async {
            tokio::join!(
                forward(out, remote.stdout.as_ref(), ended.clone()),
                forward(err, remote.stderr.as_ref(), ended.clone())
            );
        };
        let inputs = async {
            tokio::join!(feed(input, process), resize(remote.resize.take(), process));
        };
        tokio::pin!(outputs, inputs);
        let waiting = process.wait();
        tokio::pin!(waiting);
        let (mut has_output, mut has_input) = (true, true);
        let code = loop {
            tokio::select! {
                code = &mut waiting => break code?,
                () = &mut outputs, if has_output => has_output = false,
                () = &mut inputs, if has_input => has_input = false,
                loss = remote.carrier.lost() => {
                    process.kill().await?;
                    return Err(RunError::Lost(loss));
                }
            }
        };
        end.send_replace(true);
        if has_output {
            tokio::select! {
                () = outputs => {}
                loss = remote.carrier.lost() => return Err(RunError::Lost(loss)),
            }
        }
        Ok(code)
    }
}

/// Passes on what the command writes, until its end, and what is still to come then.
async fn forward(from: Option<pipe::Receiver>, to: Option<&Output>, mut ended: watch::Receiver<bool>) {
    let (Some(mut from), Some(to)) = (from, to) else { return };
    let mut buffer = vec![0; PIECE];
    loop {
        let late = async {
            // The sender outlives this; something that the command left behind may have its streams for ever.
            drop(ended.wait_for(|ended| *ended).await);
            sleep(DRAIN_LIMIT).await;
        };
        let count = tokio::select! {
            count = from.read(&mut buffer) => count,
            () = late => return,
        };
        match count {
            Ok(count @ 1..) if to.send(Bytes::copy_from_slice(&buffer[..count])).await.is_ok() => {}
            _ => return,
        }
    }
}

/// Passes on what the client writes.
async fn feed(input: Option<(Input, pipe::Sender)>, process: &ExecProcess<'_>) {
    let Some((mut input, mut to)) = input else { return };
    while let Ok(Some(data)) = input.next().await {
        if to.write_all(&data).await.is_err() {
            // Nobody reads it any more.
            break;
        }
    }
    drop((input, to));
    process.close_stdin().await;
}

async fn resize(input: Option<Input>, process: &ExecProcess<'_>) {
    let Some(input) = input else { return };
    let mut sizes = Sizes::new(input);
    while let Some(size) = sizes.next().await {
        process.resize(size.width, size.height).await;
    }
}
