//! ContainerConfig.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use serde_json::json;
use vaina_proto::cri;

use super::{ConvertError, Host, Identity, Paths, env, keys, message_path, resources, sandbox, spec, text};

/// What a runtime hides of /proc and /sys unless a container is privileged.
const MASKED: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// An image that is on the machine.
#[derive(Debug, Clone, Default)]
pub(in super::super) struct Image {
    /// What the runtime calls it.
    pub(in super::super) reference: String,
    /// The user of its config, when that is a number.
    pub(in super::super) uid: Option<i64>,
    /// The user of its config, when that is a name.
    pub(in super::super) username: String,
}

/// The config of one attempt at a container.
pub(in super::super) fn container(
    pod: &Pod,
    container: &Container,
    attempt: u32,
    image: &Image,
    addresses: &[String],
    paths: &Paths,
    host: &Host,
) -> Result<cri::ContainerConfig, ConvertError> {
    let spec = spec(pod);
    check_non_root(container, &spec, image)?;
    let environment = env::environment(container, pod, host, addresses);
    let expand = |words: &Option<Vec<String>>| {
        words.iter().flatten().map(|word| env::expand(word, &environment)).collect::<Vec<_>>()
    };
    let identity = Identity::of(pod);
    let labels = [
        (keys::CONTAINER_NAME, container.name.as_str()),
        (keys::POD_NAME, identity.name),
        (keys::POD_NAMESPACE, identity.namespace),
        (keys::POD_UID, identity.uid),
    ];
    Ok(cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: container.name.clone(), attempt }),
        image: Some(cri::ImageSpec {
            image: image.reference.clone(),
            user_specified_image: container.image.clone().unwrap_or_default(),
            ..Default::default()
        }),
        command: expand(&container.command),
        args: expand(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        mounts: mounts(container, &spec, attempt, paths),
        labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        annotations: annotations(container, &spec, attempt),
        log_path: format!("{}/{attempt}.log", container.name),
        tty: container.tty.unwrap_or(false),
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(resources::container(container, &spec, host)),
            security_context: Some(security(container, &spec)),
        }),
        envs: environment,
        ..Default::default()
    })
}

fn annotations(container: &Container, spec: &PodSpec, attempt: u32) -> std::collections::BTreeMap<String, String> {
    let policy = container.termination_message_policy.as_deref().unwrap_or("File");
    let mut annotations: std::collections::BTreeMap<String, String> = [
        (keys::CONTAINER_HASH, hash(container)),
        (keys::RESTART_COUNT, attempt.to_string()),
        (keys::MESSAGE_PATH, message_path(container).to_owned()),
        (keys::MESSAGE_POLICY, policy.to_owned()),
        (keys::GRACE_PERIOD, super::grace_period(spec).to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    let ports: Vec<_> = container.ports.iter().flatten().collect();
    if !ports.is_empty() {
        annotations.insert(keys::CONTAINER_PORTS.to_owned(), json!(ports).to_string());
    }
    annotations
}

/// Tells two definitions of a container apart; 32-bit FNV-1a over its JSON, in hex, the kubelet's form.
fn hash(container: &Container) -> String {
    let text = serde_json::to_vec(container).unwrap_or_default();
    let hash = text.iter().fold(0x811c_9dc5u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    format!("{hash:x}")
}

fn mounts(container: &Container, spec: &PodSpec, attempt: u32, paths: &Paths) -> Vec<cri::Mount> {
    let volumes = spec.volumes.as_deref().unwrap_or_default();
    let mut mounts = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let Some(volume) = volumes.iter().find(|volume| volume.name == mount.name) else { continue };
        let host_path = match &volume.host_path {
            Some(source) => source.path.clone(),
            None => text(&paths.volume(&volume.name)),
        };
        let propagation = match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => cri::MountPropagation::PropagationHostToContainer,
            Some("Bidirectional") => cri::MountPropagation::PropagationBidirectional,
            _ => cri::MountPropagation::PropagationPrivate,
        };
        // A path that is not absolute is below the root, as in Docker and so in the kubelet.
        let container_path =
            if mount.mount_path.starts_with('/') { mount.mount_path.clone() } else { format!("/{}", mount.mount_path) };
        mounts.push(cri::Mount {
            container_path,
            host_path,
            readonly: mount.read_only.unwrap_or(false),
            propagation: propagation.into(),
            ..Default::default()
        });
    }
    let is_mounted = |mounts: &[cri::Mount], path: &str| mounts.iter().any(|mount| mount.container_path == path);
    if !is_mounted(&mounts, "/etc/hosts") {
        mounts.push(cri::Mount {
            container_path: "/etc/hosts".to_owned(),
            host_path: text(&paths.hosts()),
            ..Default::default()
        });
    }
    if !is_mounted(&mounts, message_path(container)) {
        mounts.push(cri::Mount {
            container_path: message_path(container).to_owned(),
            host_path: text(&paths.message(&container.name, attempt)),
            ..Default::default()
        });
    }
    mounts
}

fn security(container: &Container, spec: &PodSpec) -> cri::LinuxContainerSecurityContext {
    let pod = spec.security_context.clone().unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let privileged = own.privileged == Some(true);
    let capabilities = own.capabilities.unwrap_or_default();
    let plain = |names: Option<Vec<String>>| -> Vec<String> {
        let names = names.unwrap_or_default().into_iter();
        names.map(|name| name.strip_prefix("CAP_").map_or(name.clone(), str::to_owned)).collect()
    };
    let paths =
        |paths: &[&str]| if privileged { Vec::new() } else { paths.iter().map(|&path| path.to_owned()).collect() };
    cri::LinuxContainerSecurityContext {
        capabilities: Some(cri::Capability {
            add_capabilities: plain(capabilities.add),
            drop_capabilities: plain(capabilities.drop),
            add_ambient_capabilities: Vec::new(),
        }),
        privileged,
        namespace_options: Some(sandbox::namespaces(spec)),
        run_as_user: own.run_as_user.or(pod.run_as_user).map(|value| cri::Int64Value { value }),
        run_as_group: own.run_as_group.or(pod.run_as_group).map(|value| cri::Int64Value { value }),
        readonly_rootfs: own.read_only_root_filesystem.unwrap_or(false),
        supplemental_groups: sandbox::groups(spec),
        supplemental_groups_policy: sandbox::groups_policy(spec),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: paths(MASKED),
        readonly_paths: paths(READ_ONLY),
        seccomp: Some(sandbox::seccomp(own.seccomp_profile.as_ref().or(pod.seccomp_profile.as_ref()))),
        ..Default::default()
    }
}

fn check_non_root(container: &Container, spec: &PodSpec, image: &Image) -> Result<(), ConvertError> {
    let pod = spec.security_context.clone().unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    if own.run_as_non_root.or(pod.run_as_non_root) != Some(true) {
        return Ok(());
    }
    let why = match own.run_as_user.or(pod.run_as_user) {
        Some(0) => "runAsUser is 0",
        Some(_) => return Ok(()),
        None if !image.username.is_empty() => "the image's user is a name, so runAsUser must say the number",
        None if image.uid.unwrap_or(0) == 0 => "the image's user is root, so runAsUser must name another",
        None => return Ok(()),
    };
    Err(ConvertError::Root { container: container.name.clone(), why })
}
