//! What can go wrong in the shim, and the only map of it to ttrpc codes.

use std::{error::Error as _, io};

use ttrpc::Code;

/// Why a call failed. The message names the step; the chain of sources is sent with it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShimError {
    #[error("{what} {id:?} is not in this pod")]
    NotFound { what: &'static str, id: String },
    #[error("{what} {id:?} exists already")]
    AlreadyExists { what: &'static str, id: String },
    #[error("{0}")]
    Precondition(String),
    #[error("{0}")]
    Invalid(String),
    #[error("{0} is not supported by this shim")]
    Unimplemented(&'static str),
    #[error("{step}")]
    Io { step: String, source: io::Error },
    #[error(transparent)]
    Runtime(#[from] crate::runtime::RuntimeError),
}

pub(crate) type Result<T> = std::result::Result<T, ShimError>;

/// Names the step that an I/O error belongs to.
pub(crate) trait Step<T> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Step<T> for io::Result<T> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| ShimError::Io { step: step(), source })
    }
}

impl<T> Step<T> for nix::Result<T> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| ShimError::Io { step: step(), source: errno.into() })
    }
}

impl ShimError {
    /// The message with all causes, on one line.
    pub(crate) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = self.source();
        while let Some(error) = source {
            text.push_str(": ");
            text.push_str(&error.to_string());
            source = error.source();
        }
        text
    }

    fn code(&self) -> Code {
        match self {
            Self::NotFound { .. } => Code::NOT_FOUND,
            Self::AlreadyExists { .. } => Code::ALREADY_EXISTS,
            Self::Precondition(_) => Code::FAILED_PRECONDITION,
            Self::Invalid(_) => Code::INVALID_ARGUMENT,
            Self::Unimplemented(_) => Code::UNIMPLEMENTED,
            Self::Io { .. } => Code::INTERNAL,
            Self::Runtime(error) => error.code(),
        }
    }
}

impl From<ShimError> for ttrpc::Error {
    fn from(error: ShimError) -> Self {
        ttrpc::Error::RpcStatus(ttrpc::get_status(error.code(), error.chain()))
    }
}
