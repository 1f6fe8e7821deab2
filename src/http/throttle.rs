//! Guessing is slowed: failures to sign in are counted by where they come from, and by whom they claim
//! to be. Whoever has failed too often waits, and is not even told whether a guess was right.
//!
//! A client is not locked out by others' guesses. Those in its name, from elsewhere, slow wrong keys alone;
//! those beside it, from the same source, don't count for a client that was let in from there lately.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::bucket::{Bucket, Rate, make_room};

/// How long a source is known as a client's own after it has signed in there.
const OWN_FOR: Duration = Duration::from_secs(24 * 3600);

/// Where requests come from; an IPv6 network counts as one, since whoever has one address of it
/// mostly has all of them (RFC 6177, section 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Source(Option<IpAddr>);

impl From<Option<IpAddr>> for Source {
    fn from(address: Option<IpAddr>) -> Self {
        Self(address.map(|address| match address.to_canonical() {
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
            v4 @ IpAddr::V4(_) => v4,
        }))
    }
}

/// What has let somebody in. They are remembered apart: who has a token must not be able to guess at its
/// client's key without being slowed, nor to have that client forgotten.
#[derive(Debug, Clone, Copy)]
pub(super) enum By<'a> {
    /// This client's own key.
    Client(&'a str),
    /// A token that this key has signed.
    Token(&'a str),
}

#[derive(Default)]
struct State {
    sources: HashMap<Source, Bucket>,
    clients: HashMap<String, Bucket>,
    own: HashMap<(Source, String), Instant>,
    tokens: HashMap<(Source, String), Instant>,
}

/// The counts, in this process's memory: shared by the API's workers.
#[derive(Clone)]
pub struct Throttle {
    /// Failures a minute, and so many at once.
    allowed: Rate,
    state: Arc<Mutex<State>>,
}

impl Throttle {
    /// Slows down whoever fails more often than this.
    #[must_use]
    pub fn new(failures_per_minute: u32) -> Self {
        Self { allowed: Rate::per_minute(failures_per_minute), state: Arc::default() }
    }

    /// How long somebody has to wait who has just given the right key; none for the welcome.
    pub(super) fn admit(&self, source: Source, by: By<'_>, now: Instant) -> Option<Duration> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { sources, own, tokens, .. } = &mut *state;
        let (remembered, name) = match by {
            By::Client(name) => (own, name),
            By::Token(name) => (tokens, name),
        };
        let here = (source, name.to_owned());
        let known = remembered.get(&here).is_some_and(|at| now.duration_since(*at) < OWN_FOR);
        if !known {
            let wait = self.allowed.wait(sources, &source, now);
            if wait.is_some() {
                return wait;
            }
        }
        make_room(remembered, |at| *at);
        remembered.insert(here, now);
        None
    }

    /// Counts a wrong key, or says how long this one has to wait before it may try another.
    pub(super) fn fail(&self, source: Source, client: Option<&str>, now: Instant) -> Option<Duration> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = [
            self.allowed.wait(&state.sources, &source, now),
            client.and_then(|client| self.allowed.wait(&state.clients, &client.to_owned(), now)),
        ];
        if let Some(wait) = waits.into_iter().flatten().max() {
            return Some(wait);
        }
        self.allowed.count(&mut state.sources, source, now);
        if let Some(client) = client {
            self.allowed.count(&mut state.clients, client.to_owned(), now);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::bucket::REMEMBERED;
    use super::*;

    fn source(text: &str) -> Source {
        Some(text.parse().unwrap()).into()
    }

    #[test]
    fn a_source_that_guesses_waits_and_others_do_not() {
        let (throttle, now) = (Throttle::new(20), Instant::now());
        let (bad, good) = (source("192.0.2.1"), source("192.0.2.2"));
        for _ in 0..20 {
            assert_eq!(throttle.fail(bad, None, now), None);
        }
        let wait = throttle.fail(bad, None, now).unwrap();
        assert_eq!(wait, Duration::from_secs(3));
        // Not even the right key is told from a wrong one.
        assert_eq!(throttle.admit(bad, By::Client("appmaker"), now), Some(wait));
        assert_eq!(throttle.admit(good, By::Client("appmaker"), now), None);
        assert_eq!(throttle.admit(bad, By::Client("appmaker"), now + wait), None);
        assert_eq!(throttle.fail(bad, None, now + wait), None);
        assert!(throttle.fail(bad, None, now + wait).is_some(), "one for each that has leaked away");
    }

    #[test]
    fn a_client_whose_key_is_guessed_from_everywhere_goes_on_where_it_was_before() {
        let (throttle, now) = (Throttle::new(20), Instant::now());
        let home = source("2001:db8:1:2::3");
        assert_eq!(throttle.admit(home, By::Client("appmaker"), now), None);
        for n in 0..20 {
            assert_eq!(throttle.fail(source(&format!("198.51.100.{n}")), Some("appmaker"), now), None);
        }
        assert!(throttle.fail(source("198.51.100.99"), Some("appmaker"), now).is_some());
        assert_eq!(
            throttle.admit(source("198.51.100.200"), By::Client("appmaker"), now),
            None,
            "with the right key, from anywhere"
        );
        assert_eq!(throttle.admit(source("2001:db8:1:2::4"), By::Client("appmaker"), now), None, "the same network");
        // Nor by a guesser beside it.
        for _ in 0..20 {
            throttle.fail(home, None, now);
        }
        assert!(throttle.fail(home, None, now).is_some());
        assert_eq!(throttle.admit(home, By::Client("appmaker"), now), None);
        assert!(throttle.admit(home, By::Client("another"), now).is_some());
    }

    #[test]
    fn memory_is_bounded() {
        let (throttle, now) = (Throttle::new(20), Instant::now());
        for n in 0..30_000u32 {
            let at = now + Duration::from_millis(u64::from(n));
            throttle.fail(Some(IpAddr::from(n.to_be_bytes())).into(), None, at);
        }
        let state = throttle.state.lock().unwrap();
        assert!(state.sources.len() <= REMEMBERED);
        assert!(state.sources.contains_key(&Some(IpAddr::from(29_999u32.to_be_bytes())).into()));
    }
}
