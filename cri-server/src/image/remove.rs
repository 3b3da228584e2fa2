//! How images go: by name or whole, now or when the last container lets go.
//!
//! The record is deleted first; the layers follow with the last `Arc` of them. An image that is held keeps its record,
//! marked as removed, so that the next daemon neither lists it nor deletes what containers stand on.

use std::sync::Arc;

use thiserror::Error;

use super::{Image, ImageStore, Reference, detached, is_pinned, layers::lock, now, record::ImageRecord};
use crate::{
    error::{Classify, Kind},
    id::ImageId,
    state::{Durability, WriteError},
};

/// Why an image was not removed.
#[derive(Debug, Error)]
pub enum RemoveError {
    /// The record.
    #[error("remove image {image}")]
    Record {
        /// Which.
        image: ImageId,
        /// Cause.
        #[source]
        source: WriteError,
    },
}

impl Classify for RemoveError {
    fn kind(&self) -> Kind {
        match self {
            Self::Record { source, .. } => source.kind(),
        }
    }
}

/// Why an image can't be held.
#[derive(Debug, Error)]
#[error("image {0} is not there")]
pub struct HoldError(ImageId);

impl Classify for HoldError {
    fn kind(&self) -> Kind {
        Kind::NotFound
    }
}

impl ImageStore {
    /// Removes a name, or by id the image with all its names. What is not there is removed.
    pub async fn remove(&self, text: &str) -> Result<(), RemoveError> {
        let store = self.clone();
        let text = text.to_owned();
        detached(async move { store.remove_now(&text).await }).await
    }

    async fn remove_now(&self, text: &str) -> Result<(), RemoveError> {
        let _changing = self.inner.changes.lock().await;
        let Some(image) = self.resolve(text) else {
            return self.remove_damaged(text).await;
        };
        let mut left = Image::clone(&image);
        left.changed = now();
        match text.parse::<Reference>() {
            Ok(reference) if image.repo_tags.contains(&reference.to_string()) => {
                let repository = reference.repository();
                left.repo_tags.retain(|tag| *tag != reference.to_string());
                if !left.repo_tags.iter().any(|tag| is_in(tag, &repository)) {
                    left.repo_digests.retain(|digest| !is_in(digest, &repository));
                }
            }
            Ok(reference) if image.repo_digests.contains(&reference.to_string()) => {
                let repository = reference.repository();
                left.repo_tags.retain(|tag| !is_in(tag, &repository));
                left.repo_digests.retain(|digest| !is_in(digest, &repository));
            }
            _ => {
                left.repo_tags.clear();
                left.repo_digests.clear();
            }
        }
        if left.is_named() {
            return self.replace(left).await;
        }
        let dropped = self.drop_image(left).await;
        if dropped.is_err() {
            // It is recorded as before, so a retry must find it.
            let mut index = lock(&self.inner.index);
            index.removed.remove(&image.id);
            index.images.insert(image.id.clone(), image);
        }
        dropped
    }

    /// Nothing names the image any more: it goes, now or with its last holder.
    async fn drop_image(&self, mut image: Image) -> Result<(), RemoveError> {
        let id = image.id.clone();
        let held = {
            let mut index = lock(&self.inner.index);
            let held = index.is_held(&id);
            index.images.remove(&id);
            if held {
                image.removed = true;
                // A release that comes before the record is written finds it here.
                index.removed.insert(id.clone(), Arc::new(image.clone()));
            }
            held
        };
        if held {
            let record = image.record();
            return self.put(&record).await.map_err(|source| RemoveError::Record { image: id, source });
        }
        self.forget(&image).await
    }

    /// Deletes the record; the layers go with the last that stands on them.
    async fn forget(&self, image: &Image) -> Result<(), RemoveError> {
        let key = image.id.as_str();
        let deleted = self.inner.store.delete::<ImageRecord>(key, Durability::PowerLoss).await;
        deleted.map_err(|source| RemoveError::Record { image: image.id.clone(), source })?;
        for layer in &image.pins {
            layer.unrecord();
        }
        Ok(())
    }

    async fn remove_damaged(&self, text: &str) -> Result<(), RemoveError> {
        let id = ImageId::new(text);
        if !lock(&self.inner.index).damaged.contains_key(&id) {
            return Ok(());
        }
        let deleted = self.inner.store.delete::<ImageRecord>(id.as_str(), Durability::PowerLoss).await;
        deleted.map_err(|source| RemoveError::Record { image: id.clone(), source })?;
        for layer in lock(&self.inner.index).damaged.remove(&id).unwrap_or_default() {
            layer.unrecord();
        }
        Ok(())
    }

    /// Says that `holder` (a container) stands on the image, whose layers then stay until [`ImageStore::release`]. It may
    /// stand on several.
    ///
    /// Holds are in memory: recovery repeats them from its own records, and then calls [`ImageStore::sweep`].
    pub fn hold(&self, id: &ImageId, holder: &str) -> Result<Arc<Image>, HoldError> {
        let mut index = lock(&self.inner.index);
        let image = index.images.get(id).or_else(|| index.removed.get(id)).cloned();
        let image = image.ok_or_else(|| HoldError(id.clone()))?;
        index.holders.entry(holder.to_owned()).or_default().insert(id.clone());
        Ok(image)
    }

    /// Takes all holds of `holder` back; none is fine. A removed image goes with its last one.
    pub async fn release(&self, holder: &str) -> Result<(), RemoveError> {
        let held = lock(&self.inner.index).holders.remove(holder).unwrap_or_default();
        let store = self.clone();
        detached(async move {
            for id in &held {
                store.collect(id).await?;
            }
            Ok(())
        })
        .await
    }

    /// After recovery has repeated its holds: drops removed images that nobody holds any more.
    pub async fn sweep(&self) -> Result<(), RemoveError> {
        let ids: Vec<ImageId> = lock(&self.inner.index).removed.keys().cloned().collect();
        for id in ids {
            self.collect(&id).await?;
        }
        Ok(())
    }

    async fn collect(&self, id: &ImageId) -> Result<(), RemoveError> {
        let _changing = self.inner.changes.lock().await;
        let image = {
            let mut index = lock(&self.inner.index);
            if index.is_held(id) {
                return Ok(());
            }
            index.removed.remove(id)
        };
        let Some(image) = image else { return Ok(()) };
        let forgotten = self.forget(&image).await;
        if forgotten.is_err() {
            // The next release or start tries again.
            lock(&self.inner.index).removed.insert(id.clone(), image);
        }
        forgotten
    }

    async fn replace(&self, mut image: Image) -> Result<(), RemoveError> {
        image.pinned = is_pinned(&self.inner.config.pinned, &image.repo_tags);
        let put = self.put(&image.record()).await;
        put.map_err(|source| RemoveError::Record { image: image.id.clone(), source })?;
        lock(&self.inner.index).images.insert(image.id.clone(), Arc::new(image));
        Ok(())
    }
}

/// Whether a normalised name is of that repository.
fn is_in(name: &str, repository: &str) -> bool {
    name.strip_prefix(repository).is_some_and(|rest| rest.starts_with([':', '@']))
}
