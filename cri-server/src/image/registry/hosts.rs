//! Where a registry's images are asked for: mirrors from `<registries>/<host>/hosts.toml` in their order, then itself.
//!
//! The file has containerd's form. What of it is not supported yet is refused by its name: a header or a certificate that
//! is left out in silence would show up as a registry that refuses us. Pure but for the one read.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
};

use http::Uri;
use serde::Deserialize;
use thiserror::Error;

/// One server that may be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// Scheme, authority and path up to and with `/v2`.
    pub(super) base: String,
    /// `host[:port]`.
    pub(super) authority: String,
    /// Whether it speaks TLS.
    pub(super) is_tls: bool,
    /// Whether it may say what a tag is.
    pub(super) resolve: bool,
    /// Whether content may come from it.
    pub(super) pull: bool,
    /// A mirror is told which registry is meant.
    pub(super) namespace: Option<String>,
}

/// Why the list was not made.
#[derive(Debug, Error)]
pub enum HostsError {
    /// The file.
    #[error("read {}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// Its form.
    #[error("parse {}", .path.display())]
    Parse {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: Box<toml::de::Error>,
    },
    /// A server's address.
    #[error("{}: {url:?} is not an http or https address", .path.display())]
    Address {
        /// Which file.
        path: PathBuf,
        /// What it says.
        url: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    server: Option<String>,
    #[serde(default)]
    capabilities: Option<Vec<Capability>>,
    #[serde(default)]
    host: HashMap<toml::Spanned<String>, Host>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Host {
    #[serde(default)]
    capabilities: Option<Vec<Capability>>,
    #[serde(default)]
    override_path: bool,
}

#[derive(Deserialize, PartialEq, Eq, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Capability {
    Pull,
    Resolve,
    Push,
}

/// The servers for images of `host`, best first. Reads one small file.
pub(super) fn endpoints(registries: &Path, host: &str, plain_http: &[String]) -> Result<Vec<Endpoint>, HostsError> {
    for name in directory_names(host) {
        let path = registries.join(name).join("hosts.toml");
        match std::fs::read_to_string(&path) {
            Ok(text) => return parse(&text, &path, host, plain_http),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(source) => return Err(HostsError::Read { path, source }),
        }
    }
    Ok(vec![own(host, plain_http)])
}

/// containerd's names of a host's directory; a colon is not welcome in every path.
fn directory_names(host: &str) -> Vec<String> {
    let mut names = vec![host.to_owned()];
    if let Some((name, port)) = host.rsplit_once(':') {
        names.push(format!("{name}_{port}_"));
    }
    names.push("_default".to_owned());
    names
}

fn parse(text: &str, path: &Path, host: &str, plain_http: &[String]) -> Result<Vec<Endpoint>, HostsError> {
    let file: File =
        toml::from_str(text).map_err(|source| HostsError::Parse { path: path.to_owned(), source: Box::new(source) })?;
    let mut mirrors: Vec<_> = file.host.into_iter().collect();
    // As written: a map has no order, the text has.
    mirrors.sort_by_key(|(url, _)| url.span().start);
    let address = |url: &str| HostsError::Address { path: path.to_owned(), url: url.chars().take(200).collect() };
    let mut endpoints = Vec::new();
    for (url, mirror) in mirrors {
        let url = url.get_ref();
        let capabilities = mirror.capabilities.as_deref();
        endpoints.push(endpoint(url, mirror.override_path, capabilities, Some(host)).ok_or_else(|| address(url))?);
    }
    endpoints.push(match &file.server {
        Some(server) => {
            let namespace = (!names_host(server, host)).then_some(host);
            endpoint(server, false, file.capabilities.as_deref(), namespace).ok_or_else(|| address(server))?
        }
        None => own(host, plain_http),
    });
    Ok(endpoints)
}

fn names_host(url: &str, host: &str) -> bool {
    url.parse::<Uri>().is_ok_and(|url| url.authority().is_some_and(|authority| authority.as_str() == api_host(host)))
}

fn endpoint(
    url: &str,
    override_path: bool,
    capabilities: Option<&[Capability]>,
    namespace: Option<&str>,
) -> Option<Endpoint> {
    let whole = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
    let parsed: Uri = whole.parse().ok()?;
    let scheme = parsed.scheme_str().filter(|scheme| matches!(*scheme, "http" | "https"))?;
    let authority = parsed.authority()?.as_str();
    // User info in an address would be sent and logged.
    if authority.contains('@') || parsed.query().is_some() {
        return None;
    }
    let mut path = parsed.path().trim_end_matches('/').to_owned();
    if !override_path && !path.ends_with("/v2") {
        path.push_str("/v2");
    }
    let may = |capability| capabilities.is_none_or(|list| list.contains(&capability));
    Some(Endpoint {
        base: format!("{scheme}://{authority}{path}"),
        authority: authority.to_owned(),
        is_tls: scheme == "https",
        resolve: may(Capability::Resolve),
        pull: may(Capability::Pull) || may(Capability::Resolve),
        namespace: namespace.map(ToOwned::to_owned),
    })
}

fn own(host: &str, plain_http: &[String]) -> Endpoint {
    let authority = api_host(host).to_owned();
    let is_tls = !(is_loopback(host) || plain_http.iter().any(|plain| plain == host));
    let scheme = if is_tls { "https" } else { "http" };
    Endpoint {
        base: format!("{scheme}://{authority}/v2"),
        authority,
        is_tls,
        resolve: true,
        pull: true,
        namespace: None,
    }
}

/// docker.io is a name, not a server.
fn api_host(host: &str) -> &str {
    if host == "docker.io" { "registry-1.docker.io" } else { host }
}

/// Whether nobody can listen between us and that host.
pub(super) fn is_loopback(authority: &str) -> bool {
    let name = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bases(text: &str, host: &str) -> Vec<String> {
        parse(text, Path::new("hosts.toml"), host, &[]).unwrap().into_iter().map(|endpoint| endpoint.base).collect()
    }

    #[test]
    fn defaults() {
        let base = |host: &str| own(host, &["plain:1".to_owned()]).base;
        assert_eq!(base("docker.io"), "https://registry-1.docker.io/v2");
        assert_eq!(base("a.b:5000"), "https://a.b:5000/v2");
        for host in ["127.0.0.1:5000", "127.9.9.9", "localhost:1", "[::1]:5000", "plain:1"] {
            assert_eq!(base(host), format!("http://{host}/v2"));
        }
    }

    #[test]
    fn mirrors_keep_their_order() {
        let text = r#"
            server = "https://registry-1.docker.io"
            [host."https://z.example"]
            capabilities = ["pull", "resolve"]
            [host."http://127.0.0.1:5000"]
            capabilities = ["pull"]
            [host."https://a.example/prefix/v2"]
            override_path = true
            [host."m.example/x"]
        "#;
        let expected = [
            "https://z.example/v2",
            "http://127.0.0.1:5000/v2",
            "https://a.example/prefix/v2",
            "https://m.example/x/v2",
            "https://registry-1.docker.io/v2",
        ];
        assert_eq!(bases(text, "docker.io"), expected);
        let endpoints = parse(text, Path::new("x"), "docker.io", &[]).unwrap();
        assert!(!endpoints[1].resolve && endpoints[1].pull);
        assert_eq!(endpoints[0].namespace.as_deref(), Some("docker.io"));
        assert_eq!(endpoints[4].namespace, None);
        assert_eq!(bases("", "a.b"), ["https://a.b/v2"]);
    }

    #[test]
    fn refuses_by_name() {
        for (text, expected) in [
            ("[host.\"https://a\"]\nskip_verify = true", "skip_verify"),
            ("ca = \"x\"", "ca"),
            ("[host.\"ftp://a\"]", "ftp://a"),
            ("[host.\"https://user:pw@a\"]", "user:pw@a"),
            ("[host.\"https://a\"]\ncapabilities = [\"fly\"]", "fly"),
        ] {
            let error = parse(text, Path::new("hosts.toml"), "a", &[]).unwrap_err();
            let chain = crate::error::Chain(&error).to_string();
            assert!(chain.contains(expected), "{chain}");
        }
    }

    #[test]
    fn finds_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, mirror: &str| {
            std::fs::create_dir_all(dir.path().join(name)).unwrap();
            std::fs::write(dir.path().join(name).join("hosts.toml"), format!("[host.\"{mirror}\"]")).unwrap();
        };
        let first = |host: &str| endpoints(dir.path(), host, &[]).unwrap()[0].base.clone();
        assert_eq!(first("a.b:5000"), "https://a.b:5000/v2");
        write("_default", "https://default");
        write("a.b_5000_", "https://a");
        assert_eq!(first("a.b:5000"), "https://a/v2");
        assert_eq!(first("c.d"), "https://default/v2");
    }
}
