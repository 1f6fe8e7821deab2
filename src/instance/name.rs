//! Names that come from outside, parsed once and trusted from then on.
//!
//! No field of a tenant reaches a container, a file or a host name without having
//! passed through here: a newline in a value would be a new line of haproxy.cfg.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Octets in a DNS label (RFC 1035, section 2.3.4).
const LABEL_MAX: usize = 63;
/// Octets in a host name in its textual form (RFC 1035, section 2.3.4).
const HOST_MAX: usize = 253;
/// Octets in an email address (RFC 5321, section 4.5.3.1.3, as corrected by erratum 1690).
const EMAIL_MAX: usize = 254;
/// Octets before the `@` (RFC 5321, section 4.5.3.1.1).
const EMAIL_LOCAL_MAX: usize = 64;

/// Labels that would let a tenant pass for the operator, or that resolvers treat specially.
pub const RESERVED: &[&str] = &[
    "admin",
    "administrator",
    "api",
    "control",
    "haas",
    "hostmaster",
    "localhost",
    "postmaster",
    "root",
    "webmaster",
    "wpad",
    "www",
];

/// Why a name was refused. The texts go to clients, so they never repeat the input.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NameError {
    /// Nothing but white space was given.
    #[error("must not be empty")]
    Empty,
    /// More octets than the place where the name ends up can hold.
    #[error("must be at most {max} bytes long")]
    TooLong {
        /// The longest that would do, in bytes.
        max: usize,
    },
    /// Not a DNS label (RFC 1123, section 2.1).
    #[error("must be a DNS label: letters a-z, digits and single hyphens, beginning and ending with a letter or digit")]
    NotALabel,
    /// Two hyphens in a row, which the flat host pattern uses as its separator.
    #[error("must not contain two hyphens in a row")]
    DoubleHyphen,
    /// One of [`RESERVED`].
    #[error("is reserved")]
    Reserved,
    /// Not `local@domain`, or with characters that no mail system needs unquoted.
    #[error("must be an email address")]
    NotAnEmail,
    /// Not a host name of letters, digits, hyphens and dots.
    #[error("must be a host name")]
    NotAHost,
    /// A name that is whole only together with somebody's search list.
    #[error("must be a full host name, with a dot in it")]
    NoDot,
    /// An address, or what programs read as one.
    #[error("must not be an IP address")]
    IpAddress,
    /// What only the host pattern gives.
    #[error("must not be the installation's own domain, nor below it")]
    OfTheDomain,
}

/// Checks a DNS label as both halves of a tenant's name must be, lower-cased.
fn label(input: &str) -> Result<String, NameError> {
    if input.is_empty() {
        return Err(NameError::Empty);
    }
    if input.len() > LABEL_MAX {
        return Err(NameError::TooLong { max: LABEL_MAX });
    }
    let lower = input.to_ascii_lowercase();
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if !lower.bytes().all(legal) || lower.starts_with('-') || lower.ends_with('-') {
        return Err(NameError::NotALabel);
    }
    if lower.contains("--") {
        return Err(NameError::DoubleHyphen);
    }
    if RESERVED.contains(&lower.as_str()) {
        return Err(NameError::Reserved);
    }
    Ok(lower)
}

