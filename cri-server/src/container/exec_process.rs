//! A further process of a container, as `ExecSync` and `Exec` have it: what it is made from, its FIFOs, and its way through
//! the shim.

use std::{
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use oci_spec::runtime::{Process, Spec};
use tokio::{
    net::unix::pipe::{self, Receiver, Sender},
    time::timeout,
};

use crate::{
    error::{Classify, Kind},
    id::ContainerId,
    runtime::{ProcessStreams, RuntimeError, Shim},
};

/// How long a stream may stay open after the process has ended: a child of it may have inherited the stream.
pub(crate) const DRAIN_LIMIT: Duration = Duration::from_secs(1);
/// How long a process that was killed may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// Why a process was not made, or is not known about any more.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
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
}

impl Classify for ProcessError {
    fn kind(&self) -> Kind {
        match self {
            Self::Spec { .. } | Self::Fifo { .. } => Kind::Internal,
            Self::Shim { source, .. } => source.kind(),
        }
    }
}

/// A name that no other process of the pod has, nor a FIFO in its directory.
pub(crate) fn unique_name(kind: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{kind}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// The container's own process, with another command.
pub(crate) async fn process_spec(bundle: &Path, command: Vec<String>, terminal: bool) -> Result<Vec<u8>, ProcessError> {
    let path = bundle.join("config.json");
    let build = async {
        let spec: Spec = serde_json::from_slice(&tokio::fs::read(&path).await?)?;
        let mut process: Process = spec.process().clone().ok_or("it has no process")?;
        process.set_args(Some(command));
        process.set_terminal(Some(terminal));
        if terminal {
            let mut env = process.env().clone().unwrap_or_default();
            if !env.iter().any(|variable| variable.starts_with("TERM=")) {
                env.push("TERM=xterm".to_owned());
            }
            process.set_env(Some(env));
        }
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(serde_json::to_vec(&process)?)
    };
    let built = build.await;
    built.map_err(|source| ProcessError::Spec { path, source })
}

/// See the module.
pub(crate) struct ExecProcess<'a> {
    shim: &'a Shim,
    container: &'a ContainerId,
    id: String,
}

fn failed(step: &'static str) -> impl FnOnce(RuntimeError) -> ProcessError {
    move |source| ProcessError::Shim { step, source }
}

impl<'a> ExecProcess<'a> {
    /// One that the shim does not know yet.
    pub(crate) fn new(shim: &'a Shim, container: &'a ContainerId, kind: &str) -> Self {
        Self { shim, container, id: unique_name(kind) }
    }

    /// Its id among the container's processes.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Describes it to the shim.
    pub(crate) async fn prepare(&self, spec: &[u8], streams: &ProcessStreams<'_>) -> Result<(), ProcessError> {
        let prepared = self.shim.exec_process(self.container, &self.id, spec, streams).await;
        prepared.map_err(failed("prepare the command in the shim"))
    }

    /// Starts it. The shim has its ends of the streams open then.
    pub(crate) async fn start(&self) -> Result<(), ProcessError> {
        self.shim.start_process(self.container, &self.id).await.map(drop).map_err(failed("start the command"))
    }

    /// Waits until it has ended; answers its exit code.
    pub(crate) async fn wait(&self) -> Result<u32, ProcessError> {
        self.shim.wait_process(self.container, &self.id).await.map_err(failed("wait for the command"))
    }

    /// Kills it and all that it started, and waits (bounded) until it is gone. One that has ended is killed.
    pub(crate) async fn kill(&self) -> Result<(), ProcessError> {
        match self.shim.kill_process(self.container, &self.id, 9).await {
            Err(error) if error.kind() != Kind::NotFound => return Err(failed("kill the command")(error)),
            _ => {}
        }
        // The shim deletes it only once it has ended.
        drop(timeout(KILL_LIMIT, self.shim.wait_process(self.container, &self.id)).await);
        Ok(())
    }

    /// Tells a shim that keeps the FIFO of stdin open that nothing more comes.
    pub(crate) async fn close_stdin(&self) {
        // One that has ended meanwhile has no input to close.
        drop(self.shim.close_stdin(self.container, &self.id).await);
    }

    /// Sets the size of its terminal.
    pub(crate) async fn resize(&self, columns: u16, rows: u16) {
        // A wrong size is no reason to end.
        drop(self.shim.resize_process(self.container, &self.id, columns, rows).await);
    }

    /// Has the shim forget it, whatever became of it.
    pub(crate) async fn forget(&self) {
        if let Err(error) = self.shim.delete_process(self.container, &self.id).await
            && error.kind() != Kind::NotFound
        {
            tracing::debug!(container = %self.container, exec = self.id, %error, "exec was not deleted");
        }
    }
}

/// A FIFO whose name goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Fifo(PathBuf);

impl Drop for Fifo {
    fn drop(&mut self) {
        // The directory goes with the pod in any case.
        drop(std::fs::remove_file(&self.0));
    }
}

impl Fifo {
    /// Makes it, in a directory in memory.
    pub(crate) fn make(directory: &Path, name: &str, stream: &str) -> Result<Self, ProcessError> {
        let path = directory.join(format!("{name}-{stream}"));
        match nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)) {
            Ok(()) => Ok(Self(path)),
            Err(errno) => Err(ProcessError::Fifo { step: "make", path, source: errno.into() }),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    fn opened<T>(&self, result: io::Result<T>) -> Result<T, ProcessError> {
        result.map_err(|source| ProcessError::Fifo { step: "open", path: self.0.clone(), source })
    }

    /// Opens it for reading, before anybody writes: one that has had no writer yet is not at its end.
    pub(crate) fn receiver(&self) -> Result<Receiver, ProcessError> {
        self.opened(pipe::OpenOptions::new().open_receiver(&self.0))
    }

    /// Opens it for writing, before anybody reads. Who holds this never hears that the reader has left.
    pub(crate) fn keep(&self) -> Result<Sender, ProcessError> {
        self.opened(pipe::OpenOptions::new().read_write(true).open_sender(&self.0))
    }

    /// Opens it for writing to one who reads.
    pub(crate) fn sender(&self) -> Result<Sender, ProcessError> {
        self.opened(pipe::OpenOptions::new().open_sender(&self.0))
    }
}
