//! The ledger of the campaign: a line for each piece that ran, and what all of them come to.
//!
//! It is a Markdown table, because people read it, and it is only ever appended to. What a campaign still has to do,
//! and every total that is told elsewhere, follows from its lines. A piece counts only if its verdict is `valid` (or
//! `caught`, for a planted bug): what was void or violated stays in the ledger and has to be done again. Seeds of the
//! simulation in which too little happened are counted apart: `valid, 2 seeds apart` is a piece that counts, but for
//! those two.
//!
//! A ledger outlives what it tells of: lines of older code, judged by older checkers, prove nothing about what is there
//! now. A line `Counted from: COMMIT` outside of the table says where counting begins: at the first line of that
//! commit. What is above it stays as history. A commit that has no line yet lets nothing count.
//!
//! Lines of later commits count with those of the first, so that a ledger goes on while what is beside the product is
//! mended; [`Ledger::commits`] says of which commits they are.
//!
//! Where a piece has several loads or kinds of faults, its line has them apart, behind the numbers that they add up to:
//! `94000 (queue 23000, register 41000, ...)` operations and `67+3? (kill 40, pause 27)` faults.
//!
//! One campaign at a time writes to a ledger ([`Book`]). A line that was cut off by a kill ends without a line break:
//! it is not read, and removed before the next is written.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use crate::run::RunReport;

/// Numbers by name: operations by load, or faults by kind.
pub type Counts = BTreeMap<String, u64>;

const HEAD: &str = "\
# Ledger

What `make campaign` ran, a line a piece, in the order in which the pieces ended. `quorate-jepsen ledger` adds it up.
A piece names what of its kind it did: a range of items or seeds, a planted bug, or the nemeses of the chaos.

| when (UTC) | kind | piece | seed | commit | seconds | operations | faults | verdict |
|---|---|---|---|---|---|---|---|---|
";

/// What the line under the head of the table begins with.
const RULE: &str = "|---";
/// What the line begins with that names the commit from which on lines count.
const FROM: &str = "Counted from:";

/// What a piece belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// The 64 subsets of directed links of three nodes, under each of three leaders.
    Links,
    /// Power cuts of the whole cluster.
    Power,
    /// Damage to the files of one node.
    Corruption,
    /// All loads under overlapping faults.
    Chaos,
    /// Seeds of the simulation.
    Sim,
    /// Planted bugs that real processes must catch.
    Planted,
    /// Planted bugs that the simulation must catch.
    SimPlanted,
    /// Hours of load with a floor.
    Soak,
}

impl Kind {
    /// All kinds, in the order of the campaign.
    pub const ALL: [Kind; 8] = [
        Kind::Links,
        Kind::Power,
        Kind::Corruption,
        Kind::Chaos,
        Kind::Sim,
        Kind::Planted,
        Kind::SimPlanted,
        Kind::Soak,
    ];

    /// Its name in the ledger.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Links => "links",
            Kind::Power => "power",
            Kind::Corruption => "corruption",
            Kind::Chaos => "chaos",
            Kind::Sim => "sim",
            Kind::Planted => "planted",
            Kind::SimPlanted => "sim-planted",
            Kind::Soak => "soak",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Kind> {
        let found = Kind::ALL.into_iter().find(|kind| kind.name() == name);
        found.with_context(|| format!("{name:?} is no kind of the campaign: {}", Kind::ALL.map(Kind::name).join(", ")))
    }
}

/// A line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// When the piece ended, `YYYY-MM-DD HH:MM`.
    pub when: String,
    /// What it belongs to.
    pub kind: Kind,
    /// What of it: `0..24`, a name, ...
    pub piece: String,
    /// The seed, or the first one.
    pub seed: u64,
    /// The commit that was run, if it was told.
    pub commit: String,
    /// How long it took.
    pub seconds: u64,
    /// Operations that were checked.
    pub operations: u64,
    /// Those by load, where a line tells them apart.
    pub loads: Counts,
    /// Faults that were seen to bite.
    pub faults: u64,
    /// Those by kind, where a line tells them apart.
    pub kinds: Counts,
    /// Faults of which that could not be seen.
    pub indeterminate: u64,
    /// `valid`, `caught`, or what else.
    pub verdict: String,
}

