//! The OCI bundle of a container: looks at the host and the image, has the spec built, writes it down.

use std::{
    fs,
    io::{self, Read as _},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use tracing::debug_span;
use vaina_proto::cri::{ContainerConfig, NamespaceMode, security_profile::ProfileType};
use vaina_sys::cgroup::Hierarchies;

use super::{
    Container, ContainerState, User,
    spec::{self, Host, HostDevice, Input, PidNamespace, SpecError},
};
use crate::{
    app::App,
    error::{Classify, Kind},
    image::{
        HoldError, Image,
        view::{self, Seen},
    },
    sandbox::{NotReadyError, PodFiles},
    snapshot,
    work::blocking,
};

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The image went away.
    #[error("look at the image")]
    Image(#[source] HoldError),
    /// The pod is stopped.
    #[error(transparent)]
    Sandbox(NotReadyError),
    /// The container whose PID namespace is to be joined.
    #[error("join the PID namespace of container {id:?}: {reason}")]
    Target {
        /// As given.
        id: String,
        /// Why not.
        reason: &'static str,
    },
    /// A file or directory.
    #[error("{step} {}", .path.display())]
    Path {
        /// What was done.
        step: &'static str,
        /// To what.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The configs.
    #[error(transparent)]
    Spec(SpecError),
    /// A bug of ours.
    #[error("write the runtime spec")]
    Encode(#[source] serde_json::Error),
}

impl Classify for BundleError {
    fn kind(&self) -> Kind {
        match self {
            Self::Image(source) => source.kind(),
            Self::Sandbox(source) => source.kind(),
            Self::Target { .. } => Kind::FailedPrecondition,
            Self::Path { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Kind::ResourceExhausted,
                _ => Kind::Internal,
            },
            Self::Spec(source) => source.kind(),
            Self::Encode(_) => Kind::Internal,
        }
    }
}

fn at(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BundleError {
    move |source| BundleError::Path { step, path: path.to_owned(), source }
}

/// Makes the bundle and the directory of the log; answers who the process will be.
pub(super) async fn write(app: &App, container: &Container) -> Result<User, BundleError> {
    let image = app.images.hold(&container.image.id, container.id.as_str()).map_err(BundleError::Image)?;
    let work = Work {
        id: container.id.to_string(),
        sandbox_id: container.sandbox.id.to_string(),
        pod: container.sandbox.config.clone(),
        config: config(container),
        image,
        pid: pid_namespace(app, container)?,
        network: container.sandbox.netns(),
        host_ipc: container.sandbox.namespaces().ipc == i32::from(NamespaceMode::Node),
        files: PodFiles::new(&container.sandbox.directory(&app.config.state)),
        cgroup: container.cgroup(&app.config.cgroup.parent),
        cgroups: app.cgroups.clone(),
        bundle: container.bundle(&app.config.state),
        volumes: snapshot::volumes(&app.config.root, &container.id),
        log: container.log_path(),
        makes_recursive_read_only: app
            .handlers
            .get(&container.sandbox.handler)
            .is_some_and(crate::runtime::Handler::makes_recursive_read_only),
    };
    blocking(move || work.run()).await
}

/// As the client gave it, with the limits as they are now.
fn config(container: &Container) -> ContainerConfig {
    let mut config = container.config.clone();
    if let Some(resources) = container.resources() {
        config.linux.get_or_insert_default().resources = Some(resources);
    }
    config
}

/// Puts other limits into the spec; a bundle that a reboot took is made anew with them.
pub(super) async fn rewrite_limits(
    app: &App,
    container: &Container,
    limits: &serde_json::Map<String, serde_json::Value>,
    oom_score_adj: i64,
) -> Result<(), BundleError> {
    let path = container.bundle(&app.config.state).join("config.json");
    let limits = limits.clone();
    blocking(move || {
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(at("read", &path)(source)),
        };
        let mut spec: serde_json::Value = serde_json::from_slice(&text).map_err(BundleError::Encode)?;
        let devices = spec["linux"]["resources"]["devices"].take();
        spec["linux"]["resources"] = limits.into();
        spec["linux"]["resources"]["devices"] = devices;
        spec["process"]["oomScoreAdj"] = oom_score_adj.into();
        let text = serde_json::to_vec(&spec).map_err(BundleError::Encode)?;
        vaina_sys::fs::write_atomic(&path, &text, 0o644, false).map_err(at("write", &path))
    })
    .await
}

/// Whether memory that the kernel would account as swap can be limited.
pub(super) fn has_swap_accounting(cgroups: &Hierarchies) -> bool {
    let memory = cgroups.controller("memory");
    cgroups.is_v2() || memory.is_some_and(|memory| memory.join("memory.memsw.limit_in_bytes").exists())
}

/// The container's own word; the pod's says only whether there is a shared one.
fn pid_namespace(app: &App, container: &Container) -> Result<PidNamespace, BundleError> {
    let ready = container.sandbox.ready().map_err(BundleError::Sandbox)?;
    let options = container
        .config
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
        .and_then(|security| security.namespace_options.clone())
        .unwrap_or_else(|| container.sandbox.namespaces());
    let of = |pid: u32| PidNamespace::Path(PathBuf::from(format!("/proc/{pid}/ns/pid")));
    let pod_is_shared = container.sandbox.namespaces().pid == i32::from(NamespaceMode::Pod);
    match NamespaceMode::try_from(options.pid) {
        Ok(NamespaceMode::Node) => Ok(PidNamespace::Host),
        Ok(NamespaceMode::Pod) if pod_is_shared => Ok(of(ready.pid)),
        Ok(NamespaceMode::Target) => {
            let refuse = |reason| BundleError::Target { id: options.target_id.clone(), reason };
            let target = app.index.containers.find(&options.target_id).map_err(|_| refuse("it is not there"))?;
            if target.sandbox.id != container.sandbox.id {
                return Err(refuse("it belongs to another pod"));
            }
            match target.state() {
                ContainerState::Running(running) => Ok(of(running.pid)),
                _ => Err(refuse("it does not run")),
            }
        }
        Ok(NamespaceMode::Pod | NamespaceMode::Container) | Err(_) => Ok(PidNamespace::Own),
    }
}

/// All that the blocking part needs.
struct Work {
    id: String,
    sandbox_id: String,
    pod: vaina_proto::cri::PodSandboxConfig,
    config: ContainerConfig,
    image: Arc<Image>,
    pid: PidNamespace,
    network: Option<PathBuf>,
    host_ipc: bool,
    files: PodFiles,
    cgroup: PathBuf,
    cgroups: Hierarchies,
    bundle: PathBuf,
    /// For volumes of the image.
    volumes: PathBuf,
    log: Option<PathBuf>,
    makes_recursive_read_only: bool,
}

impl Work {
    fn run(self) -> Result<User, BundleError> {
        let security = self.config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default();
        let users = debug_span!("users").entered();
        let passwd = read_in_image(&self.image.layers, "etc/passwd").map_err(at("read", Path::new("/etc/passwd")))?;
        let group = read_in_image(&self.image.layers, "etc/group").map_err(at("read", Path::new("/etc/group")))?;
        let user = spec::user::resolve(&security, &self.image.config, &passwd, &group).map_err(BundleError::Spec)?;
        drop(users);
        let host = debug_span!("host").in_scope(|| self.host(&security))?;
        let volumes = self.image_volumes()?;
        let building = debug_span!("spec").entered();
        let spec = spec::build(&Input {
            id: &self.id,
            sandbox_id: &self.sandbox_id,
            pod: &self.pod,
            container: &self.config,
            image: &self.image.config,
            user: &user,
            network: self.network.as_deref(),
            ipc: (!self.host_ipc).then_some(self.files.ipc.as_path()),
            // The node's network comes with the node's name.
            uts: self.network.is_some().then_some(self.files.uts.as_path()),
            pid: self.pid.clone(),
            files: &self.files,
            volumes: &volumes,
            cgroup: &self.cgroup,
            host: &host,
        })
        .map_err(BundleError::Spec)?;
        drop(building);
        let _files = debug_span!("files").entered();
        self.make_volumes()?;
        if let Some(directory) = self.log.as_deref().and_then(Path::parent) {
            fs::create_dir_all(directory).map_err(at("make log directory", directory))?;
        }
        let rootfs = self.bundle.join("rootfs");
        fs::create_dir_all(&rootfs).map_err(at("make", &rootfs))?;
        let text = serde_json::to_vec(&spec).map_err(BundleError::Encode)?;
        let path = self.bundle.join("config.json");
        fs::write(&path, text).map_err(at("write", &path))?;
        Ok(User { uid: user.uid, gid: user.gid, groups: user.groups })
    }

    /// Volumes that the image declares and does not have: empty directories that end with the container. What it has of
    /// them is a part of the writable layer, and what the client mounts there is the client's.
    fn image_volumes(&self) -> Result<Vec<(PathBuf, PathBuf)>, BundleError> {
        let declared = self.image.config.config().as_ref().and_then(|config| config.volumes().clone());
        let mut volumes = Vec::new();
        for target in declared.unwrap_or_default().iter().map(|volume| spec::clean(volume)) {
            let is_mounted = self.config.mounts.iter().any(|mount| spec::clean(&mount.container_path) == target);
            let is_known = volumes.iter().any(|(_, other)| *other == target);
            let seen = view::look(&self.image.layers, &target).map_err(at("look at volume of the image", &target))?;
            if is_mounted || is_known || !matches!(seen, Seen::Missing) {
                continue;
            }
            let source = self.volumes.join(volumes.len().to_string());
            fs::create_dir_all(&source).map_err(at("make volume of the image", &source))?;
            volumes.push((source, target));
        }
        Ok(volumes)
    }

    /// A volume without a type that is not there is made as a directory, as users of other runtimes are used to.
    fn make_volumes(&self) -> Result<(), BundleError> {
        for mount in &self.config.mounts {
            let path = Path::new(&mount.host_path);
            match fs::metadata(path) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    fs::create_dir_all(path).map_err(at("make volume", path))?;
                }
                Err(source) => return Err(at("look at volume", path)(source)),
            }
        }
        Ok(())
    }

    fn host(&self, security: &vaina_proto::cri::LinuxContainerSecurityContext) -> Result<Host, BundleError> {
        let look = |path: &'static str| move |source| at("look at", Path::new(path))(source);
        let status = fs::read_to_string("/proc/self/status").map_err(look("/proc/self/status"))?;
        let capabilities = effective_capabilities(&status);
        let own_score = fs::read_to_string("/proc/self/oom_score_adj").map_err(look("/proc/self/oom_score_adj"))?;
        let asked = self.config.devices.iter().filter_map(|device| host_device(Path::new(&device.host_path)));
        let seccomp_profile = security
            .seccomp
            .as_ref()
            .filter(|profile| profile.profile_type() == ProfileType::Localhost)
            .and_then(|profile| fs::read_to_string(&profile.localhost_ref).ok());
        Ok(Host {
            cgroup_v2: self.cgroups.is_v2(),
            lowest_oom_score_adj: if capabilities.contains(&"CAP_SYS_RESOURCE") {
                None
            } else {
                own_score.trim().parse().ok()
            },
            capabilities,
            devices: if security.privileged { all_devices().map_err(look("/dev"))? } else { Vec::new() },
            asked_devices: asked.collect(),
            seccomp_profile,
            has_apparmor: Path::new("/sys/kernel/security/apparmor/profiles").exists(),
            hostname: nix::unistd::gethostname()
                .map(|name| name.to_string_lossy().into_owned())
                .map_err(|errno| look("the node's name")(errno.into()))?,
            has_swap_accounting: has_swap_accounting(&self.cgroups),
            makes_recursive_read_only: self.makes_recursive_read_only,
        })
    }
}

/// The effective capabilities by `/proc/<pid>/status`.
fn effective_capabilities(status: &str) -> Vec<&'static str> {
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or_default();
    // The list is in the order of the kernel's numbers.
    spec::ALL_CAPABILITIES.iter().enumerate().filter(|(bit, _)| mask & (1 << bit) != 0).map(|(_, name)| *name).collect()
}

