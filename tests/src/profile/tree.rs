//! Puts the spans of a run into each other, and takes the median of many runs.

use std::{cmp::Reverse, collections::BTreeMap};

use super::Span;

/// Phases in which nothing is done but waiting for what somebody else does.
const WAITS: [&str; 3] = ["gate", "wait_for_exit", "shim.Wait"];

/// A span with what happened in it.
#[derive(Debug, Clone)]
struct Node {
    span: Span,
    parent: Option<usize>,
    children: Vec<usize>,
}

/// One run: the client's calls with all that happened in them, under one root.
#[derive(Debug, Clone)]
pub struct Run {
    nodes: Vec<Node>,
}

/// A phase over all runs; times are milliseconds, and medians but for its own part.
#[derive(Debug, Clone, PartialEq)]
pub struct Phase {
    /// Names from the root on, with the number of the one meant where siblings have the same.
    pub path: Vec<(String, usize)>,
    /// Its process.
    pub process: String,
    /// When it begins after the root.
    pub start: f64,
    /// How long it lasts.
    pub length: f64,
    /// Its part of the whole: each moment belongs to the innermost phases then, to each of them in equal parts, and to one that
    /// only waits if there is no other. So the parts of all phases make up the whole, and their means over the runs do, which
    /// medians would not.
    pub own: f64,
    /// Whether there are phases in it.
    pub is_leaf: bool,
}

impl Phase {
    /// What is done.
    pub fn name(&self) -> &str {
        self.path.last().map_or("", |(name, _)| name)
    }

    /// How deep it lies.
    pub fn depth(&self) -> usize {
        self.path.len().saturating_sub(1)
    }
}

impl Run {
    /// Sorts the spans that lie in the root's time into each other; those that reach out of it belong to no run.
    pub fn new(root: Span, spans: &[Span]) -> Self {
        let mut inside: Vec<Span> = spans.iter().filter(|span| root.encloses(span)).cloned().collect();
        // Callers first; what begins first, and then what lasts longer, is what others lie in.
        inside.sort_by_key(|span| (span.rank(), span.start_ns, -span.end_ns));
        let mut run = Self { nodes: vec![Node { span: root, parent: None, children: Vec::new() }] };
        for span in &inside {
            run.nodes.push(Node { span: span.clone(), parent: None, children: Vec::new() });
        }
        for index in 1..run.nodes.len() {
            let parent = run.parent_of(index);
            run.nodes[index].parent = Some(parent);
            run.nodes[parent].children.push(index);
        }
        for index in 0..run.nodes.len() {
            let mut children = std::mem::take(&mut run.nodes[index].children);
            children.sort_by_key(|child| run.nodes[*child].span.start_ns);
            run.nodes[index].children = children;
        }
        run
    }

    fn parent_of(&self, index: usize) -> usize {
        let span = &self.nodes[index].span;
        let encloses = |other: &usize| self.nodes[*other].span.encloses(span);
        let smallest = |candidates: &mut dyn Iterator<Item = usize>| {
            // Of two that are equally long the later one lies in the other.
            candidates.filter(encloses).min_by_key(|other| (self.nodes[*other].span.length(), Reverse(*other)))
        };
        if let Some(number) = span.parent {
            // Numbers are used again, so it must lie around it as well.
            let mut named = (1..self.nodes.len())
                .filter(|other| *other != index && self.nodes[*other].span.span == Some(number))
                .filter(|other| self.nodes[*other].span.process == span.process);
            if let Some(parent) = smallest(&mut named) {
                return parent;
            }
        }
        // What has no number lies in what its process was doing. Those before it in the order can't lie in it.
        let mut own = (1..index).filter(|other| {
            let other = &self.nodes[*other].span;
            span.span.is_none() && other.process == span.process && other.pid == span.pid
        });
        if let Some(parent) = smallest(&mut own) {
            return parent;
        }
        // A process was called by one before it: by a call that is named after it, if there is one around.
        let above = |other: &usize| self.nodes[*other].span.rank() < span.rank();
        let call = format!("{}.", span.process);
        let calls = |other: &usize| self.nodes[*other].span.name.starts_with(&call);
        let called = smallest(&mut (0..index).filter(above).filter(calls));
        let within = |other: &usize| called.is_none_or(|called| self.lies_in(*other, called));
        smallest(&mut (0..index).filter(above).filter(within)).unwrap_or(0)
    }

