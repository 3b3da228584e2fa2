//! Pod sandboxes: life, idempotence, ids, filters, what comes back.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use tonic::Code;
use vaina_proto::cri::{
    self, DnsConfig, ListPodSandboxRequest, NamespaceMode, PodSandboxFilter, PodSandboxState, PodSandboxStateValue,
};
use vaina_tests::{
    build::Container,
    node::{IMAGE, Node, e2e, e2e_cri},
    peer, wait,
};

use crate::{assert_failed, failed};

fn now() -> Result<i64> {
    Ok(i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?)
}

async fn list(node: &Node, filter: PodSandboxFilter) -> Result<Vec<cri::PodSandbox>> {
    Ok(node.cri().list_pod_sandbox(ListPodSandboxRequest { filter: Some(filter) }).await?.items)
}

// proves: RunPodSandbox, StopPodSandbox, RemovePodSandbox, PodSandboxStatus, RunPodSandboxRequest.config
// proves: RunPodSandboxResponse.pod_sandbox_id, StopPodSandboxRequest.pod_sandbox_id
// proves: RemovePodSandboxRequest.pod_sandbox_id, PodSandboxStatusRequest.pod_sandbox_id
// proves: PodSandboxStatusResponse.status
// proves: PodSandboxStatus.{id, metadata, state, created_at, network, labels, annotations}, PodSandboxNetworkStatus.ip
// proves: PodSandboxConfig.{metadata, labels, annotations}, PodSandboxState.*
#[test]
fn a_pod_is_run_stopped_and_removed() {
    e2e_cri(async |node| {
        let before = now()?;
        let pod = node.pod("life").label("app", "web").annotation("note", "a b\"c\n");
        let id = node.run_pod(&pod).await?;
        assert_eq!(id.len(), 64);
        assert!(id.bytes().all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase()), "{id}");

        let status = node.cri().sandbox(&id).await?;
        assert_eq!(status.id, id);
        assert_eq!(status.metadata, pod.config.metadata);
        assert_eq!(status.state(), PodSandboxState::SandboxReady);
        assert!(before <= status.created_at && status.created_at <= now()?, "{}", status.created_at);
        assert_eq!(status.labels, pod.config.labels);
        assert_eq!(status.annotations, pod.config.annotations);
        assert_eq!(status.runtime_handler, "");
        let options = status.linux.context("linux")?.namespaces.context("namespaces")?.options.context("options")?;
        assert_eq!(options.network(), NamespaceMode::Pod);
        assert!(status.network.context("network")?.ip.parse::<std::net::Ipv4Addr>().is_ok());

        node.cri().stop_pod_sandbox(&id).await?;
        let status = node.cri().sandbox(&id).await?;
        assert_eq!(status.state(), PodSandboxState::SandboxNotready);
        assert_eq!(status.network.unwrap_or_default().ip, "", "the network is gone before NOTREADY is seen");
        node.cri().stop_pod_sandbox(&id).await.context("stop again")?;

        node.cri().remove_pod_sandbox(&id).await?;
        assert_failed(node.cri().sandbox(&id).await, Code::NotFound, &[&id]);
        node.cri().remove_pod_sandbox(&id).await.context("remove again")?;
        node.cri().stop_pod_sandbox(&id).await.context("stop after remove")?;
        assert!(list(node, PodSandboxFilter::default()).await?.is_empty());
        Ok(())
    });
}

#[test]
fn unknown_ids_are_done_or_not_found() {
    e2e_cri(async |node| {
        let cri = node.cri();
        let id = "0123456789abcdef".repeat(4);
        cri.stop_pod_sandbox(&id).await?;
        cri.remove_pod_sandbox(&id).await?;
        assert_failed(cri.sandbox(&id).await, Code::NotFound, &[]);
        Ok(())
    });
}

