//! `make demo`: runs a pod of two containers on this machine and looks whether it is what a pod is. Every line with a
//! tick was checked; the first check that fails ends the demo, and what it started is taken away.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use nix::sys::signal::{Signal, kill};
use vaina_proto::cri;
use vaina_tests::{
    client::Cri,
    http, images,
    leak::{self, Scope, Snapshot},
    node::{LOGS, SOCKET},
    require::{self, Programs},
    running::{Running, Show},
    wait,
};

/// The pod of the manifest, and what it says of itself.
const POD: &str = "web-and-puller";
const GRACE: Duration = Duration::from_secs(5);
/// Where the machine's own browser finds it.
const PAGE: &str = "127.0.0.1:8080";
/// Any key will do.
const KEY: &str = "4242";
/// What the kernel takes away some time after we asked for it.
const LEAK_LIMIT: Duration = Duration::from_secs(10);

/// Runs the demo's pod on this machine and checks what it shows
#[derive(Debug, Parser)]
#[command(name = "vaina-demo")]
struct Arguments {
    /// The manifest of the pod
    #[arg(default_value = "examples/web-and-puller.yaml")]
    manifest: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut demo = match Demo::new() {
        Ok(demo) => demo,
        Err(error) => return failed(&error),
    };
    let begin = Instant::now();
    let result = tokio::select! {
        result = demo.run(&arguments.manifest) => result,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    match result {
        Ok(()) => {
            demo.screen.print(&format!("\nAll checks passed, in {:.1} s.", begin.elapsed().as_secs_f64()));
            demo.screen.print("The image stays, for the other pods in examples/: vaina run examples/job.yaml");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let code = failed(&error);
            demo.clean_up().await;
            code
        }
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("\n  ✗ {error:#}");
    ExitCode::FAILURE
}

struct Demo {
    programs: Programs,
    directory: tempfile::TempDir,
    screen: Screen,
    sandboxes: Vec<String>,
    runner: Option<Running>,
}

impl Demo {
    fn new() -> Result<Self> {
        require::root()?;
        require::tool("ip", "iproute2")?;
        require::tool("nft", "nftables")?;
        Ok(Self {
            programs: require::programs()?,
            directory: tempfile::tempdir().context("make a directory for the image")?,
            screen: Screen::new(),
            sandboxes: Vec::new(),
            runner: None,
        })
    }

    async fn run(&mut self, manifest: &Path) -> Result<()> {
        ensure!(
            std::net::TcpStream::connect(PAGE).is_err(),
            "something serves {PAGE} already, and the pod of the demo wants that port"
        );
        self.import()?;
        let before = Snapshot::take(&self.scope())?;
        self.start(manifest).await?;
        let parts = self.parts(&before)?;
        self.one_address_and_name()?;
        self.localhost()?;
        self.shared_memory()?;
        self.host_port()?;
        self.restart().await?;
        self.stop().await?;
        self.nothing_left(&before, &parts).await
    }

    fn import(&mut self) -> Result<()> {
        self.screen.heading("An image, made from this machine's busybox and imported");
        let archive = self.directory.path().join("demo.tar");
        let image = images::base(&images::probe_beside_this_program()?)?.build()?;
        images::archive::oci_archive(&archive, &[(images::DEMO, images::archive::Tagged::Image(&image))])?;
        let imported = self.vaina(&["image", "import", &archive.to_string_lossy()])?;
        ensure!(imported.contains(images::DEMO), "the import does not name {}", images::DEMO);
        self.screen.tick("the machine has an image, and no registry was needed");
        Ok(())
    }

    async fn start(&mut self, manifest: &Path) -> Result<()> {
        self.screen.heading("A pod, run in the foreground without a kubelet");
        let mut command = self.command(&["run", &manifest.to_string_lossy()]);
        self.screen.command(&command);
        let show = self.screen.show();
        let runner = if self.screen.color {
            Running::on_terminal_shown(&command, show)?
        } else {
            Running::start_shown(&mut command, show)?
        };
        let runner = self.runner.insert(runner);
        runner.wait_for("serving /www").await?;
        runner.wait_for("starting at page 0").await?;
        for sandbox in self.pods().await? {
            self.sandboxes.push(sandbox.id);
        }
        let table = self.vaina(&["ps"])?;
        let row = table.lines().find(|line| line.contains(POD)).context("the pod is not listed")?;
        ensure!(row.contains("Running") && row.contains("2/2"), "the pod is not running: {row}");
        wait::blocking("the first page is served", wait::LIMIT, || http::get(PAGE, "/").ok())?;
        self.screen.tick("both containers run");
        Ok(())
    }

    /// What of the pod is on the machine, so that its absence means something later.
    fn parts(&self, before: &Snapshot) -> Result<BTreeMap<String, usize>> {
        let mut parts = BTreeMap::new();
        for line in before.difference(&Snapshot::take(&self.scope())?) {
            let kind = line.strip_prefix("+ ").with_context(|| format!("lost when the pod started: {line}"))?;
            let kind = kind.split(' ').next().unwrap_or_default();
            *parts.entry(kind.to_owned()).or_default() += 1;
        }
        for kind in ["mount", "link", "nft", "cgroup", "process", "file"] {
            ensure!(parts.contains_key(kind), "no {kind} of the pod is seen on the machine");
        }
        Ok(parts)
    }

    fn one_address_and_name(&self) -> Result<()> {
        self.screen.heading("One address and one name for both containers");
        let look = ["sh", "-c", "hostname; hostname -i; readlink /proc/self/ns/net"];
        let (web, puller) = (self.exec("web", &look)?, self.exec("puller", &look)?);
        ensure!(web == puller, "the containers differ");
        let mut lines = web.lines();
        let (name, address) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        ensure!(name == POD, "the name is {name:?}");
        let status = self.vaina(&["ps", "--pods"])?;
        ensure!(!address.is_empty() && status.contains(address), "the pod's address is not {address}");
        self.screen.tick(&format!("both are {name} at {address}, in one network namespace"));
        Ok(())
    }

    fn localhost(&self) -> Result<()> {
        self.screen.heading("A request from one container to the other, over localhost");
        let page = self.exec("puller", &["wget", "-qO-", "http://localhost/"])?;
        number(&page)?;
        self.screen.tick("the puller got the page that the web server serves");
        Ok(())
    }

    fn shared_memory(&self) -> Result<()> {
        self.screen.heading("A semaphore and shared memory, made in one and seen in the other");
        self.exec("web", &["probe", "sem-create", KEY, "7"])?;
        let value = self.exec("puller", &["probe", "sem-value", KEY])?;
        ensure!(value.trim() == "7", "the semaphore is {value:?}");
        self.exec("puller", &["probe", "seg-create", KEY, "hello from the puller"])?;
        let segment = self.exec("web", &["probe", "seg-read", KEY])?;
        ensure!(segment.trim_end_matches(['\0', '\n']) == "hello from the puller", "the segment is {segment:?}");
        self.exec("web", &["sh", "-c", "echo hello from web > /dev/shm/demo"])?;
        let object = self.exec("puller", &["cat", "/dev/shm/demo"])?;
        ensure!(object.trim() == "hello from web", "the object is {object:?}");
        for table in ["/proc/sysvipc/sem", "/proc/sysvipc/shm"] {
            let text = std::fs::read_to_string(table).with_context(|| format!("read {table}"))?;
            let is_here = text.lines().any(|line| line.split_whitespace().next() == Some(KEY));
            ensure!(!is_here, "the pod's System V objects are the machine's too: {table}");
        }
        ensure!(!Path::new("/dev/shm/demo").exists(), "the pod's /dev/shm is the machine's");
        self.screen
            .tick("a System V semaphore, a segment and a file in /dev/shm: the pod's own, and not the machine's");
        Ok(())
    }

    fn host_port(&self) -> Result<u64> {
        self.screen.heading("The page, from the machine, over the hostPort");
        self.screen.print(&self.screen.dim(&format!("  GET http://{PAGE}/")));
        let page = http::get(PAGE, "/")?;
        self.screen.output(&page);
        let number = number(&page)?;
        self.screen.tick(&format!("page {number}"));
        Ok(number)
    }

    async fn restart(&self) -> Result<()> {
        self.screen.heading("A killed container comes back, and the volume is still there");
        let runner = self.runner.as_ref().context("the pod runs")?;
        let page = || number(&http::get(PAGE, "/").ok()?).ok();
        let before = wait::blocking("page 2 is there", wait::LIMIT, || page().filter(|page| *page > 1))?;
        let pid = self.pid("puller").await?;
        self.screen.print(&self.screen.dim(&format!("  $ kill -9 {pid}    # the puller")));
        kill(nix::unistd::Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL).context("kill the puller")?;
        runner.wait_for_times("starting at page", 2).await?;
        let log = self.vaina(&["logs", POD, "-c", "puller"])?;
        let start = log.lines().next().and_then(|line| line.strip_prefix("starting at page "));
        let start: u64 = start.context("the new puller did not say where it starts")?.parse().context("its page")?;
        ensure!(start >= before, "it starts at page {start}, and page {before} was there already");
        let after = wait::blocking("the next page is there", wait::LIMIT, || page().filter(|page| *page > start))?;
        ensure!(self.pid("puller").await? != pid, "it is the same process");
        self.screen.tick(&format!("a new puller went on from page {start}; now it is page {after}"));
        Ok(())
    }

    async fn stop(&mut self) -> Result<()> {
        self.screen.heading("An end in good order");
        let runner = self.runner.take().context("the pod runs")?;
        let begin = Instant::now();
        self.vaina(&["stop", POD])?;
        let elapsed = begin.elapsed();
        let ended = runner.end().await?.expect(0)?;
        let words = format!("{}{}", ended.out, ended.err);
        ensure!(words.matches("stopping").count() == 2, "not both containers got the stop signal");
        ensure!(!words.contains("Killed") && words.matches("done after").count() == 2, "a container did not end well");
        ensure!(elapsed < GRACE, "it took {elapsed:?}, longer than the grace period");
        let (took, had) = (elapsed.as_secs_f64(), GRACE.as_secs());
        self.screen
            .tick(&format!("both got SIGTERM, said so and ended by themselves: {took:.2} s, and they had {had} s"));
        Ok(())
    }

    async fn nothing_left(&self, before: &Snapshot, parts: &BTreeMap<String, usize>) -> Result<()> {
        self.screen.heading("Nothing is left");
        let mut left = Vec::new();
        let gone = wait::within("nothing is left", LEAK_LIMIT, &mut async || {
            left = before.difference(&Snapshot::take(&self.scope())?);
            Ok(left.is_empty().then_some(()))
        })
        .await;
        if gone.is_err() {
            bail!("left behind (+) or lost (-):\n{}", left.join("\n"));
        }
        ensure!(http::get(PAGE, "/").is_err(), "something still answers at {PAGE}");
        let parts: Vec<String> =
            parts.iter().map(|(kind, count)| format!("{count} {}", plural(kind, *count))).collect();
        self.screen.print(&format!("  the pod was {}", parts.join(", ")));
        self.screen.tick(&format!("all of that is gone; the {} things that were there before still are", before.len()));
        Ok(())
    }

    // === what the steps use ===

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.programs.vaina);
        // The shim need not be installed.
        let shims = self.programs.shim.parent().unwrap_or_else(|| Path::new("/")).to_owned();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths([shims].into_iter().chain(std::env::split_paths(&path))).unwrap_or(path);
        command.args(arguments).env("PATH", path).env(MARK, std::process::id().to_string()).stdin(Stdio::null());
        command
    }

