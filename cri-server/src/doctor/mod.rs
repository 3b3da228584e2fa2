//! `vaina doctor`: what is wrong with this host and with what is recorded, in words; `--repair` mends what can be mended.
//!
//! Looking (`host`, `records`, `reality`) is apart from judging (`state`, pure). It starts nothing, writes nothing and asks no
//! daemon: the database is opened read-only, which disturbs its one writer no more than a backup does, so that it looks the same
//! with a daemon, without one, and with one that hangs.
//!
//! Repair is recovery (`repair`): under the daemon's lock, by the same planner and steps. A daemon that runs has done that at its
//! start, and two that change one node would be one too many; so then nothing is changed, and that is said.

mod host;
mod reality;
mod records;
mod repair;
mod report;
mod state;

use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use self::report::{Check, Report};
use crate::{config::Config, error::Chain};

/// What to look at, and how to say it.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Configuration file [default: /etc/vaina/config.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
    /// Mend what can be mended; needs that no daemon runs, since a daemon does this at its start
    #[arg(long)]
    repair: bool,
    /// Repair removes what has no record even if nothing at all is recorded, as after the loss of the database: with all that
    /// runs in it
    #[arg(long, requires = "repair")]
    all_unrecorded: bool,
}

/// Looks, mends if that is asked, and says it all: 0 if all is well, 1 with warnings, 2 if something is broken.
pub async fn run(arguments: Doctor) -> ExitCode {
    let mut report = Report::default();
    match Config::load(arguments.config.as_deref()) {
        Ok(config) => {
            report.push(Check::ok("configuration", "it is valid"));
            if arguments.repair {
                report.extend(repair::run(config.clone(), arguments.all_unrecorded).await);
            }
            report.extend(look(&config).await);
        }
        Err(error) => report.push(
            Check::fail("configuration", Chain(&error).to_string())
                .advice("correct the file; nothing else was looked at"),
        ),
    }
    report.print(arguments.json);
    ExitCode::from(report.code())
}

async fn look(config: &Config) -> Vec<Check> {
    let mut checks = host::look(config).await;
    // The order is what makes a thing without a record certain: it is seen before the records are read and after it. Records
    // are written before their things, and ids are never used again.
    let before = reality::look(config).await;
    let records = records::read(&config.root.join("state.db"));
    let after = reality::look(config).await;
    checks.extend(state::judge(records, &before, &after));
    checks
}
