//! The last steps of a container's process, in the container: find the program, set its environment, become it.
//!
//! In place of `libcontainer`'s own executor, which asks for the execute bit of "others" whatever the user is, refuses an
//! environment without PATH, loses the order of variables, hands down ignored signals, and runs text files by `/bin/sh`.
//! Messages have the wording of `runc`, which people and the CRI's clients look for.

use std::{
    cell::RefCell,
    collections::HashMap,
    ffi::{CString, OsStr},
    io::{self, Write as _},
    os::{fd::AsFd as _, unix::ffi::OsStrExt as _},
    path::{Path, PathBuf},
};

use libcontainer::{
    oci_spec::runtime::{Process, Spec},
    workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError},
};
use nix::sys::stat::Mode;
use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::{
    entry::Entry,
    environment::{self, Environment},
    restriction::Restriction,
    trace::Causes,
};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The last steps of one process.
#[derive(Clone)]
pub(super) struct Workload {
    causes: Causes,
    kind: Kind,
    restriction: Restriction,
    program: RefCell<PathBuf>,
    environment: RefCell<Vec<String>>,
    /// Of the container, not UTF-8.
    bytes: Environment,
    entry: Option<Entry>,
}

/// What becomes of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The first process of a container.
    Init,
    /// A further one.
    Exec,
}

impl Workload {
    pub(super) fn new(causes: Causes, kind: Kind, restriction: Restriction, bytes: Environment) -> Self {
        Self {
            causes,
            kind,
            restriction,
            program: RefCell::default(),
            environment: RefCell::default(),
            bytes,
            entry: None,
        }
    }

    /// As what the library knows nothing of, before anything else is done.
    pub(super) fn through(self, entry: Option<Entry>) -> Self {
        Self { entry, ..self }
    }
}

impl Executor for Workload {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let refuse = |text: String| {
            self.causes.verdict(&text);
            ExecutorValidationError::ArgValidationError(text)
        };
        if let Some(entry) = &self.entry {
            self.causes.milestone("join user namespace");
            entry.enter().map_err(refuse)?;
        }
        self.causes.milestone("find program");
        let process = spec.process().as_ref().ok_or_else(|| refuse("the configuration has no process".to_owned()))?;
        let program = program_of(process, &self.bytes).map_err(refuse)?;
        *self.program.borrow_mut() = program;
        // The library gives each stream on /dev/null the container's /dev/null opened for reading only.
        reopen_null().map_err(|error| refuse(format!("reopen /dev/null: {error}")))?;
        // Instead of the library's name for a process that waits for its start.
        let _ = rustix::thread::set_name(c"vaina-oci:init");
        Ok(())
    }

    fn setup_envs(&self, mut environment: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        if let Some(home) = self.entry.as_ref().and_then(Entry::home) {
            environment.remove("HOME");
            environment.extend(home.map(|home| ("HOME".to_owned(), home)));
        }
        // Kept for the exec; this process itself has no more use for variables.
        *self.environment.borrow_mut() =
            environment.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        // From here on it waits for its start.
        self.causes.milestone("");
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let fail = |text: String| {
            if self.kind == Kind::Init {
                // Nobody waits any more: the container's own log is where it can be told.
                let _ = writeln!(io::stderr(), "{text}");
            }
            self.causes.verdict(&text);
            ExecutorError::Other(text)
        };
        self.causes.milestone("become the program");
        let process = spec.process().as_ref().ok_or_else(|| fail("the configuration has no process".to_owned()))?;
        let program = self.program.borrow();
        let c_strings = |texts: &mut dyn Iterator<Item = &[u8]>| -> Result<Vec<CString>, String> {
            let c_string =
                |text| CString::new(text).map_err(|_| format!("{:?} holds a NUL byte", String::from_utf8_lossy(text)));
            texts.map(c_string).collect()
        };
        let arguments = c_strings(&mut process.args().iter().flatten().map(String::as_bytes)).map_err(fail)?;
        let own = process.env().clone().unwrap_or_default();
        let merged = environment::merge(&own, &self.bytes, &self.environment.borrow());
        let environment = c_strings(&mut merged.iter().map(Vec::as_slice)).map_err(fail)?;
        let path = CString::new(program.as_os_str().as_encoded_bytes()).map_err(|error| fail(error.to_string()))?;

        if process.user().umask().is_none() {
            nix::sys::stat::umask(Mode::from_bits_truncate(0o022));
        }
        vaina_sys::inherit::default_signals().map_err(|error| fail(format!("reset signals: {error}")))?;
        self.restriction.apply().map_err(fail)?;
        self.causes.milestone("");
        match nix::unistd::execve(&path, &arguments, &environment) {
            Ok(never) => match never {},
            Err(errno) => Err(fail(format!("exec {}: {}", program.display(), message(errno)))),
        }
    }
}

