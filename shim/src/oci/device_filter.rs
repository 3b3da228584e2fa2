//! The device filter of cgroup v2. `libcontainer` has one only by way of a C library for BPF; what is needed of it is this:
//! rules to a program of comparisons, in the meaning that rules have in the devices controller of v1.

use std::{collections::BTreeMap, fs::File, io, path::Path};

use libcontainer::oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, Spec};
use vaina_sys::device_filter::{self, Instruction};

const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;
const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
const ALL: i32 = MKNOD | READ | WRITE;

/// What every container may use beside what its configuration says, as with other runtimes: the nodes that it has anyway,
/// and its terminals. Of character devices: null, zero, full, random, urandom, tty, console, ptmx, and all pts.
const USUAL: [(i64, Option<i64>); 9] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

/// Devices by type and numbers; no number stands for all.
type Devices = (i32, Option<i64>, Option<i64>);

/// What is allowed but for the exceptions, or the other way round.
#[derive(Debug, Default, PartialEq, Eq)]
struct Rules {
    allow: bool,
    exceptions: BTreeMap<Devices, i32>,
}

/// Attaches the filter to the container's group, if anything is denied.
pub(super) fn attach(spec: &Spec, group: &Path) -> io::Result<()> {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let rules = Rules::of(resources.and_then(|resources| resources.devices().as_deref()).unwrap_or_default());
    if rules.allow && rules.exceptions.is_empty() {
        return Ok(());
    }
    device_filter::attach(&rules.compile()?, File::open(group)?)
}

impl Rules {
    /// In order, each over those before it.
    fn of(list: &[LinuxDeviceCgroup]) -> Self {
        // What a configuration is silent about is allowed, as in a new group of v1.
        let mut rules = Self { allow: true, exceptions: BTreeMap::new() };
        for rule in list {
            let access = rule.access().as_deref().map_or(ALL, access);
            // -1 is what others write for "all".
            let number = |number: Option<i64>| number.filter(|number| *number >= 0);
            let (major, minor) = (number(rule.major()), number(rule.minor()));
            let types: &[i32] = match rule.typ() {
                Some(LinuxDeviceType::B) => &[BLOCK],
                Some(LinuxDeviceType::C | LinuxDeviceType::U) => &[CHARACTER],
                None | Some(LinuxDeviceType::A) if (major, minor, access) == (None, None, ALL) => {
                    rules = Self { allow: rule.allow(), exceptions: BTreeMap::new() };
                    continue;
                }
                None | Some(LinuxDeviceType::A) => &[BLOCK, CHARACTER],
                Some(LinuxDeviceType::P) => &[],
            };
            for kind in types {
                rules.set(rule.allow(), (*kind, major, minor), access);
            }
        }
        if !rules.allow {
            for kind in [BLOCK, CHARACTER] {
                // A node that can't be opened is harmless.
                rules.set(true, (kind, None, None), MKNOD);
            }
            for (major, minor) in USUAL {
                rules.set(true, (CHARACTER, Some(major), minor), ALL);
            }
        }
        rules
    }

    fn set(&mut self, allow: bool, devices: Devices, access: i32) {
        let exception = self.exceptions.entry(devices).or_default();
        *exception = if allow == self.allow { *exception & !access } else { *exception | access };
        if *exception == 0 {
            self.exceptions.remove(&devices);
        }
    }

    /// A chain of comparisons. Registers: 2 the type, 3 the access that is wanted, 4 and 5 the numbers, 1 for comparing.
    fn compile(&self) -> io::Result<Vec<Instruction>> {
        let mut program = vec![
            load(2, 0),
            and(2, 0xffff),
            load(3, 0),
            Instruction { code: 0x77, registers: 3, offset: 0, immediate: 16 },
            load(4, 4),
            load(5, 8),
        ];
        for ((kind, major, minor), access) in &self.exceptions {
            let mut checks = vec![(2, *kind)];
            for (register, wanted) in [(4, major), (5, minor)] {
                if let Some(wanted) = wanted {
                    checks.push((register, i32::try_from(*wanted).map_err(io::Error::other)?));
                }
            }
            let mut block = Vec::new();
            // What is not of these devices goes on behind this block, whose length is known at its end.
            block.extend(checks.into_iter().map(|(register, wanted)| unless_equal(register, wanted)));
            block.extend([copy(1, 3), and(1, if self.allow { *access } else { ALL & !access })]);
            // Allowed but for the exceptions: any of it that is wanted denies. Otherwise nothing beyond it may be wanted.
            block.push(if self.allow { if_equal(1, 0) } else { unless_equal(1, 0) });
            block.extend(answer(!self.allow));
            let length = block.len();
            for (at, instruction) in block.iter_mut().enumerate() {
                if [UNLESS_EQUAL, IF_EQUAL].contains(&instruction.code) {
                    instruction.offset = i16::try_from(length - at - 1).map_err(io::Error::other)?;
                }
            }
            program.extend(block);
        }
        program.extend(answer(self.allow));
        Ok(program)
    }
}

fn access(text: &str) -> i32 {
    text.chars().fold(0, |all, one| {
        all | match one {
            'm' => MKNOD,
            'r' => READ,
            'w' => WRITE,
            _ => 0,
        }
    })
}

const UNLESS_EQUAL: u8 = 0x55;
const IF_EQUAL: u8 = 0x15;

/// A word of what the kernel asks: type and access, major, minor.
fn load(register: u8, offset: i16) -> Instruction {
    Instruction { code: 0x61, registers: register | (1 << 4), offset, immediate: 0 }
}

