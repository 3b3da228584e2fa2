//! Fields of containers and images: what lists and statuses say, and limits that few clients set.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use tonic::Code;
use vaina_proto::cri::{
    self, ContainerState, ImageStatusRequest, LinuxContainerResources, ListContainersRequest, ListImagesRequest,
    SecurityProfile, UpdateContainerResourcesRequest, security_profile::ProfileType,
};
use vaina_tests::{
    build::Container,
    node::{IMAGE, Options, e2e, e2e_with},
};

use crate::failed;

// proves: Container.{id, pod_sandbox_id, metadata, image, image_ref, state, created_at, labels, annotations, image_id}
// proves: ContainerStatus.{id, metadata, state, image, image_id, labels, annotations}
// proves: ContainerConfig.{metadata, image, labels, annotations}, ContainerMetadata.{name, attempt}
// proves: ImageSpec.{image, annotations, user_specified_image, runtime_handler}
#[test]
fn lists_and_statuses_say_the_same_of_a_container() {
    e2e(async |node| {
        let image = node.cri().image(IMAGE).await?.context("the image")?;
        let pod = node.pod("told").host_network();
        let sandbox = node.run_pod(&pod).await?;
        let mut config = Container::new("c", &image.id).sh("sleep 1000").attempt(2);
        config = config.label("app", "web").annotation("note", "a b\"c\n");
        let asked = config.config.image.get_or_insert_default();
        asked.user_specified_image = IMAGE.to_owned();
        asked.annotations.insert("of".to_owned(), "the image".to_owned());
        "crun".clone_into(&mut asked.runtime_handler);
        let id = node.create(&sandbox, &pod, &config).await?;
        // By the name that people gave it, with all that was said of it.
        let told = Some(cri::ImageSpec { image: IMAGE.to_owned(), ..config.config.image.clone().unwrap_or_default() });
        for state in
            [ContainerState::ContainerCreated, ContainerState::ContainerRunning, ContainerState::ContainerExited]
        {
            match state {
                ContainerState::ContainerRunning => node.cri().start_container(&id).await?,
                ContainerState::ContainerExited => node.cri().stop_container(&id, 0).await?,
                _ => {}
            }
            let status = node.cri().container(&id).await?;
            let listed = node.cri().list_containers(ListContainersRequest::default()).await?.containers;
            let expected = cri::Container {
                id: id.clone(),
                pod_sandbox_id: sandbox.clone(),
                metadata: config.config.metadata.clone(),
                image: told.clone(),
                image_ref: image.id.clone(),
                image_id: image.id.clone(),
                state: state.into(),
                created_at: status.created_at,
                labels: config.config.labels.clone(),
                annotations: config.config.annotations.clone(),
            };
            assert_eq!(listed, [expected]);
            assert_eq!((status.id.as_str(), status.state(), &status.image), (id.as_str(), state, &told));
            assert_eq!((&status.image_id, &status.metadata), (&image.id, &config.config.metadata));
            assert_eq!((&status.labels, &status.annotations), (&config.config.labels, &config.config.annotations));
        }
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

/// A file of a container's group: below its v1 controller, or in the one tree of v2.
fn file(parent: &str, id: &str, v1: &str, v2: &str) -> Result<String> {
    let root = Path::new("/sys/fs/cgroup");
    let group = Path::new(parent.trim_start_matches('/')).join(id);
    let path = if root.join("cgroup.controllers").exists() {
        root.join(group).join(v2)
    } else {
        let (controller, file) = v1.split_once('/').context("controller and file")?;
        root.join(controller).join(group).join(file)
    };
    Ok(fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?.trim().to_owned())
}

// proves: LinuxContainerResources.{cpu_period, cpu_quota, cpuset_cpus, cpuset_mems, memory_swap_limit_in_bytes}
#[test]
fn periods_nodes_of_memory_and_swap_are_limited() {
    e2e(async |node| {
        let is_v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        for handler in ["", "crun", "runc"] {
            let pod = node.pod(&format!("limits{handler}")).handler(handler).host_network();
            let parent = pod.config.linux.as_ref().map(|linux| linux.cgroup_parent.clone()).unwrap_or_default();
            let sandbox = node.run_pod(&pod).await?;
            let mut config = Container::new("c", IMAGE).sh("sleep 1000").memory_limit(64 << 20);
            *config.resources() = LinuxContainerResources {
                cpu_period: 50_000,
                cpu_quota: 20_000,
                cpuset_cpus: "0".to_owned(),
                cpuset_mems: "0".to_owned(),
                memory_limit_in_bytes: 64 << 20,
                memory_swap_limit_in_bytes: 96 << 20,
                ..Default::default()
            };
            let id = node.start(&sandbox, &pod, &config).await?;
            let period = file(&parent, &id, "cpu/cpu.cfs_period_us", "cpu.max")?;
            assert_eq!(period, if is_v2 { "20000 50000" } else { "50000" }, "{handler:?}");
            assert_eq!(file(&parent, &id, "cpuset/cpuset.mems", "cpuset.mems")?, "0", "{handler:?}");
            let swap = file(&parent, &id, "memory/memory.memsw.limit_in_bytes", "memory.swap.max")?;
            // The sum of both on v1, swap alone on v2.
            assert_eq!(swap, if is_v2 { 32 << 20 } else { 96 << 20 }.to_string(), "{handler:?}");
            // No machine has this node of memory: who asks for it in earnest is told so.
            let mut nowhere = Container::new("nowhere", IMAGE).sh("sleep 1000");
            "63".clone_into(&mut nowhere.resources().cpuset_mems);
            let nowhere = node.create(&sandbox, &pod, &nowhere).await?;
            failed(node.cri().start_container(&nowhere).await);
            let linux = Some(LinuxContainerResources { cpuset_mems: "63".to_owned(), ..Default::default() });
            let request = UpdateContainerResourcesRequest { container_id: id.clone(), linux, ..Default::default() };
            failed(node.cri().update_container_resources(request).await);
            node.remove_pod(&sandbox).await?;
        }
        Ok(())
    });
}

// proves: Image.{pinned, spec}, ImageStatusResponse.info
#[test]
fn a_pinned_image_says_so_and_each_has_a_spec() {
    let config = Some("[image]\npinned = ['vaina.test/pinned:*']\n".to_owned());
    e2e_with(Options { config, ..Options::default() }, async |node| {
        let base = node.cri().image(IMAGE).await?.context("the image")?;
        ensure!(!base.pinned, "{base:?}");
        assert_eq!(base.spec.as_ref().context("spec")?.image, base.id, "what containers are made of");
        node.import_base_as("vaina.test/pinned:1")?;
        let pinned = node.cri().image("vaina.test/pinned:1").await?.context("the image")?;
        ensure!(pinned.pinned, "{pinned:?}");
        assert_eq!(node.cri().list_images(ListImagesRequest::default()).await?.images, std::slice::from_ref(&pinned));
        let request = ImageStatusRequest { image: pinned.spec, verbose: false };
        ensure!(node.cri().image_status(request).await?.info.is_empty(), "nobody asked");
        node.cri().remove_image("vaina.test/pinned:1").await?;
        ensure!(!node.cri().image(IMAGE).await?.context("the image")?.pinned, "the name was pinned");
        Ok(())
    });
}

// proves: LinuxContainerSecurityContext.{apparmor, apparmor_profile}
#[test]
fn a_profile_of_apparmor_that_is_not_there_is_not_forgotten() {
    e2e(async |node| {
        let pod = node.pod("apparmor").host_network();
        let sandbox = node.run_pod(&pod).await?;
        let profile = "vaina-no-such-profile";
        let mut named = Container::new("named", IMAGE).sh("sleep 1000");
        let profile_type = ProfileType::Localhost.into();
        named.security().apparmor = Some(SecurityProfile { profile_type, localhost_ref: profile.to_owned() });
        let mut old = Container::new("old", IMAGE).sh("sleep 1000");
        #[expect(deprecated, reason = "old clients know no other")]
        format!("localhost/{profile}").clone_into(&mut old.security().apparmor_profile);
        for container in [named, old] {
            let status = failed(node.start(&sandbox, &pod, &container).await);
            if !Path::new("/sys/module/apparmor").exists() {
                assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
                ensure!(status.message().contains(profile), "{status:?}");
            }
        }
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}
