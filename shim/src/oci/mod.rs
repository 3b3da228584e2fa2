//! The OCI runtime command line: `containerd-shim-vaina-v1 oci create|start|kill|delete|exec|state|ps|pause|resume|update …`.
//!
//! Takes the arguments of `runc` and `crun`, so that one driver (`runtime.rs`) works with each, and so that this one works
//! under others' drivers. Containers are made by `libcontainer`; this module is what a command line adds to it, and closes the
//! gaps between what configurations mean to `runc` and what the library does (`spec.rs`, `workload.rs`, `container.rs`,
//! each at its place). It runs in a process of its own with one thread, since the library forks.
//!
//! A gap that is left: a systemd cgroup driver is refused.

mod args;
mod container;
mod create;
mod device_filter;
mod devices;
mod entry;
mod environment;
mod exec;
mod filter;
mod milestones;
mod restriction;
mod spec;
mod trace;
mod update;
mod userns;
mod volumes;
mod workload;

use std::{
    error::Error,
    ffi::OsString,
    fs::OpenOptions,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::SystemTime,
};

use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use vaina_sys::failpoint;

use self::{
    args::{Command, Invocation, UsageError},
    container::Container,
    trace::{Cause, Causes},
};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum OciError {
    #[error(transparent)]
    Usage(#[from] UsageError),
    #[error("container {id:?} does not exist in {}", .root.display())]
    NotFound { id: String, root: PathBuf },
    #[error("container with given ID already exists: {id:?}")]
    Exists { id: String },
    #[error("{0}")]
    State(String),
    #[error("read {}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("write {}", .path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{step}: {message}")]
    Library { step: &'static str, message: String },
    #[error("{step}: {message}")]
    Cgroup { step: &'static str, message: String },
    #[error("{step}")]
    Prepare { step: &'static str, source: io::Error },
    #[error("set oom_score_adj to {wanted} (a lower one than the runtime's own needs CAP_SYS_RESOURCE)")]
    OomScore { wanted: i32, source: io::Error },
    #[error("send signal {signal}")]
    Kill { signal: i32, source: io::Error },
    #[error("remove {what}")]
    Remove { what: &'static str, source: io::Error },
    #[error("read resources")]
    Resources { source: serde_json::Error },
    #[error("read process")]
    Process { source: serde_json::Error },
    #[error("read annotation {}", vaina_proto::ENVIRONMENT_ANNOTATION)]
    Environment { source: serde_json::Error },
    #[error("value {value:?} of --{flag} is not a number")]
    Limit { flag: String, value: String },
    #[error("print result")]
    Print { source: io::Error },
    #[error("run from a sealed executable")]
    Seal { source: io::Error },
}

impl OciError {
    fn library(step: &'static str, error: &dyn Error) -> Self {
        Self::Library { step, message: chain(error) }
    }

    /// An error of something that forks, completed by what the children have told.
    fn forked(step: &'static str, error: &dyn Error, causes: &Causes, cwd: &Path) -> Self {
        let message = match causes.read() {
            Some(Cause::Verdict(text)) => text,
            Some(Cause::Event(text)) if text.starts_with("failed to chdir") => {
                let reason = text.split_once("e=").map_or(text.as_str(), |(_, reason)| reason);
                let reason = if reason == "ENOENT" { "no such file or directory" } else { reason };
                format!("chdir to cwd ({cwd:?}) set in config.json failed: {reason}")
            }
            Some(Cause::Event(text)) => format!("{} ({text})", chain(error)),
            None => chain(error),
        };
        Self::Library { step, message }
    }
}

/// The message with all its sources on one line, leaving out those that repeat.
fn chain(error: &dyn Error) -> String {
    // The library pads messages from a pipe with NUL bytes.
    let clean = |text: String| text.trim_matches(['\0', '\n']).replace('\n', " ");
    let mut text = clean(error.to_string());
    let mut source = error.source();
    while let Some(error) = source {
        let next = clean(error.to_string());
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    text
}

/// Runs one command; `arguments` are all of the process, the program's name and `oci` being the first two.
pub(crate) fn main(arguments: Vec<OsString>) -> ExitCode {
    let invocation = match args::parse(arguments.iter().skip(2).cloned()) {
        Ok(invocation) => invocation,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    crate::spans::init("oci");
    let (name, id) = name(&invocation.command);
    let _span = crate::spans::start(name, id);
    match run(&invocation, &arguments) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            report(&invocation, &chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// What a profile calls it, and the container that it is about.
fn name(command: &Command) -> (&'static str, &str) {
    match command {
        Command::Create(command) => ("create", &command.id),
        Command::Exec(command) => ("exec", &command.id),
        Command::Start { id } => ("start", id),
        Command::Kill { id, .. } => ("kill", id),
        Command::Delete { id, .. } => ("delete", id),
        Command::State { id } => ("state", id),
        Command::Ps { id, .. } => ("ps", id),
        Command::Pause { id } => ("pause", id),
        Command::Resume { id } => ("resume", id),
        Command::Update { id, .. } => ("update", id),
        Command::List { .. } => ("list", ""),
        Command::Features => ("features", ""),
        Command::Version => ("version", ""),
    }
}

fn run(invocation: &Invocation, arguments: &[OsString]) -> Result<u8, OciError> {
    let root = &invocation.root;
    match &invocation.command {
        Command::Create(command) => {
            if invocation.systemd_cgroup {
                return Err(OciError::State("the systemd cgroup driver is not supported; use cgroupfs".to_owned()));
            }
            seal(arguments)?;
            failpoint!(blocking "runtime.create", injected);
            create::create(root, command)?;
            failpoint!(blocking "runtime.created", injected);
        }
        Command::Exec(command) => {
            seal(arguments)?;
            return exec::exec(root, command);
        }
        Command::Start { id } => {
            failpoint!(blocking "runtime.start", injected);
            Container::load(root, id)?.start()?;
            failpoint!(blocking "runtime.started", injected);
        }
        Command::Kill { id, signal, all } => Container::load(root, id)?.kill(*signal, *all)?,
        Command::Delete { id, force } => {
            failpoint!(blocking "runtime.delete", injected);
            match Container::load(root, id) {
                Err(OciError::NotFound { .. }) if *force => {}
                container => container?.delete(*force)?,
            }
            failpoint!(blocking "runtime.deleted", injected);
        }
        Command::State { id } => print(&json(&Container::load(root, id)?.state())?)?,
        Command::List { json: true } => {
            let all = Container::all(root)?;
            print(&json(&all.iter().map(Container::state).collect::<Vec<_>>())?)?;
        }
        Command::List { json: false } => {
            let mut text = String::from("ID\tPID\tSTATUS\tBUNDLE\n");
            for container in Container::all(root)? {
                text.push_str(&container.line());
            }
            print(text.trim_end())?;
        }
        Command::Ps { id, json: as_json } => {
            let pids = Container::load(root, id)?.pids()?;
            let text = if *as_json {
                json(&pids)?
            } else {
                pids.iter().fold("PID".to_owned(), |text, pid| format!("{text}\n{pid}"))
            };
            print(&text)?;
        }
        Command::Pause { id } => Container::load(root, id)?.pause()?,
        Command::Resume { id } => Container::load(root, id)?.resume()?,
        Command::Update { id, source } => {
            let container = Container::load(root, id)?;
            update::apply(&container, &update::resources(source)?)?;
        }
        Command::Features => print(&features()?)?,
        Command::Version => {
            print(&format!("vaina version {}\nspec: 1.0.2", env!("CARGO_PKG_VERSION")))?;
        }
    }
    Ok(0)
}

/// What a failpoint fails with.
#[cfg(feature = "failpoints")]
fn injected(source: io::Error) -> OciError {
    OciError::Prepare { step: "pass a failpoint of the runtime", source }
}

/// From here on the program shows in the container's processes.
fn seal(arguments: &[OsString]) -> Result<(), OciError> {
    let _span = crate::spans::start("seal", "");
    match crate::seal::is_sealed() {
        Ok(true) => Ok(()),
        Ok(false) => Err(OciError::Seal { source: crate::seal::run_again(arguments.iter().cloned()) }),
        Err(source) => Err(OciError::Seal { source }),
    }
}

fn json(value: &impl serde::Serialize) -> Result<String, OciError> {
    serde_json::to_string(value).map_err(|error| OciError::Print { source: error.into() })
}

fn print(text: &str) -> Result<(), OciError> {
    writeln!(io::stdout(), "{text}").map_err(|source| OciError::Print { source })
}

/// What a caller may ask of this runtime, in the form of the specification's `features.md`.
fn features() -> Result<String, OciError> {
    json(&json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.0",
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "cgroup": { "v1": true, "v2": true, "systemd": false, "systemdUser": false },
            "seccomp": { "enabled": true },
            "apparmor": { "enabled": true },
            "selinux": { "enabled": false },
            "intelRdt": { "enabled": false },
            "mountExtensions": { "idmap": { "enabled": true } }
        }
    }))
}

/// Tells an error where the caller looks for it.
fn report(invocation: &Invocation, message: &str) {
    let time = OffsetDateTime::from(SystemTime::now()).format(&Rfc3339).unwrap_or_default();
    let line = if invocation.json_log {
        json!({ "level": "error", "msg": message, "time": time }).to_string()
    } else {
        format!("time={time:?} level=error msg={message:?}")
    };
    let logged = invocation.log.as_deref().is_some_and(|path| append(path, &line).is_ok());
    // The standard streams of these two belong to the container: its log must not begin with our words.
    let streams_are_the_containers = matches!(invocation.command, Command::Create(_) | Command::Exec(_));
    if !(logged && streams_are_the_containers) {
        eprintln!("{message}");
    }
}

fn append(path: &Path, line: &str) -> io::Result<()> {
    let mut log = OpenOptions::new().append(true).create(true).open(path)?;
    log.write_all(format!("{line}\n").as_bytes())
}
