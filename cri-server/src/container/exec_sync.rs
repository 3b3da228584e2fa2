//! `ExecSync`: runs a command in a container and answers what it wrote.
//!
//! The shim runs it and holds the other ends of two FIFOs in the pod's directory. Output is kept up to a limit and then
//! still read, so that a command that writes without end blocks on nothing. When the time is up the command and all it has
//! started are killed.

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{io::AsyncReadExt as _, net::unix::pipe::Receiver, time::timeout};
use tracing::{Instrument as _, debug_span};
use vaina_proto::cri::ExecSyncResponse;

use super::{
    Container, StateError,
    exec_process::{DRAIN_LIMIT, ExecProcess, Fifo, ProcessError, process_spec},
};
use crate::{
    app::App,
    error::{Classify, Kind},
    index::FindError,
    runtime::ProcessStreams,
    sandbox::PodFiles,
    work::lock,
};

/// Why a command did not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum ExecSyncError {
    /// No such container.
    #[error(transparent)]
    Find(FindError),
    /// It does not run.
    #[error(transparent)]
    State(StateError),
    /// Nothing to run.
    #[error("exec in the container: the command is empty")]
    NoCommand,
    /// The process.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// It took too long, and was killed.
    #[error("run {command:?} in the container: timed out after {seconds} s")]
    Timeout {
        /// The command's name.
        command: String,
        /// Limit.
        seconds: u64,
    },
}

impl Classify for ExecSyncError {
    fn kind(&self) -> Kind {
        match self {
            Self::Find(source) => source.kind(),
            Self::State(source) => source.kind(),
            Self::NoCommand => Kind::InvalidArgument,
            Self::Process(source) => source.kind(),
            Self::Timeout { .. } => Kind::DeadlineExceeded,
        }
    }
}

/// What is kept of each stream.
const OUTPUT_LIMIT: usize = 16 << 20;
/// What is answered of both: the kubelet and crictl refuse a message of more than 16 MiB, and would see an error instead of
/// output that is cut. The rest is for what surrounds it.
const ANSWER_LIMIT: usize = (16 << 20) - 1024;

/// Runs a command; a limit of 0 seconds is none.
pub async fn exec_sync(
    app: &Arc<App>,
    id: &str,
    command: Vec<String>,
    limit_seconds: i64,
) -> Result<ExecSyncResponse, ExecSyncError> {
    let container = app.index.containers.find(id).map_err(ExecSyncError::Find)?;
    container.running().map_err(ExecSyncError::State)?;
    if command.is_empty() {
        return Err(ExecSyncError::NoCommand);
    }
    let limit = u64::try_from(limit_seconds).ok().filter(|seconds| *seconds > 0);
    let app = Arc::clone(app);
    app.changes.clone().run(async move { run(&app, &container, command, limit).await }).await
}

async fn run(
    app: &App,
    container: &Container,
    command: Vec<String>,
    limit: Option<u64>,
) -> Result<ExecSyncResponse, ExecSyncError> {
    let Some(shim) = container.sandbox.shim() else {
        return Err(ExecSyncError::State(container.refuse(&container.state())));
    };
    app.group_moves.announce();
    let name = command.first().cloned().unwrap_or_default();
    let spec =
        process_spec(&container.bundle(&app.config.state), command, false).instrument(debug_span!("spec")).await?;
    let io = PodFiles::new(&container.sandbox.directory(&app.config.state)).io;
    let process = ExecProcess::new(&shim, &container.id, "sync");
    let fifos = debug_span!("fifos").in_scope(|| Fifos::make(&io, process.id()))?;
    let result = run_process(&process, &spec, fifos, &name, limit).await;
    // Whatever happened, the shim forgets it.
    process.forget().await;
    result
}

async fn run_process(
    process: &ExecProcess<'_>,
    spec: &[u8],
    fifos: Fifos,
    name: &str,
    limit: Option<u64>,
) -> Result<ExecSyncResponse, ExecSyncError> {
    let [stdout, stderr] = fifos.names.each_ref().map(|fifo| Some(fifo.path()));
    process.prepare(spec, &ProcessStreams { stdout, stderr, ..ProcessStreams::default() }).await?;
    let started = async {
        process.start().await?;
        // The shim has the writing ends open by now.
        let [stdout, stderr] = fifos.receivers.map(Reader::start);
        let code = process.wait().await?;
        let (mut stdout, mut stderr) =
            async { tokio::join!(stdout.finish(), stderr.finish()) }.instrument(debug_span!("drain")).await;
        fit(&mut stdout, &mut stderr);
        Ok(ExecSyncResponse { stdout, stderr, exit_code: code.cast_signed() })
    };
    let Some(seconds) = limit else { return started.await };
    match timeout(Duration::from_secs(seconds), started).await {
        Ok(answer) => answer,
        Err(_) => {
            process.kill().await?;
            Err(ExecSyncError::Timeout { command: name.to_owned(), seconds })
        }
    }
}

