//! The spec as a whole, and the rules of each part.

use std::path::Path;

use oci_spec::image::{ConfigBuilder, ImageConfiguration, ImageConfigurationBuilder, RootFsBuilder};
use serde_json::Value;
use vaina_proto::cri::{
    Capability, Device, HugepageLimit, Int64Value, KeyValue, LinuxContainerConfig, LinuxContainerResources,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, Mount, MountPropagation,
    SecurityProfile, SupplementalGroupsPolicy, security_profile::ProfileType,
};

use super::{user::resolve, *};
use crate::container::cdi::DeviceNode;

fn image(user: &str) -> ImageConfiguration {
    let config = ConfigBuilder::default()
        .entrypoint(vec!["/entry".to_owned()])
        .cmd(vec!["arg".to_owned()])
        .env(vec!["A=image".to_owned(), "B=image".to_owned()])
        .working_dir("/work")
        .user(user)
        .build()
        .unwrap();
    let rootfs = RootFsBuilder::default().typ("layers").diff_ids(Vec::new()).build().unwrap();
    ImageConfigurationBuilder::default()
        .os("linux")
        .architecture("amd64")
        .config(config)
        .rootfs(rootfs)
        .build()
        .unwrap()
}

struct Case {
    pod: PodSandboxConfig,
    container: ContainerConfig,
    host: Host,
    pid: PidNamespace,
    host_network: bool,
    volumes: Vec<(PathBuf, PathBuf)>,
    image_volumes: Vec<PathBuf>,
    cdi: ContainerEdits,
    user_namespace: Option<UserNamespace>,
}

impl Default for Case {
    fn default() -> Self {
        let host = Host { capabilities: ALL_CAPABILITIES.to_vec(), hostname: "node".into(), ..Host::default() };
        let pod = PodSandboxConfig { hostname: "pod".into(), ..Default::default() };
        let (container, pid) = (ContainerConfig::default(), PidNamespace::Own);
        Self {
            pod,
            container,
            host,
            pid,
            host_network: false,
            volumes: Vec::new(),
            image_volumes: Vec::new(),
            user_namespace: None,
            cdi: ContainerEdits::default(),
        }
    }
}

impl Case {
    fn security(&mut self) -> &mut LinuxContainerSecurityContext {
        let linux = self.container.linux.get_or_insert_with(LinuxContainerConfig::default);
        linux.security_context.get_or_insert_with(LinuxContainerSecurityContext::default)
    }

    fn resources(&mut self) -> &mut LinuxContainerResources {
        let linux = self.container.linux.get_or_insert_with(LinuxContainerConfig::default);
        linux.resources.get_or_insert_with(LinuxContainerResources::default)
    }

    fn build(&self) -> Result<Value, String> {
        let user = ResolvedUser { uid: 7, gid: 8, groups: vec![8] };
        let files = PodFiles::new(Path::new("/run/vaina/pods/p"));
        let input = Input {
            id: "c",
            sandbox_id: "p",
            pod: &self.pod,
            container: &self.container,
            image: &image(""),
            user: &user,
            user_namespace: self.user_namespace.map(|ids| (ids, Path::new("/run/vaina/userns/p"))),
            network: (!self.host_network).then_some(Path::new("/run/netns/vaina-p")),
            ipc: Some(&files.ipc),
            uts: (!self.host_network).then_some(files.uts.as_path()),
            pid: self.pid.clone(),
            files: &files,
            volumes: &self.volumes,
            image_volumes: &self.image_volumes,
            cdi: &self.cdi,
            bundle: Path::new("/run/vaina/containers/c"),
            cgroup: Path::new("/vaina/p/c"),
            host: &self.host,
        };
        build(&input).map(|spec| serde_json::to_value(spec).unwrap()).map_err(|error| error.to_string())
    }
}

fn mount<'a>(spec: &'a Value, target: &str) -> Vec<&'a Value> {
    spec["mounts"].as_array().unwrap().iter().filter(|mount| mount["destination"] == target).collect()
}

