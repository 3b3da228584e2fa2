//! The command line, as `runc` and `crun` take it and containerd's go-runc writes it. Parsed by hand: a parser crate costs the
//! shim's binary more than all of this file.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt as _,
    path::PathBuf,
};

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Invocation {
    pub(super) root: PathBuf,
    pub(super) log: Option<PathBuf>,
    pub(super) json_log: bool,
    pub(super) systemd_cgroup: bool,
    pub(super) command: Command,
}

/// One subcommand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    Create(Create),
    Start { id: String },
    State { id: String },
    Kill { id: String, signal: i32, all: bool },
    Delete { id: String, force: bool },
    Exec(Box<Exec>),
    Ps { id: String, json: bool },
    Pause { id: String },
    Resume { id: String },
    Update { id: String, source: Update },
    List { json: bool },
    Features,
    Version,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Create {
    pub(super) id: String,
    pub(super) bundle: PathBuf,
    pub(super) pid_file: Option<PathBuf>,
    pub(super) console_socket: Option<PathBuf>,
    pub(super) no_pivot: bool,
    pub(super) no_new_keyring: bool,
    pub(super) preserve_fds: i32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Exec {
    pub(super) id: String,
    /// A file with an OCI process; the fields below are then not used.
    pub(super) process: Option<PathBuf>,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<String>,
    pub(super) cwd: Option<PathBuf>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) additional_gids: Vec<u32>,
    pub(super) capabilities: Vec<String>,
    pub(super) no_new_privileges: bool,
    pub(super) tty: bool,
    pub(super) pid_file: Option<PathBuf>,
    pub(super) console_socket: Option<PathBuf>,
    pub(super) detach: bool,
    pub(super) ignore_paused: bool,
    pub(super) preserve_fds: i32,
}

/// Where new limits come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Update {
    /// A file with OCI `LinuxResources`.
    File(PathBuf),
    /// The same on standard input.
    Stdin,
    /// Limits by flag, as numbers and sets: the name of the flag and its value.
    Flags(Vec<(String, String)>),
}

/// Why a command line is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum UsageError {
    #[error("no command given")]
    NoCommand,
    #[error("unknown command {0:?}")]
    Command(String),
    #[error("unknown flag {flag:?} of {command:?}")]
    Flag { command: String, flag: String },
    #[error("flag {0:?} needs a value")]
    Value(String),
    #[error("value {value:?} of flag {flag:?} is not valid")]
    Invalid { flag: String, value: String },
    #[error("{0:?} needs a container id")]
    NoId(String),
    #[error("container id {0:?} is not valid")]
    Id(String),
    #[error("argument {0:?} is one too many")]
    Extra(String),
    #[error("signal {0:?} is not known")]
    Signal(String),
    #[error("argument {0:?} is not UTF-8")]
    NotUtf8(OsString),
}

type Result<T> = std::result::Result<T, UsageError>;

/// Reads what follows the program's name (and its `oci`).
pub(super) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Invocation> {
    let mut words = Words { rest: arguments.into_iter().collect::<Vec<_>>().into_iter(), inline: None };
    let mut root = PathBuf::from("/run/vaina/oci");
    let (mut log, mut json_log, mut systemd_cgroup) = (None, false, false);
    let command = loop {
        let word = words.rest.next().ok_or(UsageError::NoCommand)?;
        let Some(flag) = words.flag(&word)? else { break text(word)? };
        match flag.as_str() {
            "root" => root = words.path(&flag)?,
            "log" => log = Some(words.path(&flag)?).filter(|path| !path.as_os_str().is_empty()),
            "log-format" => json_log = words.text(&flag)? == "json",
            "systemd-cgroup" => systemd_cgroup = words.switch(&flag)?,
            "debug" => drop(words.switch(&flag)?),
            "rootless" | "cgroup-manager" | "criu" => drop(words.text(&flag)?),
            "version" | "v" => {
                return Ok(Invocation { root, log, json_log, systemd_cgroup, command: Command::Version });
            }
            _ => return Err(UsageError::Flag { command: "oci".to_owned(), flag }),
        }
    };
    let command = parse_command(&command, words)?;
    Ok(Invocation { root, log, json_log, systemd_cgroup, command })
}

