//! Pods and containers by the names that people give.

use std::collections::BTreeMap;

use thiserror::Error;
use vaina_proto::cri;

use super::{
    convert::keys,
    daemon::{Daemon, DaemonError},
};
use crate::error::{Classify, Kind};

/// Why nothing was found.
#[derive(Debug, Error)]
pub enum FindError {
    /// No such pod.
    #[error("find pod {namespace}/{name}: there is none of this name")]
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// It is there, but nothing in it.
    #[error("find a container in pod {namespace}/{name}: none has been started yet")]
    Empty {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// No such container.
    #[error("find container {container} in pod {pod}: it has {}", names.join(", "))]
    Container {
        /// The pod.
        pod: String,
        /// The name.
        container: String,
        /// What there is.
        names: Vec<String>,
    },
    /// The daemon.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
}

impl Classify for FindError {
    fn kind(&self) -> Kind {
        match self {
            Self::Pod { .. } | Self::Container { .. } => Kind::NotFound,
            Self::Empty { .. } => Kind::FailedPrecondition,
            Self::Daemon(error) => error.kind(),
        }
    }
}

/// All containers, ended ones too, of the pod of this name.
pub(super) async fn containers(daemon: &Daemon, namespace: &str, pod: &str) -> Result<Vec<cri::Container>, FindError> {
    let labels = [(keys::POD_NAMESPACE, namespace), (keys::POD_NAME, pod)];
    let label_selector: BTreeMap<_, _> = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let filter = cri::ContainerFilter { label_selector: label_selector.clone(), ..Default::default() };
    let containers = daemon.containers(filter).await?;
    if !containers.is_empty() {
        return Ok(containers);
    }
    let filter = cri::PodSandboxFilter { label_selector, ..Default::default() };
    let sandboxes = daemon.sandboxes(filter).await?;
    let (namespace, name) = (namespace.to_owned(), pod.to_owned());
    Err(if sandboxes.is_empty() { FindError::Pod { namespace, name } } else { FindError::Empty { namespace, name } })
}

/// The container of that name, or the first.
pub(super) fn choose(pod: &str, names: &[String], wanted: Option<&str>) -> Result<String, FindError> {
    let chosen = match wanted {
        Some(wanted) => names.iter().find(|name| *name == wanted),
        None => names.first(),
    };
    chosen.cloned().ok_or_else(|| {
        let mut names = names.to_vec();
        names.sort();
        names.dedup();
        let container = wanted.unwrap_or_default().to_owned();
        FindError::Container { pod: pod.to_owned(), container, names }
    })
}

/// The container's name.
pub(super) fn name(container: &cri::Container) -> &str {
    container.metadata.as_ref().map_or("", |metadata| &metadata.name)
}

/// Which attempt at the container it is.
pub(super) fn attempt(container: &cri::Container) -> u32 {
    container.metadata.as_ref().map_or(0, |metadata| metadata.attempt)
}
