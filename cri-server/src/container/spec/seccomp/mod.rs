//! Seccomp: which profile a config asks for, those of the host, and what `RuntimeDefault` means here.

mod calls;
mod default;

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Component, Path, PathBuf},
};

use oci_spec::runtime::LinuxSeccomp;
use serde_json::Value;
use vaina_proto::cri::{LinuxContainerSecurityContext, security_profile::ProfileType};

use super::{Host, SpecError, invalid, security::Capabilities};

/// Where the kubelet keeps profiles, and what a path that is not absolute is relative to.
const KUBELET_ROOT: &str = "/var/lib/kubelet/seccomp";
/// The largest profile that is read; those of distributions have some 20 KiB.
const SIZE_LIMIT: u64 = 1 << 20;

const FIELD: &str = "linux.security_context.seccomp";

/// Why a profile of the host can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// It is not there, or not ours to read.
    #[error("can't be read")]
    Read(#[source] io::Error),
    /// A directory, a device.
    #[error("is not a file")]
    NotAFile,
    /// No profile has so many bytes.
    #[error("is larger than {SIZE_LIMIT} bytes")]
    TooLarge,
    /// It is not what the runtime specification describes.
    #[error("is not a seccomp profile")]
    Parse(#[source] serde_json::Error),
}

/// What a config asks for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Unconfined,
    RuntimeDefault,
    Localhost(PathBuf),
}

fn asked(security: &LinuxContainerSecurityContext) -> Result<Asked, SpecError> {
    if security.privileged {
        return Ok(Asked::Unconfined);
    }
    let Some(profile) = &security.seccomp else { return asked_in_words(security) };
    match profile.profile_type() {
        ProfileType::Localhost => localhost(&profile.localhost_ref).map(Asked::Localhost),
        ProfileType::Unconfined | ProfileType::RuntimeDefault if !profile.localhost_ref.is_empty() => {
            Err(invalid(FIELD, format!("has localhost_ref {:?} but is not of type Localhost", profile.localhost_ref)))
        }
        ProfileType::Unconfined => Ok(Asked::Unconfined),
        ProfileType::RuntimeDefault => Ok(Asked::RuntimeDefault),
    }
}

/// By the field that `seccomp` has replaced.
fn asked_in_words(security: &LinuxContainerSecurityContext) -> Result<Asked, SpecError> {
    #[expect(deprecated, reason = "old clients know no other")]
    match security.seccomp_profile_path.as_str() {
        "" | "unconfined" => Ok(Asked::Unconfined),
        "runtime/default" | "docker/default" => Ok(Asked::RuntimeDefault),
        other => match other.strip_prefix("localhost/") {
            Some(path) => localhost(path).map(Asked::Localhost),
            None => Err(invalid("linux.security_context.seccomp_profile_path", format!("{other:?} is none"))),
        },
    }
}

fn localhost(reference: &str) -> Result<PathBuf, SpecError> {
    let path = Path::new(reference);
    if reference.is_empty() {
        return Err(invalid(FIELD, "is of type Localhost but has no localhost_ref"));
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(invalid(FIELD, format!("profile {reference:?} climbs with \"..\"")));
    }
    Ok(Path::new(KUBELET_ROOT).join(path))
}

/// The profile of the host that a config names, if it names one.
pub(crate) fn of_host(security: &LinuxContainerSecurityContext) -> Result<Option<LinuxSeccomp>, SpecError> {
    match asked(security)? {
        Asked::Unconfined | Asked::RuntimeDefault => Ok(None),
        Asked::Localhost(path) => match read(&path) {
            Ok(profile) => Ok(Some(profile)),
            Err(source) => Err(SpecError::Seccomp { path, source }),
        },
    }
}

fn read(path: &Path) -> Result<LinuxSeccomp, ProfileError> {
    // A FIFO has no end.
    let flags = nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY;
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(ProfileError::Read)?;
    if !file.metadata().map_err(ProfileError::Read)?.is_file() {
        return Err(ProfileError::NotAFile);
    }
    let mut text = Vec::new();
    file.take(SIZE_LIMIT + 1).read_to_end(&mut text).map_err(ProfileError::Read)?;
    if text.len() as u64 > SIZE_LIMIT {
        return Err(ProfileError::TooLarge);
    }
    serde_json::from_slice(&text).map_err(ProfileError::Parse)
}

/// The profile that the config asks for; one of the host was read into `host`.
pub(super) fn profile(
    security: &LinuxContainerSecurityContext,
    capabilities: &Capabilities,
    host: &Host,
) -> Result<Option<Value>, SpecError> {
    match asked(security)? {
        Asked::Unconfined => Ok(None),
        Asked::RuntimeDefault => Ok(Some(default::profile(&capabilities.all))),
        Asked::Localhost(path) => match &host.seccomp_profile {
            Some(profile) => serde_json::to_value(profile).map(Some).map_err(SpecError::Shape),
            None => Err(invalid(FIELD, format!("profile {} was not looked at", path.display()))),
        },
    }
}

#[cfg(test)]
mod tests;
