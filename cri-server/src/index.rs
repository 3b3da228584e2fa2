//! What exists, in memory: by id, by the start of an id, and by key. No disk, no awaits.
//!
//! An object stands in the index from the moment that its key is claimed, so there is never a second one under the same
//! key: whoever comes later gets the one that is there, and decides from its state whether to join, to take its result
//! or to refuse. The lock is a leaf and is held for a look-up only.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    ops::Bound,
    sync::{Arc, Mutex},
};

use crate::{
    container::Container,
    error::{Classify, Kind},
    sandbox::Sandbox,
    work::lock,
};

/// All pods and containers.
#[derive(Debug, Default)]
pub struct Index {
    /// Pod sandboxes.
    pub sandboxes: Table<Sandbox>,
    /// Containers.
    pub containers: Table<Container>,
}

/// Something that is found by id and by key.
pub trait Entry {
    /// What makes it one of a kind among those that a client names.
    type Key: Clone + Eq + Hash + std::fmt::Debug;
    /// What it is, for messages.
    const WHAT: &'static str;

    /// Its full id.
    fn id(&self) -> &str;
    /// Its key; [`None`] for one whose record can't be read.
    fn key(&self) -> Option<&Self::Key>;
}

/// No such object.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// No id starts like this.
    #[error("no {what} has an id that starts with {id:?}")]
    Missing {
        /// What was looked for.
        what: &'static str,
        /// As asked.
        id: String,
    },
    /// More than one does.
    #[error("{count} {what} ids start with {id:?}")]
    Ambiguous {
        /// What was looked for.
        what: &'static str,
        /// As asked.
        id: String,
        /// How many.
        count: usize,
    },
}

impl Classify for FindError {
    fn kind(&self) -> Kind {
        Kind::NotFound
    }
}

/// Objects of one kind.
#[derive(Debug)]
pub struct Table<E: Entry> {
    inner: Mutex<Inner<E>>,
}

#[derive(Debug)]
struct Inner<E: Entry> {
    by_id: BTreeMap<String, Arc<E>>,
    by_key: HashMap<E::Key, Arc<E>>,
}

impl<E: Entry> Default for Table<E> {
    fn default() -> Self {
        Self { inner: Mutex::new(Inner { by_id: BTreeMap::new(), by_key: HashMap::new() }) }
    }
}

impl<E: Entry> Table<E> {
    /// Enters an object under its id and key; answers the one that has the key already.
    pub fn claim(&self, entry: &Arc<E>) -> Result<(), Arc<E>> {
        let mut inner = lock(&self.inner);
        if let Some(key) = entry.key() {
            if let Some(other) = inner.by_key.get(key) {
                return Err(Arc::clone(other));
            }
            inner.by_key.insert(key.clone(), Arc::clone(entry));
        }
        inner.by_id.insert(entry.id().to_owned(), Arc::clone(entry));
        Ok(())
    }

    /// The object whose id is this or, alone, starts like this.
    pub fn find(&self, id: &str) -> Result<Arc<E>, FindError> {
        let inner = lock(&self.inner);
        if let Some(entry) = inner.by_id.get(id) {
            return Ok(Arc::clone(entry));
        }
        let missing = || FindError::Missing { what: E::WHAT, id: id.to_owned() };
        if id.is_empty() {
            return Err(missing());
        }
        let mut matching = inner
            .by_id
            .range::<str, _>((Bound::Included(id), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(id));
        let (_, first) = matching.next().ok_or_else(missing)?;
        match matching.count() {
            0 => Ok(Arc::clone(first)),
            more => Err(FindError::Ambiguous { what: E::WHAT, id: id.to_owned(), count: more + 1 }),
        }
    }

    /// Takes an object out, and frees its key.
    pub fn remove(&self, entry: &E) {
        let mut inner = lock(&self.inner);
        inner.by_id.remove(entry.id());
        if let Some(key) = entry.key()
            && inner.by_key.get(key).is_some_and(|holder| holder.id() == entry.id())
        {
            inner.by_key.remove(key);
        }
    }

    /// All of them, in the order of their ids.
    pub fn list(&self) -> Vec<Arc<E>> {
        lock(&self.inner).by_id.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Thing {
        id: &'static str,
        key: Option<&'static str>,
    }

    impl Entry for Thing {
        type Key = &'static str;
        const WHAT: &'static str = "thing";

        fn id(&self) -> &str {
            self.id
        }

        fn key(&self) -> Option<&Self::Key> {
            self.key.as_ref()
        }
    }

    fn thing(id: &'static str, key: Option<&'static str>) -> Arc<Thing> {
        Arc::new(Thing { id, key })
    }

    #[test]
    fn ids_are_found_by_a_unique_start() {
        let table = Table::default();
        for id in ["aa11", "aa12", "bb11", "aa1"] {
            table.claim(&thing(id, None)).unwrap();
        }
        assert_eq!(table.find("bb").unwrap().id, "bb11");
        assert_eq!(table.find("aa1").unwrap().id, "aa1", "a whole id wins over being the start of others");
        assert!(matches!(table.find("aa"), Err(FindError::Ambiguous { count: 3, .. })));
        assert!(matches!(table.find("c"), Err(FindError::Missing { .. })));
        assert!(matches!(table.find(""), Err(FindError::Missing { .. })));
        assert_eq!(table.list().len(), 4);
    }

    #[test]
    fn a_key_has_one_holder_until_it_is_removed() {
        let table = Table::default();
        let first = thing("1", Some("pod"));
        table.claim(&first).unwrap();
        assert_eq!(table.claim(&thing("2", Some("pod"))).unwrap_err().id, "1");
        assert!(table.find("2").is_err(), "a refused claim leaves nothing");
        // Removing somebody who does not hold the key takes nothing from the holder.
        table.remove(&thing("2", Some("pod")));
        assert!(table.claim(&thing("3", Some("pod"))).is_err());
        table.remove(&first);
        table.claim(&thing("4", Some("pod"))).unwrap();
    }
}
