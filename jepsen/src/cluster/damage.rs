//! Damage to the files of a node: bits flipped, blocks zeroed, files cut short or deleted.

use std::collections::BTreeSet;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Cluster;
use super::living::{self, Living};

/// The classes of files that can be damaged, and what they hold.
pub const CLASSES: &[(&str, &str)] = &[
    ("wal", "the write-ahead log of the log database"),
    ("log-sst", "sorted tables of the log database"),
    ("log-manifest", "the manifest of the log database"),
    ("log-current", "which manifest of the log database counts"),
    ("floor", "the file of last synced positions and votes"),
    ("identity", "who the node is (one copy of it)"),
    ("identities", "who the node is (both copies of it)"),
    ("state-sst", "sorted tables of a state database, those among them that a checkpoint has by another name"),
    ("state-manifest", "the manifest of a state database"),
    ("state-current", "which manifest of a state database counts"),
    ("state", "a whole state database, deleted"),
    ("checkpoint", "files of a confirmed checkpoint that no database has too"),
    ("index", "files of a vector index"),
];

/// Damaged only if it is asked for: the node must not start.
const NAMED_ONLY: &str = "identities";
/// What a scrub reads back while the node runs, and nobody writes anew meanwhile: so it can be taken back.
const SCRUBBED: [&str; 2] = ["log-sst", "state-sst"];
/// The copies of a node's identity.
const IDENTITIES: [&str; 2] = ["identity.json", "identity-copy.json"];
/// A checkpoint that outlives its process has a file of this ending beside it.
const MARKER: &str = "confirmed";

const BLOCK: usize = 4096;
/// Under which names a node counts the replicas that it took out of service, and those that are in their place.
const COUNTERS: [&str; 2] = ["quorate_replicas_quarantined_total", "quorate_replicas_healed_total"];
/// And how often its scrub has read all logs, and all states.
const PASSES: [&str; 2] = ["quorate_scrub_passes_total{part=\"log\"}", "quorate_scrub_passes_total{part=\"state\"}"];
/// How long a node may take to tell its metrics.
const ASK: Duration = Duration::from_secs(3);

/// What was done to which file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The class of the file.
    pub class: &'static str,
    /// `flip`, `zero`, `truncate` or `delete`.
    pub how: &'static str,
    /// The file or folder, below the data directory.
    pub path: PathBuf,
    /// Offsets and lengths, for people.
    pub detail: String,
    /// When the node must say that it has noticed.
    pub notice: Notice,
    /// The records of the log that were hurt, with their groups.
    records: Vec<(u32, u64)>,
    /// What a table was before: nobody else writes to one, so the damage can be taken back.
    before: Option<Table>,
}

/// When a node must have noticed damage. Silence after that is no chance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// When it has started: it had in use what was hurt, and reads it then.
    AtStart,
    /// When its scrub has read everything.
    AtScrub,
    /// Perhaps never: nothing that it needs may lie there.
    Perhaps,
}

/// A table as it was.
#[derive(Clone, PartialEq, Eq)]
struct Table {
    inode: u64,
    bytes: Vec<u8>,
    /// What was made of it.
    after: Vec<u8>,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes of inode {}", self.bytes.len(), self.inode)
    }
}

/// What may be done to a file of a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Means {
    Any,
    /// The bytes are another file's too, and its name is not to go alone.
    InPlace,
    /// The bytes belong to another class; the name does not.
    Delete,
    /// A folder, deleted with all that is in it.
    Whole,
    /// All copies of the identity, cut in half.
    Identities,
}

