//! Exit codes: 0 done, 1 refused or failed, 2 usage, 3 unreachable. Clap itself exits with 2.

use std::process::ExitCode;

use anyhow::Error;
use quorate_client::Error as ClientError;

/// What was typed does not fit.
pub const USAGE: u8 = 2;
/// No node answered.
pub const UNREACHABLE: u8 = 3;

/// A mistake in what was typed that only shows after parsing.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Prints an error with its causes on standard error and says how the process ends.
pub fn report(error: &Error) -> ExitCode {
    eprintln!("error: {error:#}");
    if error.chain().any(|cause| matches!(cause.downcast_ref(), Some(ClientError::OutcomeUnknown { .. }))) {
        eprintln!("is there a quorum? quorate cluster status says so, and what to do");
    }
    let code = if error.chain().any(|cause| matches!(cause.downcast_ref(), Some(ClientError::Unreachable { .. }))) {
        UNREACHABLE
    } else if error.chain().any(|cause| cause.is::<Usage>()) {
        USAGE
    } else {
        1
    };
    ExitCode::from(code)
}
