//! The containerd shim of Vaina: one process per pod, which is the pod's pause.
//!
//! `start` and `delete` are containerd's short-lived commands ([`bootstrap`]), no command serves ([`server`]), `oci …` is an
//! OCI runtime command line ([`oci`]). Everything here runs in one thread: namespaces are a thread's, the work between fork and
//! exec wants a process that is one thread, and each further one would cost memory for each pod.
#![forbid(unsafe_code)]

mod args;
mod bootstrap;
mod container;
mod error;
mod events;
#[cfg(feature = "failpoints")]
mod failpoints;
mod family;
mod idmap;
mod init;
mod io;
mod log;
mod mount;
mod oci;
mod pause;
mod pod;
mod process;
mod reaper;
mod runtime;
mod seal;
mod server;
mod service;
mod spans;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    if arguments.get(1).is_some_and(|word| word == "oci") {
        return oci::main(arguments);
    }
    spans::init("shim");
    let args = match args::parse(bootstrap::arguments()) {
        Ok(args) => args,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let done = match args.action.as_str() {
        _ if args.version => {
            println!("containerd-shim-vaina-v1 {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        _ if args.info => service::info(),
        "start" => bootstrap::start(&args),
        "delete" => bootstrap::delete(&args),
        "" if !args.socket.is_empty() => server::serve(&args),
        other => {
            Err(error::ShimError::Invalid(format!("unknown action {other:?}: start, delete, or -socket to serve")))
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", error.chain());
            ExitCode::FAILURE
        }
    }
}