// proves: PodSandboxFilter.id
#[test]
fn a_unique_prefix_of_an_id_is_enough() {
    e2e_cri(async |node| {
        let pod = node.pod("prefix");
        let id = node.run_pod(&pod).await?;
        assert_eq!(node.cri().sandbox(&id[..12]).await?.id, id);
        let filter = PodSandboxFilter { id: id[..12].to_owned(), ..Default::default() };
        assert_eq!(list(node, filter).await?.len(), 1);
        node.cri().stop_pod_sandbox(&id[..12]).await?;
        node.cri().remove_pod_sandbox(&id[..12]).await?;
        assert_failed(node.cri().sandbox(&id).await, Code::NotFound, &[]);
        Ok(())
    });
}

// proves: ListPodSandbox, ListPodSandboxRequest.filter, ListPodSandboxResponse.items
// proves: PodSandboxFilter.{id, state, label_selector}, PodSandboxStateValue.state
#[test]
fn filters_narrow_each_other() {
    e2e_cri(async |node| {
        let a = node.run_pod(&node.pod("a").label("app", "web").label("tier", "front")).await?;
        let b = node.run_pod(&node.pod("b").label("app", "web").label("tier", "back")).await?;
        node.cri().stop_pod_sandbox(&b).await?;

        let labels = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let state = |state: PodSandboxState| Some(PodSandboxStateValue { state: state.into() });
        let both = [a.clone(), b.clone()];
        for (filter, expected) in [
            (PodSandboxFilter::default(), both.as_slice()),
            (PodSandboxFilter { label_selector: labels(&[("app", "web")]), ..Default::default() }, &both),
            (
                PodSandboxFilter { label_selector: labels(&[("app", "web"), ("tier", "back")]), ..Default::default() },
                &both[1..],
            ),
            (PodSandboxFilter { label_selector: labels(&[("app", "other")]), ..Default::default() }, &[]),
            (PodSandboxFilter { state: state(PodSandboxState::SandboxReady), ..Default::default() }, &both[..1]),
            (PodSandboxFilter { state: state(PodSandboxState::SandboxNotready), ..Default::default() }, &both[1..]),
            (
                PodSandboxFilter {
                    id: a.clone(),
                    state: state(PodSandboxState::SandboxNotready),
                    ..Default::default()
                },
                &[],
            ),
        ] {
            let mut found: Vec<String> = list(node, filter.clone()).await?.into_iter().map(|item| item.id).collect();
            let mut expected = expected.to_vec();
            found.sort();
            expected.sort();
            assert_eq!(found, expected, "{filter:?}");
        }
        node.remove_pod(&a).await?;
        node.remove_pod(&b).await?;
        Ok(())
    });
}

#[test]
fn a_retry_gets_the_same_pod_and_another_config_is_refused() {
    e2e_cri(async |node| {
        let pod = node.pod("retry");
        let first = node.run_pod(&pod).await?;
        assert_eq!(node.run_pod(&pod).await?, first, "an equal config joins");
        let other = pod.clone().label("app", "other");
        assert_failed(node.run_pod(&other).await, Code::AlreadyExists, &["retry", "labels"]);
        node.remove_pod(&first).await?;
        Ok(())
    });
}

#[test]
fn calls_for_one_pod_at_the_same_time_make_one_pod() {
    e2e_cri(async |node| {
        let pod = node.pod("together");
        let request = cri::RunPodSandboxRequest { config: Some(pod.config.clone()), runtime_handler: String::new() };
        let calls = (0..8).map(|_| {
            let (cri, request) = (node.cri(), request.clone());
            async move { cri.run_pod_sandbox(request).await }
        });
        let ids = futures::future::try_join_all(calls).await?;
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        assert_eq!(list(node, PodSandboxFilter::default()).await?.len(), 1);
        node.note_sandbox(&ids[0].pod_sandbox_id);
        node.remove_pod(&ids[0].pod_sandbox_id).await?;
        Ok(())
    });
}

#[test]
fn a_client_that_leaves_does_not_leave_half_a_pod() {
    e2e_cri(async |node| {
        // Given up at ever later moments, each retried: always one whole pod.
        for round in 0..12_u64 {
            let pod = node.pod(&format!("leaves-{round}"));
            let request =
                cri::RunPodSandboxRequest { config: Some(pod.config.clone()), runtime_handler: String::new() };
            let _ = tokio::time::timeout(Duration::from_millis(round * 5), node.cri().run_pod_sandbox(request)).await;
            let id = node.run_pod(&pod).await?;
            assert_eq!(node.cri().sandbox(&id).await?.state(), PodSandboxState::SandboxReady);
            assert_eq!(list(node, PodSandboxFilter::default()).await?.len(), 1);
            node.remove_pod(&id).await?;
        }
        Ok(())
    });
}

