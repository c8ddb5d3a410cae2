//! The comparison of the log database with the floor, once at the start.
//!
//! Which replicas were here is what the floor says; whether their logs are whole is checked when each is opened. Here only
//! the plain losses are found: a log that is gone altogether, as when the database was lost and made anew, a log that the
//! floor does not know, and a floor that is lost. In each case nothing tells any more what the log must hold, or holds it.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::engine::{FloorFile, LogEngine, MarkKind};
use crate::health::is_damage;
use crate::ids::{GroupId, ReplicaId};
use crate::log::floor::{Floor, Found, Standing};
use crate::log::{LogError, mark};
use crate::proto;

/// Reads both, quarantines what was lost, and makes that durable. Refuses, and changes nothing, where there is nothing at all
/// though the node was `used_before`.
pub(crate) fn take(engine: &dyn LogEngine, file: Arc<dyn FloorFile>, used_before: bool) -> Result<Floor, LogError> {
    let (mut floor, found) = Floor::open(file)?;
    let logs: BTreeSet<GroupId> = match engine.groups() {
        Ok(groups) => groups.into_iter().collect(),
        Err(error) if is_damage(&error) => {
            tracing::error!(%error, "the log database does not say which groups it holds");
            BTreeSet::new()
        }
        Err(error) => return Err(error.into()),
    };
    if used_before && !found.is_whole() && logs.is_empty() {
        return Err(LogError::Lost);
    }
    let mut lost: Vec<(GroupId, ReplicaId, String)> = Vec::new();
    for group in logs.iter().filter(|group| floor.entry(**group).is_none()) {
        let reason = match &found {
            Found::Whole(_) => "the floor does not know of its log".to_owned(),
            Found::Nothing => "the floor is gone: nothing says what its log must hold".to_owned(),
            Found::Damaged(how) => format!("the floor is damaged ({how}): nothing says what its log must hold"),
        };
        lost.push((*group, owner(engine, *group), reason));
    }
    for (group, entry) in floor.entries().filter(|(group, _)| !logs.contains(group)) {
        if entry.standing == Standing::Sound && !entry.promises_nothing() {
            lost.push((group, entry.replica, "its log is gone".to_owned()));
        }
    }
    for (group, replica, reason) in &lost {
        tracing::error!(%group, replica, reason, "a replica is damaged and quarantined");
        floor.quarantine(*group, *replica, reason);
    }
    if !lost.is_empty() || !found.is_whole() {
        // Both slots: one that is damaged must not stay.
        floor.write()?;
        floor.write()?;
    }
    Ok(floor)
}

/// Whose log it is, or 0 if that cannot be read.
fn owner(engine: &dyn LogEngine, group: GroupId) -> ReplicaId {
    let mark: Result<Option<proto::ReplicaMark>, LogError> = mark::read(engine, group, MarkKind::Replica);
    mark.ok().flatten().map_or(0, |mark| mark.replica)
}
