//! The last steps of a container's process, in the container: find the program, set its environment, become it.
//!
//! In place of `libcontainer`'s own executor, which asks for the execute bit of "others" whatever the user is, refuses an
//! environment without PATH, loses the order of variables, hands down ignored signals, and runs text files by `/bin/sh`.
//! Messages have the wording of `runc`, which people and the CRI's clients look for.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    ffi::CString,
    io::{self, Write as _},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use libcontainer::{
    oci_spec::runtime::{Capability, LinuxSeccomp, Process, Spec},
    workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError},
};
use nix::sys::stat::Mode;
use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::trace::Causes;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What becomes of a process.
#[derive(Clone)]
pub(super) struct Workload {
    causes: Causes,
    kind: Kind,
    program: RefCell<PathBuf>,
    environment: RefCell<Vec<String>>,
}

#[derive(Clone)]
pub(super) enum Kind {
    /// The first process of a container.
    Init,
    /// A further one. `libcontainer` does not apply the container's filter to it, so it is done here, with
    /// capabilities lent for that alone.
    Exec { seccomp: Option<Box<LinuxSeccomp>>, lent: Vec<Capability> },
}

impl Workload {
    pub(super) fn new(causes: Causes, kind: Kind) -> Self {
        Self { causes, kind, program: RefCell::default(), environment: RefCell::default() }
    }

    /// Gives back what was lent and loads the filter, in the order in which each still can be done.
    fn restrict(&self) -> Result<(), String> {
        let Kind::Exec { seccomp, lent } = &self.kind else { return Ok(()) };
        for capability in lent {
            drop_from(*capability, caps::CapSet::Bounding)?;
        }
        if let Some(seccomp) = seccomp {
            let notify = libcontainer::seccomp::initialize_seccomp(seccomp)
                .map_err(|error| format!("load seccomp filter: {}", super::chain(&error)))?;
            if notify.is_some() {
                return Err("load seccomp filter: a listener is not supported for an exec".to_owned());
            }
        }
        for capability in lent {
            drop_from(*capability, caps::CapSet::Effective)?;
            drop_from(*capability, caps::CapSet::Permitted)?;
        }
        Ok(())
    }
}

fn drop_from(capability: Capability, set: caps::CapSet) -> Result<(), String> {
    let capability = libcontainer::capabilities::CapabilityExt::to_cap(&capability);
    caps::drop(None, set, capability).map_err(|error| format!("drop {capability} from {set:?}: {error}"))
}

impl Executor for Workload {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let refuse = |text: String| {
            self.causes.verdict(&text);
            ExecutorValidationError::ArgValidationError(text)
        };
        self.causes.milestone("find program");
        let process = spec.process().as_ref().ok_or_else(|| refuse("the configuration has no process".to_owned()))?;
        let program = program_of(process).map_err(refuse)?;
        *self.program.borrow_mut() = program;
        // The library gives each stream on /dev/null the container's /dev/null opened for reading only.
        reopen_null().map_err(|error| refuse(format!("reopen /dev/null: {error}")))?;
        // Instead of the library's name for a process that waits for its start.
        let _ = rustix::thread::set_name(c"vaina-oci:init");
        Ok(())
    }

    fn setup_envs(&self, environment: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // Kept for the exec; this process itself has no more use for variables.
        *self.environment.borrow_mut() =
            environment.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        // From here on it waits for its start.
        self.causes.milestone("");
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let fail = |text: String| {
            if matches!(self.kind, Kind::Init) {
                // Nobody waits any more: the container's own log is where it can be told.
                let _ = writeln!(io::stderr(), "{text}");
            }
            self.causes.verdict(&text);
            ExecutorError::Other(text)
        };
        self.causes.milestone("become the program");
        let process = spec.process().as_ref().ok_or_else(|| fail("the configuration has no process".to_owned()))?;
        let program = self.program.borrow();
        let c_strings = |texts: &mut dyn Iterator<Item = &str>| -> Result<Vec<CString>, String> {
            texts.map(|text| CString::new(text).map_err(|_| format!("{text:?} holds a NUL byte"))).collect()
        };
        let arguments = c_strings(&mut process.args().iter().flatten().map(String::as_str)).map_err(fail)?;
        let own = process.env().clone().unwrap_or_default();
        let merged = merge(&own, &self.environment.borrow());
        let environment = c_strings(&mut merged.iter().map(String::as_str)).map_err(fail)?;
        let path = CString::new(program.as_os_str().as_encoded_bytes()).map_err(|error| fail(error.to_string()))?;

        if process.user().umask().is_none() {
            nix::sys::stat::umask(Mode::from_bits_truncate(0o022));
        }
        vaina_sys::inherit::default_signals().map_err(|error| fail(format!("reset signals: {error}")))?;
        self.restrict().map_err(fail)?;
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

/// The variables in their own order, the last of a name winning, and then those that were added to them.
fn merge(own: &[String], all: &[String]) -> Vec<String> {
    let name = |entry: &str| entry.split_once('=').map(|(name, _)| name.to_owned());
    let last: HashMap<String, usize> =
        own.iter().enumerate().filter_map(|(at, entry)| Some((name(entry)?, at))).collect();
    let mut merged: Vec<String> = own
        .iter()
        .enumerate()
        .filter(|(at, entry)| name(entry).is_some_and(|name| last.get(&name) == Some(at)))
        .map(|(_, entry)| entry.clone())
        .collect();
    let added: BTreeMap<String, &String> = all
        .iter()
        .filter_map(|entry| Some((name(entry)?, entry)))
        .filter(|(name, _)| !last.contains_key(name))
        .collect();
    merged.extend(added.into_values().cloned());
    merged
}

fn program_of(process: &Process) -> Result<PathBuf, String> {
    let name = process
        .args()
        .as_ref()
        .and_then(|args| args.first())
        .filter(|name| !name.is_empty())
        .ok_or_else(|| "exec: no command".to_owned())?;
    let path =
        process.env().iter().flatten().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    find(name, path, &|path| {
        let found = rustix::fs::stat(path)?;
        if rustix::fs::FileType::from_raw_mode(found.st_mode).is_dir() {
            return Err(rustix::io::Errno::ISDIR);
        }
        accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
    })
}

/// Finds a program as a shell would, `check` being whether a path can be executed.
fn find(name: &str, path: &str, check: &dyn Fn(&Path) -> Result<(), rustix::io::Errno>) -> Result<PathBuf, String> {
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
    for directory in path.split(':') {
        let candidate = Path::new(if directory.is_empty() { "." } else { directory }).join(name);
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

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn variables_keep_their_order_and_the_last_wins() {
        let own = texts(&["PATH=/bin", "B=1", "A=2", "B=3", "nonsense"]);
        let all = texts(&["B=3", "HOME=/root", "A=2", "PATH=/bin"]);
        assert_eq!(merge(&own, &all), texts(&["PATH=/bin", "A=2", "B=3", "HOME=/root"]));
    }

    #[test]
    fn programs_are_found_as_a_shell_would() {
        let check = |path: &Path| match path.to_str().unwrap() {
            "/bin/sh" | "./here" | "/opt/tool" => Ok(()),
            "/bin/secret" | "/opt/secret" => Err(Errno::ACCESS),
            "/etc" => Err(Errno::ISDIR),
            _ => Err(Errno::NOENT),
        };
        let found = |name| find(name, "/sbin:/bin:", &check);
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