#[test]
fn a_new_pod_of_the_same_name_is_a_new_pod() {
    e2e_cri(async |node| {
        let pod = node.pod("again");
        let first = node.run_pod(&pod).await?;
        node.cri().stop_pod_sandbox(&first).await?;
        // The kubelet makes the next attempt while the old one is still there, not ready.
        let second = node.run_pod(&pod.clone().attempt(1)).await?;
        assert_ne!(first, second);
        assert_eq!(node.cri().sandbox(&second).await?.metadata.context("metadata")?.attempt, 1);
        node.remove_pod(&first).await?;
        node.remove_pod(&second).await?;
        let third = node.run_pod(&pod).await?;
        assert!(third != first && third != second);
        node.remove_pod(&third).await?;
        Ok(())
    });
}

#[test]
fn many_pods_at_once_have_their_own_addresses() {
    e2e_cri(async |node| {
        let pods: Vec<_> = (0..10).map(|number| node.pod(&format!("many-{number}"))).collect();
        let calls = pods.iter().map(|pod| {
            let cri = node.cri();
            let request =
                cri::RunPodSandboxRequest { config: Some(pod.config.clone()), runtime_handler: String::new() };
            async move { cri.run_pod_sandbox(request).await }
        });
        let ids: Vec<String> =
            futures::future::try_join_all(calls).await?.into_iter().map(|response| response.pod_sandbox_id).collect();
        let mut addresses = Vec::new();
        for id in &ids {
            node.note_sandbox(id);
            addresses.push(node.address(id).await?);
        }
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses.len(), 10);
        futures::future::try_join_all(ids.iter().map(|id| node.remove_pod(id))).await?;
        Ok(())
    });
}

#[test]
fn removing_a_running_pod_removes_its_containers() {
    e2e_cri(async |node| {
        let pod = node.pod("force");
        let id = node.run_pod(&pod).await?;
        let container = node.start(&id, &pod, &Container::new("c", IMAGE).sh("trap '' TERM; sleep 1000")).await?;
        node.cri().remove_pod_sandbox(&id).await?;
        assert_failed(node.cri().container(&container).await, Code::NotFound, &[]);
        Ok(())
    });
}

#[test]
fn stopping_a_pod_kills_its_containers_at_once() {
    e2e_cri(async |node| {
        let pod = node.pod("kill");
        let id = node.run_pod(&pod).await?;
        let container = node.start(&id, &pod, &Container::new("c", IMAGE).command(&["/bin/probe", "signals"])).await?;
        node.wait_log(&container, "waiting").await?;
        node.cri().stop_pod_sandbox(&id).await?;
        let status = node.cri().container(&container).await?;
        assert_eq!((status.state(), status.exit_code), (cri::ContainerState::ContainerExited, 137));
        assert_failed(node.create(&id, &pod, &Container::new("late", IMAGE)).await, Code::FailedPrecondition, &[]);
        node.cri().remove_pod_sandbox(&id).await?;
        Ok(())
    });
}

#[test]
fn a_pod_without_what_identifies_it_is_refused() {
    e2e_cri(async |node| {
        let mut pod = node.pod("nameless");
        pod.config.metadata = None;
        assert_failed(node.run_pod(&pod).await, Code::InvalidArgument, &["metadata"]);
        let nothing = cri::RunPodSandboxRequest { config: None, runtime_handler: String::new() };
        assert_failed(node.cri().run_pod_sandbox(nothing).await, Code::InvalidArgument, &["config"]);
        let mut pod = node.pod("nameless");
        pod.config.metadata.get_or_insert_default().name.clear();
        assert_failed(node.run_pod(&pod).await, Code::InvalidArgument, &["name"]);
        assert!(list(node, PodSandboxFilter::default()).await?.is_empty());
        Ok(())
    });
}

