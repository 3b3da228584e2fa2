//! A node for one test: a thread in mount and network namespaces of its own, with an own `/run` (tmpfs) and `/var/lib`
//! and `/var/log` (directories of the test), and a real `vaina serve` with its defaults in them.
//!
//! So tests run beside each other and beside whatever else the machine does, and the comparison of [`leak`] may look at
//! the whole mount table, all links and the whole nft ruleset. PIDs and cgroups are the machine's; what belongs to the
//! node there is found by its name. The root mount is shared, as it is on machines that run kubelets.
//!
//! A test that knows only the CRI says so by [`e2e_cri`]; a [`peer`] may then serve it in the place of ours.

use std::{
    any::Any,
    fs::{self, File},
    io::Write as _,
    os::unix::process::ExitStatusExt as _,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Once, OnceLock},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use futures::FutureExt as _;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tonic::Status;
use vaina_proto::cri;

use crate::{
    build::{Container, Pod},
    client::Cri,
    ground::{self, Ground},
    images::{self, Built, Flavour, archive, layer::Compression},
    leak::{self, Scope, Snapshot},
    peer::{self, Peer},
    require::{self, Programs},
    running::{Ended, Running},
    wait,
};

/// The image that every node has: busybox and the probe.
pub const IMAGE: &str = "vaina.test/base:1";

/// The default socket of the daemon, inside the node.
pub const SOCKET: &str = "/run/vaina/vaina.sock";

/// Where `vaina run` has the logs of pods, inside the node.
pub const LOGS: &str = "/var/log/pods";

/// How long the daemon may take to serve, and to end.
const DAEMON_LIMIT: Duration = Duration::from_secs(60);

/// How long a test may take with a peer: some wait for what a peer never does.
const PEER_LIMIT: Duration = Duration::from_secs(60);

/// How long what was removed may take to be gone: the kernel takes links away some time after their namespace.
const LEAK_LIMIT: Duration = Duration::from_secs(15);

/// How a node differs from the defaults.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Text of a configuration file; without it there is no file.
    pub config: Option<String>,
    /// The daemon is not started: the test does that, or needs none.
    pub without_daemon: bool,
    /// Environment of the node's programs, beside the test's own.
    pub environment: Vec<(String, String)>,
    /// Others than those of [`require::programs`].
    pub programs: Option<Programs>,
    /// The test knows nothing but the CRI, so another runtime may serve it.
    pub cri_only: bool,
}

/// Runs a test on a fresh node and ends it with the leak check.
///
/// # Panics
/// When the test fails, something is left behind, or the daemon logged a warning that the test did not allow.
pub fn e2e<F>(test: F)
where
    F: AsyncFnOnce(&mut Node) -> Result<()> + Send + 'static,
{
    e2e_with(Options::default(), test);
}

/// As [`e2e`], for a test that knows nothing but the CRI, its socket and what is in the kernel: no command, file, log line or
/// name of ours. So it can be run against a containerd too (`make e2e ENDPOINT=containerd-runc`), which tests the test.
///
/// # Panics
/// As [`e2e`].
pub fn e2e_cri<F>(test: F)
where
    F: AsyncFnOnce(&mut Node) -> Result<()> + Send + 'static,
{
    e2e_with(Options { cri_only: true, ..Options::default() }, test);
}

/// As [`e2e`], with a node that differs from the defaults.
///
/// # Panics
/// As [`e2e`].
pub fn e2e_with<F>(options: Options, test: F)
where
    F: AsyncFnOnce(&mut Node) -> Result<()> + Send + 'static,
{
    // The harness's own thread must not be moved to other namespaces.
    let name = thread::current().name().unwrap_or("e2e").to_owned();
    let body = move || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut node = Node::isolate(options)?;
        runtime.block_on(async {
            if !node.options.without_daemon {
                node.boot().await?;
            }
            // A peer may never answer what ours does; of ours that is for each wait to say.
            let limit = if node.peer.is_some() { PEER_LIMIT } else { Duration::MAX };
            let test = tokio::time::timeout(limit, AssertUnwindSafe(test(&mut node)).catch_unwind());
            let result = test.await.unwrap_or_else(|_| Ok(Err(anyhow::anyhow!("the test took more than {limit:?}"))));
            node.finish(result).await
        })
    };
    let result = thread::Builder::new().name(name).spawn(body).expect("start a thread").join();
    match result {
        Ok(Ok(())) => {}
        Ok(Err(error)) => panic!("{error:?}"),
        Err(payload) => panic::resume_unwind(payload),
    }
}

