//! `quorate-jepsen` with a bug in its clients, for runs that must find it. `QUORATE_PLANTED` names the bug, or several
//! that are separated by commas; those that are not the client's are none here. No release has it.

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Ok(names) = std::env::var("QUORATE_PLANTED") {
        quorate_client::planted::choose(&names);
    }
    quorate_jepsen::command::main()
}