// proves: RunPodSandboxRequest.runtime_handler
#[test]
fn an_unknown_runtime_handler_is_named() {
    e2e_cri(async |node| {
        let pod = node.pod("handler").handler("nonsense");
        let status = failed(node.run_pod(&pod).await);
        assert!(status.message().contains("nonsense"), "{status:?}");
        let is_ours = matches!(status.code(), Code::InvalidArgument | Code::NotFound);
        assert!(is_ours || peer::is_wanted(), "{status:?}");
        assert!(list(node, PodSandboxFilter::default()).await?.is_empty());
        Ok(())
    });
}

// proves: PodSandboxConfig.{hostname, dns_config, linux}, DNSConfig.{servers, searches, options}
// proves: LinuxPodSandboxConfig.sysctls
#[test]
fn hostname_names_files_and_sysctls_are_the_pods() {
    e2e_cri(async |node| {
        let mut pod = node.pod("files");
        pod.config.hostname = "a-host-name".to_owned();
        pod.config.dns_config = Some(DnsConfig {
            servers: vec!["10.96.0.10".to_owned(), "10.96.0.11".to_owned()],
            searches: vec!["e2e.svc.cluster.local".to_owned(), "cluster.local".to_owned()],
            options: vec!["ndots:5".to_owned()],
        });
        pod.linux().sysctls.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "1024".to_owned());
        pod.linux().sysctls.insert("kernel.shm_rmid_forced".to_owned(), "1".to_owned());
        let id = node.run_pod(&pod).await?;
        let c = node.start(&id, &pod, &Container::new("c", IMAGE).sh("sleep 1000")).await?;
        assert_eq!(node.sh(&c, "hostname").await?, "a-host-name");
        assert_eq!(node.sh(&c, "cat /etc/hostname").await?, "a-host-name");
        assert_eq!(node.sh(&c, "echo $HOSTNAME").await?, "a-host-name");
        assert_eq!(
            node.sh(&c, "cat /etc/resolv.conf").await?,
            "search e2e.svc.cluster.local cluster.local\nnameserver 10.96.0.10\nnameserver 10.96.0.11\noptions ndots:5"
        );
        let hosts = node.sh(&c, "cat /etc/hosts").await?;
        assert!(hosts.contains("127.0.0.1") && hosts.contains("localhost"), "{hosts}");
        assert_eq!(node.sh(&c, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start").await?, "1024");
        assert_eq!(node.sh(&c, "cat /proc/sys/kernel/shm_rmid_forced").await?, "1");
        node.remove_pod(&id).await?;

        let plain = node.pod("defaults");
        let id = node.run_pod(&plain).await?;
        let c = node.start(&id, &plain, &Container::new("c", IMAGE).sh("sleep 1000")).await?;
        assert_eq!(node.sh(&c, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start").await?, "0");
        assert_eq!(node.sh(&c, "cat /proc/sys/net/ipv4/ping_group_range").await?, "0\t2147483647");
        let host = std::fs::read_to_string("/etc/resolv.conf")?;
        assert_eq!(node.sh(&c, "cat /etc/resolv.conf").await?, host.trim_end_matches('\n'));
        node.remove_pod(&id).await?;
        Ok(())
    });
}

// proves: PodSandboxStatusRequest.verbose, PodSandboxStatusResponse.info
#[test]
fn verbose_status_carries_what_tools_read() {
    e2e(async |node| {
        let pod = node.pod("verbose");
        let id = node.run_pod(&pod).await?;
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: true };
        let info = node.cri().pod_sandbox_status(request).await?.info;
        let info: serde_json::Value = serde_json::from_str(info.get("info").context("info")?)?;
        let pid = info["pid"].as_u64().context("pid")?;
        assert!(std::path::Path::new(&format!("/proc/{pid}/ns/net")).exists());
        let netns = format!("/run/netns/vaina-{id}");
        assert!(info.to_string().contains(&netns), "no netns path: {info}");
        assert!(std::path::Path::new(&netns).exists());
        node.remove_pod(&id).await?;
        wait::blocking("the pin is gone", wait::LIMIT, || (!std::path::Path::new(&netns).exists()).then_some(()))?;
        Ok(())
    });
}
