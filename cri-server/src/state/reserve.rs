//! Room on a full disk for what makes room: without it an image could not be removed because its removal can't be
//! written down.
//!
//! A file beside the database, full of nothing. A write that takes something away, or changes what is there, and finds
//! the disk full, gives it up and is tried again; a write of something new is not, so that new things can't use it up.
//! As soon as there is room again, so is the file. The log begins anew meanwhile, which takes no room either.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read as _, Write as _},
    path::Path,
};

use nix::fcntl::{FallocateFlags, fallocate};
use rusqlite::Connection;

/// Some dozens of records, with the pages that they change.
const SIZE: i64 = 256 << 10;

/// See the module. One that could not be made is empty: it only helps less.
#[derive(Debug)]
pub(super) struct Reserve {
    file: Option<File>,
}

impl Reserve {
    /// The file beside the database `path`.
    pub(super) fn open(path: &Path) -> Self {
        let mut name = OsString::from(path);
        name.push("-reserve");
        let file = File::options().create(true).write(true).truncate(false).open(name).ok();
        let reserve = Self { file };
        reserve.fill();
        reserve
    }

    /// Takes the room if there is some and it has not been taken.
    pub(super) fn fill(&self) {
        let Some(file) = &self.file else { return };
        if self.is_full() {
            return;
        }
        let filled = match fallocate(file, FallocateFlags::empty(), 0, SIZE) {
            Ok(()) => Ok(()),
            // Not every file system can.
            Err(nix::Error::EOPNOTSUPP) => write_zeros(file),
            Err(error) => Err(error.into()),
        };
        if filled.is_err() {
            // Half of it would be taken from what is left for others.
            let _ = file.set_len(0);
        }
    }

    /// Gives the room back; whether there was any.
    pub(super) fn give_up(&self) -> bool {
        self.is_full() && self.file.as_ref().is_some_and(|file| file.set_len(0).is_ok())
    }

    fn is_full(&self) -> bool {
        self.file.as_ref().and_then(|file| file.metadata().ok()).is_some_and(|file| file.len() > 0)
    }
}

fn write_zeros(mut file: &File) -> io::Result<()> {
    io::copy(&mut io::repeat(0).take(SIZE.unsigned_abs()), &mut file)?;
    file.flush()
}

/// Does `write`, and if the disk is full once more with the reserve.
pub(super) fn with_reserve<T>(
    reserve: &Reserve,
    connection: &Connection,
    write: impl Fn() -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    match write() {
        Err(error) if is_full(&error) => {
            reserve.give_up();
            // What is in the log goes to its place, and the log is written from its beginning again.
            let _ = connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(()));
            write()
        }
        result => result,
    }
}

/// Whether the disk is what a write failed for.
pub(super) fn is_full(error: &rusqlite::Error) -> bool {
    matches!(error, rusqlite::Error::SqliteFailure(error, _) if error.code == rusqlite::ErrorCode::DiskFull)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn is_there_until_it_is_given_up_and_again_after() {
        let dir = tempfile::tempdir().unwrap();
        let size = || fs::metadata(dir.path().join("state.db-reserve")).unwrap().len();
        let reserve = Reserve::open(&dir.path().join("state.db"));
        assert_eq!(size(), SIZE.unsigned_abs());
        assert!(reserve.give_up());
        assert_eq!(size(), 0);
        assert!(!reserve.give_up(), "only once");
        reserve.fill();
        assert_eq!(size(), SIZE.unsigned_abs());
        drop(reserve);
        assert!(Reserve::open(&dir.path().join("state.db")).give_up());
        let nowhere = Reserve::open(Path::new("/nonexistent/state.db"));
        nowhere.fill();
        assert!(!nowhere.give_up());
    }
}
