//! Boots the guest node and runs programs in it: `vaina-guest --payload DIR [--cache DIR] -- PROGRAM ARG…`.
//!
//! Everything in the payload directory is at `/payload` inside. Output is passed on as it comes; the exit code is the
//! program's. `make test-vm` is built on this.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::Parser;
use vaina_tests::guest::{Disk, image};

/// Arguments.
#[derive(Debug, Parser)]
struct Args {
    /// Directory whose content is at /payload inside (its own agent is added).
    #[arg(long)]
    payload: PathBuf,
    /// Where images are kept.
    #[arg(long)]
    cache: Option<PathBuf>,
    /// Keeps console log and disks here instead of in a temporary directory.
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Program to run inside, and its arguments.
    #[arg(required = true, last = true)]
    argv: Vec<String>,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let cache = match args.cache {
        Some(cache) => cache,
        None => {
            PathBuf::from(std::env::var_os("HOME").context("HOME is not set; name --cache")?).join(".cache/vaina-tools")
        }
    };
    let image = image::ensure(&cache)?;
    let agent = std::env::current_exe()?.with_file_name("vaina-guest-agent");
    std::fs::copy(&agent, args.payload.join("vaina-guest-agent"))
        .with_context(|| format!("copy {}", agent.display()))?;
    let temporary = tempfile::tempdir()?;
    let dir = args.keep.unwrap_or_else(|| temporary.path().to_owned());
    let mut guest = Disk::create(&image, &dir, &args.payload)?.boot()?;
    let argv: Vec<&str> = args.argv.iter().map(String::as_str).collect();
    let mut stdout = std::io::stdout();
    let code = guest.run(&argv, &mut |data| {
        let _ = stdout.write_all(data);
        let _ = stdout.flush();
    })?;
    guest.shut_down()?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}