    /// Runs a command that must succeed, shows it and what it printed.
    fn vaina(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.command(arguments);
        self.screen.command(&command);
        let output = command.output().context("run vaina")?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        self.screen.output(&out);
        ensure!(output.status.success(), "vaina {}: {}: {}", arguments.join(" "), output.status, err.trim_end());
        self.screen.output(&err);
        Ok(out.into_owned())
    }

    fn exec(&self, container: &str, command: &[&str]) -> Result<String> {
        self.vaina(&[&["exec", POD, "-c", container, "--"], command].concat())
    }

    async fn pods(&self) -> Result<Vec<cri::PodSandbox>> {
        let cri = Cri::connect(Path::new(SOCKET)).await.context("connect to the daemon")?;
        let label_selector = [("io.kubernetes.pod.name".to_owned(), POD.to_owned())].into();
        let filter = cri::PodSandboxFilter { label_selector, ..Default::default() };
        Ok(cri.list_pod_sandbox(cri::ListPodSandboxRequest { filter: Some(filter) }).await?.items)
    }

    /// The pid on this machine of a container's first process.
    async fn pid(&self, container: &str) -> Result<u32> {
        let cri = Cri::connect(Path::new(SOCKET)).await.context("connect to the daemon")?;
        let labels = [("io.kubernetes.pod.name", POD), ("io.kubernetes.container.name", container)];
        let filter = cri::ContainerFilter {
            state: Some(cri::ContainerStateValue { state: cri::ContainerState::ContainerRunning.into() }),
            label_selector: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            ..Default::default()
        };
        let found = cri.list_containers(cri::ListContainersRequest { filter: Some(filter) }).await?.containers;
        let running = found.first().with_context(|| format!("{container} does not run"))?;
        cri.container_pid(&running.id).await
    }

