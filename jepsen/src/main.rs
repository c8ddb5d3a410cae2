//! `quorate-jepsen`.

use std::process::ExitCode;

fn main() -> ExitCode {
    quorate_jepsen::command::main()
}
