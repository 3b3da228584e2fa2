//! Clients that are attached to a container: they see what it writes from now on, and may write its stdin.
//!
//! Nothing is held for a client here but what its FIFO takes. One that lets it stay full for [`PATIENCE`] is let go, so the
//! container and its log wait for nobody for longer than that, and for each client once.

use std::{
    io,
    os::fd::OwnedFd,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, Interest},
    net::unix::pipe,
    task::AbortHandle,
    time::timeout,
};

/// How long a client may not read while its FIFO is full.
const PATIENCE: Duration = Duration::from_secs(1);

/// Those who see a stream.
#[derive(Clone)]
pub(crate) struct Audience(Arc<Mutex<Option<Vec<Client>>>>);

/// One of them, and what waits for it to leave.
struct Client {
    fifo: Arc<pipe::Sender>,
    watch: AbortHandle,
}

impl Drop for Client {
    fn drop(&mut self) {
        // It has the FIFO open too, and the client waits for its end.
        self.watch.abort();
    }
}

impl Default for Audience {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Some(Vec::new()))))
    }
}

impl Audience {
    fn clients(&self) -> MutexGuard<'_, Option<Vec<Client>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a client by its FIFO, which it has open. One that comes after the end sees just that.
    pub(crate) fn add(&self, fifo: &Path) -> io::Result<()> {
        let fifo = Arc::new(pipe::OpenOptions::new().open_sender(fifo)?);
        let (audience, watched) = (self.clone(), Arc::clone(&fifo));
        let watch = tokio::spawn(async move {
            // A FIFO that nobody reads any more is an error to write; one that is broken otherwise is of no use either.
            let _ = watched.ready(Interest::ERROR).await;
            audience.forget(&watched);
        });
        let client = Client { fifo, watch: watch.abort_handle() };
        if let Some(clients) = &mut *self.clients() {
            clients.push(client);
        }
        Ok(())
    }

    fn forget(&self, fifo: &Arc<pipe::Sender>) {
        if let Some(clients) = &mut *self.clients() {
            clients.retain(|client| !Arc::ptr_eq(&client.fifo, fifo));
        }
    }

    /// Shows what was written.
    pub(crate) async fn tell(&self, data: &[u8]) {
        let fifos: Vec<_> = match &*self.clients() {
            Some(clients) if !clients.is_empty() => clients.iter().map(|client| Arc::clone(&client.fifo)).collect(),
            _ => return,
        };
        for fifo in fifos {
            if write(&fifo, data, Some(PATIENCE)).await.is_err() {
                self.forget(&fifo);
            }
        }
    }

    /// Ends the stream for all when it is dropped.
    pub(crate) fn end_with(&self) -> End {
        End(self.clone())
    }
}

/// See [`Audience::end_with`].
pub(crate) struct End(Audience);

impl Drop for End {
    fn drop(&mut self) {
        *self.0.clients() = None;
    }
}

