//! The only map from kinds of failures to gRPC codes. The text is the whole chain on one line: people read it in
//! `kubectl describe`.

use tonic::{Code, Status};

use crate::error::{Chain, Classify, Kind};

pub(super) fn status(error: &impl Classify) -> Status {
    Status::new(code(error.kind()), Chain(error).to_string())
}

fn code(kind: Kind) -> Code {
    match kind {
        Kind::NotFound => Code::NotFound,
        Kind::AlreadyExists => Code::AlreadyExists,
        Kind::InvalidArgument => Code::InvalidArgument,
        Kind::FailedPrecondition => Code::FailedPrecondition,
        Kind::Unavailable => Code::Unavailable,
        Kind::DeadlineExceeded => Code::DeadlineExceeded,
        Kind::ResourceExhausted => Code::ResourceExhausted,
        Kind::Unimplemented => Code::Unimplemented,
        Kind::Internal => Code::Internal,
    }
}
