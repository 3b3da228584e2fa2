//! Runs a further process in a container.

use std::{fs, io, path::Path};

use libcontainer::{
    container::{ContainerStatus, builder::ContainerBuilder},
    oci_spec::runtime::{Capability, Process, Spec},
    syscall::syscall::SyscallType,
};
use nix::{
    errno::Errno,
    sys::wait::{WaitStatus, waitpid},
};

use super::{
    OciError,
    args::Exec,
    container::{Container, shadow},
    create::{prepare_process, set_oom_score},
    entry::Entry,
    environment,
    restriction::{self, Restriction},
    spec,
    trace::Causes,
    userns,
    workload::{Kind, Workload},
};

/// Runs the process; answers its exit code, or 0 at once when it is detached.
pub(super) fn exec(root: &Path, exec: &Exec) -> Result<u8, OciError> {
    let read = |path: &Path, source| OciError::Read { path: path.to_owned(), source };
    let root = fs::canonicalize(root).map_err(|source| read(root, source))?;
    let container = Container::load(&root, &exec.id)?;
    match container.status() {
        ContainerStatus::Running => {}
        ContainerStatus::Paused if exec.ignore_paused => {}
        ContainerStatus::Paused => {
            return Err(OciError::State(
                "cannot exec in a paused container (use --ignore-paused to override)".to_owned(),
            ));
        }
        ContainerStatus::Creating | ContainerStatus::Created | ContainerStatus::Stopped => {
            return Err(OciError::State("cannot exec in a container that is not running".to_owned()));
        }
    }
    let spec = container_spec(&container)?;
    let environment = environment::of(&spec)?;
    let own = spec.process().clone().unwrap_or_default();
    let mut process = process(exec, &own)?;
    spec::inherit(&mut process, &own);
    spec::normalise_process(&mut process);

    // The library does not apply the container's filter to further processes.
    let seccomp = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    if seccomp.is_some() && restriction::profile(seccomp).is_none() {
        return Err(OciError::State("a seccomp listener is not supported for an exec".to_owned()));
    }
    let restriction = Restriction::new(seccomp, &mut process, &root)?;
    prepare_process(&exec.id, false)?;
    userns::give_streams(&spec, &process)
        .map_err(|source| OciError::Prepare { step: "give the streams to the process's user", source })?;
    if let Some(wanted) = process.oom_score_adj() {
        set_oom_score(wanted)?;
    }
    let entry = Entry::of(&spec, &container, &mut process)?;

    // The library finds a container by its directory and leaves sockets in there, whose names nobody else knows. So each exec
    // has a directory of its own with the container's state in it, and takes it away as a whole.
    let view = shadow(&root, &exec.id).join(format!("exec-{}", std::process::id()));
    let file = view.join("process.json");
    let written = make_view(&view, &exec.id, &container.directory())
        .and_then(|()| fs::write(&file, serde_json::to_vec(&process).map_err(io::Error::from)?));
    let cwd = process.cwd().clone();
    let made = written.map_err(|source| OciError::Write { path: view.clone(), source }).and_then(|()| {
        run(&view, exec, &file, &cwd, |causes| {
            Workload::new(causes, Kind::Exec, restriction, environment).through(entry)
        })
    });
    let _ = fs::remove_dir_all(&view);
    if made.is_err()
        && let Some(pid_file) = &exec.pid_file
    {
        let _ = fs::remove_file(pid_file);
    }
    let pid = made?;
    if exec.detach { Ok(0) } else { wait(pid) }
}

fn run(
    root: &Path,
    exec: &Exec,
    process: &Path,
    cwd: &Path,
    workload: impl FnOnce(Causes) -> Workload,
) -> Result<nix::unistd::Pid, OciError> {
    let causes =
        Causes::collect(&exec.id, None).map_err(|source| OciError::Prepare { step: "collect causes", source })?;
    let failed =
        |error: &libcontainer::error::LibcontainerError| OciError::forked("exec in container", error, &causes, cwd);
    let _span = crate::spans::start("libcontainer", &exec.id);
    let pid = ContainerBuilder::new(exec.id.clone(), SyscallType::default())
        .with_executor(workload(causes.clone()))
        .with_root_path(root)
        .and_then(|builder| builder.with_pid_file(exec.pid_file.as_ref()))
        .map_err(|error| failed(&error))?
        .with_console_socket(exec.console_socket.as_ref())
        .with_preserved_fds(exec.preserve_fds)
        .as_tenant()
        .with_detach(exec.detach)
        .with_process(Some(process))
        .with_ignore_paused(exec.ignore_paused)
        .build()
        .map_err(|error| failed(&error))?;
    // The library uses an older nix.
    Ok(nix::unistd::Pid::from_raw(pid.as_raw()))
}

/// What the container was created from, as its caller wrote it.
fn container_spec(container: &Container) -> Result<Spec, OciError> {
    Spec::load(container.bundle().join("config.json")).map_err(|error| OciError::library("load config.json", &error))
}

/// The process that was described in a file, or by flags on the ground of the container's own.
fn process(exec: &Exec, own: &Process) -> Result<Process, OciError> {
    if let Some(path) = &exec.process {
        let text = fs::read(path).map_err(|source| OciError::Read { path: path.clone(), source })?;
        return serde_json::from_slice(&text).map_err(|source| OciError::Process { source });
    }
    if exec.args.is_empty() {
        return Err(OciError::State("exec needs a process file or a command".to_owned()));
    }
    let mut process = own.clone();
    process.set_args(Some(exec.args.clone()));
    process.set_terminal(Some(exec.tty));
    let env = own.env().iter().flatten().chain(&exec.env).cloned().collect();
    process.set_env(Some(env));
    if let Some(cwd) = &exec.cwd {
        process.set_cwd(cwd.clone());
    }
    let mut user = own.user().clone();
    if let Some(uid) = exec.uid {
        user.set_uid(uid);
        user.set_gid(exec.gid.unwrap_or(0));
        user.set_additional_gids(None);
    }
    if !exec.additional_gids.is_empty() {
        user.set_additional_gids(Some(exec.additional_gids.clone()));
    }
    process.set_user(user);
    if exec.no_new_privileges {
        process.set_no_new_privileges(Some(true));
    }
    let wanted: Vec<Capability> = exec
        .capabilities
        .iter()
        .map(|name| {
            serde_json::from_value(name.to_ascii_uppercase().into()).map_err(|source| OciError::Process { source })
        })
        .collect::<Result<_, _>>()?;
    spec::lend(&mut process, &wanted);
    Ok(process)
}

fn make_view(view: &Path, id: &str, container: &Path) -> io::Result<()> {
    let own = view.join(id);
    fs::create_dir_all(&own)?;
    std::os::unix::fs::symlink(container.join("state.json"), own.join("state.json"))
}

fn wait(pid: nix::unistd::Pid) -> Result<u8, OciError> {
    loop {
        match waitpid(pid, None) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(u8::try_from(code).unwrap_or(255)),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128 + u8::try_from(signal as i32).unwrap_or(0)),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(OciError::Prepare { step: "wait for the process", source: errno.into() }),
        }
    }
}
