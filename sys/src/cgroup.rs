//! Control groups, v1, hybrid and v2, as far as supervising needs them: make, join, list, kill, count OOM kills, remove.
//!
//! A path like `/kubepods/pod1/abc` means that directory in every hierarchy that carries controllers: one for each v1
//! controller that is mounted, or the one tree of v2. Limits belong to the OCI runtime.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::{mount, process};

/// The hierarchies of this host.
#[derive(Debug, Clone)]
pub struct Hierarchies {
    /// Mount points of v1 hierarchies with their controllers (`cpu`, `cpuacct` …; `name=systemd` is among them).
    pub v1: Vec<(Vec<String>, PathBuf)>,
    /// Mount point of v2.
    pub v2: Option<PathBuf>,
}

impl Hierarchies {
    /// Reads the mount table.
    pub fn detect() -> io::Result<Self> {
        Ok(Self::from_table(&mount::table()?))
    }

    fn from_table(table: &[mount::MountPoint]) -> Self {
        let mut found = Self { v1: Vec::new(), v2: None };
        for mount in table {
            match mount.fs_type.as_str() {
                "cgroup2" if found.v2.is_none() => found.v2 = Some(mount.target.clone()),
                "cgroup" => {
                    let options = mount.super_options.split(',').filter(|option| {
                        !matches!(*option, "rw" | "ro" | "xattr" | "clone_children" | "noprefix")
                            && !option.starts_with("release_agent=")
                    });
                    let controllers: Vec<String> = options.map(str::to_owned).collect();
                    // The same hierarchy may be mounted at several places.
                    if !found.v1.iter().any(|(known, _)| *known == controllers) {
                        found.v1.push((controllers, mount.target.clone()));
                    }
                }
                _ => {}
            }
        }
        found
    }

    /// Whether the controllers are on v2: nothing of v1 but perhaps systemd's named hierarchy is mounted.
    pub fn is_v2(&self) -> bool {
        self.v2.is_some()
            && self.v1.iter().all(|(controllers, _)| controllers.iter().all(|name| name.starts_with("name=")))
    }

    /// The mount point of a v1 controller.
    pub fn controller(&self, name: &str) -> Option<&Path> {
        self.v1
            .iter()
            .find(|(controllers, _)| controllers.iter().any(|own| own == name))
            .map(|(_, path)| path.as_path())
    }

    /// The directory of the group that this process is in, in one hierarchy; nothing where that is out of sight.
    pub fn own_directory(&self) -> io::Result<Option<PathBuf>> {
        Ok(self.own_directory_of(&fs::read_to_string("/proc/self/cgroup")?).filter(|directory| directory.is_dir()))
    }

    fn own_directory_of(&self, text: &str) -> Option<PathBuf> {
        text.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            let root = match controllers {
                "" => self.v2.as_deref().filter(|_| self.is_v2()),
                controllers => {
                    let own: Vec<&str> = controllers.split(',').collect();
                    self.v1.iter().find(|(known, _)| known.iter().eq(&own)).map(|(_, root)| root.as_path())
                }
            };
            Some(root?.join(path.strip_prefix('/')?))
        })
    }

    /// The group at `path` in each hierarchy. Makes nothing.
    pub fn group(&self, path: &Path) -> Group {
        let relative = path.strip_prefix("/").unwrap_or(path);
        let roots: Vec<&Path> = if self.is_v2() {
            self.v2.iter().map(PathBuf::as_path).collect()
        } else {
            self.v1.iter().map(|(_, root)| root.as_path()).collect()
        };
        let memory = if self.is_v2() { self.v2.as_deref() } else { self.controller("memory") };
        let freezer = if self.is_v2() { self.v2.as_deref() } else { self.controller("freezer") };
        // On a hybrid host an OCI runtime may have made the group in the v2 tree as well.
        let hybrid = self.v2.iter().filter(|_| !self.is_v2()).map(PathBuf::as_path);
        Group {
            dirs: roots.iter().copied().chain(hybrid).map(|root| root.join(relative)).collect(),
            memory: memory.map(|root| root.join(relative)),
            freezer: freezer.map(|root| root.join(relative)),
            v2: self.is_v2(),
        }
    }
}

/// One control group: a directory in each hierarchy.
#[derive(Debug, Clone)]
pub struct Group {
    dirs: Vec<PathBuf>,
    memory: Option<PathBuf>,
    freezer: Option<PathBuf>,
    v2: bool,
}

impl Group {
    /// Whether any directory of it is there.
    pub fn exists(&self) -> bool {
        self.dirs.iter().any(|dir| dir.is_dir())
    }

    /// The directories that are there.
    pub fn directories(&self) -> impl Iterator<Item = &Path> {
        self.dirs.iter().map(PathBuf::as_path).filter(|dir| dir.is_dir())
    }

    /// Makes the directories, parents included. A new cpuset of v1 takes its parent's cpus and nodes, or nothing could join.
    pub fn create(&self) -> io::Result<()> {
        for dir in &self.dirs {
            fs::create_dir_all(dir)?;
            inherit_cpuset(dir)?;
        }
        Ok(())
    }

    /// Moves a process into it.
    pub fn add(&self, pid: u32) -> io::Result<()> {
        for dir in self.directories() {
            fs::write(dir.join("cgroup.procs"), pid.to_string())?;
        }
        Ok(())
    }

