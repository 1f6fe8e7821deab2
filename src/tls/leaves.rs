//! Which leaf of the local CA has which names.
//!
//! HAProxy reads every file of its folder at each check and each start, so there are few files
//! with many names each (see docs/decisions/0008-https.md). A name that is not needed any more
//! stays at first: a host whose app is gone is still answered, with 404, and for that it needs its
//! certificate. When such names outweigh the rest, all leaves are packed anew without them.

use std::collections::{BTreeMap, BTreeSet};

/// Names that a leaf has at most.
const NAMES_MAX: usize = 50;
/// Their length at most, in bytes: HAProxy takes a certificate at run time only if it fits,
/// base64, into 16 KiB with its key.
const BYTES_MAX: usize = 6 * 1024;
/// The leaf of the operator's own hosts: it tells no tenant's name.
const OWN: u32 = 0;
/// Leaves beyond twice those that the needed names take, before they are packed anew.
const SPARE: usize = 2;

/// The names of one leaf.
pub type Leaf = BTreeSet<String>;

/// What is to become of the leaves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Leaves that have to be written, in this order: each name that moves is in its new leaf
    /// before it leaves its old one.
    pub written: Vec<(u32, Leaf)>,
    /// Leaves that go when all of those are there.
    pub removed: BTreeSet<u32>,
}

/// How every needed name gets into a leaf, where these names are all that are needed. Leaves that
/// are not mentioned stay as they are.
///
/// There are at most twice as many leaves as the needed names take, and [`SPARE`] more; past that
/// they are packed. Until that happens again as many names have to come as fill the difference, so
/// that packing costs no more than a fixed share of what issuing them has cost.
#[must_use]
pub fn plan(leaves: &BTreeMap<u32, Leaf>, domain: &str, needed: &BTreeSet<String>) -> Plan {
    let written = missing(leaves, domain, needed);
    let count = leaves.keys().chain(written.keys()).collect::<BTreeSet<_>>().len();
    let packed = missing(&BTreeMap::new(), domain, needed);
    if count <= 2 * packed.len() + SPARE {
        return Plan { written: written.into_iter().collect(), removed: BTreeSet::new() };
    }
    let mut kept = BTreeSet::new();
    let mut fresh = Vec::new();
    let mut own = None;
    for (number, leaf) in packed {
        // A leaf with just these names was packed by a process that was ended on the way.
        let there = leaves.iter().find(|(number, present)| **number != OWN && **present == leaf);
        match there {
            _ if number == OWN => own = Some(leaf),
            Some((number, _)) => drop(kept.insert(*number)),
            None => fresh.push(leaf),
        }
    }
    // In files of their own: none of the old ones loses a name before all of these are there.
    let free = (OWN + 1..).filter(|number| !leaves.contains_key(number));
    let mut written: Vec<(u32, Leaf)> = free.zip(fresh).collect();
    kept.extend(written.iter().map(|(number, _)| *number));
    if let Some(own) = own {
        kept.insert(OWN);
        if leaves.get(&OWN) != Some(&own) {
            written.push((OWN, own));
        }
    }
    let removed = leaves.keys().copied().filter(|number| !kept.contains(number)).collect();
    Plan { written, removed }
}

/// The leaves that have to be written, by number, so that each of these names is in one. Others
/// stay as they are; empty when none is missing.
#[must_use]
pub fn missing(leaves: &BTreeMap<u32, Leaf>, domain: &str, names: &BTreeSet<String>) -> BTreeMap<u32, Leaf> {
    let present: BTreeSet<&String> = leaves.values().flatten().collect();
    let mut written: BTreeMap<u32, Leaf> = BTreeMap::new();
    let mut at = OWN + 1;
    for name in names.iter().filter(|name| !present.contains(name)) {
        let own = *name == domain || name.strip_prefix("*.") == Some(domain);
        if !own {
            // Those before it were full for an earlier name; a shorter one may still go there, but
            // then it would take the search for ever longer.
            while !has_room(written.get(&at).or_else(|| leaves.get(&at)), name) {
                at += 1;
            }
        }
        let number = if own { OWN } else { at };
        let leaf = written.entry(number).or_insert_with(|| leaves.get(&number).cloned().unwrap_or_default());
        leaf.insert(name.clone());
    }
    written
}

