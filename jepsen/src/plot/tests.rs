use super::page;
use crate::{
    event::{Event, Fault, Injection, Operation, Phase, Verdict},
    history::History,
};

/// Operations of some processes, one after the other, of which some fail and some are never known, under faults.
fn history(operations: u64, faults: u64) -> History {
    let mut history = History::default();
    let (mut processes, mut next) = ((0..20).collect::<Vec<u64>>(), 20);
    for n in 0..operations {
        let process = &mut processes[usize::try_from(n % 20).expect("small")];
        let operation = Operation::Write { key: n % 7, value: n };
        let outcome = match n % 13 {
            0 => Phase::Info,
            1 | 2 => Phase::Fail,
            _ => Phase::Ok,
        };
        for (phase, time) in [(Phase::Invoke, n * 500), (outcome, n * 500 + n * n % 499)] {
            history.events.push(Event {
                time,
                process: *process,
                phase,
                operation: operation.clone(),
                part: None,
                node: None,
                error: None,
            });
        }
        if outcome == Phase::Info {
            *process = next;
            next += 1;
        }
    }
    for n in 0..faults {
        let from = n * operations * 500 / faults;
        let nemesis = ["kill <9>", "clock", "links"][usize::try_from(n % 3).expect("small")].to_owned();
        let injection = if n % 5 == 0 { Injection::Skipped } else { Injection::Installed };
        let kind = format!("cut {n}→\"b\" & c");
        history.faults.push(Fault { nemesis, kind, from, to: from + 40_000, injection, detail: String::new() });
    }
    history
}

/// Every element that is opened is closed, in order: the page is read as XML, in which no entity but the five is known.
fn well_formed(page: &str) {
    let mut open: Vec<&str> = Vec::new();
    let body = page.strip_prefix("<!DOCTYPE html>").expect("a page of HTML");
    for part in body.split('<').skip(1) {
        let (tag, _) = part.split_once('>').expect("a tag is closed");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "in {part}");
        } else if !tag.ends_with('/') {
            open.push(tag.split(' ').next().expect("a tag has a name"));
        }
    }
    assert!(open.is_empty(), "{open:?} are not closed");
}

#[test]
fn a_short_history_tells_each_operation() {
    let verdict = Verdict { violations: vec!["1 < 2".into()], ..Verdict::default() };
    let page = page(&history(200, 6), "register & kill", Some(&verdict));
    well_formed(&page);
    assert_eq!(page.matches("<title>process ").count(), 200);
    for part in [
        "register &amp; kill",
        "<b>invalid</b>",
        "1 &lt; 2",
        "kill &lt;9&gt;",
        "class=\"info\"",
        "class=\"fail\"",
        "class=\"ok\"",
    ] {
        assert!(page.contains(part), "{part} is missing");
    }
    // Of six faults two were skipped: they show nowhere.
    assert_eq!(
        page.matches("<title>kill &lt;9&gt; cut").count()
            + page.matches("<title>clock cut").count()
            + page.matches("<title>links cut").count(),
        4
    );
}

#[test]
fn a_long_history_has_a_small_page() {
    let page = page(&history(300_000, 5_000), "long", None);
    well_formed(&page);
    assert!(page.len() < 2_000_000, "{} bytes", page.len());
    assert!(page.contains("operations by process: 300000"));
}

#[test]
fn an_empty_and_a_malformed_history_have_pages() {
    well_formed(&page(&History::default(), "empty", None));
    let mut malformed = history(1, 0);
    malformed.events.reverse();
    let page = page(&malformed, "malformed", None);
    well_formed(&page);
    assert!(page.contains("is not well formed"));
}
