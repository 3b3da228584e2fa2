//! Pipes between a process and its log, FIFOs and files of a client, and the terminal in between.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::OpenOptionsExt as _, net::UnixListener},
    },
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    unistd::pipe2,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::unix::pipe,
    task::JoinHandle,
};

use super::{
    attach::{Audience, Stdin},
    log::{LogFile, Pending, Stream, Timestamp, finish, format},
};

/// How long a stream that someone still holds open is read after its process has ended.
pub(crate) const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// The three descriptors that a process starts with.
#[derive(Debug)]
pub(crate) struct Triple {
    pub(crate) stdin: Stdio,
    pub(crate) stdout: Stdio,
    pub(crate) stderr: Stdio,
}

/// User and group that own what a process starts with; both 0 for whoever made it.
pub(crate) type Owner = (u32, u32);

/// A log file that both streams write, and that is reopened under them.
pub(crate) type SharedLog = Arc<Mutex<LogFile>>;

/// The side of the streams that stays in the shim.
#[derive(Default)]
pub(crate) struct Pumps {
    tasks: Vec<JoinHandle<()>>,
    pub(crate) log: Option<SharedLog>,
    /// Those who see stdout and stderr beside the log.
    audiences: [Audience; 2],
    /// What the process reads, when it does.
    stdin: Option<Stdin>,
    /// Master of the terminal.
    pub(crate) terminal: Option<Arc<OwnedFd>>,
}

/// What still reads the streams of a process.
#[derive(Default)]
pub(crate) struct Readers(Vec<JoinHandle<()>>);

impl Readers {
    /// Waits until everything is read, or for [`DRAIN_LIMIT`]; then stops reading.
    pub(crate) async fn drain(self) {
        let deadline = tokio::time::Instant::now() + DRAIN_LIMIT;
        for mut task in self.0 {
            if tokio::time::timeout_at(deadline, &mut task).await.is_err() {
                task.abort();
            }
        }
    }
}

impl Pumps {
    /// Hands over what reads, once: for the end of the process.
    pub(crate) fn readers(&mut self) -> Readers {
        Readers(std::mem::take(&mut self.tasks))
    }

    /// Closes the process's stdin.
    pub(crate) fn close_stdin(&mut self) {
        if let Some(stdin) = self.stdin.take() {
            stdin.close();
        }
    }

    /// Connects a client by its FIFOs, empty for none; answers whether what it writes reaches the process.
    pub(crate) fn attach(&self, stdin: &str, stdout: &str, stderr: &str) -> io::Result<bool> {
        for (fifo, audience) in [stdout, stderr].into_iter().zip(&self.audiences) {
            if !fifo.is_empty() {
                audience.add(Path::new(fifo))?;
            }
        }
        match &self.stdin {
            Some(own) if !stdin.is_empty() => own.feed(Path::new(stdin)),
            _ => Ok(false),
        }
    }

    /// Opens the log anew after a rename.
    pub(crate) fn reopen_log(&self) -> Option<io::Result<()>> {
        let log = self.log.as_ref()?;
        Some(log.lock().unwrap_or_else(PoisonError::into_inner).reopen())
    }
}

/// What a process reads that clients can attach to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// Nothing.
    None,
    /// What clients write, one after the other or together.
    Open,
    /// What the first client writes.
    Once,
}

/// Streams that stay in the shim: a CRI log file has them, if there is one, and clients that attach.
pub(crate) fn kept(log: Option<&Path>, input: Input, owner: Owner) -> io::Result<(Triple, Pumps)> {
    let log = open_log(log)?;
    let (stdout, stdout_write) = pipe2(OFlag::O_CLOEXEC)?;
    let (stderr, stderr_write) = pipe2(OFlag::O_CLOEXEC)?;
    let mut pumps = Pumps { log: log.clone(), ..Pumps::default() };
    for ((reader, stream), audience) in
        [(stdout, Stream::Stdout), (stderr, Stream::Stderr)].into_iter().zip(&pumps.audiences)
    {
        pumps.tasks.push(pump(reader, log.clone().map(|log| LogSink::new(stream, log)), audience.clone())?);
    }
    let stdin = if input == Input::None {
        Stdio::null()
    } else {
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        pumps.stdin = Some(Stdin::new(write, input == Input::Once)?);
        give(&read, owner)?;
        Stdio::from(read)
    };
    for writer in [&stdout_write, &stderr_write] {
        give(writer, owner)?;
    }
    Ok((Triple { stdin, stdout: stdout_write.into(), stderr: stderr_write.into() }, pumps))
}