    fn lies_in(&self, index: usize, ground: usize) -> bool {
        std::iter::successors(Some(index), |at| self.nodes[*at].parent).any(|at| at == ground)
    }

    fn children_below<'a>(&'a self, children: &'a [usize]) -> impl Iterator<Item = (usize, (String, usize))> + 'a {
        let mut seen: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        children.iter().map(move |child| {
            let span = &self.nodes[*child].span;
            let count = seen.entry((&span.process, &span.name)).or_default();
            *count += 1;
            (*child, (span.name.clone(), *count))
        })
    }

    /// Each moment's innermost spans have it in equal parts; those that wait for what others do only if there are no others.
    fn own_times(&self) -> Vec<f64> {
        let mut own = vec![0.0; self.nodes.len()];
        let mut moments: Vec<i64> = self.nodes.iter().flat_map(|node| [node.span.start_ns, node.span.end_ns]).collect();
        moments.sort_unstable();
        moments.dedup();
        for pair in moments.windows(2) {
            let (from, to) = (pair[0], pair[1]);
            let is_active = |index: &usize| {
                let span = &self.nodes[*index].span;
                span.start_ns <= from && to <= span.end_ns
            };
            let mut innermost: Vec<usize> = (0..self.nodes.len())
                .filter(is_active)
                .filter(|index| !self.nodes[*index].children.iter().any(&is_active))
                .collect();
            let waits = |index: &usize| WAITS.contains(&self.nodes[*index].span.name.as_str());
            if innermost.iter().any(|index| !waits(index)) {
                innermost.retain(|index| !waits(index));
            }
            let part = milliseconds(to - from) / count(innermost.len());
            for index in innermost {
                own[index] += part;
            }
        }
        own
    }

    fn collect(&self, index: usize, path: Vec<(String, usize)>, own: &[f64], into: &mut BTreeMap<Path, Samples>) {
        let Node { span, children, parent } = &self.nodes[index];
        let caller = parent.map_or(span, |parent| &self.nodes[parent].span);
        let sample = into.entry((path.clone(), span.process.clone())).or_default();
        sample.starts.push(milliseconds(span.start_ns - caller.start_ns));
        sample.lengths.push(milliseconds(span.length()));
        sample.own.push(own[index]);
        sample.with_children += usize::from(!children.is_empty());
        for (child, name) in self.children_below(children) {
            let mut path = path.clone();
            path.push(name);
            self.collect(child, path, own, into);
        }
    }
}

type Path = (Vec<(String, usize)>, String);

#[derive(Debug, Default)]
struct Samples {
    /// After the start of what it lies in.
    starts: Vec<f64>,
    lengths: Vec<f64>,
    own: Vec<f64>,
    with_children: usize,
}

/// The middle half of the runs by their length: what a busy machine did to the others is no part of the picture.
pub fn middle(mut runs: Vec<Run>) -> Vec<Run> {
    runs.sort_by_key(|run| run.nodes[0].span.length());
    let cut = runs.len() / 4;
    runs.drain(runs.len() - cut..);
    runs.drain(..cut);
    runs
}

