//! Pods in user namespaces: root inside, anybody outside; files with the right owners and none of them changed.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt, chown},
    path::Path,
};

use anyhow::{Context as _, Result};
use tonic::Code;
use vaina_proto::cri::{
    Device, IdMapping, MountPropagation, NamespaceMode, NamespaceOption, StatusRequest, UserNamespace,
};
use vaina_tests::{
    build::{Container, Pod},
    disturb::Disturbance,
    node::{IMAGE, Node, e2e},
};

use crate::{assert_failed, handlers::each};

/// Where the ids of the pods here begin on the node, and how many they are.
const FIRST: u32 = 300_000;
const LENGTH: u32 = 65_536;

const MAP: IdMapping = IdMapping { host_id: FIRST, container_id: 0, length: LENGTH };

fn user_namespace(mode: NamespaceMode, mappings: &[IdMapping]) -> Option<UserNamespace> {
    Some(UserNamespace { mode: mode.into(), uids: mappings.to_vec(), gids: mappings.to_vec() })
}

fn mapped(mut pod: Pod) -> Pod {
    pod.options().userns_options = user_namespace(NamespaceMode::Pod, &[MAP]);
    pod
}

/// As the kubelet makes them: with the pod's options, and the same mapping on every volume.
fn container(pod: &Pod, name: &str, script: &str) -> Container {
    let mut container = Container::new(name, IMAGE).sh(script);
    container.security().namespace_options = Some(pod.clone().options().clone());
    container
}

fn map_last_mount(mut container: Container) -> Container {
    if let Some(mount) = container.config.mounts.last_mut() {
        mount.uid_mappings = vec![MAP];
        mount.gid_mappings = vec![MAP];
    }
    container
}

fn namespace(pid: u32, kind: &str) -> Result<String> {
    let link = format!("/proc/{pid}/ns/{kind}");
    Ok(fs::read_link(&link).with_context(|| link.clone())?.to_string_lossy().into_owned())
}

/// Owner of a process on the node.
fn owner(pid: u32) -> Result<(u32, u32)> {
    let found = fs::metadata(format!("/proc/{pid}"))?;
    Ok((found.uid(), found.gid()))
}

// proves: NamespaceOption.userns_options, UserNamespace.{mode, uids, gids}, IDMapping.{host_id, container_id, length}
#[test]
fn root_inside_is_anybody_outside_and_owns_its_files() {
    each(mapped, async |node, pod, sandbox| {
        let one = node.start(sandbox, pod, &container(pod, "one", "sleep 1000")).await?;
        let words = |text: String| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        for file in ["uid_map", "gid_map"] {
            let map = words(node.sh(&one, &format!("cat /proc/self/{file}")).await?);
            assert_eq!(map, ["0", "300000", "65536"], "{file}");
        }
        let pid = node.cri().container_pid(&one).await?;
        assert_eq!(owner(pid)?, (FIRST, FIRST));
        assert_eq!(
            node.sh(&one, "id -u; id -g; stat -c %u:%g /bin/busybox / /proc/1 /dev/shm").await?.trim(),
            "0\n0\n0:0\n0:0\n0:0\n0:0"
        );
        // What belongs to the pod's root can be written by it, and is written with its number.
        let write = "touch /new /bin/new /tmp/new /dev/shm/new && echo x >> /etc/hosts && echo y >> /etc/hostname && \
            chown 7:8 /new && rm /bin/new && stat -c %u:%g /new /tmp/new /dev/shm/new /etc/hosts /etc/resolv.conf";
        assert_eq!(node.sh(&one, write).await?.trim(), "7:8\n0:0\n0:0\n0:0\n0:0");
        let upper = Path::new("/var/lib/vaina/containers").join(&one).join("upper");
        let new = fs::metadata(upper.join("new"))?;
        assert_eq!((new.uid(), new.gid()), (FIRST + 7, FIRST + 8));
        // No more than that: what the node's root alone may do is refused.
        let refused = node.exec(&one, &["sh", "-c", "mknod /node b 8 0 || echo 0 > /proc/sysrq-trigger"]).await?;
        assert_ne!(refused.code, 0, "{refused:?}");
        Ok(())
    });
}

