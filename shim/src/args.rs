//! The shim v2 command line: Go's flags (one dash or two, value after a space or `=`), then an action.

use std::{ffi::OsString, path::PathBuf};

/// What was asked for.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Args {
    /// containerd's namespace.
    pub(crate) namespace: String,
    /// Sandbox or task.
    pub(crate) id: String,
    /// Path of the caller's own socket; part of what our socket is named after.
    pub(crate) address: String,
    /// Address to serve on.
    pub(crate) socket: String,
    /// Bundle; the working directory if empty.
    pub(crate) bundle: PathBuf,
    pub(crate) version: bool,
    pub(crate) info: bool,
    /// `start`, `delete`, or empty to serve.
    pub(crate) action: String,
}

/// Why a command line is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ArgsError {
    #[error("unknown flag {0:?}")]
    Flag(String),
    #[error("flag {0:?} needs a value")]
    Value(String),
    #[error("argument {0:?} is not UTF-8")]
    NotUtf8(OsString),
}

/// Reads the arguments after the program's name.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Args, ArgsError> {
    let mut args = Args::default();
    let mut words = arguments.into_iter().map(|word| word.into_string().map_err(ArgsError::NotUtf8));
    while let Some(word) = words.next() {
        let word = word?;
        let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
            args.action = word;
            continue;
        };
        let (name, inline) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value.to_owned())));
        let on = inline.as_deref() != Some("false");
        match name {
            "debug" => {}
            "v" | "version" => args.version = on,
            "info" => args.info = on,
            "namespace" | "id" | "address" | "socket" | "bundle" | "publish-binary" => {
                let value = match inline {
                    Some(value) => value,
                    None => words.next().ok_or_else(|| ArgsError::Value(name.to_owned()))??,
                };
                match name {
                    "namespace" => args.namespace = value,
                    "id" => args.id = value,
                    "address" => args.address = value,
                    "socket" => args.socket = value,
                    "bundle" => args.bundle = value.into(),
                    // Events go over TTRPC_ADDRESS; the binary is containerd 1.x' other way.
                    _ => {}
                }
            }
            _ => return Err(ArgsError::Flag(name.to_owned())),
        }
    }
    Ok(args)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_read_as_containerd_writes_them() {
        let line = "-namespace k8s.io -address /run/c.sock -publish-binary /bin/c -id abc -bundle=/b -debug start";
        let args = parse(line.split(' ').map(OsString::from)).unwrap();
        let expected = Args {
            namespace: "k8s.io".to_owned(),
            id: "abc".to_owned(),
            address: "/run/c.sock".to_owned(),
            bundle: "/b".into(),
            action: "start".to_owned(),
            ..Args::default()
        };
        assert_eq!(args, expected);
        // Our daemon has no address to name.
        assert_eq!(parse(["-address", "", "start"].map(OsString::from)).unwrap().action, "start");
        assert_eq!(parse(["-frob"].map(OsString::from)), Err(ArgsError::Flag("frob".to_owned())));
        assert_eq!(parse(["-id"].map(OsString::from)), Err(ArgsError::Value("id".to_owned())));
    }
}
