//! Where the time of a pod's start and end goes: `make profile`.
//!
//! Daemon, shim and OCI runtime append their spans to the file that `VAINA_SPANS` names, a line of JSON each. [`record`]
//! runs pods on a node and adds what the client saw, [`tree`] puts the spans of a run into each other and takes the median
//! of many runs, [`svg`] draws it.

pub mod record;
pub mod svg;
pub mod tree;

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// The processes that take part, callers before those whom they call.
pub const PROCESSES: [&str; 4] = ["client", "daemon", "shim", "oci"];

/// One phase of one process.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Span {
    /// One of [`PROCESSES`].
    pub process: String,
    /// Of the process, as it sees itself.
    pub pid: u32,
    /// Number of the span; only the daemon has them, and uses them again.
    #[serde(default)]
    pub span: Option<u64>,
    /// Number of the one that it is part of.
    #[serde(default)]
    pub parent: Option<u64>,
    /// What is done. A call into another process is named `<process>.<what>`.
    pub name: String,
    /// Unix nanoseconds.
    pub start_ns: i64,
    /// Unix nanoseconds.
    pub end_ns: i64,
}

impl Span {
    /// Something that the client has waited for.
    pub fn client(name: &str, start_ns: i64, end_ns: i64) -> Self {
        let (process, name) = ("client".to_owned(), name.to_owned());
        Self { process, pid: std::process::id(), span: None, parent: None, name, start_ns, end_ns }
    }

    /// How long it took, in nanoseconds.
    pub fn length(&self) -> i64 {
        self.end_ns - self.start_ns
    }

    /// Whether all of the other lies in it.
    pub fn encloses(&self, other: &Self) -> bool {
        self.start_ns <= other.start_ns && other.end_ns <= self.end_ns
    }

    /// How far down the calls its process is.
    pub fn rank(&self) -> usize {
        PROCESSES.iter().position(|process| *process == self.process).unwrap_or(PROCESSES.len())
    }
}

/// Reads a file of spans.
pub fn parse(text: &str) -> Result<Vec<Span>> {
    let read = |(index, line)| serde_json::from_str(line).with_context(|| format!("line {}: {line}", index + 1));
    text.lines().enumerate().map(read).collect()
}

/// Unix nanoseconds, by the clock that all processes use.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_and_a_broken_one_is_named() {
        let daemon =
            r#"{"process":"daemon","pid":7,"span":3,"parent":null,"name":"netns","id":"ab","start_ns":5,"end_ns":9}"#;
        let shim = r#"{"process":"shim","pid":8,"name":"Create","id":"","start_ns":6,"end_ns":7}"#;
        let spans = parse(&format!("{daemon}\n{shim}\n")).unwrap();
        assert_eq!((spans[0].span, spans[0].parent, spans[0].length(), spans[0].rank()), (Some(3), None, 4, 1));
        assert_eq!((spans[1].span, spans[1].rank()), (None, 2));
        assert!(spans[0].encloses(&spans[1]) && !spans[1].encloses(&spans[0]));
        let error = parse(&format!("{daemon}\nnonsense\n")).unwrap_err();
        assert!(format!("{error:#}").contains("line 2"), "{error:#}");
    }
}
