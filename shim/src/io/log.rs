//! CRI log files: the line format, long lines in pieces, reopening.
//!
//! One record is `TIME STREAM TAG CONTENT\n`: the time as RFC 3339 with nanoseconds in UTC, the stream `stdout` or `stderr`, the tag
//! `F` for a full line and `P` for a piece of a longer one, at most 16 KiB of content. A last line without a newline is
//! written as `P`, since its end never came. Records of both streams go to one file, each whole: everything that one read of
//! a pipe completes is written by one `write` to a file opened for appending.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Most bytes of content in one record.
pub(crate) const MAX_CONTENT: usize = 16 * 1024;

/// Which stream a record is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// A moment as the log writes it: trailing zeros of the fraction are left out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timestamp(Duration);

impl Timestamp {
    pub(crate) fn now() -> Self {
        Self(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = i64::try_from(self.0.as_secs()).unwrap_or_default();
        let Ok(time) = time::OffsetDateTime::from_unix_timestamp(seconds) else {
            return f.write_str("1970-01-01T00:00:00Z");
        };
        let (date, clock) = (time.date(), time.time());
        write!(
            f,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
            date.year(),
            u8::from(date.month()),
            date.day(),
            clock.hour(),
            clock.minute(),
            clock.second()
        )?;
        let nanos = self.0.subsec_nanos();
        if nanos != 0 {
            let digits = format!("{nanos:09}");
            write!(f, ".{}", digits.trim_end_matches('0'))?;
        }
        f.write_str("Z")
    }
}

/// What of a stream waits for its newline.
#[derive(Debug, Default)]
pub(crate) struct Pending(Vec<u8>);

/// Turns bytes of a stream into records, appended to `out`. Pure.
pub(crate) fn format(pending: &mut Pending, stream: Stream, mut data: &[u8], time: Timestamp, out: &mut Vec<u8>) {
    while let Some(newline) = data.iter().position(|byte| *byte == b'\n') {
        let (line, rest) = data.split_at(newline);
        data = &rest[1..];
        if pending.0.is_empty() {
            pieces(stream, line, time, out, b'F');
        } else {
            pending.0.extend_from_slice(line);
            let whole = std::mem::take(&mut pending.0);
            pieces(stream, &whole, time, out, b'F');
        }
    }
    pending.0.extend_from_slice(data);
    // A line of exactly the limit may still end in a newline and is whole then.
    while pending.0.len() > MAX_CONTENT {
        let rest = pending.0.split_off(MAX_CONTENT);
        record(stream, &pending.0, time, out, b'P');
        pending.0 = rest;
    }
}

/// Writes what is left when the stream has ended.
pub(crate) fn finish(pending: &mut Pending, stream: Stream, time: Timestamp, out: &mut Vec<u8>) {
    let rest = std::mem::take(&mut pending.0);
    if !rest.is_empty() {
        pieces(stream, &rest, time, out, b'P');
    }
}

fn pieces(stream: Stream, mut line: &[u8], time: Timestamp, out: &mut Vec<u8>, last: u8) {
    while line.len() > MAX_CONTENT {
        let (piece, rest) = line.split_at(MAX_CONTENT);
        record(stream, piece, time, out, b'P');
        line = rest;
    }
    record(stream, line, time, out, last);
}

fn record(stream: Stream, content: &[u8], time: Timestamp, out: &mut Vec<u8>, tag: u8) {
    let stream = match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    };
    // Writing to memory does not fail.
    let _ = write!(out, "{time} {stream} ");
    out.push(tag);
    out.push(b' ');
    out.extend_from_slice(content);
    out.push(b'\n');
}

/// An open log file.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    file: File,
    /// Said once, not for every line.
    complained: bool,
}

impl LogFile {
    /// Opens the file, and makes it and its directory if need be.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), file: open(path)?, complained: false })
    }

    /// Opens the path anew: after a rename this makes the next file. The old one is kept if that fails.
    pub(crate) fn reopen(&mut self) -> io::Result<()> {
        self.file = open(&self.path)?;
        Ok(())
    }

    /// Appends records. A full disk costs lines, never the container: it is said once, and written again when it can be.
    pub(crate) fn append(&mut self, records: &[u8]) {
        match self.file.write_all(records) {
            Ok(()) => self.complained = false,
            Err(error) if !self.complained => {
                self.complained = true;
                crate::log::warning!("write log {}: {error}; lines are lost", self.path.display());
            }
            Err(_) => {}
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    if let Some(parent) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time() -> Timestamp {
        Timestamp(Duration::new(1_700_000_000, 120_000_000))
    }

    fn written(chunks: &[&[u8]], end: bool) -> Vec<(char, usize)> {
        let (mut pending, mut out) = (Pending::default(), Vec::new());
        for chunk in chunks {
            format(&mut pending, Stream::Stdout, chunk, time(), &mut out);
        }
        if end {
            finish(&mut pending, Stream::Stdout, time(), &mut out);
        }
        let prefix = "2023-11-14T22:13:20.12Z stdout ";
        out.split_inclusive(|byte| *byte == b'\n')
            .map(|line| {
                assert!(line.starts_with(prefix.as_bytes()) && line.ends_with(b"\n"));
                (char::from(line[prefix.len()]), line.len() - prefix.len() - 3)
            })
            .collect()
    }

    #[test]
    fn lines_are_joined_split_and_tagged() {
        let long = vec![b'x'; MAX_CONTENT];
        assert_eq!(written(&[b"a\nbc\n\n"], true), [('F', 1), ('F', 2), ('F', 0)]);
        assert_eq!(written(&[b"a", b"b", b"c\nd"], false), [('F', 3)]);
        assert_eq!(written(&[b"no newline"], true), [('P', 10)]);
        assert_eq!(written(&[&long, b"\n"], true), [('F', MAX_CONTENT)]);
        assert_eq!(written(&[&long, b"y\n"], true), [('P', MAX_CONTENT), ('F', 1)]);
        assert_eq!(written(&[&long, &long, b"z"], true), [('P', MAX_CONTENT), ('P', MAX_CONTENT), ('P', 1)]);
        let both = [&long[..], b"y\n"].concat();
        assert_eq!(written(&[&both], true), [('P', MAX_CONTENT), ('F', 1)]);
    }

    #[test]
    fn a_fraction_of_zero_is_left_out() {
        assert_eq!(Timestamp(Duration::from_secs(0)).to_string(), "1970-01-01T00:00:00Z");
        assert_eq!(Timestamp(Duration::new(0, 1)).to_string(), "1970-01-01T00:00:00.000000001Z");
    }

    #[test]
    fn a_reopened_log_goes_to_a_new_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/0.log");
        let mut log = LogFile::open(&path).unwrap();
        log.append(b"one\n");
        std::fs::rename(&path, dir.path().join("old")).unwrap();
        log.append(b"two\n");
        log.reopen().unwrap();
        log.append(b"three\n");
        assert_eq!(std::fs::read(dir.path().join("old")).unwrap(), b"one\ntwo\n");
        assert_eq!(std::fs::read(&path).unwrap(), b"three\n");
    }
}
