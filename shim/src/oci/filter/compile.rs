//! From a profile to a program, with `libseccomp`.
//!
//! What a profile means follows `runc`: a call that the library does not know is left out; comparisons of one argument with
//! several values are alternatives; and calls newer than all that the profile names fail with ENOSYS and not with the
//! profile's error, since programs that get EPERM do not fall back to the older call.

use std::{
    collections::HashSet,
    io::{self, Read as _, Seek as _},
};

use libcontainer::oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall, ScmpVersion};
use nix::libc;

/// Why a profile has no program.
#[derive(Debug, thiserror::Error)]
pub(in crate::oci) enum FilterError {
    /// One step of the library.
    #[error("{step}")]
    Library {
        /// What was done.
        step: &'static str,
        /// The library's word.
        source: libseccomp::error::SeccompError,
    },
    /// One call of the profile.
    #[error("add a rule for {name}")]
    Rule {
        /// The call.
        name: String,
        /// The library's word.
        source: libseccomp::error::SeccompError,
    },
    /// An errno that no call can have.
    #[error("errno {0} of the seccomp profile is out of range")]
    Errno(u32),
    /// The program could not be taken from the library.
    #[error("export the program")]
    Memory(#[source] io::Error),
}

fn at(step: &'static str) -> impl FnOnce(libseccomp::error::SeccompError) -> FilterError {
    move |source| FilterError::Library { step, source }
}

/// The library's version: another one knows other calls.
pub(super) fn library() -> Result<String, FilterError> {
    let ScmpVersion { major, minor, micro } = ScmpVersion::current().map_err(at("ask libseccomp for its version"))?;
    Ok(format!("{major}.{minor}.{micro}"))
}

/// The program of a profile.
pub(super) fn compile(profile: &LinuxSeccomp) -> Result<Vec<u8>, FilterError> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut context = ScmpFilterContext::new(default).map_err(at("begin a seccomp filter"))?;
    let mut architectures = vec![ScmpArch::native()];
    for own in profile.architectures().iter().flatten().copied().map(architecture) {
        context.add_arch(own).map_err(at("add an architecture to the seccomp filter"))?;
        if own != ScmpArch::Native && !architectures.contains(&own) {
            architectures.push(own);
        }
    }
    // The loader decides that, not the library.
    context.set_ctl_nnp(false).map_err(at("leave \"no new privileges\" alone"))?;
    for rule in profile.syscalls().iter().flatten() {
        add(&mut context, rule, default)?;
    }
    let mut program = unknown_calls(profile, &architectures);
    program.extend(export(&context)?);
    Ok(program)
}

fn add(context: &mut ScmpFilterContext, rule: &LinuxSyscall, default: ScmpAction) -> Result<(), FilterError> {
    let action = action(rule.action(), rule.errno_ret())?;
    if action == default {
        // The library refuses a rule that changes nothing.
        return Ok(());
    }
    let mut seen = HashSet::new();
    let mut conditions = Vec::new();
    for argument in rule.args().iter().flatten() {
        // The kernel has six; the library refuses others.
        let index = u32::try_from(argument.index()).unwrap_or(u32::MAX);
        seen.insert(index);
        conditions.push(condition(index, argument));
    }
    for name in rule.names() {
        let Ok(call) = ScmpSyscall::from_name(name) else { continue };
        let failed = |source| FilterError::Rule { name: name.clone(), source };
        if seen.len() < conditions.len() {
            for condition in &conditions {
                context.add_rule_conditional(action, call, std::slice::from_ref(condition)).map_err(failed)?;
            }
        } else {
            context.add_rule_conditional(action, call, &conditions).map_err(failed)?;
        }
    }
    Ok(())
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction, FilterError> {
    let errno = errno.unwrap_or(libc::EPERM.unsigned_abs());
    let number = i16::try_from(errno).map_err(|_| FilterError::Errno(errno));
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(number?.into()),
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(number?.unsigned_abs()),
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActNotify => ScmpAction::Notify,
    })
}

