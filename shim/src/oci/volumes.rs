//! Mount propagation of single volumes.
//!
//! `libcontainer` gives one propagation to the whole root file system and none to single binds, which then stay peers of
//! their sources: beside a Bidirectional volume a private one would see what the host mounts later, and pass on what the
//! container mounts. So a bind that is to propagate less than the root is bound here first, with its own propagation, and
//! the library clones that.
//!
//! It happens in the mount namespace of the create, on the private ground of the bundle, and ends with it.

use std::{fs, io, path::Path};

use libcontainer::oci_spec::runtime::{Mount, Spec};
use vaina_sys::mount::{self as sys, Propagation};

/// Directory of the bundle in which volumes are bound.
const DIRECTORY: &str = "volumes";

/// Binds what needs it and names the new places in the configuration.
pub(super) fn stage(spec: &mut Spec, bundle: &Path) -> io::Result<()> {
    let root = spec.linux().as_ref().and_then(|linux| linux.rootfs_propagation().clone());
    let root = root.as_deref().map_or(Some(Propagation::Private), word);
    let Some(mut mounts) = spec.mounts().clone() else { return Ok(()) };
    let mut directory = None;
    for (number, mount) in mounts.iter_mut().enumerate() {
        let Some((own, source)) = less_than(root, mount) else { continue };
        let directory = match &directory {
            Some(directory) => directory,
            None => {
                // Where the caller made no throw-away namespace, this one is ours to throw away.
                crate::mount::enter(bundle, &[])?;
                let path = bundle.join(DIRECTORY);
                fs::create_dir_all(&path)?;
                directory.insert(path)
            }
        };
        let target = directory.join(number.to_string());
        if fs::metadata(&source)?.is_dir() {
            fs::create_dir_all(&target)?;
        } else {
            fs::write(&target, "")?;
        }
        let recursive = has(mount, &["rbind"]);
        sys::bind(Path::new(&source), &target, recursive)?;
        sys::set_propagation(&target, own, recursive)?;
        mount.set_source(Some(target));
    }
    if directory.is_some() {
        spec.set_mounts(Some(mounts));
    }
    Ok(())
}

/// The propagation of a bind and its source, if it is less than the root's.
fn less_than(root: Option<Propagation>, mount: &Mount) -> Option<(Propagation, std::path::PathBuf)> {
    if !has(mount, &["bind", "rbind"]) && mount.typ().as_deref() != Some("bind") {
        return None;
    }
    let own = mount.options().iter().flatten().rev().find_map(|option| word(option))?;
    let is_less = match (root?, own) {
        (Propagation::Shared, Propagation::Slave | Propagation::Private) => true,
        (Propagation::Slave, Propagation::Private) => true,
        (Propagation::Shared | Propagation::Slave | Propagation::Private, _) => false,
    };
    Some((own, mount.source().clone()?)).filter(|_| is_less)
}

fn has(mount: &Mount, words: &[&str]) -> bool {
    mount.options().iter().flatten().any(|option| words.contains(&option.as_str()))
}

fn word(option: &str) -> Option<Propagation> {
    match option {
        "shared" | "rshared" => Some(Propagation::Shared),
        "slave" | "rslave" => Some(Propagation::Slave),
        "private" | "rprivate" => Some(Propagation::Private),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(options: &[&str]) -> Mount {
        let json = serde_json::json!({ "destination": "/v", "type": "bind", "source": "/s", "options": options });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn what_propagates_less_than_the_root_is_bound_first() {
        use Propagation::{Private, Shared, Slave};
        let own = |root, options: &[&str]| less_than(Some(root), &mount(options)).map(|(own, _)| own);
        assert_eq!(own(Shared, &["rbind", "rprivate", "rw"]), Some(Private));
        assert_eq!(own(Shared, &["rbind", "rslave", "rw"]), Some(Slave));
        assert_eq!(own(Shared, &["rbind", "rshared", "rw"]), None);
        assert_eq!(own(Slave, &["rbind", "rprivate", "rw"]), Some(Private));
        assert_eq!(own(Slave, &["rbind", "rslave", "rw"]), None);
        assert_eq!(own(Private, &["rbind", "rprivate", "rw"]), None);
        assert_eq!(own(Shared, &["rbind", "rw"]), None);
        let proc =
            serde_json::json!({ "destination": "/proc", "type": "proc", "source": "proc", "options": ["rprivate"] });
        assert!(less_than(Some(Shared), &serde_json::from_value(proc).unwrap()).is_none());
    }
}
