//! Pod manifests: `v1/Pod` in YAML or JSON, one pod per document.
//!
//! What a manifest says is done or refused, never ignored: a field that Kubernetes does not have is named with its line
//! ([`tree`]), one that we do not have yet as well ([`supported`]), and what is left is checked as the API server would
//! ([`validate`]). All problems of a file are listed at once.

mod supported;
mod tree;
mod validate;

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::Pod;
use thiserror::Error;

use crate::error::{Classify, Kind};

use self::tree::{Node, Value};

/// No pod manifest is longer; a file that is may be anything.
const MAX_BYTES: u64 = 4 << 20;

/// Reads the pods of a file; `-` is standard input.
pub(super) fn read(path: &Path) -> Result<Vec<Pod>, ManifestError> {
    let text = match path.to_str() {
        Some("-") => io::read_to_string(io::stdin().lock()),
        _ => read_file(path),
    }
    .map_err(|source| ManifestError::Read { path: path.to_owned(), source })?;
    parse(&text).map_err(|problems| ManifestError::Invalid { path: path.to_owned(), problems })
}

/// Why a manifest was not accepted.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// The file could not be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It was read and something in it is wrong: one line for each problem.
    #[error("{}", Listing(path, problems))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// All that is wrong with it.
        problems: Vec<Problem>,
    },
}

impl Classify for ManifestError {
    fn kind(&self) -> Kind {
        match self {
            Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => Kind::NotFound,
            Self::Read { .. } | Self::Invalid { .. } => Kind::InvalidArgument,
        }
    }
}

/// One thing that is wrong with a manifest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Counted from 1; 0 when it is no line's fault.
    pub line: u64,
    /// Says the field's path first, as kubectl does.
    pub message: String,
}

struct Listing<'a>(&'a Path, &'a [Problem]);

impl fmt::Display for Listing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.1.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            match problem.line {
                0 => write!(f, "{}: {}", self.0.display(), problem.message)?,
                line => write!(f, "{}:{line}: {}", self.0.display(), problem.message)?,
            }
        }
        Ok(())
    }
}

/// Where each field of a document stands, to give a line to a problem of the typed value.
#[derive(Debug, Default)]
struct Lines(BTreeMap<String, u64>);

impl Lines {
    fn of(node: &Node) -> Self {
        let mut lines = Self::default();
        lines.collect(node, "", node.line);
        lines
    }

    fn collect(&mut self, node: &Node, path: &str, line: u64) {
        self.0.insert(path.to_owned(), line);
        match &node.value {
            Value::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.collect(item, &format!("{path}[{index}]"), item.line);
                }
            }
            Value::Map(entries) => {
                for (key, value) in entries {
                    self.collect(value, &tree::join(path, &key.name), key.line);
                }
            }
            Value::Null | Value::Bool(_) | Value::Int(_) | Value::Uint(_) | Value::Float(_) | Value::Text(_) => {}
        }
    }

    /// The line of the field, or of the innermost parent that is there.
    fn find(&self, path: &str) -> u64 {
        let mut path = path;
        loop {
            if let Some(line) = self.0.get(path) {
                return *line;
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => return self.0.get("").copied().unwrap_or(0),
            }
        }
    }
}

fn read_file(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "longer than 4 MiB, which no pod manifest is"));
    }
    fs::read_to_string(path)
}

/// Reads all documents of a text.
pub(super) fn parse(text: &str) -> Result<Vec<Pod>, Vec<Problem>> {
    // Only true and false are booleans: `n` and `on` are good names.
    let options = serde_saphyr::options! { with_snippet: false, strict_booleans: true };
    let documents: Vec<Node> = serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        let line = error.location().map_or(0, |location| location.line());
        vec![Problem { line, message: format!("is not YAML: {error}") }]
    })?;
    let mut pods: Vec<Pod> = Vec::new();
    let mut problems = Vec::new();
    for node in &documents {
        match document(node) {
            Ok(pod)
                if pods.iter().any(|other| {
                    other.metadata.name == pod.metadata.name && other.metadata.namespace == pod.metadata.namespace
                }) =>
            {
                let name = pod.metadata.name.unwrap_or_default();
                problems.push(Problem { line: node.line, message: format!("metadata.name: a second pod {name:?}") });
            }
            Ok(pod) => pods.push(pod),
            Err(mut more) => problems.append(&mut more),
        }
    }
    if documents.is_empty() {
        problems.push(Problem { line: 0, message: "holds no document; expected a Pod".to_owned() });
    }
    if !problems.is_empty() {
        problems.sort();
        problems.dedup();
        return Err(problems);
    }
    Ok(pods)
}