impl Entry {
    /// The line of a piece of which nothing is known yet.
    #[must_use]
    pub fn blank(kind: Kind, piece: String, seed: u64, commit: &str) -> Entry {
        Entry {
            when: now(),
            kind,
            piece,
            seed,
            commit: commit.to_owned(),
            seconds: 0,
            operations: 0,
            loads: Counts::new(),
            faults: 0,
            kinds: Counts::new(),
            indeterminate: 0,
            verdict: String::new(),
        }
    }

    /// The line of a run that ended now.
    #[must_use]
    pub fn of(kind: Kind, piece: String, commit: &str, report: &RunReport) -> Entry {
        // Everywhere else the piece says what it is made of.
        let is_mixed = matches!(kind, Kind::Chaos | Kind::Soak);
        let struck = report.faults.iter().map(|(nemesis, struck)| (nemesis.clone(), struck.installed));
        let struck: Counts = struck.filter(|(_, installed)| *installed > 0).collect();
        Entry {
            seconds: report.seconds as u64,
            operations: report.operations,
            loads: if is_mixed { report.loads.clone() } else { Counts::new() },
            faults: report.installed(),
            kinds: if is_mixed { struck } else { Counts::new() },
            indeterminate: report.indeterminate(),
            verdict: report.words(),
            ..Entry::blank(kind, piece, report.seed, commit)
        }
    }

    /// Whether it counts.
    #[must_use]
    pub fn counts(&self) -> bool {
        matches!(self.verdict.as_str(), "valid" | "caught") || self.apart() > 0
    }

    /// How many seeds of a valid piece are counted apart.
    #[must_use]
    pub fn apart(&self) -> u64 {
        let told = self.verdict.strip_prefix("valid, ").and_then(|rest| rest.split(' ').next());
        told.and_then(|count| count.parse().ok()).unwrap_or(0)
    }

    /// Whether a promise was broken, or a planted bug not found.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        is_broken(&self.verdict)
    }

    /// Whether it is a line of that commit; either may be cut short. What was not committed is no commit.
    fn is_of(&self, commit: &str) -> bool {
        let is_known = !self.commit.is_empty() && !self.commit.ends_with("-dirty");
        is_known && (self.commit.starts_with(commit) || commit.starts_with(&self.commit))
    }

    /// The range of a piece that is one.
    #[must_use]
    pub fn range(&self) -> Option<Range<u64>> {
        let (from, to) = self.piece.split_once("..")?;
        Some(from.parse().ok()?..to.parse().ok()?)
    }

    fn line(&self) -> String {
        // A bar or a line break would end the cell.
        let clean = |text: &str| text.replace('|', "/").replace(['\n', '\r'], " ");
        format!(
            "| {} | {} | {} | {} | {} | {} | {}{} | {}{}{} | {} |\n",
            self.when,
            self.kind,
            clean(&self.piece),
            self.seed,
            clean(&self.commit),
            self.seconds,
            self.operations,
            apart(&self.loads),
            self.faults,
            if self.indeterminate > 0 { format!("+{}?", self.indeterminate) } else { String::new() },
            apart(&self.kinds),
            clean(&self.verdict)
        )
    }

    fn parse(line: &str) -> Result<Entry> {
        let cells: Vec<&str> = line.trim().trim_matches('|').split('|').map(str::trim).collect();
        let [when, kind, piece, seed, commit, seconds, operations, faults, verdict] = cells[..] else {
            bail!("it has {} cells, not 9", cells.len());
        };
        let number = |cell: &str| cell.parse::<u64>().with_context(|| format!("{cell:?} is no number"));
        let (operations, loads) = read_apart(operations)?;
        let (faults, kinds) = read_apart(faults)?;
        let (installed, indeterminate) = faults.split_once('+').unwrap_or((faults, "0"));
        Ok(Entry {
            when: when.to_owned(),
            kind: kind.parse()?,
            piece: piece.to_owned(),
            seed: number(seed)?,
            commit: commit.to_owned(),
            seconds: number(seconds)?,
            operations: number(operations)?,
            loads,
            faults: number(installed)?,
            kinds,
            indeterminate: number(indeterminate.trim_end_matches('?'))?,
            verdict: verdict.to_owned(),
        })
    }
}

/// Numbers by name behind the one that they add up to; nothing if there are none.
fn apart(counts: &Counts) -> String {
    let parts: Vec<String> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
    if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) }
}

