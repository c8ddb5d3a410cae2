use proptest::{prelude::*, test_runner::RngSeed};

use super::{Dialect, Error, History, Recorder};
use crate::event::{Asked, Change, Event, Fault, Injection, Note, Operation, Part, Phase, Stage, Token};

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn event(time: u64, process: u64, phase: Phase, operation: Operation) -> Event {
    Event { time, process, phase, operation, part: None, node: None, error: None }
}

fn write(value: u64) -> Operation {
    Operation::Write { key: 3, value }
}

fn fault(from: u64, to: u64) -> Fault {
    let (nemesis, kind) = ("link".to_owned(), "cut 0→1".to_owned());
    Fault { nemesis, kind, from, to, injection: Injection::Installed, detail: String::new() }
}

/// One of each kind.
fn notes() -> Vec<Note> {
    let asked = Asked {
        workload: "mixed".into(),
        parts: vec![Part::Register, Part::Lease],
        nemeses: vec!["links:17@2".into()],
        nodes: 3,
        seed: u64::MAX,
        seconds: 0.5,
        rate: 150.0,
        floor: 5.0,
        planted: None,
    };
    vec![
        Note::Asked(asked),
        Note::Reached { stage: Stage::LoadEnded, time: 5 },
        Note::Stalled { what: "its disk".into(), from: 5, to: 6 },
        Note::Replaced { node: 1, refusal: "it is \"damaged\"".into(), time: 6 },
        Note::Violation { what: "node 1 panicked\nand ended".into(), time: 7 },
        Note::Void { why: "it was interrupted".into(), time: 8 },
    ]
}

