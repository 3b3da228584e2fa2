//! The process: what runs, as whom, with which environment.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use vaina_proto::cri::KeyValue;

use super::{Input, SpecError, invalid, security::Capabilities};

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The process, and its variables that the form of the spec can't hold, if there are any.
pub(super) fn process(input: &Input<'_>, capabilities: &Capabilities) -> Result<(Value, Option<String>), SpecError> {
    let security = input.security();
    let image = input.image.config().clone().unwrap_or_default();
    let container = input.container;
    let working_dir = [container.working_dir.clone(), image.working_dir().clone().unwrap_or_default(), "/".to_owned()];
    let working_dir = working_dir.into_iter().find(|dir| !dir.is_empty()).unwrap_or_default();
    if !working_dir.starts_with('/') {
        return Err(invalid("working_dir", format!("{working_dir:?} is not an absolute path")));
    }
    let mut oom_score_adj = input.resources().oom_score_adj;
    check_oom_score(oom_score_adj)?;
    if let Some(lowest) = input.host.lowest_oom_score_adj {
        // Without CAP_SYS_RESOURCE nobody can go below where they are; a container that is killed a little earlier is
        // better than none.
        oom_score_adj = oom_score_adj.max(lowest);
    }
    let mut groups = input.user.groups.clone();
    for group in &input.cdi.additional_gids {
        if *group != 0 && !groups.contains(group) {
            groups.push(*group);
        }
    }
    let Environment { text, bytes } = env(input)?;
    let mut process = json!({
        "terminal": container.tty,
        "user": {
            "uid": input.user.uid,
            "gid": input.user.gid,
            "additionalGids": groups,
        },
        "args": args(input)?,
        "env": text,
        "cwd": working_dir,
        "capabilities": {
            "bounding": capabilities.all,
            "effective": capabilities.effective,
            "permitted": capabilities.effective,
            "inheritable": capabilities.ambient,
            "ambient": capabilities.ambient,
        },
        "noNewPrivileges": security.no_new_privs,
        "oomScoreAdj": oom_score_adj,
    });
    if let Some(profile) = super::security::apparmor(&security, input.host)? {
        process["apparmorProfile"] = profile.into();
    }
    let bytes = (!bytes.is_empty()).then(|| serde_json::to_string(&bytes)).transpose().map_err(SpecError::Shape)?;
    Ok((process, bytes))
}

/// Whether the kernel takes it.
pub(crate) fn check_oom_score(score: i64) -> Result<(), SpecError> {
    if !(-1000..=1000).contains(&score) {
        return Err(invalid("linux.resources.oom_score_adj", "is not between -1000 and 1000"));
    }
    Ok(())
}

/// As Kubernetes defines `command` and `args` over an image's entry point and command.
fn args(input: &Input<'_>) -> Result<Vec<String>, SpecError> {
    let image = input.image.config().clone().unwrap_or_default();
    let container = input.container;
    let mut args = container.command.clone();
    if args.is_empty() {
        args = image.entrypoint().clone().unwrap_or_default();
        if container.args.is_empty() {
            args.extend(image.cmd().clone().unwrap_or_default());
        }
    }
    args.extend(container.args.iter().cloned());
    match args.first() {
        Some(program) if !program.is_empty() => Ok(args),
        _ => Err(SpecError::NoCommand),
    }
}

/// The environment of a process, in the two forms in which it travels.
#[derive(Default)]
struct Environment {
    /// `NAME=value`.
    text: Vec<String>,
    /// Values that are not UTF-8, which JSON can't hold.
    bytes: BTreeMap<String, Vec<u8>>,
}

impl Environment {
    /// Sets a variable; a later value takes the place of an earlier one.
    fn set(&mut self, name: &str, entry: String) {
        self.bytes.remove(name);
        match self.text.iter_mut().find(|other| other.split_once('=').is_some_and(|(other, _)| other == name)) {
            Some(place) => *place = entry,
            None => self.text.push(entry),
        }
    }

    fn set_bytes(&mut self, name: &str, value: &[u8]) {
        self.text.retain(|other| other.split_once('=').is_none_or(|(other, _)| other != name));
        self.bytes.insert(name.to_owned(), value.to_owned());
    }
}

/// The image's environment, overridden by the container's, and that by its devices.
fn env(input: &Input<'_>) -> Result<Environment, SpecError> {
    let hostname =
        if input.uts.is_none() || input.pod.hostname.is_empty() { &input.host.hostname } else { &input.pod.hostname };
    let mut env = Environment { text: vec![PATH.to_owned(), format!("HOSTNAME={hostname}")], ..Default::default() };
    if input.container.tty {
        env.text.push("TERM=xterm".to_owned());
    }
    let image = input.image.config().as_ref().and_then(|config| config.env().clone()).unwrap_or_default();
    let set = |env: &mut Environment, entry: &String| {
        let name = entry.split_once('=').map_or(entry.as_str(), |(name, _)| name);
        env.set(name, entry.clone());
    };
    image.iter().for_each(|entry| set(&mut env, entry));
    for KeyValue { key, value } in &input.container.envs {
        if key.is_empty() || key.contains(['=', '\0']) {
            return Err(invalid("envs", format!("{key:?} is not the name of a variable")));
        }
        if value.contains(&0) {
            return Err(invalid("envs", format!("the value of {key:?} holds a NUL byte, which ends it")));
        }
        match str::from_utf8(value) {
            Ok(value) => env.set(key, format!("{key}={value}")),
            Err(_) if input.host.takes_any_environment => env.set_bytes(key, value),
            Err(_) => {
                let reason = format!("the value of {key:?} is not UTF-8, and only vaina's own OCI runtime takes such");
                return Err(SpecError::Unsupported { field: "envs", reason });
            }
        }
    }
    input.cdi.env.iter().for_each(|entry| set(&mut env, entry));
    Ok(env)
}
