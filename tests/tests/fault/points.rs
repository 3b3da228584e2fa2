//! The failpoints of the programs under test, by the directory that they share with them (`sys/src/failpoint.rs`).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use tempfile::TempDir;
use vaina_tests::{node::Options, require};

/// Where a point is, which says who dies there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Daemon,
    Shim,
    Runtime,
}

/// The directory.
#[derive(Debug)]
pub(crate) struct Points {
    directory: TempDir,
}

impl Points {
    pub(crate) fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        for part in ["points", "reached", "armed", "struck"] {
            fs::create_dir(directory.path().join(part))?;
        }
        Ok(Self { directory })
    }

    /// A node whose programs have failpoints.
    pub(crate) fn options(&self) -> Result<Options> {
        let environment = vec![("VAINA_FAILPOINTS".to_owned(), self.directory.path().to_string_lossy().into_owned())];
        Ok(Options { environment, programs: Some(require::programs_with_failpoints()?), ..Options::default() })
    }

    /// All that the programs have announced, and whether each can fail.
    pub(crate) fn all(&self) -> Result<BTreeMap<String, bool>> {
        let fails = |name: String| {
            let text = fs::read_to_string(self.path("points", &name))?;
            Ok((name, text == "error"))
        };
        self.names("points")?.into_iter().map(fails).collect()
    }

    /// Those that were passed.
    pub(crate) fn reached(&self) -> Result<BTreeSet<String>> {
        self.names("reached")
    }

    /// What is to happen to who passes next.
    pub(crate) fn arm(&self, point: &str, action: &str) -> Result<()> {
        // In one step: who passes meanwhile must not read half of it.
        let new = self.directory.path().join("new");
        fs::write(&new, action)?;
        fs::rename(new, self.path("armed", point)).with_context(|| format!("arm {point}"))
    }

    /// Whether somebody has been struck there.
    pub(crate) fn has_struck(&self, point: &str) -> bool {
        self.path("struck", point).exists()
    }

    /// Lets who is held there go, and forgets what was armed; answers whether anybody was struck.
    pub(crate) fn release(&self, point: &str) -> bool {
        let _ = fs::remove_file(self.path("armed", point));
        fs::remove_file(self.path("struck", point)).is_ok()
    }

    fn path(&self, part: &str, point: &str) -> PathBuf {
        self.directory.path().join(part).join(point)
    }

    fn names(&self, part: &str) -> Result<BTreeSet<String>> {
        let entries = fs::read_dir(self.directory.path().join(part))?;
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }
}

/// Whose point it is.
pub(crate) fn place(point: &str) -> Place {
    match point.split('.').next() {
        Some("shim") => Place::Shim,
        Some("runtime") => Place::Runtime,
        _ => Place::Daemon,
    }
}
