//! How much a client may change. Every change is an event, and events are never removed: without a
//! bound the bearer of one token could fill the database.
//!
//! What is counted is an event, at the moment when it is written; a request that changes nothing
//! counts for nothing, and is never refused. A change is whole or not at all: its first event needs
//! room, the others are counted without. What is not written after all is given back.
//!
//! The bearer of a token is a client of its own: he can't use up what the token's client may do to
//! the same app, which is how that client gets rid of what he does.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::bucket::{Bucket, Rate};
use crate::instance::name::{AppName, Username};
use crate::manifest::{Budget, Overspent};

/// Who changes something.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Who {
    /// The client, by its id.
    pub client: String,
    /// The user whose token was shown in place of the client's key.
    pub bearer: Option<Username>,
}

/// An app, by its names.
pub(super) type App = (Username, AppName);

#[derive(Default)]
struct State {
    clients: HashMap<Who, Bucket>,
    /// Apart: there may be any number of users with tokens, who must not have a client forgotten.
    bearers: HashMap<Who, Bucket>,
    apps: HashMap<(Who, App), Bucket>,
}

/// The counts, in this process's memory: shared by the API's workers.
#[derive(Clone)]
pub struct Changes {
    /// Of one client, of one bearer, of one app; 0 for no bound.
    client: u32,
    bearer: u32,
    app: u32,
    state: Arc<Mutex<State>>,
}

impl Changes {
    /// Refuses what goes over these; 0 is no bound.
    #[must_use]
    pub fn new(per_minute: u32, per_app: u32) -> Self {
        let bounds = [per_minute, per_app.saturating_mul(2)];
        let bearer = bounds.into_iter().filter(|bound| *bound > 0).min().unwrap_or(0);
        Self { client: per_minute, bearer, app: per_app, state: Arc::default() }
    }

    /// Counts one event; it needs room only where it is the first of a change.
    fn spend(&self, who: &Who, app: Option<&App>, first: bool, now: Instant) -> Result<(), Overspent> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { clients, bearers, apps } = &mut *state;
        let (whole, bound) = self.whole(who, clients, bearers);
        let (whole_rate, app_rate) = (rate(bound), rate(self.app));
        let of_app = app_rate.zip(app.map(|app| (who.clone(), app.clone())));
        if first {
            let wait = whole_rate.and_then(|rate| rate.wait(whole, who, now));
            let bound = match &who.bearer {
                None => format!("a client may make {bound} changes a minute"),
                Some(_) => format!("the bearer of a token may make {bound} changes a minute"),
            };
            refuse(wait, bound)?;
            let wait = of_app.as_ref().and_then(|(rate, key)| rate.wait(apps, key, now));
            refuse(wait, format!("one app may be changed {} times a minute", self.app))?;
        }
        if let Some(rate) = whole_rate {
            rate.count(whole, who.clone(), now);
        }
        if let Some((rate, key)) = of_app {
            rate.count(apps, key, now);
        }
        Ok(())
    }

    /// Takes back so many that were not written.
    fn give_back(&self, who: &Who, app: Option<&App>, count: u32, now: Instant) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { clients, bearers, apps } = &mut *state;
        let (whole, bound) = self.whole(who, clients, bearers);
        if let Some(rate) = rate(bound) {
            rate.give_back(whole, who, count, now);
        }
        if let Some((rate, app)) = rate(self.app).zip(app) {
            rate.give_back(apps, &(who.clone(), app.clone()), count, now);
        }
    }

    fn whole<'a>(
        &self,
        who: &Who,
        clients: &'a mut HashMap<Who, Bucket>,
        bearers: &'a mut HashMap<Who, Bucket>,
    ) -> (&'a mut HashMap<Who, Bucket>, u32) {
        if who.bearer.is_some() { (bearers, self.bearer) } else { (clients, self.client) }
    }
}

fn rate(bound: u32) -> Option<Rate> {
    (bound > 0).then(|| Rate::per_minute(bound))
}

fn refuse(wait: Option<Duration>, bound: String) -> Result<(), Overspent> {
    wait.map_or(Ok(()), |wait| Err(Overspent { bound, wait }))
}

/// What one request may write.
pub(super) struct Spending {
    changes: Changes,
    who: Who,
    app: Option<App>,
    /// Events since the last change that was not written after all.
    spent: AtomicU32,
}

impl Spending {
    /// Nothing is counted yet.
    pub fn new(changes: &Changes, who: Who, app: Option<App>) -> Self {
        Self { changes: changes.clone(), who, app, spent: AtomicU32::new(0) }
    }

    /// The change was not written.
    pub fn give_back(&self) {
        let spent = self.spent.swap(0, Ordering::Relaxed);
        self.changes.give_back(&self.who, self.app.as_ref(), spent, Instant::now());
    }
}

impl Budget for Spending {
    fn spend(&self) -> Result<(), Overspent> {
        let first = self.spent.load(Ordering::Relaxed) == 0;
        self.changes.spend(&self.who, self.app.as_ref(), first, Instant::now())?;
        self.spent.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl std::fmt::Debug for Spending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Spending({:?}, {:?})", self.who, self.app)
    }
}

#[cfg(test)]
mod tests {
    use super::super::bucket::REMEMBERED;
    use super::*;

    fn key(client: &str) -> Who {
        Who { client: client.to_owned(), bearer: None }
    }

    fn token(client: &str, user: &str) -> Who {
        Who { client: client.to_owned(), bearer: Some(Username::parse(user).unwrap()) }
    }

