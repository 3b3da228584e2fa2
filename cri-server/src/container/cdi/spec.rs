//! Spec files of the Container Device Interface: their form, and what makes one invalid. Pure.
//!
//! Each field needs the version of the specification that brought it, so that a file means the same to every reader.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

/// A spec file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Spec {
    cdi_version: String,
    pub(super) kind: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    pub(super) devices: Vec<Device>,
    /// Of a container that has any of the devices.
    #[serde(default)]
    pub(super) container_edits: ContainerEdits,
}

/// A device.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Device {
    pub(super) name: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) container_edits: ContainerEdits,
}

/// What a device does to a container.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ContainerEdits {
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Device nodes.
    pub device_nodes: Vec<DeviceNode>,
    /// Network devices of the host.
    pub net_devices: Vec<NetDevice>,
    /// Mounts.
    pub mounts: Vec<Mount>,
    /// Programs that the OCI runtime runs.
    pub hooks: Vec<Hook>,
    /// Intel's resource director.
    pub intel_rdt: Option<IntelRdt>,
    /// Further groups of the process.
    #[serde(rename = "additionalGids")]
    pub additional_gids: Vec<u32>,
}

/// A device node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DeviceNode {
    /// In the container.
    pub path: String,
    /// On the host; the same if it is empty.
    pub host_path: String,
    /// `b`, `c`, `u` or `p`; the host's if it is empty.
    #[serde(rename = "type")]
    pub kind: String,
    /// Major number; the host's if it is missing.
    pub major: Option<i64>,
    /// Minor number; the host's if it is missing.
    pub minor: Option<i64>,
    /// Permission bits.
    pub file_mode: Option<u32>,
    /// Of `r`, `w` and `m`; all if it is empty.
    pub permissions: String,
    /// Owner; the process's user if it is missing.
    pub uid: Option<u32>,
    /// Group; the process's if it is missing.
    pub gid: Option<u32>,
}

/// A network device of the host that moves into the container.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetDevice {
    /// On the host.
    pub host_interface_name: String,
    /// In the container.
    pub name: String,
}

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mount {
    /// On the host.
    pub host_path: String,
    /// In the container.
    pub container_path: String,
    /// File system type; a bind if it is empty.
    #[serde(rename = "type", default)]
    pub fs_type: String,
    /// Options.
    #[serde(default)]
    pub options: Vec<String>,
}

/// A program that the OCI runtime runs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hook {
    /// When, by the runtime spec's name.
    pub hook_name: String,
    /// Executable.
    pub path: String,
    /// Arguments, its name first.
    #[serde(default)]
    pub args: Vec<String>,
    /// `NAME=value`.
    #[serde(default)]
    pub env: Vec<String>,
    /// In seconds.
    #[serde(default)]
    pub timeout: Option<i64>,
}

/// Intel's resource director, as the runtime spec has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IntelRdt {
    /// Class of service.
    #[serde(rename = "closID")]
    pub clos_id: String,
    /// Cache schema.
    #[serde(rename = "l3CacheSchema")]
    pub l3_cache_schema: String,
    /// Bandwidth schema.
    #[serde(rename = "memBwSchema")]
    pub mem_bw_schema: String,
    /// Lines of the schemata file.
    pub schemata: Vec<String>,
    /// Cache monitoring.
    #[serde(rename = "enableCMT")]
    pub enable_cmt: bool,
    /// Bandwidth monitoring.
    #[serde(rename = "enableMBM")]
    pub enable_mbm: bool,
    /// A monitoring group.
    #[serde(rename = "enableMonitoring")]
    pub enable_monitoring: bool,
}

