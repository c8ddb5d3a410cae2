//! The C++ libraries carry half a gigabyte of debug information into every binary that links them; symbols stay.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg=-Wl,--strip-debug");
}
