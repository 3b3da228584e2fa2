//! A container that exists: found by its id below the root, asked, signalled, removed.
//!
//! `libcontainer` keeps `<root>/<id>/state.json`. Beside it lies `vaina.json` with what that lacks: when the first process
//! was started, so that a later process with its pid is not taken for it, and the bundle as the caller named it.
//!
//! ```text
//!            create              start              exits
//!  (nothing) ──────▶ created ──────────▶ running ──────────▶ stopped ──delete──▶ (nothing)
//!      │                │               pause│▲resume           ▲
//!      │ dies half way  └──────── exits ─────┼┼─────────────────┤
//!      ▼                                     ▼│                 │
//!  creating ──delete──▶ (nothing)          paused ───killed─────┘
//! ```

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use libcgroups::common::{AnyCgroupManager, CgroupConfig};
use libcontainer::{
    config::YoukiConfig,
    container::{Container as Inner, ContainerStatus},
};
use serde::{Deserialize, Serialize};
use vaina_sys::{
    cgroup::{Group, Hierarchies},
    process,
};

use super::OciError;
use crate::spans;

/// How long a killed container may take to be empty; longer than that it hangs in the kernel.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// What is kept of a container beside the library's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Identity {
    pub(super) pid: i32,
    pub(super) start_time: u64,
    pub(super) bundle: PathBuf,
    pub(super) rootfs: PathBuf,
    pub(super) cgroup: PathBuf,
}

impl Identity {
    const FILE: &'static str = "vaina.json";

    /// Written whole or not at all: the file appears under its name when it is complete.
    pub(super) fn save(&self, directory: &Path) -> io::Result<()> {
        let new = directory.join("vaina.json.new");
        fs::write(&new, serde_json::to_vec(self)?)?;
        fs::rename(new, directory.join(Self::FILE))
    }
}

/// Where a rewritten configuration of a container lies: no container's id starts with a dot.
pub(super) fn shadow(root: &Path, id: &str) -> PathBuf {
    root.join(format!(".{id}"))
}

/// One container.
#[derive(Debug)]
pub(super) struct Container {
    root: PathBuf,
    id: String,
    /// Nothing if its creation was cut short before the library wrote its state.
    inner: Option<Inner>,
    /// Nothing if its creation was cut short.
    identity: Option<Identity>,
}

/// `state`, in the form of the OCI runtime specification and of `runc`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct State<'a> {
    oci_version: &'a str,
    id: &'a str,
    pid: i32,
    status: &'static str,
    bundle: &'a Path,
    rootfs: &'a Path,
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<&'a std::collections::HashMap<String, String>>,
    owner: &'static str,
}

impl Container {
    /// Finds a container.
    pub(super) fn load(root: &Path, id: &str) -> Result<Self, OciError> {
        let directory = root.join(id);
        if !directory.is_dir() {
            return Err(OciError::NotFound { id: id.to_owned(), root: root.to_owned() });
        }
        let path = directory.join(Identity::FILE);
        let identity: Option<Identity> = match fs::read(&path) {
            Ok(text) => {
                Some(serde_json::from_slice(&text).map_err(|error| OciError::Read { path, source: error.into() })?)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(OciError::Read { path, source }),
        };
        // Half written state belongs to a creation that was cut short as well.
        let inner = match &identity {
            Some(_) => Some(Inner::load(directory).map_err(|error| OciError::library("load state", &error))?),
            None => Inner::load(directory).ok(),
        };
        let mut container = Self { root: root.to_owned(), id: id.to_owned(), inner, identity };
        if container.live().is_none()
            && let Some(inner) = &mut container.inner
            && container.identity.is_some()
        {
            // Its pid may be another's by now.
            inner.state.pid = None;
            inner.set_status(ContainerStatus::Stopped);
        }
        Ok(container)
    }

    /// Every container below the root; those that can't be read are left out.
    pub(super) fn all(root: &Path) -> Result<Vec<Self>, OciError> {
        let entries = match fs::read_dir(root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(OciError::Read { path: root.to_owned(), source }),
        };
        let mut ids: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| !name.starts_with('.'))
            .collect();
        ids.sort();
        Ok(ids.iter().filter_map(|id| Self::load(root, id).ok()).collect())
    }

    pub(super) fn directory(&self) -> PathBuf {
        self.root.join(&self.id)
    }

