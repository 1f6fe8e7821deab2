//! Who is used: what HAProxy counted, and what this server itself passes on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use crate::haproxy::{HaproxyError, Proxy, REMEMBERED_FOR, Usage};
use crate::instance::Instance;
use crate::instance::policy::TimeLimit;

/// Requests that this server holds, or passes on to apps that have just been woken.
#[derive(Clone, Default)]
pub struct Held(Arc<Mutex<HashMap<Uuid, Count>>>);

/// Of one instance.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    /// All of them.
    held: u32,
    /// Those that the app is answering.
    passed_on: u32,
    /// When the last of them came.
    came_at: DateTime<Utc>,
}

impl Held {
    fn counts(&self) -> MutexGuard<'_, HashMap<Uuid, Count>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more request to an instance, until the guard is dropped; none past `most` of them.
    #[must_use]
    pub fn enter(&self, instance: Uuid, most: u32) -> Option<HeldRequest> {
        let mut counts = self.counts();
        let count = counts.entry(instance).or_default();
        if count.held >= most {
            return None;
        }
        count.held += 1;
        count.came_at = Utc::now();
        Some(HeldRequest { held: self.clone(), instance, passed_on: false })
    }

    /// When the last of them came, if there is any.
    fn came_at(&self, instance: Uuid) -> Option<DateTime<Utc>> {
        self.counts().get(&instance).map(|count| count.came_at)
    }

    /// Whether the app is answering any of them.
    #[must_use]
    pub fn passed_on(&self, instance: Uuid) -> bool {
        self.counts().get(&instance).is_some_and(|count| count.passed_on > 0)
    }

    /// For which instances there are any.
    #[must_use]
    pub fn instances(&self) -> Vec<Uuid> {
        self.counts().keys().copied().collect()
    }
}

/// One of them.
pub struct HeldRequest {
    held: Held,
    instance: Uuid,
    passed_on: bool,
}

impl HeldRequest {
    /// From now on it is the app that answers it.
    #[must_use]
    pub fn pass_on(mut self) -> Self {
        if let Some(count) = self.held.counts().get_mut(&self.instance) {
            count.passed_on += 1;
        }
        self.passed_on = true;
        self
    }
}

impl Drop for HeldRequest {
    fn drop(&mut self) {
        let mut counts = self.held.counts();
        if let Some(count) = counts.get_mut(&self.instance) {
            count.held -= 1;
            count.passed_on -= u32::from(self.passed_on);
            if count.held == 0 {
                counts.remove(&self.instance);
            }
        }
    }
}

/// What is known of one app.
#[derive(Debug, Clone, Copy)]
struct Seen {
    requests: u64,
    /// When the last request began.
    requested_at: DateTime<Utc>,
    /// When it was last used.
    used_at: DateTime<Utc>,
    /// Whether a request or a stream is under way that counts as use.
    busy: bool,
}

/// Who is used, by port.
pub struct Uses {
    held: Held,
    /// How long an open stream counts as use.
    stream_limit: TimeLimit,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    seen: HashMap<u16, Seen>,
    read_at: Option<DateTime<Utc>>,
    /// Until when that was written down.
    noted_at: Option<DateTime<Utc>>,
    /// Before this moment nobody was watching: whoever was awake then may have been used.
    watched_since: Option<DateTime<Utc>>,
}

