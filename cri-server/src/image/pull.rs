//! One pull, from the name to the record.
//!
//! ```text
//! resolve the name ─ config ─┬─ layer: download ─▶ hash, inflate, hash, unpack ─┐
//!                            ├─ layer: …      (in parallel, bounded)            ├─ record
//!                            └─ layer: there already, or joined                 ┘
//! ```
//!
//! A pull belongs to its name, not to the caller: it runs to its end when the caller leaves, and a second one of the same
//! name with the same credentials gets its answer. The name is always resolved at the registry, also when the image is
//! there: that is what "pull" means to who moves a tag, and what checks the credentials of a pod that may not have it.

use std::{
    io::{self, Read},
    sync::Arc,
};

use bytes::Bytes;
use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared, try_join_all},
};
use thiserror::Error;
use tokio::sync::mpsc;
use vaina_sys::failpoint;

use super::{
    CommitError, Complete, FetchError, Image, ImageStore, Reference, ReferenceError, Version, blocking,
    digest::Digest,
    layer::Expected,
    layers::lock,
    manifest::{self, CONFIG_MAX, Descriptor, ManifestError},
    registry::{Credentials, RegistryError, Session},
};
use crate::error::{Classify, Kind};

/// Pieces of a blob that wait for the unpacking thread.
const PIECES: usize = 16;

/// What to pull.
#[derive(Debug, Clone)]
pub struct PullRequest {
    /// The image's name, as users write it.
    pub reference: String,
    /// What to show to the registry.
    pub auth: Option<Credentials>,
}

/// Why an image was not pulled; shared by all who waited for it.
#[derive(Debug, Clone, Error)]
#[error(transparent)]
pub struct PullError(Arc<PullFailure>);

/// The step of a pull that failed.
#[derive(Debug, Error)]
pub enum PullFailure {
    /// The name.
    #[error(transparent)]
    Reference(ReferenceError),
    /// The manifest.
    #[error("resolve image {reference}")]
    Resolve {
        /// Which.
        reference: Reference,
        /// Cause.
        #[source]
        source: RegistryError,
    },
    /// The config.
    #[error("download config of image {reference}")]
    Config {
        /// Which.
        reference: Reference,
        /// Cause.
        #[source]
        source: RegistryError,
    },
    /// The config's content.
    #[error("read config of image {reference}")]
    Content {
        /// Which.
        reference: Reference,
        /// Cause.
        #[source]
        source: ManifestError,
    },
    /// A layer.
    #[error("pull layer {layer} of image {reference}")]
    Layer {
        /// Which.
        reference: Reference,
        /// Its digest.
        layer: Digest,
        /// Cause.
        #[source]
        source: Arc<FetchError>,
    },
    /// The record.
    #[error("record image {reference}")]
    Record {
        /// Which.
        reference: Reference,
        /// Cause.
        #[source]
        source: CommitError,
    },
    /// Our own fault.
    #[error("pull image {0}: the task died")]
    Died(Reference),
}

#[cfg(feature = "failpoints")]
impl PullFailure {
    /// What a failpoint fails with.
    fn injected(reference: &Reference, source: io::Error) -> Self {
        let source = CommitError::Record(crate::state::WriteError::Sync(source));
        Self::Record { reference: reference.clone(), source }
    }
}

impl PullError {
    /// Whether the registry could not be reached: then the text for the kubelet begins with `RegistryUnavailable`
    /// (cri-api `pkg/errors`).
    pub fn is_registry_unavailable(&self) -> bool {
        match &*self.0 {
            PullFailure::Resolve { source, .. } | PullFailure::Config { source, .. } => source.is_unreachable(),
            PullFailure::Layer { source, .. } => {
                matches!(&**source, FetchError::Download(source) if source.is_unreachable())
            }
            PullFailure::Reference(_)
            | PullFailure::Content { .. }
            | PullFailure::Record { .. }
            | PullFailure::Died(_) => false,
        }
    }
}

impl Classify for PullError {
    fn kind(&self) -> Kind {
        match &*self.0 {
            PullFailure::Reference(_) => Kind::InvalidArgument,
            PullFailure::Resolve { source, .. } | PullFailure::Config { source, .. } => source.kind(),
            PullFailure::Content { .. } => Kind::FailedPrecondition,
            PullFailure::Layer { source, .. } => source.kind(),
            PullFailure::Record { source, .. } => source.kind(),
            PullFailure::Died(_) => Kind::Internal,
        }
    }
}

pub(super) type Pull = Shared<BoxFuture<'static, Result<Arc<Image>, PullError>>>;
/// Which pulls are one.
pub(super) type PullKey = (Reference, Option<Credentials>);

