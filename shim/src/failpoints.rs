//! All failpoints of the shim and of its OCI runtime, for the tests, which fail when one of them is never passed.

/// Each with whether it can fail.
const POINTS: &[(&str, bool)] = &[
    ("shim.create", true),
    ("shim.created", false),
    ("shim.start", true),
    ("shim.started", true),
    ("shim.stop.signalled", true),
    ("shim.stop.armed", true),
    ("shim.exit", false),
    ("shim.exit.settled", false),
    ("shim.delete", true),
    ("shim.deleted", true),
    ("runtime.create", true),
    ("runtime.created", true),
    ("runtime.start", true),
    ("runtime.started", true),
    ("runtime.delete", true),
    ("runtime.deleted", true),
];

/// Tells the tests.
pub(crate) fn announce() {
    vaina_sys::failpoint::announce(POINTS.iter().map(|(point, fails)| ((*point).to_owned(), *fails)));
}
