//! Client of the OCI distribution protocol: manifests and blobs with authentication, mirrors, retries and deadlines.
//! No disk.
//!
//! What a registry says of its own content is never believed: a manifest that was asked for by digest must have it, one
//! by tag is named by the digest of what came. Blobs are verified by whoever unpacks them, as a whole, also when they
//! came in several pieces.
//!
//! Path of a request: [`Registry`] (which server, again or the next one) → `Registry::get` (authentication) →
//! [`transport`] (redirects, deadlines).

mod auth;
mod hosts;
mod transport;

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::PathBuf,
    sync::Mutex,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use serde::Deserialize;
use thiserror::Error;
use tokio::{sync::mpsc, time::sleep};

use self::{
    auth::{Challenge, TOKEN_SECONDS, TokenAnswer, encoded},
    hosts::{Endpoint, is_loopback},
    transport::{Answer, Call, Transport, shown},
};
pub use self::{
    auth::{Credentials, CredentialsError},
    hosts::HostsError,
    transport::TransportError,
};
use super::{
    digest::Digest,
    layers::lock,
    manifest::{self, Descriptor, Document, MANIFEST_MAX, Manifest, ManifestError},
    reference::{Reference, Version},
};
use crate::error::{Chain, Classify, Kind};

/// Attempts at one server for a document.
const ATTEMPTS: u32 = 3;
/// Attempts in a row that bring not one byte of a blob.
const FRUITLESS_MAX: u32 = 4;
/// How often a blob may break at all.
const BREAKS_MAX: u32 = 100;
const BACKOFF: Duration = Duration::from_millis(200);
/// How long a registry that is busy may ask us to wait.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(10);
/// Bound of what a token server or an error may say.
const ANSWER_MAX: u64 = 1 << 20;
const DEPTH_MAX: usize = 3;
const TOKENS_MAX: usize = 1024;

/// Why a registry did not give what was asked for.
#[derive(Debug, Error)]
pub enum RegistryError {
    /// No server of the image's registry.
    #[error("find servers of registry {registry}")]
    Hosts {
        /// Which.
        registry: String,
        /// Cause.
        source: HostsError,
    },
    /// No server may say what a tag is.
    #[error("no server of registry {0} may resolve tags")]
    NoServer(String),
    /// No answer.
    #[error(transparent)]
    Transport(TransportError),
    /// It is not there, or not for us.
    #[error("{what} not found at {host}{detail}")]
    NotFound {
        /// What.
        what: String,
        /// Where.
        host: String,
        /// Its words.
        detail: Detail,
    },
    /// It wants to know who we are.
    #[error("{host} refuses {}{detail}", if *.given { "the credentials" } else { "access without credentials" })]
    Unauthorized {
        /// Who.
        host: String,
        /// Whether there were any.
        given: bool,
        /// Its words.
        detail: Detail,
    },
    /// Any other answer that is not a yes.
    #[error("request {url}: status {status}{detail}")]
    Status {
        /// What.
        url: String,
        /// The answer.
        status: StatusCode,
        /// Its words.
        detail: Detail,
    },
    /// The token server.
    #[error("get token from {realm}")]
    Token {
        /// Where.
        realm: String,
        /// Cause.
        source: Box<RegistryError>,
    },
    /// A token server's answer.
    #[error("answer of {0} holds no token")]
    NoToken(String),
    /// A realm where credentials would be shown to everybody.
    #[error("registry {host} wants the credentials sent unencrypted to {realm}")]
    OpenRealm {
        /// Who.
        host: String,
        /// Where.
        realm: String,
    },
    /// Not what was asked for.
    #[error("{what} from {host} has digest {found}")]
    Digest {
        /// What was asked for.
        what: String,
        /// Of whom.
        host: String,
        /// What came.
        found: Digest,
    },
    /// A manifest or an index.
    #[error("read manifest of {reference}")]
    Manifest {
        /// Which image.
        reference: String,
        /// Cause.
        #[source]
        source: ManifestError,
    },
    /// Indexes of indexes.
    #[error("indexes of {0} nest more than {DEPTH_MAX} deep")]
    Depth(String),
    /// A blob is longer than the manifest says.
    #[error("blob {digest} from {host} is longer than the {size} bytes of the manifest")]
    TooLong {
        /// Which.
        digest: Digest,
        /// From whom.
        host: String,
        /// What it should be.
        size: u64,
    },
    /// A blob ended early, again and again.
    #[error("blob {digest} from {host} ends after {received} of {size} bytes")]
    Short {
        /// Which.
        digest: Digest,
        /// From whom.
        host: String,
        /// What came.
        received: u64,
        /// What it should be.
        size: u64,
    },
    /// A piece that was not asked for.
    #[error("{host} answered for another range of blob {digest}")]
    Range {
        /// Which.
        digest: Digest,
        /// Who.
        host: String,
    },
    /// Every server failed; the last is the cause.
    #[error("{others}; and then")]
    Several {
        /// What the earlier ones said.
        others: String,
        /// The last.
        source: Box<RegistryError>,
    },
}

