//! The OCI bundle of a container: looks at the host and the image, has the spec built, writes it down.

use std::{
    fs,
    io::{self, Read as _},
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    sync::Arc,
};

use tracing::debug_span;
use vaina_proto::cri::{ContainerConfig, Device, NamespaceMode, NamespaceOption};
use vaina_sys::cgroup::Hierarchies;

use super::{
    Container, ContainerImage, ContainerState, ImageVolumeError, Running, User,
    cdi::{self, CdiError},
    host_devices,
    image_volume::{self, Mounted},
    spec::{self, Host, Input, PidNamespace, ResolvedUser, SpecError},
};
use crate::{
    app::App,
    error::{Classify, Kind},
    image::{
        HoldError, Image,
        view::{self, Seen},
    },
    runtime::Handler,
    sandbox::{NotReadyError, PodFiles, UserNamespace},
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
    /// A volume that is an image.
    #[error(transparent)]
    ImageVolume(ImageVolumeError),
    /// Devices of vendors.
    #[error(transparent)]
    Cdi(CdiError),
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
            Self::ImageVolume(source) => source.kind(),
            Self::Cdi(source) => source.kind(),
            Self::Encode(_) => Kind::Internal,
        }
    }
}

fn at(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BundleError {
    move |source| BundleError::Path { step, path: path.to_owned(), source }
}

/// Makes the bundle and the directory of the log; answers who the process will be.
pub(super) async fn write(app: &App, container: &Container) -> Result<User, BundleError> {
    let hold = |id| app.images.hold(id, container.id.as_str()).map_err(BundleError::Image);
    let image = hold(&container.image.id)?;
    let volume_images = container.volume_images.iter().map(|image| hold(&image.id)).collect::<Result<_, _>>()?;
    let handler = app.handlers.get(&container.sandbox.handler);
    let work = Work {
        id: container.id.to_string(),
        sandbox_id: container.sandbox.id.to_string(),
        pod: container.sandbox.config.clone(),
        config: config(container),
        image,
        volumes_of: container.volume_images.clone(),
        volume_images,
        pid: pid_namespace(app, container)?,
        network: container.sandbox.netns(),
        user_namespace: container.sandbox.user_namespace().zip(container.sandbox.user_pin(&app.config.state)),
        host_ipc: container.sandbox.namespaces().ipc == i32::from(NamespaceMode::Node),
        files: PodFiles::new(&container.sandbox.directory(&app.config.state)),
        cgroup: container.cgroup(&app.config.cgroup.parent),
        cgroups: app.cgroups.clone(),
        bundle: container.bundle(&app.config.state),
        volumes: snapshot::volumes(&app.config.root, &container.id),
        log: container.log_path(),
        makes_recursive_read_only: handler.is_some_and(Handler::makes_recursive_read_only),
        takes_any_environment: handler.is_some_and(Handler::is_own),
        cdi_directories: app.config.cdi.directories.clone(),
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
        vaina_sys::fs::write_atomic(&path, &text, 0o600, false).map_err(at("write", &path))
    })
    .await
}

/// Whether memory that the kernel would account as swap can be limited.
pub(super) fn has_swap_accounting(cgroups: &Hierarchies) -> bool {
    let memory = cgroups.controller("memory");
    cgroups.is_v2() || memory.is_some_and(|memory| memory.join("memory.memsw.limit_in_bytes").exists())
}

/// The sizes of huge pages that the kernel has, as limits name them.
pub(super) fn huge_pages() -> Vec<String> {
    let entries = fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    entries.filter_map(|entry| spec::huge_page(&entry.file_name().to_string_lossy())).collect()
}

/// The container's own word; the pod's says only whether there is a shared one.
fn namespace_options(container: &Container) -> NamespaceOption {
    container
        .config
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
        .and_then(|security| security.namespace_options.clone())
        .unwrap_or_else(|| container.sandbox.namespaces())
}

