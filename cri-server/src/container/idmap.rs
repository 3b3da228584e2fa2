//! Volumes whose files are shown with the owners of a user namespace (`Mount.uidMappings`, `gidMappings`).
//!
//! Such a volume is bound in the bundle by the shim, in the mount namespace of the container's create, with its owners mapped, and
//! bound from there by the OCI runtime. So every runtime has them, and none that ignores mappings is handed any.

use std::path::{Path, PathBuf};

use vaina_proto::cri::{ContainerConfig, Mount, NamespaceOption};

use super::image_volume;
use crate::{
    sandbox::{
        Sandbox, UserNamespace,
        user_namespace::{self, id_map},
    },
    snapshot,
};

/// Directory of the bundle below which they are.
const DIRECTORY: &str = "mapped";

/// Whether a volume's owners are mapped. The owners of an image are those of the pod, whoever says so or not.
pub(crate) fn is_mapped(mount: &Mount) -> bool {
    image_volume::image_of(mount).is_none() && !(mount.uid_mappings.is_empty() && mount.gid_mappings.is_empty())
}

/// Where in the bundle the volume of a mount is, by the mount's number in the config.
pub(crate) fn place(number: usize) -> PathBuf {
    Path::new(DIRECTORY).join(number.to_string())
}

/// What the shim is to mount for a container, and where below the bundle.
pub(super) fn mounts(config: &ContainerConfig) -> Vec<(PathBuf, snapshot::Mount)> {
    let mapped = config.mounts.iter().enumerate().filter(|(_, mount)| is_mapped(mount));
    mapped
        .map(|(number, mount)| {
            let mut options = vec!["rbind".to_owned()];
            for (key, mappings) in [("uidmap", &mount.uid_mappings), ("gidmap", &mount.gid_mappings)] {
                // They were checked when the container was made.
                options.extend(mappings.iter().filter_map(|one| id_map(one).ok()).map(|map| format!("{key}={map}")));
            }
            let mount = snapshot::Mount { type_: "bind".to_owned(), source: mount.host_path.clone(), options };
            (place(number), mount)
        })
        .collect()
}

/// What of a container's config can't be, by field.
pub(crate) fn check(sandbox: &Sandbox, config: &ContainerConfig) -> Result<(), (&'static str, String)> {
    let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let options = security.and_then(|security| security.namespace_options.clone()).unwrap_or_default();
    let pod = sandbox.user_namespace();
    same(pod, &options).map_err(|reason| ("linux.security_context.namespace_options", reason))?;
    config.mounts.iter().try_for_each(|mount| check_mount(mount, pod.is_some())).map_err(|reason| ("mounts", reason))
}

/// All containers of a pod are in its user namespace; one that says nothing is too.
fn same(pod: Option<UserNamespace>, options: &NamespaceOption) -> Result<(), String> {
    let own = user_namespace::asked(options)?;
    if options.userns_options.is_none() || own == pod {
        return Ok(());
    }
    let told = |ids: Option<UserNamespace>| match ids {
        None => "the node's".to_owned(),
        Some(UserNamespace { uids, gids }) => format!("one with uids {uids} and gids {gids}"),
    };
    Err(format!(
        "userns_options ask for {}, and the pod's user namespace is {}; they must be equal",
        told(own),
        told(pod)
    ))
}

fn check_mount(mount: &Mount, in_user_namespace: bool) -> Result<(), String> {
    use vaina_proto::cri::MountPropagation::PropagationBidirectional;
    let target = &mount.container_path;
    if in_user_namespace && mount.propagation() == PropagationBidirectional {
        // The kernel lets nothing out of the mount namespace of a user namespace, and says nothing.
        return Err(format!("{target:?} is bidirectional, which no mount of a pod in a user namespace can be"));
    }
    if mount.uid_mappings.is_empty() != mount.gid_mappings.is_empty() {
        return Err(format!("{target:?} has only one of uidMappings and gidMappings"));
    }
    for (field, mappings) in [("uidMappings", &mount.uid_mappings), ("gidMappings", &mount.gid_mappings)] {
        for mapping in mappings {
            id_map(mapping).map_err(|reason| format!("{target:?}: {field} {reason}"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vaina_proto::cri::{IdMapping, MountPropagation, NamespaceMode, UserNamespace as Asked};

    use super::*;

    const MAP: IdMapping = IdMapping { host_id: 1000, container_id: 0, length: 10 };

    fn options(mode: NamespaceMode, maps: &[IdMapping]) -> NamespaceOption {
        let asked = Asked { mode: mode.into(), uids: maps.to_vec(), gids: maps.to_vec() };
        NamespaceOption { userns_options: Some(asked), ..Default::default() }
    }

    #[test]
    fn a_container_is_where_its_pod_is() {
        let own = user_namespace::asked(&options(NamespaceMode::Pod, &[MAP])).unwrap();
        same(own, &NamespaceOption::default()).unwrap();
        same(own, &options(NamespaceMode::Pod, &[MAP])).unwrap();
        same(None, &options(NamespaceMode::Node, &[])).unwrap();
        let other = IdMapping { host_id: 2000, ..MAP };
        for (pod, options) in [
            (own, options(NamespaceMode::Pod, &[other])),
            (own, options(NamespaceMode::Node, &[])),
            (None, options(NamespaceMode::Pod, &[MAP])),
        ] {
            assert!(same(pod, &options).unwrap_err().contains("must be equal"));
        }
    }

    #[test]
    fn mappings_of_a_volume_are_handed_to_the_shim() {
        let volume = Mount {
            container_path: "/v".into(),
            host_path: "/srv".into(),
            uid_mappings: vec![MAP],
            gid_mappings: vec![MAP],
            ..Default::default()
        };
        check_mount(&volume, true).unwrap();
        let plain = Mount { uid_mappings: Vec::new(), gid_mappings: Vec::new(), ..volume.clone() };
        let config = ContainerConfig { mounts: vec![plain, volume.clone()], ..Default::default() };
        let mounts = mounts(&config);
        assert_eq!(mounts.len(), 1);
        assert_eq!(mounts[0].0, Path::new("mapped/1"));
        assert_eq!(mounts[0].1.options, ["rbind", "uidmap=0:1000:10", "gidmap=0:1000:10"]);
        let bad = |change: fn(&mut Mount)| {
            let mut mount = volume.clone();
            change(&mut mount);
            check_mount(&mount, true).unwrap_err()
        };
        assert!(bad(|mount| mount.gid_mappings.clear()).contains("only one"));
        assert!(bad(|mount| mount.uid_mappings[0].length = 0).contains("uidMappings map no id"));
        assert!(
            bad(|mount| mount.set_propagation(MountPropagation::PropagationBidirectional)).contains("bidirectional")
        );
    }
}
