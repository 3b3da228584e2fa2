//! Runs commands and says what they print in words that are the same in each run.

use std::{collections::BTreeSet, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use vaina_tests::{
    crictl::crictl,
    node::{Node, run},
    running::{Ended, Running},
};

/// How many digits of an id a table has.
const SHORT: usize = 13;

/// See the module.
pub(super) struct Session<'a> {
    /// Where it takes place.
    pub(super) node: &'a mut Node,
    used: BTreeSet<String>,
    /// What is printed, and what stands for it.
    names: Vec<(String, String)>,
}

impl<'a> Session<'a> {
    pub(super) fn new(node: &'a mut Node) -> Self {
        Self { node, used: BTreeSet::new(), names: Vec::new() }
    }

    /// Says what stands for a text, and for its short form if it is an id.
    pub(super) fn name(&mut self, text: &str, name: &str) {
        self.names.push((text.to_owned(), format!("<{name}>")));
        let id = text.strip_prefix("sha256:").unwrap_or(text);
        if id.len() == 64 {
            self.names.push((id.to_owned(), format!("<{name}>")));
            self.names.push((id[..SHORT].to_owned(), format!("<{name}>")));
        }
    }

    /// A command, which counts as used.
    pub(super) fn command(&mut self, arguments: &[&str]) -> Result<Command> {
        self.with(&[], arguments)
    }

    /// A command behind options of crictl's own.
    pub(super) fn with(&mut self, options: &[&str], arguments: &[&str]) -> Result<Command> {
        self.used.extend(arguments.first().map(ToString::to_string));
        crictl(&[options, arguments].concat())
    }

    /// What a command that must succeed prints, without the last newlines.
    pub(super) fn run(&mut self, arguments: &[&str]) -> Result<String> {
        Ok(run(&mut self.command(arguments)?)?.trim_end_matches('\n').to_owned())
    }

    /// A command that makes something, which is called so from now on; answers its id.
    pub(super) fn make(&mut self, name: &str, arguments: &[&str]) -> Result<String> {
        let id = self.run(arguments)?;
        ensure!(id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{arguments:?} printed {id:?}");
        self.name(&id, name);
        Ok(id)
    }

    /// A command that goes on.
    pub(super) fn start(&mut self, arguments: &[&str]) -> Result<Running> {
        Running::start(&mut self.command(arguments)?)
    }

    /// A command that must fail and say these words.
    pub(super) async fn fails(&mut self, arguments: &[&str], words: &[&str]) -> Result<Ended> {
        let ended = self.start(arguments)?.end().await?;
        ensure!(ended.code != 0, "crictl {arguments:?} did not fail: {ended:?}");
        for word in words {
            ensure!(ended.err.contains(word), "crictl {arguments:?} lacks {word:?}: {}", ended.err);
        }
        Ok(ended)
    }

    /// A command must print this, with names and without times.
    pub(super) fn shows(&mut self, arguments: &[&str], expected: &str) -> Result<()> {
        let printed = self.run(arguments)?;
        let (printed, expected) = (self.masked(&printed), expected.trim().to_owned());
        ensure!(printed == expected, "crictl {arguments:?} printed\n{printed}\nand not\n{expected}");
        Ok(())
    }

    /// What a command prints as JSON, with names and without times.
    pub(super) fn json(&mut self, arguments: &[&str]) -> Result<Value> {
        let text = self.run(arguments)?;
        let mut value =
            serde_json::from_str(&text).with_context(|| format!("crictl {arguments:?} printed {text:?}"))?;
        self.mask(&mut value);
        Ok(value)
    }

    /// A part of what a command prints as JSON must be this.
    pub(super) fn has(&mut self, arguments: &[&str], pointer: &str, expected: &Value) -> Result<()> {
        let printed = self.json(arguments)?;
        let part = printed.pointer(pointer);
        ensure!(part == Some(expected), "{pointer} of crictl {arguments:?} is\n{part:#?}\nin {printed:#}");
        Ok(())
    }

    /// Subcommands by crictl's own list that no command was of.
    pub(super) fn unused(&self) -> Result<Vec<String>> {
        let help = run(&mut crictl(&["--help"])?)?;
        let commands = help.split("COMMANDS:").nth(1).and_then(|text| text.split("\n\n").next());
        let listed = commands.context("crictl lists its commands")?.lines().filter_map(|line| {
            // `images, image, img   List images`.
            line.split_whitespace().next().map(|word| word.trim_end_matches(',').to_owned())
        });
        let unused: Vec<String> = listed.filter(|name| name != "help" && !self.used.contains(name)).collect();
        ensure!(unused.len() < self.used.len(), "crictl lists {unused:?}");
        Ok(unused)
    }

    /// Names for what is named, `<ago>`, `<time>` and `<size>` for what differs; cells of a table are two blanks apart.
    pub(super) fn masked(&self, text: &str) -> String {
        // Watching clears the screen.
        let mut text = text.replace("\x1b[2J\x1b[H", "");
        for (long, name) in &self.names {
            text = text.replace(long, name);
        }
        let lines = text.lines().map(|line| {
            let cells =
                line.trim_end().split("  ").map(|cell| cell.trim_start_matches(' ')).filter(|cell| !cell.is_empty());
            cells.map(cell).collect::<Vec<_>>().join("  ")
        });
        lines.collect::<Vec<_>>().join("\n").trim().to_owned()
    }

    fn mask(&self, value: &mut Value) {
        match value {
            Value::String(text) if is_time(text) => *text = "<time>".to_owned(),
            Value::String(text) => {
                for (long, name) in &self.names {
                    *text = text.replace(long, name);
                }
            }
            Value::Array(values) => values.iter_mut().for_each(|value| self.mask(value)),
            Value::Object(map) => map.values_mut().for_each(|value| self.mask(value)),
            _ => {}
        }
    }
}

/// `3 seconds ago`, `Created: 2026-01-01 00:00:00.1 +0000 UTC`.
fn cell(cell: &str) -> String {
    let (key, value) = cell.split_once(": ").map_or(("", cell), |(key, value)| (key, value));
    let mask = if value.ends_with(" ago") {
        "<ago>"
    } else if value.ends_with(" UTC") || is_time(value) {
        "<time>"
    } else if is_size(value) {
        "<size>"
    } else {
        return cell.to_owned();
    };
    if key.is_empty() { mask.to_owned() } else { format!("{key}: {mask}") }
}

/// `4.44kB`
fn is_size(text: &str) -> bool {
    let number = text.strip_suffix('B').map(|text| text.trim_end_matches(['k', 'M', 'G']));
    number.is_some_and(|number| number.parse::<f64>().is_ok())
}

/// A time of this century, in RFC 3339 or nanoseconds.
fn is_time(text: &str) -> bool {
    let is_nanoseconds = text.len() == 19 && text.starts_with('1') && text.bytes().all(|byte| byte.is_ascii_digit());
    is_nanoseconds || (text.starts_with("20") && text.ends_with('Z') && text.get(10..11) == Some("T"))
}