fn pid_namespace(app: &App, container: &Container) -> Result<PidNamespace, BundleError> {
    let ready = container.sandbox.ready().map_err(BundleError::Sandbox)?;
    let options = namespace_options(container);
    let of = |pid: u32| PidNamespace::Path(PathBuf::from(format!("/proc/{pid}/ns/pid")));
    let pod_is_shared = container.sandbox.namespaces().pid == i32::from(NamespaceMode::Pod);
    match NamespaceMode::try_from(options.pid) {
        Ok(NamespaceMode::Node) => Ok(PidNamespace::Host),
        Ok(NamespaceMode::Pod) if pod_is_shared => Ok(of(ready.pid)),
        Ok(NamespaceMode::Target) => target(app, container, &options.target_id).map(|running| of(running.pid)),
        Ok(NamespaceMode::Pod | NamespaceMode::Container) | Err(_) => Ok(PidNamespace::Own),
    }
}

/// The container of the same pod whose PID namespace is joined.
fn target(app: &App, container: &Container, id: &str) -> Result<Running, BundleError> {
    let refuse = |reason| BundleError::Target { id: id.to_owned(), reason };
    let target = app.index.containers.find(id).map_err(|_| refuse("it is not there"))?;
    if target.sandbox.id != container.sandbox.id {
        return Err(refuse("it belongs to another pod"));
    }
    match target.state() {
        ContainerState::Running(running) => Ok(running),
        _ => Err(refuse("it does not run")),
    }
}

/// Whether what the spec names is still there. A container runs once, so that one that runs has the pid that is in the spec; the
/// pid of one that has ended may be somebody else's by now.
pub(super) fn check_target(app: &App, container: &Container) -> Result<(), BundleError> {
    let options = namespace_options(container);
    match NamespaceMode::try_from(options.pid) {
        Ok(NamespaceMode::Target) => target(app, container, &options.target_id).map(drop),
        _ => Ok(()),
    }
}

/// All that the blocking part needs.
struct Work {
    id: String,
    sandbox_id: String,
    pod: vaina_proto::cri::PodSandboxConfig,
    config: ContainerConfig,
    image: Arc<Image>,
    /// The images of its volumes, by what is recorded of them and by what is on disk.
    volumes_of: Vec<ContainerImage>,
    volume_images: Vec<Arc<Image>>,
    pid: PidNamespace,
    network: Option<PathBuf>,
    /// The pod's, and where it is pinned.
    user_namespace: Option<(UserNamespace, PathBuf)>,
    host_ipc: bool,
    files: PodFiles,
    cgroup: PathBuf,
    cgroups: Hierarchies,
    bundle: PathBuf,
    /// For volumes of the image.
    volumes: PathBuf,
    log: Option<PathBuf>,
    makes_recursive_read_only: bool,
    takes_any_environment: bool,
    cdi_directories: Vec<PathBuf>,
}

