//! The other side of the shim socket: which shim a RuntimeClass handler means, and how it is spoken to.
//!
//! Only containerd's published shim interfaces and `vaina.shim.v1` are spoken here. No state of pods or containers.

mod handler;
mod shim;
pub mod user_namespaces;

use std::{io, path::PathBuf};

pub use self::{
    handler::{Handler, Handlers},
    shim::{CreateTask, ProcessStreams, SandboxOptions, Shim},
};
use crate::error::{Classify, Kind};

/// How a container ended, as the shim reports it.
pub use vaina_proto::shim::ExitReport;

/// Namespace argument of the shim protocol.
pub const NAMESPACE: &str = "vaina";

/// Why a shim did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The shim's executable.
    #[error("run shim {} {command}", .binary.display())]
    Spawn {
        /// Which.
        binary: PathBuf,
        /// `start` or `delete`.
        command: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// It ended with a failure.
    #[error("run shim {} {command}: {status}: {message}", .binary.display())]
    Exit {
        /// Which.
        binary: PathBuf,
        /// `start` or `delete`.
        command: &'static str,
        /// How it ended.
        status: String,
        /// What it said.
        message: String,
    },
    /// It took too long.
    #[error("run shim {} {command}: no answer within {seconds} s", .binary.display())]
    SpawnTimeout {
        /// Which.
        binary: PathBuf,
        /// `start` or `delete`.
        command: &'static str,
        /// Limit.
        seconds: u64,
    },
    /// What it printed is no address.
    #[error("read the shim's address from {output:?}")]
    Address {
        /// What it printed.
        output: String,
    },
    /// No connection.
    #[error("connect to the shim at {address}")]
    Connect {
        /// Where.
        address: String,
        /// Cause.
        source: ttrpc::Error,
    },
    /// The shim's answer.
    #[error("{message}")]
    Status {
        /// Its kind.
        kind: Kind,
        /// Its words.
        message: String,
    },
    /// No answer: the connection is cut.
    #[error("call the shim's {method}")]
    Call {
        /// Which method.
        method: &'static str,
        /// Cause.
        source: ttrpc::Error,
    },
    /// No answer in time.
    #[error("call the shim's {method}: no answer within {seconds} s")]
    Timeout {
        /// Which method.
        method: &'static str,
        /// Limit.
        seconds: u64,
    },
    /// The process.
    #[error("watch the shim's process {pid}")]
    Process {
        /// Which.
        pid: u32,
        /// Cause.
        source: io::Error,
    },
}

impl Classify for RuntimeError {
    fn kind(&self) -> Kind {
        match self {
            Self::Spawn { .. } | Self::Exit { .. } | Self::Address { .. } | Self::Process { .. } => Kind::Internal,
            Self::SpawnTimeout { .. } | Self::Timeout { .. } => Kind::DeadlineExceeded,
            Self::Connect { .. } | Self::Call { .. } => Kind::Unavailable,
            Self::Status { kind, .. } => *kind,
        }
    }
}

impl RuntimeError {
    fn from_call(method: &'static str, seconds: u64, error: ttrpc::Error) -> Self {
        match error {
            ttrpc::Error::RpcStatus(status) => {
                use ttrpc::Code;
                let kind = match status.code.enum_value_or_default() {
                    Code::NOT_FOUND => Kind::NotFound,
                    Code::ALREADY_EXISTS => Kind::AlreadyExists,
                    Code::INVALID_ARGUMENT | Code::OUT_OF_RANGE => Kind::InvalidArgument,
                    Code::FAILED_PRECONDITION | Code::ABORTED => Kind::FailedPrecondition,
                    Code::UNAVAILABLE => Kind::Unavailable,
                    Code::DEADLINE_EXCEEDED | Code::CANCELLED => return Self::Timeout { method, seconds },
                    Code::RESOURCE_EXHAUSTED => Kind::ResourceExhausted,
                    Code::UNIMPLEMENTED => Kind::Unimplemented,
                    // How shims pass on that an OCI runtime refused: the command is not there, a mount can't be made.
                    Code::UNKNOWN => Kind::FailedPrecondition,
                    _ => Kind::Internal,
                };
                Self::Status { kind, message: status.message }
            }
            source => Self::Call { method, source },
        }
    }
}
