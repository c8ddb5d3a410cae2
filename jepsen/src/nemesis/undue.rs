//! Replicas that were given up although nothing had damaged them.
//!
//! A node whose power is cut reads nothing any more. It takes that for damage and says so, and a moment later it cannot write
//! that down and ends: nothing was given up. What it finds damaged by its contents, or out of reach on a disk that nobody took
//! away, is another matter.

use super::healing::Noticed;
use crate::cluster::Cluster;

/// What a read from a disk that is out of reach comes to. Damaged contents are told otherwise.
const OUT_OF_REACH: &str = "Input/output error";
/// What a node says when it cannot write, and ends. A test holds this and the next against the source.
const ENDS: &str = "a commit of the Raft log failed; the process ends";
/// What a process says once, when it has started.
const SERVES: &str = "quorate_node::start: serving";
/// How soon it ends after it could not read, in microseconds of its own clock.
const SOON: u64 = 1_000_000;
const DAY: u64 = 24 * 3600 * 1_000_000;

/// Of each node that nothing has damaged the first replica that it took out of service all the same: no crash, no cut
/// and no full disk looks like damage.
pub(crate) fn undue_quarantines(cluster: &Cluster) -> Vec<String> {
    let sound = (0..cluster.size()).filter(|node| !cluster.may_be_quarantined(*node));
    let told = sound.filter_map(|node| {
        // What cannot be read makes the run void where panics are looked for.
        let log = std::fs::read(cluster.log_path(node)).ok()?;
        let line = first_undue(&log, |logged| cluster.was_cut_at(node, logged))?;
        Some(format!("quarantine: node {node} gave up a replica that nothing has damaged: {}", line.trim()))
    });
    told.collect()
}

/// The first quarantine of a log that nothing excuses. `was_cut` says whether the power was off when the log was so long.
fn first_undue(log: &[u8], was_cut: impl Fn(u64) -> bool) -> Option<String> {
    let mut at = 0;
    let mut lines = Vec::new();
    for line in log.split_inclusive(|byte| *byte == b'\n') {
        lines.push((at, String::from_utf8_lossy(line)));
        at += line.len() as u64;
    }
    let undue = lines.iter().enumerate().find(|(number, (at, line))| {
        let later = lines[number + 1..].iter().map(|(_, line)| line.as_ref());
        let is_excused = || is_out_of_reach(line) && (was_cut(*at) || ends_soon(line, later));
        Noticed::in_log(line).0 == Noticed::Quarantine && !is_excused()
    });
    undue.map(|(_, (_, line))| line.to_string())
}

/// Whether a replica was given up for the want of a disk. A log database that was moved aside has no such reason: that was done.
fn is_out_of_reach(line: &str) -> bool {
    line.split_once("reason=").is_some_and(|(_, reason)| reason.contains(OUT_OF_REACH))
}

/// Whether the process that has said this ended soon over what it could not write.
fn ends_soon<'a>(line: &str, later: impl Iterator<Item = &'a str>) -> bool {
    let mut same_process = later.take_while(|line| !line.contains(SERVES));
    let Some((said, ended)) = time_of(line).zip(same_process.find(|line| line.contains(ENDS)).and_then(time_of)) else {
        return false;
    };
    // From one day to the next it is the time of the day that goes back.
    (ended + DAY - said) % DAY <= SOON
}

/// When a line was logged, in microseconds of the day.
fn time_of(line: &str) -> Option<u64> {
    let time = line.split_once('T')?.1.split_once('Z')?.0;
    let (seconds, micros) = time.split_once('.')?;
    let parts = seconds.split(':').map(|part| part.parse::<u64>().ok()).collect::<Option<Vec<_>>>()?;
    let micros = micros.parse::<u64>().ok()?;
    let [hours, minutes, seconds] = parts[..] else { return None };
    let time = ((hours * 60 + minutes) * 60 + seconds) * 1_000_000 + micros;
    (time < DAY).then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: &str = "IO error: While pread offset 261632 len 32768: /x/log/000236.sst: Input/output error";
    const BYTES: &str = "Corruption: block checksum mismatch: stored = 1, computed = 2 in /x/log/000236.sst";
    const STARTED: &str = "2026-11-28T02:32:27.236581Z  INFO quorate_node::start: serving node=1436bbaea1597ef0\n";

    fn quarantine(reason: &str) -> String {
        format!(
            "2026-11-28T02:32:27.299168Z ERROR quorate_raft::start: a replica is damaged and quarantined group=shard-1 replica=29 reason=\"{reason}\"\n"
        )
    }

    fn end(time: &str) -> String {
        format!("2026-11-28T{time}Z ERROR quorate_raft::log::writer: {ENDS} so that nothing is lost error=os error 5\n")
    }

    fn is_undue(log: &str, cut: std::ops::Range<usize>) -> bool {
        first_undue(log.as_bytes(), |at| cut.contains(&usize::try_from(at).expect("a short log"))).is_some()
    }

    #[test]
    fn what_could_not_be_read_without_power_was_not_given_up() {
        let log = format!("{STARTED}{}", quarantine(DISK));
        let at = STARTED.len();
        assert!(!is_undue(&log, at..at + 1));
        assert!(is_undue(&log, 0..at) && is_undue(&log, at + 1..log.len()), "the power was on by then");
        let damaged = format!("{STARTED}{}", quarantine(BYTES));
        assert!(is_undue(&damaged, 0..damaged.len()), "no cut makes that of a table");
        assert!(is_undue(&format!("{log}{}", quarantine(BYTES)), at..at + 1), "the next one counts for itself");
        let aside = "ERROR quorate_raft::groups: the log database is damaged; it is moved aside, and every replica of \
                     this node is quarantined error=Input/output error\n";
        assert!(is_undue(aside, 0..aside.len()), "it was moved");
    }

    #[test]
    fn what_could_not_be_written_down_was_not_given_up() {
        let after = |reason, between: &str, time| format!("{}{between}{}", quarantine(reason), end(time));
        assert!(!is_undue(&after(DISK, "", "02:32:27.299345"), 0..0));
        assert!(is_undue(&after(DISK, "", "02:32:28.299345"), 0..0), "it went on for more than a second");
        assert!(is_undue(&after(DISK, STARTED, "02:32:27.299345"), 0..0), "that was another process");
        assert!(is_undue(&after(BYTES, "", "02:32:27.299345"), 0..0));
        assert!(is_undue(&quarantine(DISK), 0..0), "it went on");
    }

    #[test]
    fn the_sentences_are_those_that_nodes_log() {
        assert!(include_str!("../../../raft/src/log/writer.rs").contains(ENDS));
        assert!(include_str!("../../../node/src/start.rs").contains("\"serving\""));
    }

    #[test]
    fn midnight_is_no_long_time() {
        let said = "2026-11-28T23:59:59.900000Z ERROR x";
        assert!(ends_soon(said, [end("00:00:00.100000").as_str()].into_iter()));
        assert_eq!(time_of("quorate: no time Z"), None);
    }
}
