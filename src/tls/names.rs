//! Which names a certificate needs, and which hosts they cover.

use crate::instance::name::Hostname;

/// Whether a certificate's name is good for a host: the host itself, or a wildcard, which covers
/// exactly one label (RFC 6125, section 6.4.3).
#[must_use]
pub fn covers(name: &str, host: &Hostname) -> bool {
    let host = host.as_str();
    match name.strip_prefix("*.") {
        Some(parent) => host.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(parent)),
        None => host.eq_ignore_ascii_case(name),
    }
}

/// The name that the local CA covers a host by: below the domain, the wildcard over its siblings,
/// so that a user's next app needs no new certificate; the domain itself, and hosts elsewhere, by
/// their own name.
#[must_use]
pub fn needed(host: &Hostname, domain: &Hostname) -> String {
    let below = host.as_str().strip_suffix(domain.as_str()).is_some_and(|rest| rest.ends_with('.'));
    match host.as_str().split_once('.') {
        Some((_, parent)) if below => format!("*.{parent}"),
        _ => host.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn host(text: &str) -> Hostname {
        Hostname::parse(text).unwrap()
    }

    #[test]
    fn a_wildcard_covers_one_label() {
        let notes = host("notes.alice.haas.localhost");
        assert!(covers("*.alice.haas.localhost", &notes) && covers("notes.alice.haas.localhost", &notes));
        assert!(covers("*.Alice.HAAS.localhost", &notes));
        for other in
            ["*.haas.localhost", "*.localhost", "alice.haas.localhost", "*.notes.alice.haas.localhost", "*", ""]
        {
            assert!(!covers(other, &notes), "{other}");
        }
        assert!(!covers("*.alice.haas.localhost", &host("alice.haas.localhost")));
    }

    #[test]
    fn siblings_share_a_name_and_strangers_have_their_own() {
        let domain = host("haas.localhost");
        for (of, name) in [
            ("haas.localhost", "haas.localhost"),
            ("notes--alice.haas.localhost", "*.haas.localhost"),
            ("notes.alice.haas.localhost", "*.alice.haas.localhost"),
            ("www.example.org", "www.example.org"),
            ("xhaas.localhost", "xhaas.localhost"),
            ("localhost", "localhost"),
        ] {
            assert_eq!(needed(&host(of), &domain), name, "{of}");
        }
    }

    proptest! {
        #[test]
        fn what_is_needed_covers(labels in prop::collection::vec("[a-z0-9]{1,8}", 1..5), below: bool) {
            let domain = host("haas.localhost");
            let tail = if below { ".haas.localhost" } else { "" };
            let host = host(&format!("{}{tail}", labels.join(".")));
            prop_assert!(covers(&needed(&host, &domain), &host));
        }
    }
}
