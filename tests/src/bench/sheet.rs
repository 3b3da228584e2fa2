//! The sheet: rows by endpoints, each cell with its samples or the reason why there are none.
//!
//! A cell that can't be filled keeps its place with the reason. A benchmark that drops what fails shows only what works.

use std::collections::BTreeMap;

use serde::Serialize;

use super::FLOOR;

/// Which way is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// Times, CPU, memory.
    Lower,
    /// Rates.
    Higher,
}

/// What a row is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its key, in JSON and tables.
    pub name: String,
    /// What its figures count.
    pub unit: &'static str,
    /// Which way is good.
    pub better: Better,
}

/// All rows in the order of their first mention, and all that was measured.
#[derive(Debug, Clone, Default)]
pub struct Sheet {
    endpoints: Vec<String>,
    peer: Option<String>,
    rows: Vec<Row>,
    cells: BTreeMap<(String, String), Cell>,
}

#[derive(Debug, Clone, Default)]
struct Cell {
    samples: Vec<f64>,
    reason: Option<String>,
}

/// A cell as JSON has it; without samples both quantiles are null and the reason is there.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// The row.
    pub name: String,
    /// The row's unit.
    pub unit: String,
    /// The endpoint.
    pub endpoint: String,
    /// Median.
    pub p50: Option<f64>,
    /// 99th percentile: of few samples, the worst.
    pub p99: Option<f64>,
    /// How many samples.
    pub n: usize,
    /// Why there are no samples, or no more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Sheet {
    /// A sheet for these endpoints, in this order. The first is compared with `peer`, or with each other one.
    pub fn new(endpoints: Vec<String>, peer: Option<String>) -> Self {
        Self { endpoints, peer, ..Default::default() }
    }

    /// The endpoints, in their order.
    pub fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    /// Whom the first endpoint is compared with. The floor is no runtime.
    pub fn peers(&self) -> impl Iterator<Item = &String> {
        let is_peer = |name: &&String| self.peer.as_ref().map_or(*name != FLOOR, |peer| *name == peer);
        self.endpoints.iter().skip(1).filter(is_peer)
    }

    /// The rows, in their order.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Makes place for a row; a second mention changes nothing.
    pub fn row(&mut self, name: &str, unit: &'static str, better: Better) {
        if !self.rows.iter().any(|row| row.name == name) {
            self.rows.push(Row { name: name.to_owned(), unit, better });
        }
    }

    /// Adds a sample to a row that has its place.
    ///
    /// # Panics
    /// Without a place: a mistake of the measuring code.
    pub fn add(&mut self, row: &str, endpoint: &str, sample: f64) {
        assert!(self.rows.iter().any(|known| known.name == row), "no place for a row {row:?}");
        self.cell(row, endpoint).samples.push(sample);
    }

    /// Says why an endpoint has no samples, or no more, in a row. The first reason stays.
    pub fn refuse(&mut self, row: &str, endpoint: &str, reason: &str) {
        self.cell(row, endpoint).reason.get_or_insert_with(|| reason.to_owned());
    }

    /// One cell; without a sample or a reason it says so.
    pub fn figure(&self, row: &Row, endpoint: &str) -> Figure {
        let none = Cell { samples: Vec::new(), reason: None };
        let cell = self.cells.get(&(row.name.clone(), endpoint.to_owned())).unwrap_or(&none);
        let mut samples = cell.samples.clone();
        samples.sort_by(f64::total_cmp);
        // The bad end of a rate is its low one.
        let bad = if row.better == Better::Lower { 0.99 } else { 0.01 };
        let reason = cell.reason.clone().or_else(|| samples.is_empty().then(|| "not measured".to_owned()));
        Figure {
            name: row.name.clone(),
            unit: row.unit.to_owned(),
            endpoint: endpoint.to_owned(),
            p50: quantile(&samples, 0.5).map(rounded),
            p99: quantile(&samples, bad).map(rounded),
            n: samples.len(),
            reason,
        }
    }

    /// All cells, row by row. The floor is under some rows only.
    pub fn figures(&self) -> Vec<Figure> {
        self.rows
            .iter()
            .flat_map(|row| self.endpoints.iter().map(|endpoint| self.figure(row, endpoint)))
            .filter(|figure| figure.endpoint != FLOOR || figure.n > 0)
            .collect()
    }

    fn cell(&mut self, row: &str, endpoint: &str) -> &mut Cell {
        self.cells.entry((row.to_owned(), endpoint.to_owned())).or_default()
    }
}

