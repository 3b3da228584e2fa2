//! HTTP with deadlines: one request with its redirects, one body with a limit on silence. Knows nothing of registries.

use std::{sync::OnceLock, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{self, Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use thiserror::Error;
use tokio::time::timeout;

use super::hosts::is_loopback;
use crate::error::{Classify, Kind};

const REDIRECTS_MAX: usize = 6;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Why there was no answer, or not a whole one. Addresses are without their query, which may hold signatures.
#[derive(Debug, Error)]
pub enum TransportError {
    /// No connection.
    #[error("connect to {host}")]
    Connect {
        /// Whom.
        host: String,
        /// Cause.
        source: legacy::Error,
    },
    /// The connection broke before an answer.
    #[error("request {url}")]
    Exchange {
        /// What.
        url: String,
        /// Cause.
        source: legacy::Error,
    },
    /// Silence.
    #[error("request {url}: no answer within {after:?}")]
    NoAnswer {
        /// What.
        url: String,
        /// How long.
        after: Duration,
    },
    /// Silence within the body.
    #[error("read {url}: nothing came for {after:?}")]
    Stalled {
        /// What.
        url: String,
        /// How long.
        after: Duration,
    },
    /// The connection broke within the body.
    #[error("read {url}")]
    Cut {
        /// What.
        url: String,
        /// Cause.
        source: hyper::Error,
    },
    /// The body is larger than its kind may be.
    #[error("read {url}: more than {limit} bytes")]
    TooLarge {
        /// What.
        url: String,
        /// Bound.
        limit: u64,
    },
    /// A redirect that leads nowhere good.
    #[error("request {url}: {reason}")]
    Redirect {
        /// What.
        url: String,
        /// Why not.
        reason: &'static str,
    },
    /// Not an address.
    #[error("request {url:?}: not a valid address")]
    Address {
        /// What.
        url: String,
    },
}

impl TransportError {
    /// Whether asking again may help at once.
    pub(super) fn is_transient(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::Exchange { .. } | Self::Cut { .. } | Self::Stalled { .. })
    }
}

impl Classify for TransportError {
    fn kind(&self) -> Kind {
        match self {
            Self::Connect { .. } | Self::Exchange { .. } | Self::Cut { .. } => Kind::Unavailable,
            Self::NoAnswer { .. } | Self::Stalled { .. } => Kind::DeadlineExceeded,
            Self::TooLarge { .. } | Self::Redirect { .. } => Kind::FailedPrecondition,
            Self::Address { .. } => Kind::InvalidArgument,
        }
    }
}

/// A request before it is sent.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) url: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Call {
    pub(super) fn get(url: String) -> Self {
        Self { method: Method::GET, url, headers: HeaderMap::new(), body: Bytes::new() }
    }
}

/// An answer whose body has not been read.
pub(super) struct Answer {
    pub(super) response: Response<Incoming>,
    url: String,
    silence: Duration,
}

pub(super) struct Transport {
    plain: Client<HttpConnector, Full<Bytes>>,
    /// Made when first needed: reading the roots of trust takes some milliseconds.
    tls: OnceLock<Client<HttpsConnector<HttpConnector>, Full<Bytes>>>,
    silence: Duration,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport").field("silence", &self.silence).finish_non_exhaustive()
    }
}

impl Transport {
    /// `silence` is how long an answer or the next byte may take.
    pub(super) fn new(silence: Duration) -> Self {
        Self { plain: client(connector(silence)), tls: OnceLock::new(), silence }
    }

    /// Sends a call and follows its redirects. Credentials stay with the host that they were meant for, and what
    /// began encrypted stays so.
    pub(super) async fn send(&self, mut call: Call) -> Result<Answer, TransportError> {
        for _ in 0..REDIRECTS_MAX {
            let uri: Uri = call.url.parse().map_err(|_| TransportError::Address { url: shown(&call.url) })?;
            let answer = self.exchange(&call, &uri).await?;
            if !matches!(answer.response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(answer);
            }
            let refuse = |reason| TransportError::Redirect { url: shown(&call.url), reason };
            let location = answer.response.headers().get(header::LOCATION);
            let location =
                location.and_then(|value| value.to_str().ok()).ok_or_else(|| refuse("redirected to nowhere"))?;
            let next = absolute(&uri, location).ok_or_else(|| refuse("redirected to a malformed address"))?;
            let is_open = next.scheme_str() == Some("http") && !is_loopback(authority(&next));
            if uri.scheme_str() == Some("https") && is_open {
                return Err(refuse("redirected from https to http"));
            }
            if (next.scheme(), next.authority()) != (uri.scheme(), uri.authority()) {
                call.headers.remove(header::AUTHORIZATION);
            }
            if call.method != Method::GET {
                return Err(refuse("a request that is not a GET was redirected"));
            }
            call.url = next.to_string();
        }
        Err(TransportError::Redirect { url: shown(&call.url), reason: "redirected too often" })
    }