impl Work {
    fn run(self) -> Result<User, BundleError> {
        let security = self.config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default();
        let users = debug_span!("users").entered();
        let passwd = read_in_image(&self.image.layers, "etc/passwd").map_err(at("read", Path::new("/etc/passwd")))?;
        let group = read_in_image(&self.image.layers, "etc/group").map_err(at("read", Path::new("/etc/group")))?;
        let user = spec::user::resolve(&security, &self.image.config, &passwd, &group).map_err(BundleError::Spec)?;
        drop(users);
        self.check_user(&user)?;
        let host = debug_span!("host").in_scope(|| self.host(&security))?;
        let cdi = debug_span!("cdi").in_scope(|| cdi::edits(&self.config, &self.cdi_directories));
        let cdi = cdi.map_err(BundleError::Cdi)?;
        let volumes = self.declared_volumes()?;
        let images = self.image_volumes()?;
        let building = debug_span!("spec").entered();
        let spec = spec::build(&Input {
            id: &self.id,
            sandbox_id: &self.sandbox_id,
            pod: &self.pod,
            container: &self.config,
            image: &self.image.config,
            user: &user,
            network: self.network.as_deref(),
            user_namespace: self.user_namespace.as_ref().map(|(ids, pin)| (*ids, pin.as_path())),
            ipc: (!self.host_ipc).then_some(self.files.ipc.as_path()),
            // The node's network comes with the node's name.
            uts: self.network.is_some().then_some(self.files.uts.as_path()),
            pid: self.pid.clone(),
            files: &self.files,
            volumes: &volumes,
            image_volumes: &images,
            cdi: &cdi,
            bundle: &self.bundle,
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
        // The root of a user namespace must get to its root file system and is anybody here.
        let searched = fs::Permissions::from_mode(0o711);
        fs::set_permissions(&self.bundle, searched).map_err(at("set mode of", &self.bundle))?;
        let text = serde_json::to_vec(&spec).map_err(BundleError::Encode)?;
        let path = self.bundle.join("config.json");
        // It holds the environment, which is nobody's business.
        vaina_sys::fs::write_atomic(&path, &text, 0o600, false).map_err(at("write", &path))?;
        // Those of devices are among them.
        let groups = spec.process().as_ref().and_then(|process| process.user().additional_gids().clone());
        Ok(User { uid: user.uid, gid: user.gid, groups: groups.unwrap_or_default() })
    }

    fn check_user(&self, user: &ResolvedUser) -> Result<(), BundleError> {
        let Some((ids, _)) = &self.user_namespace else { return Ok(()) };
        let groups = std::iter::once(&user.gid).chain(&user.groups);
        let mut all = std::iter::once(("user", user.uid, ids.uids)).chain(groups.map(|gid| ("group", *gid, ids.gids)));
        match all.find(|(_, id, map)| map.outside(*id).is_none()) {
            None => Ok(()),
            Some((field, id, map)) => {
                let reason = format!("{id} is not one of the {} ids of the pod's user namespace", map.length);
                Err(BundleError::Spec(SpecError::Invalid { field, reason }))
            }
        }
    }

    /// Volumes that the image declares and does not have: empty directories that end with the container. What it has of
    /// them is a part of the writable layer, and what the client mounts there is the client's.
    fn declared_volumes(&self) -> Result<Vec<(PathBuf, PathBuf)>, BundleError> {
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
            if let Some((ids, _)) = &self.user_namespace {
                let (uid, gid) = ids.root();
                chown(&source, Some(uid), Some(gid)).map_err(at("set owner of", &source))?;
            }
            volumes.push((source, target));
        }
        Ok(volumes)
    }

    /// Where the volumes that are images will be, in the order of the mounts that name one; makes the places for the images.
    fn image_volumes(&self) -> Result<Vec<PathBuf>, BundleError> {
        let mounted = Mounted::new(&self.volumes_of);
        for number in 0..mounted.images.len() {
            let place = self.bundle.join(image_volume::place(number));
            fs::create_dir_all(&place).map_err(at("make", &place))?;
        }
        let mounts = self.config.mounts.iter().filter(|mount| image_volume::image_of(mount).is_some());
        mounts
            .zip(&self.volume_images)
            .zip(mounted.shown)
            .map(|((mount, image), number)| {
                let directory = image_volume::directory(mount, image).map_err(BundleError::ImageVolume)?;
                Ok(self.bundle.join(image_volume::place(number)).join(directory))
            })
            .collect()
    }

    /// A volume without a type that is not there is made as a directory, as users of other runtimes are used to.
    fn make_volumes(&self) -> Result<(), BundleError> {
        for mount in self.config.mounts.iter().filter(|mount| image_volume::image_of(mount).is_none()) {
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
        let asked = |device: &Device| {
            let path = Path::new(&device.host_path);
            host_devices::asked(path).map_err(at("look for devices at", path))
        };
        let asked_devices = self.config.devices.iter().map(asked).collect::<Result<_, _>>()?;
        let seccomp_profile = spec::seccomp::of_host(security).map_err(BundleError::Spec)?;
        Ok(Host {
            cgroup_v2: self.cgroups.is_v2(),
            lowest_oom_score_adj: if capabilities.contains(&"CAP_SYS_RESOURCE") {
                None
            } else {
                own_score.trim().parse().ok()
            },
            capabilities,
            devices: if security.privileged { host_devices::all().map_err(look("/dev"))? } else { Vec::new() },
            asked_devices,
            seccomp_profile,
            has_apparmor: Path::new("/sys/kernel/security/apparmor/profiles").exists(),
            hostname: nix::unistd::gethostname()
                .map(|name| name.to_string_lossy().into_owned())
                .map_err(|errno| look("the node's name")(errno.into()))?,
            has_swap_accounting: has_swap_accounting(&self.cgroups),
            huge_pages: huge_pages(),
            makes_recursive_read_only: self.makes_recursive_read_only,
            takes_any_environment: self.takes_any_environment,
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
