use std::time::Duration;

use futures_util::FutureExt;
use proptest::prelude::*;

use super::*;

fn user(n: u32) -> Username {
    Username::parse(&format!("user{n}")).unwrap()
}

/// A claim that is asked once.
fn claim(turns: &Turns, of: u32, standing: Standing) -> Option<Place<'_>> {
    let (user, mut place) = (user(of), None);
    let mut waits = Box::pin(async { place = Some(turns.acquire(&user, standing).await) });
    let given = waits.as_mut().now_or_never().is_some();
    drop(waits);
    place.filter(|_| given)
}

#[tokio::test]
async fn one_user_never_holds_all_places() {
    let turns = Turns::new(4);
    let held: Vec<_> = (0..8).filter_map(|_| claim(&turns, 1, Standing::Good)).collect();
    assert_eq!(held.len(), 3);
    let other = claim(&turns, 2, Standing::Good);
    assert!(other.is_some() && claim(&turns, 3, Standing::Good).is_none(), "there are four");
    drop(held);
    assert!(claim(&turns, 3, Standing::Good).is_some());
    assert!(claim(&Turns::new(1), 1, Standing::Good).is_some(), "but the only one there is");
}

#[tokio::test]
async fn those_that_failed_take_no_place_from_the_others() {
    let turns = Turns::new(4);
    let failed: Vec<_> = (0..8).filter_map(|n| claim(&turns, n, Standing::Failed)).collect();
    assert_eq!(failed.len(), 1);
    let good: Vec<_> = (10..18).filter_map(|n| claim(&turns, n, Standing::Good)).collect();
    assert_eq!(good.len(), 4);
}

#[tokio::test]
async fn a_user_with_many_goes_behind_those_who_had_no_turn() {
    let turns = Turns::new(2);
    let order: Mutex<Vec<u32>> = Mutex::default();
    let first = turns.acquire(&user(1), Standing::Good).await;
    let second = turns.acquire(&user(2), Standing::Good).await;
    let take = async |of: u32| {
        let place = turns.acquire(&user(of), Standing::Good).await;
        order.lock().unwrap().push(of);
        tokio::time::sleep(Duration::from_millis(1)).await;
        drop(place);
    };
    let waiting = futures_util::future::join_all([1, 1, 1, 1, 3, 4].map(take));
    tokio::join!(waiting, async move {
        tokio::time::sleep(Duration::from_millis(10)).await;
        drop((first, second));
    });
    let order = order.into_inner().unwrap();
    let place = |of: u32| order.iter().position(|served| *served == of).unwrap();
    assert!(place(3) < 3 && place(4) < 3, "{order:?}");
}

proptest! {
    /// Whatever is claimed, given up and given back: every place that may be given is, and no other.
    #[test]
    fn places_are_neither_lost_nor_given_twice(
        places in 1_usize..6,
        steps in prop::collection::vec((0_u32..4, any::<bool>(), 0_usize..3, any::<prop::sample::Index>()), 1..80),
    ) {
        let turns = Turns::new(places);
        let users: Vec<Username> = (0..4).map(user).collect();
        let mut claims: Vec<(futures_util::future::BoxFuture<'_, Place<'_>>, Option<Place<'_>>)> = Vec::new();
        for (of, failed, what, which) in steps {
            if what < 2 || claims.is_empty() {
                let standing = if failed { Standing::Failed } else { Standing::Good };
                claims.push((turns.acquire(&users[of as usize], standing).boxed(), None));
            } else {
                drop(claims.swap_remove(which.index(claims.len())));
            }
            for (claim, place) in &mut claims {
                if place.is_none() {
                    *place = claim.as_mut().now_or_never();
                }
            }
            let state = turns.state();
            let given = claims.iter().filter(|(_, place)| place.is_some()).count();
            prop_assert_eq!(state.held.len(), given);
            prop_assert_eq!(state.waiting.len(), claims.len() - given);
            prop_assert!(state.held_in(Standing::Good) <= turns.places.good);
            prop_assert!(state.held_in(Standing::Failed) <= turns.places.failed);
            prop_assert!(state.next(turns.places).is_none(), "a place is free, and a claim to it waits");
        }
        drop(claims);
        let state = turns.state();
        prop_assert!(state.held.is_empty() && state.waiting.is_empty() && state.served.is_empty());
    }
}
