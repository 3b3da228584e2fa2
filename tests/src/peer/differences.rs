//! Where a containerd is known to do otherwise than a test says, and why.

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

/// All of them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Differences {
    difference: Vec<Difference>,
}

/// A test that must fail.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Difference {
    /// As the test program calls it.
    pub(super) test: String,
    /// Of which endpoints; of all when there is none.
    #[serde(default)]
    pub(super) endpoints: Vec<String>,
    /// It may pass too: what it does differently is a matter of time.
    #[serde(default)]
    pub(super) sometimes: bool,
    /// What it does, and where that is allowed.
    pub(super) reason: String,
}

impl Differences {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let all: Self = toml::from_str(text)?;
        for (index, one) in all.difference.iter().enumerate() {
            ensure!(!one.reason.trim().is_empty(), "{} has no reason", one.test);
            let twice = all.difference[..index].iter().any(|other| other.test == one.test);
            ensure!(!twice, "{} is listed twice", one.test);
        }
        Ok(all)
    }

    pub(super) fn known() -> Result<Self> {
        Self::parse(include_str!("differences.toml")).context("read differences.toml")
    }

    /// Those of one endpoint.
    pub(super) fn of(&self, endpoint: &str) -> Vec<&Difference> {
        let is_of = |one: &&Difference| one.endpoints.is_empty() || one.endpoints.iter().any(|name| name == endpoint);
        self.difference.iter().filter(is_of).collect()
    }
}

#[cfg(test)]
mod known_differences {
    use super::*;

    #[test]
    fn can_be_read_and_have_reasons() {
        Differences::known().unwrap();
        let entry = |test: &str, reason: &str| format!("[[difference]]\ntest = {test:?}\nreason = {reason:?}\n");
        assert!(Differences::parse(&entry("a", " ")).is_err());
        assert!(Differences::parse(&[entry("a", "b"), entry("a", "c")].concat()).is_err());
    }
}
