//! Marks of what a fault holds, so that faults that overlap do not fight over the same thing.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;

/// Something that one fault at a time may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mark {
    /// A node's process and disk.
    Node(usize),
    /// A node's clock.
    Clock(usize),
    /// Which links are cut.
    Links,
    /// What is done to packets that pass.
    Packets,
    /// The right to damage files: of one node at a time, until it is whole again, as more is not promised to be survived.
    Damage,
    /// The set of members.
    Membership,
}

/// All marks of a cluster.
#[derive(Debug, Clone, Default)]
pub struct Marks {
    held: Arc<Mutex<BTreeSet<Mark>>>,
}

/// Marks that are held until this is dropped.
#[derive(Debug)]
pub struct Hold {
    marks: Marks,
    held: Vec<Mark>,
}

impl Marks {
    /// Takes all of `wanted`, or none and `None` if another holds one of them.
    pub fn take(&self, wanted: &[Mark]) -> Option<Hold> {
        let mut held = self.held.lock();
        if wanted.iter().any(|mark| held.contains(mark)) {
            return None;
        }
        held.extend(wanted);
        Some(Hold { marks: self.clone(), held: wanted.to_vec() })
    }

    /// Whether anything but `own` is held now.
    pub fn others(&self, own: &[Mark]) -> bool {
        self.held.lock().iter().any(|mark| !own.contains(mark))
    }

    /// Whether somebody holds it now.
    pub fn is_held(&self, mark: Mark) -> bool {
        self.held.lock().contains(&mark)
    }
}

impl Hold {
    /// Never gives the marks back: what they stand for did not end.
    pub fn keep(mut self) {
        self.held.clear();
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut held = self.marks.held.lock();
        for mark in &self.held {
            held.remove(mark);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_or_nothing_and_back_on_drop() {
        let marks = Marks::default();
        let first = marks.take(&[Mark::Node(0), Mark::Links]).expect("nobody holds anything");
        assert!(marks.take(&[Mark::Node(1), Mark::Links]).is_none());
        assert!(!marks.is_held(Mark::Node(1)), "a refused request keeps nothing");
        assert!(marks.others(&[Mark::Links]));
        assert!(!marks.others(&[Mark::Links, Mark::Node(0)]));
        drop(first);
        assert!(marks.take(&[Mark::Node(1), Mark::Links]).is_some());
    }
}
