//! What devices of vendors (CDI) need beside nodes, mounts and variables: programs that the OCI runtime runs, and Intel's
//! resource director.

use serde_json::{Map, Value, json};

use crate::container::cdi::{Hook, IntelRdt};

pub(super) fn hooks(hooks: &[Hook]) -> Value {
    let mut all = Map::new();
    for hook in hooks {
        let mut value = json!({ "path": hook.path });
        for (name, list) in [("args", &hook.args), ("env", &hook.env)] {
            if !list.is_empty() {
                value[name] = json!(list);
            }
        }
        if let Some(timeout) = hook.timeout {
            value["timeout"] = timeout.into();
        }
        let of_name = all.entry(hook.hook_name.clone()).or_insert_with(|| json!([]));
        if let Value::Array(list) = of_name {
            list.push(value);
        }
    }
    all.into()
}

pub(super) fn intel_rdt(rdt: &IntelRdt) -> Value {
    let mut value = Map::new();
    for (name, text) in
        [("closID", &rdt.clos_id), ("l3CacheSchema", &rdt.l3_cache_schema), ("memBwSchema", &rdt.mem_bw_schema)]
    {
        if !text.is_empty() {
            value.insert(name.to_owned(), text.clone().into());
        }
    }
    if !rdt.schemata.is_empty() {
        value.insert("schemata".to_owned(), json!(rdt.schemata));
    }
    for (name, is_set) in
        [("enableCMT", rdt.enable_cmt), ("enableMBM", rdt.enable_mbm), ("enableMonitoring", rdt.enable_monitoring)]
    {
        if is_set {
            value.insert(name.to_owned(), true.into());
        }
    }
    value.into()
}
