//! critest, the conformance suite of the Kubernetes project, against the real daemon.
//!
//! Every spec passes or stands in [`SKIPS`] with the reason that lies in the machine; a skip that is not listed fails as
//! a failure does. The images come from a registry on loopback that the daemon knows as a mirror (`hosts.toml`).

mod report;

use std::{
    env, fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use vaina_proto::cri::{ListContainersRequest, ListImagesRequest, ListPodSandboxRequest};
use vaina_tests::{
    images::{critest, probe_beside_this_program},
    node::{IMAGE, Node, Options, SOCKET, e2e_with},
    registry::DockerRegistry,
    require,
};

use self::report::{Report, State};

/// The version that the specs and their number belong to.
const CRITEST: &str = "critest-v1.36.0";

/// Where mirrors are configured, in the node's own `/run`; and a parent of control groups that no other node has.
const CONFIG: &str = "[image]\nregistries = '/run/registries'\n[cgroup]\nparent = '/vaina-critest'\n";

/// Words of specs that this machine can't run, and why.
const SKIPS: &[(&str, &str)] = &[
    ("AppArmor", "the kernel of this machine has no AppArmor; they run in the guest"),
    ("SELinux", "the kernel of this machine has no SELinux"),
    ("benchmark", "timings are not asserted; the project measures with `make bench`"),
    (
        "public image with digest",
        "its digest is of content that can't be made again offline; pulls by digest have tests of their own",
    ),
    ("NRI", "an interface of containerd and CRI-O, not of the CRI"),
];

/// Runs the suite with further arguments in a fresh node.
///
/// # Panics
/// When anything of it fails.
fn suite(arguments: &'static [&'static str]) {
    // In the machine's own namespaces, as this reaches for packages.
    let debian = require::cache().and_then(|cache| critest::Debian::ensure(&cache)).expect("unpack Debian's packages");
    e2e_with(
        Options { config: Some(CONFIG.to_owned()), without_daemon: true, ..Options::default() },
        async move |node| {
            // What specs provoke on purpose (missing images and commands, wrong profiles) is told by WARN at most.
            node.allow("failed");
            let program = require::kept_tool(CRITEST, "critest-tools")?;
            let registry = DockerRegistry::start(node.directory(), 5000, false)?;
            critest::Builder::new(&debian, &probe_beside_this_program()?)?.push(&registry.target)?;
            for host in critest::HOSTS {
                let directory = Path::new("/run/registries").join(host);
                fs::create_dir_all(&directory)?;
                let text =
                    format!("[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n", registry.target.address);
                fs::write(directory.join("hosts.toml"), text)?;
            }
            node.boot().await?;
            let report = run(node, &program, arguments)?;
            let missing: Vec<_> = report
                .specs
                .iter()
                .filter(|spec| spec.state == State::Skipped && !SKIPS.iter().any(|(word, _)| spec.name.contains(word)))
                .collect();
            println!("critest {arguments:?}: {report}");
            for spec in report.specs.iter().filter(|spec| spec.state == State::Skipped) {
                println!("skipped: {}", spec.name);
            }
            ensure!(
                report.failed().next().is_none(),
                "failed:\n{}",
                report.failed().map(|spec| spec.told()).collect::<String>()
            );
            ensure!(missing.is_empty(), "skipped, and not in the list: {missing:#?}");
            ensure!(report.passed() >= LEAST, "only {} specs have passed", report.passed());

            let cri = node.cri();
            let pods = cri.list_pod_sandbox(ListPodSandboxRequest::default()).await?.items;
            let containers = cri.list_containers(ListContainersRequest::default()).await?.containers;
            ensure!(pods.is_empty() && containers.is_empty(), "critest left {pods:?} {containers:?}");
            // It leaves the images that its pods ran.
            for image in cri.list_images(ListImagesRequest::default()).await?.images {
                if !image.repo_tags.iter().any(|tag| tag == IMAGE) {
                    cri.remove_image(&image.id).await?;
                }
            }
            for hierarchy in fs::read_dir("/sys/fs/cgroup")?.flatten() {
                let left: Vec<_> =
                    fs::read_dir(hierarchy.path().join("vaina-critest")).into_iter().flatten().flatten().collect();
                let left: Vec<_> = left.iter().filter(|entry| entry.path().is_dir()).map(fs::DirEntry::path).collect();
                ensure!(left.is_empty(), "control groups are left: {left:?}");
                let _ = fs::remove_dir(hierarchy.path().join("vaina-critest"));
            }
            Ok(())
        },
    );
}

/// All that a machine like this can run.
const LEAST: usize = 107;

fn run(node: &Node, program: &Path, arguments: &[&str]) -> Result<Report> {
    let json = node.directory().join("critest.json");
    let log = node.directory().join("critest.log");
    let output = fs::File::create(&log).context("create critest's log")?;
    let endpoint = format!("unix://{SOCKET}");
    let status = Command::new(program)
        .args(["-runtime-endpoint", &endpoint, "-image-endpoint", &endpoint, "-config", "/nonexistent"])
        .args(["-ginkgo.no-color", &format!("-ginkgo.json-report={}", json.display())])
        .args(["-ginkgo.skip", "benchmark|image with digest"])
        .args(arguments)
        .args(env::var("CRITEST_FOCUS").ok().map(|focus| format!("-ginkgo.focus={focus}")))
        .current_dir(node.directory())
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .status()
        .with_context(|| format!("run {}", program.display()))?;
    if let Some(path) = env::var_os("CRITEST_LOG") {
        fs::copy(&log, path).context("keep critest's log")?;
    }
    let text = fs::read(&json).with_context(|| {
        let log = fs::read_to_string(&log).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(20).collect();
        format!(
            "critest ended with {status} and wrote no report:\n{}",
            tail.into_iter().rev().collect::<Vec<_>>().join("\n")
        )
    })?;
    Report::parse(&text)
}

#[test]
fn spdy() {
    suite(&[]);
}

#[cfg(feature = "full-conformance")]
mod full {
    use super::suite;

    const WEBSOCKET: [&str; 3] = ["-websocket-exec", "-websocket-attach", "-websocket-portforward"];

    #[test]
    fn websocket() {
        suite(&WEBSOCKET);
    }

    #[test]
    fn spdy_with_crun() {
        suite(&["-runtime-handler", "crun"]);
    }

    #[test]
    fn websocket_with_crun() {
        suite(&["-websocket-exec", "-websocket-attach", "-websocket-portforward", "-runtime-handler", "crun"]);
    }
}