fn has_room(leaf: Option<&Leaf>, name: &str) -> bool {
    leaf.is_none_or(|leaf| {
        leaf.len() < NAMES_MAX && leaf.iter().map(String::len).sum::<usize>() + name.len() <= BYTES_MAX
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DOMAIN: &str = "haas.localhost";

    fn names(of: &[&str]) -> BTreeSet<String> {
        of.iter().map(|name| (*name).to_owned()).collect()
    }

    fn numbered(range: std::ops::Range<usize>) -> Leaf {
        range.map(|n| format!("*.u{n:05}.{DOMAIN}")).collect()
    }

    /// Carries out so many steps of a plan, as a process does that is killed after them; whether that was all.
    fn steps(leaves: &mut BTreeMap<u32, Leaf>, plan: &Plan, count: usize, each: impl Fn(&BTreeMap<u32, Leaf>)) -> bool {
        let written = plan.written.iter().map(|(number, leaf)| (*number, Some(leaf)));
        let removed = plan.removed.iter().map(|number| (*number, None));
        for (number, leaf) in written.chain(removed).take(count) {
            match leaf {
                Some(leaf) => drop(leaves.insert(number, leaf.clone())),
                None => drop(leaves.remove(&number)),
            }
            each(leaves);
        }
        count >= plan.written.len() + plan.removed.len()
    }

    fn settle(leaves: &mut BTreeMap<u32, Leaf>, needed: &BTreeSet<String>) {
        let plan = plan(leaves, DOMAIN, needed);
        steps(leaves, &plan, usize::MAX, |_| {});
    }

    #[test]
    fn the_operators_hosts_have_a_leaf_of_their_own() {
        let needed = names(&[DOMAIN, "*.haas.localhost", "*.alice.haas.localhost", "www.example.org"]);
        let written = missing(&BTreeMap::new(), DOMAIN, &needed);
        assert_eq!(written[&0], names(&[DOMAIN, "*.haas.localhost"]));
        assert_eq!(written[&1], names(&["*.alice.haas.localhost", "www.example.org"]));
        assert_eq!(written.len(), 2);
    }

    #[test]
    fn one_more_user_rewrites_one_leaf() {
        let full: Leaf = (0..NAMES_MAX).map(|n| format!("*.u{n}.{DOMAIN}")).collect();
        let leaves = BTreeMap::from([(1, full.clone()), (2, names(&["*.x.haas.localhost"])), (3, full)]);
        let written = missing(&leaves, DOMAIN, &names(&["*.y.haas.localhost", "*.u7.haas.localhost"]));
        assert_eq!(written, BTreeMap::from([(2, names(&["*.x.haas.localhost", "*.y.haas.localhost"]))]));
    }

    #[test]
    fn a_name_stays_until_the_superfluous_ones_outweigh_the_rest() {
        let own = names(&[DOMAIN]);
        let mut leaves = BTreeMap::from([(0, own.clone())]);
        let kept: BTreeSet<String> = own.iter().cloned().chain(numbered(0..1)).collect();
        // Two leaves are needed, so there may be six.
        for round in 0..5 {
            let needed = kept.iter().cloned().chain(numbered(round * 50 + 1..round * 50 + 50)).collect();
            settle(&mut leaves, &needed);
        }
        settle(&mut leaves, &kept);
        assert_eq!(leaves.len(), 6);
        assert!(leaves.values().flatten().any(|name| name.starts_with("*.u00001.")), "of an app that is gone");
        let more = kept.iter().cloned().chain(numbered(400..440)).collect();
        let packing = plan(&leaves, DOMAIN, &more);
        assert_eq!(packing.written, [(6, numbered(0..1).into_iter().chain(numbered(400..440)).collect())]);
        assert_eq!(packing.removed, (1..6).collect());
        settle(&mut leaves, &more);
        assert_eq!(leaves.keys().copied().collect::<Vec<_>>(), [0, 6]);
        assert_eq!(leaves[&0], own);
        assert_eq!(plan(&leaves, DOMAIN, &more), Plan::default());
    }

    #[test]
    fn the_operators_leaf_is_rewritten_last_when_a_name_leaves_it() {
        // The domain has changed: what was the operator's own is a name like any other.
        let old = names(&["old.localhost", "*.old.localhost"]);
        let mut leaves: BTreeMap<u32, Leaf> = BTreeMap::from([(OWN, old)]);
        leaves.extend((1..9).map(|n| (n, numbered(n as usize * 50..n as usize * 50 + 50))));
        let needed = names(&[DOMAIN, "*.old.localhost"]);
        let packing = plan(&leaves, DOMAIN, &needed);
        assert_eq!(packing.written, [(9, names(&["*.old.localhost"])), (OWN, names(&[DOMAIN]))]);
        assert_eq!(packing.removed, (1..9).collect());
    }

    /// What names come and go costs, in leaves that are signed: a fixed number for each that it would cost anyway.
    #[test]
    fn packing_is_paid_for_by_the_names_that_came_before_it() {
        let kept = numbered(0..200);
        let mut leaves = BTreeMap::new();
        let (mut packings, mut signed) = (0, 0);
        for round in 0..200 {
            let toggled = numbered(1000 + round * 16..1000 + round * 16 + 16);
            for needed in [kept.union(&toggled).cloned().collect(), kept.clone()] {
                let plan = plan(&leaves, DOMAIN, &needed);
                packings += usize::from(!plan.removed.is_empty());
                signed += plan.written.len();
                steps(&mut leaves, &plan, usize::MAX, |_| {});
            }
        }
        assert!(leaves.len() <= 2 * 4 + SPARE, "{}", leaves.len());
        assert!((1..=200 * 16 / (6 * 50)).contains(&packings), "{packings}");
        assert!(signed < 2 * 200 + 8, "{signed} for 200 rounds, each of which has to sign one or two");
    }

    proptest! {
        #[test]
        fn every_needed_name_is_covered_at_every_moment_and_files_are_bounded(
            rounds in prop::collection::vec((
                prop::collection::btree_set("(\\*\\.)?[a-z]{1,2}(\\.[a-z]{40,60}){0,4}", 0..90), any::<bool>(), 0..6_usize,
            ), 1..12),
        ) {
            let mut leaves: BTreeMap<u32, Leaf> = BTreeMap::new();
            let mut before: BTreeSet<String> = BTreeSet::new();
            for (fresh, keep, killed_after) in rounds {
                let mut needed: BTreeSet<String> = fresh.into_iter().chain([DOMAIN.to_owned()]).collect();
                if keep {
                    needed.extend(before.iter().take(40).cloned());
                }
                let carried: BTreeSet<String> = {
                    let covered: BTreeSet<&String> = leaves.values().flatten().collect();
                    needed.iter().filter(|name| covered.contains(name)).cloned().collect()
                };
                let covered = |leaves: &BTreeMap<u32, Leaf>, names: &BTreeSet<String>| {
                    let present: BTreeSet<&String> = leaves.values().flatten().collect();
                    names.iter().all(|name| present.contains(name))
                };
                let each = |leaves: &BTreeMap<u32, Leaf>| assert!(covered(leaves, &carried), "a name was away for a moment");
                // Killed on the way, and once more, before it is carried through.
                let mut limit = killed_after;
                for _ in 0..3 {
                    let plan = plan(&leaves, DOMAIN, &needed);
                    if steps(&mut leaves, &plan, limit, each) {
                        break;
                    }
                    limit = if limit == killed_after { killed_after + 1 } else { usize::MAX };
                }
                prop_assert!(covered(&leaves, &needed));
                let least = missing(&BTreeMap::new(), DOMAIN, &needed).len();
                prop_assert!(leaves.len() <= 2 * least + SPARE, "{} leaves where {} would do", leaves.len(), least);
                prop_assert!(leaves.values().all(|leaf| leaf.len() <= NAMES_MAX));
                prop_assert!(leaves.values().all(|leaf| leaf.iter().map(String::len).sum::<usize>() <= BYTES_MAX));
                prop_assert!(leaves.iter().all(|(number, leaf)| *number == OWN || !leaf.contains(DOMAIN)));
                prop_assert_eq!(plan(&leaves, DOMAIN, &needed), Plan::default(), "settled");
                before = needed;
            }
        }
    }
}
