//! The Kubernetes project's command line client of the CRI, for the daemon of the calling thread's node.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use anyhow::{Context as _, Result};

use crate::{
    node::{SOCKET, run},
    require,
};

/// The version that is driven, as it is kept beside the checkout.
pub const CRICTL: &str = "crictl-v1.36.0";

/// crictl with these arguments.
pub fn crictl(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(require::kept_tool(CRICTL, "tools")?);
    command.arg("--config").arg(configuration()?).args(arguments).stdin(Stdio::null());
    Ok(command)
}

/// What a crictl command that must succeed prints as JSON.
pub fn json(arguments: &[&str]) -> Result<serde_json::Value> {
    let text = run(&mut crictl(arguments)?)?;
    serde_json::from_str(&text).with_context(|| format!("crictl {arguments:?} printed {text:?}"))
}

/// A configuration of its own, so that the machine's does not matter.
fn configuration() -> Result<&'static Path> {
    static FILE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let made = FILE.get_or_init(|| {
        let make = || -> Result<PathBuf> {
            let path = std::env::current_exe()?.with_extension("crictl.yaml");
            let text = format!("runtime-endpoint: unix://{SOCKET}\nimage-endpoint: unix://{SOCKET}\ntimeout: 60\n");
            fs::write(&path, text)?;
            Ok(path)
        };
        make().map_err(|error| format!("{error:#}"))
    });
    made.as_deref().map_err(|error| anyhow::anyhow!("write crictl's configuration: {error}"))
}