fn document(node: &Node) -> Result<Pod, Vec<Problem>> {
    let kind = Kinds::of(node).map_err(|message| vec![Problem { line: node.line, message }])?;
    if (kind.api_version, kind.kind) != ("v1", "Pod") {
        let message = format!(
            "kind {} of apiVersion {} is not supported: expected kind Pod of apiVersion v1",
            kind.kind, kind.api_version
        );
        return Err(vec![Problem { line: node.line, message }]);
    }
    let lines = Lines::of(node);
    let mut unknown = Vec::new();
    let typed = tree::read::<Pod>(node, &mut unknown);
    let mut problems: Vec<Problem> = unknown
        .iter()
        .map(|place| {
            let hint = supported::similar(&place.path).map_or(String::new(), |name| format!(" (did you mean {name}?)"));
            Problem { line: place.line, message: format!("{}: unknown field{hint}", place.path) }
        })
        .collect();
    for place in supported::missing(node) {
        let is_unknown = unknown.iter().any(|other| supported::is_at_or_below(&place.path, &other.path));
        if !is_unknown {
            problems.push(Problem { line: place.line, message: format!("{} is not supported yet", place.path) });
        }
    }
    match typed {
        Ok(mut pod) => {
            let mut report = validate::Report::default();
            validate::pod(&pod, &mut report);
            problems.extend(report.0.into_iter().map(|(path, what)| {
                let line = lines.find(&path);
                Problem { line, message: format!("{path}: {what}") }
            }));
            if problems.is_empty() {
                pod.metadata.namespace.get_or_insert_with(|| "default".to_owned());
                return Ok(pod);
            }
        }
        Err(error) => {
            let (path, line) = error.place.map_or((String::new(), node.line), |place| (place.path, place.line));
            problems.push(Problem { line, message: format!("{path}: {}", error.message) });
        }
    }
    Err(problems)
}

struct Kinds<'a> {
    api_version: &'a str,
    kind: &'a str,
}

