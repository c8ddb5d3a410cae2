//! Leadership: who acts as the leader of a term has applied an entry of that term, and so everything that was acknowledged
//! before it.

use quorate_raft::GroupId;

/// A node leads in `term` while the last entry that it has applied is of the term `applied`.
pub(crate) fn leads(node: usize, group: GroupId, term: u64, applied: Option<u64>) -> Option<String> {
    let behind = applied.is_none_or(|applied| applied < term);
    behind.then(|| {
        format!(
            "leadership: node-{} acts as the leader of group {group} in term {term} and has applied entries up to term \
             {applied:?} only",
            node + 1
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_that_has_applied_nothing_of_its_term_is_seen() {
        let leads = |applied| leads(0, GroupId(1), 3, applied);
        assert_eq!(leads(Some(3)), None);
        assert_eq!(leads(Some(4)), None, "it was deposed a moment ago");
        assert!(leads(Some(2)).is_some());
        assert!(leads(None).is_some());
    }
}
