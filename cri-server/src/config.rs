//! Configuration: a TOML file, with defaults that need none. Unknown keys are refused by name. No globals.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::error::{Classify, Kind};

/// Where the daemon looks for its file when none is named; it need not be there.
pub const DEFAULT_FILE: &str = "/etc/vaina/config.toml";

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What a reboot may take: bundles, sockets, pins.
    pub state: PathBuf,
    /// What stays: records, images, writable layers.
    pub root: PathBuf,
    /// CRI socket; `vaina.sock` in `state` if it is not set.
    pub socket: Option<PathBuf>,
    /// Log.
    pub log: Log,
    /// Images.
    pub image: Image,
    /// Built-in network.
    pub network: Network,
    /// Control groups.
    pub cgroup: Cgroup,
    /// Devices of vendors.
    pub cdi: Cdi,
    /// Server for exec, attach and port forwarding.
    pub streaming: Streaming,
    /// RuntimeClass handlers beside the built-in ones.
    pub handlers: BTreeMap<String, Handler>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state: "/run/vaina".into(),
            root: "/var/lib/vaina".into(),
            socket: None,
            log: Log::default(),
            image: Image::default(),
            network: Network::default(),
            cgroup: Cgroup::default(),
            cdi: Cdi::default(),
            streaming: Streaming::default(),
            handlers: BTreeMap::new(),
        }
    }
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Filter in the syntax of `RUST_LOG`.
    pub filter: String,
    /// Text on a terminal and JSON otherwise, unless it is set.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self { filter: "info".to_owned(), format: LogFormat::Auto }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// Images and registries.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Image {
    /// Directory with `<host>/hosts.toml`.
    pub registries: PathBuf,
    /// Registries (`host[:port]`) that are spoken to over plain http; loopback always is.
    pub plain_http: Vec<String>,
    /// Images that are never collected.
    pub pinned: Vec<String>,
    /// Layers that are downloaded at the same time.
    pub parallel_downloads: usize,
    /// A pull without progress for so many seconds fails.
    pub progress_timeout_seconds: u64,
}

impl Default for Image {
    fn default() -> Self {
        Self {
            registries: "/etc/vaina/registries".into(),
            plain_http: Vec::new(),
            pinned: Vec::new(),
            parallel_downloads: 3,
            progress_timeout_seconds: 60,
        }
    }
}

/// The built-in bridge network.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// Name of the bridge.
    pub bridge: String,
    /// Addresses of pods, as `a.b.c.d/n`; the first is the bridge's.
    pub subnet: String,
}

impl Default for Network {
    fn default() -> Self {
        Self { bridge: "vaina0".to_owned(), subnet: "10.88.0.0/16".to_owned() }
    }
}

impl Network {
    /// The subnet as an address and the length of its prefix.
    pub fn parsed_subnet(&self) -> Option<(Ipv4Addr, u8)> {
        let (address, length) = self.subnet.split_once('/')?;
        let length = length.parse().ok().filter(|length| (8..=30).contains(length))?;
        Some((address.parse().ok()?, length))
    }
}

/// Control groups.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cgroup {
    /// Parent of pods for which the client names none.
    pub parent: String,
}

impl Default for Cgroup {
    fn default() -> Self {
        Self { parent: "/vaina".to_owned() }
    }
}

/// The Container Device Interface.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cdi {
    /// Directories with spec files; of a device that several have, that of the last counts.
    pub directories: Vec<PathBuf>,
}

impl Default for Cdi {
    fn default() -> Self {
        Self { directories: vec!["/etc/cdi".into(), "/var/run/cdi".into()] }
    }
}

/// The server whose addresses Exec, Attach and PortForward answer. The kubelet connects to it from the node itself.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Streaming {
    /// Where it listens; port 0 is any that is free.
    pub address: SocketAddr,
    /// A session in which nothing moves for so many seconds is cut.
    pub idle_timeout_seconds: u64,
    /// Plain HTTP without it.
    pub tls: Option<Tls>,
}

impl Default for Streaming {
    fn default() -> Self {
        Self { address: (Ipv4Addr::LOCALHOST, 0).into(), idle_timeout_seconds: 4 * 60 * 60, tls: None }
    }
}

