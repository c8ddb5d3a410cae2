//! Compiles the shim over FAISS, with the flags that FAISS itself was compiled with (`.cargo/config.toml`).

fn main() {
    #[cfg(feature = "faiss")]
    shim();
}

#[cfg(feature = "faiss")]
fn shim() {
    println!("cargo:rerun-if-changed=shim/graph.cc");
    let root =
        std::env::var("DEP_FAISS_C_ROOT").expect("faiss-sys with its feature `static` names where it installed FAISS");
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .file("shim/graph.cc")
        .include(format!("{root}/include"))
        .flag("-fopenmp")
        .opt_level(3)
        .warnings(false);
    if std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|architecture| architecture == "x86_64") {
        build.flag("-march=x86-64-v3");
    }
    build.compile("quorate_graph");
}
