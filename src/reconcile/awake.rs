//! How many may be awake at the same time, and who makes room for whom.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::World;
use super::turns::{Standing, Turns};
use crate::containers::Containers;
use crate::haproxy::Proxy;
use crate::instance::policy::Descent;
use crate::instance::{Desired, Instance, Phase};
use crate::manifest::ManifestError;

/// How long all may be busy before one that wants to wake is told to come back.
const BUSY_PATIENCE: Duration = Duration::from_secs(3);
/// How old what is known of the others' use may be when one of them is chosen.
const FRESH: chrono::TimeDelta = chrono::TimeDelta::milliseconds(50);
const LOOK: Duration = Duration::from_millis(100);
/// How long one that goes to sleep is waited for once it is drained.
const STOP_PATIENCE: Duration = Duration::from_secs(15);

/// The places. In memory alone: there is one actor, and its rows say who has one.
pub(super) struct Awake {
    most: Option<usize>,
    places: Mutex<Places>,
    changed: Notify,
    /// Held by whoever chooses the next one to go, from the look at all of them to the choice.
    choosing: tokio::sync::Mutex<()>,
    /// Those that look for somebody to make room for them, at the same time.
    seekers: Turns,
    seeking: AtomicUsize,
}

#[derive(Default)]
struct Places {
    /// Who has one.
    taken: HashSet<Uuid>,
    /// Whose place has changed since the rows were last read: what they say of it is older.
    touched: HashSet<Uuid>,
}

/// What became of looking for a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// There is one.
    Made,
    /// The row wants something else by now.
    NotWanted,
    /// Everybody is busy.
    AllBusy,
}

enum Eviction {
    Begun,
    UnderWay,
    AllBusy,
}

impl Awake {
    pub fn new(most: Option<usize>, seekers: usize) -> Self {
        Self {
            most,
            places: Mutex::default(),
            changed: Notify::new(),
            choosing: tokio::sync::Mutex::default(),
            seekers: Turns::new(seekers),
            seeking: AtomicUsize::new(0),
        }
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on what changes is newer than the rows that are read now.
    pub fn reading(&self) {
        self.places().touched.clear();
    }

    /// Takes down who has a place, by all rows, as they were read a moment ago.
    pub fn sync(&self, live: &[Instance]) {
        let mut places = self.places();
        let Places { taken, touched } = &mut *places;
        let has = |row: &&Instance| {
            let before = taken.contains(&row.id);
            if touched.contains(&row.id) { before } else { row.takes_memory() || (waits(row) && before) }
        };
        let mut next: HashSet<Uuid> = live.iter().filter(has).map(|row| row.id).collect();
        // Those that have come since.
        next.extend(touched.intersection(taken));
        *taken = next;
        drop(places);
        self.changed.notify_waiters();
    }

    /// Takes down whether one has a place, by its row.
    pub fn note(&self, row: &Instance) {
        let mut places = self.places();
        places.touched.insert(row.id);
        if row.takes_memory() {
            places.taken.insert(row.id);
        } else if !waits(row) && places.taken.remove(&row.id) {
            drop(places);
            self.changed.notify_waiters();
        }
    }

    /// Whether one has a place.
    pub fn has(&self, id: Uuid) -> bool {
        self.most.is_none() || self.places().taken.contains(&id)
    }

    /// Takes a place, if there is one left.
    fn take(&self, id: Uuid) -> bool {
        let mut places = self.places();
        let room = places.taken.contains(&id) || self.most.is_none_or(|most| places.taken.len() < most);
        if room {
            places.taken.insert(id);
            places.touched.insert(id);
        }
        room
    }

    /// Whether every place is taken.
    fn is_full(&self) -> bool {
        self.most.is_some_and(|most| self.places().taken.len() >= most)
    }

    /// Whether somebody who has a place is none of these: it has just left, or is about to.
    fn has_others_than(&self, rows: &[Instance]) -> bool {
        let known: HashSet<Uuid> = rows.iter().map(|row| row.id).collect();
        !self.places().taken.is_subset(&known)
    }

    /// How many have to go, since there are more than there may be.
    pub fn excess(&self) -> usize {
        self.most.map_or(0, |most| self.places().taken.len().saturating_sub(most))
    }
}

/// Whether it is about to come up, and keeps a place that it was given.
fn waits(row: &Instance) -> bool {
    row.phase == Phase::Pending && row.desired == Desired::Running
}

/// Counts who seeks, for as long as it lives.
struct Seeking<'a>(&'a AtomicUsize);

impl Drop for Seeking<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl<C: Containers, P: Proxy> World<C, P> {
    /// Finds a place for one that is to come up: the longest idle one goes to sleep for it.
    pub(super) async fn make_room(&self, instance: &Instance) -> Result<Room, ManifestError> {
        if self.awake.take(instance.id) {
            return Ok(Room::Made);
        }
        let _seeker = self.awake.seekers.acquire(&instance.username, self.lanes.standing(instance)).await;
        self.awake.seeking.fetch_add(1, Ordering::SeqCst);
        let _seeking = Seeking(&self.awake.seeking);
        let began = Instant::now();
        let mut busy_since = None;
        loop {
            let mut changed = std::pin::pin!(self.awake.changed.notified());
            changed.as_mut().enable();
            let fresh = self.manifest.get(instance.id).await?;
            if !fresh.is_some_and(|row| waits(&row) && row.generation == instance.generation) {
                return Ok(Room::NotWanted);
            }
            let choosing = self.awake.choosing.lock().await;
            if self.awake.take(instance.id) {
                return Ok(Room::Made);
            }
            let eviction = self.evict(instance).await?;
            drop(choosing);
            match eviction {
                Eviction::Begun | Eviction::UnderWay => busy_since = None,
                Eviction::AllBusy => {
                    let since = *busy_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= BUSY_PATIENCE {
                        return Ok(Room::AllBusy);
                    }
                }
            }
            if began.elapsed() >= self.settings.wake_timeout {
                return Ok(Room::AllBusy);
            }
            if self.awake.is_full() {
                drop(timeout(LOOK, changed).await);
            }
        }
    }