type Target = (&'static str, PathBuf, Means);

impl Damage {
    /// A file of a class that was deleted.
    #[cfg(test)]
    pub fn example(class: &'static str, notice: Notice) -> Damage {
        let (path, detail) = (class.into(), String::new());
        Damage { class, how: "delete", path, detail, notice, records: Vec::new(), before: None }
    }

    /// Whether it is damage to the bytes of a table, which stays until somebody reads them.
    pub fn is_of_table(&self) -> bool {
        self.before.is_some()
    }
}

impl Cluster {
    /// Damages one file of a node that does not run, of a class of [`CLASSES`] or of any. `None`: it has no such file.
    /// What was done was seen in the file afterwards.
    pub fn damage(&self, node: usize, class: Option<&str>, dice: &mut StdRng) -> Result<Option<Damage>> {
        ensure!(!self.is_running(node), "files are damaged while the node is down");
        let is_wanted = |found: &str| class.map_or(found != NAMED_ONLY, |class| class == found);
        let damage = damage(&self.data_dir(node), is_wanted, false, dice)?;
        if damage.is_some() {
            self.note_damage(node);
        }
        Ok(damage)
    }

    /// Damages one file of a node that runs, of those that its scrub reads back. `None`: it has no such file, or has
    /// just removed the one that was drawn.
    pub fn damage_running(&self, node: usize, dice: &mut StdRng) -> Result<Option<Damage>> {
        // It may end over it at once.
        self.note_damage(node);
        match damage(&self.data_dir(node), |found| SCRUBBED.contains(&found), true, dice) {
            Err(error) if is_gone(&error) => Ok(None),
            // All of it is read by the scrub, and nothing by a start.
            done => Ok(done?.map(|damage| match damage.notice {
                Notice::Perhaps => damage,
                Notice::AtStart | Notice::AtScrub => Damage { notice: Notice::AtScrub, ..damage },
            })),
        }
    }

    /// Deletes the log database of a node that does not run: it forgets what it has acknowledged and for whom it voted,
    /// and its floor says so.
    pub fn lose_log(&self, node: usize) -> Result<()> {
        ensure!(!self.is_running(node), "files are damaged while the node is down");
        let log = self.data_dir(node).join("log");
        fs_err::remove_dir_all(&log)?;
        ensure!(!log.exists(), "{} was deleted and is still there", log.display());
        self.note_damage(node);
        Ok(())
    }

    /// Takes damage to a table back, where the table is still there with that damage. False if there is nothing to take
    /// back.
    pub fn undo_damage(&self, node: usize, damage: &Damage) -> Result<bool> {
        ensure!(!self.is_running(node), "files are mended while the node is down");
        undo(&self.data_dir(node), damage)
    }

    /// Whether a checkpoint's folder and its marker are both gone, for damage to a file of one alone.
    pub fn checkpoint_is_gone(&self, node: usize, damage: &Damage) -> bool {
        checkpoint_is_gone(&self.data_dir(node), damage)
    }

    /// Why nothing that is needed can be left of damage that a scrub has passed over in silence; `None` if there is no
    /// such reason.
    pub fn is_void(&self, node: usize, damage: &Damage) -> Option<&'static str> {
        let data = self.data_dir(node);
        let floors = std::fs::read(data.join("floor")).map(|bytes| living::floors(&bytes)).unwrap_or_default();
        // A state's table may have been damaged by the name that a checkpoint has for it.
        let mut files = Vec::new();
        let top = if damage.class == "state-sst" { Path::new("state") } else { damage.path.as_path() };
        let listed = top.components().next().map(|top| collect(&data, &data.join(top), &mut files));
        let is_there = listed.is_some_and(|listed| listed.is_ok())
            && files.iter().any(|(path, inode)| match &damage.before {
                Some(before) => *inode == before.inode,
                // One that was emptied is not listed, and is there.
                None => *path == damage.path,
            });
        match (is_there, damage.class) {
            (false, _) => Some("the file is gone since"),
            (true, "log-sst") if living::are_purged(&damage.records, &floors) => Some("the records are purged since"),
            _ => None,
        }
    }

    /// How many replicas a node has taken out of service since it was started, and how many others are in their place,
    /// as its metrics say.
    pub async fn replicas_counted(&self, node: usize) -> Result<(u64, u64)> {
        self.counters(node, COUNTERS).await
    }

    /// How often the scrub of a node has read all logs since it was started, and all states.
    pub async fn scrub_passes(&self, node: usize) -> Result<(u64, u64)> {
        self.counters(node, PASSES).await
    }

    async fn counters(&self, node: usize, names: [&str; 2]) -> Result<(u64, u64)> {
        let exposed =
            tokio::time::timeout(ASK, get(&self.http(node), "/metrics")).await.context("it does not answer")??;
        let counted = |name: &str| counter(&exposed, name).with_context(|| format!("its metrics have no {name}"));
        Ok((counted(names[0])?, counted(names[1])?))
    }

    fn note_damage(&self, node: usize) {
        let node = self.node(node);
        *node.damaged.lock() = true;
        *node.ever_damaged.lock() = true;
    }

    /// The damaged node is whole again, as far as can be seen.
    pub fn damage_is_healed(&self, node: usize) {
        *self.node(node).damaged.lock() = false;
    }

    /// Whether its files were damaged in this run, or it was given a bug of its own that makes its state another one:
    /// then its replicas may be found wanting.
    pub fn may_be_quarantined(&self, node: usize) -> bool {
        *self.node(node).ever_damaged.lock() || self.has_bug_of_its_own(node)
    }
}

