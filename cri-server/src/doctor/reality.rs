//! What is on the host of pods, by id, whatever the records say.

use std::{collections::BTreeSet, fs, os::unix::net::UnixStream, path::Path};

use crate::{config::Config, network::Network, sandbox, snapshot};

/// Ids of what is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Reality {
    /// Pods that have a directory or a pinned user namespace below our state directory, which nobody else writes to.
    pub(super) pods: BTreeSet<String>,
    /// Containers that have a bundle or a writable layer below our directories.
    pub(super) containers: BTreeSet<String>,
    /// Pods whose network namespace is pinned: this daemon's and any other's.
    pub(super) pins: BTreeSet<String>,
    /// Pods on our bridge or in our table.
    pub(super) attached: BTreeSet<String>,
}

pub(super) async fn look(config: &Config) -> Reality {
    let pins = names(Path::new(sandbox::NETNS_DIRECTORY)).into_iter();
    let mut containers = names(&config.state.join("containers"));
    containers.extend(snapshot::list(&config.root).unwrap_or_default().iter().map(ToString::to_string));
    let mut pods = names(&config.state.join("pods"));
    pods.extend(names(&config.state.join(sandbox::USER_PINS)));
    let attached = match Network::look(&config.network) {
        Ok(network) => network.list().await.unwrap_or_default(),
        // `host` says why.
        Err(_) => Vec::new(),
    };
    Reality {
        pods: pods.into_iter().filter(|name| is_id(name)).collect(),
        containers: containers.into_iter().filter(|name| is_id(name)).collect(),
        pins: pins
            .filter_map(|name| name.strip_prefix("vaina-").filter(|id| is_id(id)).map(str::to_owned))
            .filter(|id| vaina_sys::netns::is_pinned(&sandbox::netns_pin(&crate::id::SandboxId::new(id.as_str()))))
            .collect(),
        attached: attached.into_iter().filter_map(|attached| Some(attached.sandbox?.to_string())).collect(),
    }
}

/// Whether somebody listens there.
pub(super) fn listens(address: &str) -> bool {
    UnixStream::connect(address.strip_prefix("unix://").unwrap_or(address)).is_ok()
}

fn names(directory: &Path) -> Vec<String> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// Whether it is an id as we make them; what else is there is nobody of ours.
fn is_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}
