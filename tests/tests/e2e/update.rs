//! New limits for containers and pods: in the kernel's files, in the status, over a restart, and all or none.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use tonic::Code;
use vaina_proto::cri::{
    HugepageLimit, LinuxContainerResources, PodSandboxStatusRequest, UpdateContainerResourcesRequest,
    UpdatePodSandboxResourcesRequest,
};
use vaina_tests::{
    build::Container,
    node::{IMAGE, Node, e2e, e2e_cri},
};

use crate::assert_failed;

fn is_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// A file of a group, under its v1 controller or in the one tree of v2.
fn file(group: &Path, controller: &str, v1: &str, v2: &str) -> Result<String> {
    let root = Path::new("/sys/fs/cgroup");
    let relative = group.strip_prefix("/")?;
    let path = if is_v2() { root.join(relative).join(v2) } else { root.join(controller).join(relative).join(v1) };
    Ok(fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?.trim().to_owned())
}

fn memory_limit(group: &Path) -> Result<String> {
    file(group, "memory", "memory.limit_in_bytes", "memory.max")
}

/// Quota of a period of 100 ms.
fn quota(group: &Path) -> Result<String> {
    let text = file(group, "cpu", "cpu.cfs_quota_us", "cpu.max")?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}

/// The group of a container of a pod that names its parent.
fn group(pod: &vaina_tests::build::Pod, id: &str) -> PathBuf {
    let parent = pod.config.linux.as_ref().map(|linux| linux.cgroup_parent.clone()).unwrap_or_default();
    Path::new(&parent).join(id)
}

async fn update(node: &Node, id: &str, linux: LinuxContainerResources) -> Result<(), tonic::Status> {
    let request =
        UpdateContainerResourcesRequest { container_id: id.to_owned(), linux: Some(linux), ..Default::default() };
    node.cri().update_container_resources(request).await.map(drop)
}

async fn resources(node: &Node, id: &str) -> Result<LinuxContainerResources> {
    let status = node.cri().container(id).await?;
    status.resources.and_then(|resources| resources.linux).context("resources in the status")
}

fn memory(limit: i64) -> LinuxContainerResources {
    LinuxContainerResources { memory_limit_in_bytes: limit, ..Default::default() }
}

async fn limits_change(handler: &'static str, node: &mut Node) -> Result<()> {
    let pod = node.pod(&format!("update{handler}")).handler(handler);
    let sandbox = node.run_pod(&pod).await?;
    let mut config = Container::new("c", IMAGE).sh("sleep 1000").memory_limit(64 << 20);
    config.resources().cpu_shares = 512;
    config.resources().oom_score_adj = 300;
    let id = node.start(&sandbox, &pod, &config).await?;
    let group = group(&pod, &id);
    assert_eq!(memory_limit(&group)?, (64 << 20).to_string());
    assert_eq!(resources(node, &id).await?, config.resources().clone(), "what it was made with");

    let asked = LinuxContainerResources {
        cpu_quota: 20_000,
        cpu_period: 100_000,
        cpu_shares: 1024,
        memory_limit_in_bytes: 128 << 20,
        oom_score_adj: 500,
        cpuset_cpus: "0".into(),
        ..Default::default()
    };
    update(node, &id, asked.clone()).await?;
    assert_eq!(memory_limit(&group)?, (128 << 20).to_string());
    assert_eq!(quota(&group)?, "20000");
    assert_eq!(file(&group, "cpu", "cpu.shares", "cpu.weight")?, if is_v2() { "100" } else { "1024" });
    assert_eq!(file(&group, "cpuset", "cpuset.cpus", "cpuset.cpus")?, "0");
    let pid = node.cri().container_pid(&id).await?;
    let score = || fs::read_to_string(format!("/proc/{pid}/oom_score_adj"));
    assert_eq!(score()?.trim(), "500");
    let told = resources(node, &id).await?;
    assert_eq!(told, asked, "the status has what is in force");

    // What a request leaves out stays, down works as up does, and the daemon remembers.
    update(node, &id, memory(96 << 20)).await?;
    let told = resources(node, &id).await?;
    assert_eq!((told.memory_limit_in_bytes, told.cpu_quota, told.oom_score_adj), (96 << 20, 20_000, 500));
    assert_eq!((memory_limit(&group)?, quota(&group)?), ((96 << 20).to_string(), "20000".to_owned()));
    node.kill_daemon()?;
    node.start_daemon().await?;
    assert_eq!(resources(node, &id).await?, told);
    update(node, &id, LinuxContainerResources { cpu_quota: -1, ..Default::default() }).await?;
    assert_eq!(quota(&group)?, if is_v2() { "max" } else { "-1" });
    assert_eq!(memory_limit(&group)?, (96 << 20).to_string());
    node.remove_pod(&sandbox).await?;
    Ok(())
}