/// Two FIFOs that are open for reading.
struct Fifos {
    names: [Fifo; 2],
    receivers: [Receiver; 2],
}

impl Fifos {
    fn make(directory: &Path, name: &str) -> Result<Self, ProcessError> {
        let names = [Fifo::make(directory, name, "out")?, Fifo::make(directory, name, "err")?];
        let receivers = [names[0].receiver()?, names[1].receiver()?];
        Ok(Self { names, receivers })
    }
}

/// Reads a stream beside the command, and keeps what came even when the end does not.
struct Reader {
    kept: Arc<Mutex<Vec<u8>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Reader {
    fn start(stream: Receiver) -> Self {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let task = tokio::spawn(read(stream, Arc::clone(&kept)));
        Self { kept, task }
    }

    /// All of it, or what came within the limit.
    async fn finish(mut self) -> Vec<u8> {
        drop(timeout(DRAIN_LIMIT, &mut self.task).await);
        std::mem::take(&mut *lock(&self.kept))
    }
}

/// Cuts what is too much for one answer: each stream has a half of it, and what the other leaves.
fn fit(stdout: &mut Vec<u8>, stderr: &mut Vec<u8>) {
    stderr.truncate(ANSWER_LIMIT - stdout.len().min(ANSWER_LIMIT / 2));
    stdout.truncate(ANSWER_LIMIT - stderr.len());
}

async fn read(mut stream: Receiver, kept: Arc<Mutex<Vec<u8>>>) {
    let mut buffer = vec![0; 64 << 10];
    // An error ends the stream as its end does: there is nobody to tell but who waits for the output.
    while let Ok(count) = stream.read(&mut buffer).await
        && count > 0
    {
        let mut kept = lock(&kept);
        let room = OUTPUT_LIMIT.saturating_sub(kept.len());
        kept.extend_from_slice(&buffer[..count.min(room)]);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test]
    async fn output_is_kept_up_to_the_limit_and_read_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let Fifos { names, receivers: [stdout, _] } = Fifos::make(dir.path(), "x").unwrap();
        let mut writer = names[0].sender().unwrap();
        let reader = Reader::start(stdout);
        let chunk = vec![b'x'; 1 << 20];
        for _ in 0..20 {
            writer.write_all(&chunk).await.unwrap();
        }
        drop(writer);
        assert_eq!(reader.finish().await.len(), OUTPUT_LIMIT);
        drop(names);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn both_streams_fit_into_one_answer() {
        let half = ANSWER_LIMIT / 2;
        for ((out, err), kept) in [
            ((10, 20), (10, 20)),
            ((OUTPUT_LIMIT, 0), (ANSWER_LIMIT, 0)),
            ((0, OUTPUT_LIMIT), (0, ANSWER_LIMIT)),
            ((OUTPUT_LIMIT, 100), (ANSWER_LIMIT - 100, 100)),
            ((100, OUTPUT_LIMIT), (100, ANSWER_LIMIT - 100)),
            ((OUTPUT_LIMIT, OUTPUT_LIMIT), (half, half)),
        ] {
            let (mut stdout, mut stderr) = (vec![0; out], vec![0; err]);
            fit(&mut stdout, &mut stderr);
            assert_eq!((stdout.len(), stderr.len()), kept, "{out} and {err}");
            let answer = ExecSyncResponse { stdout, stderr, exit_code: i32::MIN };
            assert!(prost::Message::encoded_len(&answer) <= 16 << 20);
        }
    }

    #[tokio::test]
    async fn a_stream_that_stays_open_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let Fifos { names, receivers: [stdout, _] } = Fifos::make(dir.path(), "x").unwrap();
        let mut writer = names[0].sender().unwrap();
        writer.write_all(b"said").await.unwrap();
        assert_eq!(Reader::start(stdout).finish().await, b"said");
    }
}
