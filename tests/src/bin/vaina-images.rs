//! Writes the image of the demo and the examples as an archive, for `vaina image import`.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Parser;
use vaina_tests::images::{self, archive};

/// Writes an archive with busybox and vaina-probe, made from this machine's own programs
#[derive(Debug, Parser)]
#[command(name = "vaina-images")]
struct Arguments {
    /// Name of the image
    #[arg(long, value_name = "REF", default_value = images::DEMO)]
    name: String,
    /// The archive, an OCI layout in a tar
    archive: PathBuf,
}

fn main() -> Result<()> {
    let Arguments { name, archive } = Arguments::parse();
    let image = images::base(&images::probe_beside_this_program()?)?.build()?;
    archive::oci_archive(&archive, &[(&name, archive::Tagged::Image(&image))])
        .with_context(|| format!("write {}", archive.display()))
}