fn host_device(path: &Path) -> Option<HostDevice> {
    let found = fs::metadata(path).ok()?;
    let kind = found.file_type();
    if !kind.is_block_device() && !kind.is_char_device() {
        return None;
    }
    Some(HostDevice {
        path: path.to_string_lossy().into_owned(),
        is_block: kind.is_block_device(),
        major: rustix::fs::major(found.rdev()),
        minor: rustix::fs::minor(found.rdev()),
        mode: found.mode() & 0o7777,
        uid: found.uid(),
        gid: found.gid(),
    })
}

/// All devices of the host but those that a container gets anew (terminals, its console).
fn all_devices() -> io::Result<Vec<HostDevice>> {
    fn walk(directory: &Path, devices: &mut Vec<HostDevice>) -> io::Result<()> {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let path = entry.path();
            let kind = match entry.file_type() {
                Ok(kind) => kind,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if kind.is_dir() {
                let own = ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"];
                if !own.iter().any(|name| entry.file_name() == *name) {
                    walk(&path, devices)?;
                }
            } else if entry.file_name() != "console" && !kind.is_symlink() {
                devices.extend(host_device(&path));
            }
        }
        Ok(())
    }
    let mut devices = Vec::new();
    walk(Path::new("/dev"), &mut devices)?;
    devices.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(devices)
}

