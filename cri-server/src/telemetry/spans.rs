//! Where the time of a call goes.
//!
//! A span below a call's own is a phase of it. Those of level INFO are summed by name for the line that the call logs at its
//! end. With a file, each span becomes a line of JSON there when it ends (`tests/src/profile` reads them), those of level
//! DEBUG too, which without one are disabled where they stand.

use std::{
    fmt::{self, Write as _},
    fs::File,
    io::{self, Write as _},
    path::Path,
    time::{Duration, Instant},
};

use serde_json::json;
use tracing::{
    Level, Span, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{
    Layer, Registry,
    layer::Context,
    registry::{LookupSpan, SpanRef},
};

use crate::work::now;

/// Measures spans, and tells them to a file if there is one.
#[derive(Debug, Default)]
pub(super) struct Spans {
    file: Option<File>,
}

impl Spans {
    pub(super) fn to_file(path: &Path) -> io::Result<Self> {
        // Each shim has its own working directory.
        if !path.is_absolute() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path must be absolute"));
        }
        // Several processes write, each line at once.
        Ok(Self { file: Some(File::options().append(true).create(true).open(path)?) })
    }

    fn tell(&self, id: u64, parent: Option<u64>, open: &Open, ended: i64) {
        let Some(mut file) = self.file.as_ref() else { return };
        let line = json!({
            "process": "daemon",
            "pid": std::process::id(),
            "span": id,
            "parent": parent,
            "name": open.name,
            "id": if open.container.is_empty() { &open.sandbox } else { &open.container },
            "start_ns": open.started,
            "end_ns": ended,
        });
        // A full disk spoils a profile and nothing else.
        drop(file.write_all(format!("{line}\n").as_bytes()));
    }
}

/// What is known of a span while it is open.
#[derive(Debug)]
struct Open {
    name: String,
    sandbox: String,
    container: String,
    /// Unix nanoseconds: what other processes can be compared with.
    started: i64,
    /// By the clock that nobody sets.
    began: Instant,
    /// What is below it and has ended, in the order of its first end.
    phases: Vec<(String, Duration)>,
}

impl Open {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            sandbox: String::new(),
            container: String::new(),
            started: now(),
            began: Instant::now(),
            phases: Vec::new(),
        }
    }

    fn add(&mut self, name: &str, took: Duration) {
        match self.phases.iter_mut().find(|(known, _)| known == name) {
            Some((_, sum)) => *sum += took,
            None => self.phases.push((name.to_owned(), took)),
        }
    }

    fn phases(&self) -> Option<String> {
        let mut text = String::new();
        for (name, took) in &self.phases {
            let space = if text.is_empty() { "" } else { " " };
            // Writing to a string does not fail.
            let _ = write!(text, "{space}{}={:.1}ms", name.replace(' ', "_"), took.as_secs_f64() * 1e3);
        }
        (!text.is_empty()).then_some(text)
    }
}

impl Visit for Open {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            // A call is known by its name, and so is what a shim is asked.
            "rpc" => value.clone_into(&mut self.name),
            "method" => self.name = format!("shim.{value}"),
            "sandbox" => value.clone_into(&mut self.sandbox),
            "container" => value.clone_into(&mut self.container),
            _ => {}
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "step" => {
                let words = format!("{value:?}").to_lowercase().replace('(', " ").replace(')', "");
                // What is made is named by its step alone.
                self.name = if self.name == "make" { words } else { format!("{} {words}", self.name) };
            }
            "sandbox" | "container" => self.record_str(field, &format!("{value:?}")),
            _ => {}
        }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Spans {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut open = Open::new(span.name());
        attributes.record(&mut open);
        span.extensions_mut().insert(open);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(open) = span.extensions_mut().get_mut::<Open>()
        {
            values.record(open);
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let ended = now();
        let Some(span) = context.span(&id) else { return };
        let Some(open) = span.extensions_mut().remove::<Open>() else { return };
        let parent = span.parent();
        if let Some(call) = parent.as_ref().filter(|_| *span.metadata().level() <= Level::INFO)
            && let Some(call) = call.extensions_mut().get_mut::<Open>()
        {
            call.add(&open.name, open.began.elapsed());
        }
        self.tell(id.into_u64(), parent.map(|parent: SpanRef<'_, S>| parent.id().into_u64()), &open, ended);
    }
}

/// The phases of a call so far, as `name=1.2ms …`; [`None`] if it has none, or nobody listens.
pub(crate) fn phases(call: &Span) -> Option<String> {
    call.with_subscriber(|(id, dispatch)| {
        let span = dispatch.downcast_ref::<Registry>()?.span(id)?;
        span.extensions().get::<Open>()?.phases()
    })?
}

#[cfg(test)]
mod tests {
    use tracing::{Instrument as _, debug_span, info_span};
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Debug)]
    #[expect(dead_code, reason = "its Debug is what counts")]
    enum Step {
        Netns,
        Toward(&'static str),
    }

    fn lines(file: &Path) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(file).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[tokio::test]
    async fn a_call_knows_its_phases_and_a_file_gets_all_spans() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spans");
        let _guard =
            tracing::subscriber::set_default(tracing_subscriber::registry().with(Spans::to_file(&path).unwrap()));
        let call = info_span!("rpc", rpc = "RunPodSandbox", sandbox = tracing::field::Empty);
        async {
            async { debug_span!("inner", method = "Create").in_scope(|| ()) }
                .instrument(info_span!("make", step = ?Step::Netns))
                .await;
            info_span!("remove", step = ?Step::Netns).in_scope(|| ());
            info_span!("make", step = ?Step::Netns).in_scope(|| ());
            info_span!("mark", step = ?Step::Toward("Ready")).in_scope(|| ());
            debug_span!("fine").in_scope(|| ());
            Span::current().record("sandbox", "ab");
        }
        .instrument(call.clone())
        .await;
        let names: Vec<String> = phases(&call)
            .unwrap()
            .split(' ')
            .map(|phase| {
                let (name, took) = phase.split_once('=').unwrap();
                assert!(took.strip_suffix("ms").unwrap().parse::<f64>().unwrap() >= 0.0, "{phase}");
                name.to_owned()
            })
            .collect();
        // The second one is added to the first, and what is finer is left out.
        assert_eq!(names, ["netns", "remove_netns", "mark_toward_\"ready\""]);
        drop(call);

        let lines = lines(&path);
        let root = lines.last().unwrap();
        assert_eq!((&root["name"], &root["id"]), (&json!("RunPodSandbox"), &json!("ab")));
        assert!(root["parent"].is_null());
        assert_eq!(lines.len(), 7);
        assert_eq!(lines[0]["name"], "shim.Create");
        assert_eq!(lines[0]["parent"], lines[1]["span"]);
        for line in &lines {
            assert_eq!((&line["process"], &line["pid"]), (&json!("daemon"), &json!(std::process::id())));
            assert!(line["start_ns"].as_i64() <= line["end_ns"].as_i64());
        }
    }

    #[test]
    fn nobody_listens() {
        let _guard = tracing::subscriber::set_default(tracing::subscriber::NoSubscriber::default());
        assert_eq!(phases(&info_span!("rpc", rpc = "RunPodSandbox")), None);
    }

    #[test]
    fn a_file_is_named_from_the_root() {
        assert!(Spans::to_file(Path::new("spans")).is_err());
    }
}