fn open_log(path: Option<&Path>) -> io::Result<Option<SharedLog>> {
    path.map(|path| Ok(Arc::new(Mutex::new(LogFile::open(path)?)))).transpose()
}

fn pump(reader: OwnedFd, mut sink: Option<LogSink>, audience: Audience) -> io::Result<JoinHandle<()>> {
    let reader = pipe::Receiver::from_owned_fd(reader)?;
    Ok(tokio::spawn(async move {
        let _end = audience.end_with();
        // On the heap and only while something is read: most containers are silent most of the time.
        let mut buffer = Vec::new();
        loop {
            if reader.readable().await.is_err() {
                break;
            }
            buffer.clear();
            buffer.reserve(64 * 1024);
            match reader.try_read_buf(&mut buffer) {
                Ok(0) => break,
                Ok(_) => {
                    if let Some(sink) = &mut sink {
                        sink.write(&buffer);
                    }
                    audience.tell(&buffer).await;
                }
                // Silence.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => buffer = Vec::new(),
                Err(_) => break,
            }
        }
    }))
}

/// Formats and writes one stream; what waits for its newline is written when it is dropped.
struct LogSink {
    stream: Stream,
    pending: Pending,
    log: SharedLog,
}

impl LogSink {
    fn new(stream: Stream, log: SharedLog) -> Self {
        Self { stream, pending: Pending::default(), log }
    }

    fn write(&mut self, data: &[u8]) {
        let mut records = Vec::with_capacity(data.len() + 256);
        format(&mut self.pending, self.stream, data, Timestamp::now(), &mut records);
        if !records.is_empty() {
            self.log.lock().unwrap_or_else(PoisonError::into_inner).append(&records);
        }
    }
}

impl Drop for LogSink {
    fn drop(&mut self) {
        let mut records = Vec::new();
        finish(&mut self.pending, self.stream, Timestamp::now(), &mut records);
        if !records.is_empty() {
            self.log.lock().unwrap_or_else(PoisonError::into_inner).append(&records);
        }
    }
}

/// Streams of a client, as containerd names them: a FIFO's path, `file:///path`, or empty for none.
///
/// The process gets the descriptors themselves; nothing is copied. A FIFO is opened so that neither side has to be there first.
pub(crate) fn passed(stdin: &str, stdout: &str, stderr: &str, owner: Owner) -> io::Result<Triple> {
    let reader = if stdin.is_empty() { None } else { Some(open_reader(Path::new(stdin))?) };
    Ok(Triple {
        stdin: own(reader, owner)?,
        stdout: own(open_writer(stdout)?, owner)?,
        stderr: own(open_writer(stderr)?, owner)?,
    })
}

fn own(stream: Option<File>, owner: Owner) -> io::Result<Stdio> {
    let Some(stream) = stream else { return Ok(Stdio::null()) };
    give(&stream, owner)?;
    Ok(stream.into())
}

/// Only pipes: a file that is a stream is the client's.
fn give(stream: impl AsFd, (uid, gid): Owner) -> io::Result<()> {
    use rustix::fs::{FileType, Gid, Uid, fchown, fstat};
    let is_pipe = FileType::from_raw_mode(fstat(&stream)?.st_mode) == FileType::Fifo;
    if is_pipe && (uid, gid) != (0, 0) {
        fchown(stream, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    Ok(())
}

fn open_writer(uri: &str) -> io::Result<Option<File>> {
    if uri.is_empty() {
        return Ok(None);
    }
    if let Some(path) = uri.strip_prefix("file://") {
        return OpenOptions::new().append(true).create(true).mode(0o640).open(path).map(Some);
    }
    if uri.contains("://") {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("stream {uri:?}: only FIFOs and file:// are known"),
        ));
    }
    // A FIFO opened for reading and writing never waits for its other end, and then neither does the real open.
    let _both = OpenOptions::new().read(true).write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(uri)?;
    OpenOptions::new().write(true).open(uri).map(Some)
}

