//! What the API server checks of a pod before anything runs, for the fields that we support. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::LazyLock,
};

use k8s_openapi::api::core::v1::{
    Container, Pod, PodSecurityContext, PodSpec, ResourceRequirements, SeccompProfile, SecurityContext, Volume,
};

use super::super::quantity::Quantity;

/// Problems found: path and what is wrong there.
#[derive(Debug, Default)]
pub(super) struct Report(pub(super) Vec<(String, String)>);

impl Report {
    fn add(&mut self, path: impl Into<String>, what: impl Into<String>) {
        self.0.push((path.into(), what.into()));
    }

    fn required(&mut self, path: &str, value: &str) -> bool {
        if value.is_empty() {
            self.add(path, "required");
        }
        !value.is_empty()
    }

    fn one_of(&mut self, path: &str, value: Option<&String>, choices: &[&str]) {
        if let Some(value) = value.filter(|value| !choices.contains(&value.as_str())) {
            self.add(path, format!("unsupported value {value:?}: expected {}", choices.join(", ")));
        }
    }

    fn id(&mut self, path: &str, value: Option<i64>) {
        if let Some(value) = value.filter(|value| !(0..=i64::from(i32::MAX)).contains(value)) {
            self.add(path, format!("{value} must be between 0 and 2147483647"));
        }
    }
}

/// Checks a whole pod.
pub(super) fn pod(pod: &Pod, report: &mut Report) {
    let name = pod.metadata.name.as_deref().unwrap_or("");
    if report.required("metadata.name", name) && !is_subdomain(name) {
        report.add("metadata.name", format!("{name:?} {SUBDOMAIN}"));
    }
    if let Some(namespace) = pod.metadata.namespace.as_deref().filter(|namespace| !is_label(namespace)) {
        report.add("metadata.namespace", format!("{namespace:?} {LABEL}"));
    }
    for (key, value) in pod.metadata.labels.iter().flatten() {
        let path = format!("metadata.labels.{key}");
        if !is_qualified_name(key) {
            report.add(&path, format!("the key {key:?} {QUALIFIED}"));
        }
        if !(value.is_empty() || is_name_part(value)) {
            report.add(&path, format!("the value {value:?} {NAME_PART}"));
        }
    }
    for key in pod.metadata.annotations.iter().flatten().map(|(key, _)| key) {
        if !is_qualified_name(&key.to_lowercase()) {
            report.add(format!("metadata.annotations.{key}"), format!("the key {key:?} {QUALIFIED}"));
        }
    }
    match &pod.spec {
        Some(spec) => self::spec(spec, report),
        None => report.add("spec", "required"),
    }
}

