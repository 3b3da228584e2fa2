//! What is on disk of a pod without a kubelet: `<root>/standalone/<uid>/`, one directory per pod.
//!
//! | name | what |
//! | --- | --- |
//! | `pod.json` | the manifest and where its logs are |
//! | `stop.json` | written once the pod is to end: it is Terminating, and by when |
//! | `waiting.json` | containers that wait for their back-off, for `vaina ps` |
//! | `volumes/`, `messages/`, `etc-hosts` | what the containers mount |
//!
//! Its runner has the directory locked while it lives, and nobody else ends or removes the pod meanwhile. (The directory
//! itself: a file for that would be made anew by one who looks while it is being removed.) The directory is there before
//! any of the pod's things and goes after all of them, so whoever finds one that nobody holds knows what to take away. It is below the root and not below the state directory: volumes are on disk, and what
//! is left of them after a reboot must be found too.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File},
    io::{self, Read as _},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use k8s_openapi::api::core::v1::Pod;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;
use vaina_sys::{fs as sys_fs, mount};

use super::convert::{Identity, Paths, log_directory};
use crate::error::{Classify, Kind};

/// All pods of this root.
#[derive(Debug, Clone)]
pub(super) struct Pods {
    directory: PathBuf,
    logs: PathBuf,
}

impl Pods {
    pub(super) fn new(root: &Path, logs: &Path) -> Self {
        Self { directory: root.join("standalone"), logs: logs.to_owned() }
    }

    /// Held while a name is taken or leftovers are taken away; each is short.
    pub(super) fn lock(&self) -> Result<File, DirectoryError> {
        let make = || -> io::Result<File> {
            DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
            let directory = File::open(&self.directory)?;
            flock(&directory, FlockOperation::LockExclusive)?;
            Ok(directory)
        };
        make().map_err(|source| DirectoryError::Lock { path: self.directory.clone(), source })
    }

    /// All pods, also those that nobody runs any more.
    pub(super) fn list(&self) -> Result<Vec<PodDirectory>, DirectoryError> {
        let failed = |source| DirectoryError::List { path: self.directory.clone(), source };
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut pods = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            if entry.file_type().map_err(failed)?.is_dir() {
                pods.push(PodDirectory { path: entry.path(), logs: self.logs.clone(), lock: None });
            }
        }
        pods.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(pods)
    }

    /// The pod of that name, and its record.
    pub(super) fn find(&self, namespace: &str, name: &str) -> Result<Option<(PodDirectory, Record)>, DirectoryError> {
        for directory in self.list()? {
            // One that can't be read is half made or half removed: it has no name.
            if let Some(record) = directory.record() {
                let identity = Identity::of(&record.pod);
                if (identity.namespace, identity.name) == (namespace, name) {
                    return Ok(Some((directory, record)));
                }
            }
        }
        Ok(None)
    }

    /// Makes the directory of a new pod, whose uid is set, and holds it. The caller has [`Self::lock`] and knows that the
    /// name is free.
    pub(super) fn create(&self, pod: &Pod) -> Result<PodDirectory, DirectoryError> {
        let path = self.directory.join(Identity::of(pod).uid);
        let make = || -> io::Result<PodDirectory> {
            DirBuilder::new().mode(0o700).create(&path)?;
            let directory = PodDirectory { path: path.clone(), logs: self.logs.clone(), lock: None };
            let directory = directory.hold()?.ok_or(io::ErrorKind::ResourceBusy)?;
            let record = Record { pod: pod.clone(), created_at: unix_milliseconds(SystemTime::now()) };
            directory.write("pod.json", &record)?;
            for name in ["volumes", "messages"] {
                DirBuilder::new().mode(0o755).create(path.join(name))?;
            }
            Ok(directory)
        };
        make().map_err(|source| DirectoryError::Create { path: path.clone(), source })
    }
}

/// One pod's directory.
#[derive(Debug)]
pub(super) struct PodDirectory {
    path: PathBuf,
    logs: PathBuf,
    lock: Option<File>,
}

