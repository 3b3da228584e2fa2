//! The records, read beside whoever writes them.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    time::Duration,
};

use rusqlite::{Connection, OpenFlags};

use crate::{
    container::ContainerRecord,
    plan::Mark,
    sandbox::{Level, SandboxRecord},
    state::Record,
    work::lock,
};

/// What is recorded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Records {
    pub(super) sandboxes: BTreeMap<String, Recorded>,
    pub(super) containers: BTreeSet<String>,
    /// What can't be read: table, key, reason. Their objects exist, so nothing of them is an orphan.
    pub(super) unreadable: Vec<(&'static str, String, String)>,
}

impl Records {
    /// Whether no pod and no container is recorded.
    pub(super) fn is_empty(&self) -> bool {
        self.sandboxes.is_empty() && self.containers.is_empty() && self.unreadable.is_empty()
    }
}

/// A pod sandbox as it should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Recorded {
    /// It runs, in this boot.
    pub(super) is_ready: bool,
    /// On its way somewhere.
    pub(super) is_changing: bool,
    pub(super) has_netns: bool,
    pub(super) shim_address: String,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("look for the database")]
    Find(#[source] io::Error),
    #[error("read the database")]
    Database(#[source] rusqlite::Error),
    #[error("read the boot id")]
    Boot(#[source] io::Error),
}

/// All records; none if there has never been a daemon.
pub(super) fn read(path: &Path) -> Result<Option<Records>, ReadError> {
    if !path.try_exists().map_err(ReadError::Find)? {
        return Ok(None);
    }
    let boot = vaina_sys::process::boot_id().map_err(ReadError::Boot)?;
    let mut records = Records::default();
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(ReadError::Database)?;
    connection.busy_timeout(Duration::from_secs(5)).map_err(ReadError::Database)?;
    for record in load::<SandboxRecord>(&connection, &mut records).map_err(ReadError::Database)? {
        let sandbox = record.into_sandbox();
        let kept = lock(&sandbox.kept);
        let recorded = Recorded {
            is_ready: kept.mark == Some(Mark::At(Level::Ready)) && kept.boot_id == boot,
            is_changing: matches!(kept.mark, Some(Mark::Toward(_))),
            has_netns: sandbox.netns().is_some(),
            shim_address: kept.shim_address.clone(),
        };
        records.sandboxes.insert(sandbox.id.to_string(), recorded);
    }
    let containers = load::<ContainerRecord>(&connection, &mut records).map_err(ReadError::Database)?;
    records.containers = containers.iter().map(Record::key).collect();
    Ok(Some(records))
}

fn load<R: Record>(connection: &Connection, records: &mut Records) -> rusqlite::Result<Vec<R>> {
    let mut statement = connection.prepare("SELECT key, version, body FROM record WHERE kind = ?1 ORDER BY key")?;
    let rows = statement.query_map([R::TABLE], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let mut found = Vec::new();
    for row in rows {
        let (key, version, body): (String, u32, Vec<u8>) = row?;
        match R::decode(&key, version, &body) {
            Ok(record) => found.push(record),
            Err(error) => records.unreadable.push((R::TABLE, key, error.to_string())),
        }
    }
    Ok(found)
}