fn and(register: u8, immediate: i32) -> Instruction {
    Instruction { code: 0x57, registers: register, offset: 0, immediate }
}

fn copy(to: u8, from: u8) -> Instruction {
    Instruction { code: 0xbf, registers: to | (from << 4), offset: 0, immediate: 0 }
}

fn unless_equal(register: u8, immediate: i32) -> Instruction {
    Instruction { code: UNLESS_EQUAL, registers: register, offset: 0, immediate }
}

fn if_equal(register: u8, immediate: i32) -> Instruction {
    Instruction { code: IF_EQUAL, registers: register, offset: 0, immediate }
}

fn answer(allow: bool) -> [Instruction; 2] {
    let value = Instruction { code: 0xb7, registers: 0, offset: 0, immediate: i32::from(allow) };
    [value, Instruction { code: 0x95, registers: 0, offset: 0, immediate: 0 }]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(json: &str) -> Rules {
        Rules::of(&serde_json::from_str::<Vec<LinuxDeviceCgroup>>(json).unwrap())
    }

    /// What the kernel's interpreter makes of the program.
    fn run(program: &[Instruction], kind: i32, access: i32, major: i32, minor: i32) -> bool {
        let mut registers = [0_i32; 10];
        let mut at = 0;
        loop {
            let Instruction { code, registers: pair, offset, immediate } = program[at];
            let (to, from) = (usize::from(pair & 0xf), usize::from(pair >> 4));
            at += 1;
            let jump = usize::try_from(offset).unwrap();
            match code {
                0x61 => {
                    registers[to] = match offset {
                        0 => (access << 16) | kind,
                        4 => major,
                        8 => minor,
                        _ => panic!("no such word"),
                    }
                }
                0x57 => registers[to] &= immediate,
                0x77 => registers[to] >>= immediate,
                0xbf => registers[to] = registers[from],
                0xb7 => registers[to] = immediate,
                UNLESS_EQUAL => at += if registers[to] == immediate { 0 } else { jump },
                IF_EQUAL => at += if registers[to] == immediate { jump } else { 0 },
                0x95 => return registers[0] == 1,
                _ => panic!("no such instruction"),
            }
        }
    }

    #[test]
    fn rules_mean_what_they_mean_in_version_1() {
        let given = r#"[{"allow":false,"access":"rwm"},
            {"allow":true,"type":"c","major":10,"minor":237,"access":"r"},
            {"allow":true,"type":"c","major":10,"minor":237,"access":"m"},
            {"allow":true,"type":"b","major":8,"access":"rw"},
            {"allow":false,"type":"b","major":8,"access":"w"}]"#;
        let program = rules(given).compile().unwrap();
        let may = |kind, access, major, minor| run(&program, kind, access, major, minor);
        assert!(may(CHARACTER, READ, 10, 237) && may(CHARACTER, READ | MKNOD, 10, 237));
        assert!(!may(CHARACTER, WRITE, 10, 237) && !may(CHARACTER, READ | WRITE, 10, 237));
        assert!(!may(CHARACTER, READ, 10, 238) && !may(BLOCK, READ, 10, 237) && !may(CHARACTER, READ, 1, 11));
        assert!(may(BLOCK, READ, 8, 17) && !may(BLOCK, WRITE, 8, 17));
        for minor in [3, 5, 7, 8, 9] {
            assert!(may(CHARACTER, READ | WRITE, 1, minor));
        }
        assert!(may(CHARACTER, READ | WRITE, 136, 1000) && may(BLOCK, MKNOD, 250, 250));
    }

    #[test]
    fn what_is_allowed_as_a_whole_may_have_exceptions() {
        let all = r#"{"allow":true,"access":"rwm"}"#;
        assert_eq!(rules(&format!("[{all}]")), Rules { allow: true, exceptions: BTreeMap::new() });
        assert_eq!(rules("[]"), Rules { allow: true, exceptions: BTreeMap::new() });
        let deny = r#"{"allow":false,"type":"c","major":1,"minor":11,"access":"w"}"#;
        let program = rules(&format!("[{all},{deny}]")).compile().unwrap();
        assert!(run(&program, CHARACTER, READ, 1, 11) && !run(&program, CHARACTER, READ | WRITE, 1, 11));
        assert!(run(&program, BLOCK, ALL, 1, 11));
    }

    mod root {
        use std::{fs, process::Command};

        use vaina_sys::cgroup::Hierarchies;

        use super::*;

        /// Also where version 1 has the controllers: its groups can have programs there too.
        #[test]
        fn the_kernel_takes_the_program_and_obeys_it() {
            let Some(root) = Hierarchies::detect().unwrap().v2 else { panic!("a mount of cgroup v2 is needed") };
            let group = root.join(format!("vaina-device-filter-{}", std::process::id()));
            fs::create_dir(&group).unwrap();
            let deny =
                r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":10,"minor":237,"access":"r"}]"#;
            device_filter::attach(&rules(deny).compile().unwrap(), File::open(&group).unwrap()).unwrap();
            let dir = tempfile::tempdir().unwrap();
            let script = "mknod given c 10 237; mknod other c 1 11; \
                          for file in given other /dev/null; do for way in '<' '>'; do \
                          (eval \"exec 3$way$file\") 2>/dev/null && echo \"$file$way\"; done; done; true";
            let script = format!("echo $$ > {}; {script}", group.join("cgroup.procs").display());
            let output = Command::new("/bin/sh").args(["-c", &script]).current_dir(dir.path()).output().unwrap();
            fs::remove_dir(&group).unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), "given<\n/dev/null<\n/dev/null>\n", "{output:?}");
        }
    }
}
