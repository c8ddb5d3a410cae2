//! The one binary with a bug in it, for tests that must find it. `QUORATE_PLANTED` names the bug, or several that are separated
//! by commas; without it there is none.
//! `QUORATE_FAILPOINT` names a place at which the process ends, for tests that kill it between two steps.

use std::process::ExitCode;

use quorate_node::planted::{FAILPOINT_VARIABLE, VARIABLE};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    if let Some(names) = std::env::var_os(VARIABLE) {
        let names = names.to_string_lossy();
        let known: Vec<&str> = quorate_node::planted::names().chain(quorate_client::planted::NAMES).collect();
        if let Some(name) = names.split(',').find(|name| !known.contains(name)) {
            eprintln!(
                "quorate-planted: {VARIABLE} has {name:?}, which is no planted bug; there are: {}",
                known.join(", ")
            );
            return ExitCode::from(2);
        }
        eprintln!("quorate-planted: this process has the planted bug {names}");
        quorate_node::planted::choose(&names);
        quorate_client::planted::choose(&names);
    }
    if let Some(told) = std::env::var_os(FAILPOINT_VARIABLE)
        && let Err(wrong) = quorate_node::planted::end_at(&told.to_string_lossy())
    {
        eprintln!("quorate-planted: {FAILPOINT_VARIABLE}: {wrong}");
        return ExitCode::from(2);
    }
    quorate::program::main()
}
