//! Generates the messages between peers and the records of the log from `proto/`, without a `protoc`.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["proto/log.proto", "proto/peer.proto"], ["proto"])?;
    // Payloads are taken out of the received frame without a copy.
    tonic_prost_build::configure().bytes(".").compile_fds(files)?;
    Ok(())
}
