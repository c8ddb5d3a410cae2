//! The programs of the system that we call: ip, iptables, mount, strace.

use std::ffi::{OsStr, OsString};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};
use tokio::io::AsyncWriteExt;

/// Where the programs of the administrator live; not everybody's PATH has these.
pub(super) fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}

/// Runs a program to its end and gives what it printed.
pub(super) fn run<W: AsRef<OsStr>>(words: &[W]) -> Result<String> {
    let mut command = Command::new(words[0].as_ref());
    command.args(&words[1..]).env("PATH", search_path()).env("LC_ALL", "C").stdin(Stdio::null());
    let output = command.output().with_context(|| format!("running {}", shown(words)))?;
    printed(words, &output)
}

/// As [`run`], without holding up the runtime.
pub(super) async fn run_async<W: AsRef<OsStr>>(words: &[W]) -> Result<String> {
    run_with_input(words, "").await
}

/// As [`run_async`], with a text on the program's standard input.
pub(super) async fn run_with_input<W: AsRef<OsStr>>(words: &[W], input: &str) -> Result<String> {
    let mut command = tokio::process::Command::new(words[0].as_ref());
    command.args(&words[1..]).env("PATH", search_path()).env("LC_ALL", "C").kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("running {}", shown(words)))?;
    let mut pipe = child.stdin.take().context("a piped standard input")?;
    // A program that ends without reading is judged by its status, not by the broken pipe.
    let _ = pipe.write_all(input.as_bytes()).await;
    drop(pipe);
    printed(words, &child.wait_with_output().await?)
}

fn printed<W: AsRef<OsStr>>(words: &[W], output: &Output) -> Result<String> {
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{} ended with {}: {}", shown(words), output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn shown<W: AsRef<OsStr>>(words: &[W]) -> String {
    words.iter().map(|word| word.as_ref().to_string_lossy()).collect::<Vec<_>>().join(" ")
}