    /// Lets what is frozen in it go on; nothing where it is not there or can't be frozen.
    pub fn thaw(&self) -> io::Result<()> {
        let Some(freezer) = &self.freezer else { return Ok(()) };
        let (file, value) = if self.v2 { ("cgroup.freeze", "0") } else { ("freezer.state", "THAWED") };
        match fs::write(freezer.join(file), value) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// All processes in it and below; empty if it is not there.
    pub fn pids(&self) -> io::Result<BTreeSet<u32>> {
        let mut pids = BTreeSet::new();
        for dir in &self.dirs {
            collect_pids(dir, &mut pids)?;
        }
        Ok(pids)
    }

    /// Kills everything in it and waits until it is empty; answers whether it is, at `limit` at the latest.
    ///
    /// A process that forks is caught by the kernel on v2 (`cgroup.kill`, 5.14), and by going round until none is left
    /// elsewhere. A process in uninterruptible sleep may outlive the limit.
    pub fn kill(&self, limit: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + limit;
        let mut pause = Duration::from_micros(200);
        loop {
            if self.v2 {
                for dir in self.directories() {
                    match fs::write(dir.join("cgroup.kill"), "1") {
                        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                        _ => {}
                    }
                }
            }
            let pids = self.pids()?;
            if pids.is_empty() {
                return Ok(true);
            }
            for &pid in &pids {
                // The pid was in the group a moment ago; by the time it means another process, it is not in there, and
                // that window is the few microseconds since the read.
                process::kill(pid, Signal::SIGKILL)?;
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            // There is no event for an empty v1 group; the kernel needs some hundred microseconds to tear a process down.
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Kills what is in it, without waiting.
    pub fn signal_all(&self, signal: Signal) -> io::Result<()> {
        for pid in self.pids()? {
            process::kill(pid, signal)?;
        }
        Ok(())
    }

    /// How many processes the OOM killer has killed in it; [`None`] where the host can't tell.
    pub fn oom_kills(&self) -> Option<u64> {
        let memory = self.memory.as_ref()?;
        let file = if self.v2 { "memory.events" } else { "memory.oom_control" };
        let text = fs::read_to_string(memory.join(file)).ok()?;
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
    }

    /// Removes the directories, those below first; what is not there is removed. `EBUSY` while processes are left.
    pub fn remove(&self) -> io::Result<()> {
        self.dirs.iter().try_for_each(|dir| remove_directory(dir))
    }
}

fn inherit_cpuset(dir: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        // v2 reads an empty file as "the parent's"; v1 does not.
        let own = match fs::read_to_string(dir.join(file)) {
            Ok(own) => own,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        if dir.join("cgroup.controllers").exists() || !own.trim().is_empty() {
            continue;
        }
        let Some(parent) = dir.parent() else { return Ok(()) };
        inherit_cpuset(parent)?;
        fs::write(dir.join(file), fs::read(parent.join(file))?)?;
    }
    Ok(())
}

fn collect_pids(dir: &Path, pids: &mut BTreeSet<u32>) -> io::Result<()> {
    let absent = |error: &io::Error| {
        // ENODEV: removed while it was open.
        error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ENODEV)
    };
    match fs::read_to_string(dir.join("cgroup.procs")) {
        Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok())),
        Err(error) if absent(&error) => return Ok(()),
        // A threaded v2 group lists no processes.
        Err(error) if error.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => {}
        Err(error) => return Err(error),
    }
    each_child(dir, &mut |child| collect_pids(child, pids))
}

fn each_child(dir: &Path, visit: &mut dyn FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            visit(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_directory(dir: &Path) -> io::Result<()> {
    each_child(dir, &mut remove_directory)?;
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_told_apart() {
        let table = |lines: &str| Hierarchies::from_table(&mount::parse_table(lines.as_bytes()).unwrap());
        let hybrid = table(
            "1 0 0:1 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
             2 0 0:2 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
             3 0 0:3 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
        );
        assert!(!hybrid.is_v2());
        assert_eq!(hybrid.controller("memory"), Some(Path::new("/sys/fs/cgroup/memory")));
        let unified = table("3 0 0:3 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n");
        assert!(unified.is_v2());
        let own = |hierarchies: &Hierarchies, text| hierarchies.own_directory_of(text).unwrap().display().to_string();
        assert_eq!(own(&unified, "0::/system.slice/v.service\n"), "/sys/fs/cgroup/system.slice/v.service");
        assert_eq!(own(&hybrid, "9:hugetlb:/\n2:memory:/a\n0::/\n"), "/sys/fs/cgroup/memory/a");
        assert_eq!(hybrid.own_directory_of("0::/\n"), None);
        assert_eq!(hybrid.own_directory_of("nonsense"), None);
    }

    mod root {
        use super::*;

        #[test]
        fn a_group_is_made_filled_killed_and_removed() {
            let path = format!("/vaina-sys-test-{}", std::process::id());
            let group = Hierarchies::detect().unwrap().group(Path::new(&path).join("inner").as_path());
            let parent = Hierarchies::detect().unwrap().group(Path::new(&path));
            assert!(!group.exists());
            group.create().unwrap();
            let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
            group.add(child.id()).unwrap();
            assert_eq!(parent.pids().unwrap().into_iter().collect::<Vec<_>>(), [child.id()]);
            let waiter = thread::spawn(move || child.wait());
            assert!(parent.kill(Duration::from_secs(10)).unwrap());
            waiter.join().unwrap().unwrap();
            assert_eq!(group.oom_kills(), Some(0));
            parent.remove().unwrap();
            parent.remove().unwrap();
            assert!(!parent.exists() && group.pids().unwrap().is_empty());
        }
    }
}
