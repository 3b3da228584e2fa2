//! CRI log files: their lines, and following one while it grows.
//!
//! A line is `TIME STREAM TAGS TEXT`; tag P says that the text goes on in the next line of the stream.

use std::{
    io,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::Path,
    time::Duration,
};

use rustix::fs::inotify;
use tokio::{fs::File, io::AsyncReadExt as _, io::unix::AsyncFd, sync::watch};

/// Where a container wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Out,
    Err,
}

/// One whole line, as the container wrote it, without its newline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) time: String,
    pub(super) stream: Stream,
    pub(super) text: Vec<u8>,
}

/// Puts lines together from what was read of a file.
#[derive(Debug, Default)]
pub(super) struct Parser {
    rest: Vec<u8>,
    partial: [Option<Line>; 2],
}

impl Parser {
    /// Takes a piece of the file, gives the lines that it completes.
    pub(super) fn push(&mut self, bytes: &[u8], mut line: impl FnMut(Line)) {
        self.rest.extend_from_slice(bytes);
        let mut start = 0;
        while let Some(length) = self.rest[start..].iter().position(|byte| *byte == b'\n') {
            let (record, partial) = (&self.rest[start..start + length], &mut self.partial);
            start += length + 1;
            if let Some((is_partial, record)) = parse(record) {
                let slot = &mut partial[usize::from(record.stream == Stream::Err)];
                let whole = match slot.take() {
                    Some(mut begun) => {
                        begun.text.extend_from_slice(&record.text);
                        begun
                    }
                    None => record,
                };
                if is_partial {
                    *slot = Some(whole);
                } else {
                    line(whole);
                }
            }
        }
        self.rest.drain(..start);
    }

    /// What was begun and not ended when the file did: a last line without a newline.
    pub(super) fn finish(&mut self, mut line: impl FnMut(Line)) {
        for begun in self.partial.iter_mut().filter_map(Option::take) {
            line(begun);
        }
    }
}

fn parse(record: &[u8]) -> Option<(bool, Line)> {
    let mut fields = record.splitn(4, |byte| *byte == b' ');
    let time = String::from_utf8(fields.next()?.to_vec()).ok()?;
    let stream = match fields.next()? {
        b"stdout" => Stream::Out,
        b"stderr" => Stream::Err,
        _ => return None,
    };
    let is_partial = fields.next()?.split(|byte| *byte == b':').next() == Some(b"P");
    Some((is_partial, Line { time, stream, text: fields.next().unwrap_or_default().to_vec() }))
}

