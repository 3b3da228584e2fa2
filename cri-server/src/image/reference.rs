//! Names of images: parsed and normalised as every other tool does it. Pure.
//!
//! `busybox` is `docker.io/library/busybox:latest`. A first component is a host when it contains a dot or a colon, is
//! `localhost`, or has an upper-case letter; everything else is a path on docker.io. The grammar is that of the
//! distribution specification; it is read by hand and not by a regular expression so that a mistake can be named.

use std::{fmt, str::FromStr};

use thiserror::Error;

use super::digest::{Digest, DigestError};

const DEFAULT_HOST: &str = "docker.io";
const LEGACY_HOST: &str = "index.docker.io";
const OFFICIAL: &str = "library";
const DEFAULT_TAG: &str = "latest";
/// Limit of the distribution specification for host and path together.
const NAME_MAX: usize = 255;
const TAG_MAX: usize = 128;

/// A normalised reference: host, path, and a tag or a digest.
///
/// With both a tag and a digest the digest decides and the tag is dropped: nothing has checked that the tag points to
/// it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    host: String,
    path: String,
    version: Version,
}

/// What of a repository is meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Version {
    /// A movable name.
    Tag(String),
    /// Exactly this manifest.
    Digest(Digest),
}

impl Reference {
    /// The registry's name, as users write it: `docker.io`, `127.0.0.1:5000`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository on that registry.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Tag or digest.
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// Host and path: what tags and digests of one image share.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.host, self.path)
    }

    /// The same repository with a digest instead.
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { version: Version::Digest(digest), ..self.clone() }
    }

    /// The tag or the digest as the distribution API wants it in a URL.
    pub fn version_text(&self) -> String {
        match &self.version {
            Version::Tag(tag) => tag.clone(),
            Version::Digest(digest) => digest.to_string(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Version::Tag(tag) => write!(f, "{}/{}:{tag}", self.host, self.path),
            Version::Digest(digest) => write!(f, "{}/{}@{digest}", self.host, self.path),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let fail = |reason| ReferenceError::new(text, reason);
        if text.is_empty() {
            return Err(fail(Reason::Empty));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest = digest.parse().map_err(|error| fail(Reason::Digest(error)))?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        let (host, rest) = split_host(rest);
        // After the host a colon can only begin the tag.
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        check_host(host).map_err(fail)?;
        if let Some(tag) = tag {
            check_tag(tag).map_err(fail)?;
        }
        check_path(path).map_err(fail)?;
        let path =
            if host == DEFAULT_HOST && !path.contains('/') { format!("{OFFICIAL}/{path}") } else { path.to_owned() };
        if host.len() + 1 + path.len() > NAME_MAX {
            return Err(fail(Reason::NameTooLong));
        }
        let version = match (digest, tag) {
            (Some(digest), _) => Version::Digest(digest),
            (None, tag) => Version::Tag(tag.unwrap_or(DEFAULT_TAG).to_owned()),
        };
        Ok(Self { host: host.to_owned(), path, version })
    }
}

/// Why a text is not a reference.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("invalid image reference {text:?}")]
pub struct ReferenceError {
    text: String,
    #[source]
    reason: Reason,
}

impl ReferenceError {
    fn new(text: &str, reason: Reason) -> Self {
        Self { text: text.chars().take(300).collect(), reason }
    }
}

/// The rule that is broken.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Reason {
    /// Nothing there.
    #[error("it is empty")]
    Empty,
    /// The part before the first slash is no host name.
    #[error("malformed registry host")]
    Host,
    /// A path component breaks the grammar.
    #[error(
        "malformed repository: components are lower-case letters and digits, separated by '.', '_', '__' or dashes"
    )]
    Path,
    /// As `Path`, the commonest case.
    #[error("the repository must be lower case")]
    UpperCase,
    /// The tag breaks the grammar.
    #[error("malformed tag: up to 128 letters, digits, '_', '.' and '-', not beginning with '.' or '-'")]
    Tag,
    /// Host and path together are too long.
    #[error("registry and repository are longer than 255 characters")]
    NameTooLong,
    /// What follows the `@`.
    #[error(transparent)]
    Digest(DigestError),
}

fn split_host(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((LEGACY_HOST, rest)) => (DEFAULT_HOST, rest),
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|byte| byte.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_HOST, name),
    }
}