/// The largest `passwd` or `group` that is read.
const FILE_LIMIT: u64 = 1 << 20;

/// A text file of the image; empty if there is none. Nothing but plain files is read: the image says what lies there.
fn read_in_image(layers: &[PathBuf], path: &str) -> io::Result<String> {
    let mut bytes = Vec::new();
    match view::look(layers, Path::new(path))? {
        Seen::Other(path, metadata) if metadata.is_file() => {
            view::open(&path)?.take(FILE_LIMIT).read_to_end(&mut bytes)?;
        }
        Seen::Other(..) | Seen::Directory | Seen::Missing => {}
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_by_their_numbers() {
        assert_eq!(
            effective_capabilities("Name:\tx\nCapEff:\t0000000001000021\n"),
            ["CAP_CHOWN", "CAP_KILL", "CAP_SYS_RESOURCE"]
        );
        assert!(effective_capabilities("").is_empty());
    }

    #[test]
    fn only_plain_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let layers = [dir.path().to_owned()];
        fs::create_dir(dir.path().join("etc")).unwrap();
        assert_eq!(read_in_image(&layers, "etc/passwd").unwrap(), "");
        fs::write(dir.path().join("etc/passwd"), "text").unwrap();
        assert_eq!(read_in_image(&layers, "etc/passwd").unwrap(), "text");
        nix::unistd::mkfifo(&dir.path().join("etc/group"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(read_in_image(&layers, "etc/group").unwrap(), "");
        assert_eq!(read_in_image(&layers, "etc").unwrap(), "");
    }
}