impl PodDirectory {
    /// Becomes the one who may end the pod; `None` while its runner lives, `NotFound` when it is gone.
    pub(super) fn hold(mut self) -> io::Result<Option<Self>> {
        let directory = File::open(&self.path)?;
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                self.lock = Some(directory);
                Ok(Some(self))
            }
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Another name for the same directory, which does not hold it.
    pub(super) fn other(&self) -> Self {
        Self { path: self.path.clone(), logs: self.logs.clone(), lock: None }
    }

    pub(super) fn exists(&self) -> bool {
        self.path.exists()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn uid(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    pub(super) fn paths(&self) -> Paths {
        Paths { pod: self.path.clone(), logs: self.logs.clone() }
    }

    /// `None` when it is half made, or not there.
    pub(super) fn record(&self) -> Option<Record> {
        self.read("pod.json")
    }

    pub(super) fn stop(&self) -> Option<Stop> {
        self.read("stop.json")
    }

    /// Says that the pod is to end; a later word can only shorten the time.
    pub(super) fn request_stop(&self, stop: Stop) -> Result<Stop, DirectoryError> {
        let stop = match self.stop() {
            Some(earlier) if earlier.deadline <= stop.deadline => earlier,
            _ => stop,
        };
        match self.write("stop.json", &stop) {
            Ok(()) => Ok(stop),
            Err(source) => Err(DirectoryError::Write { path: self.path.join("stop.json"), source }),
        }
    }

    pub(super) fn waiting(&self) -> BTreeMap<String, Waiting> {
        self.read("waiting.json").unwrap_or_default()
    }

    pub(super) fn write_waiting(&self, waiting: &BTreeMap<String, Waiting>) -> io::Result<()> {
        self.write("waiting.json", waiting)
    }

    /// The file that a container's terminationMessagePath is, writable for any user of it.
    pub(super) fn create_message(&self, container: &str, attempt: u32) -> io::Result<()> {
        let path = self.paths().message(container, attempt);
        if let Some(parent) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
        }
        File::create(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666))
    }

    /// What the container left there, at most `limit` bytes.
    pub(super) fn read_message(&self, container: &str, attempt: u32, limit: u64) -> String {
        let mut bytes = Vec::new();
        if let Ok(file) = File::open(self.paths().message(container, attempt)) {
            let _ = file.take(limit).read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).trim_end().to_owned()
    }

    /// Forgets what belongs to an attempt whose container is removed.
    pub(super) fn remove_attempt(&self, log: &Path, container: &str, attempt: u32) {
        // A file that can't be removed now goes with the pod.
        let _ = fs::remove_file(log);
        let _ = fs::remove_file(self.paths().message(container, attempt));
    }

    /// Takes away mounts, files, logs and at last itself. The pod's sandbox is gone.
    pub(super) fn remove(&self) -> Result<(), DirectoryError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| DirectoryError::Remove { path, source }
        };
        let mut mounts: Vec<_> = mount::table()
            .map_err(failed(&self.path))?
            .into_iter()
            .map(|point| point.target)
            .filter(|target| target.starts_with(&self.path))
            .collect();
        // The innermost first.
        mounts.sort();
        for target in mounts.iter().rev() {
            mount::detach(target).map_err(failed(target))?;
        }
        if let Some(record) = self.record() {
            let logs = log_directory(&self.logs, Identity::of(&record.pod));
            sys_fs::remove_tree(&logs).map_err(failed(&logs))?;
        }
        // The record last: without it nobody would find the rest again.
        for name in ["volumes", "messages"] {
            let path = self.path.join(name);
            sys_fs::remove_tree(&path).map_err(failed(&path))?;
        }
        sys_fs::remove_tree(&self.path).map_err(failed(&self.path))
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_slice(&fs::read(self.path.join(name)).ok()?).ok()
    }

    fn write(&self, name: &str, value: &impl Serialize) -> io::Result<()> {
        sys_fs::write_atomic(&self.path.join(name), &serde_json::to_vec(value)?, 0o600, false)
    }
}

/// `pod.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) pod: Pod,
    /// Unix milliseconds.
    pub(super) created_at: u64,
}

/// `stop.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stop {
    /// Unix milliseconds; then what is left is killed.
    pub(super) deadline: u64,
}

