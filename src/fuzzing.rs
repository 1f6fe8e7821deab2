//! The doors of a fuzzer: each target takes any bytes, gives them to parsers of ours that read what comes
//! from outside, and holds what they make of it against what must be true of it.
//!
//! `fuzz/` calls them by libFuzzer, and `tests/corpus.rs` with every input that was kept. Only with the
//! feature `fuzzing`, and never in a release.

/// A target: it panics when something is not as it must be.
pub type Target = fn(&[u8]);

/// Every target, by the name that it has in `fuzz/`.
pub const TARGETS: &[(&str, Target)] = &[
    ("names", crate::instance::fuzzing::names),
    ("payload", crate::http::fuzzing::payload),
    ("signature", crate::http::fuzzing::signature),
    ("sso_token", crate::http::fuzzing::sso_token),
    ("runtime_socket", crate::haproxy::fuzzing::runtime_socket),
];

/// Gives the bytes to one target.
///
/// # Panics
/// As the target does, and when there is none of this name.
pub fn run(name: &str, data: &[u8]) {
    let Some((_, target)) = TARGETS.iter().find(|(other, _)| *other == name) else { panic!("no target {name}") };
    target(data);
}