impl ImageStore {
    /// Pulls an image, or joins the pull of it that is under way. Runs to its end when the caller leaves.
    pub async fn pull(&self, request: PullRequest) -> Result<Arc<Image>, PullError> {
        let parsed = request.reference.parse::<Reference>();
        let reference = parsed.map_err(|error| PullError(Arc::new(PullFailure::Reference(error))))?;
        let pull = {
            let mut pulls = lock(&self.inner.pulls);
            let key = (reference.clone(), request.auth.clone());
            match pulls.get(&key) {
                Some(pull) => pull.clone(),
                None => {
                    let (store, ours) = (self.clone(), key.clone());
                    let task = tokio::spawn(async move {
                        let result = store.pull_now(&ours.0, ours.1.clone()).await;
                        // Taken out before the answer: whoever comes after it begins anew.
                        lock(&store.inner.pulls).remove(&ours);
                        result
                    });
                    let store = self.clone();
                    let pull: Pull = async move {
                        match task.await {
                            Ok(result) => result.map_err(|failure| PullError(Arc::new(failure))),
                            Err(_) => {
                                lock(&store.inner.pulls).retain(|(name, _), _| *name != reference);
                                Err(PullError(Arc::new(PullFailure::Died(reference))))
                            }
                        }
                    }
                    .boxed()
                    .shared();
                    pulls.insert(key, pull.clone());
                    pull
                }
            }
        };
        pull.await
    }

    async fn pull_now(&self, reference: &Reference, auth: Option<Credentials>) -> Result<Arc<Image>, PullFailure> {
        let registry = &self.inner.registry;
        let (store, name) = (self.clone(), reference.clone());
        let resolve = |source| PullFailure::Resolve { reference: reference.clone(), source };
        failpoint!("pull.resolve", |source| PullFailure::injected(reference, source));
        let session = blocking(move || store.inner.registry.session(&name, auth)).await.map_err(resolve)?;
        let session = Arc::new(session);
        let resolved = registry.resolve(&session).await.map_err(resolve)?;
        let manifest = resolved.manifest;
        failpoint!("pull.resolved", |source| PullFailure::injected(reference, source));
        let config = match self.resolve(&manifest.config.digest.to_string()) {
            // The id is the digest of the config, so this is it.
            Some(known) => known.config_text().as_bytes().to_vec(),
            None => registry
                .small_blob(&session, &manifest.config, CONFIG_MAX)
                .await
                .map_err(|source| PullFailure::Config { reference: reference.clone(), source })?
                .into(),
        };
        let (config_text, config, diff_ids) = manifest::parse_config(config, Some(manifest.layers.len()))
            .map_err(|source| PullFailure::Content { reference: reference.clone(), source })?;

        let layers = manifest::distinct(&diff_ids).into_iter().filter_map(|index| {
            let (diff_id, descriptor) = (diff_ids.get(index)?.clone(), manifest.layers.get(index)?);
            let session = &session;
            let fetch_id = diff_id.clone();
            let fetch = move || self.fetch(session, descriptor, &fetch_id);
            Some(async move {
                self.inner.layers.obtain(&diff_id, fetch).await.map_err(|source| PullFailure::Layer {
                    reference: reference.clone(),
                    layer: descriptor.digest.clone(),
                    source,
                })
            })
        });
        let layers = try_join_all(layers).await?;
        let tags = match reference.version() {
            Version::Tag(_) => vec![reference.to_string()],
            Version::Digest(_) => Vec::new(),
        };
        let digests = vec![reference.with_digest(resolved.digest).to_string()];
        let complete = Complete { config_text, config, layers, tags, digests };
        failpoint!("pull.record", |source| PullFailure::injected(reference, source));
        let image = self
            .commit(complete)
            .await
            .map_err(|source| PullFailure::Record { reference: reference.clone(), source })?;
        failpoint!("pull.recorded", |source| PullFailure::injected(reference, source));
        Ok(image)
    }

    /// Downloads one layer and unpacks it meanwhile.
    fn fetch(
        &self,
        session: &Arc<Session>,
        descriptor: &Descriptor,
        diff_id: &Digest,
    ) -> impl Future<Output = Result<Arc<super::Layer>, FetchError>> + Send + use<> {
        let (store, session, descriptor) = (self.clone(), Arc::clone(session), descriptor.clone());
        let expected = Expected { blob: Some((descriptor.digest.clone(), descriptor.size)), diff_id: diff_id.clone() };
        async move {
            // Bounded over all pulls: each takes a thread, a connection and some buffers. Never closed.
            let _permit = store.inner.downloads.acquire().await;
            failpoint!("pull.fetch", |source| FetchError::Layer(super::LayerError::Read(source)));
            let (sender, receiver) = mpsc::channel(PIECES);
            let blob = Pieces { receiver, current: Bytes::new(), left: descriptor.size };
            let download = async {
                let result = store.inner.registry.blob(&session, &descriptor, &sender).await;
                drop(sender);
                result
            };
            match tokio::join!(download, store.unpack_layer(blob, expected)) {
                (_, Ok(layer)) => Ok(layer),
                // When the download breaks the unpacking breaks with it: the first is the cause.
                (Err(error), Err(_)) => Err(FetchError::Download(error)),
                (Ok(()), Err(error)) => Err(error),
            }
        }
    }
}

/// The pieces of a download as a stream for the unpacking thread. Blocking.
struct Pieces {
    receiver: mpsc::Receiver<Bytes>,
    current: Bytes,
    left: u64,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            if self.left == 0 {
                return Ok(0);
            }
            match self.receiver.blocking_recv() {
                Some(piece) => self.current = piece,
                None => return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the download ended early")),
            }
        }
        let count = self.current.len().min(buffer.len());
        let piece = self.current.split_to(count);
        buffer.get_mut(..count).unwrap_or_default().copy_from_slice(&piece);
        self.left = self.left.saturating_sub(count as u64);
        Ok(count)
    }
}
