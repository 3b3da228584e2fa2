//! Devices of the Container Device Interface: by name from spec files of vendors, to what is changed in a container.
//!
//! A container's config names them in a field, or in annotations, as older device plugins do. The files are read at each
//! create that names a device: they come and go with drivers, and a create without devices reads none. Of a device that
//! several files have, that of the last directory counts; two in one directory are a conflict.
//!
//! A file that can't be read is no reason to refuse devices of others; who asks for one that is nowhere is told of it.

mod spec;

use std::{
    collections::BTreeMap,
    fs, io,
    io::Read as _,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use vaina_proto::cri::ContainerConfig;

use self::spec::Spec;
pub use self::spec::{ContainerEdits, DeviceNode, Hook, IntelRdt, Mount};
use crate::error::{Classify, Kind};

/// How annotations that name devices begin.
const ANNOTATIONS: &str = "cdi.k8s.io/";
/// The largest file that is read.
const FILE_LIMIT: u64 = 8 << 20;

/// Why a container can't have a device.
#[derive(Debug, thiserror::Error)]
pub enum CdiError {
    /// A name that is none.
    #[error("container config: {field}: {name:?} is not a CDI device like vendor.com/class=name")]
    Name {
        /// Where it stands.
        field: String,
        /// As given.
        name: String,
    },
    /// No file has them.
    #[error("unresolvable CDI devices {}{}", .names.join(", "), hint(.looked, .broken))]
    Unresolvable {
        /// All of them.
        names: Vec<String>,
        /// The directories.
        looked: Vec<PathBuf>,
        /// Files that may have them and can't be read, and why.
        broken: Vec<String>,
    },
    /// Two files of one directory have it.
    #[error("CDI device {name} is both in {} and in {}", .files[0].display(), .files[1].display())]
    Conflict {
        /// Which.
        name: String,
        /// The files.
        files: [PathBuf; 2],
    },
    /// A device node that the host does not have.
    #[error("CDI device node {}: {}", .path.display(), .reason)]
    Node {
        /// On the host.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Nobody does it.
    #[error("CDI device {name}: {what} is not supported")]
    Unsupported {
        /// Which.
        name: String,
        /// Of its edits.
        what: &'static str,
    },
}

fn hint(looked: &[PathBuf], broken: &[String]) -> String {
    let looked: Vec<_> = looked.iter().map(|path| path.display().to_string()).collect();
    let mut hint = format!(": no spec in {} has them", looked.join(" or "));
    if !broken.is_empty() {
        hint = format!("{hint}; not readable are: {}", broken.join("; "));
    }
    hint
}

impl Classify for CdiError {
    fn kind(&self) -> Kind {
        match self {
            Self::Name { .. } => Kind::InvalidArgument,
            Self::Unresolvable { .. } => Kind::NotFound,
            Self::Conflict { .. } | Self::Node { .. } => Kind::FailedPrecondition,
            Self::Unsupported { .. } => Kind::Unimplemented,
        }
    }
}

/// What all devices that the config names do to the container. Blocking.
pub(super) fn edits(config: &ContainerConfig, directories: &[PathBuf]) -> Result<ContainerEdits, CdiError> {
    let names = requested(config)?;
    if names.is_empty() {
        return Ok(ContainerEdits::default());
    }
    let mut edits = resolve(&names, directories)?;
    edits.device_nodes.iter_mut().try_for_each(complete)?;
    Ok(edits)
}

/// The devices that a config names, each once: the field's, then those of annotations.
pub(crate) fn requested(config: &ContainerConfig) -> Result<Vec<String>, CdiError> {
    let field = config.cdi_devices.iter().map(|device| ("CDI_devices".to_owned(), device.name.as_str()));
    let annotations = config
        .annotations
        .iter()
        .filter(|(key, _)| key.starts_with(ANNOTATIONS))
        .flat_map(|(key, names)| names.split(',').map(move |name| (format!("annotation {key}"), name)));
    let mut names: Vec<String> = Vec::new();
    for (field, name) in field.chain(annotations) {
        let is_name =
            name.split_once('=').is_some_and(|(kind, device)| spec::kind(kind).is_ok() && spec::is_device_name(device));
        if !is_name {
            return Err(CdiError::Name { field, name: name.to_owned() });
        }
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// A valid spec, where it was, and the number of its directory.
struct Found {
    priority: usize,
    path: PathBuf,
    spec: Spec,
}

fn resolve(names: &[String], directories: &[PathBuf]) -> Result<ContainerEdits, CdiError> {
    let (found, broken) = read(directories);
    let mut devices: BTreeMap<String, Vec<(usize, usize)>> = BTreeMap::new();
    for (file, one) in found.iter().enumerate() {
        for (device, of_file) in one.spec.devices.iter().enumerate() {
            let places = devices.entry(format!("{}={}", one.spec.kind, of_file.name)).or_default();
            // Those of lower directories don't count.
            places.retain(|(other, _)| found[*other].priority >= one.priority);
            places.push((file, device));
        }
    }
    let unresolvable: Vec<String> = names.iter().filter(|name| !devices.contains_key(*name)).cloned().collect();
    if !unresolvable.is_empty() {
        return Err(CdiError::Unresolvable { names: unresolvable, looked: directories.to_vec(), broken });
    }
    let mut edits = ContainerEdits::default();
    let mut used = Vec::new();
    for name in names {
        let places = devices.get(name).map_or(&[][..], Vec::as_slice);
        if let [(one, _), (other, _), ..] = places {
            let files = [found[*one].path.clone(), found[*other].path.clone()];
            return Err(CdiError::Conflict { name: name.clone(), files });
        }
        for (file, device) in places {
            let spec = &found[*file].spec;
            if !used.contains(file) {
                used.push(*file);
                append(&mut edits, &spec.container_edits, name)?;
            }
            append(&mut edits, &spec.devices[*device].container_edits, name)?;
        }
    }
    Ok(edits)
}

fn append(edits: &mut ContainerEdits, more: &ContainerEdits, name: &str) -> Result<(), CdiError> {
    if !more.net_devices.is_empty() {
        // A container is in the pod's network namespace, which outlives it and which others share.
        return Err(CdiError::Unsupported { name: name.to_owned(), what: "a network device" });
    }
    edits.env.extend_from_slice(&more.env);
    edits.device_nodes.extend_from_slice(&more.device_nodes);
    edits.mounts.extend_from_slice(&more.mounts);
    edits.hooks.extend_from_slice(&more.hooks);
    if more.intel_rdt.is_some() {
        edits.intel_rdt.clone_from(&more.intel_rdt);
    }
    edits.additional_gids.extend_from_slice(&more.additional_gids);
    Ok(())
}

/// All valid specs of the directories, and what is wrong with the other files. A directory that is not there is empty.
fn read(directories: &[PathBuf]) -> (Vec<Found>, Vec<String>) {
    let (mut found, mut broken) = (Vec::new(), Vec::new());
    for (priority, directory) in directories.iter().enumerate() {
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                broken.push(format!("{} ({error})", directory.display()));
                continue;
            }
        };
        let is_spec = |path: &PathBuf| path.extension().is_some_and(|end| end == "json" || end == "yaml");
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_spec).collect();
        paths.sort();
        for path in paths {
            match read_file(&path) {
                Ok(spec) => found.push(Found { priority, path, spec }),
                Err(reason) => broken.push(format!("{} ({reason})", path.display())),
            }
        }
    }
    (found, broken)
}

fn read_file(path: &Path) -> Result<Spec, String> {
    let metadata = fs::metadata(path).map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("it is not a file".to_owned());
    }
    let mut text = String::new();
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    file.take(FILE_LIMIT).read_to_string(&mut text).map_err(|error| error.to_string())?;
    let options = serde_saphyr::options! { with_snippet: false };
    let spec: Spec =
        serde_saphyr::from_str_with_options(&text, options).map_err(|error| error.to_string().replace('\n', " "))?;
    spec.validate()?;
    Ok(spec)
}

