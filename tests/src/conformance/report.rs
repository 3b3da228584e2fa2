//! The report: rows, what is out of scope, and tests put together. Pure.

use std::{collections::BTreeMap, fmt::Write as _};

use super::{
    Problem,
    scope::{Group, Scope},
    tests::Test,
    wire::{Kind, Row, Wire},
};

/// What is known of each row, by its name.
#[derive(Default)]
struct Known<'a> {
    proofs: BTreeMap<&'a str, Vec<&'a Test>>,
    refusals: BTreeMap<&'a str, Vec<&'a Test>>,
    out: BTreeMap<&'a str, &'a Group>,
}

impl<'a> Known<'a> {
    fn gather(wire: &'a Wire, scope: &'a Scope, tests: &'a [Test]) -> Result<Self, Vec<Problem>> {
        let mut known = Self::default();
        let mut problems = Vec::new();
        for group in &scope.group {
            for name in &group.rows {
                match wire.named(name) {
                    Ok(rows) => {
                        for row in rows {
                            if let Some(other) = known.out.insert(&row.name, group) {
                                let twice =
                                    format!("{} is out of scope twice: {}, {}", row.name, other.name, group.name);
                                problems.push(Problem(twice));
                            }
                        }
                    }
                    Err(Problem(text)) => problems.push(Problem(format!("out-of-scope.toml: {text}"))),
                }
            }
        }
        for test in tests {
            for (names, found) in [(&test.proves, &mut known.proofs), (&test.refuses, &mut known.refusals)] {
                for name in names {
                    match rows_of_a_test(wire, name) {
                        Ok(rows) => rows.into_iter().for_each(|row| found.entry(&row.name).or_default().push(test)),
                        Err(Problem(text)) => {
                            problems.push(Problem(format!("{}: {}: {text}", test.path, test.name)));
                        }
                    }
                }
            }
        }
        for row in &wire.rows {
            let name = row.name.as_str();
            let (is_proven, is_refused) = (known.proofs.contains_key(name), known.refusals.contains_key(name));
            match known.out.get(name) {
                None if !is_proven => problems.push(Problem(format!("{name} is proven by no test"))),
                None if is_refused => problems.push(Problem(format!("{name} is refused by a test, and in scope"))),
                Some(group) if is_proven => {
                    problems.push(Problem(format!("{name} is proven by a test, and out of scope: {}", group.name)));
                }
                _ => {}
            }
        }
        if problems.is_empty() { Ok(known) } else { Err(problems) }
    }

    /// Two cells of a table: whether it is supported, and which tests say so.
    fn cells(&self, row: &Row) -> String {
        let tests = |found: &BTreeMap<&str, Vec<&Test>>| {
            let links = found.get(row.name.as_str()).into_iter().flatten().map(|test| link(test));
            links.collect::<Vec<_>>().join(", ")
        };
        match self.out.get(row.name.as_str()) {
            Some(group) => {
                format!("out of scope: [{0}](#{1}) | {2}", group.name, anchor(&group.name), tests(&self.refusals))
            }
            None => format!("supported | {}", tests(&self.proofs)),
        }
    }
}

/// A test walks the values of an enum. The fields of a message it must name.
fn rows_of_a_test<'a>(wire: &'a Wire, name: &str) -> Result<Vec<&'a Row>, Problem> {
    match name.strip_suffix(".*") {
        Some(whole) if !wire.is_enum(whole) => {
            Err(Problem(format!("{name}: the fields of a message are named singly")))
        }
        _ => wire.named(name),
    }
}