/// See the module.
#[derive(Debug)]
pub struct Node {
    name: String,
    directory: Ground,
    options: Options,
    /// The programs under test.
    pub programs: Programs,
    daemon: Option<Child>,
    /// What serves in the place of ours.
    peer: Option<Peer>,
    cri: Option<Cri>,
    allowed: Vec<String>,
    sandboxes: Vec<String>,
    baseline: Option<Snapshot>,
    baseline_daemon: Option<u32>,
}

impl Node {
    /// Moves the calling thread to a node without a daemon. For good: the thread must be the test's own.
    pub fn isolate(options: Options) -> Result<Self> {
        require::root()?;
        let wanted = peer::wanted()?;
        ensure!(wanted.is_none() || options.cri_only, "this test is of Vaina, and {} names another", peer::ENDPOINT);
        let programs = options.programs.clone().map_or_else(require::programs, Ok)?;
        require::tool("ip", "iproute2")?;
        require::tool("nft", "nftables")?;
        static CLEANED: Once = Once::new();
        CLEANED.call_once(|| ground::clean(PREFIX));
        let directory = Ground::new(PREFIX)?;
        let name = directory.name();
        for own in ["lib", "log/pods"] {
            fs::create_dir_all(directory.path().join(own)).with_context(|| format!("make the node's /var/{own}"))?;
        }

        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).context("unshare the namespaces of the node")?;
        let none: Option<&str> = None;
        // Nothing may reach the machine, and all below the node's root is shared, as systemd makes it.
        for flags in [MsFlags::MS_PRIVATE, MsFlags::MS_SHARED] {
            mount(none, "/", none, MsFlags::MS_REC | flags, none).context("set the propagation of /")?;
        }
        mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=755")).context("mount /run")?;
        for own in ["lib", "log"] {
            let (source, target) = (directory.path().join(own), Path::new("/var").join(own));
            mount(Some(&source), &target, none, MsFlags::MS_BIND, none)
                .with_context(|| format!("mount {}", target.display()))?;
        }
        run(Command::new("ip").args(["link", "set", "lo", "up"]))?;

