//! Names of queues and roles, kept once and numbered, so that a task holds four bytes instead of a string.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::Reject;
use crate::codec::{Decode, Encode};
use crate::records::{Changes, Record, Records};

/// The most names of a kind.
pub(super) const MAX_NAMES: usize = 65_536;
/// The longest name of a queue, role, agent or collection, bytes.
pub const MAX_NAME_BYTES: usize = 128;

/// Refuses an empty or overlong name and one with control characters in it.
pub(super) fn check_name(what: &str, name: &str) -> Result<(), Reject> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
        return Err(Reject::invalid(format!(
            "the name of a {what} has 1 to {MAX_NAME_BYTES} bytes and no control characters; {:?} has {} bytes",
            name.chars().take(32).collect::<String>(),
            name.len()
        )));
    }
    Ok(())
}

/// The name of a queue.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct QueueName(Arc<str>);
/// The name of a role.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct RoleName(Arc<str>);

/// A record that is a name.
pub(super) trait Name: Record<Key = u32> {
    /// The things that are named, in the plural.
    const PLURAL: &'static str;
    fn new(name: &str) -> Self;
    fn text(&self) -> &Arc<str>;
}

impl Record for QueueName {
    const TABLE: u8 = super::table::QUEUE;
    type Key = u32;
}
impl Name for QueueName {
    const PLURAL: &'static str = "queues";
    fn new(name: &str) -> Self {
        QueueName(Arc::from(name))
    }
    fn text(&self) -> &Arc<str> {
        &self.0
    }
}
impl Record for RoleName {
    const TABLE: u8 = super::table::ROLE;
    type Key = u32;
}
impl Name for RoleName {
    const PLURAL: &'static str = "roles";
    fn new(name: &str) -> Self {
        RoleName(Arc::from(name))
    }
    fn text(&self) -> &Arc<str> {
        &self.0
    }
}

/// All names of a kind, numbered from 0 without holes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Names<N: Name> {
    records: Records<N>,
    numbers: BTreeMap<Arc<str>, u32>,
}

impl<N: Name> Default for Names<N> {
    fn default() -> Self {
        Names { records: Records::default(), numbers: BTreeMap::new() }
    }
}

impl<N: Name> Names<N> {
    pub(super) fn number(&self, name: &str) -> Option<u32> {
        self.numbers.get(name).copied()
    }

    /// The name with a number that was given out here.
    pub(super) fn text(&self, number: u32) -> &Arc<str> {
        self.records.get(&number).expect("a number is only taken from a record that load and apply have checked").text()
    }

    /// The number of a name, new if need be. Refusals come before, from [`Names::check_room`].
    pub(super) fn intern(&mut self, name: &str, changes: &mut Changes) -> u32 {
        if let Some(number) = self.number(name) {
            return number;
        }
        let number = self.records.len() as u32;
        let record = N::new(name);
        self.numbers.insert(record.text().clone(), number);
        self.records.put(number, record, changes);
        number
    }

    /// Refuses when the names that are new would be too many.
    pub(super) fn check_room(&self, new: usize) -> Result<(), Reject> {
        if self.records.len() + new > MAX_NAMES {
            return Err(Reject::LimitReached { what: N::PLURAL.to_owned(), limit: MAX_NAMES as u64 });
        }
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    pub(super) fn records(&self) -> &Records<N> {
        &self.records
    }

    pub(super) fn load(&mut self, key: &[u8], value: &[u8], changes: &mut Changes) -> Result<(), crate::Fault> {
        self.records.load(key, value, changes)
    }

    /// Rebuilds what is derived from the records.
    pub(super) fn derive(&mut self) {
        self.numbers = self.records.iter().map(|(number, record)| (record.text().clone(), number)).collect();
    }
}
