//! A Kubernetes pod as CRI messages, as the kubelet builds them.
//!
//! Pure: what the host is like comes in as [`Host`], where things are as [`Paths`]. The same pod gives the same messages,
//! so that a retry joins the running operation.

mod container;
mod env;
mod resources;
mod sandbox;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use thiserror::Error;

pub(super) use self::{
    container::{Image, container},
    sandbox::{log_directory, resolver, sandbox},
};

/// Labels and annotations that the kubelet puts on what it makes; tools look for them.
pub(super) mod keys {
    pub(in super::super) const POD_NAME: &str = "io.kubernetes.pod.name";
    pub(in super::super) const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    pub(in super::super) const POD_UID: &str = "io.kubernetes.pod.uid";
    pub(in super::super) const CONTAINER_NAME: &str = "io.kubernetes.container.name";
    pub(in super::super) const CONTAINER_HASH: &str = "io.kubernetes.container.hash";
    pub(in super::super) const CONTAINER_PORTS: &str = "io.kubernetes.container.ports";
    pub(in super::super) const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
    pub(in super::super) const MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
    pub(in super::super) const MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
    pub(in super::super) const GRACE_PERIOD: &str = "io.kubernetes.pod.terminationGracePeriod";
}

/// Where a file that a container writes its last words to is mounted, if the pod does not say.
const DEFAULT_MESSAGE_PATH: &str = "/dev/termination-log";

/// Kubernetes' default for terminationGracePeriodSeconds.
const DEFAULT_GRACE: i64 = 30;

/// What the conversion needs to know of the machine.
#[derive(Debug, Clone)]
pub(super) struct Host {
    /// Its name: that of pods in its network, and `spec.nodeName`.
    pub(super) name: String,
    /// Bytes of memory; a burstable container's OOM score is its share of them.
    pub(super) memory: i64,
    /// The text of the host's resolver configuration.
    pub(super) resolver: String,
    /// Whether the unified cgroup hierarchy is in use.
    pub(super) is_cgroup_v2: bool,
}

/// Where the runner put a pod's things.
#[derive(Debug, Clone)]
pub(super) struct Paths {
    /// The pod's directory: volumes, hosts file, termination messages.
    pub(super) pod: PathBuf,
    /// The directory above all pods' logs, `/var/log/pods`.
    pub(super) logs: PathBuf,
}

impl Paths {
    /// The hosts file of the pod, mounted in each container.
    pub(super) fn hosts(&self) -> PathBuf {
        self.pod.join("etc-hosts")
    }

    /// The directory of an emptyDir.
    pub(super) fn volume(&self, name: &str) -> PathBuf {
        self.pod.join("volumes").join(name)
    }

    /// The file that is mounted at the container's terminationMessagePath.
    pub(super) fn message(&self, container: &str, attempt: u32) -> PathBuf {
        self.pod.join("messages").join(container).join(attempt.to_string())
    }
}

/// Why a valid pod can't be run.
#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum ConvertError {
    /// runAsNonRoot stands against the image's or the pod's user.
    #[error("run container {container} as non-root: {why}")]
    Root {
        /// The container.
        container: String,
        /// What makes it root, or unknown.
        why: &'static str,
    },
}

/// The pod's name, namespace and uid, which the manifest reader and the runner have set.
#[derive(Debug, Clone, Copy)]
pub(super) struct Identity<'a> {
    pub(super) name: &'a str,
    pub(super) namespace: &'a str,
    pub(super) uid: &'a str,
}

impl<'a> Identity<'a> {
    pub(super) fn of(pod: &'a Pod) -> Self {
        let text = |value: &'a Option<String>| value.as_deref().unwrap_or("");
        Self { name: text(&pod.metadata.name), namespace: text(&pod.metadata.namespace), uid: text(&pod.metadata.uid) }
    }

    /// What a person types to end it.
    pub(super) fn stop_command(self) -> String {
        match self.namespace {
            "default" => format!("vaina stop {}", self.name),
            namespace => format!("vaina stop -n {namespace} {}", self.name),
        }
    }
}

/// The pod's spec; the manifest reader refuses a pod without one.
pub(super) fn spec(pod: &Pod) -> PodSpec {
    pod.spec.clone().unwrap_or_default()
}

/// terminationGracePeriodSeconds.
pub(super) fn grace_period(spec: &PodSpec) -> i64 {
    spec.termination_grace_period_seconds.unwrap_or(DEFAULT_GRACE)
}

/// terminationMessagePath.
pub(super) fn message_path(container: &Container) -> &str {
    container.termination_message_path.as_deref().filter(|path| !path.is_empty()).unwrap_or(DEFAULT_MESSAGE_PATH)
}

/// The text of /etc/hosts in a pod with its own network.
pub(super) fn hosts(spec: &PodSpec, hostname: &str, addresses: &[String]) -> String {
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
    );
    for address in addresses {
        text += &format!("{address}\t{hostname}\n");
    }
    text + &aliases(spec)
}

/// The text of /etc/hosts in the host's network: the host's own and the pod's aliases.
pub(super) fn host_hosts(spec: &PodSpec, host: &str) -> String {
    let end = if host.is_empty() || host.ends_with('\n') { "" } else { "\n" };
    format!("# Kubernetes-managed hosts file (host network).\n{host}{end}{}", aliases(spec))
}

fn aliases(spec: &PodSpec) -> String {
    let aliases = spec.host_aliases.as_deref().unwrap_or_default();
    let mut text = String::new();
    for alias in aliases {
        text += &format!("{}\t{}\n", alias.ip, alias.hostnames.as_deref().unwrap_or_default().join("\t"));
    }
    if text.is_empty() { text } else { format!("\n# Entries added by HostAliases.\n{text}") }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
