//! Ids as types, so that two bare strings never stand in a row.

use std::{fmt, fs::File, io, io::Read as _, path::Path};

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Wraps a full id that is already known to be one.
            pub fn new(id: impl Into<String>) -> Self {
                Self(id.into())
            }

            /// The full id.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<Path> for $name {
            fn as_ref(&self) -> &Path {
                Path::new(&self.0)
            }
        }
    };
}

id! {
    /// A pod sandbox: 64 lower-case hex digits.
    SandboxId
}
id! {
    /// A container: 64 lower-case hex digits.
    ContainerId
}
id! {
    /// An image: the digest of its config, `sha256:<64 hex digits>`.
    ImageId
}

/// 64 random hex digits: a new id of a sandbox or a container.
pub fn random() -> io::Result<String> {
    let mut bytes = [0_u8; 32];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
