//! The hosts of an instance, pure: which custom domains it may have, and what becomes of all
//! hosts when the domain or the pattern changes.

use std::fmt;

use uuid::Uuid;

use super::Instance;
use super::name::{AppName, HostPattern, Hostname, NameError, Username};

/// Custom domains of one instance at most: each costs a line in HAProxy's map, and a certificate.
pub const EXTRA_HOSTS_MAX: usize = 16;

/// Parses a custom domain. The names at and below the installation's own domain are the
/// pattern's to give: with them somebody could take the host of an app that comes later.
///
/// # Errors
/// [`NameError`] says which rule the text breaks.
pub fn extra_host(input: &str, domain: &Hostname) -> Result<Hostname, NameError> {
    let host = Hostname::parse(input)?;
    let last = host.as_str().rsplit('.').next().unwrap_or_default();
    if !host.as_str().contains('.') {
        return Err(NameError::NoDot);
    }
    // A host whose last label is a number is read as an IP address (WHATWG URL, section 3.5), and
    // no top-level domain is one (RFC 1123, section 2.1).
    if last.bytes().all(|b| b.is_ascii_digit()) || last.starts_with("0x") {
        return Err(NameError::IpAddress);
    }
    // Below localhost is the reader's own machine (RFC 6761, section 6.3): right where the
    // installation itself is there.
    if last == "localhost" && domain.as_str().rsplit('.').next() != Some("localhost") {
        return Err(NameError::Reserved);
    }
    if belongs_to(&host, domain) { Err(NameError::OfTheDomain) } else { Ok(host) }
}

/// Whether a host is the domain itself, or below it.
#[must_use]
pub fn belongs_to(host: &Hostname, domain: &Hostname) -> bool {
    let above = host.as_str().strip_suffix(domain.as_str());
    above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
}

/// An instance whose host is not the one that the pattern gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// The instance.
    pub id: Uuid,
    /// Whose it is.
    pub username: Username,
    /// Which app it serves.
    pub appname: AppName,
    /// Its host now.
    pub from: Hostname,
    /// Its host by the pattern.
    pub to: Hostname,
}

/// Why the hosts can't be made what the pattern gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// Whose the instance is that is in the way.
    pub username: Username,
    /// Which app it serves.
    pub appname: AppName,
    /// What is wrong.
    pub why: Why,
}

/// See [`Obstacle`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// The pattern makes a host of its names that is too long, or begins with `xn--`.
    TooLong,
    /// A custom domain of it is, or is below, what is the installation's domain now.
    OfTheDomain(Hostname),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { username, appname, why } = self;
        match why {
            Why::TooLong => {
                write!(f, "the host of app {appname} of {username} would be too long, or be another name's ASCII form")
            }
            Why::OfTheDomain(host) => write!(
                f,
                "{host} belongs to the installation's domain now: haas host remove {username} {appname} {host}"
            ),
        }
    }
}