/// Writes all of it; with a limit to how long the other side may take nothing.
async fn write(to: &pipe::Sender, mut data: &[u8], patience: Option<Duration>) -> io::Result<()> {
    while !data.is_empty() {
        match to.try_write(data) {
            Ok(count) => data = data.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => match patience {
                Some(patience) => timeout(patience, to.writable()).await??,
                None => to.writable().await?,
            },
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The stdin of a container, as long as it is open.
#[derive(Clone)]
pub(crate) struct Stdin(Arc<Mutex<Option<Open>>>);

struct Open {
    writer: Arc<pipe::Sender>,
    /// It ends with that of the first client.
    once: bool,
    feeds: Vec<AbortHandle>,
}

impl Stdin {
    /// `writer` is a pipe's or a terminal's, which is like one: it can be waited for and written.
    pub(crate) fn new(writer: OwnedFd, once: bool) -> io::Result<Self> {
        let writer = Arc::new(pipe::Sender::from_owned_fd_unchecked(writer)?);
        Ok(Self(Arc::new(Mutex::new(Some(Open { writer, once, feeds: Vec::new() })))))
    }

    fn open(&self) -> MutexGuard<'_, Option<Open>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it for the container, whoever still writes.
    pub(crate) fn close(&self) {
        for feed in self.open().take().map(|open| open.feeds).unwrap_or_default() {
            feed.abort();
        }
    }

    /// Passes on what a client writes to its FIFO, which it has open; answers whether anything can be.
    pub(crate) fn feed(&self, fifo: &Path) -> io::Result<bool> {
        let mut input = pipe::OpenOptions::new().open_receiver(fifo)?;
        let mut open = self.open();
        let Some(Open { writer, once, feeds }) = &mut *open else { return Ok(false) };
        let (writer, once, stdin) = (Arc::clone(writer), *once, self.clone());
        let task = tokio::spawn(async move {
            let mut buffer = vec![0; 4096];
            while let Ok(count @ 1..) = input.read(&mut buffer).await {
                if write(&writer, &buffer[..count], None).await.is_err() {
                    // Nobody reads it any more.
                    break;
                }
            }
            if once {
                stdin.close();
            }
        });
        feeds.retain(|feed| !feed.is_finished());
        feeds.push(task.abort_handle());
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use nix::{fcntl::OFlag, sys::stat::Mode, unistd::pipe2};
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    fn fifo(dir: &tempfile::TempDir, name: &str) -> PathBuf {
        let path = dir.path().join(name);
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        path
    }

    fn client(path: &Path) -> pipe::Receiver {
        pipe::OpenOptions::new().open_receiver(path).unwrap()
    }

    async fn rest(client: &mut pipe::Receiver) -> Vec<u8> {
        let mut text = Vec::new();
        client.read_to_end(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn clients_see_what_comes_until_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let audience = Audience::default();
        let end = audience.end_with();
        audience.tell(b"before").await;
        let (one, two) = (fifo(&dir, "1"), fifo(&dir, "2"));
        let mut first = client(&one);
        audience.add(&one).unwrap();
        audience.tell(b"a").await;
        let mut second = client(&two);
        audience.add(&two).unwrap();
        audience.tell(b"b").await;
        drop(end);
        audience.tell(b"after").await;
        assert_eq!((rest(&mut first).await, rest(&mut second).await), (b"ab".to_vec(), b"b".to_vec()));
        let mut late = client(&one);
        audience.add(&one).unwrap();
        assert!(rest(&mut late).await.is_empty());
    }

    #[tokio::test]
    async fn who_leaves_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let audience = Audience::default();
        let path = fifo(&dir, "x");
        let client = client(&path);
        audience.add(&path).unwrap();
        tokio::task::yield_now().await;
        assert_eq!(audience.clients().as_ref().unwrap().len(), 1);
        drop(client);
        let gone = async {
            while !audience.clients().as_ref().unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(10), gone).await.unwrap();
    }

    #[tokio::test]
    async fn who_does_not_read_is_let_go_and_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let audience = Audience::default();
        let (lazy, keen) = (fifo(&dir, "lazy"), fifo(&dir, "keen"));
        let mut lazy_client = client(&lazy);
        audience.add(&lazy).unwrap();
        let mut keen_client = client(&keen);
        audience.add(&keen).unwrap();
        let reading = tokio::spawn(async move { rest(&mut keen_client).await.len() });
        let end = audience.end_with();
        for _ in 0..32 {
            audience.tell(&[b'x'; 32 << 10]).await;
        }
        drop(end);
        assert_eq!(reading.await.unwrap(), 1 << 20);
        assert!(rest(&mut lazy_client).await.len() < 1 << 20);
    }

    #[tokio::test]
    async fn stdin_ends_with_its_first_client_if_it_is_for_one() {
        let dir = tempfile::tempdir().unwrap();
        for once in [true, false] {
            let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
            let mut container = pipe::Receiver::from_owned_fd(read).unwrap();
            let stdin = Stdin::new(write, once).unwrap();
            for (name, text) in [("1", "one"), ("2", "two")] {
                let path = fifo(&dir, &format!("{once}{name}"));
                let mut writer = pipe::OpenOptions::new().read_write(true).open_sender(&path).unwrap();
                assert_eq!(stdin.feed(&path).unwrap(), name == "1" || !once);
                if name == "1" || !once {
                    writer.write_all(text.as_bytes()).await.unwrap();
                    let mut heard = [0; 3];
                    container.read_exact(&mut heard).await.unwrap();
                    assert_eq!(heard, text.as_bytes());
                }
                drop(writer);
                if once {
                    assert!(rest(&mut container).await.is_empty());
                }
            }
            stdin.close();
            assert!(rest(&mut container).await.is_empty());
        }
    }
}