/// Fills in what a device node leaves to the host.
fn complete(node: &mut DeviceNode) -> Result<(), CdiError> {
    if node.kind == "p" || (!node.kind.is_empty() && node.major.is_some()) {
        return Ok(());
    }
    let path = PathBuf::from(if node.host_path.is_empty() { &node.path } else { &node.host_path });
    let fail = |reason: String| CdiError::Node { path: path.clone(), reason };
    let found = fs::metadata(&path).map_err(|error| fail(error.to_string()))?;
    let kind = match found.file_type() {
        kind if kind.is_block_device() => "b",
        kind if kind.is_char_device() => "c",
        kind if kind.is_fifo() => "p",
        _ => return Err(fail("it is not a device".to_owned())),
    };
    if node.kind.is_empty() {
        kind.clone_into(&mut node.kind);
    } else if (node.kind == "b") != (kind == "b") || kind == "p" {
        return Err(fail(format!("it is of type {kind:?}, and the spec says {:?}", node.kind)));
    }
    if kind != "p" {
        node.major = Some(rustix::fs::major(found.rdev()).into());
        node.minor = Some(rustix::fs::minor(found.rdev()).into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vaina_proto::cri::CdiDevice;

    use super::*;

    fn config(field: &[&str], annotations: &[(&str, &str)]) -> ContainerConfig {
        ContainerConfig {
            cdi_devices: field.iter().map(|name| CdiDevice { name: (*name).to_owned() }).collect(),
            annotations: annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            ..Default::default()
        }
    }

    fn write(directory: &Path, name: &str, device: &str, value: &str) {
        fs::create_dir_all(directory).unwrap();
        let text = format!(
            "cdiVersion: 0.6.0\nkind: v.com/gpu\ncontainerEdits:\n  env: [ALL={value}]\ndevices:\n- name: {device}\n  containerEdits:\n    env: [{}={value}]\n",
            device.to_uppercase()
        );
        fs::write(directory.join(name), text).unwrap();
    }

    #[test]
    fn names_are_of_the_field_and_of_annotations_and_each_once() {
        let config = config(&["v.com/gpu=a"], &[("cdi.k8s.io/x", "v.com/gpu=b,v.com/gpu=a"), ("other/x", "nonsense")]);
        assert_eq!(requested(&config).unwrap(), ["v.com/gpu=a", "v.com/gpu=b"]);
        for (bad, field) in
            [(self::config(&["gpu"], &[]), "CDI_devices"), (self::config(&[], &[("cdi.k8s.io/y", "")]), "cdi.k8s.io/y")]
        {
            assert!(requested(&bad).unwrap_err().to_string().contains(field));
        }
    }

    #[test]
    fn later_directories_win_and_what_is_common_is_done_once() {
        let dir = tempfile::tempdir().unwrap();
        let directories = ["low", "high", "none"].map(|name| dir.path().join(name));
        write(&directories[0], "a.yaml", "a", "low");
        write(&directories[0], "b.yaml", "b", "low");
        write(&directories[1], "a.json", "a", "high");
        fs::write(directories[1].join("ignored.txt"), "nonsense").unwrap();
        let env = |names: &[&str]| edits(&config(names, &[]), &directories).map(|edits| edits.env);
        assert_eq!(env(&["v.com/gpu=a", "v.com/gpu=b"]).unwrap(), ["ALL=high", "A=high", "ALL=low", "B=low"]);
        assert_eq!(env(&[]).unwrap(), Vec::<String>::new());

        fs::write(directories[0].join("broken.yaml"), "cdiVersion: [").unwrap();
        assert!(env(&["v.com/gpu=a"]).is_ok(), "of others");
        let error = env(&["v.com/gpu=c", "v.com/gpu=a", "v.com/gpu=d"]).unwrap_err().to_string();
        assert!(error.starts_with("unresolvable CDI devices v.com/gpu=c, v.com/gpu=d"), "{error}");
        assert!(error.contains("broken.yaml"), "{error}");

        write(&directories[1], "again.yaml", "a", "high");
        let error = env(&["v.com/gpu=a"]).unwrap_err().to_string();
        assert!(error.contains("a.json") && error.contains("again.yaml"), "{error}");
        write(&directories[2], "a.yaml", "a", "highest");
        assert_eq!(env(&["v.com/gpu=a"]).unwrap(), ["ALL=highest", "A=highest"], "a conflict below does not matter");
    }

    #[test]
    fn device_nodes_are_completed_from_the_host() {
        let node = |path: &str, host_path: &str, kind: &str| DeviceNode {
            path: path.into(),
            host_path: host_path.into(),
            kind: kind.into(),
            ..Default::default()
        };
        let mut null = node("/dev/mine", "/dev/null", "");
        complete(&mut null).unwrap();
        assert_eq!((null.kind.as_str(), null.major, null.minor), ("c", Some(1), Some(3)));
        for (mut bad, word) in [
            (node("/dev/none", "", ""), "/dev/none"),
            (node("/dev/null", "", "b"), "type \"c\""),
            (node("/dev/x", "/etc/passwd", ""), "not a device"),
        ] {
            let error = complete(&mut bad).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
