//! What survives the daemon: one SQLite database in WAL mode, written by one thread.
//!
//! The store knows records only as a table, a key, a version and bytes; what they say belongs to the parts that own
//! them. Nothing else in the daemon writes durable state of pods and containers.
//!
//! Two kinds of durability (design 5). A commit is always `synchronous=NORMAL`: it is in the page cache when it
//! answers, so it survives the death of the daemon, for some hundredths of a millisecond. What must also survive power loss
//! waits for an `fdatasync` of the write-ahead log beside the commit: on a thread of its own, so that other writers never
//! wait for the disk, and one sync serves all that asked meanwhile. (SQLite's own `synchronous=FULL` syncs under the write
//! lock.) The log may be opened beside SQLite; the main file may not, since closing it would drop SQLite's locks.
//!
//! A record that can't be read is answered as such, never skipped: its object exists, we only don't know how.

mod reserve;

use std::{
    error::Error,
    fs::File,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use rusqlite::{Connection, OptionalExtension as _, params};
use tokio::sync::oneshot;
use tracing::{Instrument as _, debug_span};
use vaina_sys::failpoint;

use self::reserve::{Reserve, with_reserve};
use crate::error::{Classify, Kind};

/// Layout of the database; raised together with an entry in [`MIGRATIONS`].
const SCHEMA: i64 = 1;

/// Statements that lead from schema `n` to `n + 1`.
const MIGRATIONS: [&str; 1] = ["CREATE TABLE record (
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    version INTEGER NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (kind, key)
) WITHOUT ROWID;"];

/// Something that is recorded.
pub trait Record: Sized {
    /// Which table of the store it belongs to.
    const TABLE: &'static str;
    /// Version that [`Record::encode`] writes.
    const VERSION: u32;

    /// Its key in the table.
    fn key(&self) -> String;
    /// Its bytes, in [`Record::VERSION`].
    fn encode(&self) -> Vec<u8>;
    /// Reads bytes of this or an earlier version.
    fn decode(key: &str, version: u32, body: &[u8]) -> Result<Self, Box<dyn Error + Send + Sync>>;
}

/// A record as it was found.
#[derive(Debug)]
pub enum Loaded<R> {
    /// Read whole.
    Record(R),
    /// Its object exists, but what it says can't be read.
    Unreadable {
        /// Key in the table.
        key: String,
        /// Why.
        error: Box<dyn Error + Send + Sync>,
    },
}

/// What a write survives when it has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The death of the daemon.
    Process,
    /// Also a loss of power.
    PowerLoss,
}

/// The record of what exists. Clones share one writer.
#[derive(Debug, Clone)]
pub struct Store {
    jobs: mpsc::Sender<Job>,
    syncs: mpsc::Sender<oneshot::Sender<Result<(), WriteError>>>,
}

