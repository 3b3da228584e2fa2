//! What is there before a test and must be there after it, no more and no less: mounts, network namespace pins, links
//! and addresses, nftables rules, cgroups, processes, files, image layers, and descriptors of the daemon.
//!
//! All is read from the kernel and never from the daemon, whose word is what is being checked.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// Where to look; the thread that looks must be in the node's namespaces.
#[derive(Debug, Clone)]
pub struct Scope {
    /// A cgroup or process belongs to the node if its cgroup path contains one of these.
    pub cgroup_marks: Vec<String>,
    /// A process belongs to the node if its environment contains this.
    pub environment_mark: String,
    /// A process belongs to the node if it is in the mount namespace of the thread that looks.
    pub whole_namespace: bool,
    /// Directories whose files are compared.
    pub directories: Vec<PathBuf>,
    /// Paths below them that may change.
    pub ignored: Vec<PathBuf>,
    /// Image stores: their layers are compared by name, and what is being unpacked or deleted.
    pub stores: Vec<PathBuf>,
    /// Whose descriptors are compared.
    pub daemon: Option<u32>,
}

/// How lines about the daemon's descriptors begin.
pub const DESCRIPTOR: &str = "descriptor of the daemon:";

/// One look. Each thing is a line, as often as it is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    things: BTreeMap<String, usize>,
}

impl Snapshot {
    /// Looks at everything once.
    pub fn take(scope: &Scope) -> Result<Self> {
        let mut snapshot = Self::default();
        snapshot.mounts()?;
        snapshot.links()?;
        snapshot.rules()?;
        snapshot.cgroups(scope)?;
        for process in processes(scope)? {
            snapshot.add(format!("process {}", process.command));
        }
        for directory in &scope.directories {
            snapshot.files(directory, scope)?;
        }
        for store in &scope.stores {
            for thing in image_store(store)? {
                snapshot.add(thing);
            }
        }
        if let Some(pid) = scope.daemon {
            snapshot.descriptors(pid)?;
        }
        Ok(snapshot)
    }

    /// How many things there are.
    pub fn len(&self) -> usize {
        self.things.values().sum()
    }

    /// Whether there is nothing at all.
    pub fn is_empty(&self) -> bool {
        self.things.is_empty()
    }

    /// What is in `after` and not here (`+`), and the other way round (`-`).
    pub fn difference(&self, after: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        for (thing, count) in &after.things {
            let before = self.things.get(thing).copied().unwrap_or(0);
            lines.extend((before..*count).map(|_| format!("+ {thing}")));
        }
        for (thing, count) in &self.things {
            let after = after.things.get(thing).copied().unwrap_or(0);
            lines.extend((after..*count).map(|_| format!("- {thing}")));
        }
        lines
    }

    fn add(&mut self, thing: String) {
        *self.things.entry(thing).or_default() += 1;
    }

    fn mounts(&mut self) -> Result<()> {
        let table = fs::read_to_string("/proc/thread-self/mountinfo").context("read mountinfo")?;
        for line in table.lines() {
            // Ids and peer groups are the kernel's to choose; root, mount point, type and source are ours.
            let words: Vec<&str> = line.split(' ').collect();
            let separator = words.iter().position(|word| *word == "-").context("mountinfo line without a separator")?;
            let kind = words.get(separator + 1).unwrap_or(&"");
            self.add(format!("mount {} at {} ({kind})", words[3], words[4]));
        }
        Ok(())
    }