/// The median run: every phase that most runs have, in the order in which it is drawn.
pub fn median(runs: &[Run]) -> Vec<Phase> {
    let mut samples = BTreeMap::new();
    for run in runs {
        let root = (run.nodes[0].span.name.clone(), 1);
        run.collect(0, vec![root], &run.own_times(), &mut samples);
    }
    let mut phases: Vec<Phase> = samples
        .into_iter()
        .filter(|(_, samples)| samples.starts.len() * 2 > runs.len())
        .map(|((path, process), mut samples)| Phase {
            path,
            process,
            start: p50(&mut samples.starts),
            length: p50(&mut samples.lengths),
            own: samples.own.iter().sum::<f64>() / count(runs.len()),
            is_leaf: samples.with_children * 2 < samples.starts.len(),
        })
        .collect();
    // Their starts are counted from the one that they lie in, which is before them in the order of their paths. Medians need not
    // fit together: none is drawn out of the one that it lies in.
    let mut placed: BTreeMap<Vec<(String, usize)>, (f64, f64)> = BTreeMap::new();
    for phase in &mut phases {
        let caller = &phase.path[..phase.path.len() - 1];
        if let Some((from, to)) = placed.get(caller) {
            phase.start = (from + phase.start).min(to - phase.length).max(*from);
        }
        placed.insert(phase.path.clone(), (phase.start, phase.start + phase.length));
    }
    // Each below the one that it lies in, and beside each other by their start.
    let order = |phase: &Phase| -> Vec<(f64, (String, usize))> {
        (1..=phase.path.len())
            .map(|length| {
                let start = placed.get(&phase.path[..length]).map_or(0.0, |(from, _)| *from);
                (start, phase.path[length - 1].clone())
            })
            .collect()
    };
    phases.sort_by(|left, right| order(left).partial_cmp(&order(right)).unwrap_or(std::cmp::Ordering::Equal));
    phases
}

/// The phases in which the time goes, by their own part, the largest first. Those of one process with the same name and
/// caller are one.
pub fn ranking(phases: &[Phase]) -> Vec<(String, String, f64)> {
    let mut ranked: Vec<(String, String, f64)> = Vec::new();
    for phase in phases {
        let names: Vec<&str> = phase.path.iter().rev().take(2).rev().map(|(name, _)| name.as_str()).collect();
        let name = names.join(" › ");
        match ranked.iter_mut().find(|(known, process, _)| *known == name && *process == phase.process) {
            Some((_, _, own)) => *own += phase.own,
            None => ranked.push((name, phase.process.clone(), phase.own)),
        }
    }
    ranked.sort_by(|left, right| right.2.total_cmp(&left.2));
    ranked
}

/// The middle of some figures.
fn p50(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    match figures.len() {
        0 => 0.0,
        length if length % 2 == 1 => figures[middle],
        _ => f64::midpoint(figures[middle - 1], figures[middle]),
    }
}

/// Exact for anything that a run can last.
#[expect(clippy::cast_precision_loss, reason = "a run is shorter than 2^53 ns")]
fn milliseconds(nanoseconds: i64) -> f64 {
    nanoseconds as f64 / 1e6
}

