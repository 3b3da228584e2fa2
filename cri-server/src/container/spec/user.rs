//! Who the process is: from the config, the image, and the image's `passwd` and `group`. Pure over their texts.

use oci_spec::image::ImageConfiguration;
use vaina_proto::cri::{LinuxContainerSecurityContext, SupplementalGroupsPolicy};

use super::{SpecError, invalid};

/// A user in numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvedUser {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
}

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

fn passwd(text: &str) -> impl Iterator<Item = Passwd<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Passwd { name, uid, gid })
    })
}

/// Name, id and members of each group.
fn groups(text: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or_default()))
    })
}

/// The user of a container. `passwd_text` and `group_text` are empty if the image has no such file.
pub fn resolve(
    security: &LinuxContainerSecurityContext,
    image: &ImageConfiguration,
    passwd_text: &str,
    group_text: &str,
) -> Result<ResolvedUser, SpecError> {
    let id = |field, value: i64| u32::try_from(value).map_err(|_| invalid(field, format!("{value} is not an id")));
    let of_image = image.config().as_ref().and_then(|config| config.user().clone()).unwrap_or_default();
    let (user, group) = match (&security.run_as_user, security.run_as_username.as_str()) {
        (Some(user), _) => (id("linux.security_context.run_as_user", user.value)?.to_string(), ""),
        (None, "") if security.run_as_group.is_some() && of_image.is_empty() => {
            return Err(invalid("linux.security_context.run_as_group", "needs a user"));
        }
        (None, "") => match of_image.split_once(':') {
            Some((user, group)) => (user.to_owned(), group),
            None => (of_image.clone(), ""),
        },
        (None, name) => (name.to_owned(), ""),
    };
    let user = if user.is_empty() { "0".to_owned() } else { user };
    let entry = match user.parse::<u32>() {
        Ok(uid) => passwd(passwd_text).find(|entry| entry.uid == uid).unwrap_or(Passwd { name: "", uid, gid: 0 }),
        Err(_) => passwd(passwd_text)
            .find(|entry| entry.name == user)
            .ok_or_else(|| invalid("user", format!("{user:?} is not in the image's /etc/passwd")))?,
    };
    let gid = match (&security.run_as_group, group) {
        (Some(group), _) => id("linux.security_context.run_as_group", group.value)?,
        (None, "") => entry.gid,
        (None, group) => match group.parse() {
            Ok(gid) => gid,
            Err(_) => groups(group_text)
                .find(|(name, ..)| *name == group)
                .map(|(_, gid, _)| gid)
                .ok_or_else(|| invalid("group", format!("{group:?} is not in the image's /etc/group")))?,
        },
    };
    let mut further = vec![gid];
    for group in &security.supplemental_groups {
        further.push(id("linux.security_context.supplemental_groups", *group)?);
    }
    if security.supplemental_groups_policy() == SupplementalGroupsPolicy::Merge && !entry.name.is_empty() {
        let member = |members: &str| members.split(',').any(|member| member == entry.name);
        further.extend(groups(group_text).filter(|(_, _, members)| member(members)).map(|(_, gid, _)| gid));
    }
    further.sort_unstable();
    further.dedup();
    Ok(ResolvedUser { uid: entry.uid, gid, groups: further })
}