fn spec(spec: &PodSpec, report: &mut Report) {
    report.one_of("spec.restartPolicy", spec.restart_policy.as_ref(), &["Always", "OnFailure", "Never"]);
    report.one_of(
        "spec.dnsPolicy",
        spec.dns_policy.as_ref(),
        &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"],
    );
    report.one_of("spec.os.name", spec.os.as_ref().map(|os| &os.name), &["linux"]);
    if let Some(grace) = spec.termination_grace_period_seconds.filter(|grace| *grace < 0) {
        report.add("spec.terminationGracePeriodSeconds", format!("{grace} must not be negative"));
    }
    if let Some(hostname) = spec.hostname.as_deref().filter(|hostname| !hostname.is_empty() && !is_label(hostname)) {
        report.add("spec.hostname", format!("{hostname:?} {LABEL}"));
    }
    if let Some(name) = spec.runtime_class_name.as_deref().filter(|name| !name.is_empty() && !is_subdomain(name)) {
        report.add("spec.runtimeClassName", format!("{name:?} {SUBDOMAIN}"));
    }
    for (path, value) in [
        ("spec.enableServiceLinks", spec.enable_service_links),
        ("spec.automountServiceAccountToken", spec.automount_service_account_token),
    ] {
        if value == Some(true) {
            report.add(path, "only false is supported: there is no cluster here");
        }
    }
    if spec.host_pid == Some(true) && spec.share_process_namespace == Some(true) {
        report.add("spec.shareProcessNamespace", "must not be set together with hostPID");
    }
    let config = spec.dns_config.as_ref();
    let nameservers = config.and_then(|config| config.nameservers.as_deref()).unwrap_or_default();
    if spec.dns_policy.as_deref() == Some("None") && nameservers.is_empty() {
        report.add("spec.dnsConfig.nameservers", "required when dnsPolicy is None");
    }
    if nameservers.len() > 3 {
        report.add("spec.dnsConfig.nameservers", "at most 3 are allowed");
    }
    for (index, server) in nameservers.iter().enumerate() {
        if server.parse::<IpAddr>().is_err() {
            report.add(format!("spec.dnsConfig.nameservers[{index}]"), format!("{server:?} is no IP address"));
        }
    }
    for (index, alias) in spec.host_aliases.iter().flatten().enumerate() {
        let path = format!("spec.hostAliases[{index}]");
        if alias.ip.parse::<IpAddr>().is_err() {
            report.add(format!("{path}.ip"), format!("{:?} is no IP address", alias.ip));
        }
        for (index, name) in alias.hostnames.iter().flatten().enumerate().filter(|(_, name)| !is_subdomain(name)) {
            report.add(format!("{path}.hostnames[{index}]"), format!("{name:?} {SUBDOMAIN}"));
        }
    }
    if let Some(context) = &spec.security_context {
        pod_security(context, spec, report);
    }
    let volumes = volumes(spec.volumes.as_deref().unwrap_or_default(), report);
    if spec.containers.is_empty() {
        report.add("spec.containers", "required: a pod has at least one container");
    }
    let mut names = BTreeSet::new();
    for (index, container) in spec.containers.iter().enumerate() {
        let path = format!("spec.containers[{index}]");
        if report.required(&format!("{path}.name"), &container.name) {
            if !is_label(&container.name) {
                report.add(format!("{path}.name"), format!("{:?} {LABEL}", container.name));
            }
            if !names.insert(container.name.as_str()) {
                report.add(format!("{path}.name"), format!("duplicate value {:?}", container.name));
            }
        }
        self::container(container, &path, &volumes, report);
    }
    ports(spec, report);
}

fn container(container: &Container, path: &str, volumes: &BTreeSet<&str>, report: &mut Report) {
    let image = container.image.as_deref().unwrap_or("");
    if report.required(&format!("{path}.image"), image) && image.trim() != image {
        report.add(format!("{path}.image"), "must not have leading or trailing whitespace");
    }
    report.one_of(
        &format!("{path}.imagePullPolicy"),
        container.image_pull_policy.as_ref(),
        &["Always", "IfNotPresent", "Never"],
    );
    report.one_of(
        &format!("{path}.terminationMessagePolicy"),
        container.termination_message_policy.as_ref(),
        &["File", "FallbackToLogsOnError"],
    );
    if let Some(message_path) =
        container.termination_message_path.as_deref().filter(|p| !p.is_empty() && !p.starts_with('/'))
    {
        report.add(format!("{path}.terminationMessagePath"), format!("{message_path:?} must be absolute"));
    }
    for (index, env) in container.env.iter().flatten().enumerate() {
        let path = format!("{path}.env[{index}]");
        if report.required(&format!("{path}.name"), &env.name)
            && !env.name.chars().all(|c| (' '..='~').contains(&c) && c != '=')
        {
            report.add(format!("{path}.name"), format!("{:?} must be printable ASCII without \"=\"", env.name));
        }
        let Some(from) = &env.value_from else { continue };
        if env.value.as_deref().is_some_and(|value| !value.is_empty()) {
            report.add(format!("{path}.valueFrom"), "must not be set together with value");
        }
        if let Some(field) = &from.field_ref
            && !is_field_path(&field.field_path)
        {
            let known = "metadata.name, metadata.namespace, metadata.uid, metadata.labels['KEY'], \
                metadata.annotations['KEY'], spec.nodeName, status.podIP";
            let what = format!("{:?} is not supported: expected one of {known}", field.field_path);
            report.add(format!("{path}.valueFrom.fieldRef.fieldPath"), what);
        }
    }
    let mut paths = BTreeSet::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let path = format!("{path}.volumeMounts[{index}]");
        if report.required(&format!("{path}.name"), &mount.name) && !volumes.contains(mount.name.as_str()) {
            report.add(format!("{path}.name"), format!("no volume {:?} in spec.volumes", mount.name));
        }
        if report.required(&format!("{path}.mountPath"), &mount.mount_path) {
            if mount.mount_path.contains(':') {
                report.add(format!("{path}.mountPath"), "must not contain \":\"");
            }
            if !paths.insert(mount.mount_path.trim_end_matches('/')) {
                report.add(format!("{path}.mountPath"), format!("duplicate value {:?}", mount.mount_path));
            }
        }
        report.one_of(
            &format!("{path}.mountPropagation"),
            mount.mount_propagation.as_ref(),
            &["None", "HostToContainer", "Bidirectional"],
        );
        let is_privileged = container.security_context.as_ref().and_then(|c| c.privileged) == Some(true);
        if mount.mount_propagation.as_deref() == Some("Bidirectional") && !is_privileged {
            report.add(format!("{path}.mountPropagation"), "Bidirectional is for privileged containers only");
        }
    }
    if let Some(resources) = &container.resources {
        self::resources(resources, &format!("{path}.resources"), report);
    }
    if let Some(context) = &container.security_context {
        container_security(context, &format!("{path}.securityContext"), report);
    }
}

