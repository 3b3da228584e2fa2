//! Bridges between what configurations mean to `runc` and what `libcontainer` makes of them. Pure.
//!
//! Each rule says what would go wrong without it.

use std::{collections::HashSet, path::PathBuf};

use libcontainer::oci_spec::{
    OciSpecError,
    runtime::{
        Capability, LinuxCapabilities, LinuxCapabilitiesBuilder, LinuxDeviceCgroupBuilder, LinuxDeviceType,
        LinuxResources, MountBuilder, Process, Spec,
    },
};

/// What the host offers, as far as a rule depends on it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Host {
    /// The controller of huge pages can be used.
    pub(super) hugetlb: bool,
}

/// Rewrites a container's configuration.
pub(super) fn normalise(spec: &mut Spec, host: Host) {
    if let Some(process) = spec.process_mut() {
        normalise_process(process);
    }
    let Some(linux) = spec.linux_mut() else { return };
    // `rslave` is what the CRI's runtimes write; the change is made recursively either way.
    let propagation = linux.rootfs_propagation().as_deref().map(|name| match name {
        "rshared" | "rslave" | "rprivate" | "runbindable" => name[1..].to_owned(),
        _ => name.to_owned(),
    });
    linux.set_rootfs_propagation(propagation);
    let resources = linux.resources_mut().get_or_insert_with(LinuxResources::default);
    deny_devices_first(resources);
    if !host.hugetlb {
        // The kubelet asks for zero bytes of each size on every node; without the controller there are none to forbid.
        // Another limit stays and is refused with the controller's name.
        let left: Option<Vec<_>> = resources
            .hugepage_limits()
            .as_ref()
            .map(|limits| limits.iter().filter(|limit| limit.limit() != 0).cloned().collect());
        resources.set_hugepage_limits(left.filter(|left| !left.is_empty()));
    }
}

/// The controllers of v1 in whose hierarchies `libcontainer` makes the container's group.
const CONTROLLERS: [&str; 12] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "hugetlb",
    "memory",
    "pids",
    "perf_event",
    "blkio",
    "net_prio",
    "net_cls",
    "freezer",
];

/// Spells out what a mount of type `cgroup` means on a host with v1: the container's group in each hierarchy (controllers and
/// mount point), with the options of the mount. `libcontainer` looks for a process of the host by a pid of the container's
/// namespace first, which fails in a PID namespace that others have joined, and forgets "read-only", so that root in a
/// container could lift its own limits.
pub(super) fn spell_out_groups(spec: &mut Spec, hierarchies: &[(Vec<String>, PathBuf)]) -> Result<(), OciSpecError> {
    let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().clone());
    let Some(group) = path.as_deref().and_then(|path| path.strip_prefix("/").ok()) else { return Ok(()) };
    let mut mounts = Vec::new();
    for mount in spec.mounts().iter().flatten() {
        if mount.typ().as_deref() != Some("cgroup") {
            mounts.push(mount.clone());
            continue;
        }
        let root = mount.destination();
        let base = MountBuilder::default().source("tmpfs").typ("tmpfs").destination(root);
        mounts.push(base.options(["nosuid", "noexec", "nodev", "mode=755"].map(str::to_owned)).build()?);
        let options: Vec<String> =
            ["rbind".to_owned()].into_iter().chain(mount.options().iter().flatten().cloned()).collect();
        let managed = |names: &&(Vec<String>, PathBuf)| names.0.iter().all(|name| CONTROLLERS.contains(&name.as_str()));
        for (controllers, at) in hierarchies.iter().filter(managed) {
            // Hierarchies of several controllers are found by each of their names and by all of them.
            let names = (controllers.len() > 1).then(|| controllers.join(","));
            for name in controllers.iter().cloned().chain(names) {
                let bind = MountBuilder::default().source(at.join(group)).typ("bind").destination(root.join(name));
                mounts.push(bind.options(options.clone()).build()?);
            }
        }
    }
    spec.set_mounts(Some(mounts));
    Ok(())
}

/// Rewrites a process, of a container or of an exec.
pub(super) fn normalise_process(process: &mut Process) {
    // An explicit "false" would have the seccomp filter loaded after the capabilities are gone, which the kernel refuses.
    if process.no_new_privileges() == Some(false) {
        process.set_no_new_privileges(None);
    }
    // A set that is missing means none, not all.
    let own = process.capabilities().clone().unwrap_or_else(none);
    process.set_capabilities(Some(complete(own)));
}

