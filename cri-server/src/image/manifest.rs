//! Manifests, indexes and configs: what the registry's or the archive's JSON says, checked. Pure.
//!
//! What a document *is* follows from its fields, and one that could be both an index and a manifest is refused: reading
//! it by a media type that somebody else chose is how one digest comes to mean two images.

use std::collections::BTreeMap;

use oci_spec::image::{ImageConfiguration, Os};
use serde::Deserialize;
use thiserror::Error;

use super::digest::{Digest, DigestError};

/// Bound of a manifest or an index; registries themselves allow 4 MiB.
pub(super) const MANIFEST_MAX: u64 = 4 << 20;
/// Bound of a config.
pub(super) const CONFIG_MAX: u64 = 8 << 20;

/// What we ask a registry for.
pub(super) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";

/// A manifest that is one image, or an index of several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Document {
    /// One image.
    Manifest(Manifest),
    /// One manifest for each platform.
    Index(Vec<Candidate>),
}

/// What one image consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Manifest {
    /// The image config.
    pub config: Descriptor,
    /// Layer blobs, lowest first.
    pub layers: Vec<Descriptor>,
}

/// A blob by content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Descriptor {
    /// Digest of the blob.
    pub digest: Digest,
    /// Its length.
    pub size: u64,
    /// What it claims to be.
    pub media_type: String,
    /// Free text beside it.
    pub annotations: BTreeMap<String, String>,
}

/// One entry of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    /// The manifest.
    pub descriptor: Descriptor,
    /// For which machines; an archive's index often does not say.
    pub platform: Option<Platform>,
}

/// A machine in Go's words.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Platform {
    /// `amd64`, `arm64` …
    #[serde(default)]
    pub architecture: String,
    /// `linux`.
    #[serde(default)]
    pub os: String,
    /// `v7`, `v8` …
    #[serde(default)]
    pub variant: Option<String>,
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match self.variant.as_deref() {
            Some(variant) if !variant.is_empty() => write!(f, "/{variant}"),
            _ => Ok(()),
        }
    }
}

/// Why a document is refused.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// Not JSON, or fields of a wrong type.
    #[error("parse {what}")]
    Json {
        /// Which document.
        what: &'static str,
        /// Cause.
        #[source]
        source: serde_json::Error,
    },
    /// A digest that is none.
    #[error("read descriptor of {what}")]
    Digest {
        /// What it should describe.
        what: &'static str,
        /// Cause.
        #[source]
        source: DigestError,
    },
    /// The old format without digests of content.
    #[error("manifest has schema version 1, which has no verifiable layers; push the image again with a current tool")]
    SchemaOne,
    /// Index and manifest at once.
    #[error("document is both an image manifest and an index")]
    Ambiguous,
    /// Neither.
    #[error("document is neither an image manifest nor an index")]
    Unknown,
    /// Something else in an image's clothes (a chart, a signature).
    #[error("this is not a container image but an artifact of type {0:?}")]
    Artifact(String),
    /// A layer that is no tar: encrypted, or an attestation.
    #[error("layers of type {0:?} can't be unpacked")]
    LayerType(String),
    /// Not for our machine.
    #[error("no image for {wanted} in the index, which has {}", .found.join(", "))]
    NoPlatform {
        /// What we are.
        wanted: Platform,
        /// What there is.
        found: Vec<String>,
    },
    /// For another system altogether.
    #[error("image is for {0}, not for linux")]
    ForeignOs(String),
    /// Manifest and config disagree.
    #[error("manifest has {layers} layers, the image config has {diff_ids}")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the config.
        diff_ids: usize,
    },
    /// Not text.
    #[error("image config is not UTF-8")]
    ConfigText,
}

#[derive(Deserialize)]
struct RawDescriptor {
    digest: String,
    size: u64,
    #[serde(rename = "mediaType", default)]
    media_type: String,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    platform: Option<Platform>,
}