    fn scope(&self) -> Scope {
        let root = PathBuf::from("/var/lib/vaina");
        Scope {
            cgroup_marks: self.sandboxes.clone(),
            environment_mark: format!("{MARK}={}", std::process::id()),
            whole_namespace: false,
            directories: ["/run/vaina", "/run/netns", LOGS]
                .map(PathBuf::from)
                .into_iter()
                .chain([root.clone()])
                .collect(),
            ignored: leak::kept(),
            stores: Vec::new(),
            daemon: None,
        }
    }

    async fn clean_up(&mut self) {
        let Some(runner) = self.runner.take() else { return };
        // What it says is on the screen.
        let _ = self.vaina(&["stop", POD, "--force"]);
        let _ = runner.end().await;
    }
}

/// Marks the environment of all that the demo starts.
const MARK: &str = "VAINA_DEMO";

/// The number of the page.
fn number(page: &str) -> Result<u64> {
    let number = page.strip_prefix("<h1>page ").and_then(|rest| rest.split('<').next());
    number.and_then(|number| number.parse().ok()).with_context(|| format!("no page: {page:?}"))
}

fn plural(kind: &str, count: usize) -> String {
    match (kind, count) {
        ("nft", 1) => "nftables element".to_owned(),
        ("nft", _) => "nftables elements".to_owned(),
        (_, 1) => kind.to_owned(),
        ("directory", _) => "directories".to_owned(),
        ("address" | "process", _) => format!("{kind}es"),
        _ => format!("{kind}s"),
    }
}

