//! Builders of pod and container configs: short where a test does not care, whole where it does (the config is public).

use vaina_proto::cri::{
    Capability, ContainerConfig, ContainerMetadata, ImageSpec, Int64Value, KeyValue, LinuxContainerConfig,
    LinuxContainerResources, LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, Mount,
    MountPropagation, NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata, PortMapping, Protocol,
    Signal,
};

/// A pod to be run.
#[derive(Debug, Clone)]
pub struct Pod {
    /// What goes into RunPodSandbox and CreateContainer.
    pub config: PodSandboxConfig,
    /// Name of the RuntimeClass handler; empty is the default.
    pub handler: String,
}

impl Pod {
    /// A pod with its own network, IPC and UTS namespaces and a PID namespace per container.
    pub fn new(name: &str) -> Self {
        let metadata = PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("uid-of-{name}"),
            namespace: "e2e".to_owned(),
            attempt: 0,
        };
        let options = NamespaceOption {
            network: NamespaceMode::Pod.into(),
            pid: NamespaceMode::Container.into(),
            ipc: NamespaceMode::Pod.into(),
            ..Default::default()
        };
        let linux = LinuxPodSandboxConfig {
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(options),
                ..Default::default()
            }),
            ..Default::default()
        };
        let config = PodSandboxConfig {
            metadata: Some(metadata),
            hostname: name.to_owned(),
            linux: Some(linux),
            ..Default::default()
        };
        Self { config, handler: String::new() }
    }

    /// The pod's namespace options.
    pub fn options(&mut self) -> &mut NamespaceOption {
        self.security().namespace_options.get_or_insert_default()
    }

    /// The pod's security context.
    pub fn security(&mut self) -> &mut LinuxSandboxSecurityContext {
        self.linux().security_context.get_or_insert_default()
    }

    /// The Linux part of the config.
    pub fn linux(&mut self) -> &mut LinuxPodSandboxConfig {
        self.config.linux.get_or_insert_default()
    }

    /// Shares the node's network namespace, and has no hostname of its own.
    pub fn host_network(mut self) -> Self {
        self.options().network = NamespaceMode::Node.into();
        self.config.hostname.clear();
        self
    }

    /// Shares the node's IPC namespace.
    pub fn host_ipc(mut self) -> Self {
        self.options().ipc = NamespaceMode::Node.into();
        self
    }

    /// One PID namespace per container, per pod, or the node's.
    pub fn pid(mut self, mode: NamespaceMode) -> Self {
        self.options().pid = mode.into();
        self
    }

    /// May hold privileged containers.
    pub fn privileged(mut self) -> Self {
        self.security().privileged = true;
        self
    }

    /// Forwards a TCP port of the node.
    pub fn port(mut self, host: i32, container: i32) -> Self {
        self.config.port_mappings.push(PortMapping {
            protocol: Protocol::Tcp.into(),
            container_port: container,
            host_port: host,
            host_ip: String::new(),
        });
        self
    }

    /// Adds a label.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.config.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Adds an annotation.
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.config.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Which try at this pod it is, and so part of its key.
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.config.metadata.get_or_insert_default().attempt = attempt;
        self
    }

    /// Chooses a RuntimeClass handler.
    pub fn handler(mut self, handler: &str) -> Self {
        handler.clone_into(&mut self.handler);
        self
    }

    /// The pod's name.
    pub fn name(&self) -> &str {
        self.config.metadata.as_ref().map_or("", |metadata| &metadata.name)
    }
}

/// A container to be created.
#[derive(Debug, Clone)]
pub struct Container {
    /// What goes into CreateContainer.
    pub config: ContainerConfig,
}

impl Container {
    /// A container of an image, which runs the image's own command.
    pub fn new(name: &str, image: &str) -> Self {
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(ImageSpec {
                image: image.to_owned(),
                user_specified_image: image.to_owned(),
                ..Default::default()
            }),
            log_path: format!("{name}/0.log"),
            ..Default::default()
        };
        Self { config }
    }

    /// Replaces the entrypoint.
    pub fn command(mut self, words: &[&str]) -> Self {
        self.config.command = words.iter().map(ToString::to_string).collect();
        self
    }

    /// Replaces the arguments.
    pub fn args(mut self, words: &[&str]) -> Self {
        self.config.args = words.iter().map(ToString::to_string).collect();
        self
    }

    /// Runs a shell script.
    pub fn sh(self, script: &str) -> Self {
        self.command(&["/bin/sh", "-c", script])
    }

    /// Adds an environment variable.
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.config.envs.push(KeyValue { key: key.to_owned(), value: value.into() });
        self
    }

    /// Sets the working directory.
    pub fn working_dir(mut self, path: &str) -> Self {
        path.clone_into(&mut self.config.working_dir);
        self
    }

    /// Mounts a host path, writable, without propagation.
    pub fn mount(self, host: &std::path::Path, container: &str) -> Self {
        self.mount_with(host, container, false, MountPropagation::PropagationPrivate)
    }

    /// Mounts a host path.
    pub fn mount_with(
        mut self,
        host: &std::path::Path,
        container: &str,
        readonly: bool,
        propagation: MountPropagation,
    ) -> Self {
        self.config.mounts.push(Mount {
            container_path: container.to_owned(),
            host_path: host.to_string_lossy().into_owned(),
            readonly,
            propagation: propagation.into(),
            ..Default::default()
        });
        self
    }

    /// The container's security context.
    pub fn security(&mut self) -> &mut LinuxContainerSecurityContext {
        self.config.linux.get_or_insert_with(LinuxContainerConfig::default).security_context.get_or_insert_default()
    }

    /// The container's resources.
    pub fn resources(&mut self) -> &mut LinuxContainerResources {
        self.config.linux.get_or_insert_with(LinuxContainerConfig::default).resources.get_or_insert_default()
    }

    /// Runs as this user id.
    pub fn user(mut self, uid: i64) -> Self {
        self.security().run_as_user = Some(Int64Value { value: uid });
        self
    }

    /// Runs with all privileges.
    pub fn privileged(mut self) -> Self {
        self.security().privileged = true;
        self
    }

    /// Adds and drops capabilities.
    pub fn capabilities(mut self, add: &[&str], drop: &[&str]) -> Self {
        self.security().capabilities = Some(Capability {
            add_capabilities: add.iter().map(ToString::to_string).collect(),
            drop_capabilities: drop.iter().map(ToString::to_string).collect(),
            add_ambient_capabilities: Vec::new(),
        });
        self
    }

    /// Makes the root file system read-only.
    pub fn readonly(mut self) -> Self {
        self.security().readonly_rootfs = true;
        self
    }

    /// Limits memory, and swap with it.
    pub fn memory_limit(mut self, bytes: i64) -> Self {
        self.resources().memory_limit_in_bytes = bytes;
        self
    }

    /// Overrides the image's stop signal.
    pub fn stop_signal(mut self, signal: Signal) -> Self {
        self.config.stop_signal = signal.into();
        self
    }

    /// Which try at this container it is.
    pub fn attempt(mut self, attempt: u32) -> Self {
        let metadata = self.config.metadata.get_or_insert_default();
        metadata.attempt = attempt;
        self.config.log_path = format!("{}/{attempt}.log", metadata.name);
        self
    }

    /// Adds a label.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.config.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Adds an annotation.
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.config.annotations.insert(key.to_owned(), value.to_owned());
        self
    }
}
