//! The generated messages, as `proto/` defines them.
#![expect(missing_docs, unreachable_pub, reason = "generated; the meaning is in the .proto files")]

tonic::include_proto!("quorate.raft.v1");
