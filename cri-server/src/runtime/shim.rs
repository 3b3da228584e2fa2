//! One shim: started, connected to, spoken to, ended.
//!
//! Every call has a deadline but those that wait for a process to end. Whether the shim lives is asked of the kernel
//! (a pidfd), not of the shim.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use containerd_shim_protos::{
    api,
    protobuf::{Message, MessageField, well_known_types::any::Any},
    sandbox_api,
    sandbox_async::SandboxClient,
    shim_async::TaskClient,
};
use tokio::{io::unix::AsyncFd, process::Command, time::timeout};
use tracing::{Instrument as _, debug_span};
use ttrpc::context::{self, Context};
pub use vaina_proto::shim::SandboxOptions;
use vaina_proto::shim::{
    AttachRequest, BundleMount, ExitReport, HelloRequest, InspectRequest, InspectResponse, PodClient, ReopenLogRequest,
    StopRequest, TaskOptions, WaitExitRequest,
};

use super::{Handler, NAMESPACE, RuntimeError};
use crate::{
    id::{ContainerId, SandboxId},
    snapshot,
    telemetry::SPANS_VARIABLE,
};

/// Calls that only look or send a signal.
const SHORT: u64 = 10;
/// Calls that run an OCI runtime, or make namespaces.
const LONG: u64 = 60;

/// What a task is made from.
#[derive(Debug)]
pub struct CreateTask<'a> {
    /// Container.
    pub id: &'a ContainerId,
    /// OCI bundle.
    pub bundle: &'a Path,
    /// What is mounted, in order, as its root file system.
    pub rootfs: Vec<snapshot::Mount>,
    /// What else is mounted in the bundle before the OCI runtime reads it, and where below it.
    pub volumes: Vec<(PathBuf, snapshot::Mount)>,
    /// User and group that own its streams.
    pub owner: (u32, u32),
    /// It has a terminal.
    pub terminal: bool,
    /// CRI log file.
    pub log_path: Option<PathBuf>,
    /// Its stdin can be attached to.
    pub stdin: bool,
    /// Its stdin ends with the first client.
    pub stdin_once: bool,
}

/// FIFOs of a process or of a client, and whether it has a terminal.
#[derive(Debug, Default, Clone, Copy)]
pub struct ProcessStreams<'a> {
    /// Read by the process.
    pub stdin: Option<&'a Path>,
    /// Written by the process, or shown on its terminal.
    pub stdout: Option<&'a Path>,
    /// Written by the process.
    pub stderr: Option<&'a Path>,
    /// It has one.
    pub terminal: bool,
}

/// A connection to one shim.
pub struct Shim {
    sandbox_id: SandboxId,
    address: String,
    tasks: TaskClient,
    sandboxes: SandboxClient,
    pods: PodClient,
    process: AsyncFd<OwnedFd>,
    pid: u32,
}

impl std::fmt::Debug for Shim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shim").field("address", &self.address).field("pid", &self.pid).finish_non_exhaustive()
    }
}

fn limit(seconds: u64) -> Context {
    context::with_duration(Duration::from_secs(seconds))
}

/// No deadline: the answer comes when a process ends.
fn no_limit() -> Context {
    context::with_timeout(0)
}

