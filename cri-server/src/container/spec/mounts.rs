//! Mounts: the kernel's file systems, the pod's files, then the client's, outer ones first.

use std::path::{Component, Path, PathBuf};

use serde_json::{Value, json};
use vaina_proto::cri::{Mount, MountPropagation};

use super::{Input, SpecError, invalid};
use crate::container::{cdi, idmap, image_volume::image_of};

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
    if let Some((ids, _)) = input.user_namespace {
        in_user_namespace(&mut list, ids.gids.length, input.network.is_none(), sys);
    }
    // What devices of vendors mount comes in the place of others at the same path.
    let of_vendors: Vec<PathBuf> = input.cdi.mounts.iter().map(|mount| clean(&mount.container_path)).collect();
    let of_client = input.container.mounts.iter().map(|mount| clean(&mount.container_path));
    let taken: Vec<PathBuf> = of_client.chain(of_vendors.iter().cloned()).collect();
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
    for (number, volume) in input.container.mounts.iter().enumerate() {
        let image = image_of(volume).and_then(|_| images.next());
        let mount = match image {
            Some(source) => bound(volume, source, &["rprivate", "ro", "nosuid", "nodev"])?,
            None => {
                let mapped = idmap::is_mapped(volume).then(|| input.bundle.join(idmap::place(number)));
                self::volume(volume, mapped.as_deref(), input.host.makes_recursive_read_only)?
            }
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
    list.retain(|mount| !of_vendors.iter().any(|path| mount["destination"] == *path.to_string_lossy()));
    volumes.retain(|(path, _)| !of_vendors.contains(path));
    volumes.extend(input.cdi.mounts.iter().map(|mount| (clean(&mount.container_path), of_vendor(mount))));
    // A mount below another must come after it; the client's order is kept among equals.
    volumes.sort_by_key(|(path, _)| path.components().count());
    list.extend(volumes.into_iter().map(|(_, volume)| volume));
    Ok(Mounts { list, propagation: if propagation == "private" { "rprivate" } else { propagation } })
}

/// What the kernel refuses to the root of a user namespace is done in another way.
fn in_user_namespace(list: &mut [Value], groups: u32, host_network: bool, sys: &str) {
    for mount in list {
        if mount["destination"] == "/sys" && host_network {
            // It shows the network's devices, and the network is the node's.
            let read_only = if sys == "ro" { "rro" } else { "rw" };
            *mount = json!({
                "destination": "/sys", "type": "bind", "source": "/sys",
                "options": ["rbind", "rprivate", "nosuid", "noexec", "nodev", read_only],
            });
        } else if mount["destination"] == "/dev/pts"
            && groups <= TTY_GROUP
            && let Some(options) = mount["options"].as_array_mut()
        {
            options.retain(|option| option != "gid=5");
        }
    }
}

/// Of terminals, in `gid=5`.
const TTY_GROUP: u32 = 5;

/// `mapped` is where its files have the owners of the user namespace, if they are to.
fn volume(mount: &Mount, mapped: Option<&Path>, makes_recursive_read_only: bool) -> Result<Value, SpecError> {
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
    bound(mount, mapped.unwrap_or_else(|| Path::new(&mount.host_path)), &[propagation, access])
}

fn of_vendor(mount: &cdi::Mount) -> Value {
    let is_bind = |option: &String| option == "bind" || option == "rbind";
    let mut options = mount.options.clone();
    let mut fs_type = mount.fs_type.as_str();
    if fs_type.is_empty() {
        fs_type = "bind";
    }
    if fs_type == "bind" && !options.iter().any(is_bind) {
        options.push("rbind".to_owned());
    }
    json!({
        "destination": clean(&mount.container_path), "type": fs_type, "source": mount.host_path, "options": options,
    })
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
