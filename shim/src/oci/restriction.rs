//! The last thing that a process of a container gives up before its program: what the seccomp filter takes.

use libcontainer::{
    capabilities::CapabilityExt as _,
    oci_spec::runtime::{Capability, LinuxSeccomp, Process},
};

use std::path::Path;

use super::{
    OciError,
    filter::{self, Filter},
    spec,
};

/// Needed to load a filter without "no new privileges", and to give that back.
const LENT: &[Capability] = &[Capability::SysAdmin, Capability::Setpcap];

/// A filter to load, and the capabilities that the process has for that alone.
#[derive(Debug, Clone, Default)]
pub(super) struct Restriction {
    filter: Option<Filter>,
    lent: Vec<Capability>,
}

impl Restriction {
    /// The restriction by a profile, below the runtime's root; lends the process what loading it takes.
    pub(super) fn new(profile: Option<&LinuxSeccomp>, process: &mut Process, root: &Path) -> Result<Self, OciError> {
        let Some(profile) = profile else { return Ok(Self::default()) };
        let filter = Filter::of(profile, root).map_err(|error| OciError::Library {
            step: "compile the seccomp profile",
            message: super::chain(&error),
        })?;
        let lent = match process.no_new_privileges() {
            Some(true) => Vec::new(),
            _ => spec::lend(process, LENT),
        };
        Ok(Self { filter: Some(filter), lent })
    }

    /// Gives back what was lent and loads the filter, in the order in which each still can be done.
    pub(super) fn apply(&self) -> Result<(), String> {
        for capability in &self.lent {
            drop_from(*capability, caps::CapSet::Bounding)?;
        }
        if let Some(filter) = &self.filter {
            filter.load().map_err(|error| format!("load seccomp filter: {error}"))?;
        }
        for capability in &self.lent {
            drop_from(*capability, caps::CapSet::Effective)?;
            drop_from(*capability, caps::CapSet::Permitted)?;
        }
        Ok(())
    }
}

/// The profile of a container, unless it is the library's to load.
pub(super) fn profile(seccomp: Option<&LinuxSeccomp>) -> Option<&LinuxSeccomp> {
    seccomp.filter(|profile| !filter::has_listener(profile))
}

fn drop_from(capability: Capability, set: caps::CapSet) -> Result<(), String> {
    caps::drop(None, set, capability.to_cap()).map_err(|error| format!("drop {capability} from {set:?}: {error}"))
}