    fn app(user: &str, name: &str) -> App {
        (Username::parse(user).unwrap(), AppName::parse(name).unwrap())
    }

    /// How many single changes go through at once.
    fn room(changes: &Changes, who: &Who, app: &App, now: Instant) -> u32 {
        (0..10_000).find(|_| changes.spend(who, Some(app), true, now).is_err()).unwrap()
    }

    #[test]
    fn an_app_has_its_bound_and_room_comes_back_with_time() {
        let (changes, now, who) = (Changes::new(1200, 30), Instant::now(), key("appmaker"));
        let (notes, todo) = (app("alice", "notes"), app("alice", "todo"));
        assert_eq!(room(&changes, &who, &notes, now), 30);
        let refused = changes.spend(&who, Some(&notes), true, now).unwrap_err();
        assert_eq!(refused.wait, Duration::from_secs(2));
        assert_eq!(refused.to_string(), "one app may be changed 30 times a minute");
        assert_eq!(room(&changes, &who, &todo, now), 30, "another app has its own");
        assert_eq!(room(&changes, &key("other"), &notes, now), 30, "so has another client");
        assert_eq!(room(&changes, &who, &notes, now + refused.wait), 1);
        assert_eq!(room(&changes, &who, &notes, now + Duration::from_mins(5)), 30);
    }

    #[test]
    fn a_client_has_its_bound_over_all_apps_and_over_what_is_about_none() {
        let (changes, now, who) = (Changes::new(40, 30), Instant::now(), key("appmaker"));
        assert_eq!(room(&changes, &who, &app("alice", "notes"), now), 30);
        for _ in 0..10 {
            changes.spend(&who, None, true, now).unwrap();
        }
        let refused = changes.spend(&who, Some(&app("bob", "notes")), true, now).unwrap_err();
        assert_eq!(refused.to_string(), "a client may make 40 changes a minute");
        assert!(changes.spend(&who, None, true, now).is_err());
    }

    #[test]
    fn a_bearer_has_twice_an_apps_bound_and_leaves_the_client_its_own() {
        let (changes, now, notes) = (Changes::new(1200, 30), Instant::now(), app("alice", "notes"));
        let (alice, bob) = (token("appmaker", "alice"), token("appmaker", "bob"));
        assert_eq!(room(&changes, &alice, &notes, now), 30);
        assert_eq!(room(&changes, &alice, &app("alice", "todo"), now), 30);
        assert_eq!(room(&changes, &alice, &app("alice", "third"), now), 0);
        let refused = changes.spend(&alice, Some(&app("alice", "third")), true, now).unwrap_err();
        assert_eq!(refused.to_string(), "the bearer of a token may make 60 changes a minute");
        assert_eq!(refused.wait, Duration::from_secs(1));
        assert_eq!(room(&changes, &bob, &app("bob", "notes"), now), 30);
        assert_eq!(room(&changes, &key("appmaker"), &notes, now), 30);
        // As a client has, where that is less.
        let changes = Changes::new(10, 30);
        assert_eq!(room(&changes, &alice, &notes, now), 10);
        assert_eq!(room(&changes, &key("appmaker"), &notes, now), 10);
    }

    #[test]
    fn a_change_is_whole_and_what_it_writes_beside_its_first_event_counts() {
        let (changes, now, who) = (Changes::new(1200, 30), Instant::now(), key("appmaker"));
        let notes = app("alice", "notes");
        for n in 0..32 {
            changes.spend(&who, Some(&notes), n == 0, now).unwrap();
        }
        let refused = changes.spend(&who, Some(&notes), true, now).unwrap_err();
        assert_eq!(refused.wait, Duration::from_secs(6), "the three that are too many, at two seconds each");
        changes.give_back(&who, Some(&notes), 32, now);
        assert_eq!(room(&changes, &who, &notes, now), 30);
    }

    #[test]
    fn what_was_not_written_is_given_back_once() {
        let changes = Changes::new(0, 2);
        let notes = app("alice", "notes");
        let spending = || Spending::new(&changes, key("appmaker"), Some(notes.clone()));
        let first = spending();
        first.spend().unwrap();
        first.give_back();
        first.give_back();
        let second = spending();
        second.spend().unwrap();
        first.spend().unwrap();
        assert!(spending().spend().is_err());
    }

    #[test]
    fn zero_is_no_bound() {
        let (changes, now, notes) = (Changes::new(0, 0), Instant::now(), app("alice", "notes"));
        for who in [key("appmaker"), token("appmaker", "alice")] {
            for _ in 0..10_000 {
                changes.spend(&who, Some(&notes), true, now).unwrap();
            }
        }
        let changes = Changes::new(5, 0);
        assert_eq!(room(&changes, &key("appmaker"), &notes, now), 5);
        assert_eq!(room(&changes, &token("appmaker", "alice"), &notes, now), 5);
    }

    #[test]
    fn memory_is_bounded_and_bearers_have_no_client_forgotten() {
        let (changes, now, who) = (Changes::new(10, 5), Instant::now(), key("appmaker"));
        assert_eq!(room(&changes, &who, &app("alice", "notes"), now), 5);
        for _ in 0..5 {
            changes.spend(&who, None, true, now).unwrap();
        }
        for n in 0..30_000 {
            let user = format!("u{n}");
            changes.spend(&token("appmaker", &user), Some(&app(&user, "notes")), true, now).unwrap();
        }
        assert!(changes.spend(&who, None, true, now).is_err());
        let state = changes.state.lock().unwrap();
        assert!(state.bearers.len() <= REMEMBERED && state.apps.len() <= REMEMBERED);
    }
}