#[test]
fn containers_share_the_namespace_and_its_others_belong_to_it() {
    let with_sysctls = |pod: Pod| {
        let mut pod = mapped(pod);
        let sysctls = [("kernel.shm_rmid_forced", "1"), ("net.ipv4.ip_local_port_range", "2000 3000")];
        pod.linux().sysctls.extend(sysctls.map(|(name, value)| (name.to_owned(), value.to_owned())));
        pod
    };
    each(with_sysctls, async |node, pod, sandbox| {
        let script = "echo s > /dev/shm/s; echo page > /tmp/index.html; httpd -p 80 -h /tmp; echo up; sleep 1000";
        let one = node.start(sandbox, pod, &container(pod, "one", script).user(5)).await?;
        node.wait_log(&one, "up").await?;
        // One that says nothing is in it too.
        let two = node.start(sandbox, pod, &Container::new("two", IMAGE).sh("sleep 1000")).await?;
        let mut pids = Vec::new();
        for id in [&one, &two] {
            pids.push(node.cri().container_pid(id).await?);
        }
        for kind in ["user", "net", "ipc", "uts"] {
            assert_eq!(namespace(pids[0], kind)?, namespace(pids[1], kind)?, "{kind}");
            assert_ne!(namespace(pids[0], kind)?, namespace(std::process::id(), kind)?, "{kind}");
        }
        let shim = node.cri().sandbox_pid(sandbox).await?;
        assert_eq!(namespace(shim, "user")?, namespace(std::process::id(), "user")?);
        assert_eq!(namespace(shim, "net")?, namespace(pids[0], "net")?);
        assert_eq!(owner(pids[0])?.0, FIRST + 5);
        // A low port bound by an ordinary user, and what is shared. All groups of the pod may ping.
        assert_eq!(node.sh(&two, "wget -qO- http://127.0.0.1/ && cat /dev/shm/s").await?, "page\ns");
        assert_eq!(
            node.sh(&two, "cat /proc/sys/net/ipv4/ping_group_range").await?.split_whitespace().nth(1),
            Some("65535")
        );
        let sysctls = "cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_local_port_range";
        assert_eq!(node.sh(&two, sysctls).await?.split_whitespace().collect::<Vec<_>>(), ["1", "2000", "3000"]);
        // Root there rules the pod's network.
        let mut ruler = container(pod, "ruler", "ip link set lo mtu 1400 && cat /sys/class/net/lo/mtu");
        ruler = ruler.capabilities(&["NET_ADMIN"], &[]);
        let (status, log) = node.run_to_exit(sandbox, pod, &ruler).await?;
        assert_eq!((status.exit_code, log.as_str()), (0, "1400\n"));
        Ok(())
    });
}

// proves: Mount.{uidMappings, gidMappings}
#[test]
fn a_volume_is_mapped_if_it_says_so() {
    each(mapped, async |node, pod, sandbox| {
        let volume = node.volume(&format!("mapped-{}", pod.name()))?;
        fs::set_permissions(&volume, PermissionsExt::from_mode(0o755))?;
        fs::write(volume.join("root"), "r")?;
        fs::write(volume.join("user"), "u")?;
        chown(volume.join("user"), Some(33), Some(44))?;
        let file = node.directory().join(format!("file-{}", pod.name()));
        fs::write(&file, "")?;
        // As the kubelet has its directories: nobody but root gets through.
        let hidden = node.volume(&format!("hidden-{}", pod.name()))?;
        let inner = hidden.join("inner");
        fs::create_dir(&inner)?;
        fs::write(inner.join("word"), "found")?;
        fs::set_permissions(&hidden, PermissionsExt::from_mode(0o700))?;

        let c = map_last_mount(container(pod, "c", "sleep 1000").mount(&volume, "/mapped"));
        let c = map_last_mount(c.mount(&file, "/dev/termination-log"));
        let c = map_last_mount(c.mount_with(&volume, "/fixed", true, MountPropagation::PropagationHostToContainer));
        let c = node.start(sandbox, pod, &c.mount(&volume, "/plain").mount(&inner, "/inner")).await?;
        let seen =
            node.sh(&c, "stat -c %u:%g /mapped/root /mapped/user /plain/root /plain/user; cat /inner/word").await?;
        assert_eq!(seen, "0:0\n33:44\n65534:65534\n65534:65534\nfound");
        node.sh(&c, "touch /mapped/new && chown 9:10 /mapped/new && echo last > /dev/termination-log").await?;
        let new = fs::metadata(volume.join("new"))?;
        assert_eq!((new.uid(), new.gid()), (9, 10));
        assert_eq!(fs::read_to_string(&file)?, "last\n");
        for path in ["/plain/no", "/fixed/no"] {
            assert_ne!(node.exec(&c, &["touch", path]).await?.code, 0, "{path}");
        }
        // Nothing of it is left on disk but what was written.
        assert_eq!(fs::metadata(volume.join("root"))?.uid(), 0);
        Ok(())
    });
}

