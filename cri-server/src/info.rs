//! What verbose answers say beyond the CRI's messages: JSON under the names that crictl and other tools read from containerd.

use std::{collections::BTreeMap, sync::LazyLock};

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::{Value, json};

use crate::{
    app::App,
    error::Chain,
    image::{Image, digest::Digest},
    runtime::Handler,
};

/// A larger message is left out, so that the answer stays below what clients take.
const MESSAGE_LIMIT: usize = 1 << 20;

/// The texts of an answer by their names.
pub(crate) type Info = BTreeMap<String, String>;

/// An answer with one text, where tools look for it.
pub(crate) fn one(info: &Value) -> Info {
    BTreeMap::from([("info".to_owned(), info.to_string())])
}

/// A CRI message as Go's clients write it: snake case, numbers for enumerations, nothing of what is not set. `Null` for
/// one that is too large.
pub(crate) fn message(name: &str, message: &impl Message) -> Value {
    static POOL: LazyLock<Option<DescriptorPool>> =
        LazyLock::new(|| DescriptorPool::decode(vaina_proto::cri::DESCRIPTOR).ok());
    let options = SerializeOptions::new()
        .use_proto_field_name(true)
        .use_enum_numbers(true)
        .stringify_64_bit_integers(false)
        .skip_default_fields(true);
    let bytes = message.encode_to_vec();
    POOL.as_ref()
        .filter(|_| bytes.len() <= MESSAGE_LIMIT)
        .and_then(|pool| pool.get_message_by_name(&format!("runtime.v1.{name}")))
        .and_then(|descriptor| DynamicMessage::decode(descriptor, &bytes[..]).ok())
        .and_then(|dynamic| dynamic.serialize_with_options(serde_json::value::Serializer, &options).ok())
        .unwrap_or_default()
}

/// The name that containerd has for a shim: `io.containerd.runc.v2` of `containerd-shim-runc-v2`.
pub(crate) fn runtime_type(handler: &Handler) -> String {
    let file = handler.shim.file_name().unwrap_or_default().to_string_lossy();
    match file.strip_prefix("containerd-shim-").and_then(|rest| rest.rsplit_once('-')) {
        Some((name, version)) => format!("io.containerd.{name}.{version}"),
        None => file.into_owned(),
    }
}

/// What the shim is told of its OCI runtime.
pub(crate) fn runtime_options(handler: &Handler) -> Value {
    json!({ "binary_name": handler.runtime, "root": handler.runtime_root })
}

/// Of the daemon.
pub(crate) async fn status(app: &App) -> Info {
    let network = app.network.status().await.err().map(|error| Chain(&error).to_string());
    // Whose rules drop the pods' traffic, in sentences; what can't be read is said in their place.
    let firewall = app.network.findings(&[]).await.unwrap_or_else(|error| vec![Chain(&error).to_string()]);
    let handlers: BTreeMap<_, _> = app.handlers.iter().map(|one| (one.name.as_str(), handler(app, one))).collect();
    let version = json!({
        "vaina": env!("CARGO_PKG_VERSION"),
        "cri": "v1",
        "kernel": nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default(),
        "cgroup": if app.cgroups.is_v2() { "v2" } else { "v1" },
    });
    let objects = json!({
        "podSandboxes": app.index.sandboxes.list().len(),
        "containers": app.index.containers.list().len(),
        "images": app.images.list().len(),
    });
    let network_state = json!({
        "type": "bridge",
        "bridge": app.config.network.bridge,
        "subnet": app.config.network.subnet,
        "problem": network,
    });
    [
        ("config", serde_json::to_value(&app.config).unwrap_or_default()),
        ("version", version),
        ("objects", objects),
        ("network", network_state),
        ("firewall", json!(firewall)),
        // Not `runtimeHandlers`: crictl prints all these beside the answer's own fields, and one has that name.
        ("handlers", json!(handlers)),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_string()))
    // A bare word, as tools know it.
    .chain([("lastCNILoadStatus".to_owned(), network.unwrap_or_else(|| "OK".to_owned()))])
    .collect()
}

fn handler(app: &App, handler: &Handler) -> Value {
    json!({
        "runtimeType": runtime_type(handler),
        "shim": handler.shim,
        "options": runtime_options(handler),
        "recursiveReadOnlyMounts": handler.makes_recursive_read_only(),
        // In a sentence, or nothing.
        "userNamespaceProblem": app.handlers.user_namespace_problem(handler),
    })
}

/// Of an image.
pub(crate) fn image(image: &Image) -> Info {
    let spec: Value = serde_json::from_str(image.config_text()).unwrap_or_default();
    one(&json!({ "chainID": chain_id(image.config.rootfs().diff_ids()), "imageSpec": spec }))
}

/// What the image specification calls the sum of a stack of layers; empty for no layers.
fn chain_id(diff_ids: &[String]) -> String {
    let mut ids = diff_ids.iter();
    let first = ids.next().cloned().unwrap_or_default();
    ids.fold(first, |chain, id| Digest::sha256(format!("{chain} {id}").as_bytes()).to_string())
}

#[cfg(test)]
mod tests {
    use vaina_proto::cri::{ContainerConfig, ContainerMetadata, KeyValue, Mount, MountPropagation};

    use super::*;

    #[test]
    fn messages_are_written_as_gos_clients_do() {
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: "web".into(), attempt: 0 }),
            log_path: "web/0.log".into(),
            envs: vec![KeyValue { key: "A".into(), value: "b".into() }],
            mounts: vec![Mount {
                container_path: "/v".into(),
                propagation: MountPropagation::PropagationBidirectional.into(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let expected = json!({
            "metadata": { "name": "web" },
            "log_path": "web/0.log",
            "envs": [{ "key": "A", "value": "Yg==" }],
            "mounts": [{ "container_path": "/v", "propagation": 2 }],
        });
        assert_eq!(message("ContainerConfig", &config), expected);
        let large = ContainerConfig { args: vec!["x".repeat(MESSAGE_LIMIT)], ..Default::default() };
        assert_eq!(message("ContainerConfig", &large), Value::Null);
    }

    #[test]
    fn a_shim_has_containerds_name_for_it() {
        for (shim, name) in [
            ("/usr/bin/containerd-shim-runc-v2", "io.containerd.runc.v2"),
            ("containerd-shim-kata-qemu-v2", "io.containerd.kata-qemu.v2"),
            ("/opt/own", "own"),
        ] {
            let handler =
                Handler { name: String::new(), shim: shim.into(), runtime: String::new(), runtime_root: "/r".into() };
            assert_eq!(runtime_type(&handler), name);
        }
    }

    #[test]
    fn layers_are_summed_up() {
        let ids = ["sha256:aa", "sha256:bb"].map(str::to_owned);
        assert_eq!(chain_id(&[]), "");
        assert_eq!(chain_id(&ids[..1]), "sha256:aa");
        assert_eq!(chain_id(&ids), Digest::sha256(b"sha256:aa sha256:bb").to_string());
    }
}
