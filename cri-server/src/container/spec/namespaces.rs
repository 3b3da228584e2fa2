//! Namespaces: the pod's are joined by path, the mount namespace is the container's own.

use serde_json::{Value, json};

use super::{Input, PidNamespace};

pub(super) fn namespaces(input: &Input<'_>) -> Vec<Value> {
    let mut namespaces = vec![json!({ "type": "mount" })];
    match &input.pid {
        PidNamespace::Own => namespaces.push(json!({ "type": "pid" })),
        PidNamespace::Path(path) => namespaces.push(json!({ "type": "pid", "path": path })),
        PidNamespace::Host => {}
    }
    let user = input.user_namespace.map(|(_, pin)| pin);
    for (kind, path) in [("user", user), ("network", input.network), ("ipc", input.ipc), ("uts", input.uts)] {
        if let Some(path) = path {
            namespaces.push(json!({ "type": kind, "path": path }));
        }
    }
    // On v1 the mounts in the container would show the host's tree all the same.
    if input.host.cgroup_v2 && !input.is_privileged() {
        namespaces.push(json!({ "type": "cgroup" }));
    }
    namespaces
}
