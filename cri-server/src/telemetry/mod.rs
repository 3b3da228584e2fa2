//! Logs: text on a terminal, JSON otherwise. And where the time goes: the phases on each call's line ([`spans`]).

mod spans;

use std::{
    io::{self, IsTerminal as _},
    path::PathBuf,
};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::{
    EnvFilter, Layer as _, filter::FilterFn, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

use self::spans::Spans;
pub(crate) use self::spans::phases;
use crate::{
    config::{Log, LogFormat},
    error::{Classify, Kind},
};

/// Names the file that daemon, shims and their OCI runtime append their spans to.
pub(crate) const SPANS_VARIABLE: &str = "VAINA_SPANS";

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
    /// The file of spans.
    #[error("open {} that {SPANS_VARIABLE} names", .path.display())]
    Spans {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// A second time in one process.
    #[error("set up logging")]
    Init(#[source] tracing_subscriber::util::TryInitError),
}

impl Classify for TelemetryError {
    fn kind(&self) -> Kind {
        match self {
            Self::Filter { .. } | Self::Spans { .. } => Kind::InvalidArgument,
            Self::Init(_) => Kind::Internal,
        }
    }
}

/// Sends logs to standard error; `RUST_LOG` wins over the configuration.
pub fn init(config: &Log) -> Result<(), TelemetryError> {
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| config.filter.clone());
    let parsed = EnvFilter::try_new(&filter).map_err(|source| TelemetryError::Filter { filter, source })?;
    let file = std::env::var_os(SPANS_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
    let spans = match file {
        Some(path) => {
            let spans = Spans::to_file(&path).map_err(|source| TelemetryError::Spans { path, source })?;
            Some((spans, LevelFilter::DEBUG))
        }
        // They are for the calls' lines; without lines nobody asks where the time went.
        None => {
            let lines = parsed.max_level_hint().is_none_or(|level| level >= LevelFilter::INFO);
            lines.then(|| (Spans::default(), LevelFilter::INFO))
        }
    };
    let spans = spans.map(|(spans, level)| {
        let own = FilterFn::new(move |metadata| {
            metadata.is_span() && *metadata.level() <= level && metadata.target().starts_with("vaina")
        });
        spans.with_filter(own.with_max_level_hint(level))
    });
    let json = match config.format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !io::stderr().is_terminal(),
    };
    let registry = tracing_subscriber::registry().with(spans);
    if json {
        let lines = fmt::layer().json().flatten_event(true).with_span_list(false).with_writer(io::stderr);
        registry.with(lines.with_filter(parsed)).try_init()
    } else {
        registry.with(fmt::layer().with_target(false).with_writer(io::stderr).with_filter(parsed)).try_init()
    }
    .map_err(TelemetryError::Init)
}
