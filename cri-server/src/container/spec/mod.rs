//! From a CRI config and an image to an OCI runtime spec. Pure: what the host and the image's files say is in the
//! [`Input`]. Each part of the spec has its file.

mod devices;
mod mounts;
mod namespaces;
mod process;
mod resources;
pub(crate) mod seccomp;
mod security;
pub mod user;
mod vendor;

use std::path::{Path, PathBuf};

use oci_spec::{
    image::ImageConfiguration,
    runtime::{LinuxSeccomp, Spec},
};
use serde_json::json;
use vaina_proto::cri::{ContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext, PodSandboxConfig};

pub use self::{devices::HostDevice, security::ALL as ALL_CAPABILITIES, user::ResolvedUser};
pub(crate) use self::{
    mounts::clean,
    process::check_oom_score,
    resources::{huge_page, limits},
};
use crate::{
    container::cdi::ContainerEdits,
    error::{Classify, Kind},
    sandbox::{PodFiles, UserNamespace},
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
    /// The pod's user namespace and its pin; [`None`] for the node's.
    pub user_namespace: Option<(UserNamespace, &'a Path)>,
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
    /// Where the images are that the mounts name, in their order.
    pub image_volumes: &'a [PathBuf],
    /// Directory of the bundle.
    pub bundle: &'a Path,
    /// What devices of vendors need of it.
    pub cdi: &'a ContainerEdits,
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
    /// What is on the host of each of the devices that the container's config names: of a directory, all below it.
    pub asked_devices: Vec<Vec<HostDevice>>,
    /// The seccomp profile of the host that the container's config names.
    pub seccomp_profile: Option<LinuxSeccomp>,
    /// AppArmor is there.
    pub has_apparmor: bool,
    /// The node's name, which pods in its network have.
    pub hostname: String,
    /// Memory that the kernel would account as swap is limited.
    pub has_swap_accounting: bool,
    /// The sizes of huge pages, as limits name them.
    pub huge_pages: Vec<String>,
    /// The OCI runtime takes values of environment variables that are not UTF-8.
    pub takes_any_environment: bool,
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
    /// A seccomp profile of the host.
    #[error("container config: linux.security_context.seccomp: profile {}", .path.display())]
    Seccomp {
        /// Where it should be.
        path: PathBuf,
        /// Why it can't be used.
        source: seccomp::ProfileError,
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
            Self::Invalid { .. } | Self::Seccomp { .. } | Self::NoCommand => Kind::InvalidArgument,
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
    let seccomp = seccomp::profile(&security, &capabilities, input.host)?;
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
    if let Some((ids, _)) = input.user_namespace {
        // Runtimes that are told where the namespace is want to know what it is all the same.
        for (field, map) in [("uidMappings", ids.uids), ("gidMappings", ids.gids)] {
            linux[field] = json!([{ "containerID": map.inside, "hostID": map.outside, "size": map.length }]);
        }
    }
    if let Some(rdt) = &input.cdi.intel_rdt {
        linux["intelRdt"] = vendor::intel_rdt(rdt);
    }
    if let Some(seccomp) = seccomp {
        linux["seccomp"] = seccomp;
    }
    let metadata = input.container.metadata.clone().unwrap_or_default();
    let pod = input.pod.metadata.clone().unwrap_or_default();
    let (process, environment) = process::process(input, &capabilities)?;
    let mut spec = json!({
        "ociVersion": "1.0.2",
        "process": process,
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
        "hooks": vendor::hooks(&input.cdi.hooks),
    });
    if let Some(environment) = environment {
        spec["annotations"][vaina_proto::ENVIRONMENT_ANNOTATION] = environment.into();
    }
    serde_json::from_value(spec).map_err(SpecError::Shape)
}

#[cfg(test)]
mod tests;
