//! Fields of pod sandboxes: what tells pods apart, and what lists and statuses say of one.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use tonic::Code;
use vaina_proto::cri::{
    self, CheckpointContainerRequest, CheckpointPodRequest, LinuxContainerResources, ListPodSandboxRequest,
    NamespaceMode, PodSandboxState, PodSandboxStatusRequest, PodSandboxStatusResponse, PortMapping, Protocol,
    RestorePodRequest, StatusRequest, UpdatePodSandboxResourcesRequest,
};
use vaina_tests::{
    build::{Container, Pod},
    node::{IMAGE, Node, Options, e2e, e2e_with, run},
};

use crate::assert_failed;

async fn whole(node: &Node, sandbox: &str) -> Result<PodSandboxStatusResponse> {
    let request = PodSandboxStatusRequest { pod_sandbox_id: sandbox.to_owned(), verbose: false };
    Ok(node.cri().pod_sandbox_status(request).await?)
}

// proves: PodSandboxConfig.metadata, PodSandboxMetadata.{name, uid, namespace, attempt}, PodSandboxStatus.metadata
#[test]
fn each_part_of_the_key_makes_another_pod() {
    e2e(async |node| {
        let changes: [fn(&mut cri::PodSandboxMetadata); 5] = [
            |_| {},
            |metadata| metadata.name.push('x'),
            |metadata| metadata.uid.push('x'),
            |metadata| metadata.namespace.push('x'),
            |metadata| metadata.attempt += 1,
        ];
        let mut ids = Vec::new();
        for change in changes {
            let mut pod = node.pod("key").host_network();
            change(pod.config.metadata.get_or_insert_default());
            let id = node.run_pod(&pod).await?;
            ensure!(!ids.contains(&id), "{:?} is a pod that was there", pod.config.metadata);
            assert_eq!(node.cri().sandbox(&id).await?.metadata, pod.config.metadata);
            ids.push(id);
        }
        for id in ids {
            node.remove_pod(&id).await?;
        }
        Ok(())
    });
}

// proves: PodSandbox.{id, metadata, state, created_at, labels, annotations, runtime_handler}
// proves: PodSandboxStatus.{id, state, created_at, linux, labels, annotations, runtime_handler}
// proves: LinuxPodSandboxStatus.namespaces, Namespace.options, NamespaceOption.{network, pid, ipc}
// proves: PodSandboxStatusResponse.{containers_statuses, timestamp}
#[test]
fn lists_and_statuses_say_the_same_of_a_pod() {
    e2e(async |node| {
        let pod = node.pod("told").handler("crun").label("app", "web").annotation("note", "a b\"c\n");
        let mut pod = pod.host_network().host_ipc().pid(NamespaceMode::Pod).attempt(3);
        let id = node.run_pod(&pod).await?;
        let container = node.start(&id, &pod, &Container::new("c", IMAGE).sh("sleep 1000")).await?;
        let first = whole(node, &id).await?;
        let status = first.status.context("status")?;
        let options = status.linux.clone().context("linux")?.namespaces.context("namespaces")?.options;
        assert_eq!(options.as_ref(), Some(&*pod.options()), "a kubelet starts a pod anew if they differ");
        assert_eq!(first.containers_statuses, [node.cri().container(&container).await?]);
        ensure!(first.timestamp > status.created_at, "{} {}", first.timestamp, status.created_at);
        ensure!(whole(node, &id).await?.timestamp > first.timestamp, "a later answer is newer");

        for state in [PodSandboxState::SandboxReady, PodSandboxState::SandboxNotready] {
            let listed = node.cri().list_pod_sandbox(ListPodSandboxRequest::default()).await?.items;
            let expected = cri::PodSandbox {
                id: id.clone(),
                metadata: pod.config.metadata.clone(),
                state: state.into(),
                created_at: status.created_at,
                labels: pod.config.labels.clone(),
                annotations: pod.config.annotations.clone(),
                runtime_handler: "crun".to_owned(),
            };
            assert_eq!(listed, [expected]);
            let status = node.cri().sandbox(&id).await?;
            assert_eq!((status.id.as_str(), status.state()), (id.as_str(), state));
            assert_eq!((status.runtime_handler.as_str(), status.metadata), ("crun", pod.config.metadata.clone()));
            assert_eq!(
                (status.labels, status.annotations),
                (pod.config.labels.clone(), pod.config.annotations.clone())
            );
            node.cri().stop_pod_sandbox(&id).await?;
        }
        node.cri().remove_pod_sandbox(&id).await?;
        Ok(())
    });
}

