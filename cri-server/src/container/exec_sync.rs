//! `ExecSync`: runs a command in a container and answers what it wrote.
//!
//! The shim runs it and holds the other ends of two FIFOs in the pod's directory. Output is kept up to a limit and then
//! still read, so that a command that writes without end blocks on nothing. When the time is up the command and all it has
//! started are killed.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use oci_spec::runtime::{Process, Spec};
use tokio::{
    io::AsyncReadExt as _,
    net::unix::pipe::{self, Receiver},
    time::timeout,
};
use tracing::{Instrument as _, debug_span};
use vaina_proto::cri::ExecSyncResponse;

use super::{Container, StateError};
use crate::{
    app::App,
    error::{Classify, Kind},
    index::FindError,
    runtime::{RuntimeError, Shim},
    sandbox::PodFiles,
    work::{blocking, lock},
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
    /// What the container's own process is.
    #[error("read the container's spec {}", .path.display())]
    Spec {
        /// Where.
        path: PathBuf,
        /// Cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The FIFOs.
    #[error("{step} {}", .path.display())]
    Fifo {
        /// What was done.
        step: &'static str,
        /// To what.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The shim.
    #[error("{step}")]
    Shim {
        /// What was asked of it.
        step: &'static str,
        /// Cause.
        source: RuntimeError,
    },
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
            Self::Spec { .. } | Self::Fifo { .. } => Kind::Internal,
            Self::Shim { source, .. } => source.kind(),
            Self::Timeout { .. } => Kind::DeadlineExceeded,
        }
    }
}

/// What is kept of each stream.
const OUTPUT_LIMIT: usize = 16 << 20;
/// What is answered of both: the kubelet and crictl refuse a message of more than 16 MiB, and would see an error instead of
/// output that is cut. The rest is for what surrounds it.
const ANSWER_LIMIT: usize = (16 << 20) - 1024;
/// How long a stream may stay open after the command has ended: a child of it may have inherited the stream.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

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
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let Some(shim) = container.sandbox.shim() else {
        return Err(ExecSyncError::State(container.refuse(&container.state())));
    };
    let exec_id = format!("sync-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let name = command.first().cloned().unwrap_or_default();
    let spec = process(&container.bundle(&app.config.state), command).instrument(debug_span!("spec")).await?;
    let io = PodFiles::new(&container.sandbox.directory(&app.config.state)).io;
    let fifos = Fifos::make(&io, &exec_id).instrument(debug_span!("fifos")).await?;
    let exec = Exec { shim: &shim, container, exec_id: &exec_id };
    let result = exec.run(&spec, fifos, &name, limit).await;
    // Whatever happened, the shim forgets it.
    if let Err(error) = shim.delete_process(&container.id, &exec_id).await
        && !matches!(error.kind(), Kind::NotFound)
    {
        tracing::debug!(container = %container.id, exec = exec_id, %error, "exec was not deleted");
    }
    result
}

struct Exec<'a> {
    shim: &'a Shim,
    container: &'a Container,
    exec_id: &'a str,
}

