//! PodSandboxConfig.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Pod, PodSpec, SeccompProfile};
use vaina_proto::cri;

use super::{Host, Identity, Paths, keys, resources, spec, text};

/// The kernel takes 64 bytes for a host name, and Kubernetes one less.
const MAX_HOSTNAME: usize = 63;

/// The config of the pod's only sandbox.
pub(in super::super) fn sandbox(pod: &Pod, paths: &Paths, host: &Host) -> cri::PodSandboxConfig {
    let spec = spec(pod);
    let identity = Identity::of(pod);
    let mut labels = pod.metadata.labels.clone().unwrap_or_default();
    labels.insert(keys::POD_NAME.to_owned(), identity.name.to_owned());
    labels.insert(keys::POD_NAMESPACE.to_owned(), identity.namespace.to_owned());
    labels.insert(keys::POD_UID.to_owned(), identity.uid.to_owned());
    let host_network = spec.host_network == Some(true);
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: identity.name.to_owned(),
            uid: identity.uid.to_owned(),
            namespace: identity.namespace.to_owned(),
            attempt: 0,
        }),
        // In the host's network a pod has the host's name, which the runtime knows best.
        hostname: if host_network { String::new() } else { hostname(&spec, identity.name) },
        log_directory: text(&log_directory(&paths.logs, identity)),
        dns_config: Some(dns(&spec, host)),
        port_mappings: if host_network { Vec::new() } else { ports(&spec) },
        labels,
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
        linux: Some(cri::LinuxPodSandboxConfig {
            // The server makes the pod's cgroup and takes it away; a kubelet would name one of its own here.
            cgroup_parent: String::new(),
            security_context: Some(security(&spec)),
            sysctls: sysctls(&spec),
            overhead: Some(cri::LinuxContainerResources::default()),
            resources: Some(resources::pod(&spec)),
        }),
        windows: None,
    }
}

/// `NAMESPACE_NAME_UID` below the directory of all pods' logs.
pub(in super::super) fn log_directory(logs: &Path, identity: Identity<'_>) -> PathBuf {
    logs.join(format!("{}_{}_{}", identity.namespace, identity.name, identity.uid))
}

/// Which resolver configuration of the host pods get: not one that names only servers on the host's loopback, which a pod
/// can't reach, when systemd-resolved keeps the real one beside it.
pub(in super::super) fn resolver(etc: &str, resolved: Option<&str>) -> String {
    let servers = parse_resolver(etc).servers;
    let is_loopback = |server: &String| server.starts_with("127.") || server == "::1";
    match resolved {
        Some(resolved) if !servers.is_empty() && servers.iter().all(is_loopback) => resolved.to_owned(),
        _ => etc.to_owned(),
    }
}

pub(super) fn hostname(spec: &PodSpec, name: &str) -> String {
    let name = spec.hostname.as_deref().filter(|hostname| !hostname.is_empty()).unwrap_or(name);
    // Names are ASCII, so this cuts no character.
    name.get(..MAX_HOSTNAME).unwrap_or(name).trim_end_matches(['-', '.']).to_owned()
}

pub(super) fn namespaces(spec: &PodSpec) -> cri::NamespaceOption {
    let node_or = |is_host: Option<bool>, other: cri::NamespaceMode| {
        if is_host == Some(true) { cri::NamespaceMode::Node } else { other }
    };
    let shared = spec.share_process_namespace == Some(true);
    let pid = if shared { cri::NamespaceMode::Pod } else { cri::NamespaceMode::Container };
    cri::NamespaceOption {
        network: node_or(spec.host_network, cri::NamespaceMode::Pod).into(),
        pid: node_or(spec.host_pid, pid).into(),
        ipc: node_or(spec.host_ipc, cri::NamespaceMode::Pod).into(),
        target_id: String::new(),
        userns_options: None,
    }
}

pub(super) fn groups(spec: &PodSpec) -> Vec<i64> {
    let context = spec.security_context.clone().unwrap_or_default();
    context.fs_group.into_iter().chain(context.supplemental_groups.unwrap_or_default()).collect()
}