impl<'a> Kinds<'a> {
    fn of(node: &'a Node) -> Result<Self, String> {
        let Value::Map(entries) = &node.value else {
            return Err("is no object; expected a Pod".to_owned());
        };
        let text = |name: &str| {
            let value = entries.iter().find(|(key, _)| key.name == name).map(|(_, node)| &node.value);
            match value {
                Some(Value::Text(text)) => Ok(text.as_str()),
                _ => Err(format!("{name}: required; expected apiVersion v1 and kind Pod")),
            }
        };
        Ok(Self { api_version: text("apiVersion")?, kind: text("kind")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        parse(text).expect_err("accepted").into_iter().map(|p| format!("{}: {}", p.line, p.message)).collect()
    }

    const MINIMAL: &str =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers:\n  - name: a\n    image: i\n";

    #[test]
    fn a_minimal_pod_is_read() {
        let pods = parse(MINIMAL).expect("read");
        assert_eq!(pods.len(), 1);
        assert_eq!(pods[0].metadata.namespace.as_deref(), Some("default"));
        assert_eq!(pods[0].spec.as_ref().expect("spec").containers[0].name, "a");
    }

    #[test]
    fn json_is_read() {
        let text = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web"},
            "spec":{"containers":[{"name":"a","image":"i","resources":{"limits":{"cpu":1,"memory":"1Gi"}}}]}}"#;
        let pods = parse(text).expect("read");
        let limits = pods[0].spec.as_ref().and_then(|spec| spec.containers[0].resources.as_ref()?.limits.clone());
        assert_eq!(limits.expect("limits")["cpu"].0, "1");
    }

    #[test]
    fn what_tools_write_for_nothing_is_accepted() {
        let text = format!("{MINIMAL}    resources: {{}}\n  nodeSelector:\nstatus: {{}}\n")
            .replace("metadata: {name: web}", "metadata: {name: web, creationTimestamp: null}");
        parse(&text).expect("read");
    }

    #[test]
    fn unknown_and_unsupported_fields_are_named_with_their_lines() {
        let text = "apiVersion: v1
kind: Pod
metadata:
  name: web
spec:
  containers:
  - name: a
    image: i
    comand: [x]
    livenessProbe:
      httpGet: {port: 80}
    env:
    - name: A
      vlaue: b
  initContainers:
  - {name: b, image: i}
";
        assert_eq!(
            problems(text),
            [
                "9: spec.containers[0].comand: unknown field (did you mean command?)",
                "10: spec.containers[0].livenessProbe is not supported yet",
                "14: spec.containers[0].env[0].vlaue: unknown field (did you mean value?)",
                "15: spec.initContainers is not supported yet",
            ]
        );
    }

    #[test]
    fn types_are_checked_with_the_path() {
        let text = MINIMAL.replace("image: i", "image: i\n    env: [{name: PORT, value: 80}]");
        assert_eq!(
            problems(&text),
            ["8: spec.containers[0].env[0].value: invalid type: integer `80`, expected a string (put it in quotes)"]
        );
        let text = MINIMAL.replace("image: i", "image: i\n    ports: [{containerPort: http}]");
        assert_eq!(
            problems(&text),
            ["8: spec.containers[0].ports[0].containerPort: invalid type: string \"http\", expected i32"]
        );
    }

    #[test]
    fn several_documents_are_several_pods() {
        let text = format!("---\n{MINIMAL}---\n{}---\n", MINIMAL.replace("web", "db"));
        let pods = parse(&text).expect("read");
        assert_eq!(pods.iter().map(|p| p.metadata.name.as_deref().unwrap_or("")).collect::<Vec<_>>(), ["web", "db"]);
        let text = format!("{MINIMAL}---\n{MINIMAL}");
        assert_eq!(problems(&text), ["9: metadata.name: a second pod \"web\""]);
    }

    #[test]
    fn other_things_than_pods_are_refused() {
        for (text, message) in [
            ("", "0: holds no document; expected a Pod"),
            ("[]", "1: is no object; expected a Pod"),
            ("kind: Pod", "1: apiVersion: required; expected apiVersion v1 and kind Pod"),
            (
                "apiVersion: apps/v1\nkind: Deployment",
                "1: kind Deployment of apiVersion apps/v1 is not supported: expected kind Pod of apiVersion v1",
            ),
        ] {
            assert_eq!(problems(text), [message], "{text}");
        }
    }

    #[test]
    fn broken_yaml_is_told_with_its_line() {
        let found = parse("apiVersion: v1\nkind: [Pod\nmetadata: }\n").expect_err("accepted");
        assert_eq!(found.len(), 1);
        assert!(found[0].message.starts_with("is not YAML: ") && found[0].line > 0, "{found:?}");
        let twice = problems(&MINIMAL.replace("image: i", "image: i\n    image: j"));
        assert!(twice[0].contains("duplicate"), "{twice:?}");
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(300))]
        #[test]
        fn no_text_panics(text in "(?s).{0,80}") {
            let _ = parse(&text);
        }

        #[test]
        fn no_pod_panics(line in "[a-zA-Z]{0,12}: [\\[\\]{}a-z0-9&*!|>\"'-]{0,20}") {
            let _ = parse(&format!("{MINIMAL}    {line}\n"));
            let _ = parse(&format!("{MINIMAL}  {line}\n"));
        }
    }
}
