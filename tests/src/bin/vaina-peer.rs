//! Runs the end-to-end tests that know only the CRI against a containerd: `vaina-peer containerd-runc [FILTER…]`. See
//! `vaina_tests::peer`.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use vaina_tests::peer::trial;

fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    let endpoint = arguments.next().context("usage: vaina-peer containerd-runc|containerd-crun [FILTER…]")?;
    let is_good = trial::run(&endpoint, &arguments.collect::<Vec<_>>())?;
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
