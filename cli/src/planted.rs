//! The one binary with a bug in it, for tests that must find it. `QUORATE_PLANTED` names the bug; without it there is none.

use std::process::ExitCode;

use quorate_node::planted::VARIABLE;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    if let Some(name) = std::env::var_os(VARIABLE) {
        let known: Vec<&str> = quorate_node::planted::names().chain(quorate_client::planted::NAMES).collect();
        let Some(name) = known.iter().find(|known| name == **known) else {
            eprintln!(
                "quorate-planted: {VARIABLE} is {name:?}, which is no planted bug; there are: {}",
                known.join(", ")
            );
            return ExitCode::from(2);
        };
        eprintln!("quorate-planted: this process has the planted bug {name}");
        quorate_node::planted::choose(name);
        quorate_client::planted::choose(name);
    }
    quorate::program::main()
}
