//! Which processes of a container belong to one of its execs.
//!
//! The kernel keeps no such list, and an exec's cgroup is the container's. What is in the exec's process group or session, or
//! descends from one that is, belongs to it. A process that left both and whose parent is gone made itself a daemon, and is
//! the container's: `kubectl exec … -- service start` means it so.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

/// How a process is related to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kin {
    parent: u32,
    group: u32,
    session: u32,
}

/// Those of `pids` that belong to the exec with this leader, which was started in this process group: crun's execs lead none
/// of their own, but nobody else is in theirs. The leader itself is left out.
pub(crate) fn members(pids: &BTreeSet<u32>, leader: u32, group: u32) -> BTreeSet<u32> {
    of(&pids.iter().filter_map(|&pid| Some((pid, read(pid)?))).collect(), leader, group)
}

/// The process group of a process that has not been waited for.
pub(crate) fn group(pid: u32) -> Option<u32> {
    Some(read(pid)?.group)
}

/// Whether a process can still do something: it is there, and neither stopped nor dead.
pub(crate) fn is_running(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    state(&stat).is_some_and(|state| !matches!(state, 'T' | 't' | 'Z' | 'X'))
}

fn read(pid: u32) -> Option<Kin> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn of(all: &BTreeMap<u32, Kin>, leader: u32, group: u32) -> BTreeSet<u32> {
    let is_own = |id: u32| id == leader || id == group;
    let mut found: BTreeSet<u32> =
        all.iter().filter(|(_, kin)| is_own(kin.group) || is_own(kin.session)).map(|(pid, _)| *pid).collect();
    loop {
        let is_child = |kin: &Kin| kin.parent == leader || found.contains(&kin.parent);
        let more: Vec<u32> =
            all.iter().filter(|(pid, kin)| !found.contains(pid) && is_child(kin)).map(|(pid, _)| *pid).collect();
        if more.is_empty() {
            break;
        }
        found.extend(more);
    }
    found.remove(&leader);
    found
}

/// Reads a `/proc/<pid>/stat`; behind the name, which may hold anything, come state, parent, group and session.
fn parse(stat: &str) -> Option<Kin> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(1).map(|field| field.parse().ok());
    Some(Kin { parent: fields.next()??, group: fields.next()??, session: fields.next()?? })
}

/// The letter behind the name.
fn state(stat: &str) -> Option<char> {
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kin(parent: u32, group: u32, session: u32) -> Kin {
        Kin { parent, group, session }
    }

    #[test]
    fn group_session_and_descent_make_a_family() {
        let all = BTreeMap::from([
            // The init and a child of it.
            (1, kin(0, 1, 1)),
            (2, kin(1, 1, 1)),
            // The leader, a child in its group, one in a group of its own, one in a session of its own and a child of that.
            (10, kin(99, 10, 10)),
            (11, kin(10, 10, 10)),
            (12, kin(10, 12, 10)),
            (13, kin(12, 13, 13)),
            (14, kin(13, 13, 13)),
            // Orphans: of the group, and a daemon.
            (15, kin(1, 10, 10)),
            (16, kin(1, 16, 16)),
            // Another exec, and a child of it.
            (20, kin(99, 20, 20)),
            (21, kin(20, 20, 20)),
        ]);
        assert_eq!(of(&all, 10, 10), BTreeSet::from([11, 12, 13, 14, 15]));
        assert_eq!(of(&all, 20, 20), BTreeSet::from([21]));
    }

    #[test]
    fn an_exec_that_leads_no_group_has_a_family_too() {
        let all =
            BTreeMap::from([(10, kin(99, 50, 3)), (11, kin(10, 50, 3)), (12, kin(1, 50, 3)), (20, kin(99, 51, 3))]);
        assert_eq!(of(&all, 10, 50), BTreeSet::from([11, 12]));
    }

    #[test]
    fn a_stat_is_read_whatever_the_name_is() {
        assert_eq!(parse("7 (a) b ( c) S 3 5 6 0 -1 4194560"), Some(kin(3, 5, 6)));
        assert_eq!(state("7 (a) b ( c) T 3 5 6"), Some('T'));
        assert_eq!(state(""), None);
        assert_eq!(parse("7 (a) S 3"), None);
        assert_eq!(parse(""), None);
    }
}