impl RawDescriptor {
    fn checked(self, what: &'static str) -> Result<(Descriptor, Option<Platform>), ManifestError> {
        let digest = self.digest.parse().map_err(|source| ManifestError::Digest { what, source })?;
        let descriptor = Descriptor {
            digest,
            size: self.size,
            media_type: self.media_type,
            annotations: self.annotations.unwrap_or_default(),
        };
        Ok((descriptor, self.platform))
    }
}

#[derive(Deserialize)]
struct RawDocument {
    #[serde(rename = "schemaVersion", default)]
    schema_version: u64,
    #[serde(default)]
    config: Option<RawDescriptor>,
    #[serde(default)]
    layers: Option<Vec<RawDescriptor>>,
    #[serde(default)]
    manifests: Option<Vec<RawDescriptor>>,
}

/// Reads a manifest or an index.
pub(super) fn parse(bytes: &[u8]) -> Result<Document, ManifestError> {
    let raw: RawDocument =
        serde_json::from_slice(bytes).map_err(|source| ManifestError::Json { what: "manifest", source })?;
    if raw.schema_version == 1 {
        return Err(ManifestError::SchemaOne);
    }
    match (raw.config, raw.layers, raw.manifests) {
        (None, None, Some(manifests)) => manifests
            .into_iter()
            .map(|raw| raw.checked("manifest").map(|(descriptor, platform)| Candidate { descriptor, platform }))
            .collect::<Result<_, _>>()
            .map(Document::Index),
        (Some(config), layers, None) => {
            let (config, _) = config.checked("config")?;
            if !is_config(&config.media_type) {
                return Err(ManifestError::Artifact(config.media_type.chars().take(200).collect()));
            }
            let layers = layers
                .unwrap_or_default()
                .into_iter()
                .map(|raw| match raw.checked("layer")? {
                    (layer, _) if is_layer(&layer.media_type) => Ok(layer),
                    (layer, _) => Err(ManifestError::LayerType(layer.media_type.chars().take(200).collect())),
                })
                .collect::<Result<_, _>>()?;
            Ok(Document::Manifest(Manifest { config, layers }))
        }
        (_, _, Some(_)) => Err(ManifestError::Ambiguous),
        (None, _, None) => Err(ManifestError::Unknown),
    }
}

fn is_config(media_type: &str) -> bool {
    matches!(
        media_type,
        "" | "application/vnd.oci.image.config.v1+json"
            | "application/vnd.docker.container.image.v1+json"
            | "application/octet-stream"
            | "application/json"
    )
}

/// Whether it is a tar that we can read. Which compression it has is seen from its bytes: registries get that wrong.
fn is_layer(media_type: &str) -> bool {
    matches!(media_type, "" | "application/octet-stream")
        || [".tar", ".tar.gzip", ".tar+gzip", ".tar+zstd", ".tar.zstd"].iter().any(|end| media_type.ends_with(end))
}

/// This machine.
pub(super) fn host_platform() -> Platform {
    let (architecture, variant) = match std::env::consts::ARCH {
        "x86_64" => ("amd64", None),
        "x86" => ("386", None),
        "aarch64" => ("arm64", Some("v8")),
        "arm" => ("arm", Some("v7")),
        "powerpc64" => ("ppc64le", None),
        "loongarch64" => ("loong64", None),
        other => (other, None),
    };
    Platform { architecture: architecture.to_owned(), os: "linux".to_owned(), variant: variant.map(ToOwned::to_owned) }
}

