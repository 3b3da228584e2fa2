//! A command that goes on while the test looks at it: what it writes is kept, signals and keys can be sent, and its end
//! is waited for with a limit.

use std::{
    fs::File,
    io::{Read, Write as _},
    os::{
        fd::OwnedFd,
        unix::{fs::OpenOptionsExt as _, process::ExitStatusExt as _},
    },
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    fcntl::OFlag,
    pty::{grantpt, posix_openpt, ptsname_r, unlockpt},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::{require, wait};

/// How long a command may take to end by itself: the longest grace period of the tests, and much more.
const LIMIT: Duration = Duration::from_secs(60);

/// See the module. Dropped while it runs, it is killed.
#[derive(Debug)]
pub struct Running {
    child: Child,
    name: String,
    out: Kept,
    err: Kept,
    readers: Vec<JoinHandle<()>>,
    keys: Option<File>,
}

/// Gets what a command writes, in pieces.
pub type Show = Arc<dyn Fn(&[u8]) + Send + Sync>;

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code, or 128 and the signal.
    pub code: i32,
    /// Its standard output; everything when it had a terminal.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Running {
    /// Starts it with pipes.
    pub fn start(command: &mut Command) -> Result<Self> {
        Self::start_with(command, None)
    }

    /// Starts it with pipes, and shows all that it writes.
    pub fn start_shown(command: &mut Command, show: Show) -> Result<Self> {
        Self::start_with(command, Some(show))
    }

    fn start_with(command: &mut Command, show: Option<Show>) -> Result<Self> {
        let name = name(command);
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().with_context(|| format!("start {name}"))?;
        let (out, err) = (Kept::default(), Kept::default());
        let readers = vec![
            out.read(child.stdout.take().context("its standard output")?, show.clone()),
            err.read(child.stderr.take().context("its standard error")?, show),
        ];
        Ok(Self { child, name, out, err, readers, keys: None })
    }

    /// Starts it as the foreground of a terminal of 80 columns and 24 rows.
    pub fn on_terminal(command: &Command) -> Result<Self> {
        Self::on_terminal_with(command, None)
    }

    /// Starts it on a terminal, and shows all that it writes.
    pub fn on_terminal_shown(command: &Command, show: Show) -> Result<Self> {
        Self::on_terminal_with(command, Some(show))
    }

    fn on_terminal_with(command: &Command, show: Option<Show>) -> Result<Self> {
        let (keys, screen) = terminal().context("open a terminal")?;
        let stream = || -> Result<OwnedFd> { Ok(screen.try_clone().context("share the terminal")?.into()) };
        // It becomes the leader of a session whose terminal its standard input is.
        let mut session = Command::new(require::tool("setsid", "util-linux")?);
        session.arg("--ctty").arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => session.env(key, value),
                None => session.env_remove(key),
            };
        }
        let name = name(command);
        let child = session
            .env("TERM", "xterm")
            .stdin(stream()?)
            .stdout(stream()?)
            .stderr(stream()?)
            .spawn()
            .with_context(|| format!("start {name} on a terminal"))?;
        // Its output ends when the last of the other side's descriptors is closed.
        drop(session);
        let out = Kept::default();
        let readers = vec![out.read(keys.try_clone().context("share the terminal")?, show)];
        Ok(Self { child, name, out, err: Kept::default(), readers, keys: Some(keys) })
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to its standard output so far.
    pub fn out(&self) -> String {
        self.out.text()
    }

    /// What it wrote to its standard error so far.
    pub fn err(&self) -> String {
        self.err.text()
    }

    /// Waits until its output or errors contain a text.
    pub async fn wait_for(&self, text: &str) -> Result<()> {
        self.wait_for_times(text, 1).await
    }

    /// Waits until its output or errors contain a text so many times.
    pub async fn wait_for_times(&self, text: &str, times: usize) -> Result<()> {
        let count = |kept: &Kept| kept.text().matches(text).count();
        let what = format!("{} wrote {text:?} {times} times", self.name);
        wait::until(&what, async || Ok((count(&self.out) + count(&self.err) >= times).then_some(())))
            .await
            .with_context(|| format!("it wrote\n{}{}", self.out(), self.err()))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), signal).with_context(|| format!("send {signal}"))
    }

    /// Types on its terminal.
    pub fn keys(&mut self, keys: &str) -> Result<()> {
        let terminal = self.keys.as_mut().context("it has no terminal")?;
        terminal.write_all(keys.as_bytes()).context("type")
    }

    /// Waits for its end and the end of its output.
    pub async fn end(mut self) -> Result<Ended> {
        let what = format!("{} ended", self.name);
        let status = wait::within(&what, LIMIT, &mut async || Ok(self.child.try_wait()?))
            .await
            .with_context(|| format!("it wrote\n{}{}", self.out(), self.err()))?;
        for reader in self.readers.drain(..) {
            // What it left behind may still have the pipes.
            let is_over = || reader.is_finished().then_some(());
            wait::blocking("its output ended", LIMIT, is_over)?;
        }
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        Ok(Ended { code, out: self.out(), err: self.err() })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Ended {
    /// An error unless it ended with this code.
    pub fn expect(self, code: i32) -> Result<Self> {
        ensure!(self.code == code, "exit code {} and not {code}:\n{}{}", self.code, self.out, self.err);
        Ok(self)
    }
}

#[derive(Debug, Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Kept {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    fn read(&self, mut from: impl Read + Send + 'static, show: Option<Show>) -> JoinHandle<()> {
        let kept = self.clone();
        thread::spawn(move || {
            let mut buffer = vec![0; 16 << 10];
            // A terminal whose other side is closed ends with an error.
            while let Ok(length @ 1..) = from.read(&mut buffer) {
                kept.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..length]);
                if let Some(show) = &show {
                    show(&buffer[..length]);
                }
            }
        })
    }
}

/// Both sides of a new terminal, which no program that is started meanwhile gets by accident.
fn terminal() -> Result<(File, File)> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = posix_openpt(flags)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let slave =
        File::options().read(true).write(true).custom_flags(OFlag::O_NOCTTY.bits()).open(ptsname_r(&master)?)?;
    tcsetwinsize(&slave, Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 })?;
    Ok((File::from(OwnedFd::from(master)), slave))
}

fn name(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program()).file_name().unwrap_or_default();
    let mut name = program.to_string_lossy().into_owned();
    for argument in command.get_args().take(3) {
        name = format!("{name} {}", argument.to_string_lossy());
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn output_and_exit_code_are_kept() {
        let running = Running::start(Command::new("sh").args(["-c", "echo out; echo err >&2; read x; exit 3"]));
        let ended = running.unwrap().end().await.unwrap();
        assert_eq!(ended, Ended { code: 3, out: "out\n".to_owned(), err: "err\n".to_owned() });
    }

    #[tokio::test]
    async fn keys_reach_the_foreground_of_a_terminal() {
        let mut command = Command::new("sh");
        command.args(["-c", "trap 'echo caught; exit 4' INT; tty; echo ready; while :; do read x; done"]);
        let mut running = Running::on_terminal(&command).unwrap();
        running.wait_for("ready").await.unwrap();
        running.keys("\x03").unwrap();
        let ended = running.end().await.unwrap().expect(4).unwrap();
        assert!(ended.out.contains("/dev/pts/") && ended.out.contains("caught"), "{ended:?}");
    }
}