fn ports(spec: &PodSpec, report: &mut Report) {
    let host_network = spec.host_network == Some(true);
    let mut taken = BTreeSet::new();
    for (index, container) in spec.containers.iter().enumerate() {
        let mut names = BTreeSet::new();
        for (port_index, port) in container.ports.iter().flatten().enumerate() {
            let path = format!("spec.containers[{index}].ports[{port_index}]");
            if !(1..=65535).contains(&port.container_port) {
                report.add(
                    format!("{path}.containerPort"),
                    format!("{} must be between 1 and 65535", port.container_port),
                );
            }
            report.one_of(&format!("{path}.protocol"), port.protocol.as_ref(), &["TCP", "UDP", "SCTP"]);
            if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
                if !is_port_name(name) {
                    let what = "must be at most 15 lower case letters, digits and single \"-\", with a letter";
                    report.add(format!("{path}.name"), format!("{name:?} {what}"));
                }
                if !names.insert(name) {
                    report.add(format!("{path}.name"), format!("duplicate value {name:?}"));
                }
            }
            let host_ip = port.host_ip.as_deref().unwrap_or("");
            if !host_ip.is_empty() && host_ip.parse::<IpAddr>().is_err() {
                report.add(format!("{path}.hostIP"), format!("{host_ip:?} is no IP address"));
            }
            let Some(host_port) = port.host_port.filter(|port| *port != 0) else { continue };
            if !(1..=65535).contains(&host_port) {
                report.add(format!("{path}.hostPort"), format!("{host_port} must be between 1 and 65535"));
            }
            if host_network && host_port != port.container_port {
                report.add(format!("{path}.hostPort"), "must be the containerPort in the host's network");
            }
            let host_ip = if host_ip == "0.0.0.0" { "" } else { host_ip };
            if !taken.insert((host_port, port.protocol.as_deref().unwrap_or("TCP"), host_ip)) {
                report.add(format!("{path}.hostPort"), format!("duplicate value {host_port}"));
            }
        }
    }
}

fn volumes<'a>(volumes: &'a [Volume], report: &mut Report) -> BTreeSet<&'a str> {
    let mut names = BTreeSet::new();
    for (index, volume) in volumes.iter().enumerate() {
        let path = format!("spec.volumes[{index}]");
        if report.required(&format!("{path}.name"), &volume.name) {
            if !is_label(&volume.name) {
                report.add(format!("{path}.name"), format!("{:?} {LABEL}", volume.name));
            }
            if !names.insert(volume.name.as_str()) {
                report.add(format!("{path}.name"), format!("duplicate value {:?}", volume.name));
            }
        }
        match (&volume.empty_dir, &volume.host_path) {
            (Some(_), Some(_)) => report.add(&path, "must have one source, not two"),
            // An unsupported source is reported by its name already.
            (None, None) if volume == &(Volume { name: volume.name.clone(), ..Volume::default() }) => {
                report.add(&path, "must have a source: emptyDir or hostPath");
            }
            (None, None) => {}
            (Some(source), None) => {
                report.one_of(&format!("{path}.emptyDir.medium"), source.medium.as_ref(), &["", "Memory"]);
                if let Some(limit) = &source.size_limit {
                    let path = format!("{path}.emptyDir.sizeLimit");
                    match Quantity::try_from(limit) {
                        Err(()) => report.add(path, format!("{:?} is no quantity", limit.0)),
                        Ok(limit) if limit.is_negative() => report.add(path, "must not be negative"),
                        Ok(limit) if !limit.is_zero() && source.medium.as_deref() != Some("Memory") => {
                            report.add(path, "is not supported yet without medium Memory");
                        }
                        Ok(_) => {}
                    }
                }
            }
            (None, Some(source)) => {
                let field = format!("{path}.hostPath.path");
                if report.required(&field, &source.path) {
                    if !source.path.starts_with('/') {
                        report.add(&field, format!("{:?} must be absolute", source.path));
                    }
                    if source.path.split('/').any(|part| part == "..") {
                        report.add(&field, "must not contain \"..\"");
                    }
                }
                report.one_of(
                    &format!("{path}.hostPath.type"),
                    source.type_.as_ref(),
                    &[
                        "",
                        "DirectoryOrCreate",
                        "Directory",
                        "FileOrCreate",
                        "File",
                        "Socket",
                        "CharDevice",
                        "BlockDevice",
                    ],
                );
            }
        }
    }
    names
}