#[test]
fn processes_of_all_kinds_are_in_it() {
    each(mapped, async |node, pod, sandbox| {
        // The standard streams can be opened anew, which needs their owner.
        let (_, log) = node
            .run_to_exit(sandbox, pod, &container(pod, "root", "echo a > /dev/stdout; echo b > /dev/stderr"))
            .await?;
        assert!(log == "a\nb\n" || log == "b\na\n", "{log:?}");
        let user = container(pod, "user", "echo $(id -u) > /dev/stdout; sleep 1000").user(1234);
        let user = node.start(sandbox, pod, &user).await?;
        node.wait_log(&user, "1234").await?;
        assert_eq!(node.sh(&user, "id -u; test \"$HOME\" != /root").await?, "1234");
        let mut tty = container(pod, "tty", "test -t 0 && echo terminal $(stat -c %u /dev/console); sleep 1000");
        tty.config.tty = true;
        let tty = node.start(sandbox, pod, &tty).await?;
        node.wait_log(&tty, "terminal 0").await?;
        // A working directory that the image does not have is made, and is the container's.
        let (_, log) =
            node.run_to_exit(sandbox, pod, &container(pod, "cwd", "stat -c %u .").working_dir("/work/here")).await?;
        assert_eq!(log, "0\n");
        let mut read_only =
            container(pod, "ro", "touch /x 2>&1; cat /sys/kernel/mm/transparent_hugepage/enabled | wc -l");
        read_only = read_only.readonly();
        read_only.security().masked_paths = vec!["/proc/kcore".to_owned(), "/sys/firmware".to_owned()];
        read_only.security().readonly_paths = vec!["/proc/sys".to_owned()];
        let (status, log) = node.run_to_exit(sandbox, pod, &read_only).await?;
        assert_eq!(status.exit_code, 0, "{log}");
        assert!(log.contains("Read-only"), "{log}");
        Ok(())
    });
}

#[test]
fn a_device_is_there_and_belongs_to_root_inside() {
    e2e(async |node| {
        let pod = mapped(node.pod("device"));
        let id = node.run_pod(&pod).await?;
        let mut c =
            container(&pod, "c", "head -c 1 /dev/other | wc -c && stat -c %u:%g /dev/other && echo > /dev/null");
        c.config.devices.push(Device {
            host_path: "/dev/zero".to_owned(),
            container_path: "/dev/other".to_owned(),
            permissions: "rw".to_owned(),
        });
        let (status, log) = node.run_to_exit(&id, &pod, &c).await?;
        assert_eq!((status.exit_code, log.as_str()), (0, "1\n0:0\n"));
        node.remove_pod(&id).await?;
        Ok(())
    });
}

