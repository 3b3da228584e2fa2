//! Judges the records against what is there. Pure, but for the question whether a shim listens.

use std::collections::BTreeSet;

use super::{
    reality::{Reality, listens},
    records::{ReadError, Recorded, Records},
    report::Check,
};
use crate::error::Chain;

const RESTART: &str = "`vaina doctor --repair` (without a daemon) or a restart of the daemon finishes it";

/// `before` was seen before the records were read, `after` after it.
pub(super) fn judge(records: Result<Option<Records>, ReadError>, before: &Reality, after: &Reality) -> Vec<Check> {
    let records = match records {
        Ok(None) => return vec![Check::ok("records", "there are none yet; the first start makes the database")],
        Ok(Some(records)) => records,
        Err(error) => {
            let check = Check::fail("records", Chain(&error).to_string());
            return vec![
                check.advice("the daemon won't start with it either; look at the disk and at the file's rights"),
            ];
        }
    };
    let mut checks = vec![Check::ok(
        "records",
        format!("{} pods and {} containers", records.sandboxes.len(), records.containers.len()),
    )];
    checks.extend(records.unreadable.iter().map(|(table, key, reason)| {
        Check::fail(format!("record of {table} {key}"), format!("it can't be read: {reason}"))
            .advice("the object is listed as Unknown, and can be removed (crictl rmp -f, crictl rm -f)")
    }));
    for (id, recorded) in &records.sandboxes {
        checks.extend(pod(id, recorded, after, listens));
    }
    let lost = orphans(&records, before, after);
    if lost.is_empty() {
        checks.push(Check::ok("orphans", "all that is there of pods has a record"));
    }
    checks.extend(lost.pods.iter().map(|id| {
        Check::fail(format!("orphan pod {id}"), "it has a directory, pin, interface or port, and no record")
            .advice(RESTART_ORPHAN)
    }));
    checks.extend(lost.containers.iter().map(|id| {
        Check::fail(format!("orphan container {id}"), "it has a bundle or a writable layer, and no record")
            .advice(RESTART_ORPHAN)
    }));
    checks.extend(lost.pins.iter().map(|id| {
        Check::warn(format!("network namespace vaina-{id}"), "this daemon has no record of it")
            .advice(format!("if no other Vaina daemon runs here: ip netns delete vaina-{id}"))
    }));
    checks
}

const RESTART_ORPHAN: &str = "stop the daemon and run `vaina doctor --repair`, which removes it";

fn pod(id: &str, recorded: &Recorded, reality: &Reality, listens: impl Fn(&str) -> bool) -> Option<Check> {
    let what = format!("pod {id}");
    if recorded.is_changing {
        let check = Check::warn(what, "it is being made or taken down, or its teardown is owed");
        return Some(check.advice(format!("wait, or if it stays so: {RESTART}")));
    }
    if !recorded.is_ready {
        return None;
    }
    let missing = if !listens(&recorded.shim_address) {
        "its record says Ready, and its shim is gone"
    } else if recorded.has_netns && !reality.pins.contains(id) {
        "its record says Ready, and its network namespace is not pinned"
    } else if recorded.has_netns && !reality.attached.contains(id) {
        "its record says Ready, and it is not on the bridge"
    } else {
        return None;
    };
    Some(Check::fail(what, missing).advice(RESTART))
}

/// What has no record.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Orphans {
    pub(super) pods: BTreeSet<String>,
    pub(super) containers: BTreeSet<String>,
    /// Pins that nothing proves to be ours: daemons of other directories pin in the same place.
    pub(super) pins: BTreeSet<String>,
}

impl Orphans {
    fn is_empty(&self) -> bool {
        !self.have_parts() && self.pins.is_empty()
    }

    /// Whether anything of them is surely ours.
    pub(super) fn have_parts(&self) -> bool {
        !self.pods.is_empty() || !self.containers.is_empty()
    }
}

pub(super) fn orphans(records: &Records, before: &Reality, after: &Reality) -> Orphans {
    let unreadable = |id: &String| records.unreadable.iter().any(|(_, key, _)| key == id);
    let lost = |before: &BTreeSet<String>, after: &BTreeSet<String>, is_known: &dyn Fn(&String) -> bool| {
        before.intersection(after).filter(|id| !is_known(id) && !unreadable(id)).cloned().collect::<BTreeSet<_>>()
    };
    let is_pod = |id: &String| records.sandboxes.contains_key(id);
    let mut pods = lost(&before.pods, &after.pods, &is_pod);
    pods.extend(lost(&before.attached, &after.attached, &is_pod));
    let containers = lost(&before.containers, &after.containers, &|id| records.containers.contains(id));
    let pins = lost(&before.pins, &after.pins, &is_pod).difference(&pods).cloned().collect();
    Orphans { pods, containers, pins }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ids: &[&str]) -> BTreeSet<String> {
        ids.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn only_what_is_there_before_and_after_without_a_record_is_an_orphan() {
        let records = Records {
            sandboxes: [("known".to_owned(), Recorded::default())].into(),
            containers: set(&["c-known"]),
            unreadable: vec![("sandbox", "damaged".to_owned(), "x".to_owned())],
        };
        let before = Reality {
            pods: set(&["known", "damaged", "removed", "lost"]),
            containers: set(&["c-known", "c-lost"]),
            pins: set(&["known", "lost", "foreign"]),
            attached: set(&["known", "stray"]),
        };
        let mut after = before.clone();
        after.pods = set(&["known", "damaged", "new", "lost"]);
        let expected = Orphans { pods: set(&["lost", "stray"]), containers: set(&["c-lost"]), pins: set(&["foreign"]) };
        assert_eq!(orphans(&records, &before, &after), expected);
    }

    #[test]
    fn a_ready_pod_lacks_nothing() {
        let recorded = Recorded { is_ready: true, has_netns: true, ..Recorded::default() };
        let whole = Reality { pins: set(&["p"]), attached: set(&["p"]), ..Reality::default() };
        assert_eq!(pod("p", &recorded, &whole, |_| true), None);
        assert!(pod("p", &recorded, &whole, |_| false).is_some());
        assert!(pod("p", &recorded, &Reality { pins: set(&[]), ..whole.clone() }, |_| true).is_some());
        assert!(pod("p", &recorded, &Reality { attached: set(&[]), ..whole.clone() }, |_| true).is_some());
        assert_eq!(pod("p", &Recorded::default(), &Reality::default(), |_| false), None);
    }
}