/// What a registry says beside a status, cut to a sentence.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Detail(String);

impl std::fmt::Display for Detail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, " ({})", self.0) }
    }
}

impl RegistryError {
    fn is_transient(&self) -> bool {
        match self {
            Self::Transport(error) => error.is_transient(),
            Self::Token { source, .. } => source.is_transient(),
            Self::Status { status, .. } => is_busy(*status),
            Self::Short { .. } => true,
            _ => false,
        }
    }

    /// Whether the registry could not be reached at all: the kubelet has a word of its own for that.
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Transport(error) => matches!(error.kind(), Kind::Unavailable | Kind::DeadlineExceeded),
            Self::Token { source, .. } | Self::Several { source, .. } => source.is_unreachable(),
            Self::Status { status, .. } => is_busy(*status),
            _ => false,
        }
    }
}

impl Classify for RegistryError {
    fn kind(&self) -> Kind {
        match self {
            Self::Hosts { .. } | Self::NoServer(_) => Kind::FailedPrecondition,
            Self::Transport(error) => error.kind(),
            Self::NotFound { .. } => Kind::NotFound,
            Self::Status { status, .. } if is_busy(*status) => Kind::Unavailable,
            Self::Token { source, .. } | Self::Several { source, .. } => source.kind(),
            Self::Short { .. } => Kind::Unavailable,
            Self::Unauthorized { .. }
            | Self::Status { .. }
            | Self::NoToken(_)
            | Self::OpenRealm { .. }
            | Self::Digest { .. }
            | Self::Manifest { .. }
            | Self::Depth(_)
            | Self::TooLong { .. }
            | Self::Range { .. } => Kind::FailedPrecondition,
        }
    }
}

fn is_busy(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

/// All registries. Keeps connections and tokens.
#[derive(Debug)]
pub(super) struct Registry {
    transport: Transport,
    registries: PathBuf,
    plain_http: Vec<String>,
    /// By server, scope and credentials: the `Authorization` that worked.
    tokens: Mutex<HashMap<(String, String, u64), Token>>,
}

#[derive(Debug, Clone)]
struct Token {
    header: String,
    expires: Instant,
}

/// One pull's view of a registry.
#[derive(Debug)]
pub(super) struct Session {
    reference: Reference,
    endpoints: Vec<Endpoint>,
    credentials: Option<Credentials>,
}

/// A resolved reference.
#[derive(Debug)]
pub(super) struct Resolved {
    /// Digest of what the reference names: an index's, if it is one.
    pub(super) digest: Digest,
    /// The image for this machine.
    pub(super) manifest: Manifest,
}

/// A document and how it is known to be the right one.
struct Wanted<'a> {
    path: String,
    what: String,
    digest: Option<&'a Digest>,
    limit: u64,
}

impl Registry {
    pub(super) fn new(registries: PathBuf, plain_http: Vec<String>, silence: Duration) -> Self {
        Self { transport: Transport::new(silence), registries, plain_http, tokens: Mutex::default() }
    }