fn resources(resources: &ResourceRequirements, path: &str, report: &mut Report) {
    let mut read = |field: &str, values: Option<&BTreeMap<String, _>>| {
        let mut known = BTreeMap::new();
        for (name, text) in values.into_iter().flatten() {
            match Quantity::try_from(text) {
                Err(()) => report.add(format!("{path}.{field}.{name}"), format!("{:?} is no quantity", text.0)),
                Ok(value) if value.is_negative() => {
                    report.add(format!("{path}.{field}.{name}"), "must not be negative")
                }
                Ok(value) => {
                    known.insert(name.clone(), value);
                }
            }
        }
        known
    };
    let limits = read("limits", resources.limits.as_ref());
    let requests = read("requests", resources.requests.as_ref());
    for (name, request) in &requests {
        if limits.get(name).is_some_and(|limit| request > limit) {
            report.add(format!("{path}.requests.{name}"), format!("must not be above the {name} limit"));
        }
    }
}

fn pod_security(context: &PodSecurityContext, spec: &PodSpec, report: &mut Report) {
    let path = "spec.securityContext";
    report.id(&format!("{path}.runAsUser"), context.run_as_user);
    report.id(&format!("{path}.runAsGroup"), context.run_as_group);
    report.id(&format!("{path}.fsGroup"), context.fs_group);
    for (index, group) in context.supplemental_groups.iter().flatten().enumerate() {
        report.id(&format!("{path}.supplementalGroups[{index}]"), Some(*group));
    }
    report.one_of(
        &format!("{path}.supplementalGroupsPolicy"),
        context.supplemental_groups_policy.as_ref(),
        &["Merge", "Strict"],
    );
    report.one_of(
        &format!("{path}.fsGroupChangePolicy"),
        context.fs_group_change_policy.as_ref(),
        &["Always", "OnRootMismatch"],
    );
    seccomp(context.seccomp_profile.as_ref(), path, report);
    let mut names = BTreeSet::new();
    for (index, sysctl) in context.sysctls.iter().flatten().enumerate() {
        let path = format!("{path}.sysctls[{index}].name");
        let name = sysctl.name.replace('/', ".");
        if !report.required(&path, &name) {
            continue;
        }
        if !names.insert(name.clone()) {
            report.add(&path, format!("duplicate value {name:?}"));
        }
        let is_net = name.starts_with("net.");
        let is_ipc = name == "kernel.sem"
            || ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|prefix| name.starts_with(prefix));
        if !is_net && !is_ipc {
            report.add(&path, format!("{name:?} belongs to the whole host, not to a pod"));
        } else if is_net && spec.host_network == Some(true) {
            report.add(&path, format!("{name:?} must not be set with hostNetwork"));
        } else if is_ipc && spec.host_ipc == Some(true) {
            report.add(&path, format!("{name:?} must not be set with hostIPC"));
        }
    }
}