    async fn exchange(&self, call: &Call, uri: &Uri) -> Result<Answer, TransportError> {
        let mut request = Request::new(Full::new(call.body.clone()));
        *request.method_mut() = call.method.clone();
        *request.uri_mut() = uri.clone();
        *request.headers_mut() = call.headers.clone();
        let agent = HeaderValue::from_static(concat!("vaina/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().insert(header::USER_AGENT, agent);
        let url = shown(&call.url);
        let sent = async {
            match uri.scheme_str() {
                Some("https") => self.tls.get_or_init(|| client(tls(connector(self.silence)))).request(request).await,
                _ => self.plain.request(request).await,
            }
        };
        match timeout(self.silence, sent).await {
            Ok(Ok(response)) => Ok(Answer { response, url, silence: self.silence }),
            Ok(Err(source)) if source.is_connect() => {
                Err(TransportError::Connect { host: authority(uri).to_owned(), source })
            }
            Ok(Err(source)) => Err(TransportError::Exchange { url, source }),
            Err(_) => Err(TransportError::NoAnswer { url, after: self.silence }),
        }
    }
}

impl Answer {
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// The next piece of the body; `None` at its end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, TransportError> {
        loop {
            match timeout(self.silence, self.response.body_mut().frame()).await {
                Err(_) => return Err(TransportError::Stalled { url: self.url.clone(), after: self.silence }),
                Ok(None) => return Ok(None),
                Ok(Some(Err(source))) => return Err(TransportError::Cut { url: self.url.clone(), source }),
                // Anything but data is trailers.
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => return Ok(Some(data)),
                    Err(_) => {}
                },
            }
        }
    }

    /// The whole body, which must be small and come in one deadline: a document, not a blob.
    pub(super) async fn document(mut self, limit: u64) -> Result<Bytes, TransportError> {
        let (url, after) = (self.url.clone(), self.silence);
        let whole = async move {
            let mut document = BytesMut::new();
            while let Some(data) = self.next().await? {
                if (document.len() + data.len()) as u64 > limit {
                    return Err(TransportError::TooLarge { url: self.url.clone(), limit });
                }
                document.extend_from_slice(&data);
            }
            Ok(document.freeze())
        };
        timeout(after, whole).await.unwrap_or(Err(TransportError::Stalled { url, after }))
    }
}

fn connector(silence: Duration) -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_keepalive(Some(Duration::from_secs(30)));
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT.min(silence)));
    connector
}

fn client<C>(connector: C) -> Client<C, Full<Bytes>>
where
    C: legacy::connect::Connect + Clone,
{
    Client::builder(TokioExecutor::new()).pool_idle_timeout(IDLE_TIMEOUT).pool_max_idle_per_host(8).build(connector)
}

/// TLS with the machine's roots of trust, or, on a machine without any, those that browsers ship.
fn tls(connector: HttpConnector) -> HttpsConnector<HttpConnector> {
    let builder = match HttpsConnectorBuilder::new().with_native_roots() {
        Ok(builder) => builder,
        Err(_) => HttpsConnectorBuilder::new().with_webpki_roots(),
    };
    builder.https_or_http().enable_http1().wrap_connector(connector)
}

fn authority(uri: &Uri) -> &str {
    uri.authority().map_or("", |authority| authority.as_str())
}

/// An address as shown to people.
pub(super) fn shown(url: &str) -> String {
    url.split('?').next().unwrap_or_default().chars().take(400).collect()
}

fn absolute(base: &Uri, location: &str) -> Option<Uri> {
    if location.starts_with("http://") || location.starts_with("https://") {
        return location.parse().ok();
    }
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    if let Some(rest) = location.strip_prefix("//") {
        return format!("{scheme}://{rest}").parse().ok();
    }
    location.starts_with('/').then(|| format!("{scheme}://{authority}{location}").parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations() {
        let base: Uri = "https://a:1/v2/x?y".parse().unwrap();
        for (location, expected) in [
            ("https://b/c?d", Some("https://b/c?d")),
            ("/c", Some("https://a:1/c")),
            ("//b/c", Some("https://b/c")),
            ("c", None),
            ("ftp://b", None),
            ("", None),
        ] {
            assert_eq!(absolute(&base, location).map(|uri| uri.to_string()).as_deref(), expected, "{location}");
        }
        assert_eq!(shown("https://a/b?signature=secret"), "https://a/b");
    }
}
