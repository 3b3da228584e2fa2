//! Directories that runs of tests and of the benchmark work in, and what runs that were killed have left.
//!
//! A directory says by a lock that it is in use: the lock goes with the process, and with nothing else. Its name is also
//! that of the run's control groups, and stands in the environment or in the mount table of what the run starts. So the
//! next run finds all that a dead one left, and touches nothing of one that lives.

use std::{
    collections::BTreeSet,
    env,
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

use crate::{leak, wait};

/// A directory in use; removed when it is dropped.
#[derive(Debug)]
pub struct Ground {
    directory: TempDir,
    /// Not inherited by what the process starts.
    _lock: File,
}

impl Ground {
    /// A new directory whose name begins with `prefix`.
    pub fn new(prefix: &str) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix(prefix).tempdir().context("make a directory")?;
        // Under its name only when it is locked: until then nobody takes the directory for one of a dead run.
        let (new, path) = (directory.path().join("new"), directory.path().join("lock"));
        let lock = File::create(&new).context("make the lock")?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).context("lock the directory")?;
        fs::rename(new, path).context("name the lock")?;
        Ok(Self { directory, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Its name, which is also that of its control groups.
    pub fn name(&self) -> String {
        name(self.path())
    }
}

/// The name of the ground in this directory.
pub fn name(ground: &Path) -> String {
    ground.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Takes away what dead runs of this prefix left: processes, control groups, directories.
pub fn clean(prefix: &str) {
    for name in dead(prefix) {
        let _ = wait::blocking("what a dead run left has ended", wait::LIMIT, || {
            let left = leak::marked(&name);
            for pid in left.iter().filter_map(|pid| i32::try_from(*pid).ok()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            left.is_empty().then_some(())
        });
        remove_cgroups(&name);
        // Not by `TempDir`, which stops at what it does not expect in root file systems. The lock goes last: without it the
        // next run would take what could not be removed for somebody's own.
        let directory = env::temp_dir().join(&name);
        let content = entries(&directory).map(|entry| entry.path()).filter(|path| !path.ends_with("lock"));
        if content.map(|path| vaina_sys::fs::remove_tree(&path)).filter(Result::is_err).count() == 0 {
            let _ = vaina_sys::fs::remove_tree(&directory);
        }
    }
}

/// The names of dead runs: directories whose lock is free, and control groups whose directory is gone.
fn dead(prefix: &str) -> BTreeSet<String> {
    let is_free = |lock: File| flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
    let is_dead = |directory: &Path| File::open(directory.join("lock")).map_or(!directory.exists(), is_free);
    entries(&env::temp_dir())
        .chain(hierarchies().flat_map(|hierarchy| entries(&hierarchy)))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(prefix) && is_dead(&env::temp_dir().join(name)))
        .collect()
}

fn entries(directory: &Path) -> impl Iterator<Item = fs::DirEntry> + use<> {
    fs::read_dir(directory).into_iter().flatten().flatten()
}

/// The one hierarchy of v2, or those of v1 beside their root.
fn hierarchies() -> impl Iterator<Item = PathBuf> {
    let root = PathBuf::from("/sys/fs/cgroup");
    entries(&root).map(|entry| entry.path()).chain([root])
}

/// Removes a control group and all below it, in every hierarchy, as far as they are empty.
pub fn remove_cgroups(name: &str) {
    fn remove(directory: &Path) {
        for entry in entries(directory).filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            remove(&entry.path());
        }
        let _ = fs::remove_dir(directory);
    }
    hierarchies().for_each(|hierarchy| remove(&hierarchy.join(name)));
}

#[cfg(test)]
mod tests {
    mod root {
        use std::process::{Command, Stdio};

        use super::super::*;

        const PREFIX: &str = "vaina-ground-";

        /// Makes control groups as a run does, in all hierarchies.
        fn make_cgroups(ground: &Path) -> Vec<PathBuf> {
            let path = Path::new("/").join(name(ground)).join("endpoint").join("pod");
            let group = vaina_sys::cgroup::Hierarchies::detect().unwrap().group(&path);
            group.create().unwrap();
            group.directories().map(Path::to_owned).collect()
        }

        #[test]
        fn what_is_in_use_stays_and_what_a_dead_run_left_goes() {
            let used = Ground::new(PREFIX).unwrap();
            let mut kept = make_cgroups(used.path());
            kept.push(used.path().to_owned());

            let dead = env::temp_dir().join(format!("{PREFIX}dead-{}", std::process::id()));
            fs::create_dir_all(dead.join("logs")).unwrap();
            File::create(dead.join("lock")).unwrap();
            let mut left = make_cgroups(&dead);
            left.push(dead.clone());
            // Of one whose directory went before its control groups.
            left.extend(make_cgroups(&env::temp_dir().join(format!("{PREFIX}gone-{}", std::process::id()))));
            let mut command = Command::new("sleep");
            command.arg("1000").env("VAINA_GROUND_TEST", name(&dead)).stdin(Stdio::null());
            let mut process = command.spawn().unwrap();

            clean(PREFIX);
            assert!(kept.iter().all(|path| path.exists()), "{kept:?}");
            assert!(left.iter().all(|path| !path.exists()), "{left:?}");
            assert!(!process.wait().unwrap().success(), "it was not killed");

            let name = used.name();
            drop(used);
            remove_cgroups(&name);
            assert!(kept.iter().all(|path| !path.exists()), "{kept:?}");
        }
    }
}