/// The entry of an index that runs on `host`: our own variant first, then what our machine runs too.
pub(super) fn choose<'a>(candidates: &'a [Candidate], host: &Platform) -> Result<&'a Descriptor, ManifestError> {
    candidates
        .iter()
        .filter_map(|candidate| {
            let rank = match &candidate.platform {
                Some(platform) => rank(platform, host)?,
                // One nameless manifest is what archives hold; among several nothing tells them apart.
                None if candidates.len() == 1 => 0,
                None => return None,
            };
            Some((rank, candidate))
        })
        // The first of equals, as listed.
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, candidate)| &candidate.descriptor)
        .ok_or_else(|| ManifestError::NoPlatform {
            wanted: host.clone(),
            found: candidates
                .iter()
                .take(32)
                .map(|candidate| candidate.platform.as_ref().map_or_else(|| "unnamed".to_owned(), ToString::to_string))
                .collect(),
        })
}

/// How well it fits, 0 best; `None` when it does not run here.
fn rank(platform: &Platform, host: &Platform) -> Option<usize> {
    if platform.os != host.os || platform.architecture != host.architecture {
        return None;
    }
    let runs: &[&str] = match host.architecture.as_str() {
        "arm64" => &["v8", ""],
        "arm" => &["v7", "v6", "v5", ""],
        // v2 and up need instructions that not every machine has.
        "amd64" => &["", "v1"],
        _ => &[""],
    };
    runs.iter().position(|variant| platform.variant.as_deref().unwrap_or_default() == *variant)
}

/// Reads a config whose digest has been checked; `layers` is how many the manifest has, if there is one.
pub(super) fn parse_config(
    bytes: Vec<u8>,
    layers: Option<usize>,
) -> Result<(String, ImageConfiguration, Vec<Digest>), ManifestError> {
    let config: ImageConfiguration =
        serde_json::from_slice(&bytes).map_err(|source| ManifestError::Json { what: "image config", source })?;
    let text = String::from_utf8(bytes).map_err(|_| ManifestError::ConfigText)?;
    if *config.os() != Os::Linux {
        return Err(ManifestError::ForeignOs(config.os().to_string()));
    }
    let diff_ids = config
        .rootfs()
        .diff_ids()
        .iter()
        .map(|diff_id| diff_id.parse().map_err(|source| ManifestError::Digest { what: "diff id", source }))
        .collect::<Result<Vec<Digest>, _>>()?;
    if let Some(layers) = layers
        && layers != diff_ids.len()
    {
        return Err(ManifestError::LayerCount { layers, diff_ids: diff_ids.len() });
    }
    Ok((text, config, diff_ids))
}