fn container_security(context: &SecurityContext, path: &str, report: &mut Report) {
    report.id(&format!("{path}.runAsUser"), context.run_as_user);
    report.id(&format!("{path}.runAsGroup"), context.run_as_group);
    if context.proc_mount.as_deref().is_some_and(|mount| mount != "Default") {
        report.add(format!("{path}.procMount"), "only Default is supported yet");
    }
    seccomp(context.seccomp_profile.as_ref(), path, report);
    let added = context.capabilities.as_ref().and_then(|c| c.add.as_deref()).unwrap_or_default();
    if context.allow_privilege_escalation == Some(false) {
        let field = format!("{path}.allowPrivilegeEscalation");
        if context.privileged == Some(true) {
            report.add(&field, "must not be false for a privileged container");
        }
        if added.iter().any(|name| matches!(name.as_str(), "SYS_ADMIN" | "CAP_SYS_ADMIN")) {
            report.add(&field, "must not be false when SYS_ADMIN is added");
        }
    }
    if let Some(capabilities) = &context.capabilities {
        for (field, names) in [("add", &capabilities.add), ("drop", &capabilities.drop)] {
            for (index, name) in names.iter().flatten().enumerate().filter(|(_, name)| !is_capability(name)) {
                report.add(format!("{path}.capabilities.{field}[{index}]"), format!("{name:?} is no capability"));
            }
        }
    }
}

fn seccomp(profile: Option<&SeccompProfile>, path: &str, report: &mut Report) {
    let path = format!("{path}.seccompProfile.type");
    match profile.map(|profile| profile.type_.as_str()) {
        None | Some("RuntimeDefault" | "Unconfined") => {}
        Some("Localhost") => report.add(path, "Localhost is not supported yet"),
        Some(other) => report.add(path, format!("unsupported value {other:?}: expected RuntimeDefault, Unconfined")),
    }
}

const SUBDOMAIN: &str = "must be a DNS name: lower case letters, digits, \"-\" and \".\", at most 253";
const LABEL: &str = "must be a DNS label: lower case letters, digits and \"-\", at most 63";
const NAME_PART: &str =
    "must be letters, digits, \"-\", \"_\" and \".\", at most 63, with a letter or digit at both ends";
const QUALIFIED: &str = "must be a name, optionally after a DNS name and \"/\"";

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let is_end = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    text.len() <= 63
        && is_end(bytes.first())
        && is_end(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-')
}

fn is_subdomain(text: &str) -> bool {
    // Only the whole has a limit; the API server does not hold the parts to 63.
    text.len() <= 253
        && text.split('.').all(|part| {
            let bytes = part.as_bytes();
            let is_end = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
            is_end(bytes.first())
                && is_end(bytes.last())
                && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        })
}

fn is_name_part(text: &str) -> bool {
    let bytes = text.as_bytes();
    text.len() <= 63
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

fn is_qualified_name(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => is_subdomain(prefix) && is_name_part(name),
        None => is_name_part(text),
    }
}

fn is_port_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    text.len() <= 15 && is_label(text) && bytes.iter().any(u8::is_ascii_lowercase) && !text.contains("--")
}

fn is_field_path(path: &str) -> bool {
    matches!(
        path,
        "metadata.name" | "metadata.namespace" | "metadata.uid" | "spec.nodeName" | "status.podIP" | "status.podIPs"
    ) || ["metadata.labels['", "metadata.annotations['"].iter().any(|prefix| {
        path.strip_prefix(prefix).and_then(|rest| rest.strip_suffix("']")).is_some_and(|key| !key.is_empty())
    })
}

fn is_capability(name: &str) -> bool {
    static NAMES: LazyLock<BTreeSet<&str>> = LazyLock::new(|| {
        "ALL AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND BPF CHECKPOINT_RESTORE CHOWN DAC_OVERRIDE \
         DAC_READ_SEARCH FOWNER FSETID IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE MKNOD \
         NET_ADMIN NET_BIND_SERVICE NET_BROADCAST NET_RAW PERFMON SETFCAP SETGID SETPCAP SETUID SYSLOG SYS_ADMIN \
         SYS_BOOT SYS_CHROOT SYS_MODULE SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME \
         SYS_TTY_CONFIG WAKE_ALARM"
            .split_whitespace()
            .collect()
    });
    NAMES.contains(name.strip_prefix("CAP_").unwrap_or(name))
}

#[cfg(test)]
mod tests {
    use super::super::parse;

