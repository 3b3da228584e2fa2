//! Devices: nodes in the container, and who may open what.

use serde_json::{Value, json};

use super::{Input, SpecError, invalid};

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

/// Device nodes beside those that every OCI runtime makes.
pub(super) fn nodes(input: &Input<'_>) -> Result<Vec<Value>, SpecError> {
    let mut nodes = Vec::new();
    if input.is_privileged() {
        nodes.extend(input.host.devices.iter().map(|device| device.node(&device.path)));
    }
    for asked in &input.container.devices {
        let found = found(input, &asked.host_path);
        let found =
            found.ok_or_else(|| invalid("devices", format!("{:?} is not a device of the host", asked.host_path)))?;
        if asked.permissions.chars().any(|permission| !"rwm".contains(permission)) {
            return Err(invalid("devices", format!("permissions {:?} are not of r, w and m", asked.permissions)));
        }
        let target = if asked.container_path.is_empty() { &asked.host_path } else { &asked.container_path };
        nodes.retain(|node: &Value| node["path"] != target.as_str());
        nodes.push(found.node(target));
    }
    Ok(nodes)
}

fn found<'a>(input: &'a Input<'_>, path: &str) -> Option<&'a HostDevice> {
    input.host.asked_devices.iter().find(|device| device.path == path)
}

/// Nothing may be opened but what is listed; runtimes add the harmless ones (`null`, `tty` …) themselves.
pub(super) fn rules(input: &Input<'_>) -> Value {
    if input.is_privileged() {
        return json!([{ "allow": true, "access": "rwm" }]);
    }
    let mut rules = vec![json!({ "allow": false, "access": "rwm" })];
    for asked in &input.container.devices {
        if let Some(device) = found(input, &asked.host_path) {
            let access = if asked.permissions.is_empty() { "rwm" } else { &asked.permissions };
            rules.push(json!({
                "allow": true, "type": device.kind(), "major": device.major, "minor": device.minor, "access": access,
            }));
        }
    }
    rules.into()
}
