//! The four plots of a page.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap},
    fmt::Write as _,
};

use super::{
    Mark,
    canvas::{Axis, LEFT, WIDTH, colour, escape, plot, time},
};
use crate::event::{Fault, Injection, Micros, Phase};

/// Up to how many operations each has a shape of its own.
const EACH: usize = 1_500;
/// Up to how many faults each has a shape of its own; more are merged where they would stand in the same place.
const FAULTS: usize = 1_000;
/// How many rows the timeline has at most; further processes share the last.
const ROWS: usize = 60;
const ROW_HEIGHT: u32 = 9;

const OUTCOMES: [(Phase, &str); 3] = [(Phase::Ok, "ok"), (Phase::Fail, "fail"), (Phase::Info, "info")];

fn class(phase: Phase) -> &'static str {
    OUTCOMES.iter().find(|(outcome, _)| *outcome == phase).map_or("info", |(_, class)| class)
}

/// Faults that were seen to bite, or may have, without those that stand where another of the nemesis does already.
fn shown<'a>(axis: &Axis, faults: &'a [Fault]) -> Vec<(u32, u32, &'a Fault)> {
    let mut seen = BTreeSet::new();
    let struck = faults.iter().filter(|fault| fault.injection != Injection::Skipped);
    let columns = struck.map(|fault| (axis.column(fault.from), axis.column(fault.to), fault));
    let mut shown: Vec<_> = columns.filter(|(from, to, fault)| seen.insert((*from, *to, &fault.nemesis))).collect();
    if shown.len() > FAULTS {
        // The longest ones say most.
        shown.sort_by_key(|(from, to, _)| Reverse(to - from));
        shown.truncate(FAULTS);
    }
    shown
}

/// The faults, a row for each nemesis.
pub(super) fn faults(axis: &Axis, faults: &[Fault]) -> String {
    let names: BTreeSet<&str> = faults.iter().map(|fault| fault.nemesis.as_str()).collect();
    let rows: BTreeMap<&str, u32> = names.into_iter().zip(0..).collect();
    let mut content = String::new();
    for (name, row) in &rows {
        write!(content, "<text x=\"4\" y=\"{}\">{}</text>", row * 14 + 11, escape(name))
            .expect("writing to a string does not fail");
    }
    for (from, to, fault) in shown(axis, faults) {
        write!(
            content,
            "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"10\" style=\"fill:{}\"><title>{} {} {} to {} {:?} {}</title></rect>",
            LEFT + from,
            rows[fault.nemesis.as_str()] * 14 + 2,
            (to - from).max(2),
            colour(&fault.nemesis, fault.injection),
            escape(&fault.nemesis),
            escape(&fault.kind),
            time(fault.from),
            time(fault.to),
            fault.injection,
            escape(&fault.detail.chars().take(120).collect::<String>())
        )
        .expect("writing to a string does not fail");
    }
    let height = u32::try_from(rows.len()).unwrap_or(0) * 14 + 2;
    plot(axis, &format!("faults: {}", faults.len()), height, &content)
}

/// The shade of the faults, as high as any plot.
pub(super) fn shades(axis: &Axis, faults: &[Fault]) -> String {
    // One path for each nemesis keeps it small, and what overlaps within one is not darker.
    let mut paths: BTreeMap<&str, String> = BTreeMap::new();
    for (from, to, fault) in shown(axis, faults) {
        let path = paths.entry(&fault.nemesis).or_default();
        write!(path, "M{} 0h{}v700h-{1}z", LEFT + from, (to - from).max(1)).expect("writing to a string does not fail");
    }
    let mut shades = String::new();
    for (nemesis, path) in paths {
        write!(
            shades,
            "<path style=\"fill:{};fill-opacity:.16;stroke:none\" d=\"{path}\"><title>{}</title></path>",
            colour(nemesis, Injection::Installed),
            escape(nemesis)
        )
        .expect("writing to a string does not fail");
    }
    shades
}

/// Cuts the shades at the height of a plot.
fn shaded(shades: &str, height: u32) -> String {
    let width = LEFT + WIDTH;
    format!("<svg x=\"0\" y=\"0\" width=\"{width}\" height=\"{height}\">{shades}</svg>")
}

