//! Which leaf of the local CA has which names.
//!
//! HAProxy reads every file of its folder at each check and each start, so there are few files
//! with many names each (see docs/decisions/0008-https.md). A name stays once it is there: a host
//! whose app is gone is still answered, with 404, and for that it needs its certificate.

use std::collections::{BTreeMap, BTreeSet};

/// Names that a leaf has at most.
const NAMES_MAX: usize = 50;
/// Their length at most, in bytes: HAProxy takes a certificate at run time only if it fits,
/// base64, into 16 KiB with its key.
const BYTES_MAX: usize = 6 * 1024;
/// The leaf of the operator's own hosts: it tells no tenant's name.
const OWN: u32 = 0;

/// The names of one leaf.
pub type Leaf = BTreeSet<String>;

/// The leaves that have to be written, by number, so that every needed name is in one. Others
/// stay as they are; empty when nothing is missing.
#[must_use]
pub fn plan(leaves: &BTreeMap<u32, Leaf>, domain: &str, needed: &BTreeSet<String>) -> BTreeMap<u32, Leaf> {
    let present: BTreeSet<&String> = leaves.values().flatten().collect();
    let mut written: BTreeMap<u32, Leaf> = BTreeMap::new();
    let mut at = OWN + 1;
    for name in needed.iter().filter(|name| !present.contains(name)) {
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

    #[test]
    fn the_operators_hosts_have_a_leaf_of_their_own() {
        let needed = names(&[DOMAIN, "*.haas.localhost", "*.alice.haas.localhost", "www.example.org"]);
        let written = plan(&BTreeMap::new(), DOMAIN, &needed);
        assert_eq!(written[&0], names(&[DOMAIN, "*.haas.localhost"]));
        assert_eq!(written[&1], names(&["*.alice.haas.localhost", "www.example.org"]));
        assert_eq!(written.len(), 2);
    }

    #[test]
    fn one_more_user_rewrites_one_leaf() {
        let full: Leaf = (0..NAMES_MAX).map(|n| format!("*.u{n}.{DOMAIN}")).collect();
        let leaves = BTreeMap::from([(1, full.clone()), (2, names(&["*.x.haas.localhost"])), (3, full)]);
        let written = plan(&leaves, DOMAIN, &names(&["*.y.haas.localhost", "*.u7.haas.localhost"]));
        assert_eq!(written, BTreeMap::from([(2, names(&["*.x.haas.localhost", "*.y.haas.localhost"]))]));
    }

    proptest! {
        #[test]
        fn every_name_is_covered_and_none_gets_lost(
            rounds in prop::collection::vec(prop::collection::btree_set("(\\*\\.)?[a-z]{1,2}(\\.[a-z]{40,60}){0,4}", 0..90), 1..8),
        ) {
            let mut leaves: BTreeMap<u32, Leaf> = BTreeMap::new();
            let mut ever: BTreeSet<String> = BTreeSet::new();
            for needed in rounds {
                let needed: BTreeSet<String> = needed.into_iter().chain([DOMAIN.to_owned()]).collect();
                leaves.extend(plan(&leaves, DOMAIN, &needed));
                ever.extend(needed.clone());
                let all: Vec<&String> = leaves.values().flatten().collect();
                prop_assert_eq!(all.len(), ever.len(), "each name is in one leaf");
                prop_assert!(ever.iter().all(|name| all.contains(&name)));
                prop_assert!(leaves.values().all(|leaf| leaf.len() <= NAMES_MAX));
                prop_assert!(leaves.values().all(|leaf| leaf.iter().map(String::len).sum::<usize>() <= BYTES_MAX));
                prop_assert_eq!(plan(&leaves, DOMAIN, &needed), BTreeMap::new(), "settled");
                prop_assert_eq!(plan(&leaves, DOMAIN, &ever), BTreeMap::new());
            }
        }
    }
}