impl Uses {
    /// With the requests that this server holds; an open stream counts as use for so long.
    #[must_use]
    pub fn new(held: Held, stream_limit: TimeLimit) -> Self {
        Self { held, stream_limit, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to watch. `read_at` is until when somebody has watched before, as the manifest has
    /// it: HAProxy remembers what was since, if that is not long ago.
    pub fn begin(&self, read_at: Option<DateTime<Utc>>, now: DateTime<Utc>) {
        let remembered = TimeDelta::from_std(REMEMBERED_FOR).unwrap_or_default();
        let gap = read_at.is_none_or(|read_at| now - read_at >= remembered);
        *self.state() = State { watched_since: gap.then_some(now), ..State::default() };
    }

    /// Asks HAProxy.
    ///
    /// # Errors
    /// What HAProxy's socket says, or [`HaproxyError::NotOurs`] when it is down: then nothing is
    /// known, and nothing changes.
    pub async fn read<P: Proxy>(&self, proxy: &P) -> Result<(), HaproxyError> {
        let usage = proxy.usage().await?.ok_or(HaproxyError::NotOurs)?;
        self.take_down(&usage, Utc::now());
        Ok(())
    }

    fn take_down(&self, usage: &Usage, now: DateTime<Utc>) {
        let mut state = self.state();
        let mut seen = HashMap::with_capacity(usage.len());
        for (port, of) in usage {
            let before = state.seen.get(port);
            // A worker that left took its count along: fewer are no new request.
            let new_requests = before.is_none_or(|before| of.requests > before.requests);
            let last = now - TimeDelta::from_std(of.idle).unwrap_or_default();
            let requested_at = before.filter(|_| !new_requests).map_or(last, |before| before.requested_at);
            let busy = of.open > 0 && self.stream_limit.covers(now - requested_at);
            // An open stream is no use for ever, but its requests are.
            let used_at = if of.open == 0 || busy { last } else { requested_at };
            let used_at = before.map_or(used_at, |before| before.used_at.max(used_at));
            seen.insert(*port, Seen { requests: of.requests, requested_at, used_at, busy });
        }
        // What HAProxy has forgotten was not used since it was last seen.
        for (port, before) in &state.seen {
            seen.entry(*port).or_insert(Seen { busy: false, requests: 0, ..*before });
        }
        state.seen = seen;
        state.read_at = Some(now);
    }

    /// When HAProxy was last asked.
    #[must_use]
    pub fn read_at(&self) -> Option<DateTime<Utc>> {
        self.state().read_at
    }

    pub(super) fn noted_at(&self) -> Option<DateTime<Utc>> {
        self.state().noted_at
    }

    pub(super) fn noted(&self, read_at: DateTime<Utc>) {
        self.state().noted_at = Some(read_at);
    }

    /// When an instance was last used, as far as is known here. What nobody watched counts as use.
    #[must_use]
    pub fn last_used(&self, instance: &Instance) -> Option<DateTime<Utc>> {
        let watched_since = self.state().watched_since;
        self.last_seen(instance).max(watched_since)
    }

    /// When an instance was last seen to be used.
    #[must_use]
    pub fn last_seen(&self, instance: &Instance) -> Option<DateTime<Utc>> {
        let held = self.held.came_at(instance.id);
        let held = held.map(|came_at| if self.holds(instance.id) { Utc::now() } else { came_at });
        let state = self.state();
        let seen = instance.port.and_then(|port| state.seen.get(&port)).map(|seen| seen.used_at);
        seen.max(held)
    }

    /// Whether this server holds a request that still counts as use.
    fn holds(&self, instance: Uuid) -> bool {
        self.held.came_at(instance).is_some_and(|came_at| self.stream_limit.covers(Utc::now() - came_at))
    }

    /// Whether somebody is talking to it.
    #[must_use]
    pub fn busy(&self, instance: &Instance) -> bool {
        self.holds(instance.id)
            || instance.port.and_then(|port| self.state().seen.get(&port).map(|seen| seen.busy)).unwrap_or_default()
    }

    /// Forgets ports that nobody has.
    pub fn retain(&self, has: impl Fn(u16) -> bool) {
        self.state().seen.retain(|port, _| has(*port));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::haproxy::AppUsage;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds)
    }

    fn usage(open: u64, requests: u64, idle: u64) -> Usage {
        Usage::from([(5521, AppUsage { open, requests, idle: Duration::from_secs(idle) })])
    }

    const HALF_DAY: TimeLimit = TimeLimit::After(Duration::from_secs(43_200));

    fn watching() -> (Uses, Instance) {
        watching_streams(HALF_DAY)
    }

    fn watching_streams(limit: TimeLimit) -> (Uses, Instance) {
        let uses = Uses::new(Held::default(), limit);
        uses.begin(Some(at(0)), at(1));
        (uses, Instance::example())
    }

    #[test]
    fn use_is_when_it_was_last_asked_not_when_somebody_looked() {
        let (uses, row) = watching();
        uses.take_down(&usage(0, 1, 20), at(100));
        assert_eq!((uses.last_used(&row), uses.busy(&row)), (Some(at(80)), false));
        uses.take_down(&usage(0, 1, 50), at(130));
        assert_eq!(uses.last_used(&row), Some(at(80)));
        uses.take_down(&Usage::new(), at(160));
        assert_eq!(uses.last_used(&row), Some(at(80)), "HAProxy has forgotten it");
        uses.take_down(&usage(0, 1, 0), at(190));
        assert_eq!(uses.last_used(&row), Some(at(190)));
    }

    #[test]
    fn a_stream_is_use_for_so_long_and_each_request_begins_anew() {
        let (uses, row) = watching();
        uses.take_down(&usage(1, 1, 0), at(100));
        uses.take_down(&usage(1, 1, 0), at(43_000));
        assert_eq!((uses.last_used(&row), uses.busy(&row)), (Some(at(43_000)), true));
        uses.take_down(&usage(1, 1, 0), at(44_000));
        assert_eq!((uses.last_used(&row), uses.busy(&row)), (Some(at(43_000)), false), "half a day is over");
        uses.take_down(&usage(1, 2, 0), at(45_000));
        assert_eq!((uses.last_used(&row), uses.busy(&row)), (Some(at(45_000)), true));
        // The worker that had counted the first two has left.
        uses.take_down(&usage(1, 0, 0), at(46_000));
        assert!(uses.busy(&row));
        let (uses, row) = watching_streams(TimeLimit::Never);
        uses.take_down(&usage(1, 1, 0), at(100));
        uses.take_down(&usage(1, 1, 0), at(999_999));
        assert!(uses.busy(&row), "never is for ever");
    }

    #[test]
    fn what_nobody_watched_counts_as_use() {
        let (uses, row) = (Uses::new(Held::default(), HALF_DAY), Instance::example());
        uses.begin(Some(at(0)), at(59));
        assert_eq!(uses.last_used(&row), None, "HAProxy remembers so long");
        uses.begin(Some(at(0)), at(61));
        assert_eq!(uses.last_used(&row), Some(at(61)));
        uses.begin(None, at(62));
        assert_eq!(uses.last_used(&row), Some(at(62)));
    }

    #[test]
    fn a_held_request_is_use_until_it_is_over() {
        let held = Held::default();
        let (uses, row) = (Uses::new(held.clone(), HALF_DAY), Instance::example());
        let one = held.enter(row.id, 2).unwrap();
        let two = held.enter(row.id, 2).unwrap();
        assert!(!held.passed_on(row.id));
        let two = two.pass_on();
        assert!(held.passed_on(row.id));
        assert!(held.enter(row.id, 2).is_none() && held.enter(Uuid::from_u128(9), 2).is_some());
        assert!(uses.busy(&row));
        drop(one);
        assert!(uses.busy(&row));
        drop(two);
        assert!(!uses.busy(&row) && !held.passed_on(row.id) && held.counts().is_empty());
        let uses = Uses::new(held.clone(), TimeLimit::After(Duration::ZERO));
        let _stream = held.enter(row.id, 2).unwrap();
        assert!(!uses.busy(&row), "a stream that was held is use no longer than others");
    }
}
