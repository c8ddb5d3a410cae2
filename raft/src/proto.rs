//! The generated messages, as `proto/` defines them.
#![expect(
    unreachable_pub,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated; the meaning is in the .proto files"
)]

tonic::include_proto!("quorate.raft.v1");