/// Fills in what an exec takes from its container where its own description is silent.
pub(super) fn inherit(process: &mut Process, container: &Process) {
    if process.capabilities().is_none() {
        process.set_capabilities(container.capabilities().clone());
    }
    if process.oom_score_adj().is_none() {
        // Or it would run with the shim's, which the OOM killer is to spare.
        process.set_oom_score_adj(container.oom_score_adj());
    }
    if process.rlimits().as_ref().is_none_or(Vec::is_empty) {
        process.set_rlimits(container.rlimits().clone());
    }
}

/// Adds capabilities and answers which were not there: for a step that needs them before the program starts.
pub(super) fn lend(process: &mut Process, wanted: &[Capability]) -> Vec<Capability> {
    let mut own = complete(process.capabilities().clone().unwrap_or_else(none));
    let has = |set: &Option<HashSet<Capability>>, capability: &Capability| {
        set.as_ref().is_some_and(|set| set.contains(capability))
    };
    let lent: Vec<_> = wanted
        .iter()
        .filter(|one| !(has(own.bounding(), one) && has(own.permitted(), one) && has(own.effective(), one)))
        .copied()
        .collect();
    let with = |set: &Option<HashSet<Capability>>| -> Option<HashSet<Capability>> {
        Some(set.iter().flatten().copied().chain(lent.iter().copied()).collect())
    };
    let (bounding, permitted, effective) = (with(own.bounding()), with(own.permitted()), with(own.effective()));
    own.set_bounding(bounding);
    own.set_permitted(permitted);
    own.set_effective(effective);
    process.set_capabilities(Some(own));
    lent
}

fn none() -> LinuxCapabilities {
    LinuxCapabilitiesBuilder::default()
        .bounding(HashSet::new())
        .effective(HashSet::new())
        .inheritable(HashSet::new())
        .permitted(HashSet::new())
        .ambient(HashSet::new())
        .build()
        .unwrap_or_default()
}

fn complete(mut sets: LinuxCapabilities) -> LinuxCapabilities {
    let or_none = |set: &Option<HashSet<Capability>>| Some(set.clone().unwrap_or_default());
    let filled = [
        or_none(sets.bounding()),
        or_none(sets.effective()),
        or_none(sets.inheritable()),
        or_none(sets.permitted()),
        or_none(sets.ambient()),
    ];
    let [bounding, effective, inheritable, permitted, ambient] = filled;
    sets.set_bounding(bounding);
    sets.set_effective(effective);
    sets.set_inheritable(inheritable);
    sets.set_permitted(permitted);
    sets.set_ambient(ambient);
    sets
}

