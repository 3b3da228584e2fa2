//! Makes a container up to the point where its program could start.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use libcontainer::{
    container::builder::ContainerBuilder,
    oci_spec::runtime::{LinuxNamespaceType, Spec},
    syscall::syscall::SyscallType,
};
use nix::sys::stat::Mode;
use vaina_sys::{cgroup::Hierarchies, process};

use crate::spans;

use super::{
    OciError,
    args::Create,
    container::{self, Container, Identity},
    device_filter, environment,
    restriction::{self, Restriction},
    spec::{self, Host},
    trace::Causes,
    userns,
    workload::{Kind, Workload},
};

/// Creates the container. Nothing of it is left after an error.
pub(super) fn create(root: &Path, create: &Create) -> Result<(), OciError> {
    let loading = spans::start("load config", &create.id);
    let read = |path: &Path, source| OciError::Read { path: path.to_owned(), source };
    let bundle = fs::canonicalize(&create.bundle).map_err(|source| read(&create.bundle, source))?;
    make_private(root).map_err(|source| read(root, source))?;
    let root = fs::canonicalize(root).map_err(|source| read(root, source))?;
    if root.join(&create.id).exists() {
        return Err(OciError::Exists { id: create.id.clone() });
    }
    let config = bundle.join("config.json");
    let original = Spec::load(&config).map_err(|error| OciError::library("load config.json", &error))?;
    let mut spec = original.clone();
    let host = Hierarchies::detect().map_err(|source| read(Path::new("/proc/self/mountinfo"), source))?;
    spec::normalise(&mut spec, Host { hugetlb: host.is_v2() || host.controller("hugetlb").is_some() });
    let (rootfs, cgroup) = places(&mut spec, &bundle, &create.id)?;
    let _user =
        userns::make(&mut spec).map_err(|source| OciError::Prepare { step: "make the user namespace", source })?;
    super::devices::stage(&mut spec, &bundle)
        .map_err(|source| OciError::Prepare { step: "make the device nodes", source })?;
    super::volumes::stage(&mut spec, &bundle)
        .map_err(|source| OciError::Prepare { step: "prepare the volumes", source })?;

    if std::env::current_dir().is_err() {
        // What was mounted over our directory has taken it out of sight, and the library asks for its name.
        std::env::set_current_dir(&bundle).map_err(|source| read(&bundle, source))?;
    }
    let restriction = restrict(&mut spec, &root)?;
    // After the volumes: the container's groups are not there yet.
    if !host.is_v2() {
        spec::spell_out_groups(&mut spec, &host.v1)
            .map_err(|error| OciError::library("describe the mounts of control groups", &error))?;
    }

    // The library reads the configuration itself; where it would read something else than is meant, it gets a copy.
    let shadow = container::shadow(&root, &create.id);
    let library_bundle = if spec == original {
        bundle.clone()
    } else {
        let written = make_private(&shadow)
            .and_then(|()| fs::write(shadow.join("config.json"), serde_json::to_vec(&spec).map_err(io::Error::from)?));
        written.map_err(|source| OciError::Write { path: shadow.clone(), source })?;
        shadow.clone()
    };
    drop(loading);
    let group =
        host.v2.as_ref().filter(|_| host.is_v2()).map(|top| top.join(cgroup.strip_prefix("/").unwrap_or(&cgroup)));
    let filtered = |pid| match &group {
        // Before the program runs. Of v1 the library does it.
        Some(group) => device_filter::attach(&spec, group)
            .map(|()| pid)
            .map_err(|source| OciError::Prepare { step: "attach the device filter", source }),
        None => Ok(pid),
    };
    let made = make(&root, create, &library_bundle, &spec, restriction).and_then(filtered).and_then(|pid| {
        let _span = spans::start("record", &create.id);
        let start_time = u32::try_from(pid).map_err(io::Error::other).and_then(process::start_time);
        let identity = start_time.map(|start_time| Identity { pid, start_time, bundle, rootfs, cgroup });
        let directory = root.join(&create.id);
        identity
            .and_then(|identity| identity.save(&directory))
            .map_err(|source| OciError::Write { path: directory, source })
    });
    if made.is_err() {
        if let Ok(half) = Container::load(&root, &create.id) {
            // The first failure is the one to tell.
            let _ = half.delete(true);
        }
        let _ = fs::remove_dir_all(&shadow);
        if let Some(pid_file) = &create.pid_file {
            let _ = fs::remove_file(pid_file);
        }
    }
    made
}

/// Answers the root file system and the control group, and writes both into the configuration in full.
fn places(spec: &mut Spec, bundle: &Path, id: &str) -> Result<(PathBuf, PathBuf), OciError> {
    let incomplete = |what| OciError::State(format!("config.json has no {what}"));
    let root = spec.root_mut().as_mut().ok_or_else(|| incomplete("root"))?;
    let rootfs = bundle.join(root.path());
    let rootfs = fs::canonicalize(&rootfs).map_err(|source| OciError::Read { path: rootfs, source })?;
    root.set_path(rootfs.clone());
    let linux = spec.linux_mut().as_mut().ok_or_else(|| incomplete("linux"))?;
    let cgroup = match linux.cgroups_path() {
        Some(path) if !path.as_os_str().is_empty() => path.clone(),
        _ => Path::new("/vaina").join(id),
    };
    if cgroup.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(OciError::State(format!("cgroupsPath {} leads out of its hierarchy", cgroup.display())));
    }
    linux.set_cgroups_path(Some(cgroup.clone()));
    let mount_namespace =
        linux.namespaces().iter().flatten().any(|namespace| namespace.typ() == LinuxNamespaceType::Mount);
    if !mount_namespace {
        return Err(OciError::State("a container without a mount namespace of its own is not supported".to_owned()));
    }
    Ok((rootfs, cgroup))
}