/// What a server answers to a request for a page.
async fn get(address: &str, page: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET {page} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{address}{page} answered {:?}", answer.lines().next());
    Ok(answer)
}

/// The value of a counter without labels.
fn counter(exposed: &str, name: &str) -> Option<u64> {
    exposed.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Whether a file was not there.
fn is_gone(error: &anyhow::Error) -> bool {
    let kinds = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>()).map(std::io::Error::kind);
    kinds.into_iter().any(|kind| kind == std::io::ErrorKind::NotFound)
}

fn damage(
    data: &Path,
    is_wanted: impl Fn(&str) -> bool,
    keeps_names: bool,
    dice: &mut StdRng,
) -> Result<Option<Damage>> {
    let found: Vec<Target> = targets(data)?.into_iter().filter(|(class, ..)| is_wanted(class)).collect();
    // The class first: there are more tables than identities.
    let classes: BTreeSet<&'static str> = found.iter().map(|(class, ..)| *class).collect();
    let classes: Vec<_> = classes.into_iter().collect();
    let Some(class) = classes.choose(dice).copied() else { return Ok(None) };
    let of_class: Vec<_> = found.into_iter().filter(|(of, ..)| *of == class).collect();
    let (_, path, means) = of_class.choose(dice).context("a class that was found has a file")?.clone();
    let full = data.join(&path);
    // A table that is deleted cannot be put back into a node that goes on.
    let means = if keeps_names && means == Means::Any { Means::InPlace } else { means };
    match means {
        Means::Identities => return Ok(Some(halve_identities(data)?)),
        Means::Whole => {
            fs_err::remove_dir_all(&full)?;
            let (detail, notice) = ("the whole folder".into(), Notice::AtStart);
            return Ok(Some(Damage { class, how: "delete", path, detail, notice, records: Vec::new(), before: None }));
        }
        Means::Any | Means::InPlace | Means::Delete => {}
    }
    let (bytes, table) = (fs_err::read(&full)?, table(&full)?);
    let living = living(data, class, &path, &bytes)?;
    let (how, detail) = break_it(&full, &bytes, &living, draw_means(class, &path, means, dice), dice)?;
    let after = if how == "delete" { Vec::new() } else { fs_err::read(&full)? };
    let (notice, records) = due(class, how, &living, &bytes, &after);
    let before = table.filter(|_| how != "delete").map(|table| Table { after, ..table });
    Ok(Some(Damage { class, how, path, detail, notice, records, before }))
}

/// When a node must notice what was done to a file of a class, and which records of the log were hurt.
fn due(class: &str, how: &str, living: &[Living], before: &[u8], after: &[u8]) -> (Notice, Vec<(u32, u64)>) {
    match (class, living::hurt(living, before, after)) {
        // A table of which nothing knows may have been superseded already.
        ("state-sst", _) if how == "delete" => (Notice::Perhaps, Vec::new()),
        // Without its end it is none.
        ("state-sst", _) if how == "truncate" => (Notice::AtScrub, Vec::new()),
        ("state-sst", Some(_)) => (Notice::AtScrub, Vec::new()),
        // A manifest that lost its end is one as it was before: what follows from that is for the floor to say.
        ("log-manifest" | "state-manifest", _) if how == "truncate" && !after.is_empty() => {
            (Notice::Perhaps, Vec::new())
        }
        // Numbers in it may be written in either case.
        ("identity", _) if before.eq_ignore_ascii_case(after) => (Notice::Perhaps, Vec::new()),
        (_, Some(records)) => (Notice::AtStart, records),
        (_, None) => (Notice::Perhaps, Vec::new()),
    }
}

/// The parts of a file that its node must miss.
fn living(data: &Path, class: &str, path: &Path, bytes: &[u8]) -> Result<Vec<Living>> {
    let whole = || vec![Living::from(0..bytes.len())];
    Ok(match class {
        "identity" | "log-current" => whole(),
        "index" if has_rows(data, path) => whole(),
        "floor" => living::of_floor(bytes),
        "log-manifest" | "state-manifest" if is_current(data, path) => living::of_manifest(bytes),
        "state-current" | "state-sst" if !is_in_use(data, path) => Vec::new(),
        "state-current" => whole(),
        "state-sst" => living::of_table(bytes),
        "wal" | "log-sst" => {
            let floors = living::floors(&fs_err::read(data.join("floor")).unwrap_or_default());
            living::of_log(data, &floors)?.remove(path).unwrap_or_default()
        }
        // Of a checkpoint the tables are read when it is sent for the first time.
        _ => Vec::new(),
    })
}

