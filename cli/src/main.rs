//! The one binary.

use std::process::ExitCode;

// Many short-lived buffers of all sizes on many threads: jemalloc gives the memory back, glibc's arenas do not.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    quorate::program::main()
}