/// What stands before the numbers by name, and those.
fn read_apart(cell: &str) -> Result<(&str, Counts)> {
    let Some((whole, rest)) = cell.split_once(" (") else { return Ok((cell, Counts::new())) };
    let pair = |part: &str| {
        let (name, count) = part.trim().rsplit_once(' ')?;
        Some((name.to_owned(), count.parse().ok()?))
    };
    let parts =
        rest.trim_end_matches(')').split(',').map(|part| pair(part).with_context(|| format!("{part:?} is no count")));
    Ok((whole, parts.collect::<Result<_>>()?))
}

/// Whether a verdict says that a promise was broken, or a planted bug not found. What a void one goes on to tell of the
/// violations of another run is not meant.
#[must_use]
pub fn is_broken(verdict: &str) -> bool {
    let counted = || verdict.split_once(' ').filter(|(count, _)| count.parse::<u64>().is_ok());
    verdict == "missed" || counted().is_some_and(|(_, what)| what.starts_with("violations"))
}

/// All lines of a ledger.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    /// In the order in which they were written.
    pub entries: Vec<Entry>,
    /// The commit from whose first line on they count; absent: all do.
    pub since: Option<String>,
}

/// What the lines of one kind come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Total {
    /// Lines.
    pub pieces: u64,
    /// Lines that count.
    pub counted: u64,
    /// Of those that count: how long they took.
    pub seconds: u64,
    /// Operations that were checked.
    pub operations: u64,
    /// Faults that bit.
    pub faults: u64,
    /// Faults of which that could not be seen.
    pub indeterminate: u64,
    /// Different items of their ranges, or different names.
    pub items: u64,
    /// Different names, whatever came of them.
    pub tried: u64,
    /// Seeds of the simulation in which too little happened; not among the items.
    pub apart: u64,
    /// Lines with violations, or planted bugs that were missed, that no later line makes good.
    pub violated: u64,
    /// Those that a later line makes good.
    pub mended: u64,
}

/// The verdict of seeds of which none broke a promise, `apart` of them counted apart.
#[must_use]
pub fn valid_but(apart: u64) -> String {
    match apart {
        0 => "valid".into(),
        1 => "valid, 1 seed apart".into(),
        more => format!("valid, {more} seeds apart"),
    }
}

