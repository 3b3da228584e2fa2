//! `RemovePodSandbox`: stops by force what runs, removes the containers, and ends with a receipt.
//!
//! Idempotent, and no error for a sandbox that is not there (`api.proto`, RemovePodSandbox).

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
};

use tracing::{Instrument as _, info_span};

use vaina_proto::cri::ContainerEventType;

use super::{Level, Sandbox, SandboxState, StopError, steps, stop::tear_down, stop_known};
use crate::{
    app::App,
    container,
    error::{Classify, Kind},
    events,
    id::ContainerId,
    index::FindError,
    work::blocking,
};

/// Why a sandbox is not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// The start of an id that several have.
    #[error(transparent)]
    Find(FindError),
    /// It could not be stopped, or taken down.
    #[error(transparent)]
    Stop(StopError),
    /// A container is left.
    #[error("remove container {id}")]
    Container {
        /// Which.
        id: ContainerId,
        /// Cause.
        source: container::RemoveError,
    },
}

impl Classify for RemoveError {
    fn kind(&self) -> Kind {
        match self {
            Self::Find(source) => source.kind(),
            Self::Stop(source) => source.kind(),
            Self::Container { source, .. } => source.kind(),
        }
    }
}

/// What a look at the host found of a sandbox that was removed; nothing, if all is well.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    /// What is left, in words.
    pub left: Vec<String>,
}

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.left.is_empty() { f.write_str("nothing is left") } else { f.write_str(&self.left.join(", ")) }
    }
}

/// Removes a sandbox and its containers; one that is not there is removed.
pub async fn remove(app: &Arc<App>, id: &str) -> Result<(), RemoveError> {
    let sandbox = match app.index.sandboxes.find(id) {
        Ok(sandbox) => sandbox,
        Err(FindError::Missing { .. }) => return Ok(()),
        Err(error @ FindError::Ambiguous { .. }) => return Err(RemoveError::Find(error)),
    };
    let app = Arc::clone(app);
    app.changes.clone().run(async move { remove_known(&app, &sandbox).await }).await
}

/// Removes a sandbox that is there.
pub(crate) async fn remove_known(app: &Arc<App>, sandbox: &Arc<Sandbox>) -> Result<(), RemoveError> {
    stop_known(app, sandbox).instrument(info_span!("stop")).await.map_err(RemoveError::Stop)?;
    for container in app.containers_of(&sandbox.id) {
        container::remove_known(app, &container)
            .instrument(info_span!("remove_containers"))
            .await
            .map_err(|source| RemoveError::Container { id: container.id.clone(), source })?;
    }
    let _changing = sandbox.gate.write().instrument(info_span!("gate")).await;
    if matches!(sandbox.state(), SandboxState::Removed) {
        return Ok(());
    }
    tear_down(app, sandbox, Level::Gone).await.map_err(RemoveError::Stop)?;
    app.index.sandboxes.remove(sandbox);
    sandbox.publish(SandboxState::Removed);
    events::sandbox(app, sandbox, ContainerEventType::ContainerDeletedEvent);
    let receipt = receipt(app, sandbox).instrument(info_span!("receipt")).await;
    app.receipts.fetch_add(1, Ordering::Relaxed);
    if !receipt.left.is_empty() {
        app.receipts_with_remains.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(sandbox = %sandbox.id, left = %receipt, "pod sandbox is removed, but not all of it");
    }
    Ok(())
}

/// Looks for what the sandbox consisted of.
pub(crate) async fn receipt(app: &App, sandbox: &Sandbox) -> Receipt {
    let directory = sandbox.directory(&app.config.state);
    let pins = [
        ("network namespace", super::netns_pin(&sandbox.id)),
        ("user namespace", super::user_pin(&app.config.state, &sandbox.id)),
    ];
    let (path, own) = sandbox.cgroup(&app.config.cgroup.parent);
    let group = own.then(|| app.cgroups.group(&path));
    let has_address = match steps::attachment(sandbox) {
        Some(_) => app.network.is_attached(&sandbox.id).await,
        None => false,
    };
    blocking(move || {
        let mut left = Vec::new();
        if has_address {
            left.push("its network interface".to_owned());
        }
        if directory.exists() {
            left.push(format!("directory {}", directory.display()));
        }
        for (kind, pin) in &pins {
            if pin.exists() {
                left.push(format!("{kind} {}", pin.display()));
            }
        }
        if group.is_some_and(|group| group.exists()) {
            left.push(format!("control group {}", path.display()));
        }
        match vaina_sys::mount::table() {
            Ok(table) => left.extend(
                table
                    .iter()
                    .filter(|mount| {
                        mount.target.starts_with(&directory) || pins.iter().any(|(_, pin)| mount.target == *pin)
                    })
                    .map(|mount| format!("mount {}", mount.target.display())),
            ),
            Err(error) => left.push(format!("mounts, perhaps (the table can't be read: {error})")),
        }
        Receipt { left }
    })
    .await
}
