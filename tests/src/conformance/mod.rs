//! What is proven of CRI v1, row by row: `docs/conformance.md`, made by `make conformance-report`.
//!
//! A row of the wire table ([`wire`]) is proven by a test with a comment line above its `#[test]`:
//!
//! ```text
//! // proves: CreateContainer, ContainerConfig.{args, command}, NamespaceMode.NODE
//! ```
//!
//! It says that this test fails if the row were ignored. What can't be proven here stands in `out-of-scope.toml` with the
//! reason ([`scope`]); a test that shows how it is turned away says `// refuses:` instead. [`tests`] reads the comments of
//! all files that are compiled, [`report`] puts the three together: a row that nobody proves, a name that is no row, a
//! comment that is above no test and a report that is out of date are each an error.

mod report;
mod scope;
mod tests;
mod tree;
mod wire;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use self::{scope::Scope, wire::Wire};

/// Roots of the crates whose tests `make test` runs. Their files are those that are compiled.
const ROOTS: [&str; 10] = [
    "cri-server/src/lib.rs",
    "proto/tests/wire.rs",
    "shim/src/main.rs",
    "shim/tests/oci.rs",
    "shim/tests/shim.rs",
    "sys/src/lib.rs",
    "tests/tests/conformance/main.rs",
    "tests/tests/e2e/main.rs",
    "tests/tests/fault/main.rs",
    "tests/tests/kubelet/main.rs",
];

/// What is wrong, in sentences.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Problem(String);

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where the report is.
pub fn path() -> PathBuf {
    workspace().join("docs/conformance.md")
}

/// The report that the sources make, or all that is wrong with them.
pub fn make() -> Result<String> {
    let read = |path: &str| fs::read_to_string(workspace().join(path)).with_context(|| format!("read {path}"));
    let wire = Wire::parse(&read("proto/tests/cri-v1-wire.tsv")?).context("read the wire table")?;
    let scope = Scope::parse(include_str!("out-of-scope.toml")).context("read out-of-scope.toml")?;
    let mut tests = Vec::new();
    let mut problems = Vec::new();
    for file in tree::files(workspace(), &ROOTS)? {
        let (found, wrong) = tests::parse(&file.path, &file.text);
        tests.extend(found);
        problems.extend(wrong);
    }
    match report::make(&wire, &scope, &tests) {
        Ok(text) if problems.is_empty() => Ok(text),
        Ok(_) => fail(&problems),
        Err(more) => {
            problems.extend(more);
            fail(&problems)
        }
    }
}

fn fail(problems: &[Problem]) -> Result<String> {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    bail!("{} problems:\n{}", lines.len(), lines.join("\n"))
}

fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

#[cfg(test)]
mod the_report {
    use super::*;

    #[test]
    fn is_what_the_tests_say() {
        let wanted = make().unwrap_or_else(|error| panic!("{error:#}"));
        let found = fs::read_to_string(path()).unwrap_or_default();
        assert!(wanted == found, "docs/conformance.md is out of date: run `make conformance-report`");
    }
}
