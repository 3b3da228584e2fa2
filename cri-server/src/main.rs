//! Entry point of `vaina`: arguments, logging, then the part that does the work.

use std::{
    error::Error,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use vaina_cri_server::{
    app::App,
    config::Config,
    error::{Chain, Classify, Kind},
    image::{self, cli::ImageCommand},
    telemetry,
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
    /// Import, list, pull and remove images
    Image {
        /// Socket of the daemon
        #[arg(long, global = true, value_name = "PATH", default_value = "/run/vaina/vaina.sock")]
        socket: PathBuf,
        #[command(subcommand)]
        command: ImageCommand,
    },
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
    let result = match command {
        Command::Serve(arguments) => serve(arguments),
        Command::Image { socket, command } => image(&socket, command),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failed(text, code)) => {
            eprintln!("vaina: {text}");
            ExitCode::from(code)
        }
    }
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

/// The commands on images speak to the daemon that serves on `socket`.
fn image(socket: &Path, command: ImageCommand) -> Result<(), Failed> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| Failed::new(&error))?;
    runtime.block_on(async {
        let path = socket.to_owned();
        let connect = tower::service_fn(move |_: tonic::transport::Uri| {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
        });
        // The address is a formality; the connector knows where to go.
        let channel = tonic::transport::Endpoint::from_static("http://localhost")
            .connect_with_connector(connect)
            .await
            .map_err(|error| Failed(format!("connect to the daemon at {}: {}", socket.display(), Chain(&error)), 1))?;
        image::cli::run(command, channel, &mut std::io::stdout()).await.map_err(|error| Failed::new(&error))
    })
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
