//! What is decided of requests before anything is done, in one function for the fuzz target `cri`. Not a part of the daemon.

use std::path::{Path, PathBuf};

use oci_spec::{
    image::{ConfigBuilder, ImageConfiguration, ImageConfigurationBuilder, RootFsBuilder},
    runtime::Spec,
};
use prost::Message;
use vaina_proto::cri::{
    ContainerConfig, CreateContainerRequest, ExecRequest, LinuxContainerResources, PodSandboxConfig,
    RunPodSandboxRequest, UpdateContainerResourcesRequest, UpdatePodSandboxResourcesRequest,
};

use crate::{
    container::{
        self, Container, ContainerImage, Origin, image_of, requested_devices,
        spec::{self, Host, HostDevice, Input, PidNamespace, user::resolve},
    },
    id::{ContainerId, ImageId, SandboxId},
    info,
    sandbox::{self, PodFiles, Sandbox},
    streaming,
};

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102::/:/bin/false\n";
const GROUP: &str = "root:x:0:\nlogs:x:200:other,web\n";

/// Decodes a request whose kind is in the first byte and what the host is like in the second, and does with it all that
/// needs no host. Whatever it is, the answer is an error or something sound.
pub fn request(bytes: &[u8]) {
    let [kind, host, message @ ..] = bytes else { return };
    let host = self::host(*host);
    match kind % 5 {
        0 => decode(message, |request: RunPodSandboxRequest| {
            drop(pod(request.config.unwrap_or_default(), &request.runtime_handler));
        }),
        1 => decode(message, |request: CreateContainerRequest| {
            let pod_config = request.sandbox_config.unwrap_or_default();
            if let Some(sandbox) = pod(pod_config, "") {
                drop(container(&sandbox, request.config.unwrap_or_default(), host));
            }
        }),
        2 => decode(message, |request: UpdateContainerResourcesRequest| {
            limits(&request.linux.unwrap_or_default(), &host);
        }),
        3 => decode(message, |request: UpdatePodSandboxResourcesRequest| {
            limits(&request.resources.unwrap_or_default(), &host);
            limits(&request.overhead.unwrap_or_default(), &host);
        }),
        _ => decode(message, |request: ExecRequest| drop(streaming::check_exec(&request))),
    }
}

/// What was understood means the same once it was recorded and read again.
fn decode<M: Message + Default + PartialEq>(bytes: &[u8], then: impl FnOnce(M)) {
    let Ok(message) = M::decode(bytes) else { return };
    assert!(M::decode(&message.encode_to_vec()[..]).as_ref() == Ok(&message), "a record is what was recorded");
    then(message);
}

fn pod(config: PodSandboxConfig, handler: &str) -> Option<Sandbox> {
    info::message("PodSandboxConfig", &config);
    assert_eq!(sandbox::difference(&config, &config), None);
    sandbox::check(&config).ok()?;
    let kept = sandbox::Kept { addresses: vec![[10, 88, 0, 2].into()], ..Default::default() };
    let sandbox = Sandbox::new(SandboxId::new("p"), config, handler.to_owned(), 1, kept);
    sandbox::steps::sysctls(&sandbox);
    sandbox::steps::attachment(&sandbox);
    let (group, _) = sandbox.cgroup("/vaina");
    assert!(
        group.is_absolute() && !group.components().any(|part| part == std::path::Component::ParentDir),
        "{group:?}"
    );
    Some(sandbox)
}

fn container(sandbox: &Sandbox, config: ContainerConfig, host: Host) -> Option<Spec> {
    info::message("ContainerConfig", &config);
    assert_eq!(container::difference(&config, &config), None);
    let _devices = requested_devices(&config);
    container::check_log_path(&config.log_path).ok()?;
    container::check_mappings(sandbox, &config).ok()?;
    let image = image();
    let stop_signal = container::stop_signal(&config, &image).ok()?;
    let security = config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default();
    let user = resolve(&security, &image, PASSWD, GROUP).ok()?;
    let images = config.mounts.iter().filter(|mount| image_of(mount).is_some());
    let images: Vec<PathBuf> = images.map(|_| "/bundle/volumes/0".into()).collect();
    let (files, pin) = (PodFiles::new(Path::new("/run/vaina/pods/p")), PathBuf::from("/run/vaina/pods/p/ns/user"));
    let asked = config.devices.iter().map(|device| vec![self::device(&device.host_path)]).collect();
    let input = Input {
        id: "c",
        sandbox_id: "p",
        pod: &sandbox.config,
        container: &config,
        image: &image,
        user: &user,
        network: sandbox.netns().as_deref().map(|_| Path::new("/run/netns/vaina-p")),
        user_namespace: sandbox.user_namespace().map(|ids| (ids, pin.as_path())),
        ipc: Some(&files.ipc),
        uts: Some(&files.uts),
        pid: PidNamespace::Own,
        files: &files,
        volumes: &[("/var/lib/vaina/containers/c/volumes/0".into(), "/data".into())],
        image_volumes: &images,
        bundle: Path::new("/run/vaina/containers/c"),
        cdi: &Default::default(),
        cgroup: Path::new("/vaina/p/c"),
        host: &Host { asked_devices: asked, ..host },
    };
    let spec = spec::build(&input).ok()?;
    let text = serde_json::to_vec(&spec).unwrap_or_default();
    assert!(serde_json::from_slice::<Spec>(&text).is_ok_and(|read| read == spec), "a bundle is what was written");
    let origin = Origin {
        id: ContainerId::new("c"),
        sandbox: std::sync::Arc::new(Sandbox::new(
            SandboxId::new("p"),
            sandbox.config.clone(),
            String::new(),
            1,
            Default::default(),
        )),
        config,
        image: ContainerImage { id: ImageId::new("i"), name: "n".into(), reference: "r".into() },
        volume_images: Vec::new(),
        stop_signal,
        created_at: 1,
    };
    let container = Container::new(origin, container::Kept::default());
    assert!(container::message(&container).created_at > 0);
    if let Some(log) = container.log_path() {
        assert!(log.starts_with(&container.sandbox.config.log_directory), "{log:?}");
    }
    Some(spec)
}

