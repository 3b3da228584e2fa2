//! A kubelet in a node, standalone: it runs the manifests of a directory, and nobody is above it.
//!
//! What it would change of the machine itself is the node's own: its control groups are below the node's, and the kernel
//! settings that it insists on are files of the node, mounted over the kernel's.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read as _, Seek as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    mount::{MsFlags, mount},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use vaina_proto::cri;
use vaina_tests::{
    ground, http, images,
    node::{LOGS, Node, Options, SOCKET, e2e_with, log_text, run},
    require, wait,
};

/// The name that pods get for being this node's.
pub(crate) const NODE: &str = "here";

const VERSION: &str = "v1.36.3";

/// Its own server, for whoever may do anything, and the one that only tells.
const SERVER: &str = "https://127.0.0.1:10250";
const READ_ONLY: &str = "127.0.0.1:10255";

const HEALTH: &str = "127.0.0.1:10248";

/// It looks once a minute for what it has ended and must remove.
const COLLECTED: Duration = Duration::from_secs(150);

/// The node's own address, of those that are for documentation.
pub(crate) const ADDRESS: &str = "192.0.2.10";

/// What the kubelet insists on, and sets for the whole machine.
const SETTINGS: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];

/// See the module. Dropped while it runs, it is killed.
#[derive(Debug)]
pub(crate) struct Kubelet {
    directory: PathBuf,
    manifests: PathBuf,
    log: PathBuf,
    child: Option<Child>,
    allowed: Vec<String>,
}

/// Runs a test on a fresh node with a kubelet, and ends with nothing left of either.
pub(crate) fn kubelet<F>(test: F)
where
    F: AsyncFnOnce(&mut Node, &mut Kubelet) -> Result<()> + Send + 'static,
{
    kubelet_with("featureGates: {PodAndContainerStatsFromCRI: true}\n", test);
}