    /// Puts the longest idle one to sleep, unless enough of them are on their way there.
    async fn evict(&self, for_whom: &Instance) -> Result<Eviction, ManifestError> {
        let stale = self.uses.read_at().is_none_or(|at| chrono::Utc::now() - at > FRESH);
        if stale && let Err(error) = self.uses.read(&self.proxy).await {
            log::debug!("who is idle is not known: {error}");
            sleep(LOOK).await;
            return Ok(Eviction::UnderWay);
        }
        let awake = self.manifest.awake().await?;
        // Somebody has left while all this was looked at: there is room, or will be in a moment.
        if !self.awake.is_full() || self.awake.has_others_than(&awake) {
            return Ok(Eviction::UnderWay);
        }
        // One that does not get away must not keep others from making room; nor one that does not come up.
        let lately = |row: &&Instance, limit: Duration| {
            (chrono::Utc::now() - row.phase_since).to_std().is_ok_and(|since| since < limit)
        };
        let patience = self.settings.drain_timeout + STOP_PATIENCE;
        let leaving = awake
            .iter()
            .filter(|row| row.desired != Desired::Running && row.phase != Phase::Paused && lately(row, patience))
            .count();
        if leaving >= self.awake.seeking.load(Ordering::SeqCst) {
            return Ok(Eviction::UnderWay);
        }
        let idle = self.longest_idle(&awake).into_iter().filter(|row| row.id != for_whom.id);
        for row in idle.chain(self.stuck(&awake, for_whom)) {
            let why = format!("makes room for {}", for_whom.container);
            match self.manifest.descend(row, Descent::Sleep, &why).await {
                Ok(_) => {
                    log::info!(instance:% = row.id; "{} goes to sleep: it {why}", row.container);
                    return Ok(Eviction::Begun);
                }
                Err(ManifestError::Stale) => {}
                Err(error) => return Err(error),
            }
        }
        // Those that have a place and are just coming up will be idle, too.
        let coming = awake.iter().any(|row| {
            let comes = row.desired == Desired::Running && row.phase != Phase::Running && self.awake.has(row.id);
            comes && lately(&row, self.settings.ready_timeout)
        });
        Ok(if coming || leaving > 0 { Eviction::UnderWay } else { Eviction::AllBusy })
    }

    /// Others' apps that have failed to start before, and are at it again: they give way to an app that
    /// is expected to start.
    fn stuck<'a>(&self, awake: &'a [Instance], for_whom: &Instance) -> impl Iterator<Item = &'a Instance> {
        let gives_way = |row: &&Instance| {
            (row.desired, row.phase) == (Desired::Running, Phase::Starting)
                && row.username != for_whom.username
                && self.lanes.standing(row) == Standing::Failed
        };
        let wanted = self.lanes.standing(for_whom) == Standing::Good;
        awake.iter().filter(gives_way).take(if wanted { usize::MAX } else { 0 }).collect::<Vec<_>>().into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: u128, desired: Desired, phase: Phase) -> Instance {
        Instance { id: Uuid::from_u128(id), desired, phase, ..Instance::example() }
    }

    #[test]
    fn a_place_is_kept_on_the_way_up_and_given_back_at_rest() {
        let awake = Awake::new(Some(2), 1);
        awake.sync(&[row(1, Desired::Running, Phase::Running), row(2, Desired::Asleep, Phase::Asleep)]);
        assert!(awake.has(Uuid::from_u128(1)) && !awake.has(Uuid::from_u128(2)));
        assert!(awake.take(Uuid::from_u128(2)) && awake.take(Uuid::from_u128(2)));
        assert!(!awake.take(Uuid::from_u128(3)), "there are two");
        let waking = row(2, Desired::Running, Phase::Pending);
        awake.sync(&[row(1, Desired::Running, Phase::Running), waking.clone()]);
        assert!(awake.has(waking.id));
        awake.note(&row(1, Desired::Asleep, Phase::Stopping));
        assert!(!awake.take(Uuid::from_u128(3)), "it still takes memory");
        awake.note(&row(1, Desired::Asleep, Phase::Asleep));
        assert!(awake.take(Uuid::from_u128(3)));
        awake.note(&row(4, Desired::Running, Phase::Running));
        assert_eq!(awake.excess(), 1);
        // Rows that were read before it took its place don't take it away, nor give one back.
        let awake = Awake::new(Some(1), 1);
        awake.reading();
        assert!(awake.take(Uuid::from_u128(5)));
        awake.sync(&[row(5, Desired::Asleep, Phase::Asleep)]);
        assert!(awake.has(Uuid::from_u128(5)));
        awake.reading();
        awake.note(&row(5, Desired::Asleep, Phase::Asleep));
        awake.sync(&[row(5, Desired::Asleep, Phase::Stopping)]);
        assert!(!awake.has(Uuid::from_u128(5)));
        let awake = Awake::new(Some(1), 1);
        awake.note(&row(2, Desired::Running, Phase::Running));
        awake.note(&row(3, Desired::Running, Phase::Running));
        assert_eq!(awake.excess(), 1);
        // One that gave up on its way does not keep it.
        awake.note(&row(3, Desired::Running, Phase::Failed));
        assert_eq!(awake.excess(), 0);
        assert!(Awake::new(None, 1).has(Uuid::from_u128(9)));
    }
}