/// Whether the state of an index's shard has rows on disk. Without them it is made anew from the log, and the index,
/// which nobody knows of then, is removed unread.
fn has_rows(data: &Path, path: &Path) -> bool {
    let shard = path.components().nth(1).and_then(|part| part.as_os_str().to_str()?.strip_prefix("shard-"));
    let number = shard.and_then(|shard| shard.split('-').next());
    let mut files = Vec::new();
    let listed = number.map(|number| collect(data, &data.join(format!("state/group-{number}")), &mut files));
    listed.is_some() && files.iter().any(|(path, _)| classify(path) == Some("state-sst"))
}

/// Whether a manifest is the one that its database names, and the database is in use.
fn is_current(data: &Path, path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let current = std::fs::read(data.join(path).with_file_name("CURRENT")).unwrap_or_default();
    is_in_use(data, path) && String::from_utf8_lossy(&current).trim_end() == name
}

/// Whether a file is of the newest database of its group, or of the log.
fn is_in_use(data: &Path, path: &Path) -> bool {
    let number = |name: &std::ffi::OsStr| name.to_str()?.strip_prefix("db-")?.parse::<u64>().ok();
    let Some(own) = path.parent().filter(|own| path.starts_with("state") && own.parent().is_some()) else {
        return path.starts_with("log") || path.starts_with("checkpoints");
    };
    let others = own.parent().and_then(|group| std::fs::read_dir(data.join(group)).ok());
    let newest = others.into_iter().flatten().flatten().filter_map(|entry| number(&entry.file_name())).max();
    own.file_name().and_then(number) == newest
}

/// What can be damaged, in an order that does not depend on the file system.
fn targets(data: &Path) -> Result<Vec<Target>> {
    let mut files = Vec::new();
    collect(data, data, &mut files)?;
    let is_live = |path: &Path| classify(path) == Some("state-sst");
    let live: BTreeSet<u64> = files.iter().filter(|(path, _)| is_live(path)).map(|(_, inode)| *inode).collect();
    let mut found: Vec<Target> = Vec::new();
    for (path, inode) in files {
        match classify(&path) {
            // Of checkpoints that nobody confirmed nothing is left at the next start, damaged or not.
            Some("checkpoint") if !is_confirmed(data, &path) => {}
            Some("index") if !has_rows(data, &path) => {}
            Some("checkpoint") if live.contains(&inode) => {
                found.push(("state-sst", path.clone(), Means::InPlace));
                found.push(("checkpoint", path, Means::Delete));
            }
            Some(class) => found.push((class, path, Means::Any)),
            None => {}
        }
    }
    found.extend(whole_states(data)?.into_iter().map(|path| ("state", path, Means::Whole)));
    if IDENTITIES.iter().all(|name| data.join(name).is_file()) {
        found.push(("identities", IDENTITIES[0].into(), Means::Identities));
    }
    found.sort();
    Ok(found)
}

/// The files below a folder that are not empty, with their inodes.
fn collect(root: &Path, folder: &Path, files: &mut Vec<(PathBuf, u64)>) -> Result<()> {
    // A node that runs may have removed what was listed.
    let Ok(entries) = fs_err::read_dir(folder) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        let Ok(about) = entry.metadata() else { continue };
        if about.is_dir() {
            collect(root, &entry.path(), files)?;
        } else if about.len() > 0 {
            files.push((entry.path().strip_prefix(root)?.to_owned(), about.ino()));
        }
    }
    Ok(())
}

fn whole_states(data: &Path) -> Result<Vec<PathBuf>> {
    let Ok(entries) = std::fs::read_dir(data.join("state")) else { return Ok(Vec::new()) };
    let names = entries.map(|entry| Ok(entry?.file_name())).collect::<Result<Vec<_>>>()?;
    let is_state = |name: &std::ffi::OsString| name.to_string_lossy().starts_with("group-");
    Ok(names.into_iter().filter(is_state).map(|name| Path::new("state").join(name)).collect())
}

/// What a file is, by its path below the data directory.
fn classify(path: &Path) -> Option<&'static str> {
    let top = path.components().next()?.as_os_str().to_str()?;
    let name = path.file_name()?.to_str()?;
    let is = |ending: &str| path.extension().is_some_and(|found| found == ending);
    match top {
        "log" if is("log") => Some("wal"),
        "log" if is("sst") => Some("log-sst"),
        "log" if name.starts_with("MANIFEST") => Some("log-manifest"),
        "log" if name == "CURRENT" => Some("log-current"),
        // What was being received or deleted goes at the next start, damaged or not.
        "state" if !is_database(path) => None,
        "state" if is("sst") => Some("state-sst"),
        "state" if name.starts_with("MANIFEST") => Some("state-manifest"),
        "state" if name == "CURRENT" => Some("state-current"),
        "checkpoints" if is("sst") || name.starts_with("MANIFEST") || name == "CURRENT" => Some("checkpoint"),
        // What was being built goes at the next start, damaged or not.
        "index" if path.components().any(|part| part.as_os_str().to_string_lossy().starts_with("tmp-")) => None,
        "index" => Some("index"),
        "floor" => Some("floor"),
        _ if IDENTITIES.contains(&top) => Some("identity"),
        _ => None,
    }
}

