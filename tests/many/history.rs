//! What the manifest's events tell of those that went to sleep and woke.

use std::collections::{BTreeMap, BTreeSet};

use super::support::installation::Installation;

/// What the manifest has written down.
#[derive(Debug)]
pub struct Counts {
    pub wakes: usize,
    /// All that went to sleep, those that made room included.
    pub sleeps: usize,
    pub evictions: usize,
    /// Of containers.
    pub starts: usize,
    pub failures: usize,
    /// How many should be awake now.
    pub up: usize,
}

impl Counts {
    pub async fn of(haas: &Installation) -> Self {
        let told = haas
            .sql(
                "SELECT count(*) FILTER (WHERE kind = 'wake'), count(*) FILTER (WHERE kind = 'sleep'),
                        count(*) FILTER (WHERE kind = 'sleep' AND detail->>'why' LIKE 'makes room for %'),
                        count(*) FILTER (WHERE kind = 'starting'), count(*) FILTER (WHERE kind = 'failed'),
                        (SELECT count(*) FROM instances WHERE desired = 'running')
                 FROM events",
            )
            .await;
        let counts: Vec<usize> = told.split('|').map(|count| count.parse().unwrap()).collect();
        let [wakes, sleeps, evictions, starts, failures, up] = counts[..] else { panic!("{told}") };
        Self { wakes, sleeps, evictions, starts, failures, up }
    }
}

/// What the events tell of those that went to sleep and woke.
#[derive(Default)]
pub struct History {
    /// From the intent to sleep until it slept, in milliseconds.
    pub asleep: Vec<u64>,
    /// From the intent to wake until its container was started, and until its Hoodie answered.
    pub started: Vec<u64>,
    pub answered: Vec<u64>,
    /// Evictions at whose time no more were wanted than may be awake.
    pub needless: usize,
}

impl History {
    pub async fn of(haas: &Installation, most: usize) -> Self {
        let events = "SELECT instance_id, kind, floor(extract(epoch FROM at) * 1000) FROM events ORDER BY id";
        let events = haas.sql(events).await;
        let (mut history, mut up) = (Self::default(), BTreeSet::new());
        let mut since: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for event in events.lines() {
            let fields: Vec<&str> = event.split('|').collect();
            let [id, kind, at] = fields[..] else { panic!("{event}") };
            let at: u64 = at.parse().unwrap();
            let began = |since: &BTreeMap<(&str, &str), u64>, kind| {
                since.get(&(id, kind)).map(|began| at.saturating_sub(*began))
            };
            match kind {
                "provisioned" => drop(up.insert(id)),
                "wake" => {
                    up.insert(id);
                    since.remove(&(id, "sleep"));
                    since.insert((id, "wake"), at);
                }
                "sleep" => {
                    history.needless += usize::from(up.len() <= most);
                    up.remove(id);
                    since.remove(&(id, "wake"));
                    since.insert((id, "sleep"), at);
                }
                "asleep" => history.asleep.extend(began(&since, "sleep")),
                "starting" => history.started.extend(began(&since, "wake")),
                "ready" => history.answered.extend(began(&since, "wake")),
                _ => {}
            }
        }
        history
    }
}

impl std::fmt::Display for History {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let median = |times: &[u64]| {
            let mut times = times.to_vec();
            times.sort_unstable();
            times.get(times.len() / 2).copied().unwrap_or_default()
        };
        write!(
            f,
            "medians: {} ms from the intent to sleep until it slept; {} ms from the intent to wake until its container \
             was started, {} ms until its Hoodie answered; {} evictions without need",
            median(&self.asleep),
            median(&self.started),
            median(&self.answered),
            self.needless
        )
    }
}
