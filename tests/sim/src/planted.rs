//! The bugs that can be planted, each at another seam. PLANTED.md says what they are.

/// Their names.
pub(crate) const NAMES: [&str; 5] =
    ["unsynced-log", "stale-read", "stale-token", "forgotten-requests", "early-acknowledge"];

/// Plants a bug into this process.
///
/// # Errors
/// If there is no such bug in this program.
pub(crate) fn plant(name: &str) -> anyhow::Result<()> {
    anyhow::ensure!(NAMES.contains(&name), "there is no planted bug {name:?}; there are: {}, all", NAMES.join(", "));
    choose(name)
}

#[cfg(feature = "planted")]
fn choose(name: &str) -> anyhow::Result<()> {
    quorate_raft::planted::choose(name);
    quorate_state::planted::choose(name);
    Ok(())
}

#[cfg(not(feature = "planted"))]
fn choose(_: &str) -> anyhow::Result<()> {
    anyhow::bail!("this program was built without planted bugs: build it with the feature `planted`")
}