    /// Where an image may come from. Blocking, one small file.
    pub(super) fn session(
        &self,
        reference: &Reference,
        credentials: Option<Credentials>,
    ) -> Result<Session, RegistryError> {
        let endpoints = hosts::endpoints(&self.registries, reference.host(), &self.plain_http)
            .map_err(|source| RegistryError::Hosts { registry: reference.host().to_owned(), source })?;
        Ok(Session { reference: reference.clone(), endpoints, credentials })
    }

    /// The manifest for this machine, through however many indexes.
    pub(super) async fn resolve(&self, session: &Session) -> Result<Resolved, RegistryError> {
        let (reference, host) = (&session.reference, manifest::host_platform());
        let refuse = |source| RegistryError::Manifest { reference: reference.to_string(), source };
        let mut bytes = self.manifest(session, reference).await?;
        let digest = match reference.version() {
            Version::Digest(digest) => digest.clone(),
            Version::Tag(_) => Digest::sha256(&bytes),
        };
        for _ in 0..DEPTH_MAX {
            match manifest::parse(&bytes).map_err(refuse)? {
                Document::Manifest(manifest) => return Ok(Resolved { digest, manifest }),
                Document::Index(candidates) => {
                    let chosen = manifest::choose(&candidates, &host).map_err(refuse)?;
                    bytes = self.manifest(session, &reference.with_digest(chosen.digest.clone())).await?;
                }
            }
        }
        Err(RegistryError::Depth(reference.to_string()))
    }

    async fn manifest(&self, session: &Session, reference: &Reference) -> Result<Bytes, RegistryError> {
        let digest = match reference.version() {
            Version::Digest(digest) => Some(digest),
            Version::Tag(_) => None,
        };
        let wanted = Wanted {
            path: format!("manifests/{}", reference.version_text()),
            what: format!("manifest {reference}"),
            digest,
            limit: MANIFEST_MAX,
        };
        self.document(session, &wanted).await
    }

    /// A small blob whole, verified.
    pub(super) async fn small_blob(
        &self,
        session: &Session,
        descriptor: &Descriptor,
        limit: u64,
    ) -> Result<Bytes, RegistryError> {
        let wanted = Wanted {
            path: format!("blobs/{}", descriptor.digest),
            what: format!("blob {}", descriptor.digest),
            digest: Some(&descriptor.digest),
            limit: limit.min(descriptor.size),
        };
        self.document(session, &wanted).await
    }

    /// Asks one server after the other, each again when that may help.
    async fn document(&self, session: &Session, wanted: &Wanted<'_>) -> Result<Bytes, RegistryError> {
        let mut failures: Vec<RegistryError> = Vec::new();
        // Who says what a tag is must be trusted with that; content is checked whoever sends it.
        let may = |endpoint: &&Endpoint| if wanted.digest.is_none() { endpoint.resolve } else { endpoint.pull };
        for endpoint in session.endpoints.iter().filter(may) {
            let mut attempt = 0;
            loop {
                attempt += 1;
                match self.document_from(session, endpoint, wanted).await {
                    Ok(bytes) => return Ok(bytes),
                    Err(error) if error.is_transient() && attempt < ATTEMPTS => {
                        sleep(BACKOFF * 2_u32.pow(attempt)).await;
                    }
                    Err(error) => {
                        failures.push(error);
                        break;
                    }
                }
            }
        }
        let Some(last) = failures.pop() else {
            return Err(RegistryError::NoServer(session.reference.host().to_owned()));
        };
        if failures.is_empty() {
            return Err(last);
        }
        let others: Vec<_> = failures.iter().map(|error| Chain(error).to_string()).collect();
        Err(RegistryError::Several { others: others.join("; "), source: Box::new(last) })
    }

    async fn document_from(
        &self,
        session: &Session,
        endpoint: &Endpoint,
        wanted: &Wanted<'_>,
    ) -> Result<Bytes, RegistryError> {
        let answer = self.get(session, endpoint, &wanted.path, &wanted.what, None).await?;
        let bytes = answer.document(wanted.limit).await.map_err(RegistryError::Transport)?;
        match wanted.digest {
            Some(digest) if !digest.matches(&bytes) => Err(RegistryError::Digest {
                what: wanted.what.clone(),
                host: endpoint.authority.clone(),
                found: Digest::sha256(&bytes),
            }),
            _ => Ok(bytes),
        }
    }

