//! All failpoints of the daemon, for the tests, which fail when one of them is never passed.

use crate::{
    container::{self, steps::ContainerStep},
    plan,
    sandbox::{self, steps::SandboxStep},
};

/// Those that are not the planner's or the record's.
const OTHERS: &[&str] = &[
    "record.sync",
    "record.synced",
    "pull.resolve",
    "pull.resolved",
    "pull.fetch",
    "pull.unpacked",
    "pull.synced",
    "pull.renamed",
    "pull.record",
    "pull.recorded",
    "stop.signal",
    "stop.signalled",
];

/// Tells the tests.
pub fn announce() {
    // A sandbox that is on its way up is announced by its first step, the record.
    let sandboxes = plan::failpoints::all::<SandboxStep>("sandbox", &[sandbox::Level::NotReady, sandbox::Level::Gone]);
    let containers = plan::failpoints::all::<ContainerStep>(
        "container",
        &[container::Level::Running, container::Level::Held, container::Level::Gone],
    );
    let records = ["sandbox", "container", "image"]
        .into_iter()
        .flat_map(|table| ["write", "written", "delete", "deleted"].map(|moment| format!("record.{table}.{moment}")));
    let others = OTHERS.iter().map(ToString::to_string);
    let all = sandboxes.into_iter().chain(containers).chain(records).chain(others);
    vaina_sys::failpoint::announce(all.map(|point| (point, true)));
}
