//! What `vaina run` shows: containers' lines and the pod's events, in one stream that a person can read.
//!
//! Containers' standard output goes to ours and all else to standard error, so `vaina run pod.yaml >out` gives just that.

use std::{
    fmt,
    io::{self, IsTerminal as _, Write},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing_subscriber::{EnvFilter, fmt::layer, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use super::log::{Line, Stream};

const COLORS: &[&str] = &["36", "32", "34", "35", "33", "96", "92", "94", "95"];

/// The screen, or the files that stand for it.
pub(super) struct Terminal {
    out: Mutex<Box<dyn Write + Send>>,
    err: Mutex<Box<dyn Write + Send>>,
    color: bool,
    begin: Instant,
    /// As wide as the widest name.
    width: usize,
}

impl fmt::Debug for Terminal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terminal").field("color", &self.color).finish_non_exhaustive()
    }
}

/// Whom a line is of, and in which colour.
#[derive(Debug, Clone)]
pub(super) struct Subject {
    name: String,
    color: usize,
}

impl Subject {
    /// `index` tells subjects apart by colour.
    pub(super) fn new(name: String, index: usize) -> Self {
        Self { name, color: index }
    }
}

/// How much an event matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    Normal,
    Warning,
}

impl Terminal {
    /// Colours only where a person looks, and not against `NO_COLOR` (<https://no-color.org>).
    pub(super) fn standard(width: usize) -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let color = wanted && io::stdout().is_terminal() && io::stderr().is_terminal();
        Self::new(Box::new(io::stdout()), Box::new(io::stderr()), color, width)
    }

    pub(super) fn new(out: Box<dyn Write + Send>, err: Box<dyn Write + Send>, color: bool, width: usize) -> Self {
        Self { out: Mutex::new(out), err: Mutex::new(err), color, begin: Instant::now(), width }
    }

    /// A line of a container: `name | text`, from its standard error `name ! text`.
    pub(super) fn line(&self, subject: &Subject, line: &Line) {
        let (sink, mark, mark_color) = match line.stream {
            Stream::Out => (&self.out, "|", "2"),
            Stream::Err => (&self.err, "!", "31"),
        };
        let mut text = self.name(subject);
        text += " ";
        text += &self.paint(mark_color, mark);
        text += " ";
        let mut bytes = text.into_bytes();
        bytes.extend_from_slice(&line.text);
        bytes.push(b'\n');
        put(sink, &bytes);
    }

    /// Something that happened to the pod or a container: when, to whom, what, and how.
    pub(super) fn event(&self, subject: &Subject, level: Level, reason: &str, message: &str) {
        let elapsed = format!("{:.3}s", self.begin.elapsed().as_secs_f64());
        let reason = match level {
            Level::Normal => self.paint("1", reason),
            Level::Warning => self.paint("1;31", reason),
        };
        let mut lines = message.lines();
        let first = lines.next().unwrap_or("");
        let mut text =
            format!("{} {} {reason}: {first}\n", self.name(subject), self.paint("2", &format!("+{elapsed}")));
        for line in lines {
            text += &format!("{} {line}\n", self.name(subject));
        }
        put(&self.err, text.as_bytes());
    }

    fn name(&self, subject: &Subject) -> String {
        let name = format!("{:<width$}", subject.name, width = self.width);
        self.paint(COLORS[subject.color % COLORS.len()], &name)
    }

    fn paint(&self, color: &str, text: &str) -> String {
        if self.color { format!("\x1b[{color}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Shows what a daemon in this process would log, as far as something is wrong; `RUST_LOG` wins.
pub(super) fn show_warnings() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    let lines = layer().with_target(false).without_time().with_ansi(io::stderr().is_terminal());
    // Only if somebody else has seen to it already.
    let _ = tracing_subscriber::registry().with(filter).with(lines.with_writer(io::stderr)).try_init();
}

/// `14 ms`, `1.2 s`, `3 min 5 s`, `2 h 10 min`.
pub(super) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 if duration.subsec_millis() == 0 => format!("{} µs", duration.subsec_micros()),
        0 => format!("{} ms", duration.subsec_millis()),
        1..10 if (50..950).contains(&duration.subsec_millis()) => format!("{:.1} s", duration.as_secs_f64()),
        1..60 if duration.subsec_millis() >= 950 => format!("{} s", seconds + 1),
        1..60 => format!("{seconds} s"),
        60..3600 if seconds.is_multiple_of(60) => format!("{} min", seconds / 60),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// A reader that went away (`| head`) is no reason to leave a pod behind: its lines are lost, its end is orderly.
fn put(sink: &Mutex<Box<dyn Write + Send>>, bytes: &[u8]) {
    let mut sink = sink.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = sink.write_all(bytes).and_then(|()| sink.flush());
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use super::*;

    /// Keeps what was written.
    #[derive(Debug, Clone, Default)]
    pub(in super::super) struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Kept {
        pub(in super::super) fn text(&self) -> String {
            String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
        }
    }

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn line(stream: Stream, text: &str) -> Line {
        Line { time: String::new(), stream, text: text.as_bytes().to_vec() }
    }

    #[test]
    fn lines_and_events() {
        let (out, err) = (Kept::default(), Kept::default());
        let terminal = Terminal::new(Box::new(out.clone()), Box::new(err.clone()), false, 6);
        let web = Subject::new("web".to_owned(), 0);
        terminal.line(&web, &line(Stream::Out, "hello"));
        terminal.line(&web, &line(Stream::Err, "oh"));
        terminal.event(&web, Level::Warning, "Failed", "one\ntwo");
        assert_eq!(out.text(), "web    | hello\n");
        let err = err.text();
        assert!(err.starts_with("web    ! oh\nweb    +0.0") && err.ends_with("s Failed: one\nweb    two\n"), "{err}");
    }

    #[test]
    fn colours_only_when_asked() {
        let out = Kept::default();
        let terminal = Terminal::new(Box::new(out.clone()), Box::new(io::sink()), true, 0);
        terminal.line(&Subject::new("web".to_owned(), 1), &line(Stream::Out, "hello"));
        assert_eq!(out.text(), "\x1b[32mweb\x1b[0m \x1b[2m|\x1b[0m hello\n");
    }

    #[test]
    fn durations() {
        for (millis, expected) in [
            (0, "0 µs"),
            (14, "14 ms"),
            (1000, "1 s"),
            (1240, "1.2 s"),
            (4951, "5 s"),
            (12_345, "12 s"),
            (60_000, "1 min"),
            (185_000, "3 min 5 s"),
            (7_800_000, "2 h 10 min"),
        ] {
            assert_eq!(duration(Duration::from_millis(millis)), expected);
        }
    }
}
