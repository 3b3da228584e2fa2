//! Why the network does not do what is asked: one variant per reason that a person can act on, one for steps of the
//! kernel's that failed.

use std::{fmt, io, net::IpAddr};

use super::Subnet;
use crate::{
    error::{Classify, Kind},
    id::SandboxId,
};

/// Why the network does not do what is asked.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No subnet that pods can live in.
    #[error("network subnet {subnet:?} is not an IPv4 block a.b.c.d/n with n from 8 to 30")]
    Subnet {
        /// As it is configured.
        subnet: String,
    },
    /// No name for an interface.
    #[error("network bridge {bridge:?} is not a name for an interface (1 to 15 letters, digits, '-', '_' or '.')")]
    BridgeName {
        /// As it is configured.
        bridge: String,
    },
    /// The host sends some of the subnet elsewhere.
    #[error(
        "network subnet {subnet} overlaps the host's route {route} by interface {interface}; configure another subnet"
    )]
    Overlap {
        /// The pods' subnet.
        subnet: Subnet,
        /// Destination of the other route.
        route: Subnet,
        /// Where it goes.
        interface: String,
    },
    /// The bridge's name is taken.
    #[error("interface {bridge} is there and is no bridge")]
    NotABridge {
        /// Its name.
        bridge: String,
    },
    /// The bridge is somebody else's, or from before the subnet was changed.
    #[error(
        "bridge {bridge} has address {found}, but subnet {subnet} needs {wanted}; remove the bridge or configure the other"
    )]
    BridgeAddress {
        /// Its name.
        bridge: String,
        /// What it has.
        found: String,
        /// The pods' subnet.
        subnet: Subnet,
        /// What it should have.
        wanted: IpAddr,
    },
    /// Something that should be there for all pods is not.
    #[error("{what} is missing")]
    Missing {
        /// What.
        what: String,
    },
    /// IPv6, as yet.
    #[error("{what} {address} is IPv6, which the built-in network does not do")]
    Family {
        /// Whose address.
        what: &'static str,
        /// The address.
        address: IpAddr,
    },
    /// Two pods, or two containers of one, want the same port of the host.
    #[error("host port {port} belongs to pod sandbox {owner}")]
    PortTaken {
        /// The port.
        port: String,
        /// Who has it.
        owner: SandboxId,
    },
    /// One pod wants it for two of its ports.
    #[error("host port {port} is asked for twice, for different ports of the pod")]
    PortTwice {
        /// The port.
        port: String,
    },
    /// A step of the kernel's.
    #[error("{step} {object}")]
    Step {
        /// Verb and object.
        step: &'static str,
        /// Which.
        object: String,
        /// Why.
        source: io::Error,
    },
}

impl From<io::Error> for NetworkError {
    fn from(source: io::Error) -> Self {
        Self::Step { step: "enter network namespace", object: "of the host".to_owned(), source }
    }
}

impl Classify for NetworkError {
    fn kind(&self) -> Kind {
        match self {
            Self::Subnet { .. } | Self::BridgeName { .. } | Self::PortTwice { .. } => Kind::InvalidArgument,
            Self::Overlap { .. } | Self::NotABridge { .. } | Self::BridgeAddress { .. } => Kind::FailedPrecondition,
            // Not "already exists": that would be the pod itself.
            Self::PortTaken { .. } => Kind::FailedPrecondition,
            Self::Family { .. } => Kind::Unimplemented,
            Self::Missing { .. } => Kind::Unavailable,
            Self::Step { .. } => Kind::Internal,
        }
    }
}

/// For `map_err`: the step that failed, and of what.
pub(super) fn step(step: &'static str, object: impl fmt::Display) -> impl FnOnce(io::Error) -> NetworkError {
    let object = object.to_string();
    move |source| NetworkError::Step { step, object, source }
}