/// Operations by process, coloured by outcome.
///
/// A process whose operation ended as unknown goes on under a new number, so a row is for processes one after the other.
pub(super) fn timeline(axis: &Axis, marks: &[Mark<'_>], shades: &str) -> String {
    let rows = rows(axis, marks);
    let used = rows.values().max().map_or(1, |last| last + 1);
    let height = u32::try_from(used).unwrap_or(1) * ROW_HEIGHT;
    let mut content = shaded(shades, height);
    if marks.len() <= EACH {
        for mark in marks {
            let row = u32::try_from(rows[&mark.span.process()]).unwrap_or(0);
            let (from, to) = (axis.column(mark.from), axis.column(mark.to));
            let answer = format!("{:?} {:?} {}", mark.outcome, mark.span.operation(), time(mark.to - mark.from));
            write!(
                content,
                "<rect class=\"{}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"><title>process {} at {}: {}</title></rect>",
                class(mark.outcome),
                LEFT + from,
                row * ROW_HEIGHT + 1,
                (to - from).max(1),
                ROW_HEIGHT - 2,
                mark.span.process(),
                time(mark.from),
                escape(&answer)
            )
            .expect("writing to a string does not fail");
        }
    } else {
        content.push_str(&columns(axis, marks, &rows, used));
    }
    plot(axis, &format!("operations by process: {}", marks.len()), height, &content)
}

/// A row for each process: the first one that is free again when the process begins.
fn rows(axis: &Axis, marks: &[Mark<'_>]) -> HashMap<u64, usize> {
    let mut lives: BTreeMap<u64, (Micros, Micros)> = BTreeMap::new();
    for mark in marks {
        // What never answered is drawn, but its process is done with it: the worker went on under another number.
        let to = if mark.span.ended.is_some() { mark.to } else { mark.from };
        let life = lives.entry(mark.span.process()).or_insert((mark.from, to));
        life.1 = life.1.max(to);
    }
    let mut by_beginning: Vec<_> = lives.into_iter().map(|(process, (from, to))| (from, process, to)).collect();
    by_beginning.sort_unstable();
    let mut busy: BinaryHeap<Reverse<(u32, usize)>> = BinaryHeap::new();
    let mut free: BTreeSet<usize> = BTreeSet::new();
    let mut next = 0;
    let mut rows = HashMap::new();
    for (from, process, to) in by_beginning {
        while let Some(&Reverse((until, row))) = busy.peek() {
            if until > axis.column(from) {
                break;
            }
            busy.pop();
            free.insert(row);
        }
        let row = free.pop_first().unwrap_or_else(|| {
            next += 1;
            next - 1
        });
        busy.push(Reverse((axis.column(to), row)));
        rows.insert(process, row.min(ROWS - 1));
    }
    rows
}

/// Many operations: in each row and column of pixels the worst outcome, and runs of the same one as one stroke.
fn columns(axis: &Axis, marks: &[Mark<'_>], rows: &HashMap<u64, usize>, used: usize) -> String {
    let width = usize::try_from(WIDTH).expect("a width fits memory");
    let mut cells: Vec<Option<Phase>> = vec![None; used * width];
    let rank = |phase: Option<Phase>| match phase {
        None | Some(Phase::Invoke) => 0,
        Some(Phase::Ok) => 1,
        Some(Phase::Fail) => 2,
        Some(Phase::Info) => 3,
    };
    for mark in marks {
        // What is unknown would cover the row to its end; where it began is what tells.
        let to = if mark.span.ended.is_some() { mark.to } else { mark.from };
        let row = rows[&mark.span.process()] * width;
        for column in axis.column(mark.from)..=axis.column(to) {
            let cell = &mut cells[row + usize::try_from(column).expect("a column fits memory")];
            if rank(Some(mark.outcome)) > rank(*cell) {
                *cell = Some(mark.outcome);
            }
        }
    }
    let mut paths: HashMap<Phase, String> = HashMap::new();
    for (row, cells) in (0_u32..).zip(cells.chunks(width)) {
        let mut column = LEFT;
        for run in cells.chunk_by(|a, b| a == b) {
            let length = u32::try_from(run.len()).expect("a run is no longer than the width");
            if let Some(phase) = run[0] {
                write!(paths.entry(phase).or_default(), "M{column} {}h{length}", row * ROW_HEIGHT + ROW_HEIGHT / 2)
                    .expect("writing to a string does not fail");
            }
            column += length;
        }
    }
    strokes(&paths, ROW_HEIGHT - 2)
}

fn strokes(paths: &HashMap<Phase, String>, width: u32) -> String {
    let mut content = String::new();
    for (phase, class) in OUTCOMES {
        if let Some(path) = paths.get(&phase) {
            write!(content, "<path class=\"{class}\" stroke-width=\"{width}\" d=\"{path}\"/>")
                .expect("writing to a string does not fail");
        }
    }
    content
}

/// Latencies as points, from 10 microseconds to 100 seconds on a logarithmic scale.
pub(super) fn latency(axis: &Axis, marks: &[Mark<'_>], shades: &str) -> String {
    const DECADES: u32 = 7;
    const DECADE: u32 = 48;
    let height = DECADES * DECADE;
    let mut points: HashMap<Phase, BTreeSet<(u32, u32)>> = HashMap::new();
    let mut content = shaded(shades, height);
    for mark in marks.iter().filter(|mark| mark.span.ended.is_some() && !mark.span.is_instant()) {
        let y = height - rise(mark.to - mark.from, DECADE).min(height);
        points.entry(mark.outcome).or_default().insert((LEFT + axis.column(mark.to) / 2 * 2, y / 2 * 2));
    }
    for (n, label) in (0_u32..).zip(["10 µs", "100 µs", "1 ms", "10 ms", "100 ms", "1 s", "10 s", "100 s"]) {
        let y = height - n * DECADE;
        write!(
            content,
            "<path class=\"grid\" d=\"M{LEFT} {y}h{WIDTH}\"/><text x=\"{}\" y=\"{}\">{label}</text>",
            LEFT - 50,
            y + 4
        )
        .expect("writing to a string does not fail");
    }
    let paths = points.into_iter().map(|(phase, points)| (phase, path_of(&points))).collect();
    content.push_str(&strokes(&paths, 2));
    plot(axis, "latency by end", height, &content)
}

/// A path of dashes on a grid of two pixels; neighbours in a row are one dash.
fn path_of(points: &BTreeSet<(u32, u32)>) -> String {
    let mut by_row: Vec<(u32, u32)> = points.iter().map(|&(x, y)| (y, x)).collect();
    by_row.sort_unstable();
    let mut path = String::new();
    for run in by_row.chunk_by(|a, b| a.0 == b.0 && a.1 + 2 == b.1) {
        write!(path, "M{} {}h{}", run[0].1, run[0].0, 2 * run.len()).expect("writing to a string does not fail");
    }
    path
}

/// How high a latency is: `decade` pixels for each power of ten above 10 microseconds.
fn rise(latency: Micros, decade: u32) -> u32 {
    #[expect(clippy::cast_precision_loss, reason = "a pixel needs no more than 52 bits")]
    let rise = (latency.max(10) as f64 / 10.0).log10() * f64::from(decade);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 18 decades, and not negative")]
    {
        rise as u32
    }
}

/// How many operations ended a second, by outcome.
pub(super) fn rate(axis: &Axis, marks: &[Mark<'_>], shades: &str) -> String {
    const HEIGHT: u32 = 160;
    const BUCKETS: u32 = 300;
    let mut ended: HashMap<Phase, Vec<u64>> = HashMap::new();
    for mark in marks.iter().filter(|mark| mark.span.ended.is_some()) {
        let bucket = axis.column(mark.to) * BUCKETS / WIDTH;
        let counts =
            ended.entry(mark.outcome).or_insert_with(|| vec![0; usize::try_from(BUCKETS).expect("a few hundred")]);
        counts[usize::try_from(bucket).expect("a few hundred")] += 1;
    }
    let most = ended.values().flatten().copied().max().unwrap_or(0).max(1);
    let paths = ended.iter().map(|(phase, counts)| {
        let points = (0_u32..).zip(counts).map(|(bucket, &count)| {
            let rise = u32::try_from(count * u64::from(HEIGHT) / most).expect("no higher than the plot");
            format!("{} {}", LEFT + bucket * WIDTH / BUCKETS, HEIGHT - rise)
        });
        (*phase, format!("M{}", points.collect::<Vec<_>>().join("L")))
    });
    let mut content = shaded(shades, HEIGHT);
    content.push_str(&strokes(&paths.collect(), 1));
    let a_second = u128::from(most) * u128::from(BUCKETS) * 1_000_000 / u128::from(axis.end());
    write!(
        content,
        "<text x=\"{}\" y=\"10\">{a_second}/s</text><text x=\"{}\" y=\"{HEIGHT}\">0</text>",
        LEFT - 70,
        LEFT - 20
    )
    .expect("writing to a string does not fail");
    plot(axis, "operations ended a second", HEIGHT, &content)
}
