//! Drives an OCI runtime command line: our own executable, crun, runc or any other that takes the same arguments.
//!
//! No state: argv in, exit status and the JSON log out. Everything that a runtime says is read here and nowhere else.
//! Where the kernel can be asked instead (is it alive, how did it end), it is, and the runtime's text is not.

use std::{
    fs, io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use crate::{
    bootstrap::LegacyContainer,
    io::stdio::Triple,
    mount::{self, BundleMount},
    reaper::Reaper,
    spans,
};

/// Why a runtime's command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RuntimeError {
    #[error("start OCI runtime {binary} for {command:?}")]
    Start { command: &'static str, binary: String, source: io::Error },
    #[error("{message}")]
    NotFound { message: String },
    #[error("{command} container: {message}")]
    Refused { command: &'static str, message: String },
    #[error("read the pid that {command:?} wrote to {}", .path.display())]
    Pid { command: &'static str, path: PathBuf, source: io::Error },
}

impl RuntimeError {
    pub(crate) fn code(&self) -> ttrpc::Code {
        match self {
            Self::NotFound { .. } => ttrpc::Code::NOT_FOUND,
            _ => ttrpc::Code::UNKNOWN,
        }
    }
}

/// Which runtime, and how it keeps its state.
#[derive(Debug, Clone)]
pub(crate) struct Runtime {
    program: Program,
    root: PathBuf,
    systemd_cgroup: bool,
}

#[derive(Debug, Clone)]
enum Program {
    /// This executable, run from a mount that can't be written: what a container does with `/proc/self/exe` of its own
    /// init before the exec, it does to that (CVE-2019-5736).
    Own(Arc<OwnedFd>),
    /// Any other, by name or path.
    Other(String),
}

/// What a `create` is given.
pub(crate) struct Create<'a> {
    pub(crate) id: &'a str,
    pub(crate) bundle: &'a Path,
    pub(crate) mounts: &'a [BundleMount],
    pub(crate) stdio: Triple,
    pub(crate) console_socket: Option<&'a Path>,
}

/// What an `exec` is given.
pub(crate) struct Exec<'a> {
    pub(crate) id: &'a str,
    pub(crate) process: &'a Path,
    pub(crate) pid_file: &'a Path,
    pub(crate) log: &'a Path,
    pub(crate) stdio: Triple,
    pub(crate) console_socket: Option<&'a Path>,
}

impl Runtime {
    /// `binary` empty means our own; `own` is then the sealed descriptor of this executable.
    pub(crate) fn new(binary: &str, own: &Arc<OwnedFd>, root: PathBuf, systemd_cgroup: bool) -> Self {
        let program = if binary.is_empty() { Program::Own(Arc::clone(own)) } else { Program::Other(binary.to_owned()) };
        Self { program, root, systemd_cgroup }
    }

    /// How it is removed when this process is gone.
    pub(crate) fn legacy(&self) -> LegacyContainer {
        let runtime = match &self.program {
            Program::Own(_) => String::new(),
            Program::Other(binary) => binary.clone(),
        };
        LegacyContainer { runtime, root: self.root.clone() }
    }

    fn name(&self) -> &str {
        match &self.program {
            Program::Own(_) => "vaina",
            Program::Other(binary) => binary,
        }
    }

    fn command(&self, log: &Path, command: &'static str) -> Command {
        let mut line = match &self.program {
            Program::Own(own) => {
                let mut line = Command::new(format!("/proc/self/fd/{}", own.as_raw_fd()));
                line.arg("oci");
                line
            }
            Program::Other(binary) => Command::new(binary),
        };
        line.arg("--root").arg(&self.root).arg("--log").arg(log).args(["--log-format", "json"]);
        if self.systemd_cgroup {
            line.arg("--systemd-cgroup");
        }
        line.arg(command);
        line
    }

    async fn run(
        &self,
        reaper: &Reaper,
        mut line: Command,
        command: &'static str,
        log: &Path,
    ) -> Result<(), RuntimeError> {
        let spawning = spans::start("spawn", "");
        let started = reaper.spawn(&mut line);
        drop(spawning);
        // The streams of the container are open in `line` as well; they must not outlive the start.
        drop(line);
        let child = started.map_err(|source| {
            let text = fs::read_to_string(log).unwrap_or_default();
            let _ = fs::remove_file(log);
            match last_error(&text) {
                Some(message) => RuntimeError::Refused { command, message },
                None => RuntimeError::Start { command, binary: self.name().to_owned(), source },
            }
        })?;
        let exit = child.wait().await;
        let text = if exit.code == 0 { String::new() } else { fs::read_to_string(log).unwrap_or_default() };
        let _ = fs::remove_file(log);
        if exit.code == 0 {
            return Ok(());
        }
        let message = last_error(&text)
            .unwrap_or_else(|| format!("OCI runtime {} ended with code {} and said nothing", self.name(), exit.code));
        Err(if is_not_found(&message) {
            RuntimeError::NotFound { message }
        } else {
            RuntimeError::Refused { command, message }
        })
    }

    /// Makes the container; answers the pid of its init, which waits for `start`. The caller keeps unknown exits.
    pub(crate) async fn create(&self, reaper: &Reaper, create: Create<'_>) -> Result<u32, RuntimeError> {
        let _span = spans::start("oci.create", create.id);
        let (log, pid_file) = (create.bundle.join("oci.log"), create.bundle.join("init.pid"));
        let _ = fs::remove_file(&pid_file);
        let mut line = self.command(&log, "create");
        line.arg("--bundle").arg(create.bundle).arg("--pid-file").arg(&pid_file);
        if let Some(socket) = create.console_socket {
            line.arg("--console-socket").arg(socket);
        }
        line.arg(create.id).current_dir(create.bundle);
        line.stdin(create.stdio.stdin).stdout(create.stdio.stdout).stderr(create.stdio.stderr);
        if !create.mounts.is_empty() {
            let (id, bundle, mounts) = (create.id.to_owned(), create.bundle.to_owned(), create.mounts.to_vec());
            let words = log.clone();
            let enter = move || {
                let _span = spans::start_before_exec("mount root file system", &id);
                // Of an error only the number gets through an exec that does not happen.
                mount::enter(&bundle, &mounts).inspect_err(|error| {
                    let line = serde_json::json!({ "level": "error", "msg": error.to_string() });
                    let _ = fs::write(&words, line.to_string());
                })
            };
            vaina_sys::process::before_exec(&mut line, enter).map_err(|source| RuntimeError::Start {
                command: "create",
                binary: self.name().to_owned(),
                source,
            })?;
        }
        self.run(reaper, line, "create", &log).await?;
        read_pid("create", &pid_file)
    }

    /// Has the init go on to the container's program.
    pub(crate) async fn start(&self, reaper: &Reaper, id: &str, bundle: &Path) -> Result<(), RuntimeError> {
        let _span = spans::start("oci.start", id);
        self.simple(reaper, "start", &["start", id], bundle).await
    }

    /// Removes what the runtime keeps of a container, by force.
    pub(crate) async fn delete(&self, reaper: &Reaper, id: &str, bundle: &Path) -> Result<(), RuntimeError> {
        let _span = spans::start("oci.delete", id);
        match self.simple(reaper, "delete", &["delete", "--force", id], bundle).await {
            Err(RuntimeError::NotFound { .. }) => Ok(()),
            other => other,
        }
    }

    /// Stops or goes on with all processes of the container.
    pub(crate) async fn freeze(
        &self,
        reaper: &Reaper,
        id: &str,
        bundle: &Path,
        pause: bool,
    ) -> Result<(), RuntimeError> {
        let command = if pause { "pause" } else { "resume" };
        self.simple(reaper, command, &[command, id], bundle).await
    }

    /// Changes limits; `resources` is a file with OCI `LinuxResources`.
    pub(crate) async fn update(
        &self,
        reaper: &Reaper,
        id: &str,
        bundle: &Path,
        resources: &Path,
    ) -> Result<(), RuntimeError> {
        let file = resources.to_string_lossy();
        self.simple(reaper, "update", &["update", "--resources", &file, id], bundle).await
    }

    async fn simple(
        &self,
        reaper: &Reaper,
        command: &'static str,
        arguments: &[&str],
        bundle: &Path,
    ) -> Result<(), RuntimeError> {
        let log = bundle.join(format!("oci-{command}.log"));
        let mut line = self.command(&log, command);
        line.args(&arguments[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.run(reaper, line, command, &log).await
    }

    /// Runs a further process in the container and answers its pid.
    pub(crate) async fn exec(&self, reaper: &Reaper, exec: Exec<'_>) -> Result<u32, RuntimeError> {
        let _span = spans::start("oci.exec", exec.id);
        let mut line = self.command(exec.log, "exec");
        line.arg("--process").arg(exec.process).arg("--pid-file").arg(exec.pid_file).arg("--detach");
        if let Some(socket) = exec.console_socket {
            line.arg("--console-socket").arg(socket);
        }
        line.arg(exec.id);
        line.stdin(exec.stdio.stdin).stdout(exec.stdio.stdout).stderr(exec.stdio.stderr);
        // A runtime that gives the process no group of its own leaves it in the command's, which is to be nobody else's.
        line.process_group(0);
        self.run(reaper, line, "exec", exec.log).await?;
        read_pid("exec", exec.pid_file)
    }
}

fn read_pid(command: &'static str, path: &Path) -> Result<u32, RuntimeError> {
    let read = || -> io::Result<u32> {
        fs::read_to_string(path)?.trim().parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    };
    let pid = read().map_err(|source| RuntimeError::Pid { command, path: path.to_owned(), source })?;
    let _ = fs::remove_file(path);
    Ok(pid)
}

/// The last error of a log in JSON lines (`level`, `msg`), as runc, crun and ours write it.
fn last_error(log: &str) -> Option<String> {
    log.lines().rev().find_map(|line| {
        let value: serde_json::Value = serde_json::from_str(line).ok()?;
        let level = value.get("level")?.as_str()?;
        matches!(level, "error" | "fatal").then(|| value.get("msg")?.as_str().map(|text| text.trim().to_owned()))?
    })
}

/// Recorded outputs are in the tests.
fn is_not_found(message: &str) -> bool {
    message.contains("container does not exist")
        || message.contains("does not exist in")
        || (message.starts_with("error opening file") && message.contains("/status"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_counts() {
        let log = r#"{"level":"warning","msg":"one","time":"t"}
{"level":"error","msg":"runc create failed: unable to start container process: exec: \"nope\": executable file not found in $PATH","time":"t"}
"#;
        assert!(last_error(log).unwrap().contains("executable file not found"));
        assert_eq!(last_error("not json\n"), None);
    }

    #[test]
    fn a_container_that_a_runtime_does_not_know_is_told() {
        for message in [
            "container does not exist",
            "error opening file `/run/crun/x/status`: No such file or directory",
            "container \"x\" does not exist in /run/vaina/oci",
        ] {
            assert!(is_not_found(message), "{message}");
        }
        assert!(!is_not_found("exec: \"sh\": executable file not found in $PATH"));
    }
}
