//! What a run of the tests against a peer says. Pure.

use std::{collections::BTreeMap, fmt};

use super::differences::Difference;

/// See the module.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    passed: Vec<String>,
    /// They failed, as they are known to, with the reason.
    known: Vec<(String, String)>,
    failed: Vec<String>,
    /// Listed as different, and they passed or are no tests.
    stale: Vec<String>,
    /// They were to run, and nothing was heard of them.
    missing: Vec<String>,
}

impl Verdict {
    /// `wanted` are the tests that were to run, `all` those that could have, `output` is what the test program printed.
    pub(super) fn new(wanted: &[String], all: &[String], known: &[&Difference], output: &str) -> Self {
        let results: BTreeMap<&str, bool> = output.lines().filter_map(result).collect();
        let known: BTreeMap<&str, &Difference> = known.iter().map(|one| (one.test.as_str(), *one)).collect();
        let mut verdict = Self::default();
        for name in wanted {
            let name = name.clone();
            match (results.get(name.as_str()), known.get(name.as_str())) {
                (Some(true), Some(difference)) if !difference.sometimes => verdict.stale.push(name),
                (Some(true), _) => verdict.passed.push(name),
                (Some(false), None) => verdict.failed.push(name),
                (Some(false), Some(difference)) => verdict.known.push((name, difference.reason.clone())),
                (None, _) => verdict.missing.push(name),
            }
        }
        let is_no_test = |name: &&&str| !all.iter().any(|test| test == **name);
        verdict.stale.extend(known.keys().filter(is_no_test).map(ToString::to_string));
        verdict
    }

    /// Nothing is to be done.
    pub(super) fn is_good(&self) -> bool {
        !self.passed.is_empty() && [&self.failed, &self.stale, &self.missing].into_iter().all(Vec::is_empty)
    }
}

/// `test NAME ... ok`.
fn result(line: &str) -> Option<(&str, bool)> {
    let (name, end) = line.strip_prefix("test ")?.split_once(" ... ")?;
    match end {
        "ok" => Some((name, true)),
        "FAILED" => Some((name, false)),
        _ => None,
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, reason) in &self.known {
            writeln!(f, "differs, as known: {name}: {reason}")?;
        }
        for (what, names) in [
            ("listed in differences.toml, but it passes or is no test", &self.stale),
            ("did not run", &self.missing),
            ("failed", &self.failed),
        ] {
            names.iter().try_for_each(|name| writeln!(f, "{what}: {name}"))?;
        }
        let bad = self.failed.len() + self.stale.len() + self.missing.len();
        write!(f, "{} passed, {bad} failed, {} differ as known", self.passed.len(), self.known.len())
    }
}

#[cfg(test)]
mod the_verdict {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    fn known(test: &str) -> Difference {
        toml::from_str(&format!("test = {test:?}\nreason = 'why'")).unwrap()
    }

    #[test]
    fn is_good_when_all_is_as_it_is_known() {
        let output = "running 2 tests\ntest a ... ok\ntest b has been running for over 60 seconds\ntest b ... FAILED\n";
        let (wanted, b) = (names(&["a", "b"]), known("b"));
        let verdict = Verdict::new(&wanted, &wanted, &[&b], output);
        assert!(verdict.is_good(), "{verdict}");
        assert_eq!(verdict.to_string(), "differs, as known: b: why\n1 passed, 0 failed, 1 differ as known");
    }

    #[test]
    fn is_bad_when_a_test_fails_a_known_difference_is_none_or_a_test_is_missing() {
        let output = "test a ... ok\ntest b ... FAILED\n";
        let (wanted, c) = (names(&["a", "b"]), known("c"));
        assert!(!Verdict::new(&wanted, &wanted, &[], output).is_good());
        let (a, b) = (known("a"), known("b"));
        assert_eq!(Verdict::new(&wanted, &wanted, &[&a, &b], output).stale, ["a"]);
        assert_eq!(Verdict::new(&wanted, &wanted, &[&b, &c], output).stale, ["c"]);
        assert_eq!(Verdict::new(&names(&["a", "z"]), &wanted, &[], output).missing, ["z"]);
        let b = Difference { sometimes: true, ..b };
        let passed = "test a ... ok\ntest b ... ok\n";
        assert!(Verdict::new(&wanted, &wanted, &[&b], passed).is_good());
        // One that was not asked for is not stale.
        assert!(Verdict::new(&names(&["a"]), &wanted, &[&b], output).is_good());
    }
}