    fn links(&mut self) -> Result<()> {
        let links = json_of(Command::new("ip").args(["-j", "addr"]))?;
        for link in links.as_array().into_iter().flatten() {
            let name = link["ifname"].as_str().unwrap_or("?");
            self.add(format!("link {name}"));
            for address in link["addr_info"].as_array().into_iter().flatten() {
                // Link-local addresses come and go with the carrier.
                if address["scope"] != "link" {
                    self.add(format!("address {} on {name}", address["local"].as_str().unwrap_or("?")));
                }
            }
        }
        let neighbours = json_of(Command::new("ip").args(["-j", "route", "show", "table", "all"]))?;
        for route in neighbours.as_array().into_iter().flatten() {
            let (destination, device) = (route["dst"].as_str().unwrap_or("?"), route["dev"].as_str().unwrap_or("?"));
            // These follow addresses and carrier, which are compared themselves.
            if !destination.contains(':') && route["type"] != "broadcast" && route["type"] != "local" {
                self.add(format!("route to {destination} over {device}"));
            }
        }
        Ok(())
    }

    fn rules(&mut self) -> Result<()> {
        let ruleset = json_of(Command::new("nft").args(["-j", "list", "ruleset"]))?;
        for object in ruleset["nftables"].as_array().into_iter().flatten() {
            let Some((kind, body)) = object.as_object().and_then(|object| object.iter().next()) else { continue };
            if kind == "metainfo" {
                continue;
            }
            let mut body = body.clone();
            // Handles only ever rise; elements are things of their own.
            let elements = body.as_object_mut().and_then(|body| {
                body.remove("handle");
                body.remove("elem")
            });
            without_counts(&mut body);
            self.add(format!("nft {kind} {body}"));
            let name = body["name"].as_str().unwrap_or("?");
            for element in elements.iter().filter_map(Value::as_array).flatten() {
                self.add(format!("nft element {element} of {name}"));
            }
        }
        Ok(())
    }

    fn cgroups(&mut self, scope: &Scope) -> Result<()> {
        for directory in cgroups(scope)? {
            self.add(format!("cgroup {}", directory.display()));
        }
        Ok(())
    }

    fn files(&mut self, directory: &Path, scope: &Scope) -> Result<()> {
        let Ok(entries) = fs::read_dir(directory) else { return Ok(()) };
        for entry in entries {
            let entry = entry.with_context(|| format!("list {}", directory.display()))?;
            let path = entry.path();
            if scope.ignored.iter().any(|ignored| path.starts_with(ignored)) {
                continue;
            }
            let Ok(kind) = entry.file_type() else { continue };
            let word = match kind {
                kind if kind.is_dir() => "directory",
                kind if kind.is_symlink() => "link",
                kind if kind.is_socket() => "socket",
                kind if kind.is_fifo() => "fifo",
                _ => "file",
            };
            self.add(format!("{word} {}", path.display()));
            if kind.is_dir() {
                self.files(&path, scope)?;
            }
        }
        Ok(())
    }

    fn descriptors(&mut self, pid: u32) -> Result<()> {
        let directory = format!("/proc/{pid}/fd");
        for entry in fs::read_dir(&directory).with_context(|| format!("list {directory}"))? {
            // Between the listing and the reading it may be closed.
            let Ok(target) = entry.and_then(|entry| fs::read_link(entry.path())) else { continue };
            let target = target.to_string_lossy();
            // `socket:[12345]`: the number is the kernel's.
            let kind = target.split_once(":[").filter(|_| !target.starts_with('/')).map_or(&*target, |(kind, _)| kind);
            self.add(format!("{DESCRIPTOR} {kind}"));
        }
        Ok(())
    }
}

/// What an image store has on disk: complete layers and their short names, and whatever is in its staging and trash. The
/// files of a complete layer are its own affair.
pub fn image_store(root: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let algorithms = names(&root.join("layers"))?.into_iter().map(|name| format!("layers/{name}"));
    for directory in algorithms.chain(["l", "staging", "trash"].map(ToOwned::to_owned)) {
        found.extend(names(&root.join(&directory))?.into_iter().map(|name| format!("image store: {directory}/{name}")));
    }
    found.sort();
    Ok(found)
}

/// Names in a directory; none if it is not there.
fn names(directory: &Path) -> Result<Vec<String>> {
    let Ok(entries) = fs::read_dir(directory) else { return Ok(Vec::new()) };
    let name = |entry: std::io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    entries.map(name).collect::<Result<_>>().with_context(|| format!("list {}", directory.display()))
}

