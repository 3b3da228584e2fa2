//! The wire table of CRI v1 as rows: calls, fields, and values of enums. A message without fields says nothing that its
//! call does not.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};

use super::Problem;

/// A row. Its name is what comments and the list of what is out of scope call it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    /// `Version`, `ContainerConfig.args`, `NamespaceMode.NODE`.
    pub(super) name: String,
    pub(super) kind: Kind,
}

/// What a row is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Call { service: String, request: String, response: String, is_stream: bool },
    Field { message: String, field: String, label: String, r#type: String },
    Value { r#enum: String, value: String },
}

/// All rows, in the order of the table.
#[derive(Debug, Clone, Default)]
pub(super) struct Wire {
    pub(super) rows: Vec<Row>,
    names: BTreeSet<String>,
}

impl Wire {
    /// Reads the table.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut wire = Self::default();
        for (number, line) in text.lines().enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let row = row(line).with_context(|| format!("line {}: {line:?}", number + 1))?;
            if let Some(row) = row {
                ensure!(wire.names.insert(row.name.clone()), "line {}: {} is there twice", number + 1, row.name);
                wire.rows.push(row);
            }
        }
        ensure!(!wire.rows.is_empty(), "the table is empty");
        Ok(wire)
    }

    /// The rows that a name means: `Call`, `Message.field`, `Enum.VALUE`, or `Message.*` for all of a message or enum.
    pub(super) fn named(&self, name: &str) -> Result<Vec<&Row>, Problem> {
        let rows: Vec<&Row> = match name.strip_suffix(".*") {
            Some(whole) => self.rows.iter().filter(|row| row.whole() == Some(whole)).collect(),
            None => self.rows.iter().filter(|row| row.name == name).collect(),
        };
        if rows.is_empty() { Err(Problem(format!("{name} is no row of the wire table"))) } else { Ok(rows) }
    }

    /// Whether it is one of the table's enums.
    pub(super) fn is_enum(&self, name: &str) -> bool {
        self.rows.iter().any(|row| matches!(&row.kind, Kind::Value { r#enum, .. } if r#enum == name))
    }

    /// Whether it is one of the table's messages with fields.
    pub(super) fn is_message(&self, name: &str) -> bool {
        self.rows.iter().any(|row| matches!(&row.kind, Kind::Field { message, .. } if message == name))
    }
}

impl Row {
    /// The message or enum that it is a part of.
    fn whole(&self) -> Option<&str> {
        match &self.kind {
            Kind::Call { .. } => None,
            Kind::Field { message, .. } => Some(message),
            Kind::Value { r#enum, .. } => Some(r#enum),
        }
    }
}

fn row(line: &str) -> Result<Option<Row>> {
    let cells: Vec<&str> = line.split('\t').collect();
    let cell = |at: usize| cells.get(at).map(ToString::to_string).context("too few cells");
    Ok(Some(match cells[0] {
        "rpc" => Row {
            name: cell(2)?,
            kind: Kind::Call {
                service: cell(1)?,
                request: cell(5)?,
                response: cell(6)?,
                is_stream: cell(4)? == "stream",
            },
        },
        "field" => Row {
            name: format!("{}.{}", cell(1)?, cell(2)?),
            kind: Kind::Field { message: cell(1)?, field: cell(2)?, label: cell(4)?, r#type: cell(5)? },
        },
        "enum" => {
            Row { name: format!("{}.{}", cell(1)?, cell(2)?), kind: Kind::Value { r#enum: cell(1)?, value: cell(2)? } }
        }
        "message" => return Ok(None),
        kind => anyhow::bail!("a row of kind {kind:?}"),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "# a remark\n\
        rpc\truntime.v1.RuntimeService\tVersion\t\tunary\tVersionRequest\tVersionResponse\n\
        field\tMount\timage\t9\toptional\tImageSpec\t\n\
        field\tMount\treadonly\t3\toptional\tbool\t\n\
        enum\tA.B\tONE\t0\t\t\t\n\
        message\tEmpty\t\t\t\t\tempty\n";

    #[test]
    fn names_mean_rows() {
        let wire = Wire::parse(TABLE).unwrap();
        let named = |name: &str| -> Vec<String> {
            wire.named(name).map(|rows| rows.into_iter().map(|row| row.name.clone()).collect()).unwrap_or_default()
        };
        assert_eq!(named("Version"), ["Version"]);
        assert_eq!(named("Mount.image"), ["Mount.image"]);
        assert_eq!(named("Mount.*"), ["Mount.image", "Mount.readonly"]);
        assert_eq!(named("A.B.ONE"), ["A.B.ONE"]);
        for none in ["Mount", "Mount.none", "Empty", "Empty.*", "version", "*", "A.*", ""] {
            assert_eq!(wire.named(none), Err(Problem(format!("{none} is no row of the wire table"))));
        }
        assert!(wire.is_enum("A.B") && !wire.is_enum("Mount") && wire.is_message("Mount") && !wire.is_message("Empty"));
    }

    #[test]
    fn tables_that_are_none_are_refused() {
        for (table, word) in [
            ("", "empty"),
            ("field\tMount\timage\n", "too few cells"),
            ("what\tMount\n", "what"),
            ("enum\tA\tONE\t0\nenum\tA\tONE\t1\n", "twice"),
        ] {
            let error = format!("{:#}", Wire::parse(table).unwrap_err());
            assert!(error.contains(word), "{error}");
        }
    }
}