// proves: Protocol.SCTP, PortMapping.protocol
#[test]
fn a_port_of_sctp_is_forwarded_as_one() {
    e2e(async |node| {
        let mut pod = node.pod("sctp");
        let protocol = Protocol::Sctp.into();
        pod.config.port_mappings =
            vec![PortMapping { protocol, container_port: 7000, host_port: 8132, host_ip: String::new() }];
        let forwarded = || -> Result<bool> {
            let rules = run(Command::new("nft").args(["list", "ruleset"]))?;
            Ok(rules.lines().any(|line| line.contains("sctp") && line.contains("8132") && line.contains("7000")))
        };
        let id = node.run_pod(&pod).await?;
        ensure!(forwarded()?, "{}", run(Command::new("nft").args(["list", "ruleset"]))?);
        node.remove_pod(&id).await?;
        ensure!(!forwarded()?);
        Ok(())
    });
}

// proves: UpdatePodSandboxResourcesRequest.{pod_sandbox_id, overhead, resources}
#[test]
fn a_pods_overhead_counts_beside_its_resources() {
    e2e(async |node| {
        let mut pod: Pod = node.pod("overhead");
        pod.linux().cgroup_parent.clear();
        let memory = |limit| LinuxContainerResources { memory_limit_in_bytes: limit, ..Default::default() };
        pod.linux().resources = Some(memory(200 << 20));
        let id = node.run_pod(&pod).await?;
        let limit = || -> Result<String> {
            let paths = ["/sys/fs/cgroup/memory/vaina/ID/memory.limit_in_bytes", "/sys/fs/cgroup/vaina/ID/memory.max"];
            let text = paths.iter().find_map(|path| std::fs::read_to_string(path.replace("ID", &id)).ok());
            Ok(text.context("the pod has a control group")?.trim().to_owned())
        };
        assert_eq!(limit()?, (200 << 20).to_string());
        for (overhead, sum) in [(10, 310), (20, 320)] {
            let request = UpdatePodSandboxResourcesRequest {
                pod_sandbox_id: id.clone(),
                overhead: Some(memory(overhead << 20)),
                resources: Some(memory(300 << 20)),
            };
            node.cri().update_pod_sandbox_resources(request).await?;
            assert_eq!(limit()?, (sum << 20).to_string());
        }
        node.remove_pod(&id).await?;
        Ok(())
    });
}

// proves: UpdateRuntimeConfig
#[test]
fn a_pod_cidr_is_accepted_and_pods_go_on() {
    let config = Some("[network]\nsubnet = '10.77.0.0/24'\n".to_owned());
    e2e_with(Options { config, ..Options::default() }, async |node| {
        let network_config = Some(cri::NetworkConfig { pod_cidr: "10.99.0.0/24".to_owned() });
        let runtime_config = Some(cri::RuntimeConfig { network_config });
        node.cri().update_runtime_config(cri::UpdateRuntimeConfigRequest { runtime_config }).await?;
        let id = node.run_pod(&node.pod("later")).await?;
        let address = node.address(&id).await?;
        ensure!(address.starts_with("10.77.0."), "{address} is not of the configured subnet");
        node.remove_pod(&id).await?;
        Ok(())
    });
}

// proves: RuntimeHandler.features, RuntimeHandlerFeatures.recursive_read_only_mounts, StatusRequest.verbose
#[test]
fn handlers_say_that_they_make_recursively_read_only_mounts() {
    e2e(async |node| {
        let status = node.cri().status(StatusRequest::default()).await?;
        ensure!(!status.runtime_handlers.is_empty());
        // That they do is another test's matter: a kubelet refuses such pods where this is not said.
        for handler in &status.runtime_handlers {
            let features = handler.features.with_context(|| format!("features of {:?}", handler.name))?;
            ensure!(features.recursive_read_only_mounts, "{handler:?}");
        }
        ensure!(status.info.is_empty(), "nobody asked: {:?}", status.info.keys());
        Ok(())
    });
}

// refuses: CheckpointContainer, CheckpointPod, RestorePod
#[test]
fn what_is_not_served_is_unimplemented() {
    e2e(async |node| {
        let cri = node.cri();
        let request = CheckpointContainerRequest { container_id: "c".to_owned(), ..Default::default() };
        assert_failed(cri.checkpoint_container(request).await, Code::Unimplemented, &[]);
        let request = CheckpointPodRequest { pod_sandbox_id: "p".to_owned(), ..Default::default() };
        assert_failed(cri.checkpoint_pod(request).await, Code::Unimplemented, &[]);
        assert_failed(cri.restore_pod(RestorePodRequest::default()).await, Code::Unimplemented, &[]);
        Ok(())
    });
}