impl Exec<'_> {
    async fn run(
        &self,
        spec: &[u8],
        fifos: Fifos,
        name: &str,
        limit: Option<u64>,
    ) -> Result<ExecSyncResponse, ExecSyncError> {
        let failed = |step| move |source| ExecSyncError::Shim { step, source };
        let id = &self.container.id;
        self.shim
            .exec_process(id, self.exec_id, spec, &fifos.paths[0], &fifos.paths[1])
            .await
            .map_err(failed("prepare the command in the shim"))?;
        let started = async {
            self.shim.start_process(id, self.exec_id).await.map_err(failed("start the command"))?;
            // The shim has the writing ends open by now.
            let Fifos { receivers, .. } = fifos;
            let [stdout, stderr] = receivers.map(Reader::start);
            let code = self.shim.wait_process(id, self.exec_id).await.map_err(failed("wait for the command"))?;
            let (mut stdout, mut stderr) =
                async { tokio::join!(stdout.finish(), stderr.finish()) }.instrument(debug_span!("drain")).await;
            fit(&mut stdout, &mut stderr);
            Ok(ExecSyncResponse { stdout, stderr, exit_code: code.cast_signed() })
        };
        let Some(seconds) = limit else { return started.await };
        match timeout(Duration::from_secs(seconds), started).await {
            Ok(answer) => answer,
            Err(_) => {
                if let Err(error) = self.shim.kill_process(id, self.exec_id, 9).await
                    && error.kind() != Kind::NotFound
                {
                    return Err(ExecSyncError::Shim { step: "kill the command whose time is up", source: error });
                }
                // The shim deletes it only once it has ended.
                drop(timeout(Duration::from_secs(10), self.shim.wait_process(id, self.exec_id)).await);
                Err(ExecSyncError::Timeout { command: name.to_owned(), seconds })
            }
        }
    }
}

/// The container's own process, with another command and no terminal.
async fn process(bundle: &Path, command: Vec<String>) -> Result<Vec<u8>, ExecSyncError> {
    let path = bundle.join("config.json");
    let build = async {
        let spec: Spec = serde_json::from_slice(&tokio::fs::read(&path).await?)?;
        let mut process: Process = spec.process().clone().ok_or("it has no process")?;
        process.set_args(Some(command));
        process.set_terminal(Some(false));
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(serde_json::to_vec(&process)?)
    };
    let built = build.await;
    built.map_err(|source| ExecSyncError::Spec { path, source })
}

/// Two FIFOs that are open for reading. Their names go when this is dropped or taken apart.
struct Fifos {
    paths: [PathBuf; 2],
    receivers: [Receiver; 2],
    _names: Names,
}

struct Names([PathBuf; 2]);

impl Drop for Names {
    fn drop(&mut self) {
        for path in &self.0 {
            // The directory goes with the pod in any case.
            drop(std::fs::remove_file(path));
        }
    }
}

impl Fifos {
    async fn make(directory: &Path, exec_id: &str) -> Result<Self, ExecSyncError> {
        let paths = ["out", "err"].map(|stream| directory.join(format!("{exec_id}-{stream}")));
        let names = Names(paths.clone());
        let to_make = paths.clone();
        blocking(move || {
            to_make.into_iter().try_for_each(|path| {
                nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600))
                    .map_err(|errno| ExecSyncError::Fifo { step: "make", path, source: errno.into() })
            })
        })
        .await?;
        // Opened before anybody writes; a FIFO that has had no writer yet is not at its end.
        let open = |path: &PathBuf| {
            pipe::OpenOptions::new().open_receiver(path).map_err(|source| ExecSyncError::Fifo {
                step: "open",
                path: path.clone(),
                source,
            })
        };
        let receivers = [open(&paths[0])?, open(&paths[1])?];
        Ok(Self { paths, receivers, _names: names })
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
        let fifos = Fifos::make(dir.path(), "x").await.unwrap();
        let mut writer = pipe::OpenOptions::new().open_sender(&fifos.paths[0]).unwrap();
        let Fifos { receivers: [stdout, _], _names, .. } = fifos;
        let reader = Reader::start(stdout);
        let chunk = vec![b'x'; 1 << 20];
        for _ in 0..20 {
            writer.write_all(&chunk).await.unwrap();
        }
        drop(writer);
        assert_eq!(reader.finish().await.len(), OUTPUT_LIMIT);
        drop(_names);
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
        let fifos = Fifos::make(dir.path(), "x").await.unwrap();
        let mut writer = pipe::OpenOptions::new().open_sender(&fifos.paths[0]).unwrap();
        let Fifos { receivers: [stdout, _], _names, .. } = fifos;
        writer.write_all(b"said").await.unwrap();
        assert_eq!(Reader::start(stdout).finish().await, b"said");
    }
}