/// What a person reads: headings, commands as they would type them, output a little to the right, and ticks.
#[derive(Debug, Clone, Copy)]
struct Screen {
    color: bool,
}

impl Screen {
    fn new() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { color: wanted && io::stdout().is_terminal() }
    }

    fn print(self, line: &str) {
        // A reader that left misses it.
        let _ = writeln!(io::stdout().lock(), "{line}");
    }

    fn heading(self, text: &str) {
        self.print(&format!("\n{}", self.paint("1", text)));
    }

    fn command(self, command: &Command) {
        let words = command.get_args().map(|word| word.to_string_lossy());
        let quoted = words.map(|word| {
            if word.contains([' ', '$', '|', ';', '>']) {
                format!("'{}'", word.replace('\'', "'\\''"))
            } else {
                word.into_owned()
            }
        });
        let words: Vec<String> = quoted.collect();
        self.print(&self.dim(&format!("  $ vaina {}", words.join(" "))));
    }

    fn output(self, text: &str) {
        for line in text.lines() {
            self.print(&format!("  {line}"));
        }
    }

    fn tick(self, text: &str) {
        self.print(&format!("  {} {text}", self.paint("32", "✓")));
    }

    /// For a command whose lines come while we say something else: whole lines only.
    fn show(self) -> Show {
        let rest = Mutex::new(Vec::new());
        Arc::new(move |bytes| {
            let mut rest = rest.lock().unwrap_or_else(PoisonError::into_inner);
            rest.extend_from_slice(bytes);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                self.print(&format!("  {}", String::from_utf8_lossy(&line).trim_end()));
            }
        })
    }

    fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
