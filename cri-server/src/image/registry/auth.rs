//! Credentials, and what a registry asks for: challenges and tokens. Pure but for nothing; the requests are the client's.

use std::{collections::HashMap, fmt};

use base64::{Engine as _, engine::general_purpose};
use serde::Deserialize;
use thiserror::Error;
use vaina_proto::cri;

use crate::error::{Classify, Kind};

/// How long a token lasts when its server does not say (distribution's token specification).
pub(super) const TOKEN_SECONDS: u64 = 60;

/// What the kubelet or a person gives to pull with. `Debug` is blank: it never reaches a log.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Credentials {
    /// For basic auth and for token servers.
    pub username: String,
    /// Likewise.
    pub password: String,
    /// An OAuth2 refresh token.
    pub identity_token: String,
    /// A bearer token to be sent as it is.
    pub registry_token: String,
    /// The registry that these are for; empty means the one of the image.
    pub server_address: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(…)")
    }
}

/// Why credentials are refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CredentialsError {
    /// Not base64.
    #[error("auth is not base64")]
    Base64,
    /// No colon.
    #[error("auth is not of the form user:password")]
    Form,
}

impl Classify for CredentialsError {
    fn kind(&self) -> Kind {
        Kind::InvalidArgument
    }
}

impl Credentials {
    /// Reads the CRI's message; `None` when it holds nothing.
    pub fn from_cri(auth: &cri::AuthConfig) -> Result<Option<Self>, CredentialsError> {
        let mut credentials = Self {
            username: auth.username.clone(),
            password: auth.password.clone(),
            identity_token: auth.identity_token.clone(),
            registry_token: auth.registry_token.clone(),
            server_address: auth.server_address.clone(),
        };
        if credentials.username.is_empty() && !auth.auth.is_empty() {
            let encoded = auth.auth.trim().trim_end_matches('=');
            let decoded = general_purpose::STANDARD_NO_PAD.decode(encoded).map_err(|_| CredentialsError::Base64)?;
            let decoded = String::from_utf8(decoded).map_err(|_| CredentialsError::Form)?;
            let (username, password) = decoded.split_once(':').ok_or(CredentialsError::Form)?;
            credentials.username = username.to_owned();
            // Some tools pad what they encode.
            credentials.password = password.trim_end_matches('\0').to_owned();
        }
        let holds =
            [&credentials.username, &credentials.password, &credentials.identity_token, &credentials.registry_token];
        Ok(holds.iter().any(|text| !text.is_empty()).then_some(credentials))
    }

    /// The header of basic auth, if there is a user.
    pub(super) fn basic(&self) -> Option<String> {
        (!self.username.is_empty()).then(|| {
            let pair = format!("{}:{}", self.username, self.password);
            format!("Basic {}", general_purpose::STANDARD.encode(pair))
        })
    }

    /// Whether these may be shown to `host` when pulling an image of `registry`.
    pub(super) fn are_for(&self, host: &str, registry: &str, is_private: bool) -> bool {
        let address = self.server_address.trim();
        let address = address.split_once("://").map_or(address, |(_, rest)| rest);
        let stated = address.split('/').next().unwrap_or_default();
        let hub = |name: &str| matches!(name, "docker.io" | "index.docker.io" | "registry-1.docker.io");
        let same = |a: &str, b: &str| a == b || hub(a) && hub(b);
        if stated.is_empty() {
            // A mirror is somebody else: it sees them only where nobody listens in between.
            same(host, registry) || is_private
        } else {
            same(host, stated) || same(registry, stated) && is_private
        }
    }
}

/// One way in that a 401 names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User and password with each request.
    Basic,
    /// A token from elsewhere.
    Bearer {
        /// Where.
        realm: String,
        /// For whom.
        service: Option<String>,
        /// For what.
        scope: Option<String>,
    },
}

/// Reads `WWW-Authenticate` (RFC 9110): several challenges, each a scheme with parameters. Unknown schemes are left out.
pub(super) fn challenges<'a>(headers: impl IntoIterator<Item = &'a str>) -> Vec<Challenge> {
    headers.into_iter().flat_map(parse).collect()
}

