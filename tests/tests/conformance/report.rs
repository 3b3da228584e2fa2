//! What Ginkgo's JSON report says of each spec.

use std::fmt;

use anyhow::{Context as _, Result};
use serde_json::Value;

/// How a spec ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Passed,
    Skipped,
    /// Failed, panicked, timed out, or was interrupted.
    Failed,
}

/// One spec.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    /// Names of its containers and its own.
    pub(crate) name: String,
    pub(crate) state: State,
    message: String,
}

impl Spec {
    /// Name and message, for people.
    pub(crate) fn told(&self) -> String {
        format!("  {}\n      {}\n", self.name, self.message.replace('\n', "\n      "))
    }
}

/// All specs of a run.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    pub(crate) specs: Vec<Spec>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let skipped = self.specs.iter().filter(|spec| spec.state == State::Skipped).count();
        write!(f, "{} passed / {} failed / {skipped} skipped", self.passed(), self.failed().count())
    }
}

impl Report {
    /// Reads a report of `-ginkgo.json-report`.
    pub(crate) fn parse(text: &[u8]) -> Result<Self> {
        let report: Value = serde_json::from_slice(text).context("parse critest's report")?;
        let suites = report.as_array().context("critest's report is no list")?;
        let specs =
            suites.iter().filter_map(|suite| suite["SpecReports"].as_array()).flatten().filter_map(spec).collect();
        Ok(Self { specs })
    }

    /// How many have passed.
    pub(crate) fn passed(&self) -> usize {
        self.specs.iter().filter(|spec| spec.state == State::Passed).count()
    }

    /// Those that have not.
    pub(crate) fn failed(&self) -> impl Iterator<Item = &Spec> {
        self.specs.iter().filter(|spec| spec.state == State::Failed)
    }
}

fn spec(value: &Value) -> Option<Spec> {
    let text = |key: &str| value[key].as_str().unwrap_or_default();
    let state = match text("State") {
        "passed" => State::Passed,
        "skipped" | "pending" => State::Skipped,
        _ => State::Failed,
    };
    // Set-up and tear-down of the suite are reported too; they only matter when they fail.
    if text("LeafNodeType") != "It" && state != State::Failed {
        return None;
    }
    let containers = value["ContainerHierarchyTexts"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let name = containers.chain([text("LeafNodeText")]).collect::<Vec<_>>().join(" ");
    let message = value["Failure"]["Message"].as_str().unwrap_or_default().to_owned();
    Some(Spec { name, state, message })
}