fn limits(resources: &LinuxContainerResources, host: &Host) {
    let _score = spec::check_oom_score(resources.oom_score_adj);
    if let Ok(limits) = spec::limits(resources, host) {
        // What an OCI runtime is given on its standard input.
        let text = serde_json::Value::Object(limits);
        assert!(serde_json::from_value::<oci_spec::runtime::LinuxResources>(text.clone()).is_ok(), "{text}");
    }
}

fn host(bits: u8) -> Host {
    let has = |bit: u8| bits & (1 << bit) != 0;
    Host {
        cgroup_v2: has(0),
        lowest_oom_score_adj: has(1).then_some(-500),
        capabilities: if has(2) { spec::ALL_CAPABILITIES.to_vec() } else { vec!["CAP_KILL"] },
        devices: vec![device("/dev/kvm")],
        has_apparmor: has(3),
        hostname: "node".to_owned(),
        has_swap_accounting: has(4),
        huge_pages: vec!["2MB".to_owned()],
        takes_any_environment: has(5),
        makes_recursive_read_only: has(6),
        ..Host::default()
    }
}

fn device(path: &str) -> HostDevice {
    HostDevice { path: path.to_owned(), is_block: false, major: 10, minor: 232, mode: 0o660, uid: 0, gid: 104 }
}

/// Like most: a command, variables, a user, a signal.
fn image() -> ImageConfiguration {
    let config = ConfigBuilder::default()
        .entrypoint(vec!["/entry".to_owned()])
        .env(vec!["A=image".to_owned(), "PATH=/bin".to_owned()])
        .user("web:logs")
        .stop_signal("SIGQUIT")
        .build()
        .unwrap_or_default();
    let rootfs = RootFsBuilder::default().typ("layers").diff_ids(Vec::new()).build().unwrap_or_default();
    ImageConfigurationBuilder::default()
        .os("linux")
        .architecture("amd64")
        .config(config)
        .rootfs(rootfs)
        .build()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::{collection::vec, prelude::*, sample::Index, test_runner::TestRunner};

    use super::*;

    /// One change of a request that was good: bytes that others take the place of.
    fn change(bytes: &mut Vec<u8>, at: Index, removed: usize, added: &[u8]) {
        let start = at.index(bytes.len() + 1);
        let end = (start + removed).min(bytes.len());
        bytes.splice(start..end, added.iter().copied());
    }

    #[test]
    fn requests_that_are_almost_good_are_answered() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/cri");
        let mut seeds: Vec<Vec<u8>> =
            fs::read_dir(corpus).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect();
        assert!(seeds.len() > 8);
        seeds.sort();
        seeds.iter().for_each(|seed| request(seed));
        let changes = vec((any::<Index>(), 0..4_usize, vec(any::<u8>(), 0..4)), 1..6);
        let cases = (prop::sample::select(seeds), changes);
        let mut runner =
            TestRunner::new(ProptestConfig { cases: 4096, failure_persistence: None, ..Default::default() });
        let run = runner.run(&cases, |(mut bytes, changes)| {
            for (at, removed, added) in changes {
                change(&mut bytes, at, removed, &added);
            }
            request(&bytes);
            Ok(())
        });
        run.unwrap();
    }

    /// A seed that is refused at the first check tries nothing.
    #[test]
    fn the_corpus_gets_to_the_end() {
        let read =
            |name: &str| fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/cri").join(name)).unwrap();
        // The one with a named user has a profile that only a host would have.
        for name in ["container", "container-privileged", "container-user-namespace"] {
            let bytes = read(name);
            let request = CreateContainerRequest::decode(&bytes[2..]).unwrap();
            let sandbox = pod(request.sandbox_config.unwrap(), "").unwrap();
            assert!(container(&sandbox, request.config.unwrap(), host(bytes[1])).is_some(), "{name}");
        }
        let bytes = read("sandbox");
        let request = RunPodSandboxRequest::decode(&bytes[2..]).unwrap();
        assert!(pod(request.config.unwrap(), "").is_some());
    }
}
