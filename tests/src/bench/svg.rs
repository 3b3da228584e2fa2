//! The comparison as a picture: for each row a group of bars, how many times what the first endpoint needs, on a
//! logarithmic axis. Right is worse, whichever way the row goes, so that short bars are good ones.

use std::fmt::Write as _;

use super::{
    report::number,
    sheet::{Row, Sheet, advantage},
};

/// The rows that the picture shows, in groups, with words for people.
const GROUPS: [(&str, &[(&str, &str)]); 5] = [
    (
        "Time of a pod",
        &[
            ("pod_up_host", "Pod up, host network"),
            ("pod_up_net", "Pod up, pod network"),
            ("pod_down_host", "Pod down, host network"),
            ("pod_down_net", "Pod down, pod network"),
            ("exec_sync", "ExecSync"),
        ],
    ),
    (
        "CPU",
        &[
            ("cpu_lifecycle_host", "Lifecycle, host network"),
            ("cpu_lifecycle_net", "Lifecycle, pod network"),
            ("exec_sync_cpu", "ExecSync"),
            ("log_cpu_gib", "A GiB of log"),
        ],
    ),
    (
        "Memory",
        &[
            ("monitor_pss_pod", "Monitor of a pod (PSS)"),
            ("memavailable_pod", "A pod, all in all (MemAvailable)"),
            ("daemon_pss_100", "Daemon with 100 pods (PSS)"),
        ],
    ),
    (
        "With 100 pods",
        &[
            ("list_container_stats_100", "ListContainerStats"),
            ("list_pod_stats_100", "ListPodSandboxStats"),
            ("list_pod_metrics_100", "ListPodSandboxMetrics"),
            ("restart_100", "Restart of the daemon"),
        ],
    ),
    (
        "Throughput",
        &[
            ("lifecycles_host", "Lifecycles, ten at a time, host network"),
            ("lifecycles_net", "Lifecycles, ten at a time, pod network"),
            ("log_throughput", "Log of 100-byte lines"),
            ("pull_280mb", "Pull and unpack of 280 MB"),
        ],
    ),
];

const WIDTH: f64 = 960.0;
const LEFT: f64 = 290.0;
const RIGHT: f64 = 150.0;
const BAR: f64 = 13.0;
const GAP: f64 = 11.0;
const COLOURS: [&str; 5] = ["#0f766e", "#94a3b8", "#cbd5e1", "#fbbf24", "#a78bfa"];
const INK: &str = "#1e293b";
const FAINT: &str = "#64748b";

/// Draws it; rows that the sheet lacks are left out.
pub fn draw(sheet: &Sheet, compared: &[String]) -> String {
    let Some(first) = compared.first() else { return String::new() };
    let ratio =
        |row: &Row, endpoint: &str| advantage(&sheet.figure(row, first), &sheet.figure(row, endpoint), row.better);
    let find = |name: &str| sheet.rows().iter().find(|row| row.name == name);
    let groups: Vec<(&str, Vec<(&Row, &str)>)> = GROUPS
        .iter()
        .map(|(title, rows)| (*title, rows.iter().filter_map(|(name, text)| Some((find(name)?, *text))).collect()))
        .filter(|(_, rows): &(&str, Vec<_>)| !rows.is_empty())
        .collect();
    let ratios =
        groups.iter().flat_map(|(_, rows)| rows).flat_map(|(row, _)| compared.iter().map(|name| ratio(row, name)));
    let (low, high) =
        ratios.flatten().fold((1.0, 2.0), |(low, high): (f64, f64), ratio| (low.min(ratio), high.max(ratio)));
    let axis = Axis { low: (low / 1.3).log10(), high: (high * 1.1).log10() };

    let mut body = String::new();
    let mut y = 118.0;
    for (title, rows) in &groups {
        let _ = writeln!(body, r#"<text x="24" y="{:.1}" class="group">{}</text>"#, y + 4.0, escape(title));
        y += 20.0;
        for (row, text) in rows {
            let middle = y + BAR * compared.len() as f64 / 2.0 + 4.0;
            let _ = writeln!(body, r#"<text x="{}" y="{middle:.1}" class="row">{}</text>"#, LEFT - 14.0, escape(text));
            for (index, name) in compared.iter().enumerate() {
                bar(&mut body, &axis, y, index, &words(sheet, row, name, ratio(row, name)), ratio(row, name));
                y += BAR;
            }
            y += GAP;
        }
        y += 14.0;
    }
    let height = y + 20.0;
    let mut text = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0}" width="{WIDTH}" height="{height:.0}" role="img" aria-label="Benchmark of {0}">
<style>
text {{ font-family: -apple-system, "Segoe UI", "Helvetica Neue", "DejaVu Sans", Arial, sans-serif; fill: {INK}; }}
.title {{ font-size: 19px; font-weight: 600; }}
.small {{ font-size: 12px; fill: {FAINT}; }}
.legend {{ font-size: 13px; }}
.group {{ font-size: 13px; font-weight: 600; }}
.row {{ font-size: 13px; text-anchor: end; }}
.value {{ font-size: 11px; }}
.tick {{ font-size: 11px; fill: {FAINT}; text-anchor: middle; }}
</style>
<rect width="100%" height="100%" rx="8" fill="#ffffff"/>
<text x="24" y="36" class="title">How many times what {0} needs</text>
<text x="24" y="56" class="small">Medians of one run, endpoints taking turns. The axis is logarithmic; a longer bar is worse, for rates too.</text>
"##,
        escape(first)
    );
    legend(&mut text, compared);
    axis.draw(&mut text, 104.0, height - 22.0);
    text.push_str(&body);
    text.push_str("</svg>\n");
    text
}