fn parse_command(command: &str, mut words: Words) -> Result<Command> {
    let unknown = |flag: String| UsageError::Flag { command: command.to_owned(), flag };
    let mut values = Vec::new();
    match command {
        "create" => {
            let mut create = Create { bundle: PathBuf::from("."), ..Create::default() };
            while let Some(flag) = words.next_flag(&mut values)? {
                match flag.as_str() {
                    "bundle" | "b" => create.bundle = words.path(&flag)?,
                    "pid-file" => create.pid_file = Some(words.path(&flag)?),
                    "console-socket" => create.console_socket = Some(words.path(&flag)?),
                    "no-pivot" => create.no_pivot = words.switch(&flag)?,
                    "no-new-keyring" => create.no_new_keyring = words.switch(&flag)?,
                    "preserve-fds" => create.preserve_fds = words.number(&flag)?,
                    _ => return Err(unknown(flag)),
                }
            }
            create.id = only_id(command, values)?;
            Ok(Command::Create(create))
        }
        "exec" => parse_exec(words).map(|exec| Command::Exec(Box::new(exec))),
        "kill" => {
            let mut all = false;
            while let Some(flag) = words.next_flag(&mut values)? {
                match flag.as_str() {
                    "all" | "a" => all = words.switch(&flag)?,
                    _ => return Err(unknown(flag)),
                }
            }
            let mut values = values.into_iter();
            let id = id(command, values.next())?;
            let signal = values.next().unwrap_or_else(|| "SIGTERM".to_owned());
            none_left(values)?;
            Ok(Command::Kill { id, signal: parse_signal(&signal)?, all })
        }
        "delete" => {
            let mut force = false;
            while let Some(flag) = words.next_flag(&mut values)? {
                match flag.as_str() {
                    "force" | "f" => force = words.switch(&flag)?,
                    _ => return Err(unknown(flag)),
                }
            }
            Ok(Command::Delete { id: only_id(command, values)?, force })
        }
        "ps" => {
            let mut json = false;
            while let Some(flag) = words.next_flag(&mut values)? {
                match flag.as_str() {
                    "format" | "f" => json = words.text(&flag)? == "json",
                    _ => return Err(unknown(flag)),
                }
            }
            // What follows the id are options for ps(1), which is not run.
            Ok(Command::Ps { id: id(command, values.into_iter().next())?, json })
        }
        "list" => {
            let mut json = false;
            while let Some(flag) = words.next_flag(&mut values)? {
                match flag.as_str() {
                    "format" | "f" => json = words.text(&flag)? == "json",
                    "quiet" | "q" => drop(words.switch(&flag)?),
                    _ => return Err(unknown(flag)),
                }
            }
            none_left(values.into_iter())?;
            Ok(Command::List { json })
        }
        "update" => {
            let mut source = None;
            let mut flags = Vec::new();
            while let Some(flag) = words.next_flag(&mut values)? {
                match flag.as_str() {
                    "resources" | "r" => {
                        let path = words.path(&flag)?;
                        source = Some(if path.as_os_str() == "-" { Update::Stdin } else { Update::File(path) });
                    }
                    name if super::update::is_flag(name) => {
                        let value = words.text(&flag)?;
                        flags.push((flag, value));
                    }
                    _ => return Err(unknown(flag)),
                }
            }
            let id = only_id(command, values)?;
            Ok(Command::Update { id, source: source.unwrap_or(Update::Flags(flags)) })
        }
        "start" | "state" | "pause" | "resume" | "features" => {
            if let Some(flag) = words.next_flag(&mut values)? {
                return Err(unknown(flag));
            }
            if command == "features" {
                none_left(values.into_iter())?;
                return Ok(Command::Features);
            }
            let id = only_id(command, values)?;
            Ok(match command {
                "start" => Command::Start { id },
                "state" => Command::State { id },
                "pause" => Command::Pause { id },
                _ => Command::Resume { id },
            })
        }
        _ => Err(UsageError::Command(command.to_owned())),
    }
}