/// Gives every line of a log, from its beginning, until `done` is true and the end is reached.
///
/// Follows the name: when the file is renamed and made anew, the new one is read after the old one's end.
pub(super) async fn follow(path: &Path, mut done: watch::Receiver<bool>, mut line: impl FnMut(Line)) -> io::Result<()> {
    let mut parser = Parser::default();
    let mut changes = Changes::of(path.parent().unwrap_or(path));
    let mut open: Option<(File, u64)> = None;
    let mut buffer = vec![0; 64 << 10];
    loop {
        // Read before the file: what is written after this word is no more than what follows it.
        let is_done = *done.borrow_and_update();
        if open.is_none() {
            open = match File::open(path).await {
                Ok(file) => {
                    let inode = file.metadata().await?.ino();
                    Some((file, inode))
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            };
        }
        if let Some((file, inode)) = &mut open {
            // Asked before reading: once a new file is there, nothing more is written to the old one.
            let is_replaced = tokio::fs::metadata(path).await.is_ok_and(|now| now.ino() != *inode);
            loop {
                let length = file.read(&mut buffer).await?;
                if length == 0 {
                    break;
                }
                parser.push(&buffer[..length], &mut line);
            }
            if is_replaced {
                open = None;
                continue;
            }
        }
        if is_done {
            parser.finish(&mut line);
            return Ok(());
        }
        tokio::select! {
            () = changes.next() => {}
            result = done.changed() => if result.is_err() {
                // Nobody is left to say it.
                done = watch::channel(true).1;
            }
        }
    }
}

/// Changes in a directory, over inotify; where that is not to be had, a look now and then.
#[derive(Debug)]
pub(super) struct Changes(Option<AsyncFd<OwnedFd>>);

impl Changes {
    pub(super) fn of(directory: &Path) -> Self {
        let watch = || -> io::Result<AsyncFd<OwnedFd>> {
            let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
            let flags = inotify::WatchFlags::MODIFY
                | inotify::WatchFlags::CREATE
                | inotify::WatchFlags::MOVED_TO
                | inotify::WatchFlags::DELETE
                | inotify::WatchFlags::DELETE_SELF;
            inotify::add_watch(&fd, directory, flags)?;
            // Our own descriptor, which nobody closes under it.
            #[expect(deprecated, reason = "its successor is unsafe, and this descriptor is owned")]
            AsyncFd::new(fd)
        };
        Self(watch().ok())
    }

    /// Waits for a change since the last one that was waited for; also returns without one.
    pub(super) async fn next(&mut self) {
        const WITHOUT_INOTIFY: Duration = Duration::from_millis(200);
        // A safety net: an event queue can overflow.
        const WITH_INOTIFY: Duration = Duration::from_secs(5);
        let Some(fd) = &self.0 else { return tokio::time::sleep(WITHOUT_INOTIFY).await };
        let Ok(Ok(mut guard)) = tokio::time::timeout(WITH_INOTIFY, fd.readable()).await else { return };
        let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
        // Only that there are events matters.
        while let Ok((read, _)) = rustix::io::read(guard.get_inner(), &mut buffer) {
            if read.is_empty() {
                break;
            }
        }
        guard.clear_ready();
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write as _, sync::mpsc};

    use super::*;

    fn lines(text: &str) -> Vec<(Stream, String)> {
        let mut parser = Parser::default();
        let mut lines = Vec::new();
        let mut add = |line: Line| lines.push((line.stream, String::from_utf8(line.text).unwrap()));
        // In pieces, as a file that grows is read.
        for piece in text.as_bytes().chunks(7) {
            parser.push(piece, &mut add);
        }
        parser.finish(&mut add);
        lines
    }

    #[test]
    fn lines_are_put_together() {
        use Stream::{Err, Out};
        let text = "T stdout F one\nT stderr F \nT stdout P two \nT stderr F mid\nT stdout F halves\nbroken\n\
            T stdin F x\nT stdout F:x  spaces \nT stdout P no newline\n";
        assert_eq!(
            lines(text),
            [
                (Out, "one".to_owned()),
                (Err, String::new()),
                (Err, "mid".to_owned()),
                (Out, "two halves".to_owned()),
                (Out, " spaces ".to_owned()),
                (Out, "no newline".to_owned()),
            ]
        );
    }

    #[tokio::test]
    async fn a_growing_and_rotated_file_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let (done, is_done) = watch::channel(false);
        let (sender, receiver) = mpsc::channel();
        let task = tokio::spawn({
            let path = path.clone();
            async move { follow(&path, is_done, |line| sender.send(line.text).unwrap()).await }
        });
        let receiver = std::sync::Arc::new(std::sync::Mutex::new(receiver));
        let next = || {
            let receiver = std::sync::Arc::clone(&receiver);
            async move {
                let wait = move || receiver.lock().unwrap().recv_timeout(Duration::from_secs(10)).unwrap();
                String::from_utf8(tokio::task::spawn_blocking(wait).await.unwrap()).unwrap()
            }
        };
        let mut file = fs::File::create(&path).unwrap();
        writeln!(file, "T stdout F one").unwrap();
        assert_eq!(next().await, "one");
        writeln!(file, "T stdout F two").unwrap();
        fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        fs::write(&path, "T stdout F three\n").unwrap();
        assert_eq!((next().await, next().await), ("two".to_owned(), "three".to_owned()));
        fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"T stdout F four\n").unwrap();
        done.send(true).unwrap();
        task.await.unwrap().unwrap();
        assert_eq!(next().await, "four");
    }
}
