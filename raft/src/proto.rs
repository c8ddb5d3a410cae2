//! The generated messages, as `proto/` defines them.
#![expect(unreachable_pub, reason = "generated; the meaning is in the .proto files")]

tonic::include_proto!("quorate.raft.v1");