    fn spec_problems(spec: &str) -> Vec<String> {
        let text = format!("{{apiVersion: v1, kind: Pod, metadata: {{name: web}}, spec: {{{spec}}}}}");
        match parse(&text) {
            Ok(_) => Vec::new(),
            Err(problems) => problems.into_iter().map(|problem| problem.message).collect(),
        }
    }

    fn container_problems(container: &str) -> Vec<String> {
        spec_problems(&format!(
            "containers: [{{name: a, image: i, {container}}}], volumes: [{{name: v, emptyDir: {{}}}}]"
        ))
    }

    #[test]
    fn containers_are_checked() {
        for (container, problem) in [
            (
                "imagePullPolicy: Sometimes",
                "imagePullPolicy: unsupported value \"Sometimes\": expected Always, IfNotPresent, Never",
            ),
            ("env: [{name: 'A=B'}]", "env[0].name: \"A=B\" must be printable ASCII without \"=\""),
            ("env: [{value: x}]", "env[0].name: required"),
            ("ports: [{containerPort: 0}]", "ports[0].containerPort: 0 must be between 1 and 65535"),
            ("ports: [{containerPort: 1, hostPort: 70000}]", "ports[0].hostPort: 70000 must be between 1 and 65535"),
            (
                "ports: [{containerPort: 1, protocol: tcp}]",
                "ports[0].protocol: unsupported value \"tcp\": expected TCP, UDP, SCTP",
            ),
            (
                "ports: [{containerPort: 1, name: a}, {containerPort: 2, name: a}]",
                "ports[1].name: duplicate value \"a\"",
            ),
            (
                "ports: [{containerPort: 1, hostPort: 8}, {containerPort: 2, hostPort: 8}]",
                "ports[1].hostPort: duplicate value 8",
            ),
            ("volumeMounts: [{name: w, mountPath: /x}]", "volumeMounts[0].name: no volume \"w\" in spec.volumes"),
            (
                "volumeMounts: [{name: v, mountPath: /x}, {name: v, mountPath: /x/}]",
                "volumeMounts[1].mountPath: duplicate value \"/x/\"",
            ),
            (
                "volumeMounts: [{name: v, mountPath: /x, mountPropagation: Bidirectional}]",
                "volumeMounts[0].mountPropagation: Bidirectional is for privileged containers only",
            ),
            ("volumeMounts: [{name: v, mountPath: /x, subPath: y}]", "volumeMounts[0].subPath is not supported yet"),
            ("resources: {limits: {cpu: fast}}", "resources.limits.cpu: \"fast\" is no quantity"),
            ("resources: {limits: {cpu: -1}}", "resources.limits.cpu: must not be negative"),
            (
                "resources: {limits: {cpu: 1}, requests: {cpu: 1001m}}",
                "resources.requests.cpu: must not be above the cpu limit",
            ),
            ("resources: {limits: {nvidia.com/gpu: 1}}", "resources.limits.nvidia.com/gpu is not supported yet"),
            ("securityContext: {runAsUser: -1}", "securityContext.runAsUser: -1 must be between 0 and 2147483647"),
            (
                "securityContext: {capabilities: {add: [NET_ADMINS]}}",
                "securityContext.capabilities.add[0]: \"NET_ADMINS\" is no capability",
            ),
            (
                "securityContext: {privileged: true, allowPrivilegeEscalation: false}",
                "securityContext.allowPrivilegeEscalation: must not be false for a privileged container",
            ),
            (
                "securityContext: {seccompProfile: {type: Localhost}}",
                "securityContext.seccompProfile.type: Localhost is not supported yet",
            ),
            ("stdin: true", "stdin is not supported yet"),
            ("lifecycle: {preStop: {sleep: {seconds: 1}}}", "lifecycle is not supported yet"),
        ] {
            assert_eq!(container_problems(container), [format!("spec.containers[0].{problem}")], "{container}");
        }
        for container in [
            "imagePullPolicy: Never",
            "env: [{name: 'with.dots-and space', value: x}, {name: A, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]",
            "ports: [{containerPort: 1, hostPort: 8}, {containerPort: 1, hostPort: 8, protocol: UDP}, {containerPort: 2, hostPort: 8, hostIP: 127.0.0.1}]",
            "resources: {limits: {cpu: 1, memory: 1Gi}, requests: {cpu: 0.5}}",
            "securityContext: {capabilities: {add: [CAP_NET_ADMIN, SYS_TIME], drop: [ALL]}, procMount: Default}",
            "volumeMounts: [{name: v, mountPath: /x, readOnly: true}, {name: v, mountPath: /y}]",
            "tty: true, stdin: null, livenessProbe: {}",
        ] {
            assert_eq!(container_problems(container), Vec::<String>::new(), "{container}");
        }
    }

