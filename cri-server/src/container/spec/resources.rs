//! Resources: limits of the control group and its device rules.

use serde_json::{Map, Value, json};
use vaina_proto::cri::LinuxContainerResources;

use super::{Host, Input, SpecError, devices, invalid};
use crate::limits::weight;

pub(super) fn resources(input: &Input<'_>) -> Result<Value, SpecError> {
    let mut resources = limits(&input.resources(), input.host)?;
    resources.insert("devices".to_owned(), devices::rules(input)?);
    Ok(resources.into())
}

/// Limits as OCI runtimes take them, without device rules: also what an update of a running container consists of.
pub(crate) fn limits(limits: &LinuxContainerResources, host: &Host) -> Result<Map<String, Value>, SpecError> {
    let mut resources = Map::new();

    let mut cpu = Map::new();
    for (name, value) in [("shares", limits.cpu_shares), ("period", limits.cpu_period)] {
        if value < 0 {
            return Err(invalid("linux.resources", format!("cpu {name} is negative")));
        }
        if value > 0 {
            cpu.insert(name.to_owned(), value.into());
        }
    }
    // -1 is "no limit", as a new group has it. Of an old one we take it away ourselves, since crun can't on v1.
    if limits.cpu_quota > 0 {
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
        if host.has_swap_accounting {
            // No word on swap means none: the sum of both is the memory.
            limit.insert("swap".to_owned(), if swap == 0 { memory } else { swap }.into());
        }
        resources.insert("memory".to_owned(), limit.into());
    }

    let mut pages = Vec::new();
    for page in &limits.hugepage_limits {
        if host.huge_pages.contains(&page.page_size) {
            pages.push(json!({ "pageSize": page.page_size, "limit": page.limit }));
        } else if page.limit != 0 {
            let reason = format!(
                "{:?} is not a size of huge pages that this kernel has ({})",
                page.page_size,
                host.huge_pages.join(", ")
            );
            return Err(invalid("linux.resources.hugepage_limits", reason));
        }
    }
    if !pages.is_empty() {
        resources.insert("hugepageLimits".to_owned(), pages.into());
    }
    if host.cgroup_v2 {
        let mut unified = limits.unified.clone();
        if limits.cpu_shares > 0 {
            // Runtimes differ in how they make a weight of shares.
            unified.entry("cpu.weight".to_owned()).or_insert_with(|| weight(limits.cpu_shares).to_string());
        }
        if !unified.is_empty() {
            resources.insert("unified".to_owned(), json!(unified));
        }
    }
    Ok(resources)
}

/// The size that a directory of the kernel's stands for (`hugepages-2048kB`), as limits name it (`2MB`).
pub(crate) fn huge_page(directory: &str) -> Option<String> {
    let mut size: u64 = directory.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
    let mut units = ["KB", "MB", "GB", "TB"].into_iter();
    while size >= 1024 && size.is_multiple_of(1024) && units.len() > 1 {
        size /= 1024;
        units.next();
    }
    Some(format!("{size}{}", units.next()?))
}
