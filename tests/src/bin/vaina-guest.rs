//! The guest node from the command line; `make test-vm` and `make vm-shell` are built on it.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};
use vaina_tests::{
    guest::{
        Disk,
        group::{self, GROUPS},
        image, payload,
    },
    require,
};

/// A Debian machine with systemd and cgroup v2 in QEMU.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Lists the groups of tests
    Groups,
    /// Runs groups of tests; the exit code is that of the first test program that failed
    Test {
        /// The groups
        #[arg(required = true)]
        groups: Vec<String>,
        /// What they leave is below this directory
        #[arg(long, default_value = "target/vm")]
        results: PathBuf,
        /// Arguments for the test programs
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Runs a program in a fresh guest that has our programs in /payload; the exit code is the program's
    Run {
        /// Disks and console log are kept here
        #[arg(long, default_value = "target/vm/run")]
        directory: PathBuf,
        /// The program and its arguments
        #[arg(required = true, last = true)]
        argv: Vec<String>,
    },
    /// Boots the disks that a group or a program left, with a root shell on this terminal (`poweroff` ends it)
    Shell {
        /// Where they are
        directory: PathBuf,
    },
}

fn main() -> Result<ExitCode> {
    match Arguments::parse().command {
        Command::Groups => {
            for group in &GROUPS {
                println!("{:16} {}", group.name, group.about);
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Test { groups, results, arguments } => test(&groups, &results, &arguments),
        Command::Run { directory, argv } => {
            let image = image::ensure(&require::cache()?)?;
            let payload = tempfile::tempdir()?;
            payload::assemble(payload.path(), &[])?;
            let mut guest = Disk::create(&image, &directory, payload.path())?.boot()?;
            let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
            let code = guest.run(&argv, &mut |data| {
                // A reader that has gone is no reason to stop.
                let _ = std::io::stdout().write_all(data).and_then(|()| std::io::stdout().flush());
            })?;
            guest.shut_down()?;
            Ok(exit_code(code))
        }
        Command::Shell { directory } => {
            Disk::open(&image::ensure(&require::cache()?)?, &directory)?.boot_for_people()?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn test(groups: &[String], results: &std::path::Path, arguments: &[String]) -> Result<ExitCode> {
    let groups = groups.iter().map(|name| group::find(name)).collect::<Result<Vec<_>>>()?;
    ensure!(!groups.is_empty(), "no groups");
    let mut first = 0;
    for group in groups {
        println!("=== guest node: {}: {}", group.name, group.about);
        let outcome = group.run(results, arguments).with_context(|| format!("guest node: group {}", group.name))?;
        let end = if outcome.code == 0 { "passed".to_owned() } else { format!("FAILED with {}", outcome.code) };
        println!("=== guest node: {} {end}; its logs are in {}", group.name, results.join(group.name).display());
        if first == 0 {
            first = outcome.code;
        }
    }
    Ok(exit_code(first))
}

fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}
