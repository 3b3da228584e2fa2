//! Builds `vaina-init` beside the shim, which embeds it.
//!
//! A program without a standard library can't be a target of the workspace: it needs `panic=abort` and no start files in every
//! profile. `rustc` builds it in a tenth of a second.

use std::{env, error::Error, path::PathBuf, process::Command};

fn main() -> Result<(), Box<dyn Error>> {
    let source = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../sys/init/main.rs");
    println!("cargo:rerun-if-changed={}", source.display());
    let output = PathBuf::from(env::var("OUT_DIR")?).join("vaina-init");
    let status = Command::new(env::var("RUSTC")?)
        .args(["--crate-name", "vaina_init", "--crate-type", "bin", "--edition", "2024"])
        .args(["--target", &env::var("TARGET")?])
        .args(["-C", "panic=abort", "-C", "opt-level=s", "-C", "strip=symbols"])
        .args(["-C", "relocation-model=static", "-C", "target-feature=+crt-static"])
        .args(["-C", "link-arg=-nostartfiles", "-C", "link-arg=-nostdlib", "-C", "link-arg=-static"])
        .args(["-C", "link-arg=-Wl,--build-id=none", "-C", "link-arg=-Wl,-z,noseparate-code"])
        .arg("-o")
        .arg(&output)
        .arg(&source)
        .status()?;
    if !status.success() {
        return Err(format!("build vaina-init: rustc ended with {status}").into());
    }
    println!("cargo:rustc-env=VAINA_INIT={}", output.display());
    Ok(())
}
