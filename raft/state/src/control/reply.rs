//! Replies as they are kept for requests that are sent again: small, because there are many.

use super::command::Reply;
use super::read::consecutive;
use crate::TaskId;
use crate::codec::{Decode, Encode};
use crate::requests::Kept;

/// What is kept of a reply. Ids given out by one operation are consecutive, so the first one and their number will do.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub(super) enum KeptReply {
    Tasks { first: TaskId, count: u32 },
    Completed { first: TaskId, count: u32 },
    Other(Box<Reply>),
}

impl Kept for KeptReply {
    const TABLE: u8 = super::table::REQUEST;
}

impl KeptReply {
    pub(super) fn new(reply: &Reply) -> KeptReply {
        let first = |tasks: &[TaskId]| tasks.first().copied().unwrap_or_default();
        match reply {
            Reply::Tasks(tasks) => KeptReply::Tasks { first: first(tasks), count: tasks.len() as u32 },
            Reply::Completed { children } => {
                KeptReply::Completed { first: first(children), count: children.len() as u32 }
            }
            other => KeptReply::Other(Box::new(other.clone())),
        }
    }

    pub(super) fn reply(&self) -> Reply {
        match self {
            KeptReply::Tasks { first, count } => Reply::Tasks(consecutive(*first, *count)),
            KeptReply::Completed { first, count } => Reply::Completed { children: consecutive(*first, *count) },
            KeptReply::Other(reply) => (**reply).clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_reply_is_the_reply() {
        let replies = [
            Reply::Tasks(vec![]),
            Reply::Tasks(vec![TaskId(70_000), TaskId(70_001), TaskId(70_002)]),
            Reply::Completed { children: vec![TaskId(9)] },
            Reply::Failed { dead: true },
            Reply::Member { control_replica: 4 },
        ];
        for reply in replies {
            assert_eq!(KeptReply::new(&reply).reply(), reply);
        }
    }
}
