//! What was found, for people and for programs.

use serde::Serialize;

/// How good it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    Ok,
    Warn,
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    verdict: Verdict,
    what: String,
    why: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

impl Check {
    pub(super) fn new(verdict: Verdict, what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { verdict, what: what.into(), why: why.into(), advice: None }
    }

    pub(super) fn ok(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(Verdict::Ok, what, why)
    }

    pub(super) fn warn(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(Verdict::Warn, what, why)
    }

    pub(super) fn fail(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(Verdict::Fail, what, why)
    }

    /// What to do about it.
    pub(super) fn advice(self, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..self }
    }

    /// On one line, whatever the causes say.
    fn line(&self) -> String {
        let verdict = match self.verdict {
            Verdict::Ok => "ok  ",
            Verdict::Warn => "warn",
            Verdict::Fail => "fail",
        };
        let advice = self.advice.as_deref().map(|advice| format!("; {advice}")).unwrap_or_default();
        format!("{verdict} {}: {}{advice}", self.what, self.why).replace('\n', " ")
    }
}

/// All of it.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    checks: Vec<Check>,
}

impl Report {
    pub(super) fn push(&mut self, check: Check) {
        self.checks.push(check);
    }

    pub(super) fn extend(&mut self, checks: Vec<Check>) {
        self.checks.extend(checks);
    }

    /// The worst of all.
    pub(super) fn code(&self) -> u8 {
        match self.checks.iter().map(|check| check.verdict).max() {
            None | Some(Verdict::Ok) => 0,
            Some(Verdict::Warn) => 1,
            Some(Verdict::Fail) => 2,
        }
    }

    pub(super) fn print(&self, json: bool) {
        if json {
            // Strings only: nothing in it can fail to encode.
            println!("{}", serde_json::to_string_pretty(self).unwrap_or_default());
        } else {
            self.checks.iter().for_each(|check| println!("{}", check.line()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_decides_and_each_check_is_one_line() {
        let mut report = Report::default();
        assert_eq!(report.code(), 0);
        for (check, code) in [(Check::ok("a", "b"), 0), (Check::warn("a", "b"), 1), (Check::fail("a", "b"), 2)] {
            report.push(check);
            assert_eq!(report.code(), code);
        }
        report.push(Check::ok("a", "b"));
        assert_eq!(report.code(), 2);
        assert_eq!(Check::fail("disk", "is\nfull").advice("free it").line(), "fail disk: is full; free it");
    }
}