/// Takes the seccomp profile out of the configuration, to be loaded by the process's last step.
fn restrict(spec: &mut Spec, root: &Path) -> Result<Restriction, OciError> {
    let Some(linux) = spec.linux_mut() else { return Ok(Restriction::default()) };
    let Some(profile) = restriction::profile(linux.seccomp().as_ref()).cloned() else {
        return Ok(Restriction::default());
    };
    linux.set_seccomp(None);
    let process =
        spec.process_mut().as_mut().ok_or_else(|| OciError::State("config.json has no process".to_owned()))?;
    Restriction::new(Some(&profile), process, root)
}

fn make(root: &Path, create: &Create, bundle: &Path, spec: &Spec, restriction: Restriction) -> Result<i32, OciError> {
    prepare_process(&create.id, create.no_new_keyring)?;
    if let Some(wanted) = spec.process().as_ref().and_then(libcontainer::oci_spec::runtime::Process::oom_score_adj) {
        // The library's own message does not say what is wrong.
        set_oom_score(wanted)?;
    }
    let environment = environment::of(spec)?;
    let causes = Causes::collect(&create.id, last_mount(spec))
        .map_err(|source| OciError::Prepare { step: "collect causes", source })?;
    let cwd = spec.process().as_ref().map_or(Path::new(""), |process| process.cwd());
    if let Some(root) = spec.root() {
        make_working_directory(spec, root.path(), cwd);
    }
    if let Some(process) = spec.process() {
        userns::give_streams(spec, process)
            .map_err(|source| OciError::Prepare { step: "give the streams to the process's user", source })?;
    }
    let failed =
        |error: &libcontainer::error::LibcontainerError| OciError::forked("create container", error, &causes, cwd);
    let _span = spans::start("libcontainer", &create.id);
    let container = ContainerBuilder::new(create.id.clone(), SyscallType::default())
        .with_executor(Workload::new(causes.clone(), Kind::Init, restriction, environment))
        .with_root_path(root)
        .and_then(|builder| builder.with_pid_file(create.pid_file.as_ref()))
        .map_err(|error| failed(&error))?
        .with_console_socket(create.console_socket.as_ref())
        .with_preserved_fds(create.preserve_fds)
        .as_init(bundle)
        .with_systemd(false)
        .with_detach(true)
        .with_no_pivot(create.no_pivot)
        .build()
        .map_err(|error| failed(&error))?;
    container.pid().map(|pid| pid.as_raw()).ok_or_else(|| OciError::State("the container has no process".to_owned()))
}

fn last_mount(spec: &Spec) -> Option<&Path> {
    Some(spec.mounts().as_ref()?.last()?.destination())
}

/// Images name working directories that they do not have; other runtimes make them, the library does not.
fn make_working_directory(spec: &Spec, rootfs: &Path, cwd: &Path) {
    let make = || fs::File::open(rootfs).and_then(|root| vaina_sys::fs::create_dir_all_in_root(root, cwd, 0o755));
    // Where it can't be made (the file system is read-only, a file is in the way) the change to it says so.
    let _ = userns::open(spec).and_then(|user| match user {
        None => make().map(drop),
        // Or it would be owned by the node's root, who is nobody in there.
        Some(user) => vaina_sys::userns::run_in(user, &[], || make().map(drop)),
    });
}

/// What the container's process inherits and should not have from us.
pub(super) fn prepare_process(id: &str, keep_keyring: bool) -> Result<(), OciError> {
    let prepare = |step| move |source| OciError::Prepare { step, source };
    if !keep_keyring {
        let name = std::ffi::CString::new(format!("_ses.{id}")).unwrap_or_default();
        match vaina_sys::inherit::join_session_keyring(&name) {
            // In a sandbox that forbids keys there are none to protect; a full quota is no reason not to run.
            Err(error)
                if matches!(error.raw_os_error(), Some(nix::libc::EPERM | nix::libc::EACCES | nix::libc::EDQUOT)) => {}
            other => other.map_err(prepare("join session keyring"))?,
        }
    }
    // Without additional groups in the configuration the library leaves those of its caller.
    nix::unistd::setgroups(&[]).map_err(|errno| prepare("drop supplementary groups")(errno.into()))?;
    // Made on the way are mount points and symbolic links in the root file system.
    nix::sys::stat::umask(Mode::from_bits_truncate(0o022));
    Ok(())
}

/// Sets the own score, which the container's process inherits.
pub(super) fn set_oom_score(wanted: i32) -> Result<(), OciError> {
    fs::write("/proc/self/oom_score_adj", wanted.to_string()).map_err(|source| OciError::OomScore { wanted, source })
}

pub(super) fn make_private(directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}