fn parse_exec(mut words: Words) -> Result<Exec> {
    let mut exec = Exec::default();
    // Flags end at the id: what follows belongs to the program.
    let found = loop {
        let Some(word) = words.rest.next() else { break None };
        let Some(flag) = words.flag(&word)? else { break Some(text(word)?) };
        match flag.as_str() {
            "process" | "p" => exec.process = Some(words.path(&flag)?),
            "pid-file" => exec.pid_file = Some(words.path(&flag)?),
            "console-socket" => exec.console_socket = Some(words.path(&flag)?),
            "detach" | "d" => exec.detach = words.switch(&flag)?,
            "tty" | "t" => exec.tty = words.switch(&flag)?,
            "cwd" => exec.cwd = Some(words.path(&flag)?),
            "env" | "e" => exec.env.push(words.text(&flag)?),
            "user" | "u" => {
                let value = words.text(&flag)?;
                let invalid = || UsageError::Invalid { flag: flag.clone(), value: value.clone() };
                let (uid, gid) = value.split_once(':').map_or((value.as_str(), None), |(uid, gid)| (uid, Some(gid)));
                exec.uid = Some(uid.parse().map_err(|_| invalid())?);
                exec.gid = gid.map(|gid| gid.parse().map_err(|_| invalid())).transpose()?;
            }
            "additional-gids" | "g" => exec.additional_gids.push(words.number(&flag)?),
            "cap" | "c" => exec.capabilities.push(words.text(&flag)?),
            "no-new-privs" => exec.no_new_privileges = words.switch(&flag)?,
            "ignore-paused" => exec.ignore_paused = words.switch(&flag)?,
            "preserve-fds" => exec.preserve_fds = words.number(&flag)?,
            _ => return Err(UsageError::Flag { command: "exec".to_owned(), flag }),
        }
    };
    exec.id = id("exec", found)?;
    exec.args = words.rest.map(text).collect::<Result<_>>()?;
    Ok(exec)
}

/// A signal by number or name, with or without `SIG`; realtime ones as `RTMIN+3` and `RTMAX-1`, as images name them.
pub(super) fn parse_signal(name: &str) -> Result<i32> {
    let unknown = || UsageError::Signal(name.to_owned());
    if let Ok(number) = name.parse::<i32>() {
        return if (1..=64).contains(&number) { Ok(number) } else { Err(unknown()) };
    }
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    // 34 and 64: the C library's SIGRTMIN and SIGRTMAX, which is what names mean; the kernel's range starts at 32.
    let realtime = |base: i32, offset: &str| -> Result<i32> {
        let offset = if offset.is_empty() { 0 } else { offset.parse().map_err(|_| unknown())? };
        let number: i32 = base + offset;
        if (34..=64).contains(&number) { Ok(number) } else { Err(unknown()) }
    };
    if let Some(offset) = short.strip_prefix("RTMIN") {
        return realtime(34, offset);
    }
    if let Some(offset) = short.strip_prefix("RTMAX") {
        return realtime(64, offset);
    }
    let long = match short {
        "IOT" => "SIGABRT".to_owned(),
        "CLD" => "SIGCHLD".to_owned(),
        "POLL" => "SIGIO".to_owned(),
        _ => format!("SIG{short}"),
    };
    long.parse::<nix::sys::signal::Signal>().map(|signal| signal as i32).map_err(|_| unknown())
}

/// The words that are left, and the value of a flag written as `--flag=value`.
struct Words {
    rest: std::vec::IntoIter<OsString>,
    inline: Option<OsString>,
}

impl Words {
    /// The name of the flag that `word` is.
    fn flag(&mut self, word: &OsStr) -> Result<Option<String>> {
        let bytes = word.as_bytes();
        let name = match bytes.strip_prefix(b"--").or_else(|| bytes.strip_prefix(b"-")) {
            // A lone dash is a value.
            None | Some(b"") => return Ok(None),
            Some(name) => name,
        };
        let (name, value) = match name.iter().position(|&byte| byte == b'=') {
            Some(at) => (&name[..at], Some(OsStr::from_bytes(&name[at + 1..]).to_owned())),
            None => (name, None),
        };
        self.inline = value;
        text(OsStr::from_bytes(name).to_owned()).map(Some)
    }

    /// The next flag; words that are none are put into `values`. Flags may follow the id.
    fn next_flag(&mut self, values: &mut Vec<String>) -> Result<Option<String>> {
        while let Some(word) = self.rest.next() {
            if word == "--" {
                for word in self.rest.by_ref() {
                    values.push(text(word)?);
                }
                break;
            }
            match self.flag(&word)? {
                Some(flag) => return Ok(Some(flag)),
                None => values.push(text(word)?),
            }
        }
        Ok(None)
    }

    fn value(&mut self, flag: &str) -> Result<OsString> {
        self.inline.take().or_else(|| self.rest.next()).ok_or_else(|| UsageError::Value(flag.to_owned()))
    }

    fn path(&mut self, flag: &str) -> Result<PathBuf> {
        self.value(flag).map(PathBuf::from)
    }

    fn text(&mut self, flag: &str) -> Result<String> {
        self.value(flag).and_then(text)
    }

    fn number<T: std::str::FromStr>(&mut self, flag: &str) -> Result<T> {
        let value = self.text(flag)?;
        value.parse().map_err(|_| UsageError::Invalid { flag: flag.to_owned(), value })
    }