/// The versions that there are, oldest first.
const VERSIONS: [&str; 10] = ["0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];

pub(super) const HOOKS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

impl Spec {
    /// Refuses what can't be, in words for whoever wrote the file.
    pub(super) fn validate(&self) -> Result<(), String> {
        let version = self.cdi_version.strip_prefix('v').unwrap_or(&self.cdi_version);
        let version = VERSIONS.iter().position(|known| *known == version);
        let version = version.ok_or_else(|| format!("cdiVersion {:?} is not known", self.cdi_version))?;
        let needs = |what: &str, least: &str| match VERSIONS.iter().position(|known| *known == least) {
            Some(least) if version < least => {
                Err(format!("{what} needs cdiVersion {}, and this is {:?}", VERSIONS[least], self.cdi_version))
            }
            _ => Ok(()),
        };
        let (_, class) = kind(&self.kind)?;
        if class.contains('.') {
            needs("a class with a dot", "0.6.0")?;
        }
        if !self.annotations.is_empty() {
            needs("annotations", "0.6.0")?;
        }
        if self.devices.is_empty() {
            return Err("it has no devices".to_owned());
        }
        self.container_edits.validate(&needs)?;
        let mut names = BTreeSet::new();
        for device in &self.devices {
            let of_device = |reason: String| format!("device {:?}: {reason}", device.name);
            if !is_device_name(&device.name) {
                return Err(of_device("that is not a name of a device".to_owned()));
            }
            if !names.insert(&device.name) {
                return Err(of_device("it is there twice".to_owned()));
            }
            if device.name.starts_with(|first: char| first.is_ascii_digit()) {
                needs("a name that begins with a digit", "0.5.0").map_err(of_device)?;
            }
            if !device.annotations.is_empty() {
                needs("annotations", "0.6.0").map_err(of_device)?;
            }
            if device.container_edits == ContainerEdits::default() {
                return Err(of_device("it does nothing".to_owned()));
            }
            device.container_edits.validate(&needs).map_err(of_device)?;
        }
        Ok(())
    }
}

impl ContainerEdits {
    fn validate(&self, needs: &dyn Fn(&str, &str) -> Result<(), String>) -> Result<(), String> {
        variables("env", &self.env)?;
        for node in &self.device_nodes {
            let of_node = |reason: &str| format!("device node {:?} {reason}", node.path);
            if !node.path.starts_with('/') {
                return Err(of_node("is not an absolute path"));
            }
            if !["", "b", "c", "u", "p"].contains(&node.kind.as_str()) {
                return Err(of_node(&format!("has type {:?}", node.kind)));
            }
            if node.permissions.chars().any(|one| !"rwm".contains(one)) {
                return Err(of_node(&format!("has permissions {:?}, which are not of r, w and m", node.permissions)));
            }
            if !node.host_path.is_empty() {
                needs("hostPath of a device node", "0.5.0")?;
            }
        }
        for device in &self.net_devices {
            needs("netDevices", "1.1.0")?;
            if device.host_interface_name.is_empty() || device.name.is_empty() {
                return Err("a network device has no name".to_owned());
            }
        }
        for mount in &self.mounts {
            if mount.host_path.is_empty() || !mount.container_path.starts_with('/') {
                return Err(format!("mount of {:?} at {:?} lacks a path", mount.host_path, mount.container_path));
            }
            if !mount.fs_type.is_empty() {
                needs("type of a mount", "0.4.0")?;
            }
        }
        for hook in &self.hooks {
            if !HOOKS.contains(&hook.hook_name.as_str()) {
                return Err(format!("hookName {:?} is not known", hook.hook_name));
            }
            if !hook.path.starts_with('/') {
                return Err(format!("path {:?} of hook {} is not absolute", hook.path, hook.hook_name));
            }
            variables("env of a hook", &hook.env)?;
        }
        if let Some(rdt) = &self.intel_rdt {
            needs("intelRdt", "0.7.0")?;
            if rdt.clos_id.contains(['/', '\n']) || [".", ".."].contains(&rdt.clos_id.as_str()) {
                return Err(format!("closID {:?} is not the name of a directory", rdt.clos_id));
            }
            if !rdt.schemata.is_empty() || rdt.enable_monitoring {
                needs("schemata and enableMonitoring", "1.1.0")?;
            }
        }
        if !self.additional_gids.is_empty() {
            needs("additionalGids", "0.7.0")?;
        }
        Ok(())
    }
}

fn variables(what: &str, list: &[String]) -> Result<(), String> {
    let bad = list.iter().find(|variable| variable.split_once('=').is_none_or(|(name, _)| name.is_empty()));
    bad.map_or(Ok(()), |bad| Err(format!("{what}: {bad:?} is not NAME=value")))
}

/// Vendor and class of a kind.
pub(super) fn kind(text: &str) -> Result<(&str, &str), String> {
    let is_name = |text: &str| {
        text.starts_with(|first: char| first.is_ascii_alphabetic())
            && text.ends_with(|last: char| last.is_ascii_alphanumeric())
            && text.chars().all(|one| one.is_ascii_alphanumeric() || "_-.".contains(one))
    };
    match text.split_once('/') {
        Some((vendor, class)) if is_name(vendor) && is_name(class) => Ok((vendor, class)),
        _ => Err(format!("kind {text:?} is not vendor/class")),
    }
}

pub(super) fn is_device_name(text: &str) -> bool {
    let is_edge = |one: char| one.is_ascii_alphanumeric();
    text.starts_with(is_edge)
        && text.ends_with(is_edge)
        && text.chars().all(|one| one.is_ascii_alphanumeric() || "_-.:".contains(one))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Spec, String> {
        let spec: Spec = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        spec.validate().map(|()| spec)
    }

    fn with(version: &str, edits: &str) -> String {
        format!(
            r#"{{"cdiVersion":"{version}","kind":"vendor.com/net","devices":[{{"name":"a0","containerEdits":{edits}}}]}}"#
        )
    }

    #[test]
    fn json_is_read_as_yaml_is() {
        let yaml = "cdiVersion: 0.6.0\nkind: vendor.com/net\ndevices:\n- name: a0\n  containerEdits:\n    env: [A=1]\n    deviceNodes:\n    - {path: /dev/a, type: c, major: 1, minor: 3, fileMode: 438, permissions: rw}\n";
        let json = with(
            "0.6.0",
            r#"{"env":["A=1"],"deviceNodes":[{"path":"/dev/a","type":"c","major":1,"minor":3,"fileMode":438,"permissions":"rw"}]}"#,
        );
        assert_eq!(read(yaml).unwrap(), read(&json).unwrap());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, word) in [
            (with("9.9.9", r#"{"env":["A=1"]}"#), "9.9.9"),
            (with("0.6.0", "{}"), "does nothing"),
            (with("0.6.0", r#"{"env":["A"]}"#), "NAME=value"),
            (with("0.6.0", r#"{"envs":["A=1"]}"#), "envs"),
            (with("0.6.0", r#"{"deviceNodes":[{"path":"dev/a"}]}"#), "dev/a"),
            (with("0.6.0", r#"{"deviceNodes":[{"path":"/dev/a","type":"x"}]}"#), "type \"x\""),
            (with("0.6.0", r#"{"deviceNodes":[{"path":"/dev/a","permissions":"rx"}]}"#), "permissions \"rx\""),
            (with("0.4.0", r#"{"deviceNodes":[{"path":"/dev/a","hostPath":"/dev/b"}]}"#), "0.5.0"),
            (with("0.3.0", r#"{"mounts":[{"hostPath":"/a","containerPath":"/b","type":"tmpfs"}]}"#), "0.4.0"),
            (with("0.6.0", r#"{"mounts":[{"hostPath":"/a","containerPath":"b"}]}"#), "lacks a path"),
            (with("0.6.0", r#"{"hooks":[{"hookName":"before","path":"/x"}]}"#), "before"),
            (with("0.6.0", r#"{"hooks":[{"hookName":"prestart","path":"x"}]}"#), "not absolute"),
            (with("0.6.0", r#"{"additionalGids":[5]}"#), "0.7.0"),
            (with("0.7.0", r#"{"intelRdt":{"closID":"../x"}}"#), "closID"),
            (with("1.0.0", r#"{"netDevices":[{"hostInterfaceName":"a","name":"b"}]}"#), "1.1.0"),
            (with("0.6.0", r#"{"env":["A=1"]}"#).replace("a0", "a0-"), "a0-"),
            (with("0.4.0", r#"{"env":["A=1"]}"#).replace("a0", "0"), "0.5.0"),
            (with("0.5.0", r#"{"env":["A=1"]}"#).replace("/net", "/net.x"), "0.6.0"),
            (with("0.6.0", r#"{"env":["A=1"]}"#).replace("vendor.com/net", "vendor.com"), "vendor.com"),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