fn any(type_url: &str, value: Vec<u8>) -> Any {
    Any { type_url: type_url.to_owned(), value, ..Any::default() }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

impl Shim {
    /// Runs the shim's `start` in its bundle and connects to what it answers.
    pub async fn start(handler: &Handler, sandbox: &SandboxId, bundle: &Path) -> Result<Self, RuntimeError> {
        let output = run(handler, sandbox, bundle, "start").instrument(debug_span!("shim", method = "start")).await?;
        let address = parse_address(&output).ok_or(RuntimeError::Address { output })?;
        Self::connect(sandbox, &address).await
    }

    /// Connects to a shim that runs, and makes sure that it answers.
    pub async fn connect(sandbox: &SandboxId, address: &str) -> Result<Self, RuntimeError> {
        let client = ttrpc::r#async::Client::connect(address)
            .instrument(debug_span!("connect"))
            .await
            .map_err(|source| RuntimeError::Connect { address: address.to_owned(), source })?;
        let pods = PodClient::new(client.clone());
        let hello = call("Hello", SHORT, pods.hello(limit(SHORT), &HelloRequest::new())).await?;
        let pid = hello.pid;
        // It answered a moment ago, so the pid is its own.
        let process = vaina_sys::process::open(pid)
            .and_then(watch_process)
            .map_err(|source| RuntimeError::Process { pid, source })?;
        Ok(Self {
            sandbox_id: sandbox.clone(),
            address: address.to_owned(),
            tasks: TaskClient::new(client.clone()),
            sandboxes: SandboxClient::new(client),
            pods,
            process,
            pid,
        })
    }

    /// Address of its socket.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Runs the shim's `delete`: what containerd calls clean-up after a shim that is gone or hangs.
    pub async fn cleanup(handler: &Handler, sandbox: &SandboxId, bundle: &Path) -> Result<(), RuntimeError> {
        run(handler, sandbox, bundle, "delete").instrument(debug_span!("shim", method = "delete")).await.map(drop)
    }

    /// Waits for the shim's process to end.
    pub async fn ended(&self) {
        // A pidfd becomes readable when its process ends. An error here could only be a closed descriptor, which is ours.
        drop(self.process.readable().await);
    }

    /// Makes the pod's namespaces.
    pub async fn create_sandbox(
        &self,
        bundle: &Path,
        netns: Option<&Path>,
        options: &SandboxOptions,
    ) -> Result<(), RuntimeError> {
        let encoded = options.write_to_bytes().unwrap_or_default();
        let request = sandbox_api::CreateSandboxRequest {
            sandbox_id: self.sandbox_id.to_string(),
            bundle_path: text(bundle),
            netns_path: netns.map(text).unwrap_or_default(),
            options: MessageField::some(any("vaina.shim.v1.SandboxOptions", encoded)),
            ..Default::default()
        };
        call("CreateSandbox", LONG, self.sandboxes.create_sandbox(limit(LONG), &request)).await.map(drop)
    }

    /// Starts the sandbox; answers the pid whose namespaces are the pod's.
    pub async fn start_sandbox(&self) -> Result<u32, RuntimeError> {
        let request =
            sandbox_api::StartSandboxRequest { sandbox_id: self.sandbox_id.to_string(), ..Default::default() };
        call("StartSandbox", LONG, self.sandboxes.start_sandbox(limit(LONG), &request)).await.map(|answer| answer.pid)
    }

    /// Stops the sandbox: what the shim itself started in it ends.
    pub async fn stop_sandbox(&self) -> Result<(), RuntimeError> {
        let request = sandbox_api::StopSandboxRequest { sandbox_id: self.sandbox_id.to_string(), ..Default::default() };
        call("StopSandbox", LONG, self.sandboxes.stop_sandbox(limit(LONG), &request)).await.map(drop)
    }

    /// Ends the shim, and waits until its process is gone.
    pub async fn shutdown(&self) -> Result<(), RuntimeError> {
        let request =
            sandbox_api::ShutdownSandboxRequest { sandbox_id: self.sandbox_id.to_string(), ..Default::default() };
        let answer = call("ShutdownSandbox", SHORT, self.sandboxes.shutdown_sandbox(limit(SHORT), &request)).await;
        let ended = timeout(Duration::from_secs(SHORT), self.ended());
        let gone = ended.instrument(debug_span!("shim", method = "end")).await.is_ok();
        match answer {
            _ if gone => Ok(()),
            Ok(_) => Err(RuntimeError::Timeout { method: "ShutdownSandbox", seconds: SHORT }),
            Err(error) => Err(error),
        }
    }

    /// Kills the shim's process and waits until it is gone; for one that hangs.
    pub async fn kill(&self) -> io::Result<()> {
        match vaina_sys::process::signal(self.process.get_ref(), 9) {
            Err(error) if error.raw_os_error() != Some(nix::libc::ESRCH) => return Err(error),
            _ => {}
        }
        timeout(Duration::from_secs(SHORT), self.ended()).await.map_err(|_| io::ErrorKind::TimedOut.into())
    }

    /// Makes a container in the OCI runtime.
    pub async fn create_task(&self, handler: Option<&Handler>, task: &CreateTask<'_>) -> Result<(), RuntimeError> {
        let options = TaskOptions {
            binary_name: handler.map(|handler| handler.runtime.clone()).unwrap_or_default(),
            root: handler.map(|handler| text(&handler.runtime_root)).unwrap_or_default(),
            log_path: task.log_path.as_deref().map(text).unwrap_or_default(),
            stdin: task.stdin,
            stdin_once: task.stdin_once,
            io_uid: task.owner.0,
            io_gid: task.owner.1,
            volumes: task
                .volumes
                .iter()
                .map(|(target, mount)| BundleMount {
                    target: text(target),
                    type_: mount.type_.clone(),
                    source: mount.source.clone(),
                    options: mount.options.clone(),
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        };
        let encoded = options.write_to_bytes().unwrap_or_default();
        let rootfs = task.rootfs.iter().map(|mount| containerd_shim_protos::types::mount::Mount {
            type_: mount.type_.clone(),
            source: mount.source.clone(),
            options: mount.options.clone(),
            ..Default::default()
        });
        let request = api::CreateTaskRequest {
            id: task.id.to_string(),
            bundle: text(task.bundle),
            rootfs: rootfs.collect(),
            terminal: task.terminal,
            options: MessageField::some(any("vaina.shim.v1.TaskOptions", encoded)),
            ..Default::default()
        };
        call("Create", LONG, self.tasks.create(limit(LONG), &request)).await.map(drop)
    }

    /// Starts a container; answers its pid.
    pub async fn start_task(&self, id: &ContainerId) -> Result<u32, RuntimeError> {
        self.start_any(id, "").await
    }

    /// Changes the limits of a container; `resources` are OCI `LinuxResources` as JSON.
    pub async fn update_task(&self, id: &ContainerId, resources: Vec<u8>) -> Result<(), RuntimeError> {
        let resources = any("types.containerd.io/opencontainers/runtime-spec/1/LinuxResources", resources);
        let request = api::UpdateTaskRequest {
            id: id.to_string(),
            resources: MessageField::some(resources),
            ..Default::default()
        };
        let answer = self.tasks.update(limit(LONG), &request).await;
        answer.map(drop).map_err(|error| RuntimeError::from_call("Update", LONG, error))
    }

    /// Deletes a container that has ended or was never started.
    pub async fn delete_task(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.delete_any(id, "").await
    }

    /// Waits until a container has ended; answers how.
    pub async fn wait_exit(&self, id: &ContainerId) -> Result<ExitReport, RuntimeError> {
        let request = WaitExitRequest { id: id.to_string(), ..Default::default() };
        call("WaitExit", 0, self.pods.wait_exit(no_limit(), &request)).await
    }

    /// Sends a signal (0 for none) and arms the stop clock; everything is killed when it runs out. A clock that runs is only
    /// shortened, unless this stop begins `anew`.
    pub async fn stop(&self, id: &ContainerId, signal: i32, grace: Duration, anew: bool) -> Result<(), RuntimeError> {
        let request = StopRequest {
            id: id.to_string(),
            signal: u32::try_from(signal).unwrap_or_default(),
            grace: i64::try_from(grace.as_nanos()).unwrap_or(i64::MAX),
            anew,
            ..Default::default()
        };
        call("Stop", SHORT, self.pods.stop(limit(SHORT), &request)).await.map(drop)
    }

    /// Opens the log file of a container anew.
    pub async fn reopen_log(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let request = ReopenLogRequest { id: id.to_string(), ..Default::default() };
        call("ReopenLog", SHORT, self.pods.reopen_log(limit(SHORT), &request)).await.map(drop)
    }

    /// All that the shim knows of its containers.
    pub async fn inspect(&self) -> Result<InspectResponse, RuntimeError> {
        call("Inspect", SHORT, self.pods.inspect(limit(SHORT), &InspectRequest::new())).await
    }

    /// Prepares a further process in a container; `process` is an OCI process as JSON.
    pub async fn exec_process(
        &self,
        id: &ContainerId,
        exec_id: &str,
        process: &[u8],
        streams: &ProcessStreams<'_>,
    ) -> Result<(), RuntimeError> {
        let spec = any("types.containerd.io/opencontainers/runtime-spec/1/Process", process.to_vec());
        let request = api::ExecProcessRequest {
            id: id.to_string(),
            exec_id: exec_id.to_owned(),
            stdin: streams.stdin.map(text).unwrap_or_default(),
            stdout: streams.stdout.map(text).unwrap_or_default(),
            stderr: streams.stderr.map(text).unwrap_or_default(),
            terminal: streams.terminal,
            spec: MessageField::some(spec),
            ..Default::default()
        };
        call("Exec", SHORT, self.tasks.exec(limit(SHORT), &request)).await.map(drop)
    }

    /// Starts a prepared process.
    pub async fn start_process(&self, id: &ContainerId, exec_id: &str) -> Result<u32, RuntimeError> {
        self.start_any(id, exec_id).await
    }

    /// Waits until a further process has ended; answers its exit code.
    pub async fn wait_process(&self, id: &ContainerId, exec_id: &str) -> Result<u32, RuntimeError> {
        let request = api::WaitRequest { id: id.to_string(), exec_id: exec_id.to_owned(), ..Default::default() };
        call("Wait", 0, self.tasks.wait(no_limit(), &request)).await.map(|answer| answer.exit_status)
    }

    /// Sends a signal to a further process and to all that it started.
    pub async fn kill_process(&self, id: &ContainerId, exec_id: &str, signal: u32) -> Result<(), RuntimeError> {
        let request = api::KillRequest {
            id: id.to_string(),
            exec_id: exec_id.to_owned(),
            signal,
            all: true,
            ..Default::default()
        };
        call("Kill", SHORT, self.tasks.kill(limit(SHORT), &request)).await.map(drop)
    }

    /// Sets the size of the terminal of a further process, or of the container itself without an id.
    pub async fn resize_process(
        &self,
        id: &ContainerId,
        exec_id: &str,
        columns: u16,
        rows: u16,
    ) -> Result<(), RuntimeError> {
        let request = api::ResizePtyRequest {
            id: id.to_string(),
            exec_id: exec_id.to_owned(),
            width: columns.into(),
            height: rows.into(),
            ..Default::default()
        };
        call("ResizePty", SHORT, self.tasks.resize_pty(limit(SHORT), &request)).await.map(drop)
    }

    /// Closes what the shim has open of the stdin of a further process.
    pub async fn close_stdin(&self, id: &ContainerId, exec_id: &str) -> Result<(), RuntimeError> {
        let request =
            api::CloseIORequest { id: id.to_string(), exec_id: exec_id.to_owned(), stdin: true, ..Default::default() };
        call("CloseIO", SHORT, self.tasks.close_io(limit(SHORT), &request)).await.map(drop)
    }

    /// Shows a client what a container writes from now on; answers whether the container takes what the client writes.
    pub async fn attach(&self, id: &ContainerId, streams: &ProcessStreams<'_>) -> Result<bool, RuntimeError> {
        let request = AttachRequest {
            id: id.to_string(),
            stdin: streams.stdin.map(text).unwrap_or_default(),
            stdout: streams.stdout.map(text).unwrap_or_default(),
            stderr: streams.stderr.map(text).unwrap_or_default(),
            ..Default::default()
        };
        call("Attach", SHORT, self.pods.attach(limit(SHORT), &request)).await.map(|answer| answer.stdin)
    }

    /// Forgets a further process that has ended.
    pub async fn delete_process(&self, id: &ContainerId, exec_id: &str) -> Result<(), RuntimeError> {
        self.delete_any(id, exec_id).await
    }

    async fn start_any(&self, id: &ContainerId, exec_id: &str) -> Result<u32, RuntimeError> {
        let request = api::StartRequest { id: id.to_string(), exec_id: exec_id.to_owned(), ..Default::default() };
        call("Start", LONG, self.tasks.start(limit(LONG), &request)).await.map(|answer| answer.pid)
    }

    async fn delete_any(&self, id: &ContainerId, exec_id: &str) -> Result<(), RuntimeError> {
        let request = api::DeleteRequest { id: id.to_string(), exec_id: exec_id.to_owned(), ..Default::default() };
        call("Delete", LONG, self.tasks.delete(limit(LONG), &request)).await.map(drop)
    }
}

/// Awaits the answer to a call.
async fn call<T>(
    method: &'static str,
    seconds: u64,
    answer: impl Future<Output = ttrpc::Result<T>>,
) -> Result<T, RuntimeError> {
    let answer = answer.instrument(debug_span!("shim", method)).await;
    answer.map_err(|error| RuntimeError::from_call(method, seconds, error))
}

/// Runs one of the shim's short-lived commands in the bundle; answers what it printed.
async fn run(
    handler: &Handler,
    sandbox: &SandboxId,
    bundle: &Path,
    command: &'static str,
) -> Result<String, RuntimeError> {
    let binary = handler.shim.clone();
    let spawn = |source| RuntimeError::Spawn { binary: binary.clone(), command, source };
    // A file, not a pipe: the shim that stays behind may keep it open.
    let log_path = bundle.join("shim.log");
    let log = File::options().create(true).append(true).open(&log_path).map_err(spawn)?;
    let mut process = Command::new(&handler.shim);
    process
        .args(["-namespace", NAMESPACE, "-id", sandbox.as_str(), "-address", ""])
        .arg("-bundle")
        .arg(bundle)
        .arg(command)
        .current_dir(bundle)
        .env_clear()
        .envs(
            ["PATH", "RUST_LOG", "RUST_BACKTRACE", SPANS_VARIABLE]
                .into_iter()
                .filter_map(|name| Some((name, std::env::var_os(name)?))),
        )
        .env("MAX_SHIM_VERSION", "3")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .kill_on_drop(true);
    #[cfg(feature = "failpoints")]
    process.envs(vaina_sys::failpoint::environment());
    let child = debug_span!("spawn").in_scope(|| process.spawn()).map_err(spawn)?;
    let output = timeout(Duration::from_secs(LONG), child.wait_with_output())
        .await
        .map_err(|_| RuntimeError::SpawnTimeout { binary: binary.clone(), command, seconds: LONG })?
        .map_err(spawn)?;
    if !output.status.success() {
        let said = std::fs::read(&log_path).unwrap_or_default();
        let message = tail(&said);
        return Err(RuntimeError::Exit { binary, command, status: output.status.to_string(), message });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The end of what a program said, on one line.
fn tail(said: &[u8]) -> String {
    const KEPT: usize = 1024;
    let start = said.len().saturating_sub(KEPT);
    let text = String::from_utf8_lossy(&said[start..]);
    text.trim().replace('\n', "; ")
}

#[expect(
    deprecated,
    reason = "the safe constructor; an owned descriptor keeps the promise that the unsafe one asks for"
)]
fn watch_process(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(pidfd)
}

/// The address that `start` printed: bare (version 2 of the protocol), or in a JSON object (version 3).
fn parse_address(output: &str) -> Option<String> {
    let output = output.trim();
    let address = match serde_json::from_str::<HashMap<String, serde_json::Value>>(output) {
        Ok(fields) => fields.get("address")?.as_str()?.to_owned(),
        Err(_) => output.to_owned(),
    };
    (address.starts_with("unix:") && !address.contains(char::is_whitespace)).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_in_both_forms() {
        for (output, address) in [
            ("unix:///run/a\n", Some("unix:///run/a")),
            (r#"{"version":3,"address":"unix:///run/b","protocol":"ttrpc"}"#, Some("unix:///run/b")),
            (r#"{"version":3}"#, None),
            ("panicked", None),
            ("", None),
        ] {
            assert_eq!(parse_address(output).as_deref(), address, "{output}");
        }
    }

    #[tokio::test]
    async fn a_shim_that_fails_is_quoted() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let shim = dir.path().join("shim");
        std::fs::write(&shim, "#!/bin/sh\necho no luck >&2\nexit 3\n").unwrap();
        std::fs::set_permissions(&shim, std::fs::Permissions::from_mode(0o755)).unwrap();
        let handler =
            Handler { name: String::new(), shim, runtime: String::new(), runtime_root: dir.path().join("oci") };
        let error = Shim::start(&handler, &SandboxId::new("a"), dir.path()).await.unwrap_err();
        assert!(error.to_string().contains("no luck"), "{error}");
        let gone = Handler { shim: dir.path().join("none"), ..handler };
        let error = Shim::start(&gone, &SandboxId::new("a"), dir.path()).await.unwrap_err();
        assert!(matches!(error, RuntimeError::Spawn { .. }), "{error}");
    }
}
