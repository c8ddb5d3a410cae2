//! Compiles the .proto files in pure Rust (no `protoc`), and keeps the descriptors for gRPC reflection.

use std::error::Error;
use std::path::PathBuf;

use prost::Message;

const FILES: [&str; 5] = [
    "quorate/v1/agents.proto",
    "quorate/v1/cluster.proto",
    "quorate/v1/error.proto",
    "quorate/v1/memory.proto",
    "quorate/v1/tasks.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    // tonic_prost_build prints no rerun-if-changed for descriptors; without these lines every check would rebuild.
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("quorate.v1.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".")
        .btree_map(".")
        .build_client(true)
        .build_server(true)
        .compile_fds(descriptors)?;
    Ok(())
}
