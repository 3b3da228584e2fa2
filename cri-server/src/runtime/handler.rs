//! RuntimeClass handlers: a name, the shim that serves it, and the OCI runtime that the shim is to use.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use crate::config;

/// One handler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handler {
    /// RuntimeClass name; empty for the default.
    pub name: String,
    /// The shim's executable.
    pub shim: PathBuf,
    /// OCI runtime executable; empty for the shim's own.
    pub runtime: String,
    /// The OCI runtime's state directory.
    pub runtime_root: PathBuf,
}

/// All handlers by name.
#[derive(Debug, Clone)]
pub struct Handlers {
    by_name: BTreeMap<String, Handler>,
    /// Why this node runs no pod in a user namespace.
    no_user_namespaces: Option<String>,
}

/// The shim that comes with us.
const SHIM: &str = "containerd-shim-vaina-v1";

/// OCI runtimes that know the mount option `rro` ("read-only, with all mounts below").
const RECURSIVE_READ_ONLY: [&str; 3] = ["crun", "runc", "youki"];

/// OCI runtimes that join a user namespace by its path, and take binds from places that only the node's root can reach.
const USER_NAMESPACES: [&str; 2] = ["crun", "runc"];

impl Handler {
    /// Whether its shim knows what ours can do beyond containerd's interfaces.
    pub fn has_own_shim(&self) -> bool {
        self.shim.file_name().is_some_and(|name| name == SHIM)
    }

    /// Whether it is all ours, so that what goes between our parts reaches the container's process.
    pub fn is_own(&self) -> bool {
        self.has_own_shim() && self.runtime.is_empty()
    }

    /// Whether it makes mounts read-only with all that is mounted below them. A runtime that does not know the option would
    /// ignore it or fail late, so of an unknown one it is not believed.
    pub fn makes_recursive_read_only(&self) -> bool {
        self.has_own_shim() && self.is_one_of(&RECURSIVE_READ_ONLY)
    }

    /// Our own OCI runtime, or one of these.
    fn is_one_of(&self, runtimes: &[&str]) -> bool {
        let known = Path::new(&self.runtime).file_name().and_then(|name| name.to_str());
        self.runtime.is_empty() || known.is_some_and(|name| runtimes.contains(&name))
    }
}

impl Handlers {
    /// The built-in handlers, and those of the configuration, which win.
    pub fn new(config: &BTreeMap<String, config::Handler>, state: &Path) -> Self {
        let own = own_shim();
        let handler = |name: &str, runtime: &str, shim: Option<&Path>| Handler {
            name: name.to_owned(),
            shim: shim.map_or_else(|| own.clone(), Path::to_owned),
            runtime: runtime.to_owned(),
            // Runtimes keep their state in forms of their own; two in one directory would trip over each other.
            runtime_root: state.join("oci").join(if name.is_empty() { "vaina" } else { name }),
        };
        let mut by_name = BTreeMap::new();
        for (name, runtime) in [("", ""), ("vaina", ""), ("crun", "crun"), ("runc", "runc")] {
            by_name.insert(name.to_owned(), handler(name, runtime, None));
        }
        for (name, entry) in config {
            by_name.insert(name.clone(), handler(name, &entry.runtime, entry.shim.as_deref()));
        }
        Self { by_name, no_user_namespaces: None }
    }

    /// Says what the node lacks for user namespaces, if anything.
    #[must_use]
    pub fn without_user_namespaces(self, reason: Option<String>) -> Self {
        Self { no_user_namespaces: reason, ..self }
    }

    /// Why a handler runs no pod in a user namespace; nothing if it does.
    pub fn user_namespace_problem(&self, handler: &Handler) -> Option<String> {
        if !handler.has_own_shim() {
            // Who makes the containers there, and of what, is not ours to say.
            Some(format!("its shim {} is not known to make them", handler.shim.display()))
        } else if !handler.is_one_of(&USER_NAMESPACES) {
            Some(format!("its OCI runtime {} is not known to make them", handler.runtime))
        } else {
            self.no_user_namespaces.clone()
        }
    }

    /// The handler of a name; the empty name is the default.
    pub fn get(&self, name: &str) -> Option<&Handler> {
        self.by_name.get(name)
    }

    /// All of them, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Handler> {
        self.by_name.values()
    }
}

/// The shim beside our own executable, or else whichever `PATH` has.
fn own_shim() -> PathBuf {
    std::env::current_exe()
        .ok()
        .and_then(|own| Some(own.parent()?.join(SHIM)))
        .filter(|path| path.is_file())
        .unwrap_or_else(|| PathBuf::from(SHIM))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_wins_over_what_is_built_in() {
        let config = BTreeMap::from([
            ("crun".to_owned(), config::Handler { runtime: "/opt/crun".into(), shim: None }),
            ("kata".to_owned(), config::Handler { runtime: String::new(), shim: Some("/opt/kata-shim".into()) }),
        ]);
        let handlers = Handlers::new(&config, Path::new("/run/vaina"));
        assert_eq!(handlers.get("").unwrap().runtime, "");
        assert_eq!(handlers.get("crun").unwrap().runtime, "/opt/crun");
        assert_eq!(handlers.get("kata").unwrap().shim, Path::new("/opt/kata-shim"));
        assert_eq!(handlers.get("runc").unwrap().runtime_root, Path::new("/run/vaina/oci/runc"));
        assert!(handlers.get("").unwrap().makes_recursive_read_only());
        assert!(handlers.get("crun").unwrap().makes_recursive_read_only());
        assert!(!handlers.get("kata").unwrap().makes_recursive_read_only());
        let own = |name| handlers.get(name).is_some_and(Handler::is_own);
        assert!(own("") && own("vaina") && !own("crun") && !own("kata"));
        let problem = |handlers: &Handlers, name| handlers.user_namespace_problem(handlers.get(name).unwrap());
        assert_eq!(problem(&handlers, "crun"), None);
        assert!(problem(&handlers, "kata").unwrap().contains("/opt/kata-shim"));
        let without = handlers.clone().without_user_namespaces(Some("too old".to_owned()));
        assert_eq!(problem(&without, "").as_deref(), Some("too old"));
        assert!(handlers.get("none").is_none());
        assert_eq!(handlers.iter().count(), 5);
    }
}