    /// The bundle that it was created from.
    pub(super) fn bundle(&self) -> &Path {
        self.identity.as_ref().map_or(Path::new(""), |identity| &identity.bundle)
    }

    /// One line of a list for people.
    pub(super) fn line(&self) -> String {
        let pid = self.live().unwrap_or(0);
        format!("{}\t{pid}\t{}\t{}\n", self.id, word(self.status()), self.bundle().display())
    }

    /// Its first process, if that has not ended.
    pub(super) fn live(&self) -> Option<u32> {
        let identity = self.identity.as_ref()?;
        let pid = u32::try_from(identity.pid).ok()?;
        let same = process::start_time(pid).is_ok_and(|start| start == identity.start_time);
        (same && !is_dead(pid)).then_some(pid)
    }

    pub(super) fn status(&self) -> ContainerStatus {
        match (&self.identity, &self.inner) {
            (Some(_), Some(inner)) => match (self.live(), inner.status()) {
                (None, _) => ContainerStatus::Stopped,
                (Some(_), status) => status,
            },
            _ => ContainerStatus::Creating,
        }
    }

    pub(super) fn state(&self) -> State<'_> {
        let created = self.inner.as_ref().and_then(Inner::created);
        State {
            oci_version: "1.0.2",
            id: &self.id,
            pid: self.live().and_then(|pid| i32::try_from(pid).ok()).unwrap_or(0),
            status: word(self.status()),
            bundle: self.bundle(),
            rootfs: self.identity.as_ref().map_or(Path::new(""), |identity| &identity.rootfs),
            created: created.map(|at| at.to_rfc3339()),
            annotations: self.inner.as_ref().and_then(|inner| inner.state.annotations.as_ref()),
            owner: "",
        }
    }

    /// Has the process go on to the container's program.
    pub(super) fn start(&mut self) -> Result<(), OciError> {
        let refused = match self.status() {
            ContainerStatus::Created => None,
            ContainerStatus::Stopped => Some("cannot start a container that has stopped"),
            ContainerStatus::Creating => Some("cannot start a container that was not created completely"),
            ContainerStatus::Running | ContainerStatus::Paused => Some("cannot start an already running container"),
        };
        match (refused, &mut self.inner) {
            (Some(message), _) => Err(OciError::State(message.to_owned())),
            (None, Some(inner)) => inner.start().map_err(|error| OciError::library("start container", &error)),
            (None, None) => Err(OciError::State("container not running".to_owned())),
        }
    }

    /// Signals the first process, or all.
    pub(super) fn kill(&self, signal: i32, all: bool) -> Result<(), OciError> {
        let failed = |source| OciError::Kill { signal, source };
        if all {
            // Also of a stopped one: without a PID namespace of its own its processes outlive the first.
            let group = self.group()?;
            for pid in group.pids().map_err(failed)? {
                match process::open(pid).and_then(|process| process::signal(process, signal)) {
                    Err(error) if error.raw_os_error() != Some(nix::libc::ESRCH) => return Err(failed(error)),
                    _ => {}
                }
            }
        } else {
            let not_running = || OciError::State("container not running".to_owned());
            let pid = self.live().ok_or_else(not_running)?;
            let process = process::open(pid).map_err(|_| not_running())?;
            // The descriptor is now of the process that was looked at, unless it ended in between.
            if self.live() != Some(pid) {
                return Err(not_running());
            }
            match process::signal(process, signal) {
                Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => return Err(not_running()),
                other => other.map_err(failed)?,
            }
        }
        if signal == nix::libc::SIGKILL
            && let Ok(group) = self.group()
        {
            // A frozen process does not see its end.
            let _ = group.thaw();
        }
        Ok(())
    }

    /// Removes it; what is still in it is killed if it was never started or if `force` says so.
    pub(super) fn delete(mut self, force: bool) -> Result<(), OciError> {
        let status = self.status();
        if !force && matches!(status, ContainerStatus::Running | ContainerStatus::Paused) {
            let state = word(status);
            return Err(OciError::State(format!("cannot delete container {} that is not stopped: {state}", self.id)));
        }
        if let Some(process) = self.live().and_then(|pid| process::open(pid).ok())
            && self.live().is_some()
        {
            let _ = process::signal(process, nix::libc::SIGKILL);
        }
        if let Ok(group) = self.group() {
            let failed = |source| OciError::Remove { what: "control group", source };
            if group.exists() {
                let killing = spans::start("kill", &self.id);
                // What can't be thawed does not end, and is told.
                let _ = group.thaw();
                if !group.kill(KILL_LIMIT).map_err(failed)? {
                    let left = group.pids().unwrap_or_default();
                    return Err(OciError::State(format!("processes {left:?} do not end after SIGKILL")));
                }
                drop(killing);
                let _span = spans::start("remove control group", &self.id);
                remove_group(&group).map_err(failed)?;
            }
        }
        let _span = spans::start("remove state", &self.id);
        if let Some(inner) = &mut self.inner
            && owes_more(inner)
        {
            inner.state.pid = None;
            inner.delete(true).map_err(|error| OciError::library("delete container", &error))?;
        }
        for directory in [self.directory(), shadow(&self.root, &self.id)] {
            match fs::remove_dir_all(directory) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(OciError::Remove { what: "state", source });
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) fn pids(&self) -> Result<BTreeSet<u32>, OciError> {
        self.group()?.pids().map_err(|source| OciError::Remove { what: "list of processes", source })
    }

    pub(super) fn pause(&mut self) -> Result<(), OciError> {
        match (self.status(), &mut self.inner) {
            (ContainerStatus::Running, Some(inner)) => {
                inner.pause().map_err(|error| OciError::library("pause container", &error))
            }
            (ContainerStatus::Paused, _) => Ok(()),
            _ => Err(OciError::State("container not running".to_owned())),
        }
    }

    pub(super) fn resume(&mut self) -> Result<(), OciError> {
        match (self.status(), &mut self.inner) {
            (ContainerStatus::Paused, Some(inner)) => {
                inner.resume().map_err(|error| OciError::library("resume container", &error))
            }
            _ => Err(OciError::State("container not paused".to_owned())),
        }
    }

    /// Its group as limits see it.
    pub(super) fn cgroup_manager(&self) -> Result<AnyCgroupManager, OciError> {
        libcgroups::common::create_cgroup_manager(CgroupConfig {
            cgroup_path: self.cgroup_path()?,
            systemd_cgroup: false,
            container_name: self.id.clone(),
        })
        .map_err(|error| OciError::Cgroup { step: "open control group", message: super::chain(&error) })
    }

    fn group(&self) -> Result<Group, OciError> {
        let hierarchies = Hierarchies::detect()
            .map_err(|error| OciError::Cgroup { step: "find control groups", message: error.to_string() })?;
        Ok(hierarchies.group(&self.cgroup_path()?))
    }

    /// Where its group is. Of a creation that was cut short the library's own configuration tells, if it got that far.
    fn cgroup_path(&self) -> Result<PathBuf, OciError> {
        if let Some(identity) = &self.identity {
            return Ok(identity.cgroup.clone());
        }
        let inner =
            self.inner.as_ref().ok_or_else(|| OciError::State("container has no control group yet".to_owned()))?;
        inner.spec().map(|config| config.cgroup_path).map_err(|error| OciError::library("load configuration", &error))
    }
}