/// How many times better `figure` is than `base`: above 1 is better, whichever way the row goes.
pub fn advantage(figure: &Figure, base: &Figure, better: Better) -> Option<f64> {
    // Noise can make a small difference of memory or CPU nothing or less, which is no base of a ratio.
    let (figure, base) = (figure.p50.filter(|value| *value > 0.0)?, base.p50.filter(|value| *value > 0.0)?);
    Some(match better {
        Better::Lower => base / figure,
        Better::Higher => figure / base,
    })
}

/// The sample at a quantile of sorted samples, by nearest rank: always one that was measured.
fn quantile(sorted: &[f64], quantile: f64) -> Option<f64> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank within the samples")]
    let rank = (sorted.len() as f64 * quantile).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

/// To four significant digits: more is noise, and makes files differ.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    #[expect(clippy::cast_possible_truncation, reason = "an exponent is small")]
    let digits = 3 - value.abs().log10().floor() as i32;
    let scale = 10_f64.powi(digits.min(6));
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(better: Better, samples: &[f64]) -> Figure {
        let mut sheet = Sheet::new(vec!["a".to_owned()], None);
        sheet.row("r", "ms", better);
        for sample in samples {
            sheet.add("r", "a", *sample);
        }
        sheet.figure(&sheet.rows()[0].clone(), "a")
    }

    #[test]
    fn quantiles_are_samples() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let figure = filled(Better::Lower, &hundred);
        assert_eq!((figure.p50, figure.p99, figure.n), (Some(50.0), Some(99.0), 100));
        let figure = filled(Better::Higher, &hundred);
        assert_eq!((figure.p50, figure.p99), (Some(50.0), Some(1.0)));
        let figure = filled(Better::Lower, &[7.0]);
        assert_eq!((figure.p50, figure.p99, figure.n, figure.reason), (Some(7.0), Some(7.0), 1, None));
        assert_eq!(filled(Better::Lower, &[3.0, 1.0]).p99, Some(3.0));
    }

    #[test]
    fn a_cell_without_samples_says_why() {
        let mut sheet = Sheet::new(vec!["a".to_owned(), "b".to_owned()], None);
        sheet.row("r", "ms", Better::Lower);
        sheet.refuse("r", "a", "Unimplemented");
        sheet.refuse("r", "a", "a later reason");
        let figures = sheet.figures();
        assert_eq!(figures[0].reason.as_deref(), Some("Unimplemented"));
        assert_eq!(figures[1].reason.as_deref(), Some("not measured"));
        let json = serde_json::to_value(&figures[0]).unwrap();
        assert_eq!(
            json,
            serde_json::json!({ "name": "r", "unit": "ms", "endpoint": "a", "p50": null, "p99": null, "n": 0,
                                "reason": "Unimplemented" })
        );
    }

    #[test]
    fn an_advantage_is_above_one_for_the_better_one() {
        let figure = |p50| Figure { p50: Some(p50), ..filled(Better::Lower, &[1.0]) };
        assert_eq!(advantage(&figure(10.0), &figure(90.0), Better::Lower), Some(9.0));
        assert_eq!(advantage(&figure(10.0), &figure(5.0), Better::Higher), Some(2.0));
        assert_eq!(advantage(&figure(0.0), &figure(5.0), Better::Lower), None);
        assert_eq!(advantage(&figure(-1.0), &figure(-5.0), Better::Lower), None);
    }

    #[test]
    fn four_digits_stay() {
        assert_eq!(rounded(123_456.0), 123_500.0);
        assert_eq!(rounded(0.012_345_6), 0.012_35);
        assert_eq!(rounded(0.0), 0.0);
        assert_eq!(rounded(1.0), 1.0);
    }
}
