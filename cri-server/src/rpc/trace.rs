//! One span and one log line for each call.

use std::time::Instant;

use tonic::{Response, Status};
use tracing::Instrument as _;

use super::status::status;
use crate::error::{Chain, Classify, Kind};

/// Whom a call is about: the fields of its span and its line.
#[derive(Debug, Default, Clone)]
pub(super) struct About {
    pub(super) pod: String,
    pub(super) namespace: String,
    pub(super) sandbox: String,
    pub(super) container: String,
    pub(super) image: String,
}

impl About {
    pub(super) fn sandbox(id: &str) -> Self {
        Self { sandbox: id.to_owned(), ..Self::default() }
    }

    pub(super) fn container(id: &str) -> Self {
        Self { container: id.to_owned(), ..Self::default() }
    }

    pub(super) fn image(name: &str) -> Self {
        Self { image: name.to_owned(), ..Self::default() }
    }

    fn span(&self, rpc: &'static str) -> tracing::Span {
        let Self { pod, namespace, sandbox, container, image } = self;
        tracing::info_span!("rpc", rpc, pod, namespace, sandbox, container, image)
    }
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
        let ms = started.elapsed().as_secs_f64() * 1e3;
        match &result {
            Ok(_) => tracing::info!(ms, "done"),
            Err(error) => refused(error, ms),
        }
        result.map(Response::new).map_err(|error| status(&error))
    }
    .instrument(span)
    .await
}

/// A client's mistake is not ours to look at; neither is a node that is full.
fn refused(error: &impl Classify, ms: f64) {
    match error.kind() {
        Kind::Internal => tracing::warn!(ms, error = %Chain(error), "failed"),
        Kind::NotFound
        | Kind::AlreadyExists
        | Kind::InvalidArgument
        | Kind::FailedPrecondition
        | Kind::Unavailable
        | Kind::DeadlineExceeded
        | Kind::ResourceExhausted
        | Kind::Unimplemented => tracing::info!(ms, error = %Chain(error), "failed"),
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
