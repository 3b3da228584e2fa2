//! Whether pods can be run here at all: what `RuntimeReady` says. Looked at anew each time, since a disk fills and a
//! program is removed while we run.

use std::{
    env,
    path::{Path, PathBuf},
};

use rustix::fs::{Access, StatVfsMountFlags, access, statvfs};

use crate::{app::App, error::Chain, work::blocking};

/// Why no pods can be run: a word for programs, and a sentence.
pub(crate) type Problem = (&'static str, String);

/// Less than this and records may not be written any more.
const RESERVE_BYTES: u64 = 32 << 20;
/// Likewise; file systems without a number of inodes say 0 of 0.
const RESERVE_INODES: u64 = 1000;

/// What was found.
#[derive(Debug, Clone, Default)]
struct Facts {
    root: PathBuf,
    disk: Option<Disk>,
    /// Why the record can't be written.
    store: Option<String>,
    cgroup: PathBuf,
    has_cgroup: bool,
    shim: PathBuf,
    has_shim: bool,
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Disk {
    pub(crate) is_read_only: bool,
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
    pub(crate) has_inodes: bool,
}

impl Disk {
    /// Why nothing can be kept in the directory `root` of it.
    pub(crate) fn problem(self, root: &str) -> Option<Problem> {
        let Self { is_read_only, bytes, inodes, has_inodes } = self;
        if is_read_only {
            Some(("StoreReadOnly", format!("the file system of {root} is mounted read-only")))
        } else if bytes < RESERVE_BYTES {
            Some(("DiskFull", format!("{bytes} bytes are left for {root}, fewer than {RESERVE_BYTES}")))
        } else if has_inodes && inodes < RESERVE_INODES {
            Some(("DiskFull", format!("{inodes} inodes are left for {root}, fewer than {RESERVE_INODES}")))
        } else {
            None
        }
    }
}

/// The first thing that is in the way.
pub(crate) async fn problem(app: &App) -> Option<Problem> {
    let store = app.store.sync().await.err().map(|error| Chain(&error).to_string());
    let (root, cgroup) = (app.config.root.clone(), PathBuf::from(&app.config.cgroup.parent));
    let group = app.cgroups.group(&cgroup);
    let shim = app.handlers.get("").map(|handler| handler.shim.clone()).unwrap_or_default();
    let facts = blocking(move || Facts {
        disk: disk(&root),
        root,
        store,
        has_cgroup: group.exists(),
        cgroup,
        has_shim: is_program(&shim),
        shim,
    });
    judge(&facts.await)
}

fn judge(facts: &Facts) -> Option<Problem> {
    let root = facts.root.display().to_string();
    let Some(disk) = facts.disk else {
        return Some(("StoreNotThere", format!("directory {root} can't be looked at")));
    };
    if let Some(problem) = disk.problem(&root) {
        return Some(problem);
    }
    if let Some(reason) = &facts.store {
        return Some(("StoreNotWritable", reason.clone()));
    }
    if !facts.has_cgroup {
        return Some(("CgroupNotThere", format!("control group {} is gone", facts.cgroup.display())));
    }
    if !facts.has_shim {
        return Some(("ShimNotThere", format!("{} can't be executed", facts.shim.display())));
    }
    None
}

pub(crate) fn disk(path: &Path) -> Option<Disk> {
    let found = statvfs(path).ok()?;
    Some(Disk {
        is_read_only: found.f_flag.contains(StatVfsMountFlags::RDONLY),
        bytes: found.f_bavail.saturating_mul(found.f_frsize),
        inodes: found.f_favail,
        has_inodes: found.f_files > 0,
    })
}

/// Whether a program can be executed, found as the start of a shim finds it.
pub(crate) fn is_program(program: &Path) -> bool {
    let can = |path: &Path| path.is_file() && access(path, Access::EXEC_OK).is_ok();
    if program.components().count() > 1 {
        return can(program);
    }
    env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|directory| can(&directory.join(program))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_problem_is_told() {
        let disk = Disk { is_read_only: false, bytes: 1 << 30, inodes: 100_000, has_inodes: true };
        let good = Facts { disk: Some(disk), has_cgroup: true, has_shim: true, ..Facts::default() };
        assert_eq!(judge(&good), None);
        let word = |change: &dyn Fn(&mut Facts)| {
            let mut facts = good.clone();
            change(&mut facts);
            judge(&facts).map(|(word, _)| word)
        };
        assert_eq!(word(&|facts| facts.disk = None), Some("StoreNotThere"));
        assert_eq!(word(&|facts| facts.disk = Some(Disk { is_read_only: true, ..disk })), Some("StoreReadOnly"));
        assert_eq!(word(&|facts| facts.disk = Some(Disk { bytes: 1 << 20, ..disk })), Some("DiskFull"));
        assert_eq!(word(&|facts| facts.disk = Some(Disk { inodes: 3, ..disk })), Some("DiskFull"));
        assert_eq!(word(&|facts| facts.disk = Some(Disk { inodes: 0, has_inodes: false, ..disk })), None);
        assert_eq!(word(&|facts| facts.store = Some("x".into())), Some("StoreNotWritable"));
        assert_eq!(word(&|facts| facts.has_cgroup = false), Some("CgroupNotThere"));
        assert_eq!(word(&|facts| facts.has_shim = false), Some("ShimNotThere"));
    }

    #[test]
    fn programs_are_found_by_path_and_by_name() {
        assert!(is_program(Path::new("/bin/sh")) && is_program(Path::new("sh")));
        assert!(!is_program(Path::new("/etc/passwd")) && !is_program(Path::new("no-such-program")));
        assert!(!is_program(Path::new("/bin")) && !is_program(Path::new("")));
    }
}
