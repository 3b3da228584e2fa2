//! The phases of the library's own work, when a profile is taken ([`crate::spans`]).
//!
//! `libcontainer` has no spans where its time goes, but says in `tracing` events what it is about to do, in each of the
//! processes that it forks. Some of them are the milestones between which phases lie; a phase ends at the next one.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use tracing::Level;

use crate::{reaper::now, spans};

/// The phase that an event begins, by the start of its message; nothing to begin none.
const BEGINNINGS: &[(&str, &str)] = &[
    ("cgroup manager", "join control groups"),
    ("Apply", "limits of control groups"),
    // Told by the intermediate process after it has forked the init.
    ("sending init pid", ""),
    ("prepare rootfs", "prepare root file system"),
    ("initialize_seccomp", "seccomp filter"),
    ("close_range", "privileges"),
];

/// The phases that a message ends when it is about something that is done.
const DONE: &str = "readonly path";

/// What this process does now.
#[derive(Debug, Default)]
pub(super) struct Milestones {
    id: String,
    /// Nothing is told between the last mount and the paths that are made read-only.
    last: PathBuf,
    current: Mutex<Option<Current>>,
}

#[derive(Debug)]
struct Current {
    pid: u32,
    name: String,
    started: i64,
}

impl Milestones {
    pub(super) fn new(id: &str, last: Option<&Path>) -> Self {
        Self { id: id.to_owned(), last: last.unwrap_or(Path::new("")).to_owned(), current: Mutex::default() }
    }

    /// Whether that level of that part of the library is listened to.
    pub(super) fn is_one(target: &str, level: Level) -> bool {
        let libraries = target.starts_with("libcontainer") || target.starts_with("libcgroups");
        libraries && (level <= Level::DEBUG || target.starts_with("libcontainer::seccomp"))
    }

    /// Whether anybody looks.
    pub(super) fn are_wanted() -> bool {
        spans::are_wanted()
    }

    /// The library has told something.
    pub(super) fn told(&self, message: &str) {
        if message.starts_with(DONE) {
            self.begin("read-only and masked paths");
        } else if let Some(target) = mounted(message) {
            if target.starts_with("/sys/fs/cgroup/") {
                // A part of what has begun: one of the hierarchies of version 1.
                return;
            }
            let more = if Path::new(target) == self.last { ", devices, change of root" } else { "" };
            self.begin(&format!("mount {target}{more}"));
        } else if let Some((_, name)) = BEGINNINGS.iter().find(|(start, _)| message.starts_with(start)) {
            self.begin(name);
        }
    }

    /// The phase in which this process was is over, and another one begins unless its name is empty or the same.
    pub(super) fn begin(&self, name: &str) {
        let now = now();
        // A fork has a copy of the lock, and nobody in it who holds it.
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = std::process::id();
        if current.as_ref().is_some_and(|old| old.pid == pid && old.name == name) {
            return;
        }
        if let Some(old) = current.take()
            && old.pid == pid
        {
            spans::write(&old.name, &self.id, old.started, now);
        }
        *current = (!name.is_empty()).then(|| Current { pid, name: name.to_owned(), started: now });
    }
}

/// Where something is mounted, from the Debug form of a mount.
fn mounted(message: &str) -> Option<&str> {
    message.strip_prefix("mounting Mount ")?.split_once("destination: \"")?.1.split('"').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_lasts_until_the_next_milestone() {
        let milestones = Milestones::new("a", Some(Path::new("/etc/hosts")));
        let name = || milestones.current.lock().unwrap().as_ref().map(|current| current.name.clone());
        milestones.told("send identifier mapping request");
        assert_eq!(name(), None);
        milestones.told("prepare rootfs");
        assert_eq!(name().as_deref(), Some("prepare root file system"));
        milestones.told("mounting Mount { destination: \"/proc\", typ: Some(\"proc\") }");
        assert_eq!(name().as_deref(), Some("mount /proc"));
        let started = milestones.current.lock().unwrap().as_ref().unwrap().started;
        milestones.told("mounting cgroup v1 filesystem");
        assert_eq!(name().as_deref(), Some("mount /proc"));
        milestones.told("mounting Mount { destination: \"/sys\", typ: Some(\"sysfs\") }");
        assert_eq!(name().as_deref(), Some("mount /sys"));
        milestones.told("mounting Mount { destination: \"/sys/fs/cgroup/cpu\", typ: Some(\"bind\") }");
        assert_eq!(name().as_deref(), Some("mount /sys"));
        assert!(milestones.current.lock().unwrap().as_ref().unwrap().started >= started);
        milestones.told("mounting Mount { destination: \"/etc/hosts\", typ: Some(\"bind\") }");
        assert_eq!(name().as_deref(), Some("mount /etc/hosts, devices, change of root"));
        milestones.told("readonly path \"/proc/sys\" mounted");
        assert_eq!(name().as_deref(), Some("read-only and masked paths"));
        milestones.told("sending init pid (1)");
        assert_eq!(name(), None);
    }
}
