//! A run of the tests that know only the CRI against a peer.

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use super::{ENDPOINT, differences::Differences, marked, verdict::Verdict};

/// Runs those whose names contain one of the filters, or all, says what came of it, and answers whether all is as known.
pub fn run(endpoint: &str, filters: &[String]) -> Result<bool> {
    let all = tests()?;
    let is_wanted = |name: &&String| filters.is_empty() || filters.iter().any(|filter| name.contains(filter));
    let wanted: Vec<String> = all.iter().filter(is_wanted).cloned().collect();
    ensure!(!wanted.is_empty(), "none of {} tests is {filters:?}", all.len());
    println!("{endpoint}: {} of {} tests that know only the CRI", wanted.len(), all.len());

    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut child = Command::new(cargo)
        .args(["test", "--locked", "-p", "vaina-tests", "--test", "e2e", "--", "--exact"])
        .args(&wanted)
        .env(ENDPOINT, endpoint)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start the tests")?;
    let mut output = String::new();
    for line in BufReader::new(child.stdout.take().context("the tests' output")?).lines() {
        let line = line.context("read the tests' output")?;
        println!("{line}");
        output.push_str(&line);
        output.push('\n');
    }
    // Its code says that tests failed; which, and whether they were to, is said by the output.
    child.wait().context("wait for the tests")?;
    let known = Differences::known()?;
    let verdict = Verdict::new(&wanted, &all, &known.of(endpoint), &output);
    println!("\n{endpoint}:\n{verdict}");
    Ok(verdict.is_good())
}

/// All of the tests that know only the CRI.
fn tests() -> Result<Vec<String>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e");
    let mut files: Vec<_> = fs::read_dir(&directory)
        .with_context(|| format!("list {}", directory.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    files.sort();
    let mut tests = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let module = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        tests.extend(marked::tests(&module, &text));
    }
    Ok(tests)
}
