//! The client's deadline (`grpc-timeout`), answered as gRPC means it.
//!
//! A kubelet tells a probe that took too long from one that can't be run by the code DeadlineExceeded, and its own clock is
//! not always faster than our answer. tonic's server ends a call that is over time too, but says Cancelled; this layer lies
//! inside of it, so its clock, which starts earlier, comes first. Only the answer ends: a changing call goes on.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, Request, Response};
use tonic::{Status, body::Body};
use tower::{Layer, Service};

/// Ends answers at their clients' deadlines.
#[derive(Debug, Clone, Copy)]
pub(super) struct DeadlineLayer;

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Deadline<S> {
        Deadline { inner }
    }
}

/// A service with [`DeadlineLayer`] around it.
#[derive(Debug, Clone)]
pub(super) struct Deadline<S> {
    inner: S,
}

impl<S, B> Service<Request<B>> for Deadline<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let limit = limit(request.headers());
        // The method is the last part of `/runtime.v1.RuntimeService/RunPodSandbox`.
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let answer = self.inner.call(request);
        let Some(limit) = limit else { return Box::pin(answer) };
        Box::pin(async move {
            match tokio::time::timeout(limit, answer).await {
                Ok(answer) => answer,
                Err(_) => {
                    tracing::debug!(rpc = method, ?limit, "the client's deadline is over");
                    let text = format!("{method}: not done within the {limit:?} that the client waits; it goes on");
                    Ok(Status::deadline_exceeded(text).into_http())
                }
            }
        })
    }
}

/// Value and unit as in gRPC's protocol over HTTP/2; what can't be read is no limit.
fn limit(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (value, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if value.is_empty() || value.len() > 8 || !value.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u64 = value.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tower::{ServiceExt as _, service_fn};

    use super::*;

    fn headers(value: &str) -> HeaderMap {
        [(http::header::HeaderName::from_static("grpc-timeout"), value.parse().unwrap())].into_iter().collect()
    }

    #[test]
    fn limits_are_read_as_the_protocol_has_them() {
        for (value, expected) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("4m", Some(Duration::from_millis(4))),
            ("5u", Some(Duration::from_micros(5))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("999999999n", None),
            ("S", None),
            ("-1S", None),
            ("1x", None),
            ("", None),
        ] {
            assert_eq!(limit(&headers(value)), expected, "{value:?}");
        }
        assert_eq!(limit(&HeaderMap::new()), None);
    }

    #[tokio::test]
    async fn a_call_over_time_is_deadline_exceeded_and_names_itself() {
        let never = service_fn(|_: Request<()>| std::future::pending::<Result<Response<Body>, Infallible>>());
        let mut request = Request::new(());
        *request.uri_mut() = "/runtime.v1.RuntimeService/RunPodSandbox".parse().unwrap();
        *request.headers_mut() = headers("1m");
        let answer = DeadlineLayer.layer(never).oneshot(request).await.unwrap();
        let status = Status::from_header_map(answer.headers()).unwrap();
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
        assert!(status.message().contains("RunPodSandbox"), "{status:?}");
    }
}