#[test]
fn a_plain_container_shares_what_the_pod_shares() {
    let spec = Case::default().build().unwrap();
    assert_eq!(spec["process"]["args"], json!(["/entry", "arg"]));
    assert_eq!(spec["process"]["cwd"], "/work");
    assert_eq!(spec["process"]["user"], json!({ "uid": 7, "gid": 8, "additionalGids": [8] }));
    assert_eq!(
        spec["process"]["env"],
        json!([
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOSTNAME=pod",
            "A=image",
            "B=image"
        ])
    );
    assert_eq!(
        spec["linux"]["namespaces"],
        json!([
            { "type": "mount" },
            { "type": "pid" },
            { "type": "network", "path": "/run/netns/vaina-p" },
            { "type": "ipc", "path": "/run/vaina/pods/p/ns/ipc" },
            { "type": "uts", "path": "/run/vaina/pods/p/ns/uts" },
        ])
    );
    assert_eq!(spec["linux"]["cgroupsPath"], "/vaina/p/c");
    assert_eq!(mount(&spec, "/dev/shm")[0]["source"], "/run/vaina/pods/p/shm");
    assert_eq!(mount(&spec, "/etc/hosts")[0]["source"], "/run/vaina/pods/p/hosts");
    assert_eq!(spec["linux"]["resources"]["devices"], json!([{ "allow": false, "access": "rwm" }]));
    assert!(spec["linux"]["maskedPaths"].as_array().unwrap().contains(&json!("/proc/kcore")));
    assert_eq!(spec["process"]["capabilities"]["effective"].as_array().unwrap().len(), 14);
}

#[test]
fn commands_and_environment_override_those_of_the_image() {
    let mut case = Case::default();
    case.container.args = vec!["x".into()];
    assert_eq!(case.build().unwrap()["process"]["args"], json!(["/entry", "x"]));
    case.container.command = vec!["/own".into()];
    assert_eq!(case.build().unwrap()["process"]["args"], json!(["/own", "x"]));
    case.container.args.clear();
    assert_eq!(case.build().unwrap()["process"]["args"], json!(["/own"]));
    case.container.command = vec![String::new()];
    assert!(case.build().unwrap_err().contains("command"));
    case.container.command = vec!["/own".into()];
    case.container.envs = [("B", "own=1"), ("C", ""), ("PATH", "/x")]
        .map(|(key, value)| KeyValue { key: key.into(), value: value.into() })
        .into();
    case.container.tty = true;
    let spec = case.build().unwrap();
    assert_eq!(spec["process"]["env"], json!(["PATH=/x", "HOSTNAME=pod", "TERM=xterm", "A=image", "B=own=1", "C="]));
}

#[test]
fn the_nodes_network_comes_with_its_name() {
    let case = Case { host_network: true, pid: PidNamespace::Host, ..Case::default() };
    let spec = case.build().unwrap();
    let kinds: Vec<_> = spec["linux"]["namespaces"].as_array().unwrap().iter().map(|one| one["type"].clone()).collect();
    assert_eq!(kinds, ["mount", "ipc"]);
    assert!(spec["process"]["env"].as_array().unwrap().contains(&json!("HOSTNAME=node")));
}

#[test]
fn a_user_namespace_is_joined_and_volumes_are_bound_from_where_they_are_mapped() {
    let map = vaina_sys::userns::IdMap { inside: 0, outside: 1000, length: 5 };
    let mapping = vaina_proto::cri::IdMapping { host_id: 1000, container_id: 0, length: 5 };
    let mut case = Case { user_namespace: Some(UserNamespace { uids: map, gids: map }), ..Case::default() };
    let volume = |target: &str| Mount { container_path: target.into(), host_path: "/srv".into(), ..Mount::default() };
    let mapped = Mount { uid_mappings: vec![mapping], gid_mappings: vec![mapping], ..volume("/mapped") };
    case.container.mounts = vec![volume("/plain"), mapped];
    let spec = case.build().unwrap();
    let namespaces = spec["linux"]["namespaces"].as_array().unwrap();
    assert!(namespaces.contains(&json!({ "type": "user", "path": "/run/vaina/userns/p" })));
    let told = json!([{ "containerID": 0, "hostID": 1000, "size": 5 }]);
    assert_eq!((&spec["linux"]["uidMappings"], &spec["linux"]["gidMappings"]), (&told, &told));
    assert_eq!(mount(&spec, "/plain")[0]["source"], "/srv");
    let mapped = mount(&spec, "/mapped")[0];
    assert_eq!(mapped["source"], "/run/vaina/containers/c/mapped/1");
    // No runtime is handed a mapping that it may not know.
    assert!(mapped.get("uidMappings").is_none());
    // Group 5 is not one of five.
    assert!(!mount(&spec, "/dev/pts")[0]["options"].as_array().unwrap().contains(&json!("gid=5")));
    assert_eq!(mount(&spec, "/sys")[0]["type"], "sysfs");
    case.host_network = true;
    let spec = case.build().unwrap();
    assert_eq!(mount(&spec, "/sys")[0]["type"], "bind");
    assert!(mount(&spec, "/sys")[0]["options"].as_array().unwrap().contains(&json!("rro")));
}