/// Whether a file of the state databases lies at `state/group-N/db-K/`.
fn is_database(path: &Path) -> bool {
    let names: Vec<_> = path.components().map(|part| part.as_os_str().to_string_lossy()).collect();
    matches!(&names[..], [_, group, database, _] if group.starts_with("group-") && database.starts_with("db-"))
}

/// The folder of the checkpoint that a file is of, below the data directory.
fn checkpoint_of(path: &Path) -> Option<PathBuf> {
    let mut parts = path.components();
    let (top, checkpoint) = (parts.next()?, parts.next()?);
    (top.as_os_str() == "checkpoints").then(|| Path::new("checkpoints").join(checkpoint))
}

fn is_confirmed(data: &Path, path: &Path) -> bool {
    checkpoint_of(path).is_some_and(|checkpoint| data.join(checkpoint).with_extension(MARKER).exists())
}

/// What is done to a file: 0 to 4 flips, 5 and 6 cut, 7 and 8 zero, 9 deletes.
fn draw_means(class: &str, path: &Path, means: Means, dice: &mut StdRng) -> u32 {
    match means {
        Means::InPlace => dice.random_range(0..9),
        Means::Delete => 9,
        // A start looks at the length of a table and no further.
        _ if class == "checkpoint" && path.extension().is_some_and(|ending| ending == "sst") => {
            *[5, 9].choose(dice).expect("a choice of something")
        }
        Means::Any | Means::Whole | Means::Identities => dice.random_range(0..10),
    }
}

fn break_it(
    path: &Path,
    before: &[u8],
    living: &[Living],
    draw: u32,
    dice: &mut StdRng,
) -> Result<(&'static str, String)> {
    if draw == 9 {
        fs_err::remove_file(path)?;
        ensure!(!path.exists(), "{} was deleted and is still there", path.display());
        return Ok(("delete", format!("{} bytes", before.len())));
    }
    let places = Places::of(before.len(), living, dice);
    let mut bytes = before.to_vec();
    let (how, detail) = match draw {
        0..5 => ("flip", flip(&mut bytes, &places, dice)),
        5..7 => {
            let length = places.draw(1, dice)[0];
            bytes.truncate(length);
            ("truncate", format!("from {} to {length} bytes", before.len()))
        }
        _ => {
            let from = places.draw(1, dice)[0];
            let to = bytes.len().min(from + BLOCK);
            bytes[from..to].fill(0);
            // What is zero already is not damaged by zeros.
            let detail = if bytes == before { flip(&mut bytes, &places, dice) } else { format!("bytes {from}..{to}") };
            ("zero", detail)
        }
    };
    overwrite(path, &bytes)?;
    ensure!(bytes != before, "{} was not damaged", path.display());
    Ok((how, detail))
}

/// Where the bytes of a file are hurt: where something lives, but for one time in ten, which may hit anything.
struct Places {
    ranges: Vec<Range<usize>>,
}

impl Places {
    fn of(length: usize, living: &[Living], dice: &mut StdRng) -> Places {
        let ranges: Vec<Range<usize>> = living.iter().map(|living| living.at.clone()).collect();
        let anywhere = ranges.is_empty() || dice.random_ratio(1, 10);
        Places { ranges: if anywhere { vec![Range { start: 0, end: length }] } else { ranges } }
    }

    /// So many different ones, or as many as there are, in their order; one at least.
    fn draw(&self, count: usize, dice: &mut StdRng) -> Vec<usize> {
        let among = self.ranges.iter().map(ExactSizeIterator::len).sum();
        let drawn = rand::seq::index::sample(dice, among, count.min(among)).into_vec();
        let place = |mut at: usize| {
            for range in &self.ranges {
                match at.checked_sub(range.len()) {
                    Some(left) => at = left,
                    None => return range.start + at,
                }
            }
            at
        };
        // Two parts of a file may lie over each other where one only looked like a record.
        let places: BTreeSet<usize> = drawn.into_iter().map(place).collect();
        places.into_iter().collect()
    }
}

