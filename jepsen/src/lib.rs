//! quorate-jepsen.

pub mod event;
