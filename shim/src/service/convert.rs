//! Messages to and from what the pod works with.

use std::path::{Component, PathBuf};

use containerd_shim_protos::{
    api::{CreateTaskRequest, ProcessInfo, StateResponse, Status},
    protobuf::{EnumOrUnknown, MessageField, well_known_types::any::Any},
    sandbox_api::CreateSandboxRequest,
    shim::oci::Options,
};
use vaina_proto::shim::{ContainerPhase, ContainerState, SandboxOptions, TaskOptions};

use crate::{
    container::{Container, Create, Streams},
    error::{Result, ShimError},
    io::stdio::Input,
    mount::BundleMount,
    pause::Namespaces,
    pod::{Pod, timestamp},
    process::{Phase, Process, Stdio},
};

/// The last part of a type URL, with or without a host before it.
fn type_name(any: &Any) -> &str {
    any.type_url.rsplit('/').next().unwrap_or_default()
}

fn decode<T: containerd_shim_protos::protobuf::Message>(any: &Any) -> Result<T> {
    T::parse_from_bytes(&any.value).map_err(|error| ShimError::Invalid(format!("decode {}: {error}", any.type_url)))
}

/// The options of our own daemon, of a stock containerd, or none.
pub(super) fn create(pod: &Pod, request: CreateTaskRequest) -> Result<Create> {
    let options = match request.options.as_ref() {
        Some(any) if type_name(any) == "vaina.shim.v1.TaskOptions" => decode::<TaskOptions>(any)?,
        Some(any) if type_name(any) == "containerd.runc.v1.Options" => {
            let options: Options = decode(any)?;
            TaskOptions {
                // The name of runc there is a default that means "your own".
                binary_name: options.binary_name,
                root: options.root,
                systemd_cgroup: options.systemd_cgroup,
                io_uid: options.io_uid,
                io_gid: options.io_gid,
                ..TaskOptions::default()
            }
        }
        Some(any) if !any.type_url.is_empty() => {
            return Err(ShimError::Invalid(format!("task options of type {:?} are not known", any.type_url)));
        }
        _ => TaskOptions::default(),
    };
    if !request.checkpoint.is_empty() {
        return Err(ShimError::Unimplemented("creating from a checkpoint"));
    }
    let is_ours = request.options.as_ref().is_some_and(|any| type_name(any) == "vaina.shim.v1.TaskOptions");
    let nameless = [&request.stdin, &request.stdout, &request.stderr].into_iter().all(String::is_empty);
    let bundle = PathBuf::from(request.bundle);
    if !bundle.is_absolute() {
        return Err(ShimError::Invalid(format!("bundle {} is not absolute", bundle.display())));
    }
    let mut mounts: Vec<_> = request
        .rootfs
        .into_iter()
        .map(|mount| BundleMount {
            target: "rootfs".into(),
            fs_type: mount.type_,
            source: mount.source,
            options: mount.options,
        })
        .collect();
    for volume in options.volumes {
        let target = PathBuf::from(volume.target);
        if !target.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(ShimError::Invalid(format!("volume {} is not below the bundle", target.display())));
        }
        mounts.push(BundleMount { target, fs_type: volume.type_, source: volume.source, options: volume.options });
    }
    Ok(Create {
        id: request.id,
        bundle,
        mounts,
        stdio: Stdio {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        },
        streams: if is_ours && (nameless || !options.log_path.is_empty()) {
            Streams::Kept {
                log: Some(options.log_path).filter(|path| !path.is_empty()).map(PathBuf::from),
                input: match (options.stdin, options.stdin_once) {
                    (false, _) => Input::None,
                    (true, false) => Input::Open,
                    (true, true) => Input::Once,
                },
            }
        } else {
            Streams::Passed
        },
        owner: (options.io_uid, options.io_gid),
        runtime: pod.runtime(&options.binary_name, &options.root, options.systemd_cgroup),
    })
}

/// Which namespaces a sandbox is to have.
pub(super) fn namespaces(request: CreateSandboxRequest) -> Result<Namespaces> {
    let options = match request.options.as_ref() {
        Some(any) if type_name(any) == "vaina.shim.v1.SandboxOptions" => decode::<SandboxOptions>(any)?,
        // Others' options say nothing of namespaces.
        _ => SandboxOptions::default(),
    };
    Ok(Namespaces {
        host_network: options.host_network,
        host_ipc: options.host_ipc,
        shared_pid: options.shared_pid,
        netns: request.netns_path,
        hostname: options.hostname,
        sysctls: options.sysctls.into_iter().collect(),
        ipc_pin: options.ipc_pin,
        uts_pin: options.uts_pin,
        user_pin: options.user_pin,
    })
}

/// `State` of a process.
pub(super) fn state(container: &Container, exec_id: &str, process: &Process) -> StateResponse {
    let phase = process.phase();
    let mut state = StateResponse {
        id: container.id.clone(),
        exec_id: exec_id.to_owned(),
        bundle: container.bundle.to_string_lossy().into_owned(),
        pid: phase.pid(),
        status: EnumOrUnknown::new(match &phase {
            Phase::Prepared | Phase::Created { .. } => Status::CREATED,
            Phase::Running { .. } if exec_id.is_empty() && container.is_paused() => Status::PAUSED,
            Phase::Running { .. } => Status::RUNNING,
            Phase::Exited { .. } => Status::STOPPED,
        }),
        stdin: process.stdio.stdin.clone(),
        stdout: process.stdio.stdout.clone(),
        stderr: process.stdio.stderr.clone(),
        terminal: process.stdio.terminal,
        ..StateResponse::default()
    };
    if let Phase::Exited { report, .. } = &phase {
        state.exit_status = report.exit_code;
        state.exited_at = MessageField::some(timestamp(report.exited_at));
    }
    state
}

pub(super) fn process_info(pid: u32) -> ProcessInfo {
    ProcessInfo { pid, ..ProcessInfo::default() }
}

/// One container of an `Inspect`.
pub(super) fn inspect(container: &Container) -> ContainerState {
    let phase = container.init.phase();
    let mut state = ContainerState {
        id: container.id.clone(),
        phase: EnumOrUnknown::new(match &phase {
            Phase::Prepared | Phase::Created { .. } => ContainerPhase::CREATED,
            Phase::Running { .. } => ContainerPhase::RUNNING,
            Phase::Exited { .. } => ContainerPhase::EXITED,
        }),
        pid: phase.live_pid().unwrap_or(0),
        created_at: container.created_at,
        started_at: phase.started_at(),
        stop_deadline: container.stop_deadline(),
        ..ContainerState::default()
    };
    if let Phase::Exited { report, .. } = phase {
        state.exit = MessageField::some(report);
    }
    state
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::protobuf::Message as _;

    use super::*;

    #[test]
    fn options_are_known_by_their_name_with_and_without_a_host() {
        for url in ["vaina.shim.v1.SandboxOptions", "type.googleapis.com/vaina.shim.v1.SandboxOptions"] {
            let options = SandboxOptions { hostname: "h".to_owned(), shared_pid: true, ..SandboxOptions::default() };
            let any = Any { type_url: url.to_owned(), value: options.write_to_bytes().unwrap(), ..Any::default() };
            let request = CreateSandboxRequest {
                netns_path: "/n".to_owned(),
                options: MessageField::some(any),
                ..CreateSandboxRequest::default()
            };
            let namespaces = namespaces(request).unwrap();
            assert_eq!((namespaces.hostname.as_str(), namespaces.netns.as_str()), ("h", "/n"));
            assert!(namespaces.shared_pid && !namespaces.host_network);
        }
    }
}
