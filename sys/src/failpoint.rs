//! Failpoints: named places where a test makes a program die, fail or wait. Feature `failpoints`, which no shipped build has.
//!
//! Own code and not the `fail` crate: that one unwinds where a `kill -9` is wanted, blocks a thread where a task is to wait,
//! is told what to do before the start or through code, and knows only points that somebody has configured, so that nobody
//! would notice one that is never tried.
//!
//! The directory that `VAINA_FAILPOINTS` names is all there is between the tests and the programs; a file has a point's name:
//! ```text
//! points/   all that there are, written when a program begins; says "error" if the point can fail
//! reached/  passed at least once
//! armed/    what happens to who passes next: "kill", "error" or "hold"
//! struck/   the armed file, moved here by the one who passed; a hold lasts until it is removed
//! ```

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    sync::OnceLock,
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::getpid,
};

/// Names the directory.
const VARIABLE: &str = "VAINA_FAILPOINTS";

/// How often a held one looks whether it may go on.
pub const INTERVAL: Duration = Duration::from_millis(1);

/// What happens to who passes a point and is not killed.
#[derive(Debug)]
pub enum Strike {
    /// It fails with this.
    Error(io::Error),
    /// It waits.
    Hold(Held),
}

/// Lasts until the test lets go.
#[derive(Debug)]
pub struct Held(PathBuf);

impl Held {
    /// Whether the wait goes on.
    pub fn lasts(&self) -> bool {
        self.0.exists()
    }

    /// Waits it out, blocking.
    pub fn block(&self) {
        while self.lasts() {
            thread::sleep(INTERVAL);
        }
    }
}

fn directory() -> Option<&'static Path> {
    static DIRECTORY: OnceLock<Option<PathBuf>> = OnceLock::new();
    DIRECTORY.get_or_init(|| env::var_os(VARIABLE).map(PathBuf::from)).as_deref()
}

/// What a program must be given so that its failpoints are the tests' too.
pub fn environment() -> Option<(&'static str, &'static Path)> {
    Some((VARIABLE, directory()?))
}

/// Tells the tests which points a program has, and which of them can fail.
pub fn announce(points: impl IntoIterator<Item = (String, bool)>) {
    let Some(directory) = directory() else { return };
    for (point, fails) in points {
        // A test that finds none of them fails.
        let _ = fs::write(directory.join("points").join(point), if fails { "error" } else { "" });
    }
}

/// Passes a point. Whoever moves the armed file is the one that is struck.
pub fn pass(point: impl AsRef<str>) -> Option<Strike> {
    let point = point.as_ref();
    let directory = directory()?;
    let _ = fs::write(directory.join("reached").join(point), "");
    let struck = directory.join("struck").join(point);
    fs::rename(directory.join("armed").join(point), &struck).ok()?;
    match fs::read_to_string(&struck).unwrap_or_default().trim() {
        "kill" => {
            let _ = kill(getpid(), Signal::SIGKILL);
            None
        }
        "error" => Some(Strike::Error(io::Error::other(format!("failpoint {point}")))),
        _ => Some(Strike::Hold(Held(struck))),
    }
}