/// In place, as rot does it: no new file.
fn overwrite(path: &Path, bytes: &[u8]) -> Result<()> {
    let file = fs_err::OpenOptions::new().write(true).open(path)?;
    file.set_len(u64::try_from(bytes.len())?)?;
    file.file().write_all_at(bytes, 0)?;
    file.sync_all()?;
    ensure!(fs_err::read(path)? == bytes, "{} did not keep what was written", path.display());
    Ok(())
}

/// Flips one to eight bits. Two flips of one bit would undo each other, so places differ.
fn flip(bytes: &mut [u8], places: &Places, dice: &mut StdRng) -> String {
    let chosen = places.draw(dice.random_range(1..=8), dice);
    for place in &chosen {
        bytes[*place] ^= 1 << dice.random_range(0..8);
    }
    format!("a bit each of the bytes {chosen:?}")
}

/// A file cut in half is no JSON, wherever the bits of a flip might have fallen.
fn halve_identities(data: &Path) -> Result<Damage> {
    for name in IDENTITIES {
        let path = data.join(name);
        let bytes = fs_err::read(&path)?;
        overwrite(&path, &bytes[..bytes.len() / 2])?;
    }
    let (path, detail) = (IDENTITIES[0].into(), format!("half of {}", IDENTITIES.join(" and of ")));
    let (class, how, notice) = ("identities", "truncate", Notice::Perhaps);
    Ok(Damage { class, how, path, detail, notice, records: Vec::new(), before: None })
}

/// A table of a database, as it is now.
fn table(path: &Path) -> Result<Option<Table>> {
    if path.extension().is_none_or(|ending| ending != "sst") {
        return Ok(None);
    }
    Ok(Some(Table { inode: fs_err::metadata(path)?.ino(), bytes: fs_err::read(path)?, after: Vec::new() }))
}

/// A table that a state and a checkpoint share may have been damaged by a name that is gone since, and lies there by
/// the other. The number of a file that is gone may be another file's by then, whose bytes are others.
fn undo(data: &Path, damage: &Damage) -> Result<bool> {
    let Some(before) = &damage.before else { return Ok(false) };
    // One that was emptied is not listed.
    let mut files =
        vec![(damage.path.clone(), std::fs::metadata(data.join(&damage.path)).map_or(0, |about| about.ino()))];
    collect(data, data, &mut files)?;
    let Some((path, _)) = files.into_iter().find(|(_, inode)| *inode == before.inode) else { return Ok(false) };
    let path = data.join(path);
    let is_same = fs_err::read(&path)? == before.after;
    if is_same {
        overwrite(&path, &before.bytes)?;
    }
    Ok(is_same)
}