/// Files in PEM format.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The server's certificate, and those that lead to a known one.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// A RuntimeClass handler.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Handler {
    /// OCI runtime, by name or path; empty for the shim's own.
    pub runtime: String,
    /// The shim; ours if it is not set.
    pub shim: Option<PathBuf>,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file.
    #[error("read configuration {}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// What it says.
    #[error("read configuration {}", .path.display())]
    Parse {
        /// Which.
        path: PathBuf,
        /// Cause; names the key.
        source: Box<toml::de::Error>,
    },
    /// A value that can't be.
    #[error("configuration key {key}: {reason}")]
    Value {
        /// Which.
        key: &'static str,
        /// Why.
        reason: String,
    },
}

impl Classify for ConfigError {
    fn kind(&self) -> Kind {
        Kind::InvalidArgument
    }
}

impl Config {
    /// Reads the named file, or the default one if it is there.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let named = path.unwrap_or(Path::new(DEFAULT_FILE));
        match fs::read_to_string(named) {
            Ok(text) => Self::parse(&text, named),
            Err(error) if path.is_none() && error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(ConfigError::Read { path: named.to_owned(), source }),
        }
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })?;
        config.validate()?;
        Ok(config)
    }

    /// Refuses values that can't work.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let refuse = |key, reason: &str| Err(ConfigError::Value { key, reason: reason.to_owned() });
        for (key, path) in [("state", &self.state), ("root", &self.root)] {
            if !path.is_absolute() {
                return refuse(key, "it must be an absolute path");
            }
        }
        if self.network.parsed_subnet().is_none() {
            return refuse("network.subnet", "it must be like 10.88.0.0/16, with a prefix of 8 to 30 bits");
        }
        if self.network.bridge.is_empty() || self.network.bridge.len() > 15 {
            return refuse("network.bridge", "the name of a link has 1 to 15 bytes");
        }
        if !self.cgroup.parent.starts_with('/') || self.cgroup.parent.split('/').any(|part| part == "..") {
            return refuse("cgroup.parent", "it must be a path from the root of the hierarchy");
        }
        if let Some(relative) = self.cdi.directories.iter().find(|path| !path.is_absolute()) {
            return refuse("cdi.directories", &format!("{relative:?} must be an absolute path"));
        }
        if self.streaming.idle_timeout_seconds == 0 {
            return refuse("streaming.idle_timeout_seconds", "it must be at least 1");
        }
        if self.image.parallel_downloads == 0 {
            return refuse("image.parallel_downloads", "it must be at least 1");
        }
        Ok(())
    }

    /// Where the CRI is served.
    pub fn socket(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| self.state.join("vaina.sock"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Chain;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("x.toml")).map_err(|error| Chain(&error).to_string())
    }

    #[test]
    fn defaults_need_no_file_and_keys_override_them() {
        assert_eq!(parse("").unwrap(), Config::default());
        let config = parse(
            "root = '/srv/vaina'\n[network]\nsubnet = '10.1.0.0/24'\n[handlers.fast]\nruntime = 'crun'\n[log]\nformat = 'json'",
        )
        .unwrap();
        assert_eq!(config.root, Path::new("/srv/vaina"));
        assert_eq!(config.network.parsed_subnet(), Some((Ipv4Addr::new(10, 1, 0, 0), 24)));
        assert_eq!(config.handlers["fast"].runtime, "crun");
        assert_eq!(config.socket(), Path::new("/run/vaina/vaina.sock"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("colour = 1", "colour"),
            ("[network]\nbridg = 'x'", "bridg"),
            ("[handlers.a]\nbinary = 'x'", "binary"),
            ("state = 'run'", "state"),
            ("[network]\nsubnet = '10.0.0.0'", "network.subnet"),
            ("[network]\nbridge = 'a-much-too-long-name'", "network.bridge"),
            ("[cgroup]\nparent = '/a/../b'", "cgroup.parent"),
            ("[cdi]\ndirectories = ['cdi']", "cdi.directories"),
            ("[streaming]\nidle_timeout_seconds = 0", "streaming.idle_timeout_seconds"),
            ("[streaming]\naddress = '127.0.0.1'", "address"),
            ("[streaming.tls]\ncertificate = '/c.pem'", "key"),
            ("root = ", "x.toml"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