fn operation() -> impl Strategy<Value = Operation> {
    let n = || any::<u64>();
    let text = || "[a-zé\"\\\\→0-9.]{0,6}";
    prop_oneof![
        (n(), any::<Option<Option<u64>>>()).prop_map(|(key, value)| Operation::Read { key, value }),
        (n(), n()).prop_map(|(key, value)| Operation::Write { key, value }),
        (n(), any::<Option<u64>>(), n()).prop_map(|(key, expected, value)| Operation::Cas { key, expected, value }),
        (n(), any::<Option<u64>>()).prop_map(|(value, task)| Operation::Enqueue { value, task }),
        (n(), n(), text(), any::<u32>()).prop_map(|(value, task, token, attempt)| Operation::Deliver {
            value,
            task,
            token,
            attempt
        }),
        (n(), n(), text(), any::<Option<u64>>()).prop_map(|(value, task, token, child)| Operation::Complete {
            value,
            task,
            token,
            child
        }),
        (n(), text(), any::<bool>()).prop_map(|(task, token, held)| Operation::Effect { task, token, held }),
        (n(), any::<Option<u64>>()).prop_map(|(value, task)| Operation::Repeat { value, task }),
        n().prop_map(|point| Operation::Upsert { point }),
        n().prop_map(|point| Operation::Delete { point }),
        (n(), any::<Option<bool>>(), any::<u32>()).prop_map(|(point, found, missing)| Operation::Search {
            point,
            found,
            missing
        }),
        (n(), n(), prop::option::of(text()), prop::option::of(text()))
            .prop_map(|(value, task, state, result)| Operation::Final { value, task, state, result }),
        (any::<bool>(), any::<usize>(), text()).prop_map(|(joins, node, id)| Operation::Membership {
            what: if joins { Change::Join } else { Change::Leave },
            node,
            id
        }),
        (any::<usize>(), proptest::option::of(proptest::collection::vec(text(), 0..4)))
            .prop_map(|(node, ids)| Operation::Members { node, ids }),
        (n(), n(), 0..2_u64, proptest::option::of(proptest::collection::vec(n(), 0..4)), any::<u32>())
            .prop_map(|(from, to, rest, points, missing)| Operation::List { from, to, rest, points, missing }),
        (any::<u32>(), any::<usize>(), any::<Option<(u64, u64)>>()).prop_map(|(group, node, at)| Operation::Hash {
            group,
            node,
            at
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, rng_seed: RngSeed::Fixed(9), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read(
        operations in prop::collection::vec((operation(), any::<Option<usize>>(), prop::option::of("[a-z \n]{0,9}"), 0..4_u8), 0..20)
    ) {
        let phases = [Phase::Invoke, Phase::Ok, Phase::Fail, Phase::Info];
        let events = operations.into_iter().zip(0..).map(|((operation, node, error, phase), time)| {
            let part = [None, Some(Part::Queue), Some(Part::Probe(3))][usize::from(phase % 3)];
            Event { time, process: time, phase: phases[usize::from(phase)], operation, part, node, error }
        });
        let (events, faults) = (events.collect(), vec![fault(1, 2), fault(3, 3)]);
        let history = History { events, faults, notes: notes() };
        let directory = directory();
        let path = directory.path().join("history.jsonl");
        history.write(&path).expect("writes");
        prop_assert_eq!(History::read(&path).expect("reads"), history);
    }
}

#[test]
fn a_recorder_streams_what_many_threads_record() {
    let directory = directory();
    let path = directory.path().join("history.jsonl");
    let recorder = Recorder::create(&path).expect("creates");
    std::thread::scope(|scope| {
        for key in 0..8 {
            let recorder = recorder.clone();
            scope.spawn(move || {
                let mut process = recorder.process();
                for value in 0..200 {
                    process.invoke(Operation::Write { key, value }, Some(1));
                    match value % 4 {
                        0 => process.info("time out"),
                        1 => process.fail("refused"),
                        _ => process.ok(Operation::Write { key, value }),
                    }
                }
            });
        }
    });
    recorder.fault(fault(1, 2));
    let counts = recorder.counts();
    assert_eq!((counts.invoked, counts.ok, counts.fail, counts.info), (1_600, 800, 400, 400));
    let history = recorder.finish().expect("finishes");
    assert_eq!(history.faults, [fault(1, 2)]);
    let spans = history.spans().expect("well formed");
    assert_eq!(spans.len(), 1_600);
    let unknown = spans.iter().filter(|span| span.outcome() == Phase::Info).count();
    let mut numbers: Vec<u64> = spans.iter().map(|span| span.process()).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!((unknown, numbers.len()), (400, 408), "after each unknown end a process goes on under a new number");
}

#[test]
fn a_process_that_is_dropped_leaves_an_unknown_end_and_what_comes_beside_gets_its_own_number() {
    let directory = directory();
    let recorder = Recorder::create(&directory.path().join("history.jsonl")).expect("creates");
    let mut process = recorder.process();
    process.invoke(write(1), None);
    process.instant(Operation::Hash { group: 0, node: 1, at: Some((4, 5)) });
    drop(process);
    let history = recorder.finish().expect("finishes");
    let spans = history.spans().expect("well formed");
    assert_eq!(spans.iter().map(|span| span.outcome()).collect::<Vec<_>>(), [Phase::Info, Phase::Ok]);
    assert_eq!(history.events[2].error.as_deref(), Some("abandoned"));
    // After the end nothing is recorded any more.
    recorder.process().instant(Operation::Hash { group: 0, node: 1, at: None });
    assert_eq!(recorder.finish().expect("finishes again"), history);
}

#[test]
fn a_line_that_was_cut_off_is_left_out_and_a_damaged_one_is_told() {
    let directory = directory();
    let path = directory.path().join("history.jsonl");
    let history = History {
        events: vec![event(1, 0, Phase::Invoke, write(1)), event(2, 0, Phase::Ok, write(1))],
        ..History::default()
    };
    history.write(&path).expect("writes");
    let text = fs_err::read_to_string(&path).expect("reads");
    fs_err::write(&path, &text[..text.len() - 9]).expect("writes");
    assert_eq!(History::read(&path).expect("reads").events, history.events[..1]);
    fs_err::write(&path, text.replacen("invoke", "revoke", 1)).expect("writes");
    assert!(matches!(History::read(&path), Err(Error::Line { line: 1, .. })));
    assert!(matches!(History::read(&directory.path().join("none")), Err(Error::File { .. })));
}

#[track_caller]
fn malformed(events: Vec<Event>, why: &str) {
    let told = History { events, ..History::default() }.validate().expect_err("malformed").to_string();
    assert!(told.contains(why), "wanted {why:?}, got {told}");
}

#[test]
fn histories_that_are_not_well_formed_are_refused() {
    use Phase::{Fail, Info, Invoke, Ok};
    malformed(vec![event(2, 0, Invoke, write(1)), event(1, 0, Ok, write(1))], "its time 1 is before 2");
    malformed(vec![event(1, 0, Invoke, write(1)), event(2, 0, Invoke, write(2))], "while that of event 0 is pending");
    malformed(vec![event(1, 0, Invoke, write(1)), event(2, 0, Ok, write(2))], "process 0 began Write");
    malformed(
        vec![event(1, 0, Invoke, write(1)), event(2, 0, Ok, write(1)), event(3, 0, Ok, write(1))],
        "which it never began",
    );
    malformed(vec![event(1, 0, Fail, Operation::Hash { group: 1, node: 1, at: None })], "which it never began");
    malformed(
        vec![event(1, 0, Invoke, write(1)), event(2, 0, Info, write(1)), event(3, 0, Invoke, write(2))],
        "goes on after an operation of unknown outcome",
    );
    let backwards = History { faults: vec![fault(3, 2)], ..History::default() };
    assert!(backwards.validate().expect_err("malformed").to_string().contains("before it begins"));
}

/// A history with one of everything that is written in a way of its own.
fn mixed() -> History {
    use Phase::{Fail, Info, Invoke, Ok};
    let read = |value| Operation::Read { key: 3, value };
    let cas = Operation::Cas { key: 3, expected: Some(1), value: 2 };
    let first = Operation::Cas { key: 3, expected: None, value: 1 };
    History {
        events: vec![
            event(1, 0, Invoke, first.clone()),
            event(2, 0, Ok, first),
            event(3, 0, Invoke, read(None)),
            event(4, 1, Invoke, cas.clone()),
            event(5, 0, Ok, read(Some(Some(1)))),
            event(6, 1, Info, cas),
            event(7, 0, Invoke, write(9)),
            event(8, 0, Fail, write(9)),
            event(9, 2, Ok, Operation::Deliver { value: 1, task: 2, token: "3.0".into(), attempt: 1 }),
        ],
        faults: vec![fault(4, 7)],
        notes: notes(),
    }
}

fn edn(dialect: Dialect) -> String {
    let directory = directory();
    let path = directory.path().join("history.edn");
    mixed().write_edn(&path, dialect).expect("writes");
    fs_err::read_to_string(path).expect("reads")
}

#[test]
fn knossos_reads_tuples_of_key_and_value_and_nothing_but_registers() {
    let wanted = r#"
{:type :invoke, :f :cas, :value [3 [nil 1]], :process 0, :time 1000, :index 0}
{:type :ok, :f :cas, :value [3 [nil 1]], :process 0, :time 2000, :index 1}
{:type :invoke, :f :read, :value [3 nil], :process 0, :time 3000, :index 2}
{:type :info, :f :start-link, :value nil, :process :nemesis, :time 4000, :index 3}
{:type :info, :f :start-link, :value "cut 0→1", :process :nemesis, :time 4000, :index 4}
{:type :invoke, :f :cas, :value [3 [1 2]], :process 1, :time 4000, :index 5}
{:type :ok, :f :read, :value [3 1], :process 0, :time 5000, :index 6}
{:type :info, :f :cas, :value [3 [1 2]], :process 1, :time 6000, :index 7}
{:type :info, :f :stop-link, :value nil, :process :nemesis, :time 7000, :index 8}
{:type :info, :f :stop-link, :value "cut 0→1", :process :nemesis, :time 7000, :index 9}
{:type :invoke, :f :write, :value [3 9], :process 0, :time 7000, :index 10}
{:type :fail, :f :write, :value [3 9], :process 0, :time 8000, :index 11}
"#;
    assert_eq!(edn(Dialect::Knossos), wanted.trim_start());
}

#[test]
fn elle_reads_transactions() {
    let text = edn(Dialect::Elle);
    for line in [
        "{:type :invoke, :f :txn, :value [[:r 3 nil] [:w 3 2]], :process 1, :time 4000, :index 5}",
        "{:type :ok, :f :txn, :value [[:r 3 1]], :process 0, :time 5000, :index 6}",
        "{:type :fail, :f :txn, :value [[:w 3 9]], :process 0, :time 8000, :index 11}",
    ] {
        assert!(text.lines().any(|told| told == line), "{line} is missing in {text}");
    }
    assert!(!text.contains("deliver"), "{text}");
}

#[test]
fn a_history_says_what_was_asked_of_it_and_how_far_it_came() {
    let history = mixed();
    assert_eq!(history.asked().map(|asked| asked.workload.as_str()), Some("mixed"));
    assert_eq!((history.reached(Stage::LoadEnded), history.reached(Stage::Healed)), (Some(5), None));
    assert_eq!(history.load(), (1, 5), "it does not say when the load began");
}

#[test]
fn a_stall_that_timers_and_disk_tell_is_one() {
    let stall = |what: &str, from, to| Note::Stalled { what: what.into(), from, to };
    let told = [
        stall("its timers", 9_000_000, 9_500_000),
        stall("its timers", 1_000_000, 2_000_000),
        stall("its disk", 2_000_020, 2_600_000),
        stall("its disk", 2_100_000, 2_200_000),
    ];
    let history = History { notes: told.to_vec(), ..History::default() };
    assert_eq!(history.stalls(), [(1_000_000, 2_600_000), (9_000_000, 9_500_000)]);
}

#[test]
fn what_a_part_of_a_run_records_says_so() {
    let directory = directory();
    let recorder = Recorder::create(&directory.path().join("history.jsonl")).expect("creates");
    recorder.of(Part::Probe(2)).process().instant(Operation::Hash { group: 0, node: 1, at: None });
    recorder.process().instant(Operation::Hash { group: 0, node: 1, at: None });
    recorder.note(&notes()[1]);
    let history = recorder.finish().expect("finishes");
    assert_eq!(history.events.iter().map(|event| event.part).collect::<Vec<_>>(), [Some(Part::Probe(2)), None]);
    assert_eq!(history.notes, notes()[1..2]);
}

#[test]
fn a_part_has_one_name() {
    for part in Part::LOADS.into_iter().map(|(part, _)| part).chain([Part::Probe(0), Part::Probe(12)]) {
        assert_eq!(part.to_string().parse(), Ok(part));
    }
    for text in ["", "probe-", "probe-x", "probe-300", "other"] {
        assert!(text.parse::<Part>().is_err(), "{text:?} is no part");
    }
}

#[test]
fn tokens_are_ordered_by_position_and_not_by_text() {
    let token = |text: &str| text.parse::<Token>().expect("a token");
    assert!(token("10.0") > token("9.5") && token("9.5") > token("9.4"));
    assert_eq!(token("10.2").to_string(), "10.2");
    for text in ["", "10", "10.", "a.b", "1.2.3", "-1.0"] {
        assert!(text.parse::<Token>().is_err(), "{text:?} is no token");
    }
}
