//! Replies as they are kept for requests that are sent again.

use super::command::{Reply, Version};
use crate::codec::{Decode, Encode};
use crate::requests::Kept;

/// What is kept of a reply. Versions given out by one operation are mostly consecutive: then the first one and their number
/// will do.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub(super) enum KeptReply {
    Consecutive { first: u64, count: u32 },
    Other(Box<Reply>),
}

impl Kept for KeptReply {
    const TABLE: u8 = super::table::REQUEST;
}

impl KeptReply {
    pub(super) fn new(reply: &Reply) -> KeptReply {
        if let Reply::Upserted(versions) = reply
            && let Some(Ok(Version(first))) = versions.first()
            && (*first..).zip(versions).all(|(row, version)| *version == Ok(Version(row)))
        {
            return KeptReply::Consecutive { first: *first, count: versions.len() as u32 };
        }
        KeptReply::Other(Box::new(reply.clone()))
    }

    pub(super) fn reply(&self) -> Reply {
        match self {
            KeptReply::Consecutive { first, count } => {
                Reply::Upserted((*first..first + u64::from(*count)).map(|row| Ok(Version(row))).collect())
            }
            KeptReply::Other(reply) => (**reply).clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::PointReject;

    #[test]
    fn a_kept_reply_is_the_reply() {
        let refused = Err(PointReject::NotFinite { at: 0 });
        let replies = [
            Reply::Upserted(vec![]),
            Reply::Upserted(vec![Ok(Version(4)), Ok(Version(5)), Ok(Version(6))]),
            Reply::Upserted(vec![Ok(Version(4)), refused, Ok(Version(5))]),
            Reply::Deleted { existed: vec![true, false] },
            Reply::Done,
        ];
        for reply in replies {
            assert_eq!(KeptReply::new(&reply).reply(), reply);
        }
    }
}
