//! Pods without a kubelet: `vaina run` and the commands beside it.
//!
//! They know the daemon by its CRI socket and nothing else, so a pod is the same whoever asked for it. What only a
//! kubelet has (manifests, volumes, restarts, last words) is here:
//!
//! - [`manifest`] reads, [`convert`] makes CRI messages; both are pure but for the file;
//! - [`pod`] is one pod's life, [`end`] its end, [`directory`] what is on disk of it meanwhile;
//! - [`run`], [`ps`], [`logs`], [`exec`] and [`stop`] are the commands.

mod back_off;
mod convert;
mod daemon;
mod directory;
mod end;
mod exec;
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
    any::Any,
    error::Error,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use clap::{Args, Subcommand};
use futures::FutureExt as _;

pub use self::{
    exec::{ExecArguments, ExecError},
    logs::{LogsArguments, LogsError},
    ps::{PsArguments, PsError},
    run::{RunArguments, RunError},
    stop::{StopArguments, StopError},
};
use self::{
    daemon::{Daemon, Running, Start},
    directory::Pods,
};
use crate::{app::App, config::Config, error::Chain};

/// Where Kubernetes' tools look for logs of pods.
const LOGS: &str = "/var/log/pods";

/// Commands for pods without a kubelet.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run pods from their manifests, in the foreground
    Run {
        #[command(flatten)]
        endpoint: Endpoint,
        #[command(flatten)]
        arguments: RunArguments,
    },
    /// List pods and their containers
    Ps {
        #[command(flatten)]
        endpoint: Endpoint,
        #[command(flatten)]
        arguments: PsArguments,
    },
    /// Show what a container wrote
    Logs {
        #[command(flatten)]
        endpoint: Endpoint,
        #[command(flatten)]
        arguments: LogsArguments,
    },
    /// Run a command in a container
    Exec {
        #[command(flatten)]
        endpoint: Endpoint,
        #[command(flatten)]
        arguments: ExecArguments,
    },
    /// End pods that `vaina run` started
    Stop {
        #[command(flatten)]
        endpoint: Endpoint,
        #[command(flatten)]
        arguments: StopArguments,
    },
}

/// Which daemon.
#[derive(Debug, Clone, Args)]
pub struct Endpoint {
    /// CRI socket, instead of the configured one; then no daemon is started in here
    #[arg(long, value_name = "SOCKET")]
    endpoint: Option<PathBuf>,
}

/// Does the command and says what to exit with. Errors are on standard error by then.
///
/// Needs a tokio runtime with more than one thread when it may start a daemon; the caller leaves with
/// `std::process::exit`, since a read of standard input may still be under way.
pub async fn run(command: Command, config: Config) -> ExitCode {
    let code = match command {
        Command::Run { endpoint, arguments } => {
            told(run::run(arguments, endpoint.daemon(&config), pods(&config)).await)
        }
        Command::Ps { endpoint, arguments } => {
            // To look must not start anything.
            let daemon = Daemon::new(&endpoint.socket(&config), None);
            told(ps::run(arguments, daemon, pods(&config)).await.map(|(table, note)| {
                use std::io::Write as _;
                if let Some(note) = note {
                    eprintln!("vaina: {note}");
                }
                // A reader that left has what it wanted.
                let _ = std::io::stdout().lock().write_all(table.as_bytes());
                0
            }))
        }
        Command::Logs { endpoint, arguments } => {
            let daemon = Daemon::new(&endpoint.socket(&config), None);
            told(logs::run(arguments, daemon, pods(&config)).await.map(|()| 0))
        }
        Command::Exec { endpoint, arguments } => told(exec::run(arguments, endpoint.daemon(&config), &config).await),
        Command::Stop { endpoint, arguments } => {
            told(stop::run(arguments, endpoint.daemon(&config), pods(&config)).await.map(|()| 0))
        }
    };
    ExitCode::from(code)
}

impl Endpoint {
    fn socket(&self, config: &Config) -> PathBuf {
        match &self.endpoint {
            Some(endpoint) => endpoint.strip_prefix("unix:").map_or(endpoint.clone(), Path::to_owned),
            None => config.socket(),
        }
    }

    fn daemon(&self, config: &Config) -> Daemon {
        // A socket that somebody named is that somebody's to serve.
        let start = self.endpoint.is_none().then(|| embedded(config.clone()));
        Daemon::new(&self.socket(config), start)
    }
}

fn embedded(config: Config) -> Start {
    Arc::new(move || {
        let config = config.clone();
        async move {
            let running = App::start(config).await.map_err(|error| Box::new(error) as Box<dyn Error + Send + Sync>)?;
            Ok(Box::new(running) as Box<dyn Any + Send + Sync> as Running)
        }
        .boxed()
    })
}

fn pods(config: &Config) -> Pods {
    Pods::new(&config.root, Path::new(LOGS))
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