impl Ledger {
    /// Reads a ledger; a file that is not there is an empty one.
    ///
    /// # Errors
    /// If a line of the table cannot be understood: the file was edited by hand, and must be mended by hand.
    pub fn read(path: &Path) -> Result<Ledger> {
        match std::fs::read(path) {
            Ok(text) => {
                Ledger::parse(&String::from_utf8_lossy(&text)).with_context(|| format!("reading {}", path.display()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Ledger::default()),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    fn parse(text: &str) -> Result<Ledger> {
        // A line without its end was cut off when the machine or the campaign was: what it told of is done again.
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        let since = whole.lines().find_map(|line| line.trim().strip_prefix(FROM));
        let since = since.map(|commit| commit.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned());
        let rows = whole.lines().enumerate().filter(|(_, line)| line.starts_with('|'));
        let entries = rows
            .skip_while(|(_, line)| !line.starts_with(RULE))
            .skip(1)
            .map(|(number, line)| Entry::parse(line).with_context(|| format!("line {}", number + 1)))
            .collect::<Result<_>>()?;
        Ok(Ledger { entries, since: since.filter(|commit| !commit.is_empty()) })
    }

    /// The lines that count towards anything, and those before them.
    fn split(&self) -> (&[Entry], &[Entry]) {
        let first = match &self.since {
            None => 0,
            Some(commit) => self.entries.iter().position(|entry| entry.is_of(commit)).unwrap_or(self.entries.len()),
        };
        let (before, counted) = self.entries.split_at(first);
        (counted, before)
    }

    /// The commits of the lines that count, in the order in which they came, with how many lines each has. Lines from the
    /// first one of the named commit on count whatever they are of, so it has to be seen of what.
    #[must_use]
    pub fn commits(&self) -> Vec<(&str, u64)> {
        let mut commits: Vec<(&str, u64)> = Vec::new();
        for entry in self.split().0.iter().filter(|entry| entry.counts()) {
            match commits.iter_mut().find(|(commit, _)| *commit == entry.commit) {
                Some((_, lines)) => *lines += 1,
                None => commits.push((&entry.commit, 1)),
            }
        }
        commits
    }

    /// What the lines of a kind that count tell apart: operations by load, and faults by kind.
    #[must_use]
    pub fn apart(&self, kind: Kind) -> (Counts, Counts) {
        let (mut loads, mut kinds) = (Counts::new(), Counts::new());
        for entry in self.of(kind).filter(|entry| entry.counts()) {
            for (sum, counts) in [(&mut loads, &entry.loads), (&mut kinds, &entry.kinds)] {
                counts.iter().for_each(|(name, count)| *sum.entry(name.clone()).or_default() += count);
            }
        }
        (loads, kinds)
    }

    /// The lines of a kind that are not history.
    pub fn of(&self, kind: Kind) -> impl DoubleEndedIterator<Item = &Entry> {
        self.split().0.iter().filter(move |entry| entry.kind == kind)
    }

    /// How many lines of a kind are history.
    #[must_use]
    pub fn before(&self, kind: Kind) -> u64 {
        self.split().1.iter().filter(|entry| entry.kind == kind).count() as u64
    }

    /// The items that are done of a kind whose pieces are ranges.
    #[must_use]
    pub fn done(&self, kind: Kind) -> BTreeSet<u64> {
        self.of(kind).filter(|entry| entry.counts()).filter_map(Entry::range).flatten().collect()
    }

    /// The names that are done of a kind whose pieces are names.
    #[must_use]
    pub fn names(&self, kind: Kind) -> BTreeSet<&str> {
        self.of(kind).filter(|entry| entry.counts()).map(|entry| entry.piece.as_str()).collect()
    }

    /// What the lines of a kind come to.
    #[must_use]
    pub fn total(&self, kind: Kind) -> Total {
        let mut total = Total::default();
        // From the end, so that what makes a line good has been seen before it.
        let mut later: Vec<&Entry> = Vec::new();
        for entry in self.of(kind).rev() {
            total.pieces += 1;
            if entry.is_broken() {
                let is_mended = makes_good(&later, entry);
                total.mended += u64::from(is_mended);
                total.violated += u64::from(!is_mended);
            }
            if entry.counts() {
                total.counted += 1;
                total.apart += entry.apart();
                total.seconds += entry.seconds;
                total.operations += entry.operations;
                total.faults += entry.faults;
                total.indeterminate += entry.indeterminate;
                later.push(entry);
            }
        }
        let ranges = self.done(kind).len() as u64;
        total.items = if ranges > 0 { ranges.saturating_sub(total.apart) } else { self.names(kind).len() as u64 };
        total.tried = self.tried(kind).len() as u64;
        total
    }

    /// The names of a kind that had a piece, whatever came of it; void ones say nothing.
    #[must_use]
    pub fn tried(&self, kind: Kind) -> BTreeSet<&str> {
        let told = self.of(kind).filter(|entry| entry.counts() || entry.is_broken());
        told.map(|entry| entry.piece.as_str()).collect()
    }
}

/// Whether lines that count, all later than a broken one, cover what it did: the same items, run by changed code, for
/// the same items once more prove nothing about what the first time found; or the same planted bug, which any seed may
/// catch. What only chance repeats, such as a piece of chaos, is never made good.
fn makes_good(later: &[&Entry], broken: &Entry) -> bool {
    match broken.kind {
        Kind::Links | Kind::Sim => {
            let Some(range) = broken.range() else { return false };
            // Of links of which not even the first one was cut, that one must be.
            let wanted = range.start..range.end.max(range.start + 1);
            let changed = later.iter().filter(|entry| entry.commit != broken.commit).filter_map(|entry| entry.range());
            let covered: Vec<_> = changed.collect();
            wanted.into_iter().all(|item| covered.iter().any(|range| range.contains(&item)))
        }
        Kind::Planted | Kind::SimPlanted => later.iter().any(|entry| entry.piece == broken.piece),
        Kind::Power | Kind::Corruption | Kind::Chaos | Kind::Soak => false,
    }
}

/// The right to write to a ledger.
#[derive(Debug)]
pub struct Book {
    path: PathBuf,
    _lock: File,
}

impl Book {
    /// Takes it, until this is dropped. The file is made if it is not there.
    ///
    /// # Errors
    /// If another campaign has it, or the file cannot be written.
    pub fn open(path: &Path) -> Result<Book> {
        let lock = append_to(path)?;
        match lock.try_lock() {
            Ok(()) => Ok(Book { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => bail!("another campaign or soak writes to {}", path.display()),
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("locking {}", path.display())),
        }
    }

    /// Reads what is there.
    ///
    /// # Errors
    /// As [`Ledger::read`].
    pub fn read(&self) -> Result<Ledger> {
        Ledger::read(&self.path)
    }

    /// Appends a line, durably.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn append(&self, entry: &Entry) -> Result<()> {
        // By its name each time: a version control that writes the file anew must not get the lines of the old one.
        let mut file = append_to(&self.path)?;
        let mut text = Vec::new();
        file.seek(SeekFrom::Start(0))?;
        file.read_to_end(&mut text)?;
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        if whole < text.len() {
            file.set_len(whole as u64)?;
        }
        let has_head = String::from_utf8_lossy(&text[..whole]).lines().any(|line| line.starts_with(RULE));
        let head = if has_head { "" } else { HEAD };
        file.write_all(format!("{head}{}", entry.line()).as_bytes())?;
        file.sync_all().with_context(|| format!("writing {}", self.path.display()))
    }
}

fn append_to(path: &Path) -> Result<File> {
    Ok(fs_err::OpenOptions::new().create(true).read(true).append(true).open(path)?.into_parts().0)
}

/// The first gap of what is done, at most `most` long, below `end`; `None` if there is none.
#[must_use]
pub fn gap(done: &BTreeSet<u64>, end: u64, most: u64) -> Option<Range<u64>> {
    let from = (0..end).find(|item| !done.contains(item))?;
    let to = (from..end).take(usize::try_from(most).unwrap_or(usize::MAX)).find(|item| done.contains(item));
    Some(from..to.unwrap_or((from + most).min(end)))
}

/// The time now, `YYYY-MM-DD HH:MM`, in UTC.
#[must_use]
pub fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    date(seconds)
}

/// Days are counted from March, so that the leap day is the last of its year.
fn date(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}", rest / 3_600, rest % 3_600 / 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: Kind, piece: &str, verdict: &str) -> Entry {
        Entry {
            when: "2026-01-02 03:04".into(),
            seconds: 60,
            operations: 1_000,
            faults: 20,
            verdict: verdict.into(),
            ..Entry::blank(kind, piece.into(), 9, "abc1234")
        }
    }

    fn at(commit: &str, entry: Entry) -> Entry {
        Entry { commit: commit.into(), ..entry }
    }

    fn of(entries: Vec<Entry>) -> Ledger {
        Ledger { entries, since: None }
    }

    #[test]
    fn only_lines_from_the_named_commit_on_count() {
        let lines = [
            at("aaa1111", entry(Kind::Sim, "0..25", "1 violations: x")),
            at("aaa1111", entry(Kind::Links, "0..32", "valid")),
            at("bbb2222-dirty", entry(Kind::Links, "32..64", "valid")),
            at("bbb2222", entry(Kind::Links, "64..96", "valid")),
            at("ccc3333", entry(Kind::Links, "96..128", "valid")),
        ];
        let text = |since: &str| {
            let lines: String = lines.iter().map(Entry::line).collect();
            let head = HEAD.replace("\n| when", &format!("\n{since}\n\n| when"));
            Ledger::parse(&format!("{head}{lines}")).expect("readable")
        };
        let ledger = text("Counted from: `bbb2222abcdef`.");
        assert_eq!((ledger.entries.len(), ledger.since.as_deref()), (5, Some("bbb2222abcdef")));
        assert_eq!(ledger.done(Kind::Links), (64..128).collect());
        assert_eq!((ledger.before(Kind::Links), ledger.before(Kind::Sim)), (2, 1));
        assert_eq!((ledger.total(Kind::Links).pieces, ledger.total(Kind::Sim)), (2, Total::default()));
        assert_eq!(ledger.commits(), [("bbb2222", 1), ("ccc3333", 1)], "and it is said of what");
        assert_eq!(text("").done(Kind::Links).len(), 128);
        let ahead = text("Counted from: ddd4444");
        assert_eq!((ahead.done(Kind::Links).len(), ahead.before(Kind::Links)), (0, 4), "it has no line yet");
    }

    #[test]
    fn a_violation_is_open_until_changed_code_covers_its_items() {
        let broken = at("aaa1111", entry(Kind::Sim, "25..50", "1 violations: x"));
        let violated = |later: &[(&str, &str, &str)]| {
            let later = later.iter().map(|(commit, piece, verdict)| at(commit, entry(Kind::Sim, piece, verdict)));
            let total = of([broken.clone()].into_iter().chain(later).collect()).total(Kind::Sim);
            (total.violated, total.mended)
        };
        assert_eq!(violated(&[]), (1, 0));
        assert_eq!(violated(&[("bbb2222", "25..50", "valid")]), (0, 1));
        assert_eq!(violated(&[("bbb2222", "0..40", "valid"), ("bbb2222", "40..60", &valid_but(1))]), (0, 1));
        assert_eq!(violated(&[("bbb2222", "0..40", "valid")]), (1, 0), "not all of it");
        assert_eq!(violated(&[("bbb2222", "25..50", "void: x")]), (1, 0));
        assert_eq!(violated(&[("aaa1111", "25..50", "valid")]), (1, 0), "nothing was changed");
        let early = vec![at("bbb2222", entry(Kind::Sim, "25..50", "valid")), broken];
        assert_eq!(of(early).total(Kind::Sim).violated, 1, "what was before it shows nothing");
        let chaos = ["1 violations: x", "valid"].map(|verdict| entry(Kind::Chaos, "chaos+kill", verdict));
        assert_eq!(of(chaos.to_vec()).total(Kind::Chaos).violated, 1);
        let planted = ["missed", "caught"].map(|verdict| entry(Kind::Planted, "stale-read", verdict));
        assert_eq!(of(planted.to_vec()).total(Kind::Planted).mended, 1);
    }

    #[test]
    fn what_a_void_piece_tells_of_violations_is_none() {
        let verdict = |verdict: &str| entry(Kind::Planted, "stale-read", verdict).is_broken();
        assert!(verdict("missed") && verdict("1 violations: x") && verdict("12 violations: 3 violations"));
        assert!(!verdict("void: without the bug: 3 violations: y") && !verdict("valid") && !verdict("x violations"));
    }

    #[test]
    fn faults_that_could_not_be_seen_are_told_beside_the_others() {
        let unseen = Entry { indeterminate: 5, ..entry(Kind::Corruption, "20 faults", "valid") };
        assert!(unseen.line().contains("| 20+5? |"), "{}", unseen.line());
        assert_eq!(Entry::parse(&unseen.line()).expect("readable"), unseen);
        let total = of(vec![unseen, entry(Kind::Corruption, "20 faults", "valid")]).total(Kind::Corruption);
        assert_eq!((total.faults, total.indeterminate), (40, 5));
    }

    #[test]
    fn what_a_line_tells_apart_is_read_again_and_added_up() {
        let counts = |pairs: &[(&str, u64)]| pairs.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        let line = |loads: &[(&str, u64)], kinds: &[(&str, u64)]| Entry {
            loads: counts(loads),
            kinds: counts(kinds),
            indeterminate: 5,
            ..entry(Kind::Chaos, "chaos+kill", "valid")
        };
        let first = line(&[("queue", 400), ("register", 600)], &[("kill", 12), ("power-cut-all", 8)]);
        assert!(first.line().contains("| 1000 (queue 400, register 600) | 20+5? (kill 12, power-cut-all 8) |"));
        assert_eq!(Entry::parse(&first.line()).expect("readable"), first);
        assert!(Entry::parse(&first.line().replace("kill 12", "kill")).is_err());
        let void = Entry { verdict: "void: x".into(), ..first.clone() };
        let ledger = of(vec![first, void, line(&[("queue", 1)], &[("kill", 1)]), entry(Kind::Chaos, "x", "valid")]);
        let (loads, kinds) = ledger.apart(Kind::Chaos);
        assert_eq!(loads, counts(&[("queue", 401), ("register", 600)]));
        assert_eq!(kinds, counts(&[("kill", 13), ("power-cut-all", 8)]));
    }

    #[test]
    fn what_was_appended_is_read_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("LEDGER.md");
        assert_eq!(Ledger::read(&path).expect("none is empty"), Ledger::default());
        let entries = [entry(Kind::Links, "0..24", "valid"), entry(Kind::Planted, "stale-read", "caught")];
        let book = Book::open(&path).expect("nobody has it");
        for entry in &entries {
            book.append(entry).expect("writable");
        }
        assert_eq!(Ledger::read(&path).expect("readable").entries, entries);
    }