#[test]
fn one_pid_namespace_belongs_to_it_too() {
    each(
        |pod| mapped(pod).pid(NamespaceMode::Pod),
        async |node, pod, sandbox| {
            let one = node.start(sandbox, pod, &container(pod, "one", "sleep 1111")).await?;
            let two = node.start(sandbox, pod, &container(pod, "two", "sleep 2222")).await?;
            let init = node.cri().sandbox_pid(sandbox).await?;
            assert_eq!(owner(init)?.0, FIRST);
            assert_eq!(namespace(init, "user")?, namespace(node.cri().container_pid(&one).await?, "user")?);
            let seen = node.sh(&two, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").await?;
            assert!(
                seen.contains("sleep 1111") && seen.contains("sleep 2222") && seen.contains("vaina-init"),
                "{seen}"
            );
            node.sh(&two, "kill $(pidof sleep | tr ' ' '\\n' | sort -n | head -n 1)").await?;
            node.wait_exited(&one).await?;
            Ok(())
        },
    );
}

// proves: NamespaceOption.{network, userns_options}
#[test]
fn the_nodes_network_goes_with_it() {
    each(
        |pod| mapped(pod).host_network(),
        async |node, pod, sandbox| {
            let c = node.start(sandbox, pod, &container(pod, "c", "sleep 1000")).await?;
            let pid = node.cri().container_pid(&c).await?;
            assert_eq!(owner(pid)?.0, FIRST);
            assert_eq!(namespace(pid, "net")?, namespace(node.daemon_pid(), "net")?);
            let links = node.sh(&c, "ls /sys/class/net").await?;
            assert!(links.contains("lo"), "{links}");
            assert_ne!(node.exec(&c, &["mkdir", "/sys/kernel/no"]).await?.code, 0);
            assert_ne!(node.exec(&c, &["ip", "link", "set", "lo", "mtu", "1400"]).await?.code, 0);
            Ok(())
        },
    );
}

#[test]
fn it_outlives_the_daemon_and_a_pod_is_what_it_was() {
    e2e(async |node| {
        for (number, disturbance) in Disturbance::ALL.into_iter().enumerate() {
            let pod = mapped(node.pod(&format!("same-{number}")));
            let id = node.run_pod(&pod).await?;
            let one = node.start(&id, &pod, &container(&pod, "one", "touch /mark; sleep 1000")).await?;
            let created = node.create(&id, &pod, &container(&pod, "later", "stat -c %u /; sleep 1000")).await?;
            disturbance.apply(node).await?;
            assert_eq!(node.sh(&one, "stat -c %u /mark").await?, "0");
            node.cri().start_container(&created).await?;
            node.wait_log(&created, "0").await?;
            let pids = [node.cri().container_pid(&one).await?, node.cri().container_pid(&created).await?];
            assert_eq!(namespace(pids[0], "user")?, namespace(pids[1], "user")?, "{disturbance:?}");
            node.remove_pod(&id).await?;
            node.check_leaks().await?;
        }
        Ok(())
    });
}

#[test]
fn an_image_as_a_volume_has_the_pods_owners() {
    e2e(async |node| {
        let pod = mapped(node.pod("image"));
        let id = node.run_pod(&pod).await?;
        let mut c = container(&pod, "c", "stat -c %u:%g /data/bin/busybox && ! touch /data/no 2>/dev/null");
        c.config.mounts.push(vaina_proto::cri::Mount {
            container_path: "/data".to_owned(),
            readonly: true,
            image: Some(vaina_tests::client::spec(IMAGE)),
            ..Default::default()
        });
        let c = map_last_mount(c);
        let (status, log) = node.run_to_exit(&id, &pod, &c).await?;
        assert_eq!((status.exit_code, log.as_str()), (0, "0:0\n"));
        node.remove_pod(&id).await?;
        Ok(())
    });
}

async fn refused(node: &mut Node, pod: &Pod, code: Code, words: &[&str]) {
    assert_failed(node.run_pod(pod).await, code, words);
}

// proves: UserNamespace.{mode, uids, gids}, IDMapping.{container_id, length}
#[test]
fn what_can_not_be_is_refused_in_words() {
    e2e(async |node| {
        let with = |pod: Pod, options| {
            let mut pod = pod;
            pod.options().userns_options = options;
            pod
        };
        let invalid = Code::InvalidArgument;
        let two = user_namespace(NamespaceMode::Pod, &[MAP, IdMapping { host_id: 1_000_000, ..MAP }]);
        refused(node, &with(node.pod("two"), two), invalid, &["userns_options.uids", "2 mappings"]).await;
        let none = user_namespace(NamespaceMode::Pod, &[]);
        refused(node, &with(node.pod("none"), none), invalid, &["userns_options.uids", "0 mappings"]).await;
        let high = user_namespace(NamespaceMode::Pod, &[IdMapping { container_id: 1, ..MAP }]);
        refused(node, &with(node.pod("high"), high), invalid, &["container_id 1"]).await;
        let mut unequal = user_namespace(NamespaceMode::Pod, &[MAP]).unwrap_or_default();
        unequal.gids[0].length = 5;
        refused(node, &with(node.pod("unequal"), Some(unequal)), invalid, &["65536 uids and 5 gids"]).await;
        for (mode, word) in [(NamespaceMode::Container, "CONTAINER"), (NamespaceMode::Target, "TARGET")] {
            refused(node, &with(node.pod("mode"), user_namespace(mode, &[])), invalid, &[word]).await;
        }
        let own = mapped(node.pod("pid")).pid(NamespaceMode::Node);
        refused(node, &own, invalid, &["user namespace", "PID"]).await;
        refused(node, &mapped(node.pod("ipc")).host_ipc(), invalid, &["user namespace", "IPC"]).await;
        refused(node, &mapped(node.pod("privileged")).privileged(), invalid, &["user namespace", "privileged"]).await;

        let pod = mapped(node.pod("pod"));
        let id = node.run_pod(&pod).await?;
        let mut other = container(&pod, "other", "true");
        let options = NamespaceOption {
            userns_options: user_namespace(NamespaceMode::Pod, &[IdMapping { host_id: 1, ..MAP }]),
            ..Default::default()
        };
        other.security().namespace_options = Some(options);
        let words = ["must be equal", "0:300000:65536", "0:1:65536"];
        assert_failed(node.create(&id, &pod, &other).await, invalid, &words);
        let too_high = container(&pod, "high", "true").user(i64::from(LENGTH));
        assert_failed(node.create(&id, &pod, &too_high).await, invalid, &["user", "65536 is not one of"]);
        let volume = node.volume("shared")?;
        let shared = container(&pod, "shared", "true");
        let shared = shared.mount_with(&volume, "/v", false, MountPropagation::PropagationBidirectional);
        assert_failed(node.create(&id, &pod, &shared).await, invalid, &["/v", "bidirectional"]);
        // A file system that can't be shown with other owners is named, and the container says so.
        let unmapped = map_last_mount(container(&pod, "unmapped", "true").mount(Path::new("/proc/sys"), "/v"));
        let unmapped = node.create(&id, &pod, &unmapped).await?;
        let words = ["/proc/sys", "can't be id-mapped"];
        assert_failed(node.cri().start_container(&unmapped).await, Code::FailedPrecondition, &words);
        node.remove_pod(&id).await?;

        let plain = node.pod("plain");
        let id = node.run_pod(&plain).await?;
        let wants = container(&pod, "wants", "true");
        assert_failed(node.create(&id, &plain, &wants).await, invalid, &["must be equal", "the node's"]);
        node.remove_pod(&id).await?;
        Ok(())
    });
}

// proves: RuntimeHandler.features, RuntimeHandlerFeatures.user_namespaces
// proves: RuntimeFeatures.user_namespaces_host_network, PodSandboxStatus.linux, LinuxPodSandboxStatus.namespaces
// proves: Namespace.options
#[test]
fn the_status_says_who_can_and_what_a_pod_has() {
    e2e(async |node| {
        let status = node.cri().status(StatusRequest::default()).await?;
        for handler in &status.runtime_handlers {
            let features = handler.features.unwrap_or_default();
            assert!(features.user_namespaces, "{}", handler.name);
        }
        assert!(status.features.unwrap_or_default().user_namespaces_host_network);
        let pod = mapped(node.pod("told"));
        let id = node.run_pod(&pod).await?;
        let linux = node.cri().sandbox(&id).await?.linux.unwrap_or_default();
        let options = linux.namespaces.and_then(|namespaces| namespaces.options).unwrap_or_default();
        assert_eq!(options.userns_options, user_namespace(NamespaceMode::Pod, &[MAP]));
        node.remove_pod(&id).await?;
        Ok(())
    });
}
