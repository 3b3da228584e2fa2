//! The containerd shim of Vaina: `oci` is an OCI runtime command line.
#![forbid(unsafe_code)]

mod oci;
mod seal;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    if arguments.get(1).is_some_and(|word| word == "oci") {
        return oci::main(arguments);
    }
    ExitCode::FAILURE
}