#[test]
fn capabilities_are_added_and_dropped_within_what_the_host_can_give() {
    let effective = |add: &[&str], drop: &[&str], host: &[&'static str]| {
        let mut case = Case::default();
        case.host.capabilities = host.to_vec();
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        case.security().capabilities =
            Some(Capability { add_capabilities: names(add), drop_capabilities: names(drop), ..Default::default() });
        case.build().map(|spec| {
            serde_json::from_value::<Vec<String>>(spec["process"]["capabilities"]["effective"].clone()).unwrap()
        })
    };
    let all = &ALL_CAPABILITIES[..];
    assert_eq!(effective(&["NET_ADMIN"], &["ALL"], all).unwrap(), ["CAP_NET_ADMIN"]);
    assert_eq!(effective(&["cap_sys_time"], &["all"], all).unwrap(), ["CAP_SYS_TIME"]);
    assert_eq!(effective(&["ALL"], &["KILL"], all).unwrap().len(), 40);
    assert_eq!(effective(&["SYS_RESOURCE"], &["ALL"], &["CAP_KILL"]).unwrap(), Vec::<String>::new());
    assert!(effective(&["NONSENSE"], &[], all).unwrap_err().contains("NONSENSE"));
}

#[test]
fn privileged_needs_a_privileged_pod_and_gets_all() {
    let mut case = Case::default();
    case.security().privileged = true;
    assert!(case.build().unwrap_err().contains("privileged pod"));
    let security = LinuxSandboxSecurityContext { privileged: true, ..Default::default() };
    case.pod.linux = Some(LinuxPodSandboxConfig { security_context: Some(security), ..Default::default() });
    case.host.devices = vec![HostDevice {
        path: "/dev/kvm".into(),
        is_block: false,
        major: 10,
        minor: 232,
        mode: 0o660,
        uid: 0,
        gid: 104,
    }];
    let spec = case.build().unwrap();
    assert_eq!(spec["process"]["capabilities"]["effective"].as_array().unwrap().len(), ALL_CAPABILITIES.len());
    assert_eq!(spec["linux"]["devices"][0]["path"], "/dev/kvm");
    assert_eq!(spec["linux"]["resources"]["devices"][0]["allow"], true);
    assert!(mount(&spec, "/sys")[0]["options"].as_array().unwrap().contains(&json!("rw")));
}

#[test]
fn volumes_of_the_image_are_bound_like_the_clients() {
    let mut case = Case::default();
    let volume = |number: &str, target: &str| (PathBuf::from(format!("/volumes/{number}")), PathBuf::from(target));
    case.volumes = vec![volume("0", "/a/b"), volume("1", "/a")];
    case.container.mounts =
        vec![Mount { container_path: "/a/c".into(), host_path: "/host".into(), ..Default::default() }];
    let spec = case.build().unwrap();
    let mounts = spec["mounts"].as_array().unwrap();
    let targets: Vec<&str> =
        mounts.iter().rev().take(3).rev().map(|mount| mount["destination"].as_str().unwrap()).collect();
    assert_eq!(targets, ["/a", "/a/b", "/a/c"]);
    assert_eq!(mount(&spec, "/a")[0]["source"], "/volumes/1");
    assert_eq!(mount(&spec, "/a")[0]["options"], serde_json::json!(["rbind", "rprivate", "rw"]));
}