    /// Sends a blob piece by piece, resuming where it broke. Ends early and well when nobody receives any more.
    ///
    /// Never sends more than the descriptor's size; the content is for the receiver to verify.
    pub(super) async fn blob(
        &self,
        session: &Session,
        descriptor: &Descriptor,
        pieces: &mpsc::Sender<Bytes>,
    ) -> Result<(), RegistryError> {
        let endpoints: Vec<_> = session.endpoints.iter().filter(|endpoint| endpoint.pull).collect();
        let (mut received, mut fruitless, mut breaks) = (0, 0, 0);
        let mut current = 0;
        loop {
            let Some(endpoint) = endpoints.get(current) else {
                return Err(RegistryError::NoServer(session.reference.host().to_owned()));
            };
            let before = received;
            let error = match self.piece(session, endpoint, descriptor, &mut received, pieces).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            breaks += 1;
            fruitless = if received > before { 0 } else { fruitless + 1 };
            let is_hopeless = !error.is_transient() || fruitless == FRUITLESS_MAX || breaks == BREAKS_MAX;
            if is_hopeless {
                // What one server can't give another may.
                current += 1;
                (fruitless, breaks) = (0, 0);
                if current == endpoints.len() {
                    return Err(error);
                }
            }
            tracing::debug!(blob = %descriptor.digest, received, error = %Chain(&error), "download goes on");
            sleep(BACKOFF * 2_u32.pow(fruitless)).await;
        }
    }

    async fn piece(
        &self,
        session: &Session,
        endpoint: &Endpoint,
        descriptor: &Descriptor,
        received: &mut u64,
        pieces: &mpsc::Sender<Bytes>,
    ) -> Result<(), RegistryError> {
        let path = format!("blobs/{}", descriptor.digest);
        let what = format!("blob {}", descriptor.digest);
        let host = || endpoint.authority.clone();
        let from = (*received > 0).then_some(*received);
        if from == Some(descriptor.size) {
            return Ok(());
        }
        let mut answer = self.get(session, endpoint, &path, &what, from).await?;
        // A server that does not know ranges sends all of it again.
        let mut skip = match (from, answer.response.status()) {
            (Some(from), StatusCode::PARTIAL_CONTENT) => {
                let range = answer.response.headers().get(header::CONTENT_RANGE);
                let begins = range.and_then(|range| range.to_str().ok()).and_then(range_start);
                if begins != Some(from) {
                    return Err(RegistryError::Range { digest: descriptor.digest.clone(), host: host() });
                }
                0
            }
            (from, _) => from.unwrap_or_default(),
        };
        while let Some(mut data) = answer.next().await.map_err(RegistryError::Transport)? {
            let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(data.len());
            let data = data.split_off(skipped);
            skip -= skipped as u64;
            *received += data.len() as u64;
            if *received > descriptor.size {
                return Err(RegistryError::TooLong {
                    digest: descriptor.digest.clone(),
                    host: host(),
                    size: descriptor.size,
                });
            }
            if !data.is_empty() && pieces.send(data).await.is_err() {
                return Ok(());
            }
        }
        if *received == descriptor.size {
            return Ok(());
        }
        let (digest, size) = (descriptor.digest.clone(), descriptor.size);
        Err(RegistryError::Short { digest, host: host(), received: *received, size })
    }

