//! Pods without a kubelet: `vaina run` and the commands beside it.
//!
//! They know the daemon by its CRI socket and nothing else, so a pod is the same whoever asked for it. What only a
//! kubelet has (manifests, volumes, restarts, last words) is here:
//!
//! - [`manifest`] reads, [`convert`] makes CRI messages; both are pure but for the file;
//! - [`pod`] is one pod's life, [`end`] its end, [`directory`] what is on disk of it meanwhile;
//! - [`mod@run`], [`ps`], [`logs`], [`exec`] and [`stop`] are the commands.

mod back_off;
mod convert;
mod daemon;
mod directory;
mod end;
mod exec;
#[cfg(test)]
mod fake;
mod find;
mod log;
mod logs;
mod manifest;
mod pod;
mod ps;
mod quantity;
mod run;
mod stop;
mod terminal;
#[cfg(test)]
mod tests;
mod volumes;

use std::{
    error::Error,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use clap::{Args, Subcommand};
use futures::FutureExt as _;

use self::{
    daemon::{Daemon, Running, Start},
    directory::Pods,
};
pub use self::{
    exec::{ExecArguments, ExecError},
    logs::{LogsArguments, LogsError},
    ps::{PsArguments, PsError},
    run::{RunArguments, RunError},
    stop::{StopArguments, StopError},
};
use crate::{
    app::App,
    config::Config,
    error::Chain,
    image::{self, cli::ImageCommand},
};

/// Where Kubernetes' tools look for logs of pods.
const LOGS: &str = "/var/log/pods";

/// Commands for pods without a kubelet.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run pods from their manifests, in the foreground
    Run {
        /// Which daemon
        #[command(flatten)]
        endpoint: Endpoint,
        /// What to do
        #[command(flatten)]
        arguments: RunArguments,
    },
    /// List pods and their containers
    Ps {
        /// Which daemon
        #[command(flatten)]
        endpoint: Endpoint,
        /// What to do
        #[command(flatten)]
        arguments: PsArguments,
    },
    /// Show what a container wrote
    Logs {
        /// Which daemon
        #[command(flatten)]
        endpoint: Endpoint,
        /// What to do
        #[command(flatten)]
        arguments: LogsArguments,
    },
    /// Run a command in a container
    Exec {
        /// Which daemon
        #[command(flatten)]
        endpoint: Endpoint,
        /// What to do
        #[command(flatten)]
        arguments: ExecArguments,
    },
    /// Import, list, pull and remove images
    Image {
        /// Which daemon
        #[command(flatten)]
        endpoint: Endpoint,
        /// What to do
        #[command(subcommand)]
        command: ImageCommand,
    },
    /// End pods that `vaina run` started
    Stop {
        /// Which daemon
        #[command(flatten)]
        endpoint: Endpoint,
        /// What to do
        #[command(flatten)]
        arguments: StopArguments,
    },
}

/// Which daemon.
#[derive(Debug, Clone, Args)]
pub struct Endpoint {
    /// Configuration file [default: /etc/vaina/config.toml, if it is there]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// CRI socket, instead of the configured one; then no daemon is started in here
    #[arg(long, alias = "socket", global = true, value_name = "SOCKET")]
    endpoint: Option<PathBuf>,
}

/// Does the command and says what to exit with. Errors are on standard error by then.
///
/// Needs a tokio runtime with more than one thread when it may start a daemon; the caller leaves with
/// `std::process::exit`, since a read of standard input may still be under way.
pub async fn run(command: Command) -> ExitCode {
    terminal::show_warnings();
    let endpoint = match &command {
        Command::Run { endpoint, .. }
        | Command::Ps { endpoint, .. }
        | Command::Logs { endpoint, .. }
        | Command::Exec { endpoint, .. }
        | Command::Image { endpoint, .. }
        | Command::Stop { endpoint, .. } => endpoint.clone(),
    };
    let config = match Config::load(endpoint.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return ExitCode::from(told(Err(error))),
    };
    let pods = Pods::new(&config.root, Path::new(LOGS));
    // To look must not start anything.
    let only_look = matches!(command, Command::Ps { .. } | Command::Logs { .. });
    let daemon = endpoint.daemon(&config, !only_look);
    let code = match command {
        Command::Run { arguments, .. } => told(run::run(arguments, daemon.clone(), pods, config.network).await),
        Command::Ps { arguments, .. } => {
            told(ps::run(arguments, daemon.clone(), pods).await.map(|shown| shown.print()))
        }
        Command::Logs { arguments, .. } => told(logs::run(arguments, daemon.clone(), pods).await.map(|()| 0)),
        Command::Exec { arguments, .. } => told(exec::run(arguments, daemon.clone(), &config).await),
        Command::Image { command, .. } => told(image(command, &daemon).await),
        Command::Stop { arguments, .. } => told(stop::run(arguments, daemon.clone(), pods).await.map(|()| 0)),
    };
    daemon.end().await;
    ExitCode::from(code)
}

/// The commands of the image store, which know no other way than the socket either.
async fn image(command: ImageCommand, daemon: &Daemon) -> Result<u8, ImageError> {
    daemon.ensure().await?;
    image::cli::run(command, daemon.channel(), &mut std::io::stdout()).await?;
    Ok(0)
}

/// Why a command on images did not do its work.
#[derive(Debug, thiserror::Error)]
enum ImageError {
    #[error(transparent)]
    Daemon(#[from] daemon::DaemonError),
    #[error(transparent)]
    Command(#[from] image::cli::ImageCommandError),
}

impl Endpoint {
    fn socket(&self, config: &Config) -> PathBuf {
        match &self.endpoint {
            Some(endpoint) => endpoint.strip_prefix("unix:").map_or(endpoint.clone(), Path::to_owned),
            None => config.socket(),
        }
    }

    fn daemon(&self, config: &Config, may_start: bool) -> Daemon {
        // A socket that somebody named is that somebody's to serve.
        let start = (may_start && self.endpoint.is_none()).then(|| embedded(config.clone()));
        Daemon::new(&self.socket(config), start)
    }
}

fn embedded(config: Config) -> Start {
    Arc::new(move || {
        let config = config.clone();
        async move {
            let running = App::start(config).await.map_err(|error| Box::new(error) as Box<dyn Error + Send + Sync>)?;
            let end: Running = Box::new(move || running.shut_down().boxed());
            Ok(end)
        }
        .boxed()
    })
}

/// The code, or the error on one line (a manifest's problems on one each).
fn told<E: Error>(result: Result<u8, E>) -> u8 {
    match result {
        Ok(code) => code,
        Err(error) => {
            for line in Chain(&error).to_string().lines() {
                eprintln!("vaina: {line}");
            }
            1
        }
    }
}
