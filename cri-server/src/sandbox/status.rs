//! `PodSandboxStatus`, from memory.

use std::sync::Arc;

use serde_json::{Value, json};
use vaina_proto::cri::{
    LinuxContainerResources, LinuxPodSandboxStatus, Namespace, PodIp, PodSandboxNetworkStatus, PodSandboxStatus,
    PodSandboxStatusResponse,
};

use super::{Sandbox, SandboxState, list};
use crate::{
    app::App,
    container,
    error::{Classify, Kind},
    index::FindError,
    info::{self, Info},
    work::now,
};

/// Why there is no status.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// No such sandbox.
    #[error(transparent)]
    Find(FindError),
}

impl Classify for StatusError {
    fn kind(&self) -> Kind {
        match self {
            Self::Find(source) => source.kind(),
        }
    }
}

/// The status of a sandbox; `verbose` adds what crictl and tools read from other runtimes.
pub fn status(app: &App, id: &str, verbose: bool) -> Result<PodSandboxStatusResponse, StatusError> {
    let sandbox = app.index.sandboxes.find(id).map_err(StatusError::Find)?;
    if matches!(sandbox.state(), SandboxState::Starting | SandboxState::Failed(_)) {
        return Err(StatusError::Find(FindError::Missing { what: "pod sandbox", id: id.to_owned() }));
    }
    Ok(PodSandboxStatusResponse {
        status: Some(message(&sandbox)),
        info: if verbose { self::verbose(app, &sandbox) } else { Info::new() },
        containers_statuses: container::messages(app, &sandbox.id),
        timestamp: now(),
    })
}

/// As CRI sees it.
pub fn message(sandbox: &Arc<Sandbox>) -> PodSandboxStatus {
    let state = sandbox.state();
    // A pod that stops has no address any more, whatever is still being taken down.
    let addresses = match &state {
        SandboxState::Ready(ready) => ready.addresses.clone(),
        _ => Vec::new(),
    };
    let mut addresses = addresses.iter().map(ToString::to_string);
    PodSandboxStatus {
        id: sandbox.id.to_string(),
        metadata: Some(sandbox.config.metadata.clone().unwrap_or_default()),
        state: list::state(&state).into(),
        created_at: sandbox.created_at,
        network: Some(PodSandboxNetworkStatus {
            ip: addresses.next().unwrap_or_default(),
            additional_ips: addresses.map(|ip| PodIp { ip }).collect(),
        }),
        linux: Some(LinuxPodSandboxStatus { namespaces: Some(Namespace { options: Some(sandbox.namespaces()) }) }),
        labels: sandbox.config.labels.clone(),
        annotations: sandbox.config.annotations.clone(),
        runtime_handler: sandbox.handler.clone(),
    }
}

/// Under the names of the runtime spec, where it has any.
fn resources_info(resources: &LinuxContainerResources) -> Value {
    json!({
        "cpu": {
            "period": resources.cpu_period,
            "quota": resources.cpu_quota,
            "shares": resources.cpu_shares,
            "cpus": resources.cpuset_cpus,
            "mems": resources.cpuset_mems,
        },
        "memory": {
            "limit": resources.memory_limit_in_bytes,
            "swap": resources.memory_swap_limit_in_bytes,
        },
        "unified": resources.unified,
    })
}

fn verbose(app: &App, sandbox: &Sandbox) -> Info {
    let state = sandbox.state();
    let (pid, reason) = match &state {
        SandboxState::Ready(ready) | SandboxState::Stopping(ready) => (ready.pid, None),
        SandboxState::Unknown(reason) => (0, Some(reason.to_string())),
        _ => (0, None),
    };
    // For `vaina exec`, whose streams go past the daemon.
    let shim = sandbox.shim().map(|shim| shim.address().to_owned());
    let netns = sandbox.netns().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
    let (resources, overhead) = sandbox.resources();
    let handler = app.handlers.get(&sandbox.handler);
    info::one(&json!({
        "pid": pid,
        "processStatus": state.word(),
        "netNamespaceClosed": pid == 0,
        "runtimeHandler": sandbox.handler,
        "runtimeType": handler.map(info::runtime_type),
        "runtimeOptions": handler.map(info::runtime_options),
        "config": info::message("PodSandboxConfig", &sandbox.config),
        "resources": resources.as_ref().map(resources_info),
        "overhead": overhead.as_ref().map(resources_info),
        "cniResult": network(&state, &netns),
        "shimAddress": shim,
        "unknownReason": reason,
        // Where other runtimes keep the path, and tools look for it.
        "runtimeSpec": {
            "linux": { "namespaces": [{ "type": "network", "path": netns }] },
        },
    }))
}

/// The pod's interface in the form of containerd's network library; none with the node's network.
fn network(state: &SandboxState, netns: &str) -> Value {
    match state {
        SandboxState::Ready(ready) if !ready.addresses.is_empty() => {
            let addresses: Vec<Value> = ready.addresses.iter().map(|address| json!({ "IP": address })).collect();
            json!({ "Interfaces": { "eth0": { "IPConfigs": addresses, "Sandbox": netns } } })
        }
        _ => Value::Null,
    }
}
