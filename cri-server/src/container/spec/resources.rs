//! Resources: limits of the control group and its device rules.

use serde_json::{Map, Value, json};

use super::{Input, SpecError, devices, invalid};

pub(super) fn resources(input: &Input<'_>) -> Result<Value, SpecError> {
    let limits = input.resources();
    let mut resources = Map::new();
    resources.insert("devices".to_owned(), devices::rules(input));

    let mut cpu = Map::new();
    for (name, value) in [("shares", limits.cpu_shares), ("period", limits.cpu_period)] {
        if value < 0 {
            return Err(invalid("linux.resources", format!("cpu {name} is negative")));
        }
        if value > 0 {
            cpu.insert(name.to_owned(), value.into());
        }
    }
    // -1 is "no limit".
    if limits.cpu_quota != 0 {
        cpu.insert("quota".to_owned(), limits.cpu_quota.into());
    }
    for (name, value) in [("cpus", &limits.cpuset_cpus), ("mems", &limits.cpuset_mems)] {
        if !value.is_empty() {
            cpu.insert(name.to_owned(), value.clone().into());
        }
    }
    if !cpu.is_empty() {
        resources.insert("cpu".to_owned(), cpu.into());
    }

    let memory = limits.memory_limit_in_bytes;
    if memory != 0 {
        let mut limit = Map::from_iter([("limit".to_owned(), Value::from(memory))]);
        let swap = limits.memory_swap_limit_in_bytes;
        if swap != 0 && memory > 0 && swap > 0 && swap < memory {
            return Err(invalid(
                "linux.resources.memory_swap_limit_in_bytes",
                "is memory and swap, so not below the memory",
            ));
        }
        if input.host.has_swap_accounting {
            // No word on swap means none: the sum of both is the memory.
            limit.insert("swap".to_owned(), if swap == 0 { memory } else { swap }.into());
        }
        resources.insert("memory".to_owned(), limit.into());
    }

    if !limits.hugepage_limits.is_empty() {
        let pages = limits.hugepage_limits.iter();
        let pages: Vec<_> = pages.map(|page| json!({ "pageSize": page.page_size, "limit": page.limit })).collect();
        resources.insert("hugepageLimits".to_owned(), pages.into());
    }
    if input.host.cgroup_v2 && !limits.unified.is_empty() {
        resources.insert("unified".to_owned(), json!(limits.unified));
    }
    Ok(resources.into())
}
