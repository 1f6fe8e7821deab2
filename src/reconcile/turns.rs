//! Places for work that many instances wait for, shared fairly between users.
//!
//! A place goes to the waiting instance whose user holds the fewest, then to the user who was served
//! longest ago. One user never holds all places, so that others find one however many apps a user has.
//! Instances whose last start failed ([`Standing::Failed`]) have places of their own: they never take one
//! from an instance that is expected to start.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::instance::name::Username;

/// What is expected of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// It starts.
    Good,
    /// Its last start failed.
    Failed,
}

/// How many places there are, and who holds and awaits them.
pub(super) struct Turns {
    places: Places,
    state: Mutex<State>,
}

/// How many.
#[derive(Debug, Clone, Copy)]
struct Places {
    good: usize,
    failed: usize,
    of_one_user: usize,
}

#[derive(Default)]
struct State {
    tickets: u64,
    grants: u64,
    held: BTreeMap<u64, Holder>,
    waiting: BTreeMap<u64, (Holder, oneshot::Sender<()>)>,
    /// The grant that each user was last served with, while others wait.
    served: HashMap<Username, u64>,
}

#[derive(Debug, Clone)]
struct Holder {
    user: Username,
    standing: Standing,
}

/// A place, given back when it is dropped; before it was given, a claim to one.
pub(super) struct Place<'a> {
    turns: &'a Turns,
    ticket: u64,
}

impl Turns {
    /// So many places for instances of good standing, and a quarter as many, at least one, for the others.
    pub fn new(places: usize) -> Self {
        let good = places.max(1);
        let reserve = (good / 4).max(1);
        let places = Places { good, failed: reserve, of_one_user: good.saturating_sub(reserve).max(1) };
        Self { places, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place.
    pub async fn acquire(&self, user: &Username, standing: Standing) -> Place<'_> {
        let (given, gets_it) = oneshot::channel();
        let ticket = {
            let mut state = self.state();
            state.tickets += 1;
            let ticket = state.tickets;
            state.waiting.insert(ticket, (Holder { user: user.clone(), standing }, given));
            state.give(self.places);
            ticket
        };
        let place = Place { turns: self, ticket };
        // An error would mean that the sender is gone, which the state keeps until it has sent.
        drop(gets_it.await);
        place
    }
}

impl State {
    fn held_in(&self, standing: Standing) -> usize {
        self.held.values().filter(|holder| holder.standing == standing).count()
    }

    /// Gives away every place that may be given.
    fn give(&mut self, places: Places) {
        while let Some(ticket) = self.next(places) {
            let Some((holder, given)) = self.waiting.remove(&ticket) else { return };
            self.grants += 1;
            self.served.insert(holder.user.clone(), self.grants);
            self.held.insert(ticket, holder);
            // A claim that was dropped meanwhile gives its place back by itself.
            let _ = given.send(());
        }
        if self.waiting.is_empty() {
            self.served.clear();
        }
    }

    /// The claim that a free place belongs to.
    fn next(&self, places: Places) -> Option<u64> {
        let mut held: HashMap<&Username, usize> = HashMap::new();
        for holder in self.held.values() {
            *held.entry(&holder.user).or_default() += 1;
        }
        let free = |standing| {
            let most = if standing == Standing::Good { places.good } else { places.failed };
            self.held_in(standing) < most
        };
        let (good, failed) = (free(Standing::Good), free(Standing::Failed));
        let claims = self.waiting.iter().filter_map(|(ticket, (holder, _))| {
            let has = held.get(&holder.user).copied().unwrap_or_default();
            let may = if holder.standing == Standing::Good { good && has < places.of_one_user } else { failed };
            may.then(|| ((has, self.served.get(&holder.user), *ticket), *ticket))
        });
        claims.min_by_key(|(order, _)| *order).map(|(_, ticket)| ticket)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.turns.state();
        state.waiting.remove(&self.ticket);
        state.held.remove(&self.ticket);
        state.give(self.turns.places);
    }
}

#[cfg(test)]
mod tests;
