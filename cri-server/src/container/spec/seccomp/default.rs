//! `RuntimeDefault`: the effect of containerd's default profile.
//!
//! What is in no list fails with EPERM, and a call that is newer than the list with ENOSYS, which makes programs take the
//! older one. The latter is not written here: our OCI runtime and runc make it so for every such profile.

use nix::libc::{
    AF_ALG, AF_VSOCK, CLONE_NEWCGROUP, CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER,
    CLONE_NEWUTS, ENOSYS,
};
use serde_json::{Value, json};

use super::calls::{ALLOWED, BY_CAPABILITY, OF_ARCHITECTURE};

#[cfg(target_arch = "x86_64")]
const ARCHITECTURES: [&str; 3] = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"];
#[cfg(target_arch = "aarch64")]
const ARCHITECTURES: [&str; 2] = ["SCMP_ARCH_ARM", "SCMP_ARCH_AARCH64"];

/// `clone` with any of these makes a namespace.
const NAMESPACES: i32 =
    CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET;

/// Execution domains that 32-bit programs and old ones ask for, and the question which one it is.
const PERSONALITIES: [u32; 5] = [0, 0x8, 0x2_0000, 0x2_0008, u32::MAX];

/// The profile for who has these capabilities.
pub(super) fn profile(capabilities: &[&str]) -> Value {
    let given =
        BY_CAPABILITY.iter().filter(|(capability, _)| capabilities.contains(capability)).map(|(_, calls)| *calls);
    let mut allowed: Vec<&str> =
        ALLOWED.into_iter().chain([OF_ARCHITECTURE]).chain(given).flat_map(str::split_whitespace).collect();
    allowed.sort_unstable();
    allowed.dedup();
    let mut rules = vec![json!({ "names": allowed, "action": "SCMP_ACT_ALLOW" })];
    rules.extend(sockets());
    rules.extend(PERSONALITIES.map(|value| allow_if("personality", "SCMP_CMP_EQ", value)));
    if !capabilities.contains(&"CAP_SYS_ADMIN") {
        rules.extend(clones());
    }
    json!({ "defaultAction": "SCMP_ACT_ERRNO", "architectures": ARCHITECTURES, "syscalls": rules })
}

/// Allows a call whose first argument compares so.
fn allow_if(call: &str, op: &str, value: u32) -> Value {
    json!({
        "names": [call],
        "action": "SCMP_ACT_ALLOW",
        "args": [{ "index": 0, "value": value, "op": op }],
    })
}

/// All families but those that reach the host of a virtual machine (`AF_VSOCK`) and a seldom walked part of the kernel
/// (`AF_ALG`). Ranges, since OCI runtimes take several conditions on one argument for alternatives.
fn sockets() -> Vec<Value> {
    let (alg, vsock) = (AF_ALG.unsigned_abs(), AF_VSOCK.unsigned_abs());
    let mut rules = vec![allow_if("socket", "SCMP_CMP_LT", alg), allow_if("socket", "SCMP_CMP_GT", vsock)];
    rules.extend((alg + 1..vsock).map(|family| allow_if("socket", "SCMP_CMP_EQ", family)));
    rules
}

/// Processes and threads, but no namespaces. The flags of `clone3` are in memory, where a filter can't look; libraries take
/// `clone` after ENOSYS.
fn clones() -> [Value; 2] {
    [
        json!({
            "names": ["clone"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{ "index": 0, "value": NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ" }],
        }),
        json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS }),
    ]
}
