//! What a process gets beside its files: variables byte for byte, devices, huge pages.

use std::fs;

use anyhow::Context as _;
use tonic::Code;
use vaina_proto::cri::{Device, ExecSyncRequest, HugepageLimit, KeyValue};
use vaina_tests::{
    build::Container,
    node::{IMAGE, e2e},
};

use crate::{
    assert_failed,
    handlers::{as_it_is, each},
};

fn variable(mut container: Container, name: &str, value: &[u8]) -> Container {
    container.config.envs.push(KeyValue { key: name.to_owned(), value: value.to_vec() });
    container
}

/// The variables of a process, by what the kernel has of them.
fn environment(bytes: &[u8]) -> Vec<Vec<u8>> {
    bytes.split(|byte| *byte == 0).filter(|entry| !entry.is_empty()).map(<[u8]>::to_vec).collect()
}

// proves: ContainerConfig.envs, KeyValue.{key, value}
#[test]
fn values_that_are_not_utf8_reach_the_process_and_its_execs_unchanged() {
    e2e(async |node| {
        let every: Vec<u8> = (1..=255).collect();
        let pod = node.pod("bytes").host_network();
        let sandbox = node.run_pod(&pod).await?;
        let config = Container::new("c", IMAGE).sh("exec sleep 1000").env("PLAIN", "ä").env("TWICE", "first");
        let config = variable(variable(config, "EVERY", &every), "TWICE", b"\xfe");
        // A later value of a name takes the place of an earlier one, whatever the two are made of.
        let config = variable(config, "THRICE", b"\xfd").env("THRICE", "last");
        let config = variable(config, "PATH", b"/\xff:/bin");
        let id = node.start(&sandbox, &pod, &config).await?;
        let expected = |entries: &[Vec<u8>], who: &str| {
            for entry in [
                [b"EVERY=", &every[..]].concat(),
                b"TWICE=\xfe".to_vec(),
                b"THRICE=last".to_vec(),
                b"PATH=/\xff:/bin".to_vec(),
                "PLAIN=ä".as_bytes().to_vec(),
            ] {
                let name = entry.split(|byte| *byte == b'=').next().unwrap_or_default().to_vec();
                let found: Vec<_> = entries.iter().filter(|one| one.starts_with(&[&name[..], b"="].concat())).collect();
                assert_eq!(found, [&entry], "{who}: {}", String::from_utf8_lossy(&name));
            }
        };
        let pid = node.cri().container_pid(&id).await?;
        // `start` answers when the process may go on to its program.
        vaina_tests::wait::until("the program runs", async || {
            Ok(fs::read(format!("/proc/{pid}/cmdline"))?.starts_with(b"sleep").then_some(()))
        })
        .await?;
        expected(&environment(&fs::read(format!("/proc/{pid}/environ"))?), "the process");
        let request = ExecSyncRequest {
            container_id: id.clone(),
            cmd: vec!["cat".into(), "/proc/self/environ".into()],
            timeout: 30,
        };
        let answer = node.cri().exec_sync(request).await?;
        assert_eq!(answer.exit_code, 0, "found by the path of bytes: {answer:?}");
        expected(&environment(&answer.stdout), "an exec");
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

#[test]
fn what_can_not_be_passed_on_is_refused_by_its_name() {
    each(as_it_is, async |node, pod, sandbox| {
        let refused = async |name: &str, value: &[u8]| {
            node.create(sandbox, pod, &variable(Container::new("c", IMAGE).sh("true"), name, value)).await
        };
        if ["crun", "runc"].contains(&pod.handler.as_str()) {
            let words = ["envs", "\"SECRET\"", "is not UTF-8"];
            assert_failed(refused("SECRET", b"top\xff").await, Code::Unimplemented, &words);
        }
        assert_failed(refused("NUL", b"a\0b").await, Code::InvalidArgument, &["envs", "\"NUL\"", "NUL byte"]);
        assert_failed(refused("A=B", b"c").await, Code::InvalidArgument, &["envs", "\"A=B\""]);
        assert_failed(refused("", b"c").await, Code::InvalidArgument, &["envs", "\"\""]);
        let (status, text) =
            node.run_to_exit(sandbox, pod, &Container::new("d", IMAGE).env("A", "=ä\n").sh("echo \"$A\"")).await?;
        assert_eq!((status.exit_code, text.as_str()), (0, "=ä\n\n"));
        Ok(())
    });
}

fn device(mut container: Container, host: &str, target: &str, permissions: &str) -> Container {
    container.config.devices.push(Device {
        host_path: host.into(),
        container_path: target.into(),
        permissions: permissions.into(),
    });
    container
}

// proves: ContainerConfig.devices, Device.{container_path, host_path, permissions}
#[test]
fn only_devices_that_were_given_can_be_opened() {
    each(as_it_is, async |node, pod, sandbox| {
        // 10:237 is /dev/loop-control, which no container has. Making a node is allowed, and of no use.
        let own = "mknod /tmp/made c 10 237 && (exec 3</tmp/made) 2>&1 | grep -o 'not permitted' || echo opened";
        assert_eq!(node.run_to_exit(sandbox, pod, &Container::new("no", IMAGE).sh(own)).await?.1, "not permitted\n");
        let script = format!(
            "{own}; (exec 3</dev/given) && echo readable; (exec 3>/dev/given) 2>&1 | grep -o 'not permitted'; \
             (exec 3>/dev/null) && echo usual"
        );
        let with = device(Container::new("with", IMAGE).sh(&script), "/dev/loop-control", "/dev/given", "rm");
        assert_eq!(node.run_to_exit(sandbox, pod, &with).await?.1, "opened\nreadable\nnot permitted\nusual\n");
        Ok(())
    });
}

#[test]
fn of_a_directory_all_devices_below_it_are_given() {
    each(as_it_is, async |node, pod, sandbox| {
        let directory = node.directory().join("devices");
        let inner = directory.join("inner");
        if !inner.exists() {
            fs::create_dir_all(&inner)?;
            let kind = nix::sys::stat::SFlag::S_IFCHR;
            let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
            for (path, major, minor) in [(directory.join("one"), 10, 237), (inner.join("two"), 1, 5)] {
                nix::sys::stat::mknod(&path, kind, mode, nix::sys::stat::makedev(major, minor)).context("mknod")?;
            }
            fs::write(directory.join("file"), "not a device")?;
        }
        let host = directory.to_string_lossy().into_owned();
        let script = "cd /dev/many; find . -type c | sort; ls | wc -l; (exec 3<one) && echo readable; \
                      (exec 3>one) 2>&1 | grep -o 'not permitted'; head -c 2 inner/two | tr '\\0' z; echo";
        let many = device(Container::new("many", IMAGE).sh(script), &host, "/dev/many", "r");
        let text = node.run_to_exit(sandbox, pod, &many).await?.1;
        assert_eq!(text, "./inner/two\n./one\n2\nreadable\nnot permitted\nzz\n");

        let empty = node.volume("empty")?;
        for path in [empty.to_string_lossy().as_ref(), "/dev/none", "/etc/passwd"] {
            let tried = node.create(sandbox, pod, &device(Container::new("c", IMAGE), path, "/dev/x", "")).await;
            assert_failed(tried, Code::InvalidArgument, &["devices", path]);
        }
        let tried = node.create(sandbox, pod, &device(Container::new("c", IMAGE), "/dev/null", "/dev/x", "rx")).await;
        assert_failed(tried, Code::InvalidArgument, &["devices", "\"rx\""]);
        Ok(())
    });
}

// proves: LinuxContainerResources.hugepage_limits, HugepageLimit.{page_size, limit}
#[test]
fn limits_of_huge_pages_are_set_and_unknown_sizes_are_refused() {
    each(as_it_is, async |node, pod, sandbox| {
        let with = |pages: &[(&str, u64)]| {
            // Whichever version the control groups have.
            let script = "cd /sys/fs/cgroup; cat $(find . -maxdepth 2 -name 'hugetlb.2MB.limit_in_bytes' \
                          -o -maxdepth 2 -name 'hugetlb.2MB.max'); cat $(find . -maxdepth 2 \
                          -name 'hugetlb.2MB.rsvd.limit_in_bytes' -o -maxdepth 2 -name 'hugetlb.2MB.rsvd.max')";
            let mut config = Container::new("c", IMAGE).sh(script);
            let pages = pages.iter().map(|(size, limit)| HugepageLimit { page_size: (*size).into(), limit: *limit });
            config.resources().hugepage_limits = pages.collect();
            config
        };
        // The kubelet names every size of the node, and those that are not asked for with zero.
        let (_, text) = node.run_to_exit(sandbox, pod, &with(&[("2MB", 4 << 20), ("1GB", 0), ("64KB", 0)])).await?;
        let limit = (4 << 20).to_string();
        let [used, reserved] = text.lines().collect::<Vec<_>>()[..] else { anyhow::bail!("two limits: {text:?}") };
        assert_eq!(used, limit);
        // Older releases of the others know no reservations; what is reserved and not used is not theirs to refuse then.
        if ["", "vaina"].contains(&pod.handler.as_str()) {
            assert_eq!(reserved, limit);
        }
        let mut other = with(&[("3MB", 1 << 20)]);
        other.config.metadata.get_or_insert_default().name = "other".into();
        let tried = node.create(sandbox, pod, &other).await;
        assert_failed(tried, Code::InvalidArgument, &["linux.resources.hugepage_limits", "\"3MB\"", "2MB"]);
        Ok(())
    });
}
