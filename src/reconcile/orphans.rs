//! Containers of this installation that no live row wants: left over from a crash at the
//! wrong moment, or from a manifest that was restored from a backup. They are removed after
//! a time of grace, so that whoever made the mistake can undo it.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::containers::Owned;

/// Since when each orphan has been seen.
#[derive(Default)]
pub(super) struct Orphans(HashMap<String, Instant>);

impl Orphans {
    /// Those that have been orphans for the whole time of grace.
    pub fn due(&mut self, owned: &[Owned], live: &HashSet<Uuid>, grace: Duration, now: Instant) -> Vec<Owned> {
        let orphans: Vec<&Owned> =
            owned.iter().filter(|owned| owned.instance.is_none_or(|id| !live.contains(&id))).collect();
        let ids: HashSet<&str> = orphans.iter().map(|orphan| orphan.id.as_str()).collect();
        self.0.retain(|id, _| ids.contains(id.as_str()));
        orphans
            .into_iter()
            .filter(|orphan| {
                let since = self.0.entry(orphan.id.clone()).or_insert_with(|| {
                    log::warn!("container {} belongs to no live instance; it is removed in {grace:?}", orphan.name);
                    now
                });
                now.duration_since(*since) >= grace
            })
            .cloned()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use chrono::Utc;

    use super::*;
    use crate::instance::plan::{Container, Status};

    fn owned(id: &str, instance: Option<Uuid>) -> Owned {
        Owned {
            id: id.to_owned(),
            name: format!("name-of-{id}"),
            instance,
            container: Container { generation: 1, port: None, status: Status::Running, spec: None, volume: None },
            created: Utc::now(),
        }
    }

    #[test]
    fn an_orphan_has_its_time_of_grace_and_a_wanted_one_none_to_fear() {
        let mut orphans = Orphans::default();
        let (wanted, unwanted) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let all = [owned("a", Some(wanted)), owned("b", Some(unwanted)), owned("c", None)];
        let live = HashSet::from([wanted]);
        let (grace, start) = (Duration::from_secs(10), Instant::now());
        assert!(orphans.due(&all, &live, grace, start).is_empty());
        assert!(orphans.due(&all, &live, grace, start + grace / 2).is_empty());
        // Wanted again in between: its time starts anew.
        assert!(orphans.due(&all, &HashSet::from([wanted, unwanted]), grace, start + grace / 2).is_empty());
        let due = orphans.due(&all, &live, grace, start + grace);
        assert_eq!(due.iter().map(|o| o.id.as_str()).collect::<Vec<_>>(), ["c"]);
        let due = orphans.due(&all, &live, grace, start + grace * 2);
        assert_eq!(due.len(), 2);
    }
}