    /// A switch is set by its name alone; a value comes only with `=`.
    fn switch(&mut self, flag: &str) -> Result<bool> {
        match self.inline.take() {
            None => Ok(true),
            Some(value) => {
                let value = text(value)?;
                value.parse().map_err(|_| UsageError::Invalid { flag: flag.to_owned(), value })
            }
        }
    }
}

fn text(word: OsString) -> Result<String> {
    word.into_string().map_err(UsageError::NotUtf8)
}

fn only_id(command: &str, values: Vec<String>) -> Result<String> {
    let mut values = values.into_iter();
    let id = id(command, values.next())?;
    none_left(values)?;
    Ok(id)
}

fn none_left(mut values: impl Iterator<Item = String>) -> Result<()> {
    values.next().map_or(Ok(()), |word| Err(UsageError::Extra(word)))
}

/// An id names a directory below the root: no separators, and no leading dot, which marks what is not a container.
fn id(command: &str, word: Option<String>) -> Result<String> {
    let id = word.ok_or_else(|| UsageError::NoId(command.to_owned()))?;
    let valid = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte));
    if id.is_empty() || id.starts_with('.') || id.len() > 255 || !valid {
        return Err(UsageError::Id(id));
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(words: &str) -> Result<Invocation> {
        parse(words.split(' ').map(OsString::from))
    }

    #[test]
    fn a_create_as_go_runc_writes_it() {
        let invocation = line(
            "--root /run/x --log /b/log.json --log-format json --systemd-cgroup create --bundle /b --pid-file /b/init.pid \
             --console-socket /b/c.sock --no-pivot --preserve-fds 2 abc",
        )
        .unwrap();
        let create = Create {
            id: "abc".to_owned(),
            bundle: "/b".into(),
            pid_file: Some("/b/init.pid".into()),
            console_socket: Some("/b/c.sock".into()),
            no_pivot: true,
            no_new_keyring: false,
            preserve_fds: 2,
        };
        let expected = Invocation {
            root: "/run/x".into(),
            log: Some("/b/log.json".into()),
            json_log: true,
            systemd_cgroup: true,
            command: Command::Create(create),
        };
        assert_eq!(invocation, expected);
    }

    #[test]
    fn flags_take_values_in_each_form_and_follow_the_id() {
        let Command::Kill { id, signal, all } = line("--log=/l kill abc 9 --all").unwrap().command else { panic!() };
        assert_eq!((id.as_str(), signal, all), ("abc", 9, true));
        let Command::Delete { force, .. } = line("delete -f=false abc").unwrap().command else { panic!() };
        assert!(!force);
    }

    #[test]
    fn words_after_the_id_of_an_exec_are_the_programs() {
        let Command::Exec(exec) = line("exec -d --user 1:2 -e A=1 --process=/p abc sh -c --all").unwrap().command
        else {
            panic!()
        };
        assert!(exec.detach);
        assert_eq!((exec.uid, exec.gid), (Some(1), Some(2)));
        assert_eq!((exec.process, exec.env), (Some("/p".into()), vec!["A=1".to_owned()]));
        assert_eq!(exec.args, ["sh", "-c", "--all"]);
    }

    #[test]
    fn bad_lines_are_refused_by_name() {
        let cases = [
            ("frob", UsageError::Command("frob".to_owned())),
            ("start", UsageError::NoId("start".to_owned())),
            ("start a b", UsageError::Extra("b".to_owned())),
            ("start ../a", UsageError::Id("../a".to_owned())),
            ("start .a", UsageError::Id(".a".to_owned())),
            ("create --frob a", UsageError::Flag { command: "create".to_owned(), flag: "frob".to_owned() }),
            ("kill a SIGFROB", UsageError::Signal("SIGFROB".to_owned())),
            ("--root", UsageError::Value("root".to_owned())),
        ];
        for (words, error) in cases {
            assert_eq!(line(words).unwrap_err(), error, "{words}");
        }
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for (name, number) in [
            ("9", 9),
            ("TERM", 15),
            ("SIGTERM", 15),
            ("sigusr1", 10),
            ("RTMIN+3", 37),
            ("SIGRTMAX-1", 63),
            ("SIGIOT", 6),
        ] {
            assert_eq!(parse_signal(name), Ok(number), "{name}");
        }
        for name in ["0", "65", "RTMIN+99", "RTMIN-1", "SIG"] {
            assert!(parse_signal(name).is_err(), "{name}");
        }
    }
}