fn condition(index: u32, argument: &LinuxSeccompArg) -> ScmpArgCompare {
    let (operator, value) = match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, argument.value()),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, argument.value()),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, argument.value()),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, argument.value()),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, argument.value()),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, argument.value()),
        // In a profile the mask comes first.
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            (ScmpCompareOp::MaskedEqual(argument.value()), argument.value_two().unwrap_or(0))
        }
    };
    ScmpArgCompare::new(index, operator, value)
}

fn architecture(own: Arch) -> ScmpArch {
    match own {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchMips => ScmpArch::Mips,
        Arch::ScmpArchMips64 => ScmpArch::Mips64,
        Arch::ScmpArchMips64n32 => ScmpArch::Mips64N32,
        Arch::ScmpArchMipsel => ScmpArch::Mipsel,
        Arch::ScmpArchMipsel64 => ScmpArch::Mipsel64,
        Arch::ScmpArchMipsel64n32 => ScmpArch::Mipsel64N32,
        Arch::ScmpArchPpc => ScmpArch::Ppc,
        Arch::ScmpArchPpc64 => ScmpArch::Ppc64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        Arch::ScmpArchParisc => ScmpArch::Parisc,
        Arch::ScmpArchParisc64 => ScmpArch::Parisc64,
        Arch::ScmpArchLoongarch64 => ScmpArch::Loongarch64,
        Arch::ScmpArchM68k => ScmpArch::M68k,
        Arch::ScmpArchSh => ScmpArch::Sh,
        Arch::ScmpArchSheb => ScmpArch::Sheb,
    }
}

/// The library writes to a descriptor only.
fn export(context: &ScmpFilterContext) -> Result<Vec<u8>, FilterError> {
    use rustix::fs::MemfdFlags;
    let memory =
        rustix::fs::memfd_create("filter", MemfdFlags::CLOEXEC).map_err(|errno| FilterError::Memory(errno.into()))?;
    let mut memory = std::fs::File::from(memory);
    context.export_bpf(&memory).map_err(at("compile the seccomp filter"))?;
    let mut program = Vec::new();
    memory.rewind().and_then(|()| memory.read_to_end(&mut program)).map_err(FilterError::Memory)?;
    Ok(program)
}

/// `AUDIT_ARCH_*` of `linux/audit.h`, as a filter sees it; none for those whose new calls get the profile's error.
fn audit(architecture: ScmpArch) -> Option<u32> {
    match architecture {
        ScmpArch::X8664 | ScmpArch::X32 => Some(0xc000_003e),
        ScmpArch::X86 => Some(0x4000_0003),
        ScmpArch::Aarch64 => Some(0xc000_00b7),
        ScmpArch::Arm => Some(0x4000_0028),
        _ => None,
    }
}

/// Codes of instructions, of `linux/bpf_common.h`: load a word from a fixed offset, jump on a comparison with a constant,
/// return a constant.
const LOAD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Calls of x32 have the architecture of x86-64 and this bit.
const X32: u32 = 0x4000_0000;

