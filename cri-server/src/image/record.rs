//! What is recorded of an image: everything that can't be read from its layers. Pure.
//!
//! The config is kept byte for byte, because its digest is the image's id: a record that was damaged is found out by
//! hashing it again.

use std::error::Error;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::digest::{Digest, DigestError};
use crate::state;

/// The record of one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ImageRecord {
    /// Digest of `config`.
    pub id: Digest,
    /// Normalised names with tags.
    pub repo_tags: Vec<String>,
    /// Normalised names with manifest digests.
    pub repo_digests: Vec<String>,
    /// The config as it was delivered.
    pub config: String,
    /// Lowest first, each diff id once.
    pub layers: Vec<LayerRecord>,
    /// Seconds since the epoch of the last change of names: decides when two records have one tag.
    pub changed: u64,
    /// Removed by the user, but containers still stand on its layers.
    #[serde(default)]
    pub removed: bool,
}

/// One layer as counted when it was unpacked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LayerRecord {
    /// Digest of its tar.
    pub diff_id: Digest,
    /// Bytes on disk.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// Why bytes are not a record.
#[derive(Debug, Error)]
enum DecodeError {
    #[error("read image record of version {0}")]
    Version(u32),
    #[error("parse image record")]
    Json(#[source] serde_json::Error),
    #[error("parse image id")]
    Key(#[source] DigestError),
    #[error("image config does not have the digest that names it")]
    Config,
}

impl state::Record for ImageRecord {
    const TABLE: &'static str = "image";
    const VERSION: u32 = 1;

    fn key(&self) -> String {
        self.id.to_string()
    }

    fn encode(&self) -> Vec<u8> {
        // Strings and numbers only: nothing in it can fail to encode.
        serde_json::to_vec(self).unwrap_or_default()
    }

    fn decode(key: &str, version: u32, body: &[u8]) -> Result<Self, Box<dyn Error + Send + Sync>> {
        if version != Self::VERSION {
            return Err(DecodeError::Version(version).into());
        }
        let record: Self = serde_json::from_slice(body).map_err(DecodeError::Json)?;
        let id: Digest = key.parse().map_err(DecodeError::Key)?;
        if record.id != id || !id.matches(record.config.as_bytes()) {
            return Err(DecodeError::Config.into());
        }
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Record as _;

    #[test]
    fn round_trips_and_notices_damage() {
        let config = r#"{"architecture":"amd64"}"#.to_owned();
        let record = ImageRecord {
            id: Digest::sha256(config.as_bytes()),
            repo_tags: vec!["docker.io/library/a:b".to_owned()],
            repo_digests: Vec::new(),
            layers: vec![LayerRecord { diff_id: Digest::sha256(b"x"), bytes: 3, inodes: 1 }],
            config,
            changed: 7,
            removed: false,
        };
        let body = record.encode();
        assert_eq!(ImageRecord::decode(&record.key(), 1, &body).unwrap(), record);

        let text = String::from_utf8(body.clone()).unwrap();
        let damaged = text.replace("amd64", "amd65");
        assert!(ImageRecord::decode(&record.key(), 1, damaged.as_bytes()).is_err());
        assert!(ImageRecord::decode(&record.key(), 2, &body).is_err());
        assert!(ImageRecord::decode(&record.key(), 1, &body[..40]).is_err());
    }
}
