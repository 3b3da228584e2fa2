//! Which fields of a pod we act on: one table.
//!
//! An entry allows the field and, when nothing longer begins with it, all below it. A field that is here must have an
//! effect in `convert`, `volumes` or the runner, or be one whose only meaning is already true of a pod without a cluster.

use super::tree::{Node, Place, Value, join};

const FIELDS: &[&str] = &[
    "apiVersion",
    "kind",
    "metadata.name",
    "metadata.namespace",
    "metadata.labels",
    "metadata.annotations",
    "spec.containers[].name",
    "spec.containers[].image",
    "spec.containers[].imagePullPolicy",
    "spec.containers[].command",
    "spec.containers[].args",
    "spec.containers[].workingDir",
    "spec.containers[].tty",
    "spec.containers[].env[].name",
    "spec.containers[].env[].value",
    "spec.containers[].env[].valueFrom.fieldRef.apiVersion",
    "spec.containers[].env[].valueFrom.fieldRef.fieldPath",
    "spec.containers[].ports[].name",
    "spec.containers[].ports[].containerPort",
    "spec.containers[].ports[].hostPort",
    "spec.containers[].ports[].hostIP",
    "spec.containers[].ports[].protocol",
    "spec.containers[].resources.limits.cpu",
    "spec.containers[].resources.limits.memory",
    "spec.containers[].resources.requests.cpu",
    "spec.containers[].resources.requests.memory",
    "spec.containers[].terminationMessagePath",
    "spec.containers[].terminationMessagePolicy",
    "spec.containers[].volumeMounts[].name",
    "spec.containers[].volumeMounts[].mountPath",
    "spec.containers[].volumeMounts[].mountPropagation",
    "spec.containers[].volumeMounts[].readOnly",
    "spec.containers[].securityContext.allowPrivilegeEscalation",
    "spec.containers[].securityContext.capabilities.add",
    "spec.containers[].securityContext.capabilities.drop",
    "spec.containers[].securityContext.privileged",
    "spec.containers[].securityContext.procMount",
    "spec.containers[].securityContext.readOnlyRootFilesystem",
    "spec.containers[].securityContext.runAsGroup",
    "spec.containers[].securityContext.runAsNonRoot",
    "spec.containers[].securityContext.runAsUser",
    "spec.containers[].securityContext.seccompProfile.type",
    "spec.volumes[].name",
    "spec.volumes[].emptyDir.medium",
    "spec.volumes[].emptyDir.sizeLimit",
    "spec.volumes[].hostPath.path",
    "spec.volumes[].hostPath.type",
    "spec.restartPolicy",
    "spec.terminationGracePeriodSeconds",
    "spec.hostNetwork",
    "spec.hostPID",
    "spec.hostIPC",
    "spec.shareProcessNamespace",
    "spec.hostname",
    "spec.hostAliases[].ip",
    "spec.hostAliases[].hostnames",
    "spec.dnsPolicy",
    "spec.dnsConfig.nameservers",
    "spec.dnsConfig.searches",
    "spec.dnsConfig.options[].name",
    "spec.dnsConfig.options[].value",
    "spec.runtimeClassName",
    // Only `false` is accepted (validate.rs): there are no services and no tokens here.
    "spec.enableServiceLinks",
    "spec.automountServiceAccountToken",
    "spec.os.name",
    "spec.securityContext.fsGroup",
    // By its definition without effect on emptyDir and hostPath, all that we have.
    "spec.securityContext.fsGroupChangePolicy",
    "spec.securityContext.runAsGroup",
    "spec.securityContext.runAsNonRoot",
    "spec.securityContext.runAsUser",
    "spec.securityContext.seccompProfile.type",
    "spec.securityContext.supplementalGroups",
    "spec.securityContext.supplementalGroupsPolicy",
    "spec.securityContext.sysctls[].name",
    "spec.securityContext.sysctls[].value",
];

/// The outermost fields of a document that say something and have no entry.
pub(super) fn missing(node: &Node) -> Vec<Place> {
    let mut places = Vec::new();
    walk(node, "", "", &mut places);
    places
}

/// The known field beside an unknown one that is most like it.
pub(super) fn similar(path: &str) -> Option<&'static str> {
    let pattern: String = strip_indexes(path);
    let (parent, name) = pattern.rsplit_once('.').unwrap_or(("", &pattern));
    let siblings = FIELDS.iter().filter_map(|field| {
        let rest = if parent.is_empty() { field } else { field.strip_prefix(parent)?.strip_prefix('.')? };
        rest.split(['.', '[']).next()
    });
    siblings
        .map(|sibling| (distance(&name.to_lowercase(), &sibling.to_lowercase()), sibling))
        .filter(|(distance, _)| *distance <= 2)
        .min()
        .map(|(_, sibling)| sibling)
}

/// Whether `path` is `parent` or a field below it.
pub(super) fn is_at_or_below(path: &str, parent: &str) -> bool {
    path.strip_prefix(parent).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

fn walk(node: &Node, path: &str, pattern: &str, places: &mut Vec<Place>) {
    if FIELDS.contains(&pattern) {
        return;
    }
    match &node.value {
        Value::Map(entries) => {
            for (key, value) in entries {
                let (path, pattern) = (join(path, &key.name), join(pattern, &key.name));
                if value.value.is_empty() {
                    continue;
                }
                if FIELDS.iter().any(|field| is_at_or_below(field, &pattern)) {
                    walk(value, &path, &pattern, places);
                } else {
                    places.push(Place { path, line: key.line });
                }
            }
        }
        Value::List(items) => {
            for (index, item) in items.iter().enumerate() {
                walk(item, &format!("{path}[{index}]"), &format!("{pattern}[]"), places);
            }
        }
        // A scalar where an object belongs: the typed value refuses it.
        Value::Null | Value::Bool(_) | Value::Int(_) | Value::Uint(_) | Value::Float(_) | Value::Text(_) => {}
    }
}

fn strip_indexes(path: &str) -> String {
    let mut inside = false;
    path.chars()
        .filter(|c| {
            let keep = !inside || *c == ']';
            inside = (inside || *c == '[') && *c != ']';
            keep
        })
        .collect()
}

/// Levenshtein distance; names are short.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let next = (diagonal + usize::from(x != *y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = row[j + 1];
            row[j + 1] = next;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_stripped() {
        assert_eq!(strip_indexes("spec.containers[12].env[0].x"), "spec.containers[].env[].x");
    }

    #[test]
    fn similar_names_are_found() {
        assert_eq!(similar("spec.containers[0].images0"), Some("image"));
        assert_eq!(similar("spec.containers[0].gpus"), None);
        assert_eq!(similar("spec.containers[0].imag"), Some("image"));
        assert_eq!(similar("spec.restartpolicy"), Some("restartPolicy"));
        assert_eq!(similar("spek"), Some("spec"));
        assert_eq!(similar("metadata.nam"), Some("name"));
    }
}