/// Whether the library has more to do than to remove its directory. For that alone it would look for the hierarchies of
/// control groups first, each on its own, which is most of the time that a removal takes.
fn owes_more(container: &Inner) -> bool {
    let resource_control = container.intel_rdt_dir().or(container.intel_rdt_monitoring_dir());
    let has_hooks = |config: YoukiConfig| {
        config.hooks.is_some_and(|hooks| hooks.poststop().as_ref().is_some_and(|some| !some.is_empty()))
    };
    resource_control.is_some() || container.spec().is_ok_and(has_hooks)
}

/// A zombie has ended: only its parent has not looked.
fn is_dead(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit_once(") ").map(|(_, after)| after.starts_with(['Z', 'X'])))
        .unwrap_or(true)
}

/// A v1 group can be busy for a moment after its last process is gone.
fn remove_group(group: &Group) -> io::Result<()> {
    for _ in 0..200 {
        match group.remove() {
            Err(error) if error.raw_os_error() == Some(nix::libc::EBUSY) => {
                std::thread::sleep(Duration::from_millis(1));
            }
            other => return other,
        }
    }
    group.remove()
}

fn word(status: ContainerStatus) -> &'static str {
    match status {
        ContainerStatus::Creating => "creating",
        ContainerStatus::Created => "created",
        ContainerStatus::Running => "running",
        ContainerStatus::Stopped => "stopped",
        ContainerStatus::Paused => "paused",
    }
}
