//! Capabilities, AppArmor, hidden paths.

use vaina_proto::cri::{ContainerConfig, LinuxContainerSecurityContext, security_profile::ProfileType};

use super::{Host, SpecError, invalid};

/// What a container has that says nothing: enough for software that drops its own rights.
const DEFAULT: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// All capabilities of the kernels that we support.
pub const ALL: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The sets of a process, sorted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Capabilities {
    pub(super) all: Vec<&'static str>,
    pub(super) effective: Vec<&'static str>,
    pub(super) ambient: Vec<&'static str>,
}

fn named(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_uppercase();
    ALL.into_iter().find(|known| *known == name || known.strip_prefix("CAP_") == Some(&name))
}

/// `available` is what this host can give: it has no more than we have ourselves.
pub(super) fn capabilities(
    security: &LinuxContainerSecurityContext,
    available: &[&'static str],
) -> Result<Capabilities, SpecError> {
    let asked = security.capabilities.clone().unwrap_or_default();
    let is_all = |names: &[String]| names.iter().any(|name| name.eq_ignore_ascii_case("ALL"));
    let mut set: Vec<&'static str> = if security.privileged || is_all(&asked.add_capabilities) {
        ALL.to_vec()
    } else if is_all(&asked.drop_capabilities) {
        Vec::new()
    } else {
        DEFAULT.to_vec()
    };
    let parse = |name: &String| {
        named(name).ok_or_else(|| invalid("linux.security_context.capabilities", format!("{name:?} is none")))
    };
    let listed = |names: &[String]| {
        names.iter().filter(|name| !name.eq_ignore_ascii_case("ALL")).map(parse).collect::<Result<Vec<_>, _>>()
    };
    let added = listed(&asked.add_capabilities)?;
    let dropped = listed(&asked.drop_capabilities)?;
    let ambient = listed(&asked.add_ambient_capabilities)?;
    // "Drop ALL" together with "add ALL" gives all but what is dropped by name.
    set.retain(|capability| !dropped.contains(capability));
    set.extend(added.into_iter().chain(ambient.iter().copied()));
    set.retain(|capability| available.contains(capability));
    set.sort_unstable();
    set.dedup();
    let mut ambient: Vec<_> = ambient.into_iter().filter(|capability| set.contains(capability)).collect();
    ambient.sort_unstable();
    ambient.dedup();
    Ok(Capabilities { effective: set.clone(), all: set, ambient })
}

/// Hidden and read-only paths, as the client says; who says nothing at all gets what is good for everybody.
pub(super) fn paths(container: &ContainerConfig) -> (Vec<String>, Vec<String>) {
    match container.linux.as_ref().and_then(|linux| linux.security_context.as_ref()) {
        Some(security) if security.privileged => (Vec::new(), Vec::new()),
        // Empty lists are what the kubelet sends for an unmasked /proc.
        Some(security) => (security.masked_paths.clone(), security.readonly_paths.clone()),
        None => (MASKED.map(str::to_owned).to_vec(), READ_ONLY.map(str::to_owned).to_vec()),
    }
}

const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The AppArmor profile that the config asks for; we load none of our own.
pub(super) fn apparmor(security: &LinuxContainerSecurityContext, host: &Host) -> Result<Option<String>, SpecError> {
    let Some(profile) = asked_apparmor(security)? else { return Ok(None) };
    if !host.has_apparmor {
        let reason = format!("names profile {profile:?}, but this host has no AppArmor");
        return Err(invalid("linux.security_context.apparmor", reason));
    }
    Ok(Some(profile))
}

/// The profile of the host that is named, by the field or by the one that it has replaced.
fn asked_apparmor(security: &LinuxContainerSecurityContext) -> Result<Option<String>, SpecError> {
    if let Some(profile) = &security.apparmor {
        return Ok(match profile.profile_type() {
            ProfileType::Unconfined | ProfileType::RuntimeDefault => None,
            ProfileType::Localhost => Some(profile.localhost_ref.clone()),
        });
    }
    #[expect(deprecated, reason = "old clients know no other")]
    match security.apparmor_profile.as_str() {
        "" | "unconfined" | "runtime/default" => Ok(None),
        other => match other.strip_prefix("localhost/") {
            Some(name) => Ok(Some(name.to_owned())),
            None => Err(invalid("linux.security_context.apparmor_profile", format!("{other:?} is none"))),
        },
    }
}
