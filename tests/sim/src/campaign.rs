//! Many seeds, each in a process of its own: the randomness and the clock of a process belong to one seed, and a seed
//! that hangs or aborts takes no other with it.

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;

use crate::report::Report;

/// Which seeds are run.
#[derive(Debug, Clone)]
pub(crate) struct Campaign {
    /// The first one.
    pub(crate) first: u64,
    /// How many.
    pub(crate) seeds: u64,
    /// Steps of each.
    pub(crate) steps: u64,
    /// The planted bug.
    pub(crate) planted: Option<String>,
    /// Processes at the same time.
    pub(crate) jobs: usize,
}

impl Campaign {
    /// Runs the seeds and tells each report as it comes. Ends early when `told` says false.
    pub(crate) fn run(&self, mut told: impl FnMut(Report) -> bool) {
        let next = AtomicU64::new(self.first);
        let ended = AtomicBool::new(false);
        let (reports, coming) = mpsc::channel();
        thread::scope(|scope| {
            for _ in 0..self.jobs.max(1) {
                let (reports, next, ended) = (reports.clone(), &next, &ended);
                scope.spawn(move || {
                    while !ended.load(Ordering::Relaxed) {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= self.first + self.seeds || reports.send(self.one(seed)).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(reports);
            for report in coming {
                if !told(report) {
                    ended.store(true, Ordering::Relaxed);
                    break;
                }
            }
        });
    }

    fn one(&self, seed: u64) -> Report {
        let lost = |why: String| Report::lost(seed, self.steps, why);
        let program = match std::env::current_exe() {
            Ok(program) => program,
            Err(error) => return lost(format!("the program cannot be found again: {error}")),
        };
        let mut command = Command::new(program);
        command.args(["one", &seed.to_string(), &self.steps.to_string()]);
        if let Some(planted) = &self.planted {
            command.args(["--planted", planted]);
        }
        let output = match command.output() {
            Ok(output) => output,
            Err(error) => return lost(format!("the process of the seed does not start: {error}")),
        };
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
            let errors = String::from_utf8_lossy(&output.stderr);
            let last: Vec<_> = errors.lines().rev().take(3).collect();
            let last: Vec<_> = last.into_iter().rev().collect();
            lost(format!("the process of the seed ended with {}: {}", output.status, last.join(" | ")))
        })
    }
}