fn check_host(host: &str) -> Result<(), Reason> {
    let (name, port) = if let Some(rest) = host.strip_prefix('[') {
        let (address, port) = rest.split_once(']').ok_or(Reason::Host)?;
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return Err(Reason::Host);
        }
        let port = match port {
            "" => None,
            port => Some(port.strip_prefix(':').ok_or(Reason::Host)?),
        };
        (None, port)
    } else {
        match host.split_once(':') {
            Some((name, port)) => (Some(name), Some(port)),
            None => (Some(host), None),
        }
    };
    if let Some(port) = port
        && (port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) || port.parse::<u16>().is_err())
    {
        return Err(Reason::Host);
    }
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    match name {
        Some(name) if !name.split('.').all(label) => Err(Reason::Host),
        _ => Ok(()),
    }
}

fn check_tag(tag: &str) -> Result<(), Reason> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let mut bytes = tag.bytes();
    let first = bytes.next().is_some_and(word);
    if first && tag.len() <= TAG_MAX && bytes.all(|byte| word(byte) || matches!(byte, b'.' | b'-')) {
        Ok(())
    } else {
        Err(Reason::Tag)
    }
}

fn check_path(path: &str) -> Result<(), Reason> {
    if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(Reason::UpperCase);
    }
    if path.split('/').all(is_component) { Ok(()) } else { Err(Reason::Path) }
}

/// Alphanumeric runs, separated by one `.`, one or two `_`, or any number of `-`.
fn is_component(component: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    if !alphanumeric(*first) || !alphanumeric(*last) {
        return false;
    }
    bytes
        .split(|byte| alphanumeric(*byte))
        .all(|separator| matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|byte| *byte == b'-'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse(text: &str) -> Reference {
        text.parse().unwrap()
    }

    #[test]
    fn normalises() {
        let digest = format!("docker.io/library/busybox@sha256:{HEX}");
        for (text, whole) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("bitnami/redis", "docker.io/bitnami/redis:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x", "localhost:5000/x:latest"),
            ("127.0.0.1:5000/a/b:c", "127.0.0.1:5000/a/b:c"),
            ("[::1]:5000/a:c", "[::1]:5000/a:c"),
            ("registry.k8s.io/e2e-test-images/busybox:1.29-2", "registry.k8s.io/e2e-test-images/busybox:1.29-2"),
            ("gcr.io/a__b/c--d/e.f:_", "gcr.io/a__b/c--d/e.f:_"),
            ("REG/x", "REG/x:latest"),
            (&format!("busybox@sha256:{HEX}"), &digest),
            (&format!("busybox:1@sha256:{HEX}"), &digest),
        ] {
            assert_eq!(parse(text).to_string(), whole, "{text}");
            assert_eq!(parse(whole), parse(text));
        }
    }

    #[test]
    fn names_the_broken_rule() {
        let long = "a/".repeat(130) + "a";
        for (text, reason) in [
            ("", Reason::Empty),
            ("Busybox", Reason::UpperCase),
            ("a//b", Reason::Path),
            ("a/", Reason::Path),
            ("/a", Reason::Path),
            ("a___b", Reason::Path),
            ("a..b", Reason::Path),
            ("-a", Reason::Path),
            ("a b", Reason::Path),
            ("a/../b", Reason::Path),
            ("ä", Reason::Path),
            ("a:", Reason::Tag),
            ("a:.x", Reason::Tag),
            ("a:b:c", Reason::Tag),
            ("a:b/c", Reason::Host),
            ("a.b:99999/c", Reason::Host),
            ("a.b:/c", Reason::Host),
            ("a..b/c", Reason::Host),
            ("[::1/c", Reason::Host),
            (&long, Reason::NameTooLong),
        ] {
            let error = text.parse::<Reference>().unwrap_err();
            assert_eq!(error.reason, reason, "{text}");
        }
        assert!(matches!("a@sha256:1".parse::<Reference>().unwrap_err().reason, Reason::Digest(DigestError::Form(_))));
    }

    proptest! {
        #[test]
        fn never_panics_and_is_stable(text in "[a-zA-Z0-9._:/@\\-\\[\\] ]{0,80}") {
            if let Ok(reference) = text.parse::<Reference>() {
                let whole = reference.to_string();
                prop_assert_eq!(whole.parse::<Reference>().unwrap(), reference);
            }
        }
    }
}
