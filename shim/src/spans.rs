//! Where the time goes: a line of JSON for each phase, in the file that `VAINA_SPANS` names.
//!
//! For whoever profiles (`docs/profile.md`), together with the daemon, which names the file to its shims and writes there
//! too. Without it a phase costs a look at a static and nothing else: a subscriber with spans would cost more memory than
//! the rest of an idle shim.

use std::{fs::File, io::Write as _, sync::OnceLock};

use crate::reaper::now;

const VARIABLE: &str = "VAINA_SPANS";

/// Where they are written, and whose they are.
struct Sink {
    file: File,
    process: &'static str,
    pid: u32,
}

static SINK: OnceLock<Option<Sink>> = OnceLock::new();

/// Begins to write, if anybody wants to read. Before it, and in tests, no phase is written.
pub(crate) fn init(process: &'static str) {
    SINK.get_or_init(|| {
        let path = std::env::var_os(VARIABLE).filter(|path| !path.is_empty())?;
        // A profile that can't be written must not stop a pod.
        let file = File::options().append(true).create(true).open(path).ok()?;
        Some(Sink { file, process, pid: std::process::id() })
    });
}

fn sink() -> Option<&'static Sink> {
    SINK.get()?.as_ref()
}

/// Whether phases are written.
pub(crate) fn are_wanted() -> bool {
    sink().is_some()
}

/// A phase that lasts until this is dropped.
#[must_use]
pub(crate) struct Span(Option<Open>);

struct Open {
    process: &'static str,
    name: &'static str,
    id: String,
    started: i64,
}

/// Begins a phase of what has that id.
pub(crate) fn start(name: &'static str, id: &str) -> Span {
    Span(sink().map(|sink| Open { process: sink.process, name, id: id.to_owned(), started: now() }))
}

/// Begins a phase of a child that is not yet the OCI runtime.
pub(crate) fn start_before_exec(name: &'static str, id: &str) -> Span {
    Span(sink().map(|_| Open { process: "oci", name, id: id.to_owned(), started: now() }))
}

/// Writes a phase that is over.
pub(crate) fn write(name: &str, id: &str, started: i64, ended: i64) {
    if let Some(sink) = sink() {
        sink.line(sink.process, name, id, started, ended);
    }
}

impl Sink {
    fn line(&self, process: &str, name: &str, id: &str, started: i64, ended: i64) {
        // The process in a container's PID namespace, which counts as part of the command that forked it, sees itself as 1.
        let pid = if self.process == "oci" { self.pid } else { std::process::id() };
        let line = serde_json::json!({
            "process": process,
            "pid": pid,
            "name": name,
            "id": id,
            "start_ns": started,
            "end_ns": ended,
        });
        // Several processes write, each line at once. A full disk spoils a profile and nothing else.
        let _ = (&self.file).write_all(format!("{line}\n").as_bytes());
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let (Some(open), Some(sink)) = (self.0.take(), sink()) {
            sink.line(open.process, open.name, &open.id, open.started, now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_file_a_phase_is_nothing() {
        assert!(!are_wanted());
        assert!(start("a", "b").0.is_none());
        write("a", "b", 0, 1);
    }
}