/// Why the store did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory of the database.
    #[error("create directory {}", .path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// SQLite refused.
    #[error("open database {}", .path.display())]
    Database {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: rusqlite::Error,
    },
    /// Written by a later release.
    #[error("open database {}: its schema is {found}, this release knows up to {SCHEMA}; use the newer release", .path.display())]
    Newer {
        /// Which.
        path: PathBuf,
        /// What it says.
        found: i64,
    },
    /// The log beside the database.
    #[error("open write-ahead log {}", .path.display())]
    Log {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// A thread.
    #[error("start the writer")]
    Thread(#[source] std::io::Error),
}

impl Classify for OpenError {
    fn kind(&self) -> Kind {
        match self {
            Self::Directory { .. } | Self::Database { .. } | Self::Log { .. } | Self::Thread(_) => Kind::Unavailable,
            Self::Newer { .. } => Kind::FailedPrecondition,
        }
    }
}

/// Why a record was not written or read.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// SQLite refused.
    #[error("write the record")]
    Database(#[source] rusqlite::Error),
    /// The disk refused.
    #[error("sync the record to disk")]
    Sync(#[source] std::io::Error),
    /// The writer is gone: the daemon ends.
    #[error("write the record: the store is closed")]
    Closed,
}

impl Classify for WriteError {
    fn kind(&self) -> Kind {
        match self {
            Self::Database(error) if reserve::is_full(error) => Kind::ResourceExhausted,
            Self::Database(_) | Self::Sync(_) => Kind::Internal,
            Self::Closed => Kind::Unavailable,
        }
    }
}

type Answer<T> = oneshot::Sender<Result<T, rusqlite::Error>>;
type Row = (String, u32, Vec<u8>);

enum Job {
    Put { table: &'static str, key: String, version: u32, body: Vec<u8>, done: Answer<()> },
    Delete { table: &'static str, key: String, done: Answer<()> },
    Load { table: &'static str, done: Answer<Vec<Row>> },
}

impl Store {
    /// Opens the database, makes it if there is none, and brings an older one up to date.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)
                .map_err(|source| OpenError::Directory { path: parent.to_owned(), source })?;
        }
        let reserve = Reserve::open(path);
        let connection = match open_database(path) {
            // A full disk has many names while a database is opened.
            Err(OpenError::Database { .. }) if reserve.give_up() => open_database(path)?,
            opened => opened?,
        };
        let log = log_path(path);
        let open_log = || -> std::io::Result<File> {
            let file = File::open(&log)?;
            // The names of database and log must survive as well as what is in them.
            if let Some(parent) = path.parent() {
                File::open(parent)?.sync_all()?;
            }
            Ok(file)
        };
        let log_file = open_log().map_err(|source| OpenError::Log { path: log.clone(), source })?;

        let (jobs, queue) = mpsc::channel();
        let (syncs, sync_queue) = mpsc::channel();
        thread::Builder::new()
            .name("state-write".to_owned())
            .spawn(move || write_loop(&connection, &reserve, &queue))
            .map_err(OpenError::Thread)?;
        thread::Builder::new()
            .name("state-sync".to_owned())
            .spawn(move || sync_loop(&log_file, &sync_queue))
            .map_err(OpenError::Thread)?;
        Ok(Self { jobs, syncs })
    }

    /// Writes a record, new or changed. Written when it answers, whether or not the caller still waits.
    pub async fn put<R: Record>(&self, record: &R, durability: Durability) -> Result<(), WriteError> {
        failpoint!(format!("record.{}.write", R::TABLE), WriteError::Sync);
        let (done, answer) = oneshot::channel();
        self.send(Job::Put { table: R::TABLE, key: record.key(), version: R::VERSION, body: record.encode(), done })?;
        self.settle(answer, durability).await?;
        failpoint!(format!("record.{}.written", R::TABLE), WriteError::Sync);
        Ok(())
    }

    /// Deletes a record; one that is not there is deleted.
    pub async fn delete<R: Record>(&self, key: &str, durability: Durability) -> Result<(), WriteError> {
        failpoint!(format!("record.{}.delete", R::TABLE), WriteError::Sync);
        let (done, answer) = oneshot::channel();
        self.send(Job::Delete { table: R::TABLE, key: key.to_owned(), done })?;
        self.settle(answer, durability).await?;
        failpoint!(format!("record.{}.deleted", R::TABLE), WriteError::Sync);
        Ok(())
    }

    /// All records of a table, in the order of their keys.
    pub async fn load_all<R: Record>(&self) -> Result<Vec<Loaded<R>>, WriteError> {
        let (done, answer) = oneshot::channel();
        self.send(Job::Load { table: R::TABLE, done })?;
        let rows = answer.await.map_err(|_| WriteError::Closed)?.map_err(WriteError::Database)?;
        Ok(rows
            .into_iter()
            .map(|(key, version, body)| match R::decode(&key, version, &body) {
                Ok(record) => Loaded::Record(record),
                Err(error) => Loaded::Unreadable { key, error },
            })
            .collect())
    }

    /// Waits until all that was written before is safe from a loss of power.
    pub async fn sync(&self) -> Result<(), WriteError> {
        failpoint!("record.sync", WriteError::Sync);
        let (done, answer) = oneshot::channel();
        self.syncs.send(done).map_err(|_| WriteError::Closed)?;
        answer.await.map_err(|_| WriteError::Closed)??;
        failpoint!("record.synced", WriteError::Sync);
        Ok(())
    }

    fn send(&self, job: Job) -> Result<(), WriteError> {
        self.jobs.send(job).map_err(|_| WriteError::Closed)
    }

    async fn settle(
        &self,
        answer: oneshot::Receiver<Result<(), rusqlite::Error>>,
        durability: Durability,
    ) -> Result<(), WriteError> {
        let written = answer.instrument(debug_span!("database")).await;
        written.map_err(|_| WriteError::Closed)?.map_err(WriteError::Database)?;
        match durability {
            Durability::Process => Ok(()),
            Durability::PowerLoss => self.sync().instrument(debug_span!("sync")).await,
        }
    }
}

fn log_path(path: &Path) -> PathBuf {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    log.into()
}

fn open_database(path: &Path) -> Result<Connection, OpenError> {
    let failed = |source| OpenError::Database { path: path.to_owned(), source };
    let mut connection = Connection::open(path).map_err(failed)?;
    connection.busy_timeout(Duration::from_secs(5)).map_err(failed)?;
    let prepare = |connection: &Connection| -> rusqlite::Result<i64> {
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        // Kibibytes: the records are small and read once.
        connection.pragma_update(None, "cache_size", -512)?;
        connection.pragma_query_value(None, "user_version", |row| row.get(0))
    };
    let found = prepare(&connection).map_err(failed)?;
    if found > SCHEMA {
        return Err(OpenError::Newer { path: path.to_owned(), found });
    }
    let migrate = |connection: &mut Connection| -> rusqlite::Result<()> {
        let transaction = connection.transaction()?;
        for statements in MIGRATIONS.iter().skip(usize::try_from(found).unwrap_or_default()) {
            transaction.execute_batch(statements)?;
        }
        // Written even when nothing changed: the log file exists only after a first write.
        transaction.pragma_update(None, "user_version", SCHEMA)?;
        transaction.commit()
    };
    migrate(&mut connection).map_err(failed)?;
    Ok(connection)
}

/// Ends when the last [`Store`] is dropped. An answer that nobody waits for any more is not an error.
fn write_loop(connection: &Connection, reserve: &Reserve, queue: &mpsc::Receiver<Job>) {
    for job in queue {
        match job {
            Job::Put { table, key, version, body, done } => {
                let put = || {
                    connection
                        .prepare_cached(
                            "INSERT OR REPLACE INTO record (kind, key, version, body) VALUES (?1, ?2, ?3, ?4)",
                        )?
                        .execute(params![table, key, version, body])
                        .map(drop)
                };
                let is_known = || {
                    connection
                        .prepare_cached("SELECT 1 FROM record WHERE kind = ?1 AND key = ?2")?
                        .exists(params![table, key])
                };
                let result = match put() {
                    Err(error) if reserve::is_full(&error) && is_known().unwrap_or_default() => {
                        with_reserve(reserve, connection, put)
                    }
                    result => result,
                };
                drop(done.send(result));
            }
            Job::Delete { table, key, done } => {
                let delete = || {
                    connection
                        .prepare_cached("DELETE FROM record WHERE kind = ?1 AND key = ?2")?
                        .execute(params![table, key])
                        .map(drop)
                };
                drop(done.send(with_reserve(reserve, connection, delete)));
            }
            Job::Load { table, done } => drop(done.send(load(connection, table))),
        }
        reserve.fill();
    }
}

fn load(connection: &Connection, table: &str) -> rusqlite::Result<Vec<Row>> {
    // A damaged page must not look like an empty table.
    let damage: Option<String> = connection
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .optional()?
        .filter(|verdict: &String| verdict != "ok");
    if let Some(damage) = damage {
        return Err(rusqlite::Error::SqliteFailure(
            rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT),
            Some(damage),
        ));
    }
    let mut statement = connection.prepare("SELECT key, version, body FROM record WHERE kind = ?1 ORDER BY key")?;
    let rows = statement.query_map([table], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    rows.collect()
}

/// One `fdatasync` for all that asked before it began.
fn sync_loop(log: &File, queue: &mpsc::Receiver<oneshot::Sender<Result<(), WriteError>>>) {
    while let Ok(first) = queue.recv() {
        let waiting: Vec<_> = std::iter::once(first).chain(queue.try_iter()).collect();
        let result = log.sync_data();
        for done in waiting {
            let answer = match &result {
                Ok(()) => Ok(()),
                Err(error) => Err(WriteError::Sync(std::io::Error::new(error.kind(), error.to_string()))),
            };
            drop(done.send(answer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Note {
        key: String,
        text: String,
    }

    impl Record for Note {
        const TABLE: &'static str = "note";
        const VERSION: u32 = 2;

        fn key(&self) -> String {
            self.key.clone()
        }

        fn encode(&self) -> Vec<u8> {
            self.text.clone().into_bytes()
        }

        fn decode(key: &str, version: u32, body: &[u8]) -> Result<Self, Box<dyn Error + Send + Sync>> {
            if version > Self::VERSION {
                return Err(format!("version {version} is newer than {}", Self::VERSION).into());
            }
            Ok(Self { key: key.to_owned(), text: String::from_utf8(body.to_vec())? })
        }
    }

    fn note(key: &str, text: &str) -> Note {
        Note { key: key.to_owned(), text: text.to_owned() }
    }

    #[tokio::test]
    async fn records_survive_and_unreadable_ones_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/state.db");
        let store = Store::open(&path).unwrap();
        store.put(&note("a", "one"), Durability::Process).await.unwrap();
        store.put(&note("a", "two"), Durability::PowerLoss).await.unwrap();
        store.put(&note("b", "three"), Durability::Process).await.unwrap();
        store.delete::<Note>("b", Durability::Process).await.unwrap();
        store.delete::<Note>("never there", Durability::PowerLoss).await.unwrap();
        drop(store);

        let raw = Connection::open(&path).unwrap();
        raw.execute("INSERT INTO record VALUES ('note', 'bad', 1, x'ff')", []).unwrap();
        raw.execute("INSERT INTO record VALUES ('note', 'new', 3, x'41')", []).unwrap();
        drop(raw);

        let store = Store::open(&path).unwrap();
        let loaded = store.load_all::<Note>().await.unwrap();
        assert_eq!(loaded.len(), 3);
        assert!(matches!(&loaded[0], Loaded::Record(record) if *record == note("a", "two")));
        assert!(matches!(&loaded[1], Loaded::Unreadable { key, .. } if key == "bad"));
        assert!(
            matches!(&loaded[2], Loaded::Unreadable { key, error } if key == "new" && error.to_string().contains("newer"))
        );
    }

    #[tokio::test]
    async fn concurrent_writers_share_syncs_and_all_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state.db")).unwrap();
        let writes: Vec<_> = (0..64)
            .map(|number| {
                let store = store.clone();
                tokio::spawn(async move { store.put(&note(&format!("{number:02}"), "x"), Durability::PowerLoss).await })
            })
            .collect();
        for write in writes {
            write.await.unwrap().unwrap();
        }
        assert_eq!(store.load_all::<Note>().await.unwrap().len(), 64);
    }

    #[test]
    fn a_newer_schema_is_refused_in_words() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        drop(Store::open(&path).unwrap());
        let raw = Connection::open(&path).unwrap();
        raw.pragma_update(None, "user_version", SCHEMA + 1).unwrap();
        drop(raw);
        let error = Store::open(&path).unwrap_err();
        assert!(error.to_string().contains("newer release"), "{error}");
    }
}