/// What no rule allows is denied. Without a first rule for all devices the new group would keep its parent's list, and that
/// is everything.
fn deny_devices_first(resources: &mut LinuxResources) {
    let mut rules = resources.devices().clone().unwrap_or_default();
    let for_all = rules.first().is_some_and(|rule| {
        matches!(rule.typ(), None | Some(LinuxDeviceType::A)) && rule.major().is_none() && rule.minor().is_none()
    });
    if for_all {
        return;
    }
    let deny = LinuxDeviceCgroupBuilder::default().allow(false).typ(LinuxDeviceType::A).access("rwm").build();
    if let Ok(deny) = deny {
        rules.insert(0, deny);
        resources.set_devices(Some(rules));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Host = Host { hugetlb: false };

    fn normalised(json: &str, host: Host) -> Spec {
        let mut spec: Spec = serde_json::from_str(json).unwrap();
        normalise(&mut spec, host);
        spec
    }

    #[test]
    fn a_spec_is_rewritten_once() {
        let mut spec = normalised(
            r#"{"ociVersion":"1.0.2","process":{"user":{"uid":0,"gid":0},"cwd":"/","args":["sh"],"noNewPrivileges":false,
                "capabilities":{"bounding":["CAP_KILL"]}},
                "linux":{"rootfsPropagation":"rshared","resources":{"hugepageLimits":[{"pageSize":"2MB","limit":0}]}}}"#,
            HOST,
        );
        let process = spec.process().as_ref().unwrap();
        assert_eq!(process.no_new_privileges(), None);
        let sets = process.capabilities().as_ref().unwrap();
        assert_eq!(sets.bounding().as_ref().unwrap().len(), 1);
        assert_eq!(sets.effective().as_ref().unwrap().len(), 0);
        let linux = spec.linux().as_ref().unwrap();
        assert_eq!(linux.rootfs_propagation().as_deref(), Some("shared"));
        let resources = linux.resources().as_ref().unwrap();
        assert!(resources.hugepage_limits().is_none());
        assert_eq!(resources.devices().as_ref().unwrap()[0].to_string(), "a *:* rwm");
        let again = spec.clone();
        normalise(&mut spec, HOST);
        assert_eq!(spec, again);
    }

    #[test]
    fn a_rule_for_all_devices_stays_first() {
        for rule in [r#"{"allow":true,"access":"rwm"}"#, r#"{"allow":false,"type":"a","access":"rwm"}"#] {
            let json = format!(
                r#"{{"ociVersion":"1.0.2","linux":{{"resources":{{"devices":[{rule},{{"allow":true,"type":"c","major":1,"minor":3,"access":"rwm"}}]}}}}}}"#
            );
            let spec = normalised(&json, HOST);
            let resources = spec.linux().as_ref().unwrap().resources().as_ref().unwrap();
            assert_eq!(resources.devices().as_ref().unwrap().len(), 2, "{rule}");
        }
    }

    #[test]
    fn a_mount_of_control_groups_is_spelled_out() {
        let mut spec: Spec = serde_json::from_str(
            r#"{"ociVersion":"1.0.2","linux":{"cgroupsPath":"/pods/c"},"mounts":[
                {"destination":"/proc","type":"proc","source":"proc"},
                {"destination":"/sys/fs/cgroup","type":"cgroup","source":"cgroup","options":["nosuid","ro"]}]}"#,
        )
        .unwrap();
        let hierarchies = [
            (vec!["memory".to_owned()], "/sys/fs/cgroup/memory".into()),
            (vec!["cpu".to_owned(), "cpuacct".to_owned()], "/sys/fs/cgroup/cpu,cpuacct".into()),
            (vec!["name=systemd".to_owned()], "/sys/fs/cgroup/systemd".into()),
        ];
        spell_out_groups(&mut spec, &hierarchies).unwrap();
        let mounts: Vec<String> = spec
            .mounts()
            .iter()
            .flatten()
            .map(|mount| {
                let source = mount.source().as_ref().unwrap().display();
                let options = mount.options().iter().flatten().cloned().collect::<Vec<_>>().join(",");
                format!("{source} {} {options}", mount.destination().display())
            })
            .collect();
        assert_eq!(
            mounts,
            [
                "proc /proc ",
                "tmpfs /sys/fs/cgroup nosuid,noexec,nodev,mode=755",
                "/sys/fs/cgroup/memory/pods/c /sys/fs/cgroup/memory rbind,nosuid,ro",
                "/sys/fs/cgroup/cpu,cpuacct/pods/c /sys/fs/cgroup/cpu rbind,nosuid,ro",
                "/sys/fs/cgroup/cpu,cpuacct/pods/c /sys/fs/cgroup/cpuacct rbind,nosuid,ro",
                "/sys/fs/cgroup/cpu,cpuacct/pods/c /sys/fs/cgroup/cpu,cpuacct rbind,nosuid,ro",
            ]
        );
    }

    #[test]
    fn huge_pages_are_only_forgotten_where_there_are_none() {
        let json = r#"{"ociVersion":"1.0.2","linux":{"resources":{"hugepageLimits":[{"pageSize":"2MB","limit":0},{"pageSize":"1GB","limit":5}]}}}"#;
        let limits = |host| {
            let spec = normalised(json, host);
            let resources = spec.linux().as_ref().unwrap().resources().as_ref().unwrap();
            resources.hugepage_limits().as_ref().unwrap().len()
        };
        assert_eq!(limits(Host { hugetlb: true }), 2);
        assert_eq!(limits(HOST), 1);
    }

    #[test]
    fn lent_capabilities_are_told() {
        let mut process: Process = serde_json::from_str(
            r#"{"user":{"uid":0,"gid":0},"cwd":"/","capabilities":{"bounding":["CAP_KILL"],"permitted":["CAP_KILL"],"effective":["CAP_KILL"]}}"#,
        )
        .unwrap();
        assert_eq!(lend(&mut process, &[Capability::Kill, Capability::SysAdmin]), [Capability::SysAdmin]);
        assert!(process.capabilities().as_ref().unwrap().effective().as_ref().unwrap().contains(&Capability::SysAdmin));
    }
}
