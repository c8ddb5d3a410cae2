//! Holds `ERRORS.md` to the enum of reasons: a section for each, with its code, its retry and its next step.

use std::collections::BTreeMap;

use quorate_api::v1::ErrorReason;

const PAGE: &str = include_str!("../ERRORS.md");

fn sections() -> BTreeMap<&'static str, &'static str> {
    PAGE.split("\n## ").skip(1).map(|section| section.split_once('\n').expect("a section has a body")).collect()
}

/// `FailedPrecondition` is `FAILED_PRECONDITION` on the wire and on the page.
fn upper_snake(camel: &str) -> String {
    let mut out = String::new();
    for (at, letter) in camel.char_indices() {
        if at > 0 && letter.is_ascii_uppercase() {
            out.push('_');
        }
        out.push(letter.to_ascii_uppercase());
    }
    out
}

#[test]
fn each_reason_has_a_section_and_each_section_a_reason() {
    let named: Vec<_> = sections().into_keys().collect();
    let mut reasons: Vec<_> = ErrorReason::all().map(ErrorReason::name).collect();
    reasons.sort_unstable();
    assert_eq!(named, reasons);
}

#[test]
fn each_section_says_what_the_code_does() {
    let sections = sections();
    for reason in ErrorReason::all() {
        let section = sections[reason.name()];
        let code = format!("- gRPC code: {}\n", upper_snake(&format!("{:?}", reason.code())));
        let retry = if reason.is_retryable() { "yes" } else { "no" };
        let retry = format!("- Retry: {retry}\n");
        let next = format!("Next: {}.", reason.next_step());
        for line in [&code, &retry, &next] {
            assert!(section.contains(line.as_str()), "{}: no line {line:?}", reason.name());
        }
    }
}