pub(super) fn groups_policy(spec: &PodSpec) -> i32 {
    let policy = spec.security_context.as_ref().and_then(|context| context.supplemental_groups_policy.as_deref());
    match policy {
        Some("Strict") => cri::SupplementalGroupsPolicy::Strict.into(),
        _ => cri::SupplementalGroupsPolicy::Merge.into(),
    }
}

/// Kubernetes runs without a filter unless a profile is asked for.
pub(super) fn seccomp(profile: Option<&SeccompProfile>) -> cri::SecurityProfile {
    let profile_type = match profile.map(|profile| profile.type_.as_str()) {
        Some("RuntimeDefault") => cri::security_profile::ProfileType::RuntimeDefault,
        _ => cri::security_profile::ProfileType::Unconfined,
    };
    cri::SecurityProfile { profile_type: profile_type.into(), localhost_ref: String::new() }
}

fn security(spec: &PodSpec) -> cri::LinuxSandboxSecurityContext {
    let context = spec.security_context.clone().unwrap_or_default();
    let is_privileged = |container: &k8s_openapi::api::core::v1::Container| {
        container.security_context.as_ref().and_then(|context| context.privileged) == Some(true)
    };
    cri::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(spec)),
        run_as_user: context.run_as_user.map(|value| cri::Int64Value { value }),
        run_as_group: context.run_as_group.map(|value| cri::Int64Value { value }),
        supplemental_groups: groups(spec),
        supplemental_groups_policy: groups_policy(spec),
        privileged: spec.containers.iter().any(is_privileged),
        seccomp: Some(cri::SecurityProfile {
            profile_type: cri::security_profile::ProfileType::RuntimeDefault.into(),
            localhost_ref: String::new(),
        }),
        ..Default::default()
    }
}

fn sysctls(spec: &PodSpec) -> std::collections::BTreeMap<String, String> {
    let context = spec.security_context.clone().unwrap_or_default();
    let sysctls = context.sysctls.unwrap_or_default();
    sysctls.into_iter().map(|sysctl| (sysctl.name.replace('/', "."), sysctl.value)).collect()
}

fn ports(spec: &PodSpec) -> Vec<cri::PortMapping> {
    let ports = spec.containers.iter().flat_map(|container| container.ports.iter().flatten());
    ports
        .map(|port| cri::PortMapping {
            protocol: match port.protocol.as_deref() {
                Some("UDP") => cri::Protocol::Udp,
                Some("SCTP") => cri::Protocol::Sctp,
                _ => cri::Protocol::Tcp,
            }
            .into(),
            container_port: port.container_port,
            host_port: port.host_port.unwrap_or(0),
            host_ip: port.host_ip.clone().unwrap_or_default(),
        })
        .collect()
}

/// Without a cluster's DNS, ClusterFirst is Default, as in a kubelet that has none.
fn dns(spec: &PodSpec, host: &Host) -> cri::DnsConfig {
    let mut dns = match spec.dns_policy.as_deref() {
        Some("None") => cri::DnsConfig::default(),
        _ => parse_resolver(&host.resolver),
    };
    let Some(config) = &spec.dns_config else { return dns };
    let add = |list: &mut Vec<String>, more: Option<&Vec<String>>| {
        for value in more.into_iter().flatten() {
            if !list.contains(value) {
                list.push(value.clone());
            }
        }
    };
    add(&mut dns.servers, config.nameservers.as_ref());
    add(&mut dns.searches, config.searches.as_ref());
    for option in config.options.iter().flatten() {
        let name = option.name.as_deref().unwrap_or("");
        dns.options.retain(|other| other.split(':').next() != Some(name));
        dns.options.push(match option.value.as_deref().filter(|value| !value.is_empty()) {
            Some(value) => format!("{name}:{value}"),
            None => name.to_owned(),
        });
    }
    dns
}

/// resolv.conf(5): the last `search` counts, options add up.
fn parse_resolver(text: &str) -> cri::DnsConfig {
    let mut dns = cri::DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => dns.servers.extend(words.next().map(str::to_owned)),
            Some("search") => dns.searches = words.map(str::to_owned).collect(),
            Some("options") => dns.options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    dns
}