impl Stop {
    pub(super) fn within(grace: Duration) -> Self {
        Self { deadline: unix_milliseconds(SystemTime::now() + grace) }
    }

    /// What is left of the grace period.
    pub(super) fn left(self) -> Duration {
        Duration::from_millis(self.deadline.saturating_sub(unix_milliseconds(SystemTime::now())))
    }
}

/// Why a container does not run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Waiting {
    /// `CrashLoopBackOff`, `ImagePullBackOff`, `ErrImagePull` …
    pub(super) reason: String,
    /// Unix milliseconds.
    pub(super) until: u64,
}

/// What could not be done with a pod's directory.
#[derive(Debug, Error)]
pub enum DirectoryError {
    /// The directory of all pods.
    #[error("lock {}", path.display())]
    Lock {
        /// Which.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The directory of all pods.
    #[error("list {}", path.display())]
    List {
        /// Which.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A pod's directory.
    #[error("create {}", path.display())]
    Create {
        /// Which.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A file in it.
    #[error("write {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Something of the pod.
    #[error("remove {}", path.display())]
    Remove {
        /// Which.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

impl Classify for DirectoryError {
    fn kind(&self) -> Kind {
        Kind::Internal
    }
}

/// Unix milliseconds.
pub(super) fn unix_milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A random (version 4) UUID, as the API server gives to each pod.
pub(super) fn new_uid() -> io::Result<String> {
    let mut bytes = [0u8; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let value = u128::from_be_bytes(bytes);
    let value = value & !(0xf000 << 64) | (0x4000 << 64);
    let value = value & !(0xc000 << 48) | (0x8000 << 48);
    let hex = format!("{value:032x}");
    Ok([&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.to_owned());
        pod.metadata.namespace = Some("default".to_owned());
        pod.metadata.uid = Some(new_uid().unwrap());
        pod
    }

    #[test]
    fn uids_are_uuids_and_differ() {
        let (a, b) = (new_uid().unwrap(), new_uid().unwrap());
        assert_ne!(a, b);
        assert_eq!((a.len(), &a[14..15]), (36, "4"));
        assert!(matches!(&a[19..20], "8" | "9" | "a" | "b"), "{a}");
    }

    #[test]
    fn a_pod_is_found_held_stopped_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let pods = Pods::new(&dir.path().join("root"), &dir.path().join("logs"));
        assert!(pods.list().unwrap().is_empty());
        let lock = pods.lock().unwrap();
        let held = pods.create(&pod("web")).unwrap();
        drop(lock);
        let (found, record) = pods.find("default", "web").unwrap().unwrap();
        assert_eq!(record.pod.metadata.name.as_deref(), Some("web"));
        assert!(found.hold().unwrap().is_none());
        assert!(pods.find("other", "web").unwrap().is_none());

        let first = held.request_stop(Stop { deadline: 5000 }).unwrap();
        assert_eq!(first.deadline, 5000);
        assert_eq!(held.request_stop(Stop { deadline: 9000 }).unwrap().deadline, 5000);
        assert_eq!(held.request_stop(Stop { deadline: 1000 }).unwrap().deadline, 1000);
        assert_eq!(held.stop().unwrap().deadline, 1000);

        held.create_message("a", 3).unwrap();
        fs::write(held.paths().message("a", 3), "last words\n").unwrap();
        assert_eq!(held.read_message("a", 3, 4), "last");
        assert_eq!(held.read_message("a", 3, 4096), "last words");
        let logs = log_directory(&dir.path().join("logs"), Identity::of(&record.pod));
        fs::create_dir_all(logs.join("a")).unwrap();
        let late = held.other();
        held.remove().unwrap();
        held.remove().unwrap();
        assert!(!held.exists() && !logs.exists());
        assert_eq!(late.hold().unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(pods.list().unwrap().is_empty());
    }

    #[test]
    fn a_pod_whose_runner_died_can_be_held() {
        let dir = tempfile::tempdir().unwrap();
        let pods = Pods::new(dir.path(), dir.path());
        drop(pods.lock().unwrap());
        drop(pods.create(&pod("web")).unwrap());
        let (found, _) = pods.find("default", "web").unwrap().unwrap();
        assert!(found.hold().unwrap().is_some());
    }
}
