//! Entry point of `vaina`: arguments, logging, then the part that does the work.

use std::{error::Error, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use vaina_cri_server::{
    app::App,
    config::Config,
    doctor::{self, Doctor},
    error::{Chain, Classify, Kind},
    standalone, telemetry,
};

/// A Kubernetes pod runtime.
#[derive(Debug, Parser)]
#[command(name = "vaina", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the Kubernetes Container Runtime Interface
    Serve(Serve),
    /// Say what is wrong with this node, and mend it
    Doctor(Doctor),
    #[command(flatten)]
    Standalone(standalone::Command),
}

#[derive(Debug, Args)]
struct Serve {
    /// Configuration file [default: /etc/vaina/config.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory for what a reboot may take
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Directory for what stays
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Socket to serve on
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Log filter, such as `debug` or `info,vaina_cri_server::plan=trace`
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
}

/// Wrong arguments or configuration (`EX_USAGE`).
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let Arguments { command } = Arguments::parse();
    match command {
        Command::Serve(arguments) => match serve(arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(Failed(text, code)) => {
                eprintln!("vaina: {text}");
                ExitCode::from(code)
            }
        },
        Command::Doctor(arguments) => for_people(doctor::run(arguments)),
        Command::Standalone(command) => for_people(standalone::run(command)),
    }
}

/// The commands for people; their errors are told by then.
fn for_people(command: impl Future<Output = ExitCode>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("vaina: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(command);
    // A thread may still read the terminal; nothing else is under way.
    runtime.shutdown_background();
    code
}

/// What to print, and the exit code.
struct Failed(String, u8);

impl Failed {
    fn new(error: &dyn Error) -> Self {
        Self(Chain(error).to_string(), 1)
    }

    fn classified(error: &impl Classify) -> Self {
        Self(Chain(error).to_string(), if error.kind() == Kind::InvalidArgument { USAGE } else { 1 })
    }
}

fn serve(arguments: Serve) -> Result<(), Failed> {
    let mut config = Config::load(arguments.config.as_deref()).map_err(|error| Failed::classified(&error))?;
    if let Some(state) = arguments.state {
        config.state = state;
    }
    if let Some(root) = arguments.root {
        config.root = root;
    }
    if arguments.socket.is_some() {
        config.socket = arguments.socket;
    }
    if let Some(filter) = arguments.log {
        config.log.filter = filter;
    }
    telemetry::init(&config.log).map_err(|error| Failed::classified(&error))?;
    #[cfg(feature = "failpoints")]
    vaina_cri_server::failpoints::announce();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failed::new(&error))?;
    runtime.block_on(async {
        // Watched from the beginning, so that a signal during recovery is not lost.
        let mut terminate = signal(SignalKind::terminate()).map_err(|error| Failed::new(&error))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| Failed::new(&error))?;
        let mut running = App::start(config).await.map_err(|error| Failed::classified(&error))?;
        let broken = tokio::select! {
            _ = terminate.recv() => false,
            _ = interrupt.recv() => false,
            () = running.ended() => true,
        };
        running.shut_down().await;
        if broken { Err(Failed("the server ended by itself".to_owned(), 1)) } else { Ok(()) }
    })
}
