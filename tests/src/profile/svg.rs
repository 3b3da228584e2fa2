//! Draws a median run as a waterfall: a row for each phase, in the order of the calls, coloured by process.

use std::fmt::Write as _;

use super::{PROCESSES, tree::Phase};

/// Of the processes, in their order; a phase with others in it is pale, so that what is dark makes up the whole.
const COLOURS: [&str; PROCESSES.len()] = ["#6b7280", "#2563eb", "#ea580c", "#059669"];

const WIDTH: f64 = 1280.0;
const LABELS: f64 = 330.0;
const RIGHT: f64 = 96.0;
const TOP: f64 = 84.0;
const ROW: f64 = 17.0;

/// What is shorter than this part of the whole is left out: it would be a hair, and make the rest harder to see.
const SHORTEST: f64 = 0.002;

/// The picture of the median run.
pub fn draw(title: &str, subtitle: &str, phases: &[Phase]) -> String {
    let whole = phases.first().map_or(1.0, |root| root.length).max(f64::MIN_POSITIVE);
    let all = phases.iter().map(|phase| phase.own).sum::<f64>().max(f64::MIN_POSITIVE);
    let rows: Vec<&Phase> = phases.iter().skip(1).filter(|phase| phase.length >= whole * SHORTEST).collect();
    let height = TOP + ROW * f64::from(u32::try_from(rows.len()).unwrap_or(u32::MAX)) + 16.0;
    let x = |time: f64| LABELS + (WIDTH - LABELS - RIGHT) * time / whole;
    let mut svg = Svg::default();
    svg.line(format_args!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" font-family="system-ui, 'DejaVu Sans', sans-serif" font-size="11">"#
    ));
    svg.line(format_args!(r##"<rect width="100%" height="100%" fill="#ffffff"/>"##));
    svg.text(16.0, 28.0, r##"font-size="17" font-weight="600" fill="#111827""##, title);
    svg.text(16.0, 46.0, r##"fill="#4b5563""##, subtitle);
    svg.legend();
    svg.axis(whole, height, x);
    for (row, phase) in rows.iter().enumerate() {
        let y = TOP + ROW * f64::from(u32::try_from(row).unwrap_or(u32::MAX));
        svg.row(phase, y, x(phase.start), x(phase.start + phase.length), phase.own / all);
    }
    svg.line(format_args!("</svg>"));
    svg.0
}

/// The distance of the lines of an axis: 1, 2 or 5 times a power of ten, about ten of them.
fn step(whole: f64) -> f64 {
    let power = 10_f64.powf((whole / 10.0).log10().floor());
    [1.0, 2.0, 5.0].into_iter().map(|factor| factor * power).find(|step| whole / step <= 12.0).unwrap_or(10.0 * power)
}

#[derive(Default)]
struct Svg(String);

impl Svg {
    fn line(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "{text}");
    }

    fn text(&mut self, x: f64, y: f64, attributes: &str, text: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        self.line(format_args!(r#"<text x="{x:.1}" y="{y:.1}" {attributes}>{text}</text>"#));
    }

    fn legend(&mut self) {
        let names = ["client (gRPC)", "daemon", "shim", "oci (runtime and container init)"];
        let mut x = LABELS;
        for (name, colour) in names.iter().zip(COLOURS) {
            self.line(format_args!(r#"<rect x="{x:.1}" y="55" width="11" height="11" rx="2" fill="{colour}"/>"#));
            self.text(x + 16.0, 64.5, r##"fill="#374151""##, name);
            x += 36.0 + 6.2 * f64::from(u32::try_from(name.len()).unwrap_or_default());
        }
    }

    fn axis(&mut self, whole: f64, height: f64, x: impl Fn(f64) -> f64) {
        let step = step(whole);
        let digits = if step < 1.0 { 1 } else { 0 };
        let mut time = 0.0;
        while time <= whole {
            let at = x(time);
            self.line(format_args!(
                r##"<line x1="{at:.1}" y1="{:.1}" x2="{at:.1}" y2="{:.1}" stroke="#e5e7eb"/>"##,
                TOP - 2.0,
                height - 12.0
            ));
            let label = format!("{time:.digits$} ms");
            self.text(at, TOP - 5.0, r##"font-size="10" fill="#6b7280" text-anchor="middle""##, &label);
            time += step;
        }
    }

    fn row(&mut self, phase: &Phase, y: f64, from: f64, to: f64, share: f64) {
        let is_call = phase.process == "client";
        if is_call {
            self.line(format_args!(r##"<rect x="0" y="{y:.1}" width="{WIDTH}" height="{ROW}" fill="#f3f4f6"/>"##));
        }
        let indent = 8.0 + 11.0 * f64::from(u32::try_from(phase.depth() - 1).unwrap_or_default());
        let weight = if is_call { 600 } else { 400 };
        self.text(
            indent,
            y + 12.5,
            &format!(r##"font-weight="{weight}" fill="#111827""##),
            &shorten(phase.name(), (LABELS - indent) / 6.3),
        );
        let colour = COLOURS[PROCESSES.iter().position(|process| *process == phase.process).unwrap_or(0)];
        let opacity = if phase.is_leaf { 1.0 } else { 0.35 };
        let width = (to - from).max(1.0);
        self.line(format_args!(
            r#"<rect x="{from:.1}" y="{:.1}" width="{width:.1}" height="{:.1}" rx="2" fill="{colour}" fill-opacity="{opacity}"><title>{}: {:.2} ms, of which its own {:.2} ms ({:.1} %)</title></rect>"#,
            y + 2.5,
            ROW - 5.0,
            phase.name().replace('&', "&amp;").replace('<', "&lt;"),
            phase.length,
            phase.own,
            share * 100.0,
        ));
        self.text(from + width + 4.0, y + 12.5, r##"font-size="10" fill="#374151""##, &format!("{:.1}", phase.length));
    }
}

/// So that a label stays beside the bars.
fn shorten(name: &str, characters: f64) -> String {
    let fits = |length: usize| f64::from(u32::try_from(length).unwrap_or(u32::MAX)) <= characters;
    if fits(name.chars().count()) {
        return name.to_owned();
    }
    let mut text = String::new();
    for character in name.chars() {
        if !fits(text.chars().count() + 2) {
            break;
        }
        text.push(character);
    }
    text.push('…');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(names: &[&str], process: &str, start: f64, length: f64) -> Phase {
        let path = names.iter().map(|name| ((*name).to_owned(), 1)).collect();
        Phase { path, process: process.to_owned(), start, length, own: length, is_leaf: true }
    }

    #[test]
    fn a_row_for_each_phase_that_can_be_seen() {
        let phases = [
            phase(&["up"], "client", 0.0, 100.0),
            phase(&["up", "Run"], "client", 0.0, 50.0),
            phase(&["up", "Run", "a < b"], "daemon", 10.0, 20.0),
            phase(&["up", "Run", "hair"], "daemon", 30.0, 0.01),
        ];
        let svg = draw("Pod up", "20 runs", &phases);
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
        assert!(svg.contains(">a &lt; b<") && !svg.contains("hair"), "{svg}");
        // Half of the drawn width: 1280 - 330 - 96.
        assert!(svg.contains(r#"x="330.0" y="86.5" width="427.0""#), "{svg}");
        assert_eq!(svg.matches("<title>").count(), 2);
    }

    #[test]
    fn the_axis_has_round_steps() {
        for (whole, expected) in [(100.0, 10.0), (119.0, 10.0), (130.0, 20.0), (33.0, 5.0), (7.0, 1.0), (0.9, 0.1)] {
            assert!((step(whole) - expected).abs() < 1e-9, "{whole}: {}", step(whole));
        }
    }

    #[test]
    fn a_long_label_is_cut() {
        assert_eq!(shorten("short", 10.0), "short");
        assert_eq!(shorten("much too long", 6.0), "much …");
    }
}
