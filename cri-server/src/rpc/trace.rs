//! One span and one log line for each call. The line of a call that changes something says where its time went.

use std::time::Instant;

use tonic::{Response, Status};
use tracing::Instrument as _;

use super::status::status;
use crate::{
    error::{Chain, Classify, Kind},
    telemetry,
};

/// Whom a call is about: the fields of its span and its line.
#[derive(Debug, Default, Clone)]
pub(super) struct About {
    pub(super) pod: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) sandbox: Option<String>,
    pub(super) container: Option<String>,
    pub(super) image: Option<String>,
}

impl About {
    pub(super) fn sandbox(id: &str) -> Self {
        Self { sandbox: Some(id.to_owned()), ..Self::default() }
    }

    pub(super) fn container(id: &str) -> Self {
        Self { container: Some(id.to_owned()), ..Self::default() }
    }

    pub(super) fn image(name: &str) -> Self {
        Self { image: Some(name.to_owned()), ..Self::default() }
    }

    fn span(&self, rpc: &'static str) -> tracing::Span {
        let Self { pod, namespace, sandbox, container, image } = self;
        tracing::info_span!("rpc", rpc, pod, namespace, sandbox, container, image)
    }

    /// Of a call that comes too often to be measured when nobody asked for that.
    pub(super) fn detail(&self, rpc: &'static str) -> tracing::Span {
        tracing::debug_span!("rpc", rpc, container = self.container)
    }
}

/// Names what the call has made: `sandbox` or `container`.
pub(super) fn made(what: &'static str, id: &str) {
    tracing::Span::current().record(what, id);
}

/// A call that changes something: one line at its end.
pub(super) async fn change<T, E: Classify>(
    rpc: &'static str,
    about: About,
    call: impl Future<Output = Result<T, E>>,
) -> Result<Response<T>, Status> {
    let span = about.span(rpc);
    async move {
        let started = Instant::now();
        let result = call.await;
        // To the microsecond; more digits are only longer lines.
        let ms = (started.elapsed().as_secs_f64() * 1e6).round() / 1e3;
        let phases = telemetry::phases(&tracing::Span::current());
        match &result {
            Ok(_) => tracing::info!(ms, phases, "done"),
            Err(error) => refused(error, ms, phases.as_deref()),
        }
        result.map(Response::new).map_err(|error| status(&error))
    }
    .instrument(span)
    .await
}

/// A client's mistake is not ours to look at; neither is a node that is full.
fn refused(error: &impl Classify, ms: f64, phases: Option<&str>) {
    match error.kind() {
        Kind::Internal => tracing::warn!(ms, phases, error = %Chain(error), "failed"),
        Kind::NotFound
        | Kind::AlreadyExists
        | Kind::InvalidArgument
        | Kind::FailedPrecondition
        | Kind::Unavailable
        | Kind::DeadlineExceeded
        | Kind::ResourceExhausted
        | Kind::Unimplemented => tracing::info!(ms, phases, error = %Chain(error), "failed"),
    }
}

/// A call that only looks.
pub(super) fn read<T, E: Classify>(rpc: &'static str, result: Result<T, E>) -> Result<Response<T>, Status> {
    match &result {
        Ok(_) => tracing::debug!(rpc, "done"),
        Err(error) => tracing::debug!(rpc, error = %Chain(error), "failed"),
    }
    result.map(Response::new).map_err(|error| status(&error))
}