/// From the ratio to the place on the picture.
struct Axis {
    low: f64,
    high: f64,
}

impl Axis {
    fn x(&self, ratio: f64) -> f64 {
        LEFT + (ratio.log10() - self.low) / (self.high - self.low) * (WIDTH - LEFT - RIGHT)
    }

    fn draw(&self, text: &mut String, top: f64, bottom: f64) {
        for tick in [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0_f64] {
            if (self.low..=self.high).contains(&tick.log10()) {
                let x = self.x(tick);
                let colour = if tick == 1.0 { FAINT } else { "#e2e8f0" };
                let _ = writeln!(text, r#"<path d="M{x:.1} {top}V{bottom:.1}" stroke="{colour}"/>"#);
                let _ = writeln!(text, r#"<text x="{x:.1}" y="{:.1}" class="tick">{tick}×</text>"#, top - 6.0);
            }
        }
    }
}

/// A bar from 1× on: to the right what is worse than the first endpoint, to the left what is better.
fn bar(body: &mut String, axis: &Axis, y: f64, index: usize, words: &str, ratio: Option<f64>) {
    let one = axis.x(1.0);
    let end = ratio.map_or(one, |ratio| axis.x(ratio));
    let (from, to) = if index == 0 { (one - 3.0, one + 3.0) } else { (one.min(end), one.max(end)) };
    let colour = COLOURS[index % COLOURS.len()];
    if ratio.is_some() {
        let _ = writeln!(
            body,
            r#"<rect x="{from:.1}" y="{:.1}" width="{:.1}" height="{:.1}" rx="2" fill="{colour}"/>"#,
            y + 1.0,
            (to - from).max(1.5),
            BAR - 2.0
        );
    }
    let _ =
        writeln!(body, r#"<text x="{:.1}" y="{:.1}" class="value">{}</text>"#, to + 6.0, y + BAR - 3.0, escape(words));
}

fn words(sheet: &Sheet, row: &Row, endpoint: &str, ratio: Option<f64>) -> String {
    let figure = sheet.figure(row, endpoint);
    let Some(p50) = figure.p50 else { return "no answer".to_owned() };
    let value = format!("{} {}", number(p50), row.unit);
    match ratio {
        Some(ratio) if endpoint != sheet.endpoints().first().map_or("", String::as_str) => {
            format!("{value} · {}×", number(ratio))
        }
        _ => value,
    }
}

fn legend(text: &mut String, compared: &[String]) {
    let mut x = 24.0;
    for (index, name) in compared.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let _ = writeln!(text, r#"<rect x="{x:.1}" y="68" width="12" height="12" rx="2" fill="{colour}"/>"#);
        let _ = writeln!(text, r#"<text x="{:.1}" y="78.5" class="legend">{}</text>"#, x + 18.0, escape(name));
        x += 18.0 + 8.0 * name.chars().count() as f64 + 22.0;
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::{super::sheet::Better, *};

    #[test]
    fn a_picture_has_a_bar_for_each_figure_and_words_for_the_others() {
        let names = ["vaina".to_owned(), "<peer>".to_owned()];
        let mut sheet = Sheet::new(names.to_vec(), None);
        sheet.row("pod_up_host", "ms", Better::Lower);
        sheet.row("log_throughput", "MB/s", Better::Higher);
        sheet.row("not_in_the_picture", "ms", Better::Lower);
        sheet.add("pod_up_host", "vaina", 10.0);
        sheet.add("pod_up_host", "<peer>", 90.0);
        sheet.add("log_throughput", "vaina", 10.0);
        let svg = draw(&sheet, &names);
        assert!(svg.contains("90.0 ms · 9.00×"), "{svg}");
        assert!(svg.contains("no answer") && svg.contains("&lt;peer&gt;") && !svg.contains("<peer>"), "{svg}");
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        // Two in the legend, three figures, the ground.
        assert_eq!(svg.matches("<rect ").count(), 6, "{svg}");
    }
}
