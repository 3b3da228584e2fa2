//! The comments above tests. Pure: a file's text in, its tests and what is wrong out.

use super::Problem;

/// A test that shows something of the wire table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Test {
    /// From the root of the workspace.
    pub(super) path: String,
    pub(super) name: String,
    /// Names of rows that it would fail without.
    pub(super) proves: Vec<String>,
    /// Names of rows out of scope that it sees turned away.
    pub(super) refuses: Vec<String>,
}

/// What stands above a function, as far as it was read.
#[derive(Default)]
struct Above {
    proves: Vec<String>,
    refuses: Vec<String>,
    is_test: bool,
    is_ignored: bool,
}

impl Above {
    fn says_something(&self) -> bool {
        !self.proves.is_empty() || !self.refuses.is_empty()
    }
}

/// The tests of a file that have such comments.
pub(super) fn parse(path: &str, text: &str) -> (Vec<Test>, Vec<Problem>) {
    let (mut tests, mut problems) = (Vec::new(), Vec::new());
    let mut above = Above::default();
    for (number, line) in text.lines().map(str::trim).enumerate() {
        let wrong = |what: &str| Problem(format!("{path}:{}: {what}", number + 1));
        let comment = |word: &str| line.strip_prefix("// ")?.strip_prefix(word);
        if let Some(list) = comment("proves:") {
            names(list).map_or_else(|error| problems.push(wrong(&error)), |names| above.proves.extend(names));
        } else if let Some(list) = comment("refuses:") {
            names(list).map_or_else(|error| problems.push(wrong(&error)), |names| above.refuses.extend(names));
        } else if line.starts_with("#[") {
            above.is_test |= ["#[test]", "#[tokio::test"].iter().any(|test| line.starts_with(test));
            above.is_ignored |= line.starts_with("#[ignore");
        } else if !line.starts_with("//") {
            let above = std::mem::take(&mut above);
            if !above.says_something() {
                continue;
            }
            match function(line) {
                Some(name) if above.is_test && !above.is_ignored => tests.push(Test {
                    path: path.to_owned(),
                    name: name.to_owned(),
                    proves: above.proves,
                    refuses: above.refuses,
                }),
                _ => problems.push(wrong("what is proven above this is above no test that runs")),
            }
        }
    }
    if above.says_something() {
        problems.push(Problem(format!("{path}: the last comment is above no test")));
    }
    (tests, problems)
}

/// The name of the function that a line begins.
fn function(line: &str) -> Option<&str> {
    let line = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ")?;
    line.split_once('(').map(|(name, _)| name)
}

/// `A, B.{c, d}` in single names.
fn names(list: &str) -> Result<Vec<String>, String> {
    let mut names = Vec::new();
    let mut rest = list.trim();
    while !rest.is_empty() {
        let end = rest.find([',', '{']).unwrap_or(rest.len());
        let (name, after) = (rest[..end].trim(), &rest[end..]);
        rest = match after.strip_prefix('{') {
            None => {
                names.push(name.to_owned());
                after.strip_prefix(',').unwrap_or(after)
            }
            Some(inner) => {
                let (inner, after) = inner.split_once('}').ok_or("a brace that nobody closes")?;
                let message = name.strip_suffix('.').ok_or_else(|| format!("{name:?} before a brace has no dot"))?;
                names.extend(inner.split(',').map(|field| format!("{message}.{}", field.trim())));
                let after = after.trim_start();
                after.strip_prefix(',').or(after.is_empty().then_some("")).ok_or("no comma behind a brace")?
            }
        }
        .trim_start();
    }
    if names.is_empty() || names.iter().any(|name| name.is_empty() || name.ends_with('.') || name.contains(' ')) {
        return Err(format!("{:?} is no list of names", list.trim()));
    }
    Ok(names)
}

#[cfg(test)]
mod comments {
    use super::*;

    fn found(text: &str) -> Vec<(String, Vec<String>, Vec<String>)> {
        let (tests, problems) = parse("file.rs", text);
        assert_eq!(problems, []);
        tests.into_iter().map(|test| (test.name, test.proves, test.refuses)).collect()
    }

    fn owned(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn belong_to_the_test_below() {
        let text = "use a;\n\n/// Doc.\n// proves: A, B.{c, d}, E.f\n// proves: G\n#[test]\nfn first() {\n}\n\n\
                    mod tests {\n    // refuses: H.*\n    #[tokio::test]\n    async fn second() {}\n\n    #[test]\n    fn third() {}\n}\n";
        assert_eq!(
            found(text),
            [
                ("first".to_owned(), owned(&["A", "B.c", "B.d", "E.f", "G"]), Vec::new()),
                ("second".to_owned(), Vec::new(), owned(&["H.*"])),
            ]
        );
    }

    #[test]
    fn that_belong_to_none_are_told() {
        for text in [
            "// proves: A\nfn helper() {}\n",
            "// proves: A\n\n#[test]\nfn apart() {}\n",
            "// proves: A\n#[test]\n#[ignore]\nfn ignored() {}\n",
            "#[test]\nfn above() {}\n// proves: A\n",
            "// refuses: A\nstruct S;\n",
        ] {
            let (tests, problems) = parse("file.rs", text);
            assert_eq!((tests.len(), problems.len()), (0, 1), "{text}");
            assert!(problems[0].to_string().starts_with("file.rs"), "{problems:?}");
        }
    }

    #[test]
    fn have_names_in_them() {
        for list in ["", " , ", "A,,B", "A B", "A.{b", "A{b}", "A.{b} C", "A.{}", "A."] {
            assert!(names(list).is_err(), "{list:?}: {:?}", names(list));
        }
        assert_eq!(names(" A.{b,c} , D,").unwrap(), owned(&["A.b", "A.c", "D"]));
    }
}