// proves: UpdateContainerResources, UpdateContainerResourcesRequest.{container_id, linux}
// proves: LinuxContainerResources.{memory_limit_in_bytes, cpu_quota, cpu_shares, oom_score_adj, cpuset_cpus}
// proves: ContainerStatus.resources, ContainerResources.linux
#[test]
fn a_running_container_gets_new_limits() {
    e2e(async |node| limits_change("", node).await);
}

#[test]
fn so_it_does_with_crun() {
    e2e(async |node| limits_change("crun", node).await);
}

#[test]
fn so_it_does_with_runc() {
    e2e(async |node| limits_change("runc", node).await);
}

#[test]
fn a_created_container_starts_with_the_new_limits() {
    e2e_cri(async |node| {
        let pod = node.pod("created");
        let sandbox = node.run_pod(&pod).await?;
        let mut config = Container::new("c", IMAGE).sh("sleep 1000").memory_limit(64 << 20);
        config.resources().oom_score_adj = 100;
        let id = node.create(&sandbox, &pod, &config).await?;
        let asked = LinuxContainerResources { cpu_quota: 30_000, oom_score_adj: 200, ..memory(80 << 20) };
        update(node, &id, asked).await?;
        assert_eq!(resources(node, &id).await?.memory_limit_in_bytes, 80 << 20);
        node.cri().start_container(&id).await?;
        let group = group(&pod, &id);
        assert_eq!((memory_limit(&group)?, quota(&group)?), ((80 << 20).to_string(), "30000".to_owned()));
        let pid = node.cri().container_pid(&id).await?;
        assert_eq!(fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?.trim(), "200");
        // The config itself did not change: the same create is the same container.
        assert_eq!(node.create(&sandbox, &pod, &config).await?, id);
        node.cri().stop_container(&id, 0).await?;
        update(node, &id, memory(90 << 20)).await?;
        assert_eq!(resources(node, &id).await?.memory_limit_in_bytes, 90 << 20, "it counts as told");
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

#[test]
fn a_limit_below_what_is_used_is_refused_and_nothing_changes() {
    e2e_cri(async |node| {
        let pod = node.pod("below");
        let sandbox = node.run_pod(&pod).await?;
        let config = Container::new("c", IMAGE).command(&["/bin/probe", "allocate", "60"]).memory_limit(128 << 20);
        let id = node.start(&sandbox, &pod, &config).await?;
        node.wait_log(&id, "allocated").await?;
        let group = group(&pod, &id);
        let before = resources(node, &id).await?;
        let asked = LinuxContainerResources { cpu_quota: 20_000, ..memory(32 << 20) };
        assert_failed(
            update(node, &id, asked).await,
            Code::FailedPrecondition,
            &["memory limit 33554432 is below what container", "uses"],
        );
        assert_eq!(memory_limit(&group)?, (128 << 20).to_string());
        assert_eq!(quota(&group)?, if is_v2() { "max" } else { "-1" });
        if is_v2() {
            assert_eq!(file(&group, "", "", "memory.high")?, "max");
        }
        assert_eq!(resources(node, &id).await?, before);
        // It lives, and takes a limit that it fits into.
        update(node, &id, memory(100 << 20)).await?;
        assert_eq!(memory_limit(&group)?, (100 << 20).to_string());
        assert_eq!(node.sh(&id, "echo there").await?, "there");
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

#[test]
fn what_the_kernel_refuses_leaves_nothing_half_done() {
    e2e_cri(async |node| {
        let pod = node.pod("half");
        let sandbox = node.run_pod(&pod).await?;
        let id =
            node.start(&sandbox, &pod, &Container::new("c", IMAGE).sh("sleep 1000").memory_limit(64 << 20)).await?;
        let group = group(&pod, &id);
        let before = resources(node, &id).await?;
        // No machine has this CPU; memory and quota are fine.
        let asked = LinuxContainerResources { cpu_quota: 20_000, cpuset_cpus: "4095".into(), ..memory(96 << 20) };
        ensure!(update(node, &id, asked).await.is_err());
        assert_eq!(memory_limit(&group)?, (64 << 20).to_string());
        assert_eq!(quota(&group)?, if is_v2() { "max" } else { "-1" });
        assert_eq!(resources(node, &id).await?, before);
        let wrong = LinuxContainerResources { oom_score_adj: 5000, ..memory(96 << 20) };
        assert_failed(update(node, &id, wrong).await, Code::InvalidArgument, &["oom_score_adj"]);
        assert_eq!(memory_limit(&group)?, (64 << 20).to_string());
        let none = UpdateContainerResourcesRequest { container_id: id.clone(), ..Default::default() };
        assert_failed(node.cri().update_container_resources(none).await, Code::InvalidArgument, &["no resources"]);
        assert_failed(update(node, "none", memory(1 << 30)).await, Code::NotFound, &[]);
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

/// Runtimes forget these in an update.
// proves: LinuxContainerResources.{hugepage_limits, unified}, HugepageLimit.{page_size, limit}
#[test]
fn huge_pages_and_single_files_are_set_too() {
    e2e_cri(async |node| {
        let sizes = fs::read_dir("/sys/kernel/mm/hugepages").context("the kernel has huge pages")?.count();
        ensure!(sizes > 0, "the kernel has no huge pages");
        for handler in ["", "crun"] {
            let pod = node.pod(&format!("huge{handler}")).handler(handler);
            let sandbox = node.run_pod(&pod).await?;
            let page = |limit| vec![HugepageLimit { page_size: "2MB".into(), limit }];
            let mut config = Container::new("c", IMAGE).sh("sleep 1000").memory_limit(64 << 20);
            config.resources().hugepage_limits = page(4 << 20);
            let id = node.start(&sandbox, &pod, &config).await?;
            let group = group(&pod, &id);
            let huge = || file(&group, "hugetlb", "hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max");
            assert_eq!(huge()?, (4 << 20).to_string());
            let unified = BTreeMap::from([("memory.high".to_owned(), (48 << 20).to_string())]);
            let asked = LinuxContainerResources { hugepage_limits: page(8 << 20), unified, ..memory(64 << 20) };
            update(node, &id, asked).await?;
            assert_eq!(huge()?, (8 << 20).to_string());
            if is_v2() {
                assert_eq!(file(&group, "", "", "memory.high")?, (48 << 20).to_string());
            }
            node.remove_pod(&sandbox).await?;
        }
        Ok(())
    });
}

// proves: UpdatePodSandboxResources, UpdatePodSandboxResourcesRequest.{pod_sandbox_id, resources}
// proves: LinuxPodSandboxConfig.{resources, overhead}
#[test]
fn a_pod_of_ours_is_limited_and_a_kubelets_is_remembered() {
    e2e(async |node| {
        let verbose = async |node: &Node, sandbox: &str| -> Result<serde_json::Value> {
            let request = PodSandboxStatusRequest { pod_sandbox_id: sandbox.to_owned(), verbose: true };
            let info = node.cri().pod_sandbox_status(request).await?.info;
            Ok(serde_json::from_str(info.get("info").context("info")?)?)
        };
        let mut own = node.pod("own");
        own.linux().cgroup_parent.clear();
        own.linux().resources = Some(LinuxContainerResources { cpu_quota: 40_000, ..memory(200 << 20) });
        own.linux().overhead = Some(memory(56 << 20));
        let sandbox = node.run_pod(&own).await?;
        let group = Path::new("/vaina").join(&sandbox);
        assert_eq!((memory_limit(&group)?, quota(&group)?), ((256 << 20).to_string(), "40000".to_owned()));
        let request = |sandbox: &str, overhead, resources| UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: sandbox.to_owned(),
            overhead,
            resources,
        };
        let asked = LinuxContainerResources { cpu_quota: 50_000, ..memory(300 << 20) };
        node.cri().update_pod_sandbox_resources(request(&sandbox, None, Some(asked.clone()))).await?;
        assert_eq!((memory_limit(&group)?, quota(&group)?), ((356 << 20).to_string(), "50000".to_owned()));
        assert_eq!(verbose(node, &sandbox).await?["resources"]["memory"]["limit"], 300 << 20);
        node.kill_daemon()?;
        node.start_daemon().await?;
        assert_eq!(verbose(node, &sandbox).await?["resources"]["cpu"]["quota"], 50_000);
        assert_eq!(verbose(node, &sandbox).await?["overhead"]["memory"]["limit"], 56 << 20);
        let impossible = LinuxContainerResources { cpuset_cpus: "4095".into(), ..memory(400 << 20) };
        let refused = node.cri().update_pod_sandbox_resources(request(&sandbox, None, Some(impossible))).await;
        assert_failed(refused, Code::FailedPrecondition, &["cpuset"]);
        assert_eq!(memory_limit(&group)?, (356 << 20).to_string());

        let given = node.pod("given");
        let other = node.run_pod(&given).await?;
        node.cri().update_pod_sandbox_resources(request(&other, Some(memory(1 << 20)), Some(asked))).await?;
        assert_eq!(verbose(node, &other).await?["resources"]["memory"]["limit"], 300 << 20);
        assert_failed(
            node.cri().update_pod_sandbox_resources(request("none", None, None)).await,
            Code::NotFound,
            &["pod sandbox"],
        );
        for sandbox in [sandbox, other] {
            node.remove_pod(&sandbox).await?;
        }
        Ok(())
    });
}