/// Opens the container's own `/dev/null` for each standard stream that is on it, for both directions.
fn reopen_null() -> io::Result<()> {
    use rustix::fs::{Mode, OFlags, fstat, makedev, openat};
    let is_null = |fd: std::os::fd::BorrowedFd<'_>| fstat(fd).is_ok_and(|found| found.st_rdev == makedev(1, 3));
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let on_null = [is_null(stdin.as_fd()), is_null(stdout.as_fd()), is_null(stderr.as_fd())];
    if !on_null.contains(&true) {
        return Ok(());
    }
    let null = openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    if !is_null(null.as_fd()) {
        return Err(io::Error::other("it is another device"));
    }
    if on_null[0] {
        nix::unistd::dup2_stdin(&null)?;
    }
    if on_null[1] {
        nix::unistd::dup2_stdout(&null)?;
    }
    if on_null[2] {
        nix::unistd::dup2_stderr(&null)?;
    }
    Ok(())
}

/// In the words of Go, which are what is looked for.
fn message(errno: nix::errno::Errno) -> String {
    errno.desc().to_lowercase()
}

fn program_of(process: &Process, bytes: &Environment) -> Result<PathBuf, String> {
    let name = process
        .args()
        .as_ref()
        .and_then(|args| args.first())
        .filter(|name| !name.is_empty())
        .ok_or_else(|| "exec: no command".to_owned())?;
    let own = process.env().iter().flatten().rev().find_map(|entry| entry.strip_prefix("PATH="));
    let path = own.map(str::as_bytes).or(bytes.get("PATH").map(Vec::as_slice)).unwrap_or(DEFAULT_PATH.as_bytes());
    find(name, path, &|path| {
        let found = rustix::fs::stat(path)?;
        if rustix::fs::FileType::from_raw_mode(found.st_mode).is_dir() {
            return Err(rustix::io::Errno::ISDIR);
        }
        accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
    })
}

/// Finds a program as a shell would, `check` being whether a path can be executed.
fn find(name: &str, path: &[u8], check: &dyn Fn(&Path) -> Result<(), rustix::io::Errno>) -> Result<PathBuf, String> {
    use rustix::io::Errno;
    if name.contains('/') {
        return match check(Path::new(name)) {
            Ok(()) => Ok(PathBuf::from(name)),
            Err(Errno::ACCESS | Errno::PERM) => Err(format!("exec: {name:?}: permission denied")),
            Err(Errno::ISDIR) => Err(format!("exec: {name:?}: is a directory")),
            Err(Errno::NOENT) => Err(format!("exec: {name:?}: stat {name}: no such file or directory")),
            Err(errno) => Err(format!("exec: {name:?}: stat {name}: {}", io::Error::from(errno))),
        };
    }
    let mut denied = false;
    for directory in path.split(|byte| *byte == b':') {
        let directory = if directory.is_empty() { b"." } else { directory };
        let candidate = Path::new(OsStr::from_bytes(directory)).join(name);
        match check(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(Errno::ACCESS | Errno::PERM) => denied = true,
            Err(_) => {}
        }
    }
    Err(if denied {
        format!("exec: {name:?}: permission denied")
    } else {
        format!("exec: {name:?}: executable file not found in $PATH")
    })
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn programs_are_found_as_a_shell_would() {
        let check = |path: &Path| match path.to_str().unwrap() {
            "/bin/sh" | "./here" | "/opt/tool" => Ok(()),
            "/bin/secret" | "/opt/secret" => Err(Errno::ACCESS),
            "/etc" => Err(Errno::ISDIR),
            _ => Err(Errno::NOENT),
        };
        let found = |name| find(name, b"/sbin:/bin:", &check);
        assert_eq!(found("sh"), Ok("/bin/sh".into()));
        assert_eq!(found("here"), Ok("./here".into()));
        assert_eq!(found("/opt/tool"), Ok("/opt/tool".into()));
        for (name, message) in [
            ("nope", "exec: \"nope\": executable file not found in $PATH"),
            ("/nope", "exec: \"/nope\": stat /nope: no such file or directory"),
            ("secret", "exec: \"secret\": permission denied"),
            ("/opt/secret", "exec: \"/opt/secret\": permission denied"),
            ("/etc", "exec: \"/etc\": is a directory"),
        ] {
            assert_eq!(found(name).unwrap_err(), message);
        }
    }
}
