//! Why a creation failed, told by the processes that are forked for it.
//!
//! `libcontainer` passes only the outermost message from its children to the caller; the cause is in the `tracing` events that
//! it emits on the way. They are collected in a file in memory that parent and children share across the forks, and the
//! parent reads it after a failure.

use std::{
    fmt::Write as _,
    fs::File,
    io::{self, Write as _},
    os::unix::fs::FileExt as _,
    path::Path,
    sync::Arc,
};

use rustix::fs::{MemfdFlags, OFlags, fcntl_setfl, memfd_create};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    span,
};

use super::milestones::Milestones;

/// Marks a line that is the whole cause, made for people.
const VERDICT: &str = "!";

/// The shared file.
#[derive(Debug, Clone)]
pub(super) struct Causes {
    file: Arc<File>,
    /// Only while a profile is taken.
    milestones: Option<Arc<Milestones>>,
}

impl Causes {
    /// Starts collecting in this process and those forked from it, which make or join that container; `last` is where it has
    /// its last mount.
    pub(super) fn collect(id: &str, last: Option<&Path>) -> io::Result<Self> {
        let file = memfd_create("causes", MemfdFlags::CLOEXEC)?;
        // Several processes write, each line at once.
        fcntl_setfl(&file, OFlags::APPEND)?;
        let milestones = Milestones::are_wanted().then(|| Arc::new(Milestones::new(id, last)));
        let causes = Self { file: Arc::new(File::from(file)), milestones };
        // Set once per process; a second set (in tests) leaves the first in place, which is only less to read.
        let _ = tracing::subscriber::set_global_default(Collector(causes.clone()));
        Ok(causes)
    }

    fn line(&self, text: &str) {
        let line = format!("{}\n", text.replace('\n', " "));
        let _ = (&*self.file).write_all(line.as_bytes());
    }

    /// For a profile: what this process does from now on; nothing if the name is empty.
    pub(super) fn milestone(&self, name: &str) {
        if let Some(milestones) = &self.milestones {
            milestones.begin(name);
        }
    }

    /// Notes what went wrong in words that need nothing added.
    pub(super) fn verdict(&self, text: &str) {
        self.line(&format!("{VERDICT}{text}"));
    }

    /// What was noted: the verdict, or else the first and so innermost event.
    pub(super) fn read(&self) -> Option<Cause> {
        let length = self.file.metadata().ok()?.len();
        let mut text = vec![0; usize::try_from(length).ok()?];
        self.file.read_exact_at(&mut text, 0).ok()?;
        first(&String::from_utf8_lossy(&text))
    }
}

/// What a child has told.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// It says all.
    Verdict(String),
    /// It explains the message that the library passes on.
    Event(String),
}

fn first(text: &str) -> Option<Cause> {
    if let Some(verdict) = text.lines().find_map(|line| line.strip_prefix(VERDICT)) {
        return Some(Cause::Verdict(verdict.to_owned()));
    }
    text.lines().find(|line| !line.is_empty()).map(|line| Cause::Event(line.to_owned()))
}

struct Collector(Causes);

impl Subscriber for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
            || (self.0.milestones.is_some() && Milestones::is_one(metadata.target(), *metadata.level()))
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(if self.0.milestones.is_some() { LevelFilter::TRACE } else { LevelFilter::ERROR })
    }

    fn new_span(&self, attributes: &span::Attributes<'_>) -> span::Id {
        if let Some(milestones) = &self.0.milestones {
            milestones.told(attributes.metadata().name());
        }
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        if let Some(milestones) = &self.0.milestones {
            milestones.told(&text.message);
        }
        if *event.metadata().level() != Level::ERROR {
            return;
        }
        self.0.line(&format!("{}{}", text.message, text.fields));
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_counts_and_else_the_first_event() {
        assert_eq!(first(""), None);
        assert_eq!(first("open x\nprepare rootfs\n"), Some(Cause::Event("open x".to_owned())));
        assert_eq!(first("open x\n!no such program\n"), Some(Cause::Verdict("no such program".to_owned())));
    }
}