#[test]
fn mounts_are_ordered_replace_ours_and_raise_the_propagation() {
    let mut case = Case::default();
    let volume = |target: &str, propagation: MountPropagation| Mount {
        container_path: target.into(),
        host_path: "/srv".into(),
        propagation: propagation.into(),
        ..Default::default()
    };
    use MountPropagation::{PropagationBidirectional, PropagationHostToContainer, PropagationPrivate};
    case.container.mounts = vec![
        volume("/data/a/b", PropagationPrivate),
        volume("/data/./a/", PropagationHostToContainer),
        volume("/etc/hosts", PropagationPrivate),
        volume("/dev/shm", PropagationPrivate),
    ];
    let spec = case.build().unwrap();
    let targets: Vec<_> = spec["mounts"].as_array().unwrap().iter().map(|mount| mount["destination"].clone()).collect();
    let place = |target: &str| targets.iter().position(|other| other == target).unwrap();
    assert!(place("/data/a") < place("/data/a/b"));
    assert_eq!(mount(&spec, "/etc/hosts").len(), 1);
    assert_eq!(mount(&spec, "/dev/shm")[0]["source"], "/srv");
    assert_eq!(spec["linux"]["rootfsPropagation"], "rslave");
    case.container.mounts.push(volume("/x", PropagationBidirectional));
    assert_eq!(case.build().unwrap()["linux"]["rootfsPropagation"], "rshared");
    case.container.mounts =
        vec![Mount { readonly: true, recursive_read_only: true, ..volume("/x", PropagationPrivate) }];
    assert!(case.build().unwrap_err().contains("RROUnsupported"));
    case.host.makes_recursive_read_only = true;
    let options = mount(&case.build().unwrap(), "/x")[0]["options"].to_string();
    assert!(options.contains("\"rro\"") && !options.contains("\"ro\""), "{options}");
    case.container.mounts = vec![volume("x", PropagationPrivate)];
    assert!(case.build().unwrap_err().contains("not absolute"));
}

