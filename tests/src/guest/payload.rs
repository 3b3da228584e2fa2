//! What comes into the guest: our programs as they were built, the tests' own, and test programs.
//!
//! Inside it is `/payload`: programs in it, test programs in `/payload/tests`, where they find the former one level above.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::{crictl::CRICTL, require};

/// Where the payload is in the guest.
pub const INSIDE: &str = "/payload";

/// Puts the programs and these test programs into a directory, which is made anew.
pub fn assemble(directory: &Path, tests: &[TestProgram]) -> Result<()> {
    let _ = fs::remove_dir_all(directory);
    let inner = directory.join("tests");
    fs::create_dir_all(&inner).with_context(|| format!("create {}", inner.display()))?;
    let copy = |from: &Path, to: &Path| -> Result<()> {
        fs::copy(from, to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
        Ok(())
    };
    for name in ["vaina-guest-agent", "vaina-probe", "vaina-bench"] {
        let program = require::beside(name)?.with_context(|| format!("{name} is not built: `make test-vm`"))?;
        copy(&program, &directory.join(name))?;
    }
    for (variable, name) in [("VAINA_BIN", "vaina"), ("VAINA_SHIM", "containerd-shim-vaina-v1")] {
        copy(&require::program(variable, name)?, &directory.join(name))?;
    }
    copy(&require::kept_tool(CRICTL, "tools")?, &directory.join(CRICTL))?;
    // Where tests look for what is in the source tree, if that is not there.
    let examples = directory.join("examples");
    fs::create_dir(&examples).with_context(|| format!("create {}", examples.display()))?;
    for example in fs::read_dir(require::examples()?).context("list the examples")? {
        let example = example.context("list the examples")?;
        copy(&example.path(), &examples.join(example.file_name()))?;
    }
    for test in tests {
        copy(&test.executable, &inner.join(&test.name))?;
    }
    Ok(())
}

/// How much a directory holds.
pub(super) fn size_mib(directory: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { size_mib(&entry.path())? << 20 } else { metadata.len() };
    }
    Ok((bytes >> 20) + 1)
}

/// A test program that cargo built.
#[derive(Debug, Clone)]
pub struct TestProgram {
    /// Of the target.
    pub name: String,
    /// Where it is on the host.
    pub executable: PathBuf,
}

/// A line of cargo's `--message-format=json`, as far as it matters.
#[derive(Debug, Deserialize)]
struct Message {
    executable: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
}

#[derive(Debug, Deserialize)]
struct Profile {
    test: bool,
}

/// Has cargo build the test programs of this selection (`-p`, `--test` …) and answers where they are.
pub fn build(selection: &[&str]) -> Result<Vec<TestProgram>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let output = Command::new(cargo)
        .args(["test", "--locked", "--profile", PROFILE, "--no-run", "--message-format=json-render-diagnostics"])
        .args(selection)
        .stderr(Stdio::inherit())
        .output()
        .context("run cargo")?;
    ensure!(output.status.success(), "cargo could not build {selection:?}: {}", output.status);
    let tests = parse(&output.stdout)?;
    ensure!(!tests.is_empty(), "cargo names no test program for {selection:?}");
    Ok(tests)
}

/// How programs for the guest are built; the Makefile says the same.
const PROFILE: &str = "guest";

fn parse(messages: &[u8]) -> Result<Vec<TestProgram>> {
    let mut tests = Vec::new();
    for line in messages.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let message: Message = serde_json::from_slice(line).context("read a message of cargo")?;
        if let Message { executable: Some(executable), target: Some(target), profile: Some(Profile { test: true }) } =
            message
        {
            tests.push(TestProgram { name: target.name, executable });
        }
    }
    Ok(tests)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_found_among_cargos_messages() {
        let messages =
            br#"{"reason":"compiler-artifact","target":{"name":"a"},"profile":{"test":false},"executable":null}
{"reason":"compiler-artifact","target":{"name":"vaina-probe"},"profile":{"test":false},"executable":"/t/vaina-probe"}
{"reason":"compiler-artifact","target":{"name":"e2e"},"profile":{"test":true},"executable":"/t/deps/e2e-1"}
{"reason":"build-finished","success":true}
"#;
        let tests = parse(messages).unwrap();
        assert_eq!(tests.len(), 1);
        assert_eq!((tests[0].name.as_str(), tests[0].executable.as_path()), ("e2e", Path::new("/t/deps/e2e-1")));
        assert!(parse(b"nonsense").is_err());
    }
}