/// The report, or all that is wrong.
pub(super) fn make(wire: &Wire, scope: &Scope, tests: &[Test]) -> Result<String, Vec<Problem>> {
    let known = Known::gather(wire, scope, tests)?;
    let mut text = HEAD.to_owned();
    counts(&mut text, wire, &known);
    out_of_scope(&mut text, scope, &known);
    let mut last = String::new();
    for row in &wire.rows {
        let (whole, head) = match &row.kind {
            Kind::Call { service, .. } => {
                (service, "| call | request | response | | tests |\n| --- | --- | --- | --- | --- |")
            }
            Kind::Field { message, .. } => (message, "| field | type | | tests |\n| --- | --- | --- | --- |"),
            Kind::Value { r#enum, .. } => (r#enum, "| value | | tests |\n| --- | --- | --- |"),
        };
        if *whole != last {
            let _ = write!(text, "\n## {whole}\n\n{head}\n");
            last.clone_from(whole);
        }
        let cells = known.cells(row);
        let _ = match &row.kind {
            Kind::Call { request, response, is_stream, .. } => {
                let stream = if *is_stream { "stream of " } else { "" };
                let (request, response) = (type_link(wire, request), type_link(wire, response));
                writeln!(text, "| {} | {request} | {stream}{response} | {cells} |", row.name)
            }
            Kind::Field { field, label, r#type, .. } => {
                let label = if label == "repeated" { "repeated " } else { "" };
                writeln!(text, "| {field} | {label}{} | {cells} |", type_link(wire, r#type))
            }
            Kind::Value { value, .. } => writeln!(text, "| {value} | {cells} |"),
        };
    }
    Ok(text)
}

const HEAD: &str = "<!-- Made by `make conformance-report`. Do not edit: `make unit` fails when it differs from what the tests say. -->\n\
    # Conformance with CRI v1\n\n\
    Every call, field and value of `cri-api` 0.37 (`proto/tests/cri-v1-wire.tsv`), whether it is supported, and the tests \
    that fail if it is ignored. The rows come from comments above the tests (`// proves: ContainerConfig.envs`, see \
    `tests/src/conformance`); what is out of scope has its reason in `tests/src/conformance/out-of-scope.toml`, and the \
    tests named there see it turned away. A row without either fails `make unit`.\n";

type IsOne = fn(&Kind) -> bool;

fn counts(text: &mut String, wire: &Wire, known: &Known<'_>) {
    let _ = write!(text, "\n| | rows | supported | out of scope |\n| --- | ---: | ---: | ---: |\n");
    let kinds: [(&str, IsOne); 4] = [
        ("calls", |kind| matches!(kind, Kind::Call { .. })),
        ("fields", |kind| matches!(kind, Kind::Field { .. })),
        ("values of enums", |kind| matches!(kind, Kind::Value { .. })),
        ("**all**", |_| true),
    ];
    for (name, is_one) in kinds {
        let rows: Vec<&Row> = wire.rows.iter().filter(|row| is_one(&row.kind)).collect();
        let out = rows.iter().filter(|row| known.out.contains_key(row.name.as_str())).count();
        let _ = writeln!(text, "| {name} | {} | {} | {out} |", rows.len(), rows.len() - out);
    }
}

fn out_of_scope(text: &mut String, scope: &Scope, known: &Known<'_>) {
    let _ = write!(text, "\n## Out of scope\n");
    for group in &scope.group {
        let count = known.out.values().filter(|other| other.name == group.name).count();
        let _ = write!(text, "\n### {}\n\n{} ({count} rows)\n", group.name, group.reason.trim());
    }
}

/// To the file; a line would be another one after every edit.
fn link(test: &Test) -> String {
    format!("[{}](../{})", test.name, test.path)
}

/// To the section of a message or enum.
fn type_link(wire: &Wire, name: &str) -> String {
    if wire.is_message(name) || wire.is_enum(name) { format!("[{name}](#{})", anchor(name)) } else { name.to_owned() }
}

/// As Markdown's renderers make it of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|letter| letter.is_alphanumeric() || [' ', '-', '_'].contains(letter));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire() -> Wire {
        Wire::parse(
            "rpc\truntime.v1.ImageService\tList\t\tstream\tListRequest\tEmpty\n\
             enum\tMode\tPOD\t0\t\t\t\n\
             enum\tMode\tNODE\t1\t\t\t\n\
             field\tListRequest\tmode\t1\trepeated\tMode\t\n\
             field\tWindowsThing\tx\t1\toptional\tstring\t\n",
        )
        .unwrap()
    }

    fn scope(rows: &str) -> Scope {
        Scope::parse(&format!("[[group]]\nname = 'No Windows'\nreason = 'Linux only.'\nrows = [{rows}]")).unwrap()
    }

    fn test(name: &str, proves: &[&str], refuses: &[&str]) -> Test {
        let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        Test { path: "a/b.rs".into(), name: name.into(), proves: owned(proves), refuses: owned(refuses) }
    }

    fn problems(scope: &Scope, tests: &[Test]) -> Vec<String> {
        let problems = make(&wire(), scope, tests).map_or_else(|problems| problems, |text| panic!("{text}"));
        problems.into_iter().map(|problem| problem.to_string()).collect()
    }

    #[test]
    fn rows_are_supported_or_out_of_scope() {
        let tests = [test("one", &["List", "Mode.*"], &[]), test("two", &["ListRequest.mode"], &["WindowsThing.x"])];
        let text = make(&wire(), &scope("'WindowsThing.*'"), &tests).unwrap();
        for line in [
            "| fields | 2 | 1 | 1 |",
            "| **all** | 5 | 4 | 1 |",
            "Linux only. (1 rows)",
            "## runtime.v1.ImageService",
            "| List | [ListRequest](#listrequest) | stream of Empty | supported | [one](../a/b.rs) |",
            "| mode | repeated [Mode](#mode) | supported | [two](../a/b.rs) |",
            "| NODE | supported | [one](../a/b.rs) |",
            "| x | string | out of scope: [No Windows](#no-windows) | [two](../a/b.rs) |",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn what_does_not_fit_together_is_told() {
        let all = ["List", "ListRequest.mode", "Mode.*"];
        let windows = scope("'WindowsThing.x'");
        assert_eq!(
            problems(&windows, &[test("t", &all[..2], &[])]),
            ["Mode.POD is proven by no test", "Mode.NODE is proven by no test"]
        );
        assert_eq!(
            problems(&windows, &[test("t", &[&all[..], &["Nothing", "Mode.HOST"]].concat(), &[])]),
            ["a/b.rs: t: Nothing is no row of the wire table", "a/b.rs: t: Mode.HOST is no row of the wire table"]
        );
        let tests = [test("t", &all, &[]), test("u", &["WindowsThing.x", "WindowsThing.*"], &["List"])];
        assert_eq!(
            problems(&windows, &tests),
            [
                "a/b.rs: u: WindowsThing.*: the fields of a message are named singly",
                "List is refused by a test, and in scope",
                "WindowsThing.x is proven by a test, and out of scope: No Windows"
            ]
        );
        assert_eq!(
            problems(&scope("'WindowsThing.*', 'WindowsThing.x', 'Gone'"), &tests[..1]),
            [
                "WindowsThing.x is out of scope twice: No Windows, No Windows",
                "out-of-scope.toml: Gone is no row of the wire table"
            ]
        );
    }
}