/// Which layers an image stands on: of a diff id that comes twice only the upper one, which hides the lower wholly
/// (and overlayfs refuses a directory that is listed twice).
pub(super) fn distinct(diff_ids: &[Digest]) -> Vec<usize> {
    (0..diff_ids.len())
        .filter(|index| !diff_ids.get(index + 1..).unwrap_or_default().contains(&diff_ids[*index]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn index(platforms: &[&str]) -> Vec<Candidate> {
        let manifests: Vec<_> = platforms
            .iter()
            .enumerate()
            .map(|(index, platform)| {
                let mut parts = platform.split('/');
                serde_json::json!({
                    "digest": Digest::sha256(&[u8::try_from(index).unwrap()]).to_string(), "size": index,
                    "mediaType": "application/vnd.oci.image.manifest.v1+json",
                    "platform": {"os": parts.next(), "architecture": parts.next(), "variant": parts.next()},
                })
            })
            .collect();
        match parse(serde_json::json!({"schemaVersion": 2, "manifests": manifests}).to_string().as_bytes()).unwrap() {
            Document::Index(candidates) => candidates,
            Document::Manifest(_) => panic!("a manifest"),
        }
    }

    #[test]
    fn chooses_the_platform() {
        let host = |architecture: &str| Platform {
            architecture: architecture.to_owned(),
            os: "linux".to_owned(),
            variant: None,
        };
        for (platforms, architecture, expected) in [
            (&["linux/arm64", "linux/amd64"][..], "amd64", Some(1)),
            (&["windows/amd64", "unknown/unknown", "linux/amd64/v3", "linux/amd64/v1"], "amd64", Some(3)),
            (&["linux/arm/v6", "linux/arm/v7", "linux/arm/v5"], "arm", Some(1)),
            (&["linux/arm64/v8"], "arm64", Some(0)),
            (&["linux/s390x"], "amd64", None),
            (&[], "amd64", None),
        ] {
            let candidates = index(platforms);
            let chosen = choose(&candidates, &host(architecture)).map(|descriptor| descriptor.size);
            assert_eq!(chosen.ok(), expected, "{platforms:?}");
        }
        let error = choose(&index(&["linux/s390x", "linux/arm/v7"]), &host("amd64")).unwrap_err();
        assert_eq!(error.to_string(), "no image for linux/amd64 in the index, which has linux/s390x, linux/arm/v7");
    }

    #[test]
    fn refuses_what_is_not_an_image() {
        let descriptor = format!(r#"{{"digest":"{HEX}","size":1}}"#);
        for (text, expected) in [
            ("7".to_owned(), "parse manifest"),
            ("[]".to_owned(), "neither"),
            ("{".to_owned(), "parse manifest"),
            ("{}".to_owned(), "neither"),
            (r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(), "schema version 1"),
            (format!(r#"{{"config":{descriptor},"layers":[],"manifests":[]}}"#), "both"),
            (r#"{"config":{"digest":"x","size":1},"layers":[]}"#.to_owned(), "descriptor of config"),
            (
                format!(r#"{{"config":{descriptor},"layers":[{{"digest":"sha256:../..","size":1}}]}}"#),
                "descriptor of layer",
            ),
            (format!(r#"{{"config":{{"digest":"{HEX}","size":-1}}}}"#), "parse manifest"),
            (
                format!(
                    r#"{{"config":{{"digest":"{HEX}","size":1,"mediaType":"application/vnd.cncf.helm.config.v1+json"}}}}"#
                ),
                "artifact of type",
            ),
            (
                format!(
                    r#"{{"config":{descriptor},"layers":[{{"digest":"{HEX}","size":1,
                    "mediaType":"application/vnd.oci.image.layer.v1.tar+gzip+encrypted"}}]}}"#
                ),
                "+encrypted\" can't be unpacked",
            ),
        ] {
            let error = parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn reads_configs_as_docker_writes_them() {
        let text = format!(
            r#"{{"architecture":"amd64","os":"linux","created":"2020-01-01T00:00:00Z","container_config":{{"Cmd":null}},
            "config":{{"Cmd":null,"Env":null,"ExposedPorts":null,"Volumes":null,"Labels":null,"OnBuild":null,"User":"",
            "Healthcheck":{{"Test":["NONE"]}},"Entrypoint":["/x"],"StopSignal":"SIGQUIT"}},
            "rootfs":{{"type":"layers","diff_ids":["{HEX}"]}},"history":[{{"created":"2020-01-01T00:00:00Z"}}]}}"#
        );
        let (_, config, diff_ids) = parse_config(text.clone().into_bytes(), Some(1)).unwrap();
        assert_eq!(diff_ids, [HEX.parse().unwrap()]);
        assert_eq!(config.config().as_ref().unwrap().entrypoint().as_ref().unwrap(), &["/x"]);
        assert!(matches!(
            parse_config(text.clone().into_bytes(), Some(2)),
            Err(ManifestError::LayerCount { layers: 2, diff_ids: 1 })
        ));
        assert!(matches!(
            parse_config(text.replace("linux", "windows").into_bytes(), None),
            Err(ManifestError::ForeignOs(_))
        ));
    }

    #[test]
    fn keeps_the_upper_of_equal_layers() {
        let [a, b] = [Digest::sha256(b"a"), Digest::sha256(b"b")];
        assert_eq!(distinct(&[a.clone(), b.clone(), a.clone(), a, b]), [3, 4]);
        assert_eq!(distinct(&[]), [] as [usize; 0]);
    }
}
