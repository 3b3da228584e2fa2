//! Devices: nodes in the container, and who may open what.

use std::path::Path;

use serde_json::{Value, json};

use super::{Input, SpecError, invalid};
use crate::container::cdi::DeviceNode;

/// A device node of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDevice {
    /// Where it is on the host.
    pub path: String,
    /// Block, or else character.
    pub is_block: bool,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl HostDevice {
    fn kind(&self) -> &'static str {
        if self.is_block { "b" } else { "c" }
    }

    fn node(&self, path: &str) -> Value {
        json!({
            "path": path, "type": self.kind(), "major": self.major, "minor": self.minor,
            "fileMode": self.mode, "uid": self.uid, "gid": self.gid,
        })
    }
}

/// A node in the container, and who may do what with it.
struct Node {
    value: Value,
    access: String,
}

impl Node {
    fn path(&self) -> &str {
        self.value["path"].as_str().unwrap_or_default()
    }
}

/// Device nodes beside those that every OCI runtime makes; a later one takes the place of an earlier one at its path.
pub(super) fn nodes(input: &Input<'_>) -> Result<Vec<Value>, SpecError> {
    let mut nodes = Vec::new();
    if input.is_privileged() {
        nodes.extend(input.host.devices.iter().map(|device| device.node(&device.path)));
    }
    for node in named(input)? {
        nodes.retain(|other: &Value| other["path"] != node.path());
        nodes.push(node.value);
    }
    Ok(nodes)
}

/// The devices that the config names, and those of vendors.
fn named(input: &Input<'_>) -> Result<Vec<Node>, SpecError> {
    let mut nodes = Vec::new();
    let found = input.host.asked_devices.iter().map(Vec::as_slice).chain(std::iter::repeat(&[][..]));
    for (asked, found) in input.container.devices.iter().zip(found) {
        if found.is_empty() {
            let reason = format!("{:?} is neither a device of the host nor a directory with some", asked.host_path);
            return Err(invalid("devices", reason));
        }
        if asked.permissions.chars().any(|permission| !"rwm".contains(permission)) {
            return Err(invalid("devices", format!("permissions {:?} are not of r, w and m", asked.permissions)));
        }
        let target = if asked.container_path.is_empty() { &asked.host_path } else { &asked.container_path };
        for device in found {
            // Of a directory the devices keep their places below it.
            let place = match Path::new(&device.path).strip_prefix(&asked.host_path) {
                Ok(below) if !below.as_os_str().is_empty() => Path::new(target).join(below),
                _ => target.into(),
            };
            nodes.push(Node { value: device.node(&place.to_string_lossy()), access: access(&asked.permissions) });
        }
    }
    nodes.extend(input.cdi.device_nodes.iter().map(|node| of_vendor(node, input)));
    Ok(nodes)
}

fn of_vendor(node: &DeviceNode, input: &Input<'_>) -> Node {
    let mut value = json!({ "path": node.path, "type": node.kind });
    if let Some(major) = node.major {
        value["major"] = major.into();
        value["minor"] = node.minor.unwrap_or_default().into();
    }
    if let Some(mode) = node.file_mode {
        value["fileMode"] = mode.into();
    }
    // Who is not root could not open it otherwise.
    let of_process = |id: u32| (id != 0).then_some(id);
    for (name, id) in
        [("uid", node.uid.or(of_process(input.user.uid))), ("gid", node.gid.or(of_process(input.user.gid)))]
    {
        if let Some(id) = id {
            value[name] = id.into();
        }
    }
    Node { value, access: access(&node.permissions) }
}

fn access(permissions: &str) -> String {
    if permissions.is_empty() { "rwm" } else { permissions }.to_owned()
}

/// Nothing may be opened but what is listed; runtimes add the harmless ones (`null`, `tty` …) themselves.
pub(super) fn rules(input: &Input<'_>) -> Result<Value, SpecError> {
    if input.is_privileged() {
        return Ok(json!([{ "allow": true, "access": "rwm" }]));
    }
    let mut rules = vec![json!({ "allow": false, "access": "rwm" })];
    for Node { value, access } in named(input)? {
        if ["b", "c", "u"].iter().any(|kind| value["type"] == *kind) {
            let kind = if value["type"] == "b" { "b" } else { "c" };
            rules.push(json!({
                "allow": true, "type": kind, "major": value["major"], "minor": value["minor"], "access": access,
            }));
        }
    }
    Ok(rules.into())
}
