//! How long a history of a million operations on registers takes: writing, reading, checking, plotting.
//!
//! `cargo run --release -p quorate-jepsen --example check_speed -- [OPERATIONS] [KEYS]`

use std::{error::Error, time::Instant};

use quorate_jepsen::{
    check,
    event::{Event, Operation, Phase},
    history::{Dialect, History},
    plot,
};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// What 32 clients see of real registers: each operation takes effect at a moment between its beginning and its end; one in
/// fifty ends unknown, and half of those took effect.
fn history(operations: u64, keys: u64) -> History {
    let mut random = StdRng::seed_from_u64(1);
    let mut registers = vec![None; usize::try_from(keys).expect("keys fit memory")];
    let mut moments: Vec<(u64, u64, Event)> = Vec::new();
    let mut clients: Vec<(u64, u64)> = (0..32).map(|number| (number, 0)).collect();
    let mut next = 32;
    for n in 0..operations {
        // The client that is free first goes on, so operations take effect in the order in which they are made here.
        let (number, free) = clients.iter_mut().min_by_key(|(_, free)| *free).expect("there are clients");
        let (from, effect) = (*free + 1, n * 20 + 20_000);
        let from = from.max(effect.saturating_sub(random.random_range(1..300)));
        let to = effect + random.random_range(1..300);
        let key = random.random_range(0..keys);
        let register = &mut registers[usize::try_from(key).expect("keys fit memory")];
        let unknown = random.random_ratio(1, 50);
        let (asked, answered) = match random.random_range(0..3) {
            0 => (Operation::Write { key, value: n }, Operation::Write { key, value: n }),
            1 => {
                let cas = Operation::Cas { key, expected: *register, value: n };
                (cas.clone(), cas)
            }
            _ => (Operation::Read { key, value: None }, Operation::Read { key, value: Some(*register) }),
        };
        if !matches!(asked, Operation::Read { .. }) && (!unknown || random.random()) {
            *register = Some(n);
        }
        let phase = if unknown { Phase::Info } else { Phase::Ok };
        for (time, phase, operation) in [(from, Phase::Invoke, asked), (to, phase, answered)] {
            let event = Event { time, process: *number, phase, operation, part: None, node: None, error: None };
            moments.push((time, moments.len() as u64, event));
        }
        if unknown {
            *number = next;
            next += 1;
        }
        *free = to;
    }
    moments.sort_unstable_by_key(|(time, order, _)| (*time, *order));
    History { events: moments.into_iter().map(|(_, _, event)| event).collect(), ..History::default() }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let operations = arguments.next().map_or(Ok(1_000_000), |text| text.parse())?;
    let keys = arguments.next().map_or(Ok(100), |text| text.parse())?;
    let mut history = history(operations, keys);
    let directory = tempfile::tempdir()?;
    let (lines, edn, page) = (
        directory.path().join("history.jsonl"),
        directory.path().join("history.edn"),
        directory.path().join("page.html"),
    );
    let timed = |what: &str, began: Instant| println!("{what:<24} {:.3} s", began.elapsed().as_secs_f64());
    println!("{operations} operations on {keys} registers");
    let began = Instant::now();
    history.write(&lines)?;
    timed("write JSON lines", began);
    let began = Instant::now();
    let again = History::read(&lines)?;
    timed("read JSON lines", began);
    assert_eq!(again.events.len(), history.events.len(), "what was written is read");
    let began = Instant::now();
    history.write_edn(&edn, Dialect::Knossos)?;
    timed("write EDN", began);
    let began = Instant::now();
    history.write_objects(&directory.path().join("edn"))?;
    timed("write EDN by object", began);
    let began = Instant::now();
    let verdict = check::registers(&history);
    timed("check registers", began);
    println!("verdict: {}", verdict.outcome());
    let began = Instant::now();
    plot::write(&page, &history, "a million operations", Some(&verdict))?;
    timed("plot", began);
    println!("page: {} bytes", fs_err::metadata(&page)?.len());
    // One stale read near the end must be found as fast.
    let last = history.events.iter_mut().rev().find_map(|event| match &mut event.operation {
        Operation::Read { value: Some(value), .. } if event.phase == Phase::Ok && value.is_some() => Some(value),
        _ => None,
    });
    *last.ok_or("the history has a read")? = None;
    let began = Instant::now();
    let verdict = check::registers(&history);
    timed("check a stale read", began);
    println!("verdict: {}, {} violation", verdict.outcome(), verdict.violations.len());
    Ok(())
}