fn parse(header: &str) -> Vec<Challenge> {
    let mut found: Vec<(String, HashMap<String, String>)> = Vec::new();
    let mut rest = header.trim_start_matches([' ', ',', '\t']);
    while !rest.is_empty() {
        let end = rest.find([' ', '=', ',', '\t']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let trimmed = after.trim_start_matches([' ', '\t']);
        if word.is_empty() {
            break;
        }
        if let (Some(value), Some((_, parameters))) = (trimmed.strip_prefix('='), found.last_mut()) {
            let (value, after) = value_of(value.trim_start_matches([' ', '\t']));
            parameters.insert(word.to_ascii_lowercase(), value);
            rest = after;
        } else {
            found.push((word.to_ascii_lowercase(), HashMap::new()));
            rest = trimmed.strip_prefix('=').unwrap_or(trimmed);
        }
        rest = rest.trim_start_matches([' ', ',', '\t']);
    }
    found
        .into_iter()
        .filter_map(|(scheme, mut parameters)| match scheme.as_str() {
            "basic" => Some(Challenge::Basic),
            "bearer" => Some(Challenge::Bearer {
                realm: parameters.remove("realm")?,
                service: parameters.remove("service"),
                scope: parameters.remove("scope"),
            }),
            _ => None,
        })
        .collect()
}

/// A token or a quoted string, and what follows it.
fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        return (value.to_owned(), rest);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return (value, quoted.get(index + 1..).unwrap_or_default()),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            character => value.push(character),
        }
    }
    (value, "")
}

/// What a token server answers.
#[derive(Deserialize)]
pub(super) struct TokenAnswer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    pub(super) expires_in: Option<u64>,
}

impl TokenAnswer {
    /// The token under either name.
    pub(super) fn token(self) -> Option<String> {
        self.token.or(self.access_token).filter(|token| !token.is_empty())
    }
}

/// Text as part of a query or a form.
pub(super) fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(ToOwned::to_owned),
            scope: scope.map(ToOwned::to_owned),
        }
    }

    #[test]
    fn reads_challenges() {
        let hub = bearer("https://auth.docker.io/token", Some("registry.docker.io"), Some("repository:a/b:pull,push"));
        for (header, expected) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
                vec![hub.clone()],
            ),
            (r#"bearer Realm = "r" , service=s"#, vec![bearer("r", Some("s"), None)]),
            (r#"Basic realm="Registry \"x\", y""#, vec![Challenge::Basic]),
            ("Basic", vec![Challenge::Basic]),
            (
                r#"Negotiate, Basic realm="a", Bearer realm="b",scope="c""#,
                vec![Challenge::Basic, bearer("b", None, Some("c"))],
            ),
            (r#"Bearer service="x""#, vec![]),
            (r#"Bearer realm="open"#, vec![bearer("open", None, None)]),
            ("", vec![]),
            ("=,=,=", vec![]),
            ("Digest nonce=\"x\"", vec![]),
        ] {
            assert_eq!(challenges([header]), expected, "{header}");
        }
    }

    // proves: AuthConfig.{auth, server_address, identity_token, registry_token}
    #[test]
    fn reads_the_cri_message() {
        let auth = |text: &str| cri::AuthConfig { auth: text.to_owned(), ..Default::default() };
        let credentials = Credentials::from_cri(&auth("dXNlcjpwYTpzcw==")).unwrap().unwrap();
        assert_eq!((credentials.username.as_str(), credentials.password.as_str()), ("user", "pa:ss"));
        assert_eq!(credentials.basic().unwrap(), "Basic dXNlcjpwYTpzcw==");
        assert_eq!(Credentials::from_cri(&auth("%")), Err(CredentialsError::Base64));
        assert_eq!(Credentials::from_cri(&auth("dXNlcg==")), Err(CredentialsError::Form));
        let address_only = cri::AuthConfig { server_address: "x".to_owned(), ..Default::default() };
        assert_eq!(Credentials::from_cri(&address_only), Ok(None));
        assert!(!format!("{credentials:?}").contains("user"));
        let tokens =
            cri::AuthConfig { identity_token: "i".to_owned(), registry_token: "r".to_owned(), ..Default::default() };
        let tokens = Credentials::from_cri(&tokens).unwrap().unwrap();
        assert_eq!((tokens.identity_token.as_str(), tokens.registry_token.as_str()), ("i", "r"));
    }

    #[test]
    fn credentials_stay_with_their_registry() {
        let with = |address: &str| Credentials { server_address: address.to_owned(), ..Default::default() };
        for (address, host, registry, is_private, expected) in [
            ("", "a.b", "a.b", false, true),
            ("", "registry-1.docker.io", "docker.io", false, true),
            ("", "mirror", "docker.io", false, false),
            ("", "mirror", "docker.io", true, true),
            ("https://index.docker.io/v1/", "registry-1.docker.io", "docker.io", true, true),
            ("https://index.docker.io/v1/", "evil", "evil", true, false),
            ("mirror:5000", "mirror:5000", "docker.io", false, true),
        ] {
            assert_eq!(with(address).are_for(host, registry, is_private), expected, "{address} {host} {registry}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(header in "[ -~äß\\t]{0,80}") {
            let _ = challenges([header.as_str()]);
        }

        #[test]
        fn quoted_values_round_trip(realm in "[ -~]{1,40}") {
            let header = format!("Bearer realm=\"{}\"", realm.replace('\\', "\\\\").replace('"', "\\\""));
            prop_assert_eq!(challenges([header.as_str()]), vec![bearer(&realm, None, None)]);
        }
    }
}
