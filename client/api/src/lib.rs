//! The public protocol of Quorate.
//!
//! The `.proto` files in `proto/quorate/v1` are the contract with programs in any language; [`v1`] is the code that is
//! generated from them. This crate adds the two things that a `.proto` file cannot say:
//!
//! - [`ApiError`]: an error has a *reason* from one enum, and the reason alone decides the gRPC code, whether a retry is
//!   safe and what to do next. The node builds one, the wire carries it (as a `google.rpc.Status` with details, or as
//!   [`v1::Error`] inside a frame of a stream), the client reads the same one. `ERRORS.md` has a section for each reason.
//! - [`limits`]: every public limit, once. The node refuses what is beyond them; a client may refuse it earlier.
//!
//! Invariant: this crate knows the wire and nothing else. It imports no other crate of the workspace.

mod errors;
pub mod limits;

pub use errors::{ApiError, DOMAIN};

/// Messages, clients and servers of the protobuf package `quorate.v1`. Fields of type `bytes` are [`bytes::Bytes`].
#[expect(
    missing_docs,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated; the .proto files are the documentation"
)]
pub mod v1 {
    tonic::include_proto!("quorate.v1");
}

/// The encoded `FileDescriptorSet` of `quorate.v1`, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/quorate.v1.bin"));