/// What it takes for every host to be the one that the pattern gives: all of the moves, or why
/// there can be none. Tombstones move where they can, and are never in the way: what they would
/// hold again is looked at when they come back to life.
///
/// # Errors
/// Every obstacle.
pub fn rehost(instances: &[Instance], pattern: HostPattern, domain: &Hostname) -> Result<Vec<Move>, Vec<Obstacle>> {
    let (mut moves, mut obstacles) = (Vec::new(), Vec::new());
    for instance in instances {
        let Instance { id, username, appname, host, .. } = instance;
        let mut obstacle = |why| obstacles.push(Obstacle { username: username.clone(), appname: appname.clone(), why });
        let Ok(to) = pattern.host(username, appname, domain) else {
            if instance.live() {
                obstacle(Why::TooLong);
            }
            continue;
        };
        // Its own new host among its custom domains is no obstacle: it is dropped from there.
        for extra in instance.extra_hosts.iter().filter(|extra| instance.live() && **extra != to) {
            if belongs_to(extra, domain) {
                obstacle(Why::OfTheDomain(extra.clone()));
            }
        }
        if *host != to {
            let (username, appname) = (username.clone(), appname.clone());
            moves.push(Move { id: *id, username, appname, from: host.clone(), to });
        }
    }
    if obstacles.is_empty() { Ok(moves) } else { Err(obstacles) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::instance::Phase;

    fn host(text: &str) -> Hostname {
        Hostname::parse(text).unwrap()
    }

    fn instance(username: &str, appname: &str, pattern: HostPattern, domain: &str) -> Option<Instance> {
        let (username, appname) = (Username::parse(username).ok()?, AppName::parse(appname).ok()?);
        let host = pattern.host(&username, &appname, &host(domain)).ok()?;
        Some(Instance { username, appname, host, ..Instance::example() })
    }

    #[test]
    fn custom_domains_are_full_names_outside_of_the_installation() {
        let domain = host("haas.localhost");
        let extra = |text: &str| extra_host(text, &domain);
        assert_eq!(extra("WWW.Example.org").unwrap().as_str(), "www.example.org");
        for good in ["example.org", "notes.example.localhost", "haas.localhost.example", "xhaas.localhost", "1.example"]
        {
            assert!(extra(good).is_ok(), "{good}");
        }
        for (bad, why) in [
            ("", NameError::Empty),
            ("localhost", NameError::NoDot),
            ("haas.localhost", NameError::OfTheDomain),
            ("HAAS.localhost", NameError::OfTheDomain),
            ("notes.alice.haas.localhost", NameError::OfTheDomain),
            ("127.0.0.1", NameError::IpAddress),
            ("127.1", NameError::IpAddress),
            ("127.0.0.0x1", NameError::IpAddress),
            ("[::1]", NameError::NotAHost),
            ("*.example.org", NameError::NotAHost),
            ("www.example.org.", NameError::NotAHost),
            ("www.example.org:80", NameError::NotAHost),
            ("www.exa mple.org", NameError::NotAHost),
            ("www.example.org\n", NameError::NotAHost),
            ("m\u{fc}sli.example", NameError::NotAHost),
        ] {
            assert_eq!(extra(bad), Err(why), "{bad:?}");
        }
        assert_eq!(extra_host("x.localhost", &host("haas.example")), Err(NameError::Reserved));
    }

    #[test]
    fn what_stands_in_the_way_is_said_for_every_instance() {
        let (nested, domain) = (HostPattern::Nested, "haas.localhost");
        let long = "u".repeat(60);
        let fine = instance("alice", "notes", nested, domain).unwrap();
        let too_long = instance(&long, "notes", nested, domain).unwrap();
        let gone = Instance { phase: Phase::Deleted, ..too_long.clone() };
        let extra = Instance {
            extra_hosts: vec![host("notes--bob.example.org"), host("a.example.org")],
            ..instance("bob", "notes", nested, domain).unwrap()
        };
        let all = [fine.clone(), too_long, extra.clone(), gone.clone()];
        let obstacles = rehost(&all, HostPattern::Flat, &host("example.org")).unwrap_err();
        let whys: Vec<_> = obstacles.into_iter().map(|obstacle| obstacle.why).collect();
        assert_eq!(whys, [Why::TooLong, Why::OfTheDomain(host("a.example.org"))], "its own new host is none");
        let moves = rehost(&[fine, gone, extra], HostPattern::Flat, &host("example.com")).unwrap();
        let to: Vec<_> = moves.iter().map(|step| step.to.as_str()).collect();
        assert_eq!(to, ["notes--alice.example.com", "notes--bob.example.com"]);
    }

    const PATTERNS: [HostPattern; 2] = [HostPattern::Nested, HostPattern::Flat];

    proptest! {
        #[test]
        fn no_two_apps_ever_move_to_one_host_and_the_way_back_is_open(
            names in prop::collection::btree_set(("[ab](-?[ab]){0,3}", "[ab](-?[ab]){0,3}"), 1..20),
            (old, new) in (prop::sample::select(&PATTERNS[..]), prop::sample::select(&PATTERNS[..])),
        ) {
            let of = |(user, app): &(String, String)| instance(user, app, old, "x.example").unwrap();
            let mut all: Vec<Instance> = names.iter().map(of).collect();
            let before = all.clone();
            for (pattern, domain) in [(new, "example"), (old, "x.example")] {
                let moves = rehost(&all, pattern, &host(domain)).unwrap();
                let hosts: std::collections::BTreeSet<_> = moves.iter().map(|step| &step.to).collect();
                prop_assert_eq!((moves.len(), hosts.len()), (all.len(), all.len()));
                for (row, step) in all.iter_mut().zip(moves) {
                    prop_assert_eq!(&row.host, &step.from);
                    row.host = step.to;
                }
                prop_assert_eq!(rehost(&all, pattern, &host(domain)), Ok(Vec::new()));
            }
            prop_assert_eq!(all, before);
        }

        #[test]
        fn a_custom_domain_is_never_what_a_pattern_gives(
            text in "([a-z0-9-]{1,8}\\.){0,3}(haas\\.localhost|localhost|example|[0-9]{1,3})",
            user in "[a-z]{1,5}", app in "[a-z]{1,5}",
        ) {
            let domain = host("haas.localhost");
            if let (Ok(extra), Some(row)) = (extra_host(&text, &domain), instance(&user, &app, HostPattern::Nested, "haas.localhost")) {
                prop_assert!(extra != row.host && extra != domain && extra.as_str().contains('.'));
                prop_assert!(extra.as_str().parse::<std::net::Ipv4Addr>().is_err());
                prop_assert_eq!(extra_host(extra.as_str(), &domain), Ok(extra));
            }
        }
    }
}
