//! Writes `docs/conformance.md`, or tells why it can't be written: `make conformance-report`.

use std::fs;

use anyhow::{Context as _, Result};
use vaina_tests::conformance;

fn main() -> Result<()> {
    let (text, path) = (conformance::make()?, conformance::path());
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}
