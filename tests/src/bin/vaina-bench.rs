//! The benchmark client: compares endpoints of the CRI, row by row. See `vaina_tests::bench`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::Parser;
use vaina_tests::bench::{
    Bench, FLOOR, Part, Scale,
    daemon::Daemon,
    endpoint::Endpoint,
    ground::{self, Plain, Role},
    images::Images,
    report,
    sheet::Sheet,
    svg,
};

/// Measures endpoints of the Kubernetes Container Runtime Interface, which take turns (root)
#[derive(Debug, Parser)]
#[command(name = "vaina-bench", version)]
struct Arguments {
    /// An endpoint that is there already; may be repeated
    #[arg(long, value_name = "NAME=SOCKET", value_parser = endpoint)]
    endpoint: Vec<(String, PathBuf)>,
    /// A daemon to start in namespaces of its own: vaina, containerd-runc, containerd-crun; may be repeated
    #[arg(long, value_name = "NAME", conflicts_with = "endpoint")]
    start: Vec<String>,
    /// Compare the first endpoint with this one only
    #[arg(long, value_name = "NAME")]
    peer: Option<String>,
    /// Few pods and little data, to see that it works
    #[arg(long)]
    quick: bool,
    /// Only these parts
    #[arg(long, value_delimiter = ',', value_name = "PARTS")]
    only: Vec<Part>,
    /// Write the figures here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the comparison here
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Put the table into this document, between its marks
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

/// All parts, in their order: memory first, while the daemons are fresh.
const PARTS: [Part; 6] = [Part::Idle, Part::Pods, Part::Exec, Part::Logs, Part::Pull, Part::Floor];

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("vaina-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<u8> {
    if !arguments.endpoint.is_empty() {
        let ground = Plain::new()?;
        measure(&arguments, ground.path())?;
        return Ok(0);
    }
    match ground::enter()? {
        Role::Done(code) => Ok(code),
        Role::Measure(directory) => measure(&arguments, &directory).map(|()| 0),
    }
}

fn measure(arguments: &Arguments, directory: &Path) -> Result<()> {
    let images = Images::serve(directory)?;
    let mut endpoints = Vec::new();
    for (name, socket) in &arguments.endpoint {
        endpoints.push(Endpoint::new(name, socket, None, &images.base, directory));
    }
    if endpoints.is_empty() {
        let ours = ["vaina".to_owned()];
        let names = if arguments.start.is_empty() { &ours[..] } else { &arguments.start };
        if names.iter().any(|name| name != "vaina") {
            images.add_pause(directory)?;
        }
        for name in names {
            let (daemon, socket) = Daemon::known(name, directory, images.address())?;
            endpoints.push(Endpoint::new(name, &socket, Some(daemon), &images.base, directory));
        }
    }
    let parts: Vec<Part> =
        PARTS.into_iter().filter(|part| arguments.only.is_empty() || arguments.only.contains(part)).collect();
    let mut names: Vec<String> = endpoints.iter().map(|endpoint| endpoint.name.clone()).collect();
    let compared = names.clone();
    if parts.contains(&Part::Floor) {
        names.push(FLOOR.to_owned());
    }
    let scale = if arguments.quick { Scale::QUICK } else { Scale::FULL };
    let sheet = Sheet::new(names, arguments.peer.clone());
    let mut bench = Bench { endpoints, images, scale, sheet };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(bench.run(&parts, directory))?;

    print!("{}", report::table(&bench.sheet));
    let write = |path: &Path, text: String| fs::write(path, text).with_context(|| format!("write {}", path.display()));
    if let Some(path) = &arguments.json {
        write(path, report::json(&bench.sheet)?)?;
    }
    if let Some(path) = &arguments.svg {
        write(path, svg::draw(&bench.sheet, &compared))?;
    }
    if let Some(path) = &arguments.markdown {
        report::insert(path, &report::markdown(&bench.sheet))?;
    }
    Ok(())
}

fn endpoint(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, socket)) if !name.is_empty() && socket.starts_with('/') => Ok((name.to_owned(), socket.into())),
        _ => Err("it must be NAME=/path/of/the/socket".to_owned()),
    }
}
