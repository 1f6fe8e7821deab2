//! Leaky buckets: so many things a minute, and so many at once.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Buckets of one kind that are remembered; past that the oldest are forgotten.
pub(super) const REMEMBERED: usize = 10_000;
const MINUTE: f64 = 60.0;

/// What was counted, and leaks away with time.
pub(super) struct Bucket {
    level: f64,
    at: Instant,
}

/// How fast buckets leak, and how much they hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rate(f64);

impl Rate {
    /// At least 1.
    pub fn per_minute(count: u32) -> Self {
        Self(f64::from(count))
    }

    fn level(self, bucket: &Bucket, now: Instant) -> f64 {
        let leaked = now.duration_since(bucket.at).as_secs_f64() * self.0 / MINUTE;
        (bucket.level - leaked).max(0.0)
    }

    /// How long until there is room for one more; none when there is now.
    pub fn wait<K: Hash + Eq>(self, buckets: &HashMap<K, Bucket>, key: &K, now: Instant) -> Option<Duration> {
        let over = self.level(buckets.get(key)?, now) + 1.0 - self.0;
        (over > 0.0).then(|| Duration::from_secs_f64(over * MINUTE / self.0))
    }

    /// Counts one, whether or not there is room.
    pub fn count<K: Hash + Eq>(self, buckets: &mut HashMap<K, Bucket>, key: K, now: Instant) {
        make_room(buckets, |bucket| bucket.at);
        let level = buckets.get(&key).map_or(0.0, |bucket| self.level(bucket, now));
        buckets.insert(key, Bucket { level: level + 1.0, at: now });
    }

    /// Takes back what was counted for nothing.
    pub fn give_back<K: Hash + Eq>(self, buckets: &mut HashMap<K, Bucket>, key: &K, count: u32, now: Instant) {
        if let Some(bucket) = buckets.get_mut(key) {
            let level = (self.level(bucket, now) - f64::from(count)).max(0.0);
            *bucket = Bucket { level, at: now };
        }
    }
}

/// Forgets the older half when there are too many.
pub(super) fn make_room<K: Hash + Eq, V>(map: &mut HashMap<K, V>, at: impl Fn(&V) -> Instant) {
    if map.len() < REMEMBERED {
        return;
    }
    let mut times: Vec<Instant> = map.values().map(&at).collect();
    times.sort_unstable();
    let middle = times[times.len() / 2];
    map.retain(|_, value| at(value) > middle);
}
