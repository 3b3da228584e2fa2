//! From a CRI config and an image to an OCI runtime spec. Pure: what the host and the image's files say is in the
//! [`Input`]. Each part of the spec has its file.

mod devices;
mod mounts;
mod namespaces;
mod process;
mod resources;
mod security;
pub mod user;

use std::path::{Path, PathBuf};

use oci_spec::{image::ImageConfiguration, runtime::Spec};
use serde_json::json;
use vaina_proto::cri::{ContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext, PodSandboxConfig};

pub use self::{devices::HostDevice, security::ALL as ALL_CAPABILITIES, user::ResolvedUser};
pub(crate) use self::{mounts::clean, process::check_oom_score, resources::limits};
use crate::{
    error::{Classify, Kind},
    sandbox::PodFiles,
};

/// Which PID namespace a container is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PidNamespace {
    /// One of its own.
    Own,
    /// The one at this path: the pod's, or that of another container.
    Path(PathBuf),
    /// The node's.
    Host,
}

/// What the spec depends on beside the configs.
#[derive(Debug)]
pub struct Input<'a> {
    /// Container id.
    pub id: &'a str,
    /// Sandbox id.
    pub sandbox_id: &'a str,
    /// The pod's config.
    pub pod: &'a PodSandboxConfig,
    /// The container's config.
    pub container: &'a ContainerConfig,
    /// The image's config.
    pub image: &'a ImageConfiguration,
    /// Who the process is.
    pub user: &'a ResolvedUser,
    /// Network namespace; [`None`] for the node's.
    pub network: Option<&'a Path>,
    /// IPC namespace; [`None`] for the node's.
    pub ipc: Option<&'a Path>,
    /// UTS namespace; [`None`] for the node's.
    pub uts: Option<&'a Path>,
    /// PID namespace.
    pub pid: PidNamespace,
    /// The pod's files.
    pub files: &'a PodFiles,
    /// Directories for volumes of the image: where, and at which path.
    pub volumes: &'a [(PathBuf, PathBuf)],
    /// Its control group, from the root of the hierarchy.
    pub cgroup: &'a Path,
    /// The host.
    pub host: &'a Host,
}

/// What the spec depends on of the host.
#[derive(Debug, Clone, Default)]
pub struct Host {
    /// Control groups are v2.
    pub cgroup_v2: bool,
    /// The lowest `oom_score_adj` that we may give; [`None`] for any (we have `CAP_SYS_RESOURCE`).
    pub lowest_oom_score_adj: Option<i64>,
    /// The capabilities that we have and can give, as `CAP_…`.
    pub capabilities: Vec<&'static str>,
    /// All devices, for privileged containers.
    pub devices: Vec<HostDevice>,
    /// Devices that the container's config names.
    pub asked_devices: Vec<HostDevice>,
    /// Text of the seccomp profile that the container's config names.
    pub seccomp_profile: Option<String>,
    /// AppArmor is there.
    pub has_apparmor: bool,
    /// The node's name, which pods in its network have.
    pub hostname: String,
    /// Memory that the kernel would account as swap is limited.
    pub has_swap_accounting: bool,
    /// The OCI runtime makes mounts read-only with all that is mounted below them.
    pub makes_recursive_read_only: bool,
}

/// Why there is no spec.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// A field that can't be as it is.
    #[error("container config: {field} {reason}")]
    Invalid {
        /// Which.
        field: &'static str,
        /// Why.
        reason: String,
    },
    /// A field that asks for what there is not.
    #[error("container config: {field} is not supported: {reason}")]
    Unsupported {
        /// Which.
        field: &'static str,
        /// What it asks for.
        reason: String,
    },
    /// Nothing to run.
    #[error("container has no command: neither its config nor its image says what to run")]
    NoCommand,
    /// A bug of ours.
    #[error("put the runtime spec together")]
    Shape(#[source] serde_json::Error),
}

impl Classify for SpecError {
    fn kind(&self) -> Kind {
        match self {
            Self::Invalid { .. } | Self::NoCommand => Kind::InvalidArgument,
            Self::Unsupported { .. } => Kind::Unimplemented,
            Self::Shape(_) => Kind::Internal,
        }
    }
}

pub(super) fn invalid(field: &'static str, reason: impl Into<String>) -> SpecError {
    SpecError::Invalid { field, reason: reason.into() }
}

impl Input<'_> {
    fn security(&self) -> LinuxContainerSecurityContext {
        self.container.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default()
    }

    fn resources(&self) -> LinuxContainerResources {
        self.container.linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default()
    }

    fn is_privileged(&self) -> bool {
        self.container
            .linux
            .as_ref()
            .and_then(|linux| linux.security_context.as_ref())
            .is_some_and(|security| security.privileged)
    }
}

/// Builds the spec.
pub fn build(input: &Input<'_>) -> Result<Spec, SpecError> {
    let security = input.security();
    let pod_security = input.pod.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    if security.privileged && !pod_security.is_some_and(|pod| pod.privileged) {
        return Err(invalid("linux.security_context.privileged", "needs a privileged pod sandbox"));
    }
    let mounts = mounts::mounts(input)?;
    let capabilities = security::capabilities(&security, &input.host.capabilities)?;
    let seccomp = security::seccomp(&security, &capabilities, input.host)?;
    let (masked, read_only) = security::paths(input.container);
    let mut linux = json!({
        "namespaces": namespaces::namespaces(input),
        "resources": resources::resources(input)?,
        "cgroupsPath": input.cgroup,
        "devices": devices::nodes(input)?,
        "maskedPaths": masked,
        "readonlyPaths": read_only,
        "rootfsPropagation": mounts.propagation,
    });
    if let Some(seccomp) = seccomp {
        linux["seccomp"] = seccomp;
    }
    let metadata = input.container.metadata.clone().unwrap_or_default();
    let pod = input.pod.metadata.clone().unwrap_or_default();
    let spec = json!({
        "ociVersion": "1.0.2",
        "process": process::process(input, &capabilities)?,
        "root": { "path": "rootfs", "readonly": security.readonly_rootfs },
        "mounts": mounts.list,
        // What tools and foreign shims look for, under the names that they know.
        "annotations": {
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.container-name": metadata.name,
            "io.kubernetes.cri.sandbox-id": input.sandbox_id,
            "io.kubernetes.cri.sandbox-name": pod.name,
            "io.kubernetes.cri.sandbox-namespace": pod.namespace,
            "io.kubernetes.cri.sandbox-uid": pod.uid,
        },
        "linux": linux,
    });
    serde_json::from_value(spec).map_err(SpecError::Shape)
}

#[cfg(test)]
mod tests;