fn count(length: usize) -> f64 {
    u32::try_from(length).map_or(f64::INFINITY, f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i64 = 1_000_000;

    fn span(process: &str, pid: u32, name: &str, start: i64, end: i64) -> Span {
        let (process, name) = (process.to_owned(), name.to_owned());
        Span { process, pid, span: None, parent: None, name, start_ns: start * MS, end_ns: end * MS }
    }

    fn numbered(number: u64, parent: Option<u64>, name: &str, start: i64, end: i64) -> Span {
        Span { span: Some(number), parent, ..span("daemon", 2, name, start, end) }
    }

    /// A call in which the network is made beside the shim, and the shim's start is known only by its time.
    fn spans(shim: i64) -> Vec<Span> {
        vec![
            span("client", 1, "Run", 0, 20),
            numbered(1, None, "Run", 1, 19),
            numbered(2, Some(1), "network", 2, 12),
            numbered(3, Some(1), "shim", 2, 14),
            numbered(4, Some(3), "shim.start", 2, 12 + shim),
            span("shim", 3, "start", 4, 10),
            span("shim", 3, "seal", 4, 6),
            span("oci", 4, "stray", 30, 31),
            // The number is used again, after the call.
            numbered(1, None, "other", 19, 20),
        ]
    }

    fn run(shim: i64) -> Run {
        Run::new(span("client", 1, "up", 0, 20), &spans(shim))
    }

    fn names(phases: &[Phase]) -> Vec<(usize, &str)> {
        phases.iter().map(|phase| (phase.depth(), phase.name())).collect()
    }

    #[test]
    fn spans_lie_in_their_callers() {
        let phases = median(&[run(1)]);
        let expected = [
            (0, "up"),
            (1, "Run"),
            (2, "Run"),
            (3, "network"),
            (3, "shim"),
            (4, "shim.start"),
            (5, "start"),
            (6, "seal"),
            (2, "other"),
        ];
        assert_eq!(names(&phases), expected);
        let of = |name: &str| phases.iter().rfind(|phase| phase.name() == name).unwrap();
        assert!(of("seal").is_leaf && !of("start").is_leaf);
        // Beside the network, which has the other half of that time.
        assert!((of("seal").own - 1.0).abs() < 1e-9, "{:?}", of("seal"));
        assert!((of("network").own - 5.0).abs() < 1e-9, "{:?}", of("network"));
        let all: f64 = phases.iter().map(|phase| phase.own).sum();
        assert!((all - 20.0).abs() < 1e-9, "{all}");
    }

    #[test]
    fn the_median_of_runs_is_taken_and_what_few_have_is_left_out() {
        let mut odd = spans(1);
        odd.push(numbered(9, Some(3), "rare", 13, 14));
        let runs = [run(0), run(1), Run::new(span("client", 1, "up", 0, 20), &odd), run(2)];
        let phases = median(&runs);
        assert!(phases.iter().all(|phase| phase.name() != "rare"));
        let start = phases.iter().find(|phase| phase.name() == "shim.start").unwrap();
        assert!((start.length - 11.0).abs() < 1e-9, "{start:?}");
    }

    #[test]
    fn siblings_with_one_name_are_told_apart_and_ranked_together() {
        let mut spans = spans(1);
        spans.extend([numbered(10, Some(1), "gate", 15, 16), numbered(11, Some(1), "gate", 17, 18)]);
        let phases = median(&[Run::new(span("client", 1, "up", 0, 20), &spans)]);
        let gates: Vec<f64> = phases.iter().filter(|phase| phase.name() == "gate").map(|phase| phase.start).collect();
        assert_eq!(gates, [15.0, 17.0]);
        let ranking = ranking(&phases);
        let gate = ranking.iter().find(|(name, _, _)| name == "Run › gate").unwrap();
        assert!((gate.2 - 2.0).abs() < 1e-9, "{gate:?}");
        assert!(ranking.windows(2).all(|pair| pair[0].2 >= pair[1].2));
    }

    #[test]
    fn who_waits_has_no_part_in_what_others_do() {
        let spans =
            [span("client", 1, "Remove", 0, 10), numbered(1, None, "gate", 0, 8), numbered(2, None, "delete", 0, 6)];
        let phases = median(&[Run::new(span("client", 1, "down", 0, 10), &spans)]);
        let own = |name: &str| phases.iter().find(|phase| phase.name() == name).unwrap().own;
        assert!((own("delete") - 6.0).abs() < 1e-9 && (own("gate") - 2.0).abs() < 1e-9, "{phases:?}");
    }

    #[test]
    fn the_middle_half_of_the_runs_counts() {
        let runs: Vec<Run> =
            [9, 1, 5, 6, 100, 4, 7, 8].map(|end| Run::new(span("client", 1, "up", 0, end), &[])).into();
        let lengths: Vec<i64> = middle(runs).iter().map(|run| run.nodes[0].span.length() / MS).collect();
        assert_eq!(lengths, [5, 6, 7, 8]);
    }

    #[test]
    fn a_call_that_is_the_whole_run_is_what_its_parts_lie_in() {
        let spans = [span("client", 1, "Exec", 0, 9), numbered(1, None, "ExecSync", 0, 9)];
        let phases = median(&[Run::new(span("client", 1, "exec", 0, 9), &spans)]);
        assert_eq!(names(&phases), [(0, "exec"), (1, "Exec"), (2, "ExecSync")]);
    }

    #[test]
    fn the_middle_is_found() {
        assert!(p50(&mut []).abs() < f64::EPSILON);
        assert!((p50(&mut [3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((p50(&mut [4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
    }
}
