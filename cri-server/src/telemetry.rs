//! Logs: text on a terminal, JSON otherwise.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::{
    config::{Log, LogFormat},
    error::{Classify, Kind},
};

/// Why there are no logs.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter.
    #[error("read log filter {filter:?}")]
    Filter {
        /// As given.
        filter: String,
        /// Cause.
        source: tracing_subscriber::filter::ParseError,
    },
    /// A second time in one process.
    #[error("set up logging")]
    Init(#[source] tracing_subscriber::util::TryInitError),
}

impl Classify for TelemetryError {
    fn kind(&self) -> Kind {
        match self {
            Self::Filter { .. } => Kind::InvalidArgument,
            Self::Init(_) => Kind::Internal,
        }
    }
}

/// Sends logs to standard error; `RUST_LOG` wins over the configuration.
pub fn init(config: &Log) -> Result<(), TelemetryError> {
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| config.filter.clone());
    let parsed = EnvFilter::try_new(&filter).map_err(|source| TelemetryError::Filter { filter, source })?;
    let json = match config.format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !io::stderr().is_terminal(),
    };
    let registry = tracing_subscriber::registry().with(parsed);
    if json {
        let lines = fmt::layer().json().flatten_event(true).with_span_list(false).with_writer(io::stderr);
        registry.with(lines).try_init()
    } else {
        registry.with(fmt::layer().with_target(false).with_writer(io::stderr)).try_init()
    }
    .map_err(TelemetryError::Init)
}
