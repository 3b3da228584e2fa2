//! Named groups of tests: what `make test-vm` runs.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    Disk, Guest, image,
    payload::{self, TestProgram},
};
use crate::require;

/// A group of tests.
#[derive(Debug)]
pub struct Group {
    /// What `GROUPS` says.
    pub name: &'static str,
    /// For people.
    pub about: &'static str,
    /// What cargo builds.
    selection: &'static [&'static str],
    place: Place,
}

/// Where a group's test programs run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In a guest that is booted for the group.
    Guest,
    /// Here; they boot guests themselves.
    Host,
}

/// All groups. Without a choice those run that are not made for another's use.
pub const GROUPS: [Group; 3] = [
    Group {
        name: "guest",
        about: "the guest node itself: failures show outside, power cuts and reboots are survived",
        selection: &["-p", "vaina-tests", "--features", "vm", "--test", "vm"],
        place: Place::Host,
    },
    Group {
        name: "self-check",
        about: "the guest is what it is meant to be",
        selection: &["-p", "vaina-tests", "--features", "vm", "--test", "inside"],
        place: Place::Guest,
    },
    Group {
        name: "e2e-cgroup2",
        about: "all end-to-end tests, with the cgroupfs driver on cgroup v2",
        selection: &["-p", "vaina-tests", "--test", "e2e"],
        place: Place::Guest,
    },
];

/// The group of this name.
pub fn find(name: &str) -> Result<&'static Group> {
    let names: Vec<&str> = GROUPS.iter().map(|group| group.name).collect();
    GROUPS
        .iter()
        .find(|group| group.name == name)
        .with_context(|| format!("there is no group {name:?}; groups are {}", names.join(", ")))
}

/// How a group ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// 0, or the code of the first test program that failed.
    pub code: i32,
    /// The `test result` lines of the test programs.
    pub results: Vec<String>,
}

impl Group {
    /// Runs the group with further arguments for its test programs; what it leaves is in a directory of its name in `results`.
    pub fn run(&self, results: &Path, arguments: &[String]) -> Result<Outcome> {
        let directory = results.join(self.name);
        fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        let tests = payload::build(self.selection)?;
        let outcome = match self.place {
            Place::Host => run_here(&tests, arguments)?,
            Place::Guest => run_in_guest(&tests, &directory, arguments)?,
        };
        // A test program that dies early, or is none, must not look like one whose tests have passed.
        ensure!(
            outcome.code != 0 || outcome.results.len() == tests.len() || self.place == Place::Host,
            "{} exited with 0 and {} of {} test programs gave a result",
            self.name,
            outcome.results.len(),
            tests.len()
        );
        Ok(outcome)
    }
}

fn run_here(tests: &[TestProgram], arguments: &[String]) -> Result<Outcome> {
    for test in tests {
        // One after the other: a guest takes all the processors there are.
        let status = Command::new(&test.executable)
            .args(["--test-threads", "1"])
            .args(arguments)
            .status()
            .with_context(|| format!("run {}", test.executable.display()))?;
        if !status.success() {
            return Ok(Outcome { code: status.code().unwrap_or(1), results: Vec::new() });
        }
    }
    Ok(Outcome { code: 0, results: Vec::new() })
}

fn run_in_guest(tests: &[TestProgram], directory: &Path, arguments: &[String]) -> Result<Outcome> {
    let image = image::ensure(&require::cache()?)?;
    let payload = tempfile::tempdir()?;
    payload::assemble(payload.path(), tests)?;
    let mut guest = Disk::create(&image, directory, payload.path())?.boot()?;
    drop(payload);
    let path = directory.join("output.log");
    let mut log = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    let mut text = Vec::new();
    let mut code = 0;
    for test in tests {
        let program = format!("{}/tests/{}", payload::INSIDE, test.name);
        let argv: Vec<&str> = [program.as_str()].into_iter().chain(arguments.iter().map(String::as_str)).collect();
        let mut written = Ok(());
        let ended = guest.run(&argv, &mut |data| {
            text.extend_from_slice(data);
            let shown = std::io::stdout().write_all(data).and_then(|()| std::io::stdout().flush());
            written = std::mem::replace(&mut written, Ok(())).and(shown).and(log.write_all(data));
        })?;
        written.with_context(|| format!("pass on the output, and write it to {}", path.display()))?;
        if code == 0 {
            code = ended;
        }
    }
    fetch_logs(&mut guest, directory)?;
    guest.shut_down()?;
    let text = String::from_utf8_lossy(&text);
    let results = text.lines().filter(|line| line.starts_with("test result:")).map(ToOwned::to_owned).collect();
    Ok(Outcome { code, results })
}

/// Brings the guest's own logs out.
fn fetch_logs(guest: &mut Guest, directory: &Path) -> Result<()> {
    let path: PathBuf = directory.join("journal.log");
    let mut file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    let mut written = Ok(());
    let code = guest.run(&["journalctl", "--boot", "--no-pager", "--output=short-precise"], &mut |data| {
        written = std::mem::replace(&mut written, Ok(())).and(file.write_all(data));
    })?;
    written.with_context(|| format!("write {}", path.display()))?;
    if code != 0 {
        bail!("journalctl in the guest exited with {code}");
    }
    Ok(())
}