        let prepare = |runtime| Peer::prepare(runtime, directory.path(), Path::new(SOCKET), IMAGE);
        let peer = wanted.map(prepare).transpose()?;
        let node = Self {
            name,
            directory,
            options,
            programs,
            daemon: None,
            peer,
            cri: None,
            allowed: Vec::new(),
            sandboxes: Vec::new(),
            baseline: None,
            baseline_daemon: None,
        };
        if let Some(config) = &node.options.config {
            fs::write(node.config_path(), config).context("write the configuration")?;
        }
        Ok(node)
    }

    /// Starts the daemon, gives it [`IMAGE`], and remembers what is there now.
    pub async fn boot(&mut self) -> Result<()> {
        self.start_daemon().await?;
        if self.peer.is_some() {
            self.cri().pull(IMAGE).await.context("pull the base image")?;
            // The first pod brings what stays: the bridge, the chains of the network plugins, directories.
            let pod = self.pod("first").port(1, 1);
            let sandbox = self.run_pod(&pod).await.context("run the first pod")?;
            self.run_to_exit(&sandbox, &pod, &Container::new("first", IMAGE).command(&["/bin/true"])).await?;
            self.remove_pod(&sandbox).await.context("remove the first pod")?;
            remove_cgroup_parents(&self.name);
        } else {
            self.import(base_archive()?)?;
        }
        self.remember()
    }

    /// As [`boot`](Self::boot) without a daemon: a command that became one meanwhile has left what a daemon leaves.
    pub fn furnish(&mut self) -> Result<()> {
        self.furnish_with(IMAGE)
    }

    /// As [`furnish`](Self::furnish), with the same image under another name.
    pub fn furnish_with(&mut self, name: &str) -> Result<()> {
        let archive = base_archive()?.to_string_lossy();
        run(&mut self.vaina(&["image", "import", "--name", name, &archive]))?;
        self.remember()
    }

    /// What is there now is what must be there at the end.
    pub fn remember(&mut self) -> Result<()> {
        let scope = self.scope();
        self.baseline = Some(Snapshot::take(&scope)?);
        self.baseline_daemon = scope.daemon;
        Ok(())
    }

    /// A directory for the test's own files.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A fresh subdirectory, world-writable as an emptyDir is.
    pub fn volume(&self, name: &str) -> Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.directory.path().join("volumes").join(name);
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?;
        Ok(path)
    }

    /// The CRI client.
    ///
    /// # Panics
    /// Without a running daemon.
    pub fn cri(&self) -> Cri {
        self.cri.clone().expect("the daemon runs")
    }

    /// The daemon's pid.
    ///
    /// # Panics
    /// Without a running daemon.
    pub fn daemon_pid(&self) -> u32 {
        self.daemon.as_ref().expect("the daemon runs").id()
    }

    /// Allows log lines of level WARN or ERROR that contain this text.
    pub fn allow(&mut self, text: &str) {
        self.allowed.push(text.to_owned());
    }

    // === the daemon ===

    fn config_path(&self) -> PathBuf {
        self.directory.path().join("config.toml")
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("daemon.log")
    }

    /// All that the daemon logged so far, over all its lives.
    pub fn daemon_log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// A `vaina` command in this node.
    pub fn vaina(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.programs.vaina);
        let shims = self.programs.shim.parent().unwrap_or_else(|| Path::new("/"));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path =
            std::env::join_paths([shims.to_owned()].into_iter().chain(std::env::split_paths(&path))).unwrap_or(path);
        command
            .args(arguments)
            .env("PATH", path)
            .env(ENVIRONMENT, &self.name)
            .envs(self.options.environment.iter().cloned())
            .env_remove("RUST_LOG")
            .stdin(Stdio::null());
        command
    }

    /// A `vaina` command in this node that goes on.
    pub fn running(&self, arguments: &[&str]) -> Result<Running> {
        Running::start(&mut self.vaina(arguments))
    }

    /// A `vaina` command in this node, to its end.
    pub async fn ended(&self, arguments: &[&str]) -> Result<Ended> {
        self.running(arguments)?.end().await
    }

    /// Writes the manifest of a pod; JSON is YAML.
    pub fn manifest(&self, name: &str, spec: &serde_json::Value) -> Result<String> {
        let pod = serde_json::json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name }, "spec": spec });
        self.file(&format!("{name}.yaml"), &serde_json::to_string_pretty(&pod)?)
    }

    /// Writes a file of the test's own and answers its path.
    pub fn file(&self, name: &str, text: &str) -> Result<String> {
        let path = self.directory.path().join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(path.to_string_lossy().into_owned())
    }

    /// `vaina run` of pods that stay until they are stopped: answers once all have a sandbox, whoever is the daemon.
    pub async fn run_manifests(&mut self, arguments: &[&str], pods: usize) -> Result<Running> {
        let running = self.running(&[&["run"], arguments].concat())?;
        self.await_sandboxes(&running, pods).await?;
        Ok(running)
    }

    /// Waits until so many pods of a run have a sandbox, and notes them.
    pub async fn await_sandboxes(&mut self, running: &Running, pods: usize) -> Result<()> {
        running.wait_for_times("s Sandbox: ", pods).await?;
        self.note_sandboxes().await
    }

    /// Notes all sandboxes of the daemon that runs, also inside a command.
    pub async fn note_sandboxes(&mut self) -> Result<()> {
        let cri = Cri::connect(Path::new(SOCKET)).await.context("connect to the daemon")?;
        for sandbox in cri.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await?.items {
            self.note_sandbox(&sandbox.id);
        }
        Ok(())
    }

    /// Starts the daemon and waits until it serves.
    pub async fn start_daemon(&mut self) -> Result<()> {
        ensure!(self.daemon.is_none(), "the daemon runs already");
        let log = File::options().create(true).append(true).open(self.log_path()).context("open the daemon's log")?;
        let mut command = match &self.peer {
            Some(peer) => peer.command(),
            None => self.vaina(&["serve"]),
        };
        if self.options.config.is_some() {
            command.arg("--config").arg(self.config_path());
        }
        command.env(ENVIRONMENT, &self.name);
        let child = command.stdout(log.try_clone()?).stderr(log).spawn().context("start the daemon")?;
        self.daemon = Some(child);
        let cri = wait::within("the daemon serves", DAEMON_LIMIT, &mut async || {
            if let Some(child) = &mut self.daemon
                && let Some(status) = child.try_wait()?
            {
                bail!("the daemon ended at once: {status}\n{}", tail(&self.daemon_log()));
            }
            let Ok(cri) = Cri::connect(Path::new(SOCKET)).await else { return Ok(None) };
            let Ok(status) = cri.status(cri::StatusRequest::default()).await else { return Ok(None) };
            // The network of a peer is ready some time after its socket; further conditions of it don't matter.
            let conditions = status.status.map(|status| status.conditions).unwrap_or_default();
            let is_needed = |name: &str| ["RuntimeReady", "NetworkReady"].contains(&name);
            let is_ready = conditions.iter().all(|condition| condition.status || !is_needed(&condition.r#type));
            Ok((self.peer.is_none() || is_ready).then_some(cri))
        })
        .await?;
        self.cri = Some(cri);
        Ok(())
    }

    /// Ends the daemon with SIGTERM; it must end well and soon. Pods go on.
    pub fn terminate_daemon(&mut self) -> Result<()> {
        self.cri = None;
        let mut child = self.daemon.take().context("the daemon runs")?;
        kill(pid(&child)?, Signal::SIGTERM).context("terminate the daemon")?;
        let status = wait::blocking("the daemon ended", DAEMON_LIMIT, || child.try_wait().transpose())??;
        ensure!(status.success(), "the daemon ended with {status} after SIGTERM\n{}", tail(&self.daemon_log()));
        Ok(())
    }

    /// Kills the daemon. Pods go on.
    pub fn kill_daemon(&mut self) -> Result<()> {
        self.cri = None;
        let mut child = self.daemon.take().context("the daemon runs")?;
        child.kill().context("kill the daemon")?;
        let status = child.wait().context("wait for the daemon")?;
        ensure!(status.signal() == Some(9), "the daemon had ended by itself: {status}");
        Ok(())
    }

    /// Whether the daemon has ended by itself; [`kill_daemon`](Self::kill_daemon) then takes note of it.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.daemon.as_mut().context("the daemon runs")?.try_wait()?.is_some())
    }

    /// The daemon's image store.
    pub fn images(&self) -> PathBuf {
        PathBuf::from("/var/lib/vaina/images")
    }

    /// Waits until the image store has on disk what [`leak::image_store`] found before, no more and no less: layers are
    /// deleted behind the answer.
    pub async fn check_images(&self, before: &[String]) -> Result<()> {
        let mut last = Vec::new();
        let same = wait::within("the image store is as before", LEAK_LIMIT, &mut async || {
            last = leak::image_store(&self.images())?;
            Ok((last == before).then_some(()))
        })
        .await;
        same.with_context(|| format!("the image store had {before:#?} and has {last:#?}"))
    }

    /// Gives the daemon that runs the image of [`boot`](Self::boot) under another name too.
    pub fn import_base_as(&self, name: &str) -> Result<()> {
        run(&mut self.vaina(&["image", "import", "--name", name, &base_archive()?.to_string_lossy()])).map(drop)
    }

    /// Gives the runtime an image under a name: the CRI has no import, so a peer pulls it.
    pub async fn give(&self, name: &str, image: &Built) -> Result<()> {
        if let Some(peer) = &self.peer {
            peer.serve(name, image)?;
            return self.cri().pull(name).await.map(drop).with_context(|| format!("pull {name}"));
        }
        let path = self.directory.path().join("given.tar");
        archive::oci_archive(&path, &[(name, archive::Tagged::Image(image))])?;
        self.import(&path).map(drop)
    }

    /// `vaina image import`.
    pub fn import(&self, archive: &Path) -> Result<String> {
        let output = self.vaina(&["image", "import"]).arg(archive).output().context("run vaina image import")?;
        stdout(&output).with_context(|| format!("vaina image import {}", archive.display()))
    }

    // === pods ===

    /// A pod whose logs and cgroups are this node's.
    pub fn pod(&self, name: &str) -> Pod {
        let mut pod = Pod::new(name);
        pod.config.log_directory = self.directory.path().join("logs").join(name).to_string_lossy().into_owned();
        pod.linux().cgroup_parent = format!("/{}/{name}", self.name);
        pod
    }

    /// RunPodSandbox.
    pub async fn run_pod(&mut self, pod: &Pod) -> Result<String, Status> {
        let request =
            cri::RunPodSandboxRequest { config: Some(pod.config.clone()), runtime_handler: pod.handler.clone() };
        let id = self.cri().run_pod_sandbox(request).await?.pod_sandbox_id;
        self.note_sandbox(&id);
        Ok(id)
    }

    /// What carries this sandbox's id belongs to this node.
    pub fn note_sandbox(&mut self, id: &str) {
        if !self.sandboxes.iter().any(|known| known == id) {
            self.sandboxes.push(id.to_owned());
        }
    }

    /// CreateContainer.
    pub async fn create(&self, sandbox: &str, pod: &Pod, container: &Container) -> Result<String, Status> {
        if self.peer.is_some() {
            // As a kubelet does; ours makes it itself.
            let log = Path::new(&pod.config.log_directory).join(&container.config.log_path);
            fs::create_dir_all(log.parent().unwrap_or(&log)).map_err(|error| Status::internal(error.to_string()))?;
        }
        // A kubelet says them again with each container, and what it does not say is not the pod's but the first value.
        let mut config = container.config.clone();
        let linux = pod.config.linux.as_ref();
        if let Some(of_pod) = linux.and_then(|linux| linux.security_context.as_ref()?.namespace_options.clone()) {
            let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
            security.namespace_options.get_or_insert(of_pod);
        }
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        self.cri().create_container(request).await.map(|response| response.container_id)
    }

    /// CreateContainer and StartContainer.
    pub async fn start(&self, sandbox: &str, pod: &Pod, container: &Container) -> Result<String, Status> {
        let id = self.create(sandbox, pod, container).await?;
        self.cri().start_container(&id).await?;
        Ok(id)
    }

    /// Runs a container to its end and answers its status and its log's text.
    pub async fn run_to_exit(
        &self,
        sandbox: &str,
        pod: &Pod,
        container: &Container,
    ) -> Result<(cri::ContainerStatus, String)> {
        let id = self.start(sandbox, pod, container).await?;
        let status = self.wait_exited(&id).await?;
        let text = log_text(&self.log(&status)?)?;
        Ok((status, text))
    }

    /// Waits until the container has exited.
    pub async fn wait_exited(&self, id: &str) -> Result<cri::ContainerStatus> {
        let cri = self.cri();
        wait::until("the container exited", async || {
            let status = cri.container(id).await?;
            Ok((status.state() == cri::ContainerState::ContainerExited).then_some(status))
        })
        .await
    }

    /// Waits until the log of a container contains a text, and answers all its text.
    pub async fn wait_log(&self, id: &str, needle: &str) -> Result<String> {
        let status = self.cri().container(id).await?;
        let mut last = String::new();
        wait::until(&format!("the log contains {needle:?}"), async || {
            let log = self.log(&status)?;
            // A line may be seen while it is being written.
            let whole = log.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            last = log_text(&log[..whole])?;
            Ok(last.contains(needle).then(|| last.clone()))
        })
        .await
    }

    /// The raw log of a container.
    pub fn log(&self, status: &cri::ContainerStatus) -> Result<Vec<u8>> {
        fs::read(&status.log_path).with_context(|| format!("read the log {:?}", status.log_path))
    }

    /// ExecSync, which must succeed as a call; the command may fail.
    pub async fn exec(&self, id: &str, command: &[&str]) -> Result<Exec> {
        let request = cri::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command.iter().map(ToString::to_string).collect(),
            timeout: 30,
        };
        let response = self.cri().exec_sync(request).await.with_context(|| format!("exec {command:?}"))?;
        Ok(Exec {
            stdout: String::from_utf8_lossy(&response.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&response.stderr).into_owned(),
            code: response.exit_code,
        })
    }

    /// ExecSync of a shell script that must succeed; answers what it printed, without the last newline.
    pub async fn sh(&self, id: &str, script: &str) -> Result<String> {
        let result = self.exec(id, &["/bin/sh", "-c", script]).await?;
        ensure!(result.code == 0, "{script:?} in the container: {result:?}");
        Ok(result.stdout.trim_end_matches('\n').to_owned())
    }

    /// The pod's address.
    pub async fn address(&self, sandbox: &str) -> Result<String> {
        let network = self.cri().sandbox(sandbox).await?.network.context("the sandbox has a network")?;
        ensure!(!network.ip.is_empty(), "the sandbox has no address");
        Ok(network.ip)
    }

    /// StopPodSandbox and RemovePodSandbox.
    pub async fn remove_pod(&self, sandbox: &str) -> Result<(), Status> {
        let cri = self.cri();
        cri.stop_pod_sandbox(sandbox).await?;
        cri.remove_pod_sandbox(sandbox).await
    }

    // === the end ===

    /// Where this node's things are.
    pub fn scope(&self) -> Scope {
        let root = PathBuf::from("/var/lib/vaina");
        let scope = Scope {
            cgroup_marks: [&self.name].into_iter().chain(&self.sandboxes).cloned().collect(),
            environment_mark: format!("{ENVIRONMENT}={}", self.name),
            whole_namespace: true,
            directories: vec![PathBuf::from("/run"), PathBuf::from(LOGS), root],
            ignored: leak::kept(),
            stores: vec![self.images()],
            daemon: self.daemon.as_ref().map(Child::id),
        };
        match &self.peer {
            Some(peer) => peer.scope(scope, Path::new(LOGS)),
            None => scope,
        }
    }

    /// Waits until nothing differs from what [`remember`](Self::remember) saw.
    pub async fn check_leaks(&self) -> Result<()> {
        let Some(before) = &self.baseline else { return Ok(()) };
        let mut last = Vec::new();
        let gone = wait::within("nothing is left behind", LEAK_LIMIT, &mut async || {
            // The pods' parents in the cgroup tree are the test's (a kubelet makes and removes them).
            remove_cgroup_parents(&self.name);
            let scope = self.scope();
            last = before.difference(&Snapshot::take(&scope)?);
            if scope.daemon != self.baseline_daemon {
                // Another process: its descriptors are no more and no less than the first one's.
                last.retain(|line| !line.contains(leak::DESCRIPTOR));
            }
            Ok(last.is_empty().then_some(()))
        })
        .await;
        gone.map_err(|_| anyhow::anyhow!("left behind (+) or lost (-) after {LEAK_LIMIT:?}:\n{}", last.join("\n")))
    }

    /// Lines of level WARN and ERROR that the test did not allow.
    fn unexpected_lines(&self) -> Vec<String> {
        let is_bad = |line: &&str| {
            [" WARN ", " ERROR ", "\"level\":\"WARN\"", "\"level\":\"ERROR\"", "panicked at"]
                .iter()
                .any(|mark| line.contains(mark))
        };
        let log = self.daemon_log();
        log.lines()
            .filter(is_bad)
            .filter(|line| !self.allowed.iter().any(|text| line.contains(text)))
            .map(ToOwned::to_owned)
            .collect()
    }

    async fn finish(mut self, result: Result<Result<()>, Box<dyn Any + Send>>) -> Result<()> {
        let mut outcome = match result {
            Ok(result) => result,
            Err(payload) => {
                self.show();
                self.clean_up();
                panic::resume_unwind(payload);
            }
        };
        if outcome.is_ok() {
            outcome = self.check_leaks().await;
        }
        if outcome.is_ok() && self.daemon.is_some() {
            outcome = self.terminate_daemon();
        }
        // What a peer logs is its own affair.
        if outcome.is_ok() && self.peer.is_none() {
            let lines = self.unexpected_lines();
            if !lines.is_empty() {
                outcome =
                    Err(anyhow::anyhow!("the daemon warned, and the test did not allow it:\n{}", lines.join("\n")));
            }
        }
        if outcome.is_err() {
            self.show();
        }
        self.clean_up();
        outcome
    }

    /// What a failed test shows beside its own message.
    fn show(&self) {
        println!("--- end of the daemon's log of {}\n{}", self.name, tail(&self.daemon_log()));
        let _ = std::io::stdout().flush();
    }

    /// Kills what is left, so that one failed test does not disturb the others.
    fn clean_up(&mut self) {
        if let Some(mut child) = self.daemon.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let scope = self.scope();
        // Twice: what was being started by something that is now dead shows up in the second look.
        for _ in 0..2 {
            for process in leak::processes(&scope).unwrap_or_default() {
                if let Ok(pid) = i32::try_from(process.pid) {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
        }
        for _ in 0..50 {
            let mut cgroups = leak::cgroups(&scope).unwrap_or_default();
            cgroups.reverse();
            if cgroups.into_iter().filter(|path| fs::remove_dir(path).is_err()).count() == 0 {
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// How the directories and control groups of nodes are named.
const PREFIX: &str = "vaina-e2e-";

/// Marks the environment of all that a node starts.
const ENVIRONMENT: &str = "VAINA_E2E_NODE";

/// What ExecSync answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// Its stdout.
    pub stdout: String,
    /// Its stderr.
    pub stderr: String,
    /// Its exit code.
    pub code: i32,
}

/// The text of a CRI log without times, streams and tags; partial lines are joined.
pub fn log_text(log: &[u8]) -> Result<String> {
    let log = String::from_utf8_lossy(log);
    let mut text = String::new();
    for line in log.lines() {
        let mut words = line.splitn(4, ' ');
        let (Some(_), Some(_), Some(tag), Some(message)) = (words.next(), words.next(), words.next(), words.next())
        else {
            bail!("not a CRI log line: {line:?}");
        };
        text.push_str(message);
        if tag == "F" {
            text.push('\n');
        }
    }
    Ok(text)
}

/// Runs a program that must succeed and answers its stdout.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    stdout(&output).with_context(|| format!("{command:?}"))
}

/// The stdout of a program that must have succeeded.
pub fn stdout(output: &Output) -> Result<String> {
    ensure!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The archive with [`IMAGE`], made once per test program.
fn base_archive() -> Result<&'static Path> {
    static ARCHIVE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let made = ARCHIVE.get_or_init(|| {
        let make = || -> Result<PathBuf> {
            let image = images::base(&images::probe_beside_this_program()?)?
                .compression(Compression::None)
                .flavour(Flavour::Oci)
                .build()?;
            let this = std::env::current_exe()?;
            let path = this.with_file_name("e2e-base.tar");
            let partial = this.with_file_name(format!("e2e-base.tar.{}", std::process::id()));
            archive::oci_archive(&partial, &[(IMAGE, archive::Tagged::Image(&image))])?;
            fs::rename(&partial, &path)?;
            Ok(path)
        };
        make().map_err(|error| format!("{error:#}"))
    });
    made.as_deref().map_err(|error| anyhow::anyhow!("make the base image: {error}"))
}

fn remove_cgroup_parents(name: &str) {
    let root = Path::new("/sys/fs/cgroup");
    let Ok(hierarchies) = fs::read_dir(root) else { return };
    // The one hierarchy of v2, or those of v1.
    for hierarchy in hierarchies.flatten().map(|entry| entry.path()).chain([root.to_owned()]) {
        let parent = hierarchy.join(name);
        for pod in fs::read_dir(&parent).into_iter().flatten().flatten() {
            let _ = fs::remove_dir(pod.path());
        }
        let _ = fs::remove_dir(parent);
    }
}

fn pid(child: &Child) -> Result<Pid> {
    Ok(Pid::from_raw(i32::try_from(child.id())?))
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}
