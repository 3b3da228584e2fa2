//! The sheet as people and programs read it: a table in the terminal, a table in Markdown, JSON.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};

use super::sheet::{Better, Figure, Row, Sheet, advantage};

/// Between these lines of a document stands the table.
const BEGIN: &str = "<!-- begin of the table -->";
const END: &str = "<!-- end of the table -->";

/// The table for a terminal: the median and, behind it, the 99th percentile of each endpoint; then how many times better
/// the first endpoint is than each other one.
pub fn table(sheet: &Sheet) -> String {
    let mut lines = vec![header(sheet)];
    for row in sheet.rows() {
        let mut line = vec![row.name.clone(), unit(row)];
        let figures: Vec<Figure> = sheet.endpoints().iter().map(|name| sheet.figure(row, name)).collect();
        line.extend(figures.iter().map(|figure| match (figure.p50, figure.p99) {
            (Some(p50), Some(p99)) => format!("{} ({})", number(p50), number(p99)),
            _ => "-".to_owned(),
        }));
        line.extend(ratios(sheet, row, &figures));
        lines.push(line);
    }
    let columns = lines[0].len();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let mut out = String::new();
        for (column, word) in line.iter().enumerate() {
            let width = widths[column];
            let _ = if column < 2 { write!(out, "{word:<width$}  ") } else { write!(out, "{word:>width$}  ") };
        }
        text.push_str(out.trim_end());
        text.push('\n');
    }
    for line in reasons(sheet) {
        let _ = writeln!(text, "{line}");
    }
    text
}

/// The same as a Markdown table, without the percentiles.
pub fn markdown(sheet: &Sheet) -> String {
    let header = header(sheet);
    let mut text = format!("| {} |\n| --- | --- |{}\n", header.join(" | "), " ---: |".repeat(header.len() - 2));
    for row in sheet.rows() {
        let figures: Vec<Figure> = sheet.endpoints().iter().map(|name| sheet.figure(row, name)).collect();
        let mut words = vec![format!("`{}`", row.name), unit(row)];
        words.extend(figures.iter().map(|figure| figure.p50.map_or_else(|| "-".to_owned(), number)));
        words.extend(ratios(sheet, row, &figures));
        let _ = writeln!(text, "| {} |", words.join(" | "));
    }
    let reasons = reasons(sheet);
    if !reasons.is_empty() {
        text.push('\n');
        for line in reasons {
            let _ = writeln!(text, "- {line}");
        }
    }
    text
}

/// Puts the Markdown table between the two marks of a document.
pub fn insert(document: &Path, table: &str) -> Result<()> {
    let old = fs::read_to_string(document).with_context(|| format!("read {}", document.display()))?;
    let new = between(&old, table).with_context(|| format!("{} lacks {BEGIN:?} or {END:?}", document.display()))?;
    fs::write(document, new).with_context(|| format!("write {}", document.display()))
}

fn between(document: &str, table: &str) -> Option<String> {
    let (before, rest) = document.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{table}{END}{after}"))
}

/// The array of figures, one a line, so that two runs are compared with `diff`.
pub fn json(sheet: &Sheet) -> Result<String> {
    let lines = sheet.figures().iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
    Ok(format!("[\n{}\n]\n", lines.join(",\n")))
}

fn header(sheet: &Sheet) -> Vec<String> {
    let mut header = vec!["row".to_owned(), "unit".to_owned()];
    header.extend(sheet.endpoints().iter().cloned());
    header.extend(sheet.peers().map(|peer| format!("better than {peer}")));
    header
}

fn unit(row: &Row) -> String {
    match row.better {
        Better::Lower => row.unit.to_owned(),
        Better::Higher => format!("{} (more is better)", row.unit),
    }
}

fn ratios(sheet: &Sheet, row: &Row, figures: &[Figure]) -> Vec<String> {
    let Some(first) = figures.first() else { return Vec::new() };
    let ratio = |peer| advantage(first, &sheet.figure(row, peer), row.better);
    sheet
        .peers()
        .map(|peer| ratio(peer).map_or_else(|| "-".to_owned(), |ratio| format!("{}×", number(ratio))))
        .collect()
}

/// A line for each reason, with all that it concerns.
fn reasons(sheet: &Sheet) -> Vec<String> {
    let mut groups: Vec<(String, String, Vec<String>)> = Vec::new();
    for figure in sheet.figures() {
        let Some(reason) = figure.reason else { continue };
        let what = if figure.n == 0 { figure.name } else { format!("{} (after {} samples)", figure.name, figure.n) };
        match groups.iter_mut().find(|(endpoint, known, _)| *endpoint == figure.endpoint && *known == reason) {
            Some((_, _, names)) => names.push(what),
            None => groups.push((figure.endpoint, reason, vec![what])),
        }
    }
    groups.into_iter().map(|(endpoint, reason, names)| format!("{endpoint}: {}: {reason}", names.join(", "))).collect()
}

/// A figure with three digits that count.
pub fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 => format!("{value:.2}"),
        0.0 => "0".to_owned(),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sheet() -> Sheet {
        let mut sheet = Sheet::new(vec!["vaina".to_owned(), "peer".to_owned()], None);
        sheet.row("pod_up_host", "ms", Better::Lower);
        sheet.row("log_throughput", "MB/s", Better::Higher);
        sheet.row("list_pod_stats_100", "ms", Better::Lower);
        sheet.add("pod_up_host", "vaina", 10.0);
        sheet.add("pod_up_host", "peer", 90.0);
        sheet.add("log_throughput", "vaina", 500.0);
        sheet.add("log_throughput", "peer", 1000.0);
        sheet.refuse("list_pod_stats_100", "vaina", "Unimplemented: ListPodSandboxStats");
        sheet.add("list_pod_stats_100", "peer", 4.0);
        sheet
    }

    #[test]
    fn a_table_has_ratios_both_ways_and_reasons() {
        let table = table(&sheet());
        let row = |name| table.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        assert!(row("pod_up_host").ends_with("10.0 (10.0)  90.0 (90.0)             9.00×"), "{table}");
        assert!(row("log_throughput").ends_with("0.50×"), "{table}");
        assert!(row("list_pod_stats_100").contains(" - "), "{table}");
        assert!(table.ends_with("vaina: list_pod_stats_100: Unimplemented: ListPodSandboxStats\n"), "{table}");
    }

    #[test]
    fn markdown_stands_between_its_marks() {
        let document = format!("# Title\n{BEGIN}\nold\n{END}\ntail\n");
        let new = between(&document, &markdown(&sheet())).unwrap();
        assert!(new.starts_with("# Title\n<!--") && new.ends_with("-->\ntail\n"), "{new}");
        assert!(new.contains("| `pod_up_host` | ms | 10.0 | 90.0 | 9.00× |"), "{new}");
        assert!(!new.contains("old"));
        assert_eq!(between(&new, &markdown(&sheet())).unwrap(), new);
        assert!(between("no marks", "").is_none());
    }

    #[test]
    fn json_is_an_array_of_figures() {
        let text = json(&sheet()).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value.as_array().unwrap().len(), 6);
        assert_eq!(value[1]["endpoint"], "peer");
        assert_eq!(value[1]["p50"], 90.0);
        assert_eq!(value[4]["p50"], serde_json::Value::Null);
    }

    #[test]
    fn numbers_are_short() {
        let shown = [1234.5, 99.96, 12.34, 0.5, 0.012_34, 0.0].map(number);
        assert_eq!(shown, ["1234", "100.0", "12.3", "0.50", "0.0123", "0"]);
    }
}