macro_rules! checked_string {
    ($(#[$doc:meta])* $name:ident, $parse:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        // Shared: an app's names are in routes, maps and rows at a time, ten thousand times over.
        pub struct $name(Arc<str>);

        impl $name {
            /// Parses the text, lower-casing what is compared without regard to case.
            ///
            /// # Errors
            /// [`NameError`] says which rule the text breaks.
            pub fn parse(input: &str) -> Result<Self, NameError> {
                let parse: fn(&str) -> Result<String, NameError> = $parse;
                parse(input).map(|checked| Self(checked.into()))
            }

            /// The checked text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(input: String) -> Result<Self, NameError> {
                Self::parse(&input)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

macro_rules! shown {
    ($($name:ident)*) => {
        $(impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_tuple(stringify!($name)).field(&self.0).finish()
            }
        })*
    };
}
shown!(Username AppName Hostname ContainerName);

/// Who the owner is belongs in no log, nor in what a panic says.
impl fmt::Debug for Email {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Email(..)")
    }
}

checked_string!(
    /// The user that an instance belongs to: a DNS label.
    Username,
    label
);
checked_string!(
    /// The app that an instance serves: a DNS label.
    AppName,
    label
);
checked_string!(
    /// Where the owner gets mail. Kept as written, since the local part may be case-sensitive.
    Email,
    email
);
checked_string!(
    /// A host name, in lower case, without a trailing dot.
    Hostname,
    hostname
);
checked_string!(
    /// The Docker name of an instance's container: `<username>-<app>`.
    ContainerName,
    container_name
);

impl ContainerName {
    /// The name that the pair always gets. `a-b`+`c` and `a`+`b-c` share one: the manifest
    /// lets only one of them in.
    #[must_use]
    pub fn of(username: &Username, appname: &AppName) -> Self {
        Self(format!("{username}-{appname}").into())
    }
}

/// Docker's own rule is `[a-zA-Z0-9][a-zA-Z0-9_.-]+`; ours is what two labels can make.
fn container_name(input: &str) -> Result<String, NameError> {
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    match input {
        "" => Err(NameError::Empty),
        _ if input.len() > 2 * LABEL_MAX + 1 => Err(NameError::TooLong { max: 2 * LABEL_MAX + 1 }),
        _ if input.bytes().all(legal) && !input.starts_with('-') => Ok(input.to_owned()),
        _ => Err(NameError::NotALabel),
    }
}

fn hostname(input: &str) -> Result<String, NameError> {
    if input.is_empty() {
        return Err(NameError::Empty);
    }
    if input.len() > HOST_MAX {
        return Err(NameError::TooLong { max: HOST_MAX });
    }
    let lower = input.to_ascii_lowercase();
    let legal_label = |label: &str| {
        !label.is_empty()
            && label.len() <= LABEL_MAX
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    if lower.split('.').all(legal_label) { Ok(lower) } else { Err(NameError::NotAHost) }
}

/// A deliberately plain subset of RFC 5321 mailboxes: a dot-atom, an `@`, and a host name with
/// a dot in it. Quoted local parts and address literals are refused: Appmaker's users have neither.
fn email(input: &str) -> Result<String, NameError> {
    if input.is_empty() {
        return Err(NameError::Empty);
    }
    if input.len() > EMAIL_MAX {
        return Err(NameError::TooLong { max: EMAIL_MAX });
    }
    let (local, domain) = input.rsplit_once('@').ok_or(NameError::NotAnEmail)?;
    let atom = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+/=?^_`{|}~-".contains(&b) || b >= 0x80;
    let local_ok = local.len() <= EMAIL_LOCAL_MAX
        && local.split('.').all(|part| !part.is_empty() && part.bytes().all(atom))
        && !local.chars().any(|c| c.is_control() || c.is_whitespace());
    if local_ok && domain.contains('.') && hostname(domain).is_ok() {
        Ok(input.to_owned())
    } else {
        Err(NameError::NotAnEmail)
    }
}

/// How a tenant's host name is made from its parts.
///
/// A wildcard certificate for `*.domain` covers one label only (RFC 6125, section 6.4.3), so an
/// operator with a single certificate chooses the flat form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostPattern {
    /// `notes.alice.haas.example`
    #[serde(rename = "{app}.{user}.{domain}")]
    Nested,
    /// `notes--alice.haas.example`
    #[serde(rename = "{app}--{user}.{domain}")]
    Flat,
}

impl HostPattern {
    /// The host of an app.
    ///
    /// # Errors
    /// [`NameError::TooLong`] when the whole host, or the flat form's label, is over the limit;
    /// [`NameError::Reserved`] when that label would be `xn--<user>`, which programs show as whatever the user's
    /// name stands for in Punycode (RFC 5890, section 2.3.2.1).
    pub fn host(self, username: &Username, appname: &AppName, domain: &Hostname) -> Result<Hostname, NameError> {
        match self {
            Self::Nested => Hostname::parse(&format!("{appname}.{username}.{domain}")),
            Self::Flat => {
                let label = format!("{appname}--{username}");
                if label.len() > LABEL_MAX {
                    return Err(NameError::TooLong { max: LABEL_MAX });
                }
                if label.starts_with("xn--") {
                    return Err(NameError::Reserved);
                }
                Hostname::parse(&format!("{label}.{domain}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn labels_are_lower_cased_and_checked() {
        assert_eq!(Username::parse("Alice").unwrap().as_str(), "alice");
        assert_eq!(AppName::parse("a").unwrap().as_str(), "a");
        assert_eq!(AppName::parse("0-9").unwrap().as_str(), "0-9");
        for (input, error) in [
            ("", NameError::Empty),
            ("-a", NameError::NotALabel),
            ("a-", NameError::NotALabel),
            ("a--b", NameError::DoubleHyphen),
            ("é", NameError::NotALabel),
            ("a.b", NameError::NotALabel),
            ("..", NameError::NotALabel),
            ("a\n", NameError::NotALabel),
            ("a\nbackend evil", NameError::NotALabel),
            ("a\0", NameError::NotALabel),
            ("a b", NameError::NotALabel),
            ("a_b", NameError::NotALabel),
            ("WWW", NameError::Reserved),
        ] {
            assert_eq!(Username::parse(input), Err(error), "{input:?}");
        }
        assert!(AppName::parse(&"a".repeat(63)).is_ok());
        assert_eq!(AppName::parse(&"a".repeat(64)), Err(NameError::TooLong { max: 63 }));
    }

    #[test]
    fn emails_have_a_sensible_form() {
        for good in ["alice@example.com", "a.b+c@x.y.example", "o'hara@example.co", "jörg@example.org"] {
            assert!(Email::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "alice",
            "@example.com",
            "alice@",
            "alice@localhost",
            "a@b@c.de.",
            "a..b@example.com",
            "a b@example.com",
            "a\n@example.com",
            "a@exa\tmple.com",
            "<a@example.com>",
            "a@example.com\r",
            "a\u{85}b@example.com",
            "a\u{a0}b@example.com",
        ] {
            assert!(Email::parse(bad).is_err(), "{bad:?}");
        }
        let domain = format!("{0}.{0}.{0}.example", "d".repeat(60));
        assert!(Email::parse(&format!("{}@{domain}", "l".repeat(62))).is_ok());
        let long = format!("{}@{domain}", "l".repeat(64));
        assert_eq!(Email::parse(&long), Err(NameError::TooLong { max: 254 }));
    }

    #[test]
    fn hosts_follow_the_pattern_and_its_limits() {
        let user = Username::parse("alice").unwrap();
        let app = AppName::parse("notes").unwrap();
        let domain = Hostname::parse("haas.localhost").unwrap();
        let host = |pattern: HostPattern| pattern.host(&user, &app, &domain).unwrap().to_string();
        assert_eq!(host(HostPattern::Nested), "notes.alice.haas.localhost");
        assert_eq!(host(HostPattern::Flat), "notes--alice.haas.localhost");

        let long = Username::parse(&"u".repeat(60)).unwrap();
        assert!(HostPattern::Nested.host(&long, &app, &domain).is_ok());
        assert_eq!(HostPattern::Flat.host(&long, &app, &domain), Err(NameError::TooLong { max: 63 }));
        let puny = AppName::parse("xn").unwrap();
        assert_eq!(HostPattern::Flat.host(&user, &puny, &domain), Err(NameError::Reserved));
        assert_eq!(HostPattern::Nested.host(&user, &puny, &domain).unwrap().as_str(), "xn.alice.haas.localhost");
        let domain = Hostname::parse(&format!("{0}.{0}.{0}", "d".repeat(62))).unwrap();
        assert_eq!(HostPattern::Nested.host(&long, &app, &domain), Err(NameError::TooLong { max: 253 }));
    }

    #[test]
    fn who_the_owner_is_does_not_show() {
        let email = Email::parse("alice@example.com").unwrap();
        assert_eq!((format!("{email:?}").as_str(), email.to_string().as_str()), ("Email(..)", "alice@example.com"));
        assert_eq!(format!("{:?}", Username::parse("alice").unwrap()), "Username(\"alice\")");
    }

    #[test]
    fn two_pairs_can_share_a_container_name() {
        let name = |u: &str, a: &str| ContainerName::of(&Username::parse(u).unwrap(), &AppName::parse(a).unwrap());
        assert_eq!(name("a-b", "c"), name("a", "b-c"));
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_is_a_label(input in "\\PC{0,70}|[a-zA-Z0-9-]{0,70}") {
            if let Ok(name) = Username::parse(&input) {
                let text = name.as_str();
                prop_assert!(!text.is_empty() && text.len() <= 63);
                prop_assert!(text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'));
                prop_assert!(!text.starts_with('-') && !text.ends_with('-') && !text.contains("--"));
                prop_assert_eq!(Username::parse(text).unwrap(), name);
            }
        }

        #[test]
        fn no_name_carries_a_character_that_means_something_to_haproxy(input in any::<String>()) {
            let harmless = |s: &str| !s.chars().any(|c| c.is_control() || c.is_whitespace() || "#\"'\\{}".contains(c));
            if let Ok(name) = AppName::parse(&input) { prop_assert!(harmless(name.as_str())); }
            if let Ok(host) = Hostname::parse(&input) { prop_assert!(harmless(host.as_str())); }
            if let Ok(name) = ContainerName::parse(&input) { prop_assert!(harmless(name.as_str())); }
        }

        #[test]
        fn every_pair_of_labels_has_a_legal_container_name(
            user in "[a-z0-9]{1,10}(-[a-z0-9]{1,10}){0,3}",
            app in "[a-z0-9]{1,10}(-[a-z0-9]{1,10}){0,3}",
        ) {
            if let (Ok(user), Ok(app)) = (Username::parse(&user), AppName::parse(&app)) {
                let name = ContainerName::of(&user, &app);
                prop_assert_eq!(ContainerName::parse(name.as_str()).unwrap(), name);
            }
        }
    }
}