/// As [`kubelet`], with other lines at the end of its configuration.
pub(crate) fn kubelet_with<F>(config: &'static str, test: F)
where
    F: AsyncFnOnce(&mut Node, &mut Kubelet) -> Result<()> + Send + 'static,
{
    e2e_with(Options { without_daemon: true, ..Options::default() }, async move |node| {
        own_settings(node)?;
        own_address()?;
        // mount(8) makes this, which the kubelet runs.
        fs::create_dir("/run/mount").context("make /run/mount")?;
        node.boot().await?;
        node.import_base_as(images::DEMO)?;
        node.remember()?;
        let mut kubelet = Kubelet::install(node, config)?;
        kubelet.start().await?;
        test(node, &mut kubelet).await?;
        kubelet.finish(node).await
    });
}

/// Mounts a copy of each kernel setting over it.
fn own_settings(node: &Node) -> Result<()> {
    let none: Option<&str> = None;
    for setting in SETTINGS {
        let path = Path::new("/proc/sys").join(setting);
        let value = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let own = node.file(&setting.replace('/', "."), &value)?;
        mount(Some(Path::new(&own)), &path, none, MsFlags::MS_BIND, none)
            .with_context(|| format!("mount over {}", path.display()))?;
    }
    Ok(())
}

/// Gives the node an address and a way out of it, which a kubelet looks for.
fn own_address() -> Result<()> {
    for arguments in [
        "link add node0 type veth peer name router0".to_owned(),
        "link set router0 up".to_owned(),
        "link set node0 up".to_owned(),
        format!("address add {ADDRESS}/24 dev node0"),
        "route add default dev node0".to_owned(),
    ] {
        run(Command::new("ip").args(arguments.split(' ')))?;
    }
    Ok(())
}

impl Kubelet {
    /// Writes its configuration, and makes what it wants to find.
    fn install(node: &Node, config: &str) -> Result<Self> {
        let directory = node.directory().join("kubelet");
        let manifests = directory.join("manifests");
        fs::create_dir_all(&manifests).context("make the directory of manifests")?;
        let group = ground::name(node.directory());
        for hierarchy in hierarchies()? {
            fs::create_dir_all(hierarchy.join(&group)).context("make the kubelet's control group")?;
        }
        let config = format!("{CONFIG}{config}")
            .replace("MANIFESTS", &manifests.to_string_lossy())
            .replace("PLUGINS", &directory.join("plugins").to_string_lossy())
            .replace("GROUP", &group)
            .replace("SOCKET", SOCKET);
        fs::write(directory.join("config.yaml"), config).context("write the kubelet's configuration")?;
        // Outside the node, which goes with the test: a failed one leaves it to be read.
        let logs = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kubelet");
        fs::create_dir_all(&logs).context("make the directory of logs")?;
        let log = logs.join(format!("{}.log", thread::current().name().unwrap_or("test").replace("::", ".")));
        println!("the kubelet's log: {}", log.display());
        File::create(&log).with_context(|| format!("create {}", log.display()))?;
        Ok(Self { directory, manifests, log, child: None, allowed: Vec::new() })
    }

    // === the program ===

    /// Starts it and waits until it is well.
    pub(crate) async fn start(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "the kubelet runs already");
        let log = File::options().append(true).open(&self.log).context("open the kubelet's log")?;
        let child = Command::new(require::kept_tool(&format!("kubelet-{VERSION}"), "kubelet")?)
            .arg("--config")
            .arg(self.directory.join("config.yaml"))
            .args(["--hostname-override", NODE, "--node-ip", ADDRESS, "--v=4"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start the kubelet")?;
        self.child = Some(child);
        wait::until("the kubelet is well", async || {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                bail!("the kubelet ended at once: {status}");
            }
            let is_well = http::get(HEALTH, "/healthz").is_ok_and(|text| text == "ok");
            Ok((is_well && self.tell("/pods").is_ok()).then_some(()))
        })
        .await
    }

    /// Ends it. Pods go on.
    pub(crate) fn terminate(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the kubelet runs")?;
        kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGTERM).context("terminate the kubelet")?;
        let status = wait::blocking("the kubelet ended", wait::LIMIT, || child.try_wait().transpose())??;
        ensure!(status.success(), "the kubelet ended with {status}");
        Ok(())
    }

    /// Kills it. Pods go on.
    pub(crate) fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the kubelet runs")?;
        child.kill().and_then(|()| child.wait()).context("kill the kubelet").map(drop)
    }

    /// Allows lines of level ERROR that contain this text.
    pub(crate) fn allow(&mut self, text: &str) {
        self.allowed.push(text.to_owned());
    }

    /// All that it logged so far, over all its lives.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    // === pods ===

    /// Gives it the manifest of a pod.
    pub(crate) fn apply(&self, name: &str, manifest: &str) -> Result<()> {
        // It must not see half of it; names with a dot are not its.
        let new = self.manifests.join(format!(".{name}"));
        fs::write(&new, manifest).with_context(|| format!("write {}", new.display()))?;
        fs::rename(&new, self.manifest(name)).with_context(|| format!("name the manifest of {name}"))
    }

    /// Gives it an example of the project.
    pub(crate) fn apply_example(&self, name: &str) -> Result<()> {
        let path = require::examples()?.join(name).with_extension("yaml");
        self.apply(name, &fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?)
    }

    /// Takes the manifest of a pod away.
    pub(crate) fn withdraw(&self, name: &str) -> Result<()> {
        fs::remove_file(self.manifest(name)).with_context(|| format!("remove the manifest of {name}"))
    }

    fn manifest(&self, name: &str) -> PathBuf {
        self.manifests.join(name).with_extension("yaml")
    }

    /// The pod as its `/pods` has it.
    pub(crate) fn pod(&self, name: &str) -> Result<Option<Value>> {
        let pods: Value = serde_json::from_str(&self.tell("/pods")?).context("parse /pods")?;
        let full = full_name(name);
        Ok(pods["items"].as_array().into_iter().flatten().find(|pod| pod["metadata"]["name"] == *full).cloned())
    }

    /// Waits until it shows a pod of which this holds.
    pub(crate) async fn wait_pod(&self, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut last = Value::Null;
        wait::within(&format!("the kubelet shows {name} {what}"), PATIENCE, &mut async || {
            last = self.pod(name)?.unwrap_or_default();
            Ok(holds(&last).then(|| last.clone()))
        })
        .await
        .with_context(|| format!("it shows {:#}", last["status"]))
    }

    /// Waits until all containers of a pod are ready.
    pub(crate) async fn wait_ready(&self, name: &str) -> Result<Value> {
        self.wait_pod(name, "ready", |pod| condition(pod, "Ready") == Some("True")).await
    }

    // === its servers ===

    /// What it tells anybody.
    pub(crate) fn tell(&self, path: &str) -> Result<String> {
        http::get(READ_ONLY, path)
    }

    /// A client of its server; see `tests/kubelet/client`.
    pub(crate) fn client(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(require::kept_tool(&format!("kubelet-client-{VERSION}"), "kubelet")?);
        command.args(arguments).env("KUBELET", SERVER).stdin(Stdio::null());
        Ok(command)
    }

    /// The text of a container's log, by way of its server.
    pub(crate) fn container_log(&self, pod: &str, container: &str) -> Result<String> {
        run(&mut self.client(&["get", &format!("/containerLogs/default/{}/{container}", full_name(pod))])?)
    }

    // === the end ===

    /// Takes all manifests away, waits until it has ended and removed all pods, and ends it.
    async fn finish(&mut self, node: &Node) -> Result<()> {
        for entry in fs::read_dir(&self.manifests).context("list the manifests")? {
            fs::remove_file(entry?.path()).context("remove a manifest")?;
        }
        self.wait_removed(node).await?;
        self.terminate()?;
        let lines = self.unexpected_lines();
        ensure!(lines.is_empty(), "the kubelet had errors that the test did not allow:\n{}", lines.join("\n"));
        // What it leaves for its next start.
        for family in ["ip", "ip6"] {
            for table in ["filter", "mangle", "nat"] {
                run(Command::new("nft").args(["delete", "table", family, table]))?;
            }
        }
        let group = ground::name(node.directory());
        for hierarchy in hierarchies()? {
            for own in ["kubepods/burstable", "kubepods/besteffort", "kubepods"] {
                let _ = fs::remove_dir(hierarchy.join(&group).join(own));
            }
        }
        let _ = fs::remove_file(&self.log);
        Ok(())
    }

    /// Waits until it has removed all that was of pods.
    pub(crate) async fn wait_removed(&self, node: &Node) -> Result<()> {
        let cri = node.cri();
        let mut last = Vec::new();
        wait::within("the kubelet has removed all pods", COLLECTED, &mut async || {
            last = cri.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await?.items;
            let logs = fs::read_dir(LOGS).context("list the logs of pods")?.count();
            Ok((last.is_empty() && logs == 0).then_some(()))
        })
        .await
        .with_context(|| format!("its sandboxes are {last:#?}"))
    }

    fn unexpected_lines(&self) -> Vec<String> {
        let allowed = |line: &str| {
            ALLOWED.iter().any(|text| line.contains(text)) || self.allowed.iter().any(|text| line.contains(text))
        };
        self.log().lines().filter(|line| line.starts_with('E') && !allowed(line)).map(ToOwned::to_owned).collect()
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// How long a kubelet may take for what it looks at now and then.
const PATIENCE: Duration = Duration::from_secs(90);

/// Errors that any standalone kubelet has on a machine like this, whatever the runtime.
const ALLOWED: &[&str] = &[
    // Its first looks come before its first measurements, and a new one has no checkpoint.
    "Image garbage collection failed once. Stats initialization may not have completed yet",
    "PLEG is not healthy: pleg has yet to be successful",
    "container runtime status check may not have completed yet",
    "checkpoint is not found",
    // Nobody keeps a record of its node, or of what its pods were given.
    "failed to check if node is newer; using informer node",
    "Missing actuated pod level resource record",
    // cAdvisor knows the file systems of the two runtimes that it knows by name.
    "no imagefs label for configured runtime",
    // It gives up what it asks for a pod that ends, or when it ends itself.
    "code = Canceled desc = context canceled",
    // It asks once more for what it has removed.
    "ContainerStatus from runtime service failed\" err=\"rpc error: code = NotFound",
    // The machine's first process may not be looked at, and others may write more to the kernel's log than it reads.
    "failed to find pid namespace of init process",
    "OOM events will not be reported",
];

const CONFIG: &str = "\
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://SOCKET
cgroupDriver: cgroupfs
cgroupRoot: /GROUP
failCgroupV1: false
failSwapOn: false
evictionHard: {memory.available: 10Mi}
imageGCHighThresholdPercent: 100
oomScoreAdj: 0
maxOpenFiles: 10000
staticPodPath: MANIFESTS
volumePluginDir: PLUGINS
address: 127.0.0.1
readOnlyPort: 10255
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
";

/// A static pod's name ends with that of its node.
pub(crate) fn full_name(pod: &str) -> String {
    format!("{pod}-{NODE}")
}

/// The status of one of the pod's conditions.
pub(crate) fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a str> {
    let conditions = pod["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == kind)?["status"].as_str()
}

/// The status of one of the pod's containers.
pub(crate) fn container<'a>(pod: &'a Value, name: &str) -> &'a Value {
    let statuses = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
    statuses.into_iter().find(|status| status["name"] == name).unwrap_or(&Value::Null)
}