    #[test]
    fn a_line_that_was_cut_off_is_not_read_and_makes_room_for_the_next() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("LEDGER.md");
        let book = Book::open(&path).expect("nobody has it");
        let (first, second) = (entry(Kind::Links, "0..24", "valid"), entry(Kind::Links, "24..48", "valid"));
        book.append(&first).expect("writable");
        let whole = std::fs::read_to_string(&path).expect("readable");
        for cut in 1..second.line().len() {
            std::fs::write(&path, format!("{whole}{}", &second.line()[..cut])).expect("writable");
            assert_eq!(book.read().expect("readable").entries, std::slice::from_ref(&first), "cut at {cut}");
            book.append(&second).expect("writable");
            assert_eq!(book.read().expect("readable").entries, [first.clone(), second.clone()], "cut at {cut}");
        }
        std::fs::write(&path, &HEAD[..HEAD.len() / 2]).expect("writable");
        book.append(&first).expect("writable");
        assert_eq!(book.read().expect("readable").entries.len(), 1, "of a head that was cut off");
    }

    #[test]
    fn one_campaign_at_a_time_writes() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("LEDGER.md");
        let book = Book::open(&path).expect("nobody has it");
        let refused = Book::open(&path).expect_err("it is taken");
        assert!(refused.to_string().contains("another campaign"), "{refused}");
        drop(book);
        Book::open(&path).expect("nobody has it any more");
    }

    #[test]
    fn seeds_apart_do_not_void_their_piece_and_are_no_items() {
        let ledger = of(vec![
            entry(Kind::Sim, "0..25", &valid_but(1)),
            entry(Kind::Sim, "25..50", &valid_but(0)),
            entry(Kind::Sim, "50..75", &valid_but(3)),
            entry(Kind::Sim, "75..100", "2 violations: x"),
        ]);
        assert_eq!(ledger.done(Kind::Sim), (0..75).collect());
        let total = ledger.total(Kind::Sim);
        assert_eq!((total.items, total.apart, total.counted, total.violated), (71, 4, 3, 1));
    }

    #[test]
    fn a_bar_in_a_cell_does_not_break_the_table() {
        let odd = entry(Kind::Chaos, "a|b", "2 violations: x|\ny");
        let read = Entry::parse(&odd.line()).expect("readable");
        assert_eq!((read.piece.as_str(), read.verdict.as_str()), ("a/b", "2 violations: x/ y"));
    }

    #[test]
    fn a_line_that_is_none_is_told_with_its_number() {
        let error = Ledger::parse(&format!("{HEAD}| x | links |\n")).expect_err("two cells");
        assert!(format!("{error:#}").contains("line 8: it has 2 cells"), "{error:#}");
        let error =
            Ledger::parse(&format!("{HEAD}{}", entry(Kind::Sim, "0..1", "valid").line().replace("| 9 |", "| z |")));
        assert!(format!("{:#}", error.expect_err("no number")).contains("\"z\" is no number"));
    }

    #[test]
    fn only_what_is_valid_counts() {
        let ledger = of(vec![
            entry(Kind::Links, "0..24", "valid"),
            entry(Kind::Links, "24..48", "void: it was interrupted"),
            entry(Kind::Links, "20..30", "valid"),
            entry(Kind::Links, "48..50", "1 violations: lost"),
            entry(Kind::Planted, "stale-read", "caught"),
            entry(Kind::Planted, "stale-token", "missed"),
        ]);
        assert_eq!(ledger.done(Kind::Links), (0..30).collect());
        let total = ledger.total(Kind::Links);
        assert_eq!((total.pieces, total.counted, total.items, total.operations, total.violated), (4, 2, 30, 2_000, 1));
        assert_eq!(ledger.names(Kind::Planted), BTreeSet::from(["stale-read"]));
        assert_eq!((ledger.total(Kind::Planted).items, ledger.total(Kind::Planted).violated), (1, 1));
        assert_eq!(ledger.total(Kind::Soak), Total::default());
    }

    #[test]
    fn the_next_piece_is_the_first_gap() {
        assert_eq!(gap(&BTreeSet::new(), 10, 4), Some(0..4));
        assert_eq!(gap(&(0..4).collect(), 10, 4), Some(4..8));
        assert_eq!(gap(&[0, 1, 3].into(), 10, 4), Some(2..3));
        assert_eq!(gap(&(0..9).collect(), 10, 4), Some(9..10));
        assert_eq!(gap(&(0..10).collect(), 10, 4), None);
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01 00:00");
        assert_eq!(date(951_782_400), "2000-02-29 00:00");
        assert_eq!(date(1_735_689_599), "2024-12-31 23:59");
        assert_eq!(date(1_772_323_200), "2026-03-01 00:00");
    }
}