fn open_reader(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    // Opened without waiting for the writer; the process reads it as any other stdin.
    fcntl(&file, FcntlArg::F_SETFL(OFlag::empty())).map_err(io::Error::from)?;
    Ok(file)
}

/// A socket on which the OCI runtime hands over the master of a new terminal.
pub(crate) struct ConsoleSocket {
    listener: tokio::net::UnixListener,
    pub(crate) path: PathBuf,
}

impl ConsoleSocket {
    /// Listens in `dir`, under a short name: socket paths are limited to 107 bytes.
    pub(crate) fn new(dir: &Path, name: &str) -> io::Result<Self> {
        let path = dir.join(name);
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener: tokio::net::UnixListener::from_std(listener)?, path })
    }

    /// Takes the terminal that the runtime sent.
    pub(crate) async fn receive(&self) -> io::Result<OwnedFd> {
        let (stream, _) = tokio::time::timeout(Duration::from_secs(10), self.listener.accept())
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the runtime sent no terminal"))??;
        stream.readable().await?;
        vaina_sys::pty::receive_fd(&stream.into_std()?)
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Connects a terminal with a log and those who attach, or with a client's FIFOs.
pub(crate) fn terminal(
    master: OwnedFd,
    log: Option<&Path>,
    input: Input,
    stdin: &str,
    stdout: &str,
    pumps: &mut Pumps,
) -> io::Result<()> {
    let flags = fcntl(&master, FcntlArg::F_GETFL).map_err(io::Error::from)?;
    fcntl(&master, FcntlArg::F_SETFL(OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK)).map_err(io::Error::from)?;
    let master = Arc::new(master);
    pumps.terminal = Some(Arc::clone(&master));
    pumps.log = open_log(log)?;
    let mut sink = pumps.log.clone().map(|log| LogSink::new(Stream::Stdout, log));
    if input != Input::None {
        // There is no end of a terminal but its closing, which would take the process with it.
        pumps.stdin = Some(Stdin::new(dup(&master)?, false)?);
    }
    let [audience, _] = pumps.audiences.clone();
    let mut client = match open_writer(stdout)? {
        Some(file) if stdout.starts_with("file://") => Some(Writer::File(file)),
        Some(file) => {
            fcntl(&file, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(io::Error::from)?;
            Some(Writer::Pipe(pipe::Sender::from_file(file)?))
        }
        None => None,
    };
    // A terminal is no pipe; what is asked of the descriptor is the same: it can be waited for, read and written.
    let mut reader = pipe::Receiver::from_owned_fd_unchecked(dup(&master)?)?;
    pumps.tasks.push(tokio::spawn(async move {
        let _end = audience.end_with();
        let mut buffer = vec![0; 32 * 1024];
        // EIO: the last process closed the other side.
        while let Ok(count @ 1..) = reader.read(&mut buffer).await {
            if let Some(sink) = &mut sink {
                sink.write(&buffer[..count]);
            }
            audience.tell(&buffer[..count]).await;
            if let Some(writer) = &mut client
                && writer.write(&buffer[..count]).await.is_err()
            {
                // The client left; the process must not notice.
                client = None;
            }
        }
    }));
    if !stdin.is_empty() {
        let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(stdin)?;
        let mut input = pipe::Receiver::from_file(file)?;
        let mut writer = pipe::Sender::from_owned_fd_unchecked(dup(&master)?)?;
        // Not waited for at the end: it only feeds the process.
        tokio::spawn(async move {
            let mut buffer = vec![0; 4096];
            while let Ok(count @ 1..) = input.read(&mut buffer).await {
                if writer.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
        });
    }
    Ok(())
}

enum Writer {
    File(File),
    Pipe(pipe::Sender),
}

impl Writer {
    async fn write(&mut self, data: &[u8]) -> io::Result<()> {
        match self {
            Self::File(file) => io::Write::write_all(file, data),
            Self::Pipe(pipe) => pipe.write_all(data).await,
        }
    }
}

fn dup(fd: impl AsFd) -> io::Result<OwnedFd> {
    fd.as_fd().try_clone_to_owned()
}