/// A process that belongs to a node.
#[derive(Debug, Clone)]
pub struct Process {
    /// As the host counts.
    pub pid: u32,
    /// Its command line, or its name in brackets.
    pub command: String,
}

/// The pids of the processes whose environment, control group or mount table carries this mark: a shim has neither of the
/// first two of its node.
pub fn marked(mark: &str) -> Vec<u32> {
    let carries = |path: PathBuf| fs::read(path).is_ok_and(|text| contains(&text, mark));
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| ["environ", "cgroup", "mountinfo"].iter().any(|file| carries(entry.path().join(file))))
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

fn contains(text: &[u8], mark: &str) -> bool {
    text.windows(mark.len()).any(|window| window == mark.as_bytes())
}

/// The processes of a node, but for zombies and registries.
pub fn processes(scope: &Scope) -> Result<Vec<Process>> {
    let namespace = fs::read_link("/proc/thread-self/ns/mnt").context("read our mount namespace")?;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("list /proc")? {
        let entry = entry.context("list /proc")?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let read = |file: &str| fs::read(entry.path().join(file)).unwrap_or_default();
        let marked = |file: &str, mark: &str| contains(&read(file), mark);
        let is_inside = || fs::read_link(entry.path().join("ns/mnt")).is_ok_and(|other| other == namespace);
        let ours = (scope.whole_namespace && is_inside())
            || marked("environ", &scope.environment_mark)
            || scope.cgroup_marks.iter().any(|mark| marked("cgroup", mark));
        if pid == std::process::id() || !ours {
            continue;
        }
        let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ").trim().to_owned();
        if command.is_empty() || command.contains("docker-registry") {
            continue;
        }
        found.push(Process { pid, command });
    }
    Ok(found)
}

/// The cgroups of a node in all hierarchies, parents before children.
pub fn cgroups(scope: &Scope) -> Result<Vec<PathBuf>> {
    fn walk(directory: &Path, marks: &[String], inside: bool, found: &mut Vec<PathBuf>) {
        let Ok(entries) = fs::read_dir(directory) else { return };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let path = entry.path();
                let name = entry.file_name();
                let inside = inside || marks.iter().any(|mark| name.to_string_lossy().contains(mark.as_str()));
                if inside {
                    found.push(path.clone());
                }
                walk(&path, marks, inside, found);
            }
        }
    }
    let mut found = Vec::new();
    walk(Path::new("/sys/fs/cgroup"), &scope.cgroup_marks, false, &mut found);
    Ok(found)
}

/// What a daemon with its defaults keeps when all pods are gone: images, the record, and compiled seccomp filters.
pub fn kept() -> Vec<PathBuf> {
    let kept = ["images", "state.db", "state.db-wal", "state.db-shm", "state.db-reserve"];
    let below_root = kept.map(|name| Path::new("/var/lib/vaina").join(name));
    below_root.into_iter().chain(["/run/vaina/oci/vaina/.filters".into()]).collect()
}

/// What has passed a rule so far is no part of it.
fn without_counts(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.remove("counter");
            map.values_mut().for_each(without_counts);
        }
        Value::Array(values) => values.iter_mut().for_each(without_counts),
        _ => {}
    }
}

fn json_of(command: &mut Command) -> Result<Value> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    if output.stdout.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("parse the output of {command:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(things: &[&str]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for thing in things {
            snapshot.add((*thing).to_owned());
        }
        snapshot
    }

    #[test]
    fn a_difference_counts_equal_things() {
        let before = snapshot(&["pipe", "mount a", "mount b"]);
        let after = snapshot(&["pipe", "pipe", "mount a"]);
        assert_eq!(before.difference(&after), ["+ pipe", "- mount b"]);
        assert!(before.difference(&before.clone()).is_empty());
    }
}