    /// One GET below the repository, with whatever proof of identity it takes.
    async fn get(
        &self,
        session: &Session,
        endpoint: &Endpoint,
        path: &str,
        what: &str,
        from: Option<u64>,
    ) -> Result<Answer, RegistryError> {
        let mut url = format!("{}/{}/{path}", endpoint.base, session.reference.path());
        if let Some(namespace) = &endpoint.namespace {
            url = format!("{url}?ns={}", encoded(namespace));
        }
        let mut call = Call::get(url);
        if path.starts_with("manifests/") {
            call.headers.insert(header::ACCEPT, HeaderValue::from_static(manifest::ACCEPT));
        }
        if let Some(from) = from
            && let Ok(range) = HeaderValue::from_str(&format!("bytes={from}-"))
        {
            call.headers.insert(header::RANGE, range);
        }
        let is_private = endpoint.is_tls || is_loopback(&endpoint.authority);
        let credentials = session
            .credentials
            .as_ref()
            .filter(|credentials| credentials.are_for(&endpoint.authority, session.reference.host(), is_private));
        let key = token_key(endpoint, session.reference.path(), credentials);

        let known = lock(&self.tokens).get(&key).filter(|token| token.expires > Instant::now()).cloned();
        let authorization = match (&known, credentials) {
            (Some(token), _) => Some(token.header.clone()),
            (None, Some(credentials)) if !credentials.registry_token.is_empty() => {
                Some(format!("Bearer {}", credentials.registry_token))
            }
            _ => None,
        };
        let answer = self.send(&call, authorization.as_deref()).await?;
        if answer.response.status() != StatusCode::UNAUTHORIZED {
            return accepted(answer, what, endpoint, credentials.is_some()).await;
        }
        // Asked anew also when a token had worked before: it may have been withdrawn.
        lock(&self.tokens).remove(&key);
        let challenges = auth::challenges(
            answer.response.headers().get_all(header::WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok()),
        );
        let Some(token) = self.authorize(endpoint, session.reference.path(), credentials, &challenges).await? else {
            return Err(unauthorized(answer, endpoint, credentials.is_some()).await);
        };
        let answer = self.send(&call, Some(&token.header)).await?;
        if answer.response.status() == StatusCode::UNAUTHORIZED {
            return Err(unauthorized(answer, endpoint, credentials.is_some()).await);
        }
        {
            let mut tokens = lock(&self.tokens);
            let now = Instant::now();
            if tokens.len() >= TOKENS_MAX {
                tokens.retain(|_, token| token.expires > now);
            }
            if tokens.len() < TOKENS_MAX {
                tokens.insert(key, token);
            }
        }
        accepted(answer, what, endpoint, credentials.is_some()).await
    }

    async fn send(&self, call: &Call, authorization: Option<&str>) -> Result<Answer, RegistryError> {
        let mut call = call.clone();
        if let Some(mut value) = authorization.and_then(|text| HeaderValue::from_str(text).ok()) {
            value.set_sensitive(true);
            call.headers.insert(header::AUTHORIZATION, value);
        }
        self.transport.send(call).await.map_err(RegistryError::Transport)
    }

    /// Answers the first challenge that can be answered; `None` when none can.
    async fn authorize(
        &self,
        endpoint: &Endpoint,
        path: &str,
        credentials: Option<&Credentials>,
        challenges: &[Challenge],
    ) -> Result<Option<Token>, RegistryError> {
        let bearer = challenges.iter().find_map(|challenge| match challenge {
            Challenge::Bearer { realm, service, scope } => Some((realm, service.as_deref(), scope.as_deref())),
            Challenge::Basic => None,
        });
        if let Some((realm, service, scope)) = bearer {
            let scope = scope.map_or_else(|| format!("repository:{path}:pull"), ToOwned::to_owned);
            return self.token(endpoint, realm, service, &scope, credentials).await.map(Some);
        }
        let basic = challenges.contains(&Challenge::Basic).then(|| credentials.and_then(Credentials::basic)).flatten();
        Ok(basic.map(|header| Token { header, expires: Instant::now() + Duration::from_secs(600) }))
    }

