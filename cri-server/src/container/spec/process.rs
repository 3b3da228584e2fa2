//! The process: what runs, as whom, with which environment.

use serde_json::{Value, json};

use super::{Input, SpecError, invalid, security::Capabilities};

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(super) fn process(input: &Input<'_>, capabilities: &Capabilities) -> Result<Value, SpecError> {
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
    let mut process = json!({
        "terminal": container.tty,
        "user": {
            "uid": input.user.uid,
            "gid": input.user.gid,
            "additionalGids": input.user.groups,
        },
        "args": args(input)?,
        "env": env(input)?,
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
    Ok(process)
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

/// The image's environment, overridden by the container's; a later value of a name takes the place of an earlier one.
fn env(input: &Input<'_>) -> Result<Vec<String>, SpecError> {
    let hostname =
        if input.uts.is_none() || input.pod.hostname.is_empty() { &input.host.hostname } else { &input.pod.hostname };
    let mut env = vec![PATH.to_owned(), format!("HOSTNAME={hostname}")];
    if input.container.tty {
        env.push("TERM=xterm".to_owned());
    }
    let image = input.image.config().as_ref().and_then(|config| config.env().clone()).unwrap_or_default();
    let mut entries = image;
    for pair in &input.container.envs {
        // A runtime spec is JSON, which can't hold other bytes.
        let value = str::from_utf8(&pair.value).map_err(|_| invalid("envs", format!("{:?} is not UTF-8", pair.key)))?;
        entries.push(format!("{}={value}", pair.key));
    }
    for entry in entries {
        let name = entry.split_once('=').map_or(entry.as_str(), |(name, _)| name);
        match env.iter_mut().find(|other| other.split_once('=').is_some_and(|(other, _)| other == name)) {
            Some(place) => *place = entry,
            None => env.push(entry),
        }
    }
    Ok(env)
}
