//! What is out of scope, with the reasons: `out-of-scope.toml`.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

/// All of the file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Scope {
    pub(super) group: Vec<Group>,
}

/// Rows with one reason.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Group {
    /// A word or two for it.
    pub(super) name: String,
    /// A sentence or two.
    pub(super) reason: String,
    /// Names of rows; `Message.*` for all of a message.
    pub(super) rows: Vec<String>,
}

impl Scope {
    /// Reads the file.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let scope: Self = toml::from_str(text).context("parse")?;
        let mut names = BTreeSet::new();
        for group in &scope.group {
            ensure!(!group.name.is_empty() && !group.reason.is_empty(), "{group:?} lacks a name or a reason");
            ensure!(names.insert(&group.name), "{:?} is there twice", group.name);
        }
        Ok(scope)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_has_a_name_and_a_reason() {
        let group = |name: &str, reason: &str| {
            format!("[[group]]\nname = {name:?}\nreason = {reason:?}\nrows = [\"A.*\", \"B\"]\n")
        };
        let scope = Scope::parse(&group("Windows", "It runs Linux.")).unwrap();
        assert_eq!(scope.group[0].rows, ["A.*", "B"]);
        for text in [group("", "x"), group("x", ""), group("x", "y").repeat(2), "[[group]]\nname = 'x'\n".to_owned()] {
            assert!(Scope::parse(&text).is_err(), "{text}");
        }
    }
}