/// The first log of a container, open: it can be read when the kubelet has removed it.
#[derive(Debug)]
pub(crate) struct Log(File);

impl Log {
    pub(crate) fn open(pod: &Value, container: &str) -> Result<Self> {
        let word = |key: &str| pod["metadata"][key].as_str().with_context(|| format!("the pod has a {key}"));
        let path = format!("{LOGS}/{}_{}_{}/{container}/0.log", word("namespace")?, word("name")?, word("uid")?);
        File::open(&path).map(Self).with_context(|| format!("open {path}"))
    }

    /// All its text so far.
    pub(crate) fn text(&mut self) -> Result<String> {
        let mut text = Vec::new();
        self.0.rewind()?;
        self.0.read_to_end(&mut text)?;
        log_text(&text)
    }
}

/// Waits until so many containers have exited; answers their statuses by name.
pub(crate) async fn wait_exited(node: &Node, count: usize) -> Result<BTreeMap<String, cri::ContainerStatus>> {
    wait::within("the containers have exited", PATIENCE, &mut async || {
        let cri = node.cri();
        let mut exited = BTreeMap::new();
        for container in cri.list_containers(cri::ListContainersRequest::default()).await?.containers {
            // What the kubelet removes meanwhile is no more.
            let Ok(status) = cri.container(&container.id).await else { continue };
            if status.state() == cri::ContainerState::ContainerExited {
                exited.insert(container.metadata.unwrap_or_default().name, status);
            }
        }
        Ok((exited.len() == count).then_some(exited))
    })
    .await
}

/// Where control groups are: the one hierarchy of v2, or those of v1.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return Ok(vec![root.to_owned()]);
    }
    let entries = fs::read_dir(root).context("list the cgroup hierarchies")?.flatten();
    Ok(entries.map(|entry| entry.path()).filter(|path| path.is_dir() && !path.is_symlink()).collect())
}