    async fn token(
        &self,
        endpoint: &Endpoint,
        realm: &str,
        service: Option<&str>,
        scope: &str,
        credentials: Option<&Credentials>,
    ) -> Result<Token, RegistryError> {
        let open = realm.starts_with("http://")
            && realm.parse().is_ok_and(|uri: http::Uri| !is_loopback(uri.host().unwrap_or_default()));
        if open && endpoint.is_tls && credentials.is_some() {
            return Err(RegistryError::OpenRealm { host: endpoint.authority.clone(), realm: shown(realm) });
        }
        let service = service.map(|service| format!("&service={}", encoded(service))).unwrap_or_default();
        let refresh =
            credentials.map(|credentials| credentials.identity_token.as_str()).filter(|token| !token.is_empty());
        let mut call = Call::get(realm.to_owned());
        let mut authorization = None;
        if let Some(refresh) = refresh {
            // OAuth2: the identity token is a refresh token.
            call.method = Method::POST;
            let form = HeaderValue::from_static("application/x-www-form-urlencoded");
            call.headers.insert(header::CONTENT_TYPE, form);
            let (scope, refresh) = (encoded(scope), encoded(refresh));
            call.body =
                format!("grant_type=refresh_token&client_id=vaina{service}&scope={scope}&refresh_token={refresh}")
                    .into();
        } else {
            let mark = if realm.contains('?') { '&' } else { '?' };
            call.url = format!("{realm}{mark}scope={}{service}", encoded(scope));
            if let Some(credentials) = credentials {
                authorization = credentials.basic();
                call.url = format!("{}&account={}", call.url, encoded(&credentials.username));
            }
        }
        let fail = |source| RegistryError::Token { realm: shown(realm), source: Box::new(source) };
        let answer = self.send(&call, authorization.as_deref()).await.map_err(fail)?;
        let server = Endpoint { authority: shown(realm), ..endpoint.clone() };
        if answer.response.status() == StatusCode::UNAUTHORIZED {
            return Err(fail(unauthorized(answer, &server, credentials.is_some()).await));
        }
        let answer = accepted(answer, "token", &server, credentials.is_some()).await.map_err(fail)?;
        let body = answer.document(ANSWER_MAX).await.map_err(|error| fail(RegistryError::Transport(error)))?;
        let answer: Option<TokenAnswer> = serde_json::from_slice(&body).ok();
        let expires = answer.as_ref().and_then(|answer| answer.expires_in).unwrap_or(TOKEN_SECONDS);
        let token = answer.and_then(TokenAnswer::token).ok_or_else(|| RegistryError::NoToken(shown(realm)))?;
        // Not used in its last seconds: a request takes some time.
        let lasts = Duration::from_secs(expires.clamp(TOKEN_SECONDS, 3600) - 10);
        Ok(Token { header: format!("Bearer {token}"), expires: Instant::now() + lasts })
    }
}

fn token_key(endpoint: &Endpoint, path: &str, credentials: Option<&Credentials>) -> (String, String, u64) {
    let mut hasher = DefaultHasher::new();
    credentials.hash(&mut hasher);
    (endpoint.base.clone(), path.to_owned(), hasher.finish())
}

fn range_start(range: &str) -> Option<u64> {
    range.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

/// The answer if it is a yes, else what it says.
async fn accepted(answer: Answer, what: &str, endpoint: &Endpoint, given: bool) -> Result<Answer, RegistryError> {
    let status = answer.response.status();
    match status {
        StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(answer),
        StatusCode::NOT_FOUND => Err(RegistryError::NotFound {
            what: what.to_owned(),
            host: endpoint.authority.clone(),
            detail: detail(answer).await,
        }),
        StatusCode::FORBIDDEN => {
            Err(RegistryError::Unauthorized { host: endpoint.authority.clone(), given, detail: detail(answer).await })
        }
        _ => {
            let wait =
                answer.response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            if let Some(wait) = wait.filter(|_| is_busy(status)) {
                sleep(Duration::from_secs(wait).min(RETRY_AFTER_MAX)).await;
            }
            let url = answer.url().to_owned();
            Err(RegistryError::Status { url, status, detail: detail(answer).await })
        }
    }
}

async fn unauthorized(answer: Answer, endpoint: &Endpoint, given: bool) -> RegistryError {
    RegistryError::Unauthorized { host: endpoint.authority.clone(), given, detail: detail(answer).await }
}

/// The first message of the protocol's error document, if there is one.
async fn detail(answer: Answer) -> Detail {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<ErrorEntry>,
    }
    #[derive(Deserialize)]
    struct ErrorEntry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(body) = answer.document(ANSWER_MAX).await else { return Detail::default() };
    let Some(first) = serde_json::from_slice::<Errors>(&body).ok().and_then(|errors| errors.errors.into_iter().next())
    else {
        return Detail::default();
    };
    let text = if first.message.is_empty() { first.code } else { first.message };
    Detail(text.chars().filter(|character| !character.is_control()).take(200).collect())
}
