//! Kinds of errors and how a chain of them is printed.
//!
//! Every verb and part has its own `thiserror` enum; a variant names the failed step and keeps the cause as its source.
//! Each enum implements [`Classify`], which is all that the edges need to know: `rpc::status` maps kinds to gRPC codes,
//! the command line to exit codes. Nothing here knows tonic or any part's variants.

use std::{error::Error, fmt, sync::Arc};

/// What sort of failure it is, in the terms of gRPC's canonical codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The object named in the request does not exist.
    NotFound,
    /// Another object holds the key, with a different config.
    AlreadyExists,
    /// The request can never succeed as it is.
    InvalidArgument,
    /// The object is in a state that does not allow the call.
    FailedPrecondition,
    /// A thing we depend on is not there now; a retry may succeed.
    Unavailable,
    /// A step took longer than its limit.
    DeadlineExceeded,
    /// A limit of the host is reached (disk, addresses, pids).
    ResourceExhausted,
    /// The call or a field of it is not supported.
    Unimplemented,
    /// Everything else: ours to fix.
    Internal,
}

/// Implemented by every error that can reach an edge.
pub trait Classify: Error + Send + Sync + 'static {
    /// The kind of this failure; often that of its cause.
    fn kind(&self) -> Kind;
}

/// The answer of an operation that several callers joined.
impl<E: Classify> Classify for Arc<E> {
    fn kind(&self) -> Kind {
        (**self).kind()
    }
}

/// Prints an error with all its sources on one line: `verb object: cause: cause`.
#[derive(Debug)]
pub struct Chain<'a>(pub &'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}
