//! `vaina exec POD -- COMMAND`: a command in a container, with our standard streams or our terminal.
//!
//! Interactive streams go past the daemon: the pod's shim is asked by `Task.Exec`, with FIFOs in the pod's directory. The
//! daemon only says which shim that is and what the container's own process is like.

use std::{
    io::{self, IsTerminal as _, Read as _, Write as _},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use clap::Args;
use containerd_shim_protos::{
    api::{
        CloseIORequest, DeleteRequest, ExecProcessRequest, KillRequest, ResizePtyRequest, StartRequest, WaitRequest,
    },
    protobuf::well_known_types::any::Any,
    shim_async::TaskClient,
};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use rustix::termios::tcgetwinsize;
use serde_json::Value;
use thiserror::Error;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::unix::pipe,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use ttrpc::context;
use vaina_proto::cri;

use super::{
    daemon::{Daemon, DaemonError},
    find::{self, FindError},
};
use crate::{
    config::Config,
    error::{Classify, Kind},
};

const SHORT: std::time::Duration = std::time::Duration::from_secs(30);

/// Arguments of `vaina exec`.
#[derive(Debug, Args)]
pub struct ExecArguments {
    /// Pass our standard input on
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Give the command a terminal, ours
    #[arg(short, long)]
    tty: bool,
    /// The container; the pod's first if it is not named
    #[arg(short, long)]
    container: Option<String>,
    /// Namespace of the pod
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Name of the pod
    pod: String,
    /// The command and its arguments, after `--`
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Why the command did not run.
#[derive(Debug, Error)]
pub enum ExecError {
    /// The pod or the container.
    #[error(transparent)]
    Find(#[from] FindError),
    /// The daemon.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// It ended, or has not been started.
    #[error("run a command in container {container}: it does not run")]
    NotRunning {
        /// The container.
        container: String,
    },
    /// The daemon's verbose answer.
    #[error("ask the daemon for {what}: its answer has none")]
    Answer {
        /// What was looked for.
        what: &'static str,
    },
    /// `-t` without a terminal.
    #[error("use the terminal: standard input is none (leave out --tty)")]
    NoTerminal,
    /// The streams.
    #[error("open {}", path.display())]
    Fifo {
        /// The FIFO.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The terminal or signals.
    #[error("set the terminal up")]
    Terminal(#[source] io::Error),
    /// The shim.
    #[error("{verb}")]
    Shim {
        /// What was asked.
        verb: &'static str,
        /// Cause.
        #[source]
        source: ttrpc::Error,
    },
}

impl Classify for ExecError {
    fn kind(&self) -> Kind {
        match self {
            Self::Find(error) => error.kind(),
            Self::Daemon(error) => error.kind(),
            Self::NotRunning { .. } => Kind::FailedPrecondition,
            Self::NoTerminal => Kind::InvalidArgument,
            Self::Answer { .. } | Self::Fifo { .. } | Self::Terminal(_) | Self::Shim { .. } => Kind::Internal,
        }
    }
}

/// Runs the command and answers with its exit code.
pub(super) async fn run(arguments: ExecArguments, daemon: Daemon, config: &Config) -> Result<u8, ExecError> {
    if arguments.tty && !io::stdin().is_terminal() {
        return Err(ExecError::NoTerminal);
    }
    daemon.ensure().await?;
    let container = running(&arguments, &daemon).await?;
    let process = process(&daemon, &container.id, &arguments).await?;
    let address = shim_address(&daemon, &container.pod_sandbox_id).await?;
    let client = ttrpc::r#async::Client::connect(&address)
        .await
        .map_err(|source| ExecError::Shim { verb: "connect to the pod's shim", source })?;
    let directory = config.state.join("pods").join(&container.pod_sandbox_id).join("io");
    let exec = Exec {
        tasks: TaskClient::new(client),
        container: container.id,
        id: format!("exec-{}", std::process::id()),
        directory,
        has_stdin: arguments.stdin,
        has_terminal: arguments.tty,
    };
    let result = exec.run(process).await;
    exec.forget().await;
    result
}

/// The newest attempt of the container, if it runs.
async fn running(arguments: &ExecArguments, daemon: &Daemon) -> Result<cri::Container, ExecError> {
    let mut found = find::containers(daemon, &arguments.namespace, &arguments.pod).await?;
    found.sort_by_key(|container| (container.created_at, find::attempt(container)));
    let names: Vec<String> = found.iter().map(|container| find::name(container).to_owned()).collect();
    let container = find::choose(&arguments.pod, &names, arguments.container.as_deref())?;
    let is_running = |one: &cri::Container| one.state == i32::from(cri::ContainerState::ContainerRunning);
    let newest = found.into_iter().rev().find(|one| find::name(one) == container).filter(is_running);
    newest.ok_or(ExecError::NotRunning { container })
}

/// The container's own process with another command, in OCI's JSON.
async fn process(daemon: &Daemon, container: &str, arguments: &ExecArguments) -> Result<Vec<u8>, ExecError> {
    let answer = daemon.container(container, true).await?;
    let info = answer.info.get("info").and_then(|info| serde_json::from_str::<Value>(info).ok()).unwrap_or_default();
    let mut process = info["runtimeSpec"]["process"].clone();
    let Some(fields) = process.as_object_mut() else {
        return Err(ExecError::Answer { what: "the container's process" });
    };
    fields.insert("args".to_owned(), arguments.command.clone().into());
    fields.insert("terminal".to_owned(), arguments.tty.into());
    fields.remove("consoleSize");
    // Right from its first look; the shim is told again once it runs, and when ours changes.
    if arguments.tty
        && let Ok(size) = tcgetwinsize(io::stdin().as_fd())
        && size.ws_col > 0
    {
        let size = serde_json::json!({ "height": size.ws_row, "width": size.ws_col });
        fields.insert("consoleSize".to_owned(), size);
    }
    if arguments.tty
        && let Some(environment) = fields.get_mut("env").and_then(Value::as_array_mut)
        && let Ok(terminal) = std::env::var("TERM")
    {
        environment.retain(|variable| !variable.as_str().is_some_and(|variable| variable.starts_with("TERM=")));
        environment.push(format!("TERM={terminal}").into());
    }
    Ok(process.to_string().into_bytes())
}

async fn shim_address(daemon: &Daemon, sandbox: &str) -> Result<String, ExecError> {
    let answer = daemon.sandbox(sandbox, true).await?;
    let info = answer.info.get("info").and_then(|info| serde_json::from_str::<Value>(info).ok()).unwrap_or_default();
    let address = info["shimAddress"].as_str().filter(|address| !address.is_empty());
    address.map(str::to_owned).ok_or(ExecError::Answer { what: "the address of the pod's shim" })
}

struct Exec {
    tasks: TaskClient,
    container: String,
    id: String,
    directory: PathBuf,
    has_stdin: bool,
    has_terminal: bool,
}

impl Exec {
    async fn run(&self, process: Vec<u8>) -> Result<u8, ExecError> {
        let stdin = if self.has_stdin { Some(self.fifo("stdin")?) } else { None };
        let stdout = self.fifo("stdout")?;
        let stderr = if self.has_terminal { None } else { Some(self.fifo("stderr")?) };
        // Open before the shim opens the other ends, so that neither side waits.
        let input = stdin.as_deref().map(|path| self.open(path, sender)).transpose()?;
        let output = self.open(&stdout, receiver)?;
        let errors = stderr.as_deref().map(|path| self.open(path, receiver)).transpose()?;

        let path = |path: &Option<PathBuf>| path.as_ref().map_or(String::new(), |path| path.display().to_string());
        let request = ExecProcessRequest {
            id: self.container.clone(),
            exec_id: self.id.clone(),
            terminal: self.has_terminal,
            stdin: path(&stdin),
            stdout: stdout.display().to_string(),
            stderr: path(&stderr),
            spec: Some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned(),
                value: process,
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        let failed = |verb| move |source| ExecError::Shim { verb, source };
        self.tasks.exec(limit(), &request).await.map_err(failed("prepare the command in the shim"))?;
        let request = StartRequest { id: self.container.clone(), exec_id: self.id.clone(), ..Default::default() };
        self.tasks.start(limit(), &request).await.map_err(failed("start the command"))?;

        let _raw = if self.has_terminal { Some(Raw::set()?) } else { None };
        if self.has_terminal {
            self.resize().await;
        }
        let output = tokio::spawn(copy(output, Sink::Out));
        let errors = errors.map(|errors| tokio::spawn(copy(errors, Sink::Err)));
        let input = self.pass_input(input);
        let signals = self.pass_signals();
        let request = WaitRequest { id: self.container.clone(), exec_id: self.id.clone(), ..Default::default() };
        // No limit: it ends when the command does.
        let waiting = self.tasks.wait(context::with_timeout(0), &request);
        let answer = {
            let (mut input, mut signals) = (std::pin::pin!(input), std::pin::pin!(signals));
            let mut waiting = std::pin::pin!(waiting);
            let mut has_input = true;
            loop {
                tokio::select! {
                    answer = &mut waiting => break answer.map_err(failed("wait for the command"))?,
                    () = &mut input, if has_input => has_input = false,
                    result = &mut signals => result?,
                }
            }
        };
        // All that it wrote is shown before its code is told.
        let _ = output.await;
        if let Some(errors) = errors {
            let _ = errors.await;
        }
        Ok(u8::try_from(answer.exit_status).unwrap_or(255))
    }

    fn fifo(&self, name: &str) -> Result<PathBuf, ExecError> {
        let path = self.directory.join(format!("{}-{name}", self.id));
        // One of an earlier process of this pid, which was killed.
        let _ = std::fs::remove_file(&path);
        let mode = nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR;
        nix::unistd::mkfifo(&path, mode)
            .map_err(|errno| ExecError::Fifo { path: path.clone(), source: errno.into() })?;
        Ok(path)
    }

    fn open<T>(&self, path: &Path, open: impl FnOnce(&Path) -> io::Result<T>) -> Result<T, ExecError> {
        open(path).map_err(|source| ExecError::Fifo { path: path.to_owned(), source })
    }

    /// Copies our standard input until it ends, then tells the shim.
    async fn pass_input(&self, sender: Option<pipe::Sender>) {
        let Some(mut sender) = sender else { return };
        let mut input = standard_input();
        while let Some(bytes) = input.recv().await {
            if sender.write_all(&bytes).await.is_err() {
                return;
            }
        }
        drop(sender);
        let request =
            CloseIORequest { id: self.container.clone(), exec_id: self.id.clone(), stdin: true, ..Default::default() };
        // A command that has ended meanwhile has no input to close.
        let _ = self.tasks.close_io(limit(), &request).await;
    }

    /// Without a terminal Ctrl-C reaches us and not the command; with one, only its size must be passed on.
    async fn pass_signals(&self) -> Result<(), ExecError> {
        let watch = |kind| signal(kind).map_err(ExecError::Terminal);
        let (mut interrupt, mut terminate) = (watch(SignalKind::interrupt())?, watch(SignalKind::terminate())?);
        let mut size = watch(SignalKind::window_change())?;
        loop {
            let signal = tokio::select! {
                _ = interrupt.recv() => 2,
                _ = terminate.recv() => 15,
                _ = size.recv() => {
                    if self.has_terminal {
                        self.resize().await;
                    }
                    continue;
                }
            };
            let request =
                KillRequest { id: self.container.clone(), exec_id: self.id.clone(), signal, ..Default::default() };
            // One that has ended needs no signal.
            let _ = self.tasks.kill(limit(), &request).await;
        }
    }

    async fn resize(&self) {
        let Ok(size) = tcgetwinsize(io::stdin().as_fd()) else { return };
        let request = ResizePtyRequest {
            id: self.container.clone(),
            exec_id: self.id.clone(),
            width: size.ws_col.into(),
            height: size.ws_row.into(),
            ..Default::default()
        };
        // A wrong size is no reason to end.
        let _ = self.tasks.resize_pty(limit(), &request).await;
    }

    /// The shim forgets the command, and the FIFOs go.
    async fn forget(&self) {
        let request = DeleteRequest { id: self.container.clone(), exec_id: self.id.clone(), ..Default::default() };
        // It may never have known it; the container's removal takes the rest.
        let _ = self.tasks.delete(limit(), &request).await;
        for name in ["stdin", "stdout", "stderr"] {
            let _ = std::fs::remove_file(self.directory.join(format!("{}-{name}", self.id)));
        }
    }
}

fn limit() -> context::Context {
    context::with_duration(SHORT)
}

fn receiver(path: &Path) -> io::Result<pipe::Receiver> {
    pipe::OpenOptions::new().open_receiver(path)
}

/// Also open for reading, which Linux allows, so that no reader must be there yet.
fn sender(path: &Path) -> io::Result<pipe::Sender> {
    pipe::OpenOptions::new().read_write(true).open_sender(path)
}

#[derive(Clone, Copy)]
enum Sink {
    Out,
    Err,
}

async fn copy(mut from: pipe::Receiver, to: Sink) {
    let mut buffer = vec![0; 32 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let bytes = &buffer[..length];
        let result = match to {
            Sink::Out => io::stdout().lock().write_all(bytes).and_then(|()| io::stdout().lock().flush()),
            Sink::Err => io::stderr().lock().write_all(bytes),
        };
        // The command must not stand still because our reader left.
        let _ = result;
    }
}

/// Standard input by a thread of its own: a read of a terminal can't be taken back, and must not hold the end up.
fn standard_input() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(4);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 32 << 10];
        while let Ok(length @ 1..) = io::stdin().lock().read(&mut buffer) {
            if sender.blocking_send(buffer[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Our terminal passes every key on while this lives.
struct Raw(Termios);

impl Raw {
    fn set() -> Result<Self, ExecError> {
        let failed = |errno: nix::errno::Errno| ExecError::Terminal(errno.into());
        let before = tcgetattr(io::stdin()).map_err(failed)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &raw).map_err(failed)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // The shell that comes next sets what it needs as well.
        let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.0);
    }
}