/// A table that a state has too lives on in it when its checkpoint goes.
fn checkpoint_is_gone(data: &Path, damage: &Damage) -> bool {
    let own = checkpoint_of(&damage.path).filter(|_| damage.class == "checkpoint");
    own.map(|checkpoint| data.join(checkpoint))
        .is_some_and(|checkpoint| !checkpoint.exists() && !checkpoint.with_extension(MARKER).exists())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step fails the test")]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn every_class_is_found_by_its_path() {
        let paths = [
            ("log/000004.log", Some("wal")),
            ("log/000012.sst", Some("log-sst")),
            ("log/MANIFEST-000005", Some("log-manifest")),
            ("log/CURRENT", Some("log-current")),
            ("log/LOG", None),
            ("log/OPTIONS-000007", None),
            ("state/group-3/db-1/000009.sst", Some("state-sst")),
            ("state/group-3/db-1/CURRENT", Some("state-current")),
            ("state/group-3/staging-0/000009.sst", None),
            ("state/destroyed-3/db-1/000009.sst", None),
            ("damaged-log-1/000012.sst", None),
            ("floor", Some("floor")),
            ("identity.json", Some("identity")),
            ("identity-copy.json", Some("identity")),
            ("identity.json.new", None),
            ("checkpoints/x/000009.sst", Some("checkpoint")),
            ("checkpoints/x/MANIFEST-000005", Some("checkpoint")),
            ("checkpoints/x/OPTIONS-000007", None),
            ("checkpoints/x/LOG", None),
            ("checkpoints/x/IDENTITY", None),
            ("checkpoints/x.confirmed", None),
            ("index/shard-1-5-a/collection-2/segment-0/rows", Some("index")),
            ("lock", None),
        ];
        for (path, class) in paths {
            assert_eq!(classify(Path::new(path)), class, "{path}");
        }
    }

    #[test]
    fn a_counter_is_found_by_its_whole_name() {
        let exposed = "# HELP a_total x\na_total_more 7\na_total 3\n";
        assert_eq!((counter(exposed, "a_total"), counter(exposed, "b")), (Some(3), None));
        let source = include_str!("../../../node/src/metrics.rs");
        assert!(COUNTERS.iter().all(|name| source.contains(name)), "nodes do not count under these names any more");
    }

    fn any(class: &str) -> bool {
        class != NAMED_ONLY
    }

    fn of(wanted: &str) -> impl Fn(&str) -> bool {
        move |class| class == wanted
    }

    fn write(data: &Path, path: &str, bytes: &[u8]) {
        let path = data.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    #[test]
    fn damage_changes_one_file_and_the_seed_says_which() {
        let outcome = |seed| {
            let folder = tempfile::tempdir().unwrap();
            write(folder.path(), "log/1.log", &[7; 9000]);
            write(folder.path(), "floor", &[9; 50]);
            write(folder.path(), "lock", &[]);
            let damage = damage(folder.path(), any, false, &mut StdRng::seed_from_u64(seed)).unwrap().unwrap();
            let log = std::fs::read(folder.path().join("log/1.log")).ok();
            let floor = std::fs::read(folder.path().join("floor")).ok();
            let changed = [log != Some(vec![7; 9000]), floor != Some(vec![9; 50])];
            assert_eq!(changed.iter().filter(|changed| **changed).count(), 1, "{damage:?}");
            damage
        };
        let all: Vec<_> = (0..40).map(outcome).collect();
        assert!((0..40).map(outcome).eq(all.iter().cloned()));
        for how in ["flip", "zero", "truncate", "delete"] {
            assert!(all.iter().any(|damage| damage.how == how), "{how} never happens");
        }
    }

    /// A state with a table, and a confirmed checkpoint of it with that table and one of its own.
    fn checkpointed() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path();
        write(data, "state/group-1/db-1/000009.sst", &[7; 900]);
        write(data, "checkpoints/1-05-3/CURRENT", b"MANIFEST-000005\n");
        write(data, "checkpoints/1-05-3/OPTIONS-000007", b"x");
        write(data, "checkpoints/1-05-3/000008.sst", &[6; 900]);
        write(data, "checkpoints/1-05-3.confirmed", &[]);
        write(data, "checkpoints/1-05-4/CURRENT", b"MANIFEST-000006\n");
        let table = data.join("state/group-1/db-1/000009.sst");
        std::fs::hard_link(table, data.join("checkpoints/1-05-3/000009.sst")).unwrap();
        folder
    }

    #[test]
    fn what_a_checkpoint_shares_with_its_state_is_the_states() {
        let folder = checkpointed();
        let found = targets(folder.path()).unwrap();
        let named = |class: &str| -> Vec<(String, Means)> {
            let of_class = found.iter().filter(|(of, ..)| *of == class);
            of_class.map(|(_, path, means)| (path.display().to_string(), *means)).collect()
        };
        let state = [
            ("checkpoints/1-05-3/000009.sst".to_owned(), Means::InPlace),
            ("state/group-1/db-1/000009.sst".to_owned(), Means::Any),
        ];
        assert_eq!(named("state-sst"), state);
        let checkpoint = [
            ("checkpoints/1-05-3/000008.sst".to_owned(), Means::Any),
            ("checkpoints/1-05-3/000009.sst".to_owned(), Means::Delete),
            ("checkpoints/1-05-3/CURRENT".to_owned(), Means::Any),
        ];
        assert_eq!(named("checkpoint"), checkpoint, "nothing of one that nobody confirmed");
        for seed in 0..60 {
            let folder = checkpointed();
            damage(folder.path(), of("checkpoint"), false, &mut StdRng::seed_from_u64(seed)).unwrap().unwrap();
            let live = std::fs::read(folder.path().join("state/group-1/db-1/000009.sst")).unwrap();
            assert_eq!(live, [7; 900], "damage to a checkpoint of its own leaves the state whole");
        }
    }

    #[test]
    fn what_is_in_use_must_be_noticed_however_it_is_hurt() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path();
        for path in ["log/MANIFEST-000003", "log/MANIFEST-000008", "state/group-1/db-1/CURRENT", "identity.json"] {
            write(data, path, &[7; 90]);
        }
        write(data, "state/group-1/db-2/CURRENT", &[7; 90]);
        write(data, "log/CURRENT", b"MANIFEST-000008\n");
        write(data, "index/shard-1-5-a/collection-2/segment-0/rows", &[7; 90]);
        write(data, "index/shard-2/1-5/segment-0/rows", &[7; 90]);
        write(data, "state/group-1/db-2/000009.sst", &[7; 90]);
        let is_due = |class: &str, path: &str, how: &str, after: &[u8]| {
            let before = std::fs::read(data.join(path)).unwrap();
            let living = living(data, class, Path::new(path), &before).unwrap();
            due(class, how, &living, &before, after).0
        };
        for (class, path) in [
            ("log-current", "log/CURRENT"),
            ("state-current", "state/group-1/db-2/CURRENT"),
            ("identity", "identity.json"),
            ("index", "index/shard-1-5-a/collection-2/segment-0/rows"),
        ] {
            for how in ["flip", "zero", "truncate", "delete"] {
                assert_eq!(is_due(class, path, how, &[]), Notice::AtStart, "{class} {how}");
            }
        }
        assert_eq!(is_due("state-current", "state/group-1/db-1/CURRENT", "flip", &[]), Notice::Perhaps, "an older one");
        assert_eq!(is_due("log-manifest", "log/MANIFEST-000003", "delete", &[]), Notice::Perhaps, "an older one");
        assert_eq!(is_due("index", "index/shard-2/1-5/segment-0/rows", "flip", &[]), Notice::Perhaps, "no rows yet");
        assert_eq!(is_due("log-sst", "log/MANIFEST-000003", "flip", &[1; 90]), Notice::Perhaps);
    }

    #[test]
    fn damage_to_a_table_can_be_taken_back_while_the_table_is_there() {
        let mut undone = 0;
        for seed in 0..60 {
            let folder = checkpointed();
            let done =
                damage(folder.path(), of("state-sst"), false, &mut StdRng::seed_from_u64(seed)).unwrap().unwrap();
            let live = folder.path().join("state/group-1/db-1/000009.sst");
            if undo(folder.path(), &done).unwrap() {
                assert_eq!(std::fs::read(&live).unwrap(), [7; 900]);
                undone += 1;
                std::fs::remove_file(folder.path().join(&done.path)).unwrap();
                assert!(!undo(folder.path(), &done).unwrap(), "what was compacted away does not come back");
            } else {
                assert_eq!(done.how, "delete");
            }
        }
        assert!(undone > 20, "{undone}");
    }

    #[test]
    fn a_table_of_a_state_is_still_there_when_a_checkpoint_of_it_is_gone() {
        let by_its_name = |damage: &Damage| damage.path.starts_with("checkpoints");
        for (class, is_gone) in [("state-sst", false), ("checkpoint", true)] {
            let (folder, done) = (0..60)
                .find_map(|seed| {
                    let folder = checkpointed();
                    let dice = &mut StdRng::seed_from_u64(seed);
                    let done = damage(folder.path(), of(class), false, dice).unwrap().filter(by_its_name)?;
                    Some((folder, done))
                })
                .unwrap();
            let checkpoint = folder.path().join("checkpoints/1-05-3");
            assert!(!checkpoint_is_gone(folder.path(), &done));
            std::fs::remove_dir_all(&checkpoint).unwrap();
            std::fs::remove_file(checkpoint.with_extension(MARKER)).unwrap();
            assert_eq!(checkpoint_is_gone(folder.path(), &done), is_gone, "{class}");
            assert_eq!(undo(folder.path(), &done).unwrap(), !is_gone, "{class}");
            let live = std::fs::read(folder.path().join("state/group-1/db-1/000009.sst")).unwrap();
            assert_eq!(live, [7; 900], "{class}");
        }
    }

    #[test]
    fn another_file_under_the_number_of_one_that_is_gone_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "state/group-1/db-1/000009.sst", &[7; 900]);
        let dice = &mut StdRng::seed_from_u64(2);
        let done = damage(folder.path(), of("state-sst"), true, dice).unwrap().unwrap();
        let live = folder.path().join(&done.path);
        overwrite(&live, &[5; 900]).unwrap();
        assert!(!undo(folder.path(), &done).unwrap());
        assert_eq!(std::fs::read(&live).unwrap(), [5; 900]);
    }

    #[test]
    fn a_node_without_both_copies_of_its_identity_is_no_node() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "identity.json", b"{\"version\": 2}");
        let dice = &mut StdRng::seed_from_u64(1);
        assert_eq!(damage(folder.path(), of("identities"), false, dice).unwrap(), None);
        write(folder.path(), "identity-copy.json", b"{\"version\": 2}");
        assert_eq!(damage(folder.path(), of("identities"), false, dice).unwrap().unwrap().class, "identities");
        for name in IDENTITIES {
            assert_eq!(std::fs::read(folder.path().join(name)).unwrap(), b"{\"versi");
        }
    }
}