    #[test]
    fn pods_are_checked() {
        let containers = "containers: [{name: a, image: i}]";
        for (spec, problem) in [
            ("", "spec: required"),
            ("containers: []", "spec: required"),
            ("hostNetwork: true", "spec.containers: required: a pod has at least one container"),
            (
                "containers: [{name: A, image: i}]",
                "spec.containers[0].name: \"A\" must be a DNS label: lower case letters, digits and \"-\", at most 63",
            ),
            (
                "containers: [{name: a, image: i}, {name: a, image: i}]",
                "spec.containers[1].name: duplicate value \"a\"",
            ),
            ("containers: [{name: a}]", "spec.containers[0].image: required"),
        ] {
            let found = spec_problems(spec);
            // An object without a word may be written as such: then only its content is missing.
            if problem == "spec: required" {
                assert_eq!(found, ["spec.containers: required: a pod has at least one container"], "{spec}");
            } else {
                assert_eq!(found, [problem], "{spec}");
            }
        }
        for (spec, problem) in [
            (
                "restartPolicy: Sometimes",
                "spec.restartPolicy: unsupported value \"Sometimes\": expected Always, OnFailure, Never",
            ),
            ("terminationGracePeriodSeconds: -3", "spec.terminationGracePeriodSeconds: -3 must not be negative"),
            (
                "hostPID: true, shareProcessNamespace: true",
                "spec.shareProcessNamespace: must not be set together with hostPID",
            ),
            ("dnsPolicy: None", "spec.dnsConfig.nameservers: required when dnsPolicy is None"),
            (
                "hostname: a.b",
                "spec.hostname: \"a.b\" must be a DNS label: lower case letters, digits and \"-\", at most 63",
            ),
            ("volumes: [{name: v}]", "spec.volumes[0]: must have a source: emptyDir or hostPath"),
            ("volumes: [{name: v, secret: {secretName: s}}]", "spec.volumes[0].secret is not supported yet"),
            (
                "volumes: [{name: v, emptyDir: {}, hostPath: {path: /x}}]",
                "spec.volumes[0]: must have one source, not two",
            ),
            (
                "volumes: [{name: v, emptyDir: {sizeLimit: 1Gi}}]",
                "spec.volumes[0].emptyDir.sizeLimit: is not supported yet without medium Memory",
            ),
            (
                "volumes: [{name: v, hostPath: {path: /x/../y}}]",
                "spec.volumes[0].hostPath.path: must not contain \"..\"",
            ),
            (
                "volumes: [{name: v, hostPath: {path: /x, type: Dir}}]",
                "spec.volumes[0].hostPath.type: unsupported value \"Dir\": expected , DirectoryOrCreate, Directory, FileOrCreate, File, Socket, CharDevice, BlockDevice",
            ),
            (
                "securityContext: {sysctls: [{name: vm.swappiness, value: '1'}]}",
                "spec.securityContext.sysctls[0].name: \"vm.swappiness\" belongs to the whole host, not to a pod",
            ),
            (
                "hostNetwork: true, securityContext: {sysctls: [{name: net.core.somaxconn, value: '1'}]}",
                "spec.securityContext.sysctls[0].name: \"net.core.somaxconn\" must not be set with hostNetwork",
            ),
            ("nodeName: n", "spec.nodeName is not supported yet"),
        ] {
            assert_eq!(spec_problems(&format!("{containers}, {spec}")), [problem], "{spec}");
        }
    }

    #[test]
    fn metadata_is_checked() {
        let text = "{apiVersion: v1, kind: Pod, metadata: {name: Web_1, namespace: a.b, labels: {-x: y, z: 'no good'}, \
            annotations: {/: x}, generateName: g}, spec: {containers: [{name: a, image: i}]}}";
        let found: Vec<_> = parse(text).expect_err("accepted").into_iter().map(|problem| problem.message).collect();
        assert_eq!(found.len(), 6, "{found:#?}");
    }
}