/// The beginning of a program: per architecture, calls above the highest that the profile names fail with ENOSYS. A profile
/// that says by itself what others get, or allows them, has none.
fn unknown_calls(profile: &LinuxSeccomp, architectures: &[ScmpArch]) -> Vec<u8> {
    if profile.default_action() != LinuxSeccompAction::ScmpActErrno || profile.default_errno_ret().is_some() {
        return Vec::new();
    }
    let names: Vec<&String> = profile.syscalls().iter().flatten().flat_map(LinuxSyscall::names).collect();
    let highest = |architecture: ScmpArch| {
        let number = |name: &&String| ScmpSyscall::from_name_by_arch(name, architecture).ok();
        // Calls that an architecture lacks have negative numbers.
        names.iter().filter_map(number).filter_map(|call| u32::try_from(call.as_raw_syscall()).ok()).max()
    };
    let mut program = Vec::new();
    for &architecture in architectures {
        let (Some(audit), Some(highest)) = (audit(architecture), highest(architecture)) else { continue };
        let x32 = architecture == ScmpArch::X32;
        let highest = if x32 { highest | X32 } else { highest };
        // Offsets in `struct seccomp_data`: the call's number at 0, the architecture at 4.
        let instructions = [
            (LOAD, 0, 0, 4),
            (JUMP_EQUAL, 0, 4, audit),
            (LOAD, 0, 0, 0),
            (JUMP_GREATER_OR_EQUAL, if x32 { 0 } else { 2 }, if x32 { 2 } else { 0 }, X32),
            (JUMP_GREATER, 0, 1, highest),
            (RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs()),
        ];
        for (code, on_true, on_false, value) in instructions {
            program.extend(u16::to_ne_bytes(code));
            program.extend([on_true, on_false]);
            program.extend(u32::to_ne_bytes(value));
        }
    }
    program
}

#[cfg(test)]
mod tests {
    use vaina_sys::seccomp::INSTRUCTION;

    use super::*;

    fn profile(json: serde_json::Value) -> LinuxSeccomp {
        serde_json::from_value(json).unwrap()
    }

    /// Runs a program as the kernel does, as far as filters use it.
    fn answer(program: &[u8], audit: u32, call: u32) -> u32 {
        answer_to(program, audit, call, 0)
    }

