//! Made anew, of something else or with another password.

use super::*;

#[test]
fn a_roll_that_fails_goes_back_to_what_it_was() {
    let mut world = World::new();
    settled(&mut world);
    let before = world.row.spec.clone();
    world.suffer(Fault::Rolled);
    assert_eq!(world.step(false, false), Step::Advance(Phase::Draining), "nobody may be talking to it");
    while world.row.phase != Phase::Starting {
        world.step(false, false);
    }
    world.step(false, true);
    assert_eq!(world.row.phase, Phase::Failed);
    settled(&mut world);
    assert_eq!((world.row.phase, world.row.spec), (Phase::Running, before));
}

#[test]
fn another_password_makes_it_anew_in_order_and_of_the_same() {
    let mut world = World::new();
    settled(&mut world);
    world.row.spec = Some(spec("image").into());
    world.container = Seen::Ours(world.container(world.row.volume()));
    world.set_status(Status::Running);
    assert_eq!(world.step(false, false), Step::Settled);
    rotate(&mut world.row, &spec("other"));
    let mut steps = Vec::new();
    while world.row.phase != Phase::Running || world.row.rolling {
        steps.push(world.step(false, false));
    }
    let in_order = [
        Step::Advance(Phase::Draining),
        Step::AwaitPublish,
        Step::Drain(Phase::Removing),
        Step::Remove,
        Step::Advance(Phase::Pending),
        Step::Create,
        Step::AwaitReady(Phase::Ready),
        Step::AwaitPublish,
        Step::ConfirmRoute,
    ];
    assert_eq!(steps, in_order);
    assert!(matches!(&world.container, Seen::Ours(c) if c.generation == 2 && c.is_of(&world.row)));
    assert_eq!(world.row.spec.as_deref(), Some(&spec("image")));
    // One that sleeps sleeps on, and is made anew when it wakes.
    world.suffer(Fault::LaidToRest(Desired::Asleep));
    while world.step(false, false) != Step::Settled {}
    rotate(&mut world.row, &spec("other"));
    assert_eq!((world.step(false, false), world.row.rolling), (Step::Settled, false));
    world.suffer(Fault::Woken);
    let mut steps = Vec::new();
    while world.row.phase != Phase::Running {
        steps.push(world.step(false, false));
    }
    assert!(steps.contains(&Step::Remove) && steps.contains(&Step::Create), "{steps:?}");
    assert!(matches!(&world.container, Seen::Ours(c) if c.generation == 3));
}
