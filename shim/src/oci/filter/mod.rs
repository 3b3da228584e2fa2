//! Seccomp filters of containers, compiled once for each profile.
//!
//! Compiling a runtime's usual profile with `libseccomp` takes as long as all the rest of a start, and profiles are few. So the
//! program is kept below the runtime's root, beside the profile that it is of, and loaded in the last step before the
//! container's program (`workload.rs`), by the first process and by each exec. The library gets a configuration without
//! a filter. A profile with a listener stays with the library, which hands the listener over.

mod compile;

use std::{
    fs, hash,
    io::{self, Write as _},
    path::Path,
};

use libcontainer::oci_spec::runtime::{LinuxSeccomp, LinuxSeccompFilterFlag};
use vaina_sys::seccomp::{self, Flags};

pub(super) use self::compile::FilterError;

/// Where programs are kept below the root: no container's id starts with a dot.
const DIRECTORY: &str = ".filters";
/// More than a node has profiles; beyond it all are forgotten.
const KEPT: usize = 64;
/// What a program depends on beside its profile. Changed with `compile.rs`.
const FORM: u32 = 1;

/// A filter that can be loaded.
#[derive(Debug, Clone)]
pub(super) struct Filter {
    program: Vec<u8>,
    flags: Flags,
}

impl Filter {
    /// The filter of a profile, from the kept ones or compiled now.
    pub(super) fn of(profile: &LinuxSeccomp, root: &Path) -> Result<Self, FilterError> {
        let flags = flags(profile);
        let key = key(profile)?;
        let directory = root.join(DIRECTORY);
        let file = directory.join(format!("{:016x}", hash(&key)));
        if let Some(program) = fs::read(&file).ok().and_then(|kept| kept_program(&kept, &key)) {
            return Ok(Self { program, flags });
        }
        let program = compile::compile(profile)?;
        // It only saves time: what can't be kept is compiled again.
        let _ = keep(&directory, &file, &key, &program);
        Ok(Self { program, flags })
    }

    /// Restricts this process, for good.
    pub(super) fn load(&self) -> io::Result<()> {
        seccomp::load(&self.program, self.flags)
    }
}

/// Whether a profile is left to the library.
pub(super) fn has_listener(profile: &LinuxSeccomp) -> bool {
    libcontainer::seccomp::is_notify(profile)
}

fn flags(profile: &LinuxSeccomp) -> Flags {
    let has = |flag| profile.flags().iter().flatten().any(|own| *own == flag);
    Flags {
        log: has(LinuxSeccompFilterFlag::SeccompFilterFlagLog),
        speculation: has(LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow),
        all_threads: has(LinuxSeccompFilterFlag::SeccompFilterFlagTsync),
    }
}

/// All that a program depends on.
fn key(profile: &LinuxSeccomp) -> Result<Vec<u8>, FilterError> {
    let mut key = format!("{FORM} {} ", compile::library()?).into_bytes();
    serde_json::to_writer(&mut key, profile).map_err(|error| FilterError::Memory(error.into()))?;
    Ok(key)
}

/// Names a file; the whole key in it says whether it is the right one.
fn hash(key: &[u8]) -> u64 {
    let mut hasher = hash::DefaultHasher::new();
    hash::Hasher::write(&mut hasher, key);
    hash::Hasher::finish(&hasher)
}

fn kept_program(kept: &[u8], key: &[u8]) -> Option<Vec<u8>> {
    let (length, rest) = kept.split_first_chunk()?;
    let (own, program) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    (own == key && !program.is_empty()).then(|| program.to_vec())
}

/// Written whole or not at all, as several containers start at once.
fn keep(directory: &Path, file: &Path, key: &[u8], program: &[u8]) -> io::Result<()> {
    if fs::read_dir(directory).is_ok_and(|entries| entries.count() >= KEPT) {
        fs::remove_dir_all(directory)?;
    }
    super::create::make_private(directory)?;
    let new = file.with_extension(std::process::id().to_string());
    let mut out = fs::File::create(&new)?;
    let length = u32::try_from(key.len()).map_err(io::Error::other)?;
    let written =
        out.write_all(&length.to_le_bytes()).and_then(|()| out.write_all(key)).and_then(|()| out.write_all(program));
    match written.and_then(|()| fs::rename(&new, file)) {
        Ok(()) => Ok(()),
        Err(error) => {
            let _ = fs::remove_file(&new);
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(names: &[&str]) -> LinuxSeccomp {
        let json = serde_json::json!({ "defaultAction": "SCMP_ACT_ERRNO", "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "syscalls": [{ "names": names, "action": "SCMP_ACT_ALLOW" }] });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_profile_is_compiled_once() {
        let root = tempfile::tempdir().unwrap();
        let first = Filter::of(&profile(&["read", "write"]), root.path()).unwrap();
        assert!(first.flags.log && !first.flags.speculation);
        let files = || fs::read_dir(root.path().join(DIRECTORY)).unwrap().map(|entry| entry.unwrap().path());
        let file = files().next().unwrap();
        // What is kept is what is used: an altered program comes back as it is.
        let mut kept = fs::read(&file).unwrap();
        kept.extend_from_slice(&[6, 0, 0, 0, 0, 0, 0xff, 0x7f]);
        fs::write(&file, kept).unwrap();
        let again = Filter::of(&profile(&["read", "write"]), root.path()).unwrap();
        assert_eq!(again.program.len(), first.program.len() + 8);
        let other = Filter::of(&profile(&["read"]), root.path()).unwrap();
        assert_ne!(other.program, first.program);
        assert_eq!(files().count(), 2);
    }

    #[test]
    fn what_is_kept_of_another_profile_or_cut_short_is_not_used() {
        let root = tempfile::tempdir().unwrap();
        let first = Filter::of(&profile(&["read"]), root.path()).unwrap();
        let file = fs::read_dir(root.path().join(DIRECTORY)).unwrap().next().unwrap().unwrap().path();
        let whole = fs::read(&file).unwrap();
        let mut of_another = whole.clone();
        of_another[10] ^= 1;
        for wrong in [&whole[..2], &whole[..40], &of_another, &[]] {
            fs::write(&file, wrong).unwrap();
            assert_eq!(Filter::of(&profile(&["read"]), root.path()).unwrap().program, first.program);
            assert_eq!(fs::read(&file).unwrap(), whole);
        }
    }

    #[test]
    fn the_kept_ones_do_not_grow_without_end() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join(DIRECTORY);
        fs::create_dir(&directory).unwrap();
        for number in 0..KEPT {
            fs::write(directory.join(number.to_string()), "").unwrap();
        }
        Filter::of(&profile(&["read"]), root.path()).unwrap();
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
    }
}
