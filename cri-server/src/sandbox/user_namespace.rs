//! The user namespace that a pod asks for, and what can't go together with one. Pure.

use vaina_proto::cri::{IdMapping, NamespaceMode, NamespaceOption, UserNamespace as Asked};
use vaina_sys::userns::IdMap;

/// The ids of a pod in a user namespace of its own. All its containers share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserNamespace {
    /// Users.
    pub uids: IdMap,
    /// Groups.
    pub gids: IdMap,
}

impl UserNamespace {
    /// Who the pod's root is on the node.
    pub fn root(&self) -> (u32, u32) {
        (self.uids.outside, self.gids.outside)
    }
}

/// What the options ask for; nothing for the node's user namespace. The error says what they can't be.
pub(crate) fn asked(options: &NamespaceOption) -> Result<Option<UserNamespace>, String> {
    let Some(asked) = &options.userns_options else { return Ok(None) };
    match NamespaceMode::try_from(asked.mode) {
        Ok(NamespaceMode::Node) if asked.uids.is_empty() && asked.gids.is_empty() => Ok(None),
        Ok(NamespaceMode::Node) => Err("userns_options have mappings, and mode NODE has none".to_owned()),
        Ok(NamespaceMode::Pod) => mappings(asked).map(Some),
        Ok(NamespaceMode::Container | NamespaceMode::Target) | Err(_) => {
            let mode = NamespaceMode::try_from(asked.mode)
                .map_or_else(|_| asked.mode.to_string(), |mode| mode.as_str_name().to_owned());
            Err(format!("userns_options.mode is {mode}, and must be POD or NODE"))
        }
    }
}

fn mappings(asked: &Asked) -> Result<UserNamespace, String> {
    let [uids, gids] = [("uids", &asked.uids), ("gids", &asked.gids)].map(|(field, all)| one(field, all));
    let (uids, gids) = (uids?, gids?);
    if uids.length != gids.length {
        return Err(format!(
            "userns_options map {} uids and {} gids, and must map as many of each",
            uids.length, gids.length
        ));
    }
    Ok(UserNamespace { uids, gids })
}

/// The only mapping of a list, from the namespace's root on.
fn one(field: &str, all: &[IdMapping]) -> Result<IdMap, String> {
    let [mapping] = all else {
        return Err(format!("userns_options.{field} have {} mappings, and must have one", all.len()));
    };
    let map = id_map(mapping).map_err(|reason| format!("userns_options.{field} {reason}"))?;
    if map.inside != 0 {
        return Err(format!("userns_options.{field} begin with container_id {}, and must with 0", map.inside));
    }
    Ok(map)
}

/// A mapping that the kernel takes.
pub(crate) fn id_map(mapping: &IdMapping) -> Result<IdMap, String> {
    let map = IdMap { inside: mapping.container_id, outside: mapping.host_id, length: mapping.length };
    if map.length == 0 {
        return Err("map no id (length 0)".to_owned());
    }
    // The highest number means "no id".
    let ends = |first: u32| first.checked_add(map.length - 1).is_some_and(|last| last < u32::MAX);
    if !ends(map.inside) || !ends(map.outside) {
        return Err(format!("map {map}, which is more than there are ids"));
    }
    Ok(map)
}

/// What of the options can't be shared with the node by a pod in a user namespace of its own, in words.
pub(super) fn conflict(options: &NamespaceOption, privileged: bool) -> Option<&'static str> {
    let node = i32::from(NamespaceMode::Node);
    if options.pid == node {
        Some("ask for a user namespace together with the node's PID namespace")
    } else if options.ipc == node {
        Some("ask for a user namespace together with the node's IPC namespace")
    } else if privileged {
        Some("ask for a user namespace in a privileged pod, whose rights on the node it would take away")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: IdMapping = IdMapping { host_id: 65536, container_id: 0, length: 65536 };

    fn options(mode: NamespaceMode, uids: &[IdMapping], gids: &[IdMapping]) -> NamespaceOption {
        let asked = Asked { mode: mode.into(), uids: uids.to_vec(), gids: gids.to_vec() };
        NamespaceOption { userns_options: Some(asked), ..Default::default() }
    }

    #[test]
    fn one_mapping_of_each_kind_is_taken() {
        let map = IdMap { inside: 0, outside: 65536, length: 65536 };
        let own = UserNamespace { uids: map, gids: map };
        assert_eq!(asked(&options(NamespaceMode::Pod, &[MAP], &[MAP])), Ok(Some(own)));
        assert_eq!(own.root(), (65536, 65536));
        assert_eq!(asked(&options(NamespaceMode::Node, &[], &[])), Ok(None));
        assert_eq!(asked(&NamespaceOption::default()), Ok(None));
    }

    #[test]
    fn what_can_not_be_is_named() {
        let map = |change: fn(&mut IdMapping)| {
            let mut map = MAP;
            change(&mut map);
            [map]
        };
        let one = [MAP];
        for (mode, uids, gids, words) in [
            (NamespaceMode::Pod, &[][..], &one[..], "uids have 0"),
            (NamespaceMode::Pod, &one, &[MAP, MAP], "gids have 2"),
            (NamespaceMode::Pod, &map(|map| map.container_id = 1), &one, "container_id 1"),
            (NamespaceMode::Pod, &map(|map| map.length = 0), &one, "length 0"),
            (NamespaceMode::Pod, &map(|map| map.length = 5), &one, "5 uids and 65536 gids"),
            (NamespaceMode::Pod, &map(|map| map.host_id = u32::MAX - 5), &one, "more than there are"),
            (NamespaceMode::Node, &one, &[], "mode NODE"),
            (NamespaceMode::Container, &[], &[], "CONTAINER"),
            (NamespaceMode::Target, &[], &[], "TARGET"),
        ] {
            let error = asked(&options(mode, uids, gids)).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn the_node_is_not_shared() {
        let node = i32::from(NamespaceMode::Node);
        let with = |pid, ipc| NamespaceOption { pid, ipc, network: node, ..Default::default() };
        assert_eq!(conflict(&with(1, 0), false), None);
        assert!(conflict(&with(node, 0), false).unwrap().contains("PID"));
        assert!(conflict(&with(0, node), false).unwrap().contains("IPC"));
        assert!(conflict(&with(0, 0), true).unwrap().contains("privileged"));
    }
}