    /// With a first argument.
    fn answer_to(program: &[u8], audit: u32, call: u32, argument: u32) -> u32 {
        let data = [call, audit, 0, 0, argument];
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let one = &program[at * INSTRUCTION..][..INSTRUCTION];
            let code = u32::from(u16::from_ne_bytes([one[0], one[1]]));
            let value = u32::from_ne_bytes(one[4..].try_into().unwrap());
            let holds = match code & 0x07 {
                libc::BPF_RET => return value,
                libc::BPF_LD => {
                    accumulator = data.get(value as usize / 4).copied().unwrap_or(0);
                    at += 1;
                    continue;
                }
                libc::BPF_ALU if code & 0xf0 == libc::BPF_AND => {
                    accumulator &= value;
                    at += 1;
                    continue;
                }
                libc::BPF_JMP => match code & 0xf0 {
                    libc::BPF_JA => {
                        at += 1 + value as usize;
                        continue;
                    }
                    libc::BPF_JEQ => accumulator == value,
                    libc::BPF_JGT => accumulator > value,
                    libc::BPF_JGE => accumulator >= value,
                    libc::BPF_JSET => accumulator & value != 0,
                    other => panic!("jump {other:#x}"),
                },
                other => panic!("instruction {other:#x}"),
            };
            at += 1 + usize::from(if holds { one[2] } else { one[3] });
        }
    }

    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

    fn error(errno: i32) -> u32 {
        libc::SECCOMP_RET_ERRNO | errno.unsigned_abs()
    }

    fn native() -> u32 {
        audit(ScmpArch::native()).unwrap()
    }

    fn number(name: &str) -> u32 {
        u32::try_from(ScmpSyscall::from_name(name).unwrap().as_raw_syscall()).unwrap()
    }

    #[test]
    fn newer_calls_than_the_profile_knows_do_not_exist() {
        let program = compile(&profile(serde_json::json!({ "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [{ "names": ["read", "openat2", "no_such_call"], "action": "SCMP_ACT_ALLOW" }] })))
        .unwrap();
        assert_eq!(answer(&program, native(), number("read")), ALLOW);
        assert_eq!(answer(&program, native(), number("openat2")), ALLOW);
        assert_eq!(answer(&program, native(), number("ptrace")), error(libc::EPERM));
        assert_eq!(answer(&program, native(), number("openat2") + 1), error(libc::ENOSYS));
        // Of an architecture that the profile does not name.
        assert_ne!(answer(&program, 0x4000_0003, 1), ALLOW);
    }

    #[test]
    fn a_profile_that_says_what_others_get_is_taken_at_its_word() {
        for (default, wanted) in [
            (serde_json::json!({ "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 13 }), error(libc::EACCES)),
            (serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW" }), ALLOW),
            (serde_json::json!({ "defaultAction": "SCMP_ACT_KILL_PROCESS" }), libc::SECCOMP_RET_KILL_PROCESS),
        ] {
            let program = compile(&profile(default)).unwrap();
            assert_eq!(answer(&program, native(), 5000), wanted);
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn each_architecture_has_its_own_calls() {
        let program = compile(&profile(serde_json::json!({ "defaultAction": "SCMP_ACT_ERRNO",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "syscalls": [{ "names": ["read", "getpid"], "action": "SCMP_ACT_ALLOW" }] })))
        .unwrap();
        let (long, short) = (0xc000_003e, 0x4000_0003);
        assert_eq!(answer(&program, long, 0), ALLOW);
        assert_eq!(answer(&program, long, 39), ALLOW);
        assert_eq!(answer(&program, long, 1), error(libc::EPERM));
        assert_eq!(answer(&program, long, 40), error(libc::ENOSYS));
        assert_eq!(answer(&program, short, 3), ALLOW);
        assert_eq!(answer(&program, short, 20), ALLOW);
        assert_eq!(answer(&program, short, 4), error(libc::EPERM));
        assert_eq!(answer(&program, short, 21), error(libc::ENOSYS));
        assert_eq!(answer(&program, long, X32 | 39), ALLOW);
        assert_eq!(answer(&program, long, X32 | 1), error(libc::EPERM));
        assert_eq!(answer(&program, long, X32 | 40), error(libc::ENOSYS));
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn arguments_are_compared() {
        let allow = |op: &str, value: u32, two: u32| {
            compile(&profile(serde_json::json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
                { "names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [
                    { "index": 0, "value": value, "valueTwo": two, "op": op }] }] })))
            .unwrap()
        };
        let is_allowed = |program: &[u8], argument| answer_to(program, native(), number("clone"), argument) == ALLOW;
        let no_namespaces = allow("SCMP_CMP_MASKED_EQ", 0x7e02_0000, 0);
        assert!(is_allowed(&no_namespaces, 0x0120_0011));
        assert!(!is_allowed(&no_namespaces, 0x1000_0000) && !is_allowed(&no_namespaces, 0x0002_0011));
        let with_bit = allow("SCMP_CMP_MASKED_EQ", 0xf0, 0x30);
        assert!(is_allowed(&with_bit, 0x39) && !is_allowed(&with_bit, 0x29));
        for (op, smaller, equal, greater) in [
            ("SCMP_CMP_NE", true, false, true),
            ("SCMP_CMP_LT", true, false, false),
            ("SCMP_CMP_LE", true, true, false),
            ("SCMP_CMP_EQ", false, true, false),
            ("SCMP_CMP_GE", false, true, true),
            ("SCMP_CMP_GT", false, false, true),
        ] {
            let program = allow(op, 40, 0);
            let found = [39, 40, 41].map(|argument| is_allowed(&program, argument));
            assert_eq!(found, [smaller, equal, greater], "{op}");
        }
        let alternatives = compile(&profile(serde_json::json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
            { "names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [
                { "index": 0, "value": 1, "op": "SCMP_CMP_EQ" }, { "index": 0, "value": 5, "op": "SCMP_CMP_EQ" }] }] })))
        .unwrap();
        assert!(is_allowed(&alternatives, 1) && is_allowed(&alternatives, 5) && !is_allowed(&alternatives, 3));
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let wrong = profile(serde_json::json!({ "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 70_000 }));
        assert!(compile(&wrong).unwrap_err().to_string().contains("70000"));
        let wrong = profile(serde_json::json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
            { "names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{ "index": 9, "value": 0, "op": "SCMP_CMP_EQ" }] }] }));
        assert!(compile(&wrong).unwrap_err().to_string().contains("read"));
    }
}