#[test]
fn values_that_json_can_not_hold_travel_beside_it() {
    let mut case = Case::default();
    let pair = |key: &str, value: &[u8]| KeyValue { key: key.into(), value: value.into() };
    case.container.envs = vec![pair("A", b"\xff"), pair("B", b"\xfe"), pair("B", b"text"), pair("C", b"=")];
    assert!(case.build().unwrap_err().contains("\"A\" is not UTF-8"));
    case.host.takes_any_environment = true;
    let spec = case.build().unwrap();
    let env: Vec<&str> = spec["process"]["env"].as_array().unwrap().iter().skip(2).filter_map(Value::as_str).collect();
    assert_eq!(env, ["B=text", "C=="], "the image's A is overridden");
    assert_eq!(spec["annotations"][vaina_proto::ENVIRONMENT_ANNOTATION], r#"{"A":[255]}"#);
    case.container.envs.truncate(0);
    assert!(case.build().unwrap()["annotations"].get(vaina_proto::ENVIRONMENT_ANNOTATION).is_none());
    for (bad, word) in [(pair("A=", b"x"), "\"A=\""), (pair("A", b"x\0"), "NUL")] {
        case.container.envs = vec![bad];
        assert!(case.build().unwrap_err().contains(word));
    }
}

#[test]
fn devices_of_vendors_take_the_place_of_others() {
    let node = |path: &str, major, file_mode| DeviceNode {
        path: path.into(),
        kind: "c".into(),
        major: Some(major),
        minor: Some(1),
        file_mode,
        permissions: "rw".into(),
        ..Default::default()
    };
    let mut case = Case::default();
    case.container.devices =
        vec![Device { host_path: "/dev/a".into(), container_path: "/dev/x".into(), permissions: "r".into() }];
    let host =
        |path: &str| HostDevice { path: path.into(), is_block: true, major: 9, minor: 2, mode: 0o600, uid: 0, gid: 6 };
    case.host.asked_devices = vec![vec![host("/dev/a/one"), host("/dev/a/b/two")]];
    case.container.mounts =
        vec![Mount { container_path: "/lib/v".into(), host_path: "/srv".into(), ..Default::default() }];
    case.cdi = ContainerEdits {
        env: vec!["A=vendor".into()],
        device_nodes: vec![node("/dev/x/one", 5, None), node("/dev/y", 6, Some(0o640))],
        mounts: vec![crate::container::cdi::Mount {
            host_path: "/vendor".into(),
            container_path: "/lib/v".into(),
            fs_type: String::new(),
            options: vec!["ro".into()],
        }],
        additional_gids: vec![0, 8, 9],
        ..Default::default()
    };
    let spec = case.build().unwrap();
    assert_eq!(spec["process"]["user"]["additionalGids"], json!([8, 9]));
    assert!(spec["process"]["env"].as_array().unwrap().contains(&json!("A=vendor")));
    assert_eq!(mount(&spec, "/lib/v").len(), 1);
    assert_eq!(mount(&spec, "/lib/v")[0]["options"], json!(["ro", "rbind"]));
    let nodes: Vec<_> = spec["linux"]["devices"].as_array().unwrap().iter().map(|node| node["path"].clone()).collect();
    assert_eq!(nodes, ["/dev/x/b/two", "/dev/x/one", "/dev/y"]);
    let vendor = &spec["linux"]["devices"][2];
    assert_eq!((&vendor["uid"], &vendor["gid"], &vendor["fileMode"]), (&json!(7), &json!(8), &json!(0o640)));
    let rules = spec["linux"]["resources"]["devices"].as_array().unwrap();
    assert_eq!(rules[0], json!({ "allow": false, "access": "rwm" }));
    assert_eq!(rules[1], json!({ "allow": true, "type": "b", "major": 9, "minor": 2, "access": "r" }));
    assert_eq!(rules[4], json!({ "allow": true, "type": "c", "major": 6, "minor": 1, "access": "rw" }));
    case.host.asked_devices = vec![Vec::new()];
    assert!(case.build().unwrap_err().contains("/dev/a"));
}

#[test]
fn sizes_of_huge_pages_are_the_kernels() {
    for (directory, size) in [
        ("hugepages-2048kB", Some("2MB")),
        ("hugepages-1048576kB", Some("1GB")),
        ("hugepages-64kB", Some("64KB")),
        ("hugepages-x", None),
    ] {
        assert_eq!(huge_page(directory).as_deref(), size, "{directory}");
    }
    let mut case = Case::default();
    let page = |size: &str, limit| HugepageLimit { page_size: size.into(), limit };
    case.host.huge_pages = vec!["2MB".into()];
    case.resources().hugepage_limits = vec![page("2MB", 7), page("1GB", 0)];
    let limits = |case: &Case| case.build().map(|spec| spec["linux"]["resources"]["hugepageLimits"].clone());
    assert_eq!(limits(&case).unwrap(), json!([{ "pageSize": "2MB", "limit": 7 }]));
    case.resources().hugepage_limits.push(page("3MB", 1));
    assert!(limits(&case).unwrap_err().contains("\"3MB\""));
}

#[test]
fn limits_are_passed_on() {
    let mut case = Case::default();
    *case.resources() = LinuxContainerResources {
        cpu_shares: 512,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        memory_limit_in_bytes: 64 << 20,
        oom_score_adj: -500,
        ..Default::default()
    };
    case.host.lowest_oom_score_adj = Some(0);
    let spec = case.build().unwrap();
    assert_eq!(spec["linux"]["resources"]["cpu"], json!({ "shares": 512, "quota": 50_000, "period": 100_000 }));
    assert_eq!(spec["linux"]["resources"]["memory"], json!({ "limit": 64 << 20 }));
    assert_eq!(spec["process"]["oomScoreAdj"], 0, "as low as we may go");
    case.host.has_swap_accounting = true;
    assert_eq!(case.build().unwrap()["linux"]["resources"]["memory"]["swap"], 64 << 20);
    case.resources().memory_swap_limit_in_bytes = 1 << 20;
    assert!(case.build().unwrap_err().contains("swap"));
}

#[test]
fn seccomp_profiles_are_ours_the_hosts_or_none() {
    let mut case = Case::default();
    let profile =
        |kind: ProfileType, file: &str| Some(SecurityProfile { profile_type: kind.into(), localhost_ref: file.into() });
    assert!(case.build().unwrap()["linux"].get("seccomp").is_none());
    case.security().seccomp = profile(ProfileType::RuntimeDefault, "");
    let allowed = |case: &Case| case.build().unwrap()["linux"]["seccomp"]["syscalls"][0]["names"].clone();
    assert!(!allowed(&case).as_array().unwrap().contains(&json!("unshare")));
    case.security().capabilities =
        Some(Capability { add_capabilities: vec!["SYS_ADMIN".into()], ..Default::default() });
    assert!(allowed(&case).as_array().unwrap().contains(&json!("unshare")));
    case.security().seccomp = profile(ProfileType::Localhost, "/srv/profile.json");
    assert!(case.build().unwrap_err().contains("/srv/profile.json"));
    case.host.seccomp_profile = Some(serde_json::from_value(json!({ "defaultAction": "SCMP_ACT_ALLOW" })).unwrap());
    assert_eq!(case.build().unwrap()["linux"]["seccomp"], json!({ "defaultAction": "SCMP_ACT_ALLOW" }));
}

// proves: LinuxContainerSecurityContext.{apparmor, apparmor_profile}
#[test]
fn apparmor_profiles_are_named_by_either_field_and_need_a_host_that_has_it() {
    let mut case = Case::default();
    let profile = |case: &Case| case.build().map(|spec| spec["process"]["apparmorProfile"].clone());
    case.security().apparmor =
        Some(SecurityProfile { profile_type: ProfileType::Localhost.into(), localhost_ref: "own".into() });
    assert!(profile(&case).unwrap_err().contains("\"own\""));
    case.host.has_apparmor = true;
    assert_eq!(profile(&case).unwrap(), "own");
    for (words, expected) in
        [("localhost/own", json!("own")), ("runtime/default", Value::Null), ("unconfined", Value::Null)]
    {
        case.security().apparmor = None;
        #[expect(deprecated, reason = "old clients know no other")]
        words.clone_into(&mut case.security().apparmor_profile);
        assert_eq!(profile(&case).unwrap(), expected, "{words}");
    }
    #[expect(deprecated, reason = "old clients know no other")]
    "nonsense".clone_into(&mut case.security().apparmor_profile);
    assert!(profile(&case).unwrap_err().contains("nonsense"));
}

#[test]
fn users_are_found_in_the_images_files() {
    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102::/:/bin/false\nbroken\n";
    const GROUP: &str = "root:x:0:\nweb:x:102:\nlogs:x:200:other,web\nnear:x:201:website\n";
    let with = |change: &dyn Fn(&mut LinuxContainerSecurityContext), user: &str| {
        let mut security = LinuxContainerSecurityContext::default();
        change(&mut security);
        resolve(&security, &image(user), PASSWD, GROUP)
            .map(|user| (user.uid, user.gid, user.groups))
            .map_err(|error| error.to_string())
    };
    let nothing = |_: &mut LinuxContainerSecurityContext| {};
    assert_eq!(with(&nothing, ""), Ok((0, 0, vec![0])));
    assert_eq!(with(&nothing, "web"), Ok((101, 102, vec![102, 200])));
    assert_eq!(with(&nothing, "101"), Ok((101, 102, vec![102, 200])));
    assert_eq!(with(&nothing, "web:logs"), Ok((101, 200, vec![200])));
    assert_eq!(with(&nothing, "5:6"), Ok((5, 6, vec![6])));
    assert!(with(&nothing, "nobody").unwrap_err().contains("nobody"));
    assert!(with(&nothing, "web:none").unwrap_err().contains("none"));
    let value = |value| Some(Int64Value { value });
    assert_eq!(with(&|security| security.run_as_user = value(1000), "web"), Ok((1000, 0, vec![0])));
    assert_eq!(with(&|security| security.run_as_username = "web".into(), ""), Ok((101, 102, vec![102, 200])));
    assert!(with(&|security| security.run_as_group = value(5), "").is_err());
    assert!(with(&|security| security.run_as_user = value(-1), "").is_err());
    let strict = |security: &mut LinuxContainerSecurityContext| {
        security.run_as_user = value(101);
        security.run_as_group = value(9);
        security.supplemental_groups = vec![50, 9];
        security.supplemental_groups_policy = SupplementalGroupsPolicy::Strict.into();
    };
    assert_eq!(with(&strict, ""), Ok((101, 9, vec![9, 50])));
}
