//! Mounts: the kernel's file systems, the pod's files, then the client's, outer ones first.

use std::path::{Component, Path, PathBuf};

use serde_json::{Value, json};
use vaina_proto::cri::{Mount, MountPropagation};

use super::{Input, SpecError, invalid};
use crate::container::image_volume::image_of;

pub(super) struct Mounts {
    pub(super) list: Vec<Value>,
    /// Of the root file system, as the client's mounts need it.
    pub(super) propagation: &'static str,
}

fn mount(target: &str, fs_type: &str, source: &str, options: &[&str]) -> Value {
    json!({ "destination": target, "type": fs_type, "source": source, "options": options })
}

pub(super) fn mounts(input: &Input<'_>) -> Result<Mounts, SpecError> {
    let privileged = input.is_privileged();
    let sys = if privileged { "rw" } else { "ro" };
    let mut list = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", sys]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", sys]),
    ];
    let taken: Vec<PathBuf> = input.container.mounts.iter().map(|mount| clean(&mount.container_path)).collect();
    let free = |path: &str| !taken.iter().any(|other| other == Path::new(path));
    let writable = if input.security().readonly_rootfs { "ro" } else { "rw" };
    let mut bind = |target: &str, source: &Path, options: &[&str]| {
        if free(target) {
            let mut all = vec!["rbind", "rprivate"];
            all.extend(options);
            list.push(json!({ "destination": target, "type": "bind", "source": source, "options": all }));
        }
    };
    bind("/etc/hostname", &input.files.hostname, &[writable]);
    bind("/etc/hosts", &input.files.hosts, &[writable]);
    bind("/etc/resolv.conf", &input.files.resolv_conf, &[writable]);
    let shm = if input.ipc.is_some() { input.files.shm.as_path() } else { Path::new("/dev/shm") };
    bind("/dev/shm", shm, &["rw", "nosuid", "nodev", "noexec"]);

    let own = |(source, target): &(PathBuf, PathBuf)| {
        let options = ["rbind", "rprivate", "rw"];
        (target.clone(), json!({ "destination": target, "type": "bind", "source": source, "options": options }))
    };
    let mut volumes: Vec<_> = input.volumes.iter().map(own).collect();
    let mut propagation = "private";
    let mut images = input.image_volumes.iter();
    for volume in &input.container.mounts {
        let image = image_of(volume).and_then(|_| images.next());
        let mount = match image {
            Some(source) => bound(volume, source, &["rprivate", "ro", "nosuid", "nodev"])?,
            None => self::volume(volume, input.host.makes_recursive_read_only)?,
        };
        volumes.push((clean(&volume.container_path), mount));
        if image.is_some() {
            // Nobody mounts anything in it, so it needs nothing of the root.
            continue;
        }
        propagation = match (volume.propagation(), propagation) {
            (MountPropagation::PropagationBidirectional, _) | (_, "rshared") => "rshared",
            (MountPropagation::PropagationHostToContainer, _) | (_, "rslave") => "rslave",
            (MountPropagation::PropagationPrivate, other) => other,
        };
    }
    // A mount below another must come after it; the client's order is kept among equals.
    volumes.sort_by_key(|(path, _)| path.components().count());
    list.extend(volumes.into_iter().map(|(_, volume)| volume));
    Ok(Mounts { list, propagation: if propagation == "private" { "rprivate" } else { propagation } })
}

fn volume(mount: &Mount, makes_recursive_read_only: bool) -> Result<Value, SpecError> {
    if !mount.image_sub_path.is_empty() {
        return Err(invalid("mounts", format!("image_sub_path {:?} needs an image", mount.image_sub_path)));
    }
    if mount.recursive_read_only {
        if !mount.readonly || mount.propagation() != MountPropagation::PropagationPrivate {
            return Err(invalid("mounts", "recursive_read_only needs readonly and private propagation"));
        }
        if !makes_recursive_read_only {
            // The kubelet knows this word.
            return Err(unsupported(
                "RROUnsupported: the OCI runtime of this handler makes no recursively read-only mounts",
            ));
        }
    }
    if !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty() {
        return Err(unsupported("an id-mapped mount"));
    }
    if !mount.host_path.starts_with('/') {
        return Err(invalid("mounts", format!("host_path {:?} is not absolute", mount.host_path)));
    }
    let propagation = match mount.propagation() {
        MountPropagation::PropagationPrivate => "rprivate",
        MountPropagation::PropagationHostToContainer => "rslave",
        MountPropagation::PropagationBidirectional => "rshared",
    };
    let access = match (mount.readonly, mount.recursive_read_only) {
        (true, true) => "rro",
        (true, false) => "ro",
        (false, _) => "rw",
    };
    bound(mount, Path::new(&mount.host_path), &[propagation, access])
}

/// A bind of `source` with these options and then the client's.
fn bound(mount: &Mount, source: &Path, options: &[&str]) -> Result<Value, SpecError> {
    if !mount.container_path.starts_with('/') {
        return Err(invalid("mounts", format!("container_path {:?} is not absolute", mount.container_path)));
    }
    let mut options: Vec<String> = ["rbind"].iter().chain(options).map(ToString::to_string).collect();
    for option in &mount.mount_options {
        if !["noexec", "exec", "nosuid", "suid", "nodev", "dev", "noatime", "relatime"].contains(&option.as_str()) {
            return Err(invalid("mounts", format!("mount option {option:?} is not one of a bind mount")));
        }
        options.push(option.clone());
    }
    Ok(json!({ "destination": clean(&mount.container_path), "type": "bind", "source": source, "options": options }))
}

fn unsupported(what: &str) -> SpecError {
    SpecError::Unsupported { field: "mounts", reason: what.to_owned() }
}

/// The path without `.`, `..` and double slashes, as seen from the container's root.
pub(crate) fn clean(path: &str) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    clean
}
