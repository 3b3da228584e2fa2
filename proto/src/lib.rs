//! The wire contracts of Vaina, generated, and the names on which its programs agree.
//!
//! - [`cri`]: Kubernetes CRI v1 as of cri-api 0.37, written from the wire table in `tests/cri-v1-wire.tsv`.
//! - [`images`]: `vaina.images.v1`, importing an archive, for which the CRI has no call.
//! - [`shim`]: `vaina.shim.v1`, what our daemon and our shim need beyond containerd's Task and Sandbox services.

#![allow(
    warnings,
    missing_debug_implementations,
    clippy::all,
    clippy::pedantic,
    reason = "everything below is generated; its contract is checked by the tests"
)]

/// Annotation of a container's runtime spec that our own OCI runtime reads: variables whose values are not UTF-8, as a JSON
/// object of names and arrays of bytes. The process and all execs have them.
pub const ENVIRONMENT_ANNOTATION: &str = "vaina.oci.v1/environment";

/// CRI v1: messages, `runtime_service_{client,server}` and `image_service_{client,server}`.
#[cfg(feature = "cri")]
pub mod cri {
    include!(concat!(env!("OUT_DIR"), "/runtime.v1.rs"));

    /// The compiled `FileDescriptorSet`, for the test against the wire table.
    pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/cri.bin"));
}

/// `vaina.images.v1`: importing archives into a running daemon; gRPC beside the CRI on the same socket.
#[cfg(feature = "cri")]
pub mod images {
    include!(concat!(env!("OUT_DIR"), "/vaina.images.v1.rs"));
}

/// `vaina.shim.v1`: messages and the async ttrpc client and server.
#[cfg(feature = "shim")]
pub mod shim {
    // The generated service names its messages `super::shim`.
    mod shim {
        include!(concat!(env!("OUT_DIR"), "/shim.rs"));
    }
    mod shim_ttrpc {
        include!(concat!(env!("OUT_DIR"), "/shim_ttrpc.rs"));
    }
    pub use shim::*;
    pub use shim_ttrpc::*;
}
