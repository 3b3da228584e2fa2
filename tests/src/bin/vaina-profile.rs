//! Where the time of a pod's start and end goes: `vaina-profile [--pods N] [--out DIR]`, as root.
//!
//! Prints the median of each phase and ranks them by their part of the whole, and draws `profile-up.svg`,
//! `profile-down.svg` and `profile-exec.svg`. `make profile` is this with the programs as they are shipped; see
//! `docs/profile.md`.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::Parser;
use vaina_tests::profile::{
    record::{self, Recording},
    svg,
    tree::{self, Phase, Run},
};

/// Arguments.
#[derive(Debug, Parser)]
struct Args {
    /// How many pods of each kind are run up and down.
    #[arg(long, default_value_t = 20)]
    pods: usize,
    /// Where the pictures go.
    #[arg(long, default_value = "docs")]
    out: PathBuf,
    /// Keeps the raw spans here, as `host.jsonl` and `pod.jsonl`.
    #[arg(long)]
    raw: Option<PathBuf>,
}

/// How many phases are ranked.
const RANKED: usize = 15;

fn main() -> Result<()> {
    let args = Args::parse();
    for directory in [Some(&args.out), args.raw.as_ref()].into_iter().flatten() {
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    }
    let raw = |name: &str| args.raw.as_ref().map(|directory| directory.join(name));
    let host = record::record(args.pods, true, raw("host.jsonl").as_deref())?;
    print("pod up, host network", host.up);
    print("pod down, host network", host.down);
    let Recording { up, down, exec } = record::record(args.pods, false, raw("pod.jsonl").as_deref())?;
    for (file, title, runs) in [
        ("profile-up.svg", "pod up, pod network", up),
        ("profile-down.svg", "pod down, pod network", down),
        ("profile-exec.svg", "exec", exec),
    ] {
        let phases = print(title, runs);
        let subtitle = format!(
            "median of {} runs, one at a time; pale: phases with others in them; numbers are milliseconds",
            args.pods
        );
        let path = args.out.join(file);
        let heading = format!("{title}: {:.1} ms", phases.first().map_or(0.0, |root| root.length));
        fs::write(&path, svg::draw(&heading, &subtitle, &phases))
            .with_context(|| format!("write {}", path.display()))?;
        println!("drawn: {}\n", path.display());
    }
    Ok(())
}

fn print(title: &str, runs: Vec<Run>) -> Vec<Phase> {
    let count = runs.len();
    let phases = tree::median(&tree::middle(runs));
    let whole = phases.first().map_or(1.0, |root| root.length);
    let all: f64 = phases.iter().map(|phase| phase.own).sum();
    let share = |own: f64| own / all * 100.0;
    println!("=== {title}: {whole:.1} ms (median of {count} runs) ===");
    println!("{:<58} {:<7} {:>8} {:>8} {:>6}", "phase", "process", "p50 ms", "own ms", "share");
    for phase in &phases {
        let name = format!("{}{}", "  ".repeat(phase.depth()), phase.name());
        let (length, own) = (phase.length, phase.own);
        println!("{name:<58} {:<7} {length:>8.2} {own:>8.2} {:>5.1}%", phase.process, share(own));
    }
    println!("\nwhere the time goes:");
    for (place, (name, process, own)) in tree::ranking(&phases).iter().take(RANKED).enumerate() {
        println!("{:>3}. {:<54} {process:<7} {own:>8.2} {:>5.1}%", place + 1, name, share(*own));
    }
    println!();
    phases
}
