//! One pass: a look at everything, and the start of what has to be done.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::timeout;
use uuid::Uuid;

use super::drive::{LOOK_TIMEOUT, drive};
use super::health::Health;
use super::orphans::Orphans;
use super::publish::{Published, routes};
use super::{Nudges, ReconcileError, World};
use crate::containers::{Containers, ContainersError, Owned};
use crate::haproxy::{HaproxyError, Moment, Proxy, Publication, Routes};
use crate::instance::plan::{Container, Observed, Seen, Step, plan};
use crate::instance::{Desired, Instance};
use crate::manifest::ManifestError;

/// How often the policy is followed at least: instances come up meanwhile, and are used.
const POLICY_LOOK: Duration = Duration::from_secs(5);
const POLICY_LOOK_MIN: Duration = Duration::from_secs(1);
/// And while some wait to be rolled.
const ROLL_LOOK: Duration = Duration::from_millis(500);
/// How often what no row claims is looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(600);
/// How long a pass waits for HAProxy to say which workers there are.
const PORTS_LOOK: Duration = Duration::from_millis(250);

/// What a finished task leaves behind.
pub(super) enum Done {
    Driven {
        look_again: bool,
    },
    Published {
        routes: Routes,
        outcome: Result<Publication, HaproxyError>,
    },
    OrphansRemoved,
    /// The policy was followed; the next step down is due then.
    PolicyFollowed {
        due: Option<DateTime<Utc>>,
    },
    Swept,
}

/// What is done for all instances together, one at a time of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Chore {
    Publish,
    RemoveOrphans,
    FollowPolicy,
    Sweep,
}

/// The one actor's memory between passes. All of it may be lost at any time.
pub(super) struct Actor<C, P> {
    world: Arc<World<C, P>>,
    health: Health,
    nudges: Nudges,
    published: Arc<RwLock<Published>>,
    tasks: JoinSet<Done>,
    /// Instances that are being worked on, by task.
    driven: HashMap<Id, Uuid>,
    /// What is being done for all of them together.
    chores: HashSet<Chore>,
    /// When the next step down is due, as of the last look.
    step_due: Option<DateTime<Utc>>,
    policy_followed: Option<Instant>,
    swept: Option<Instant>,
    /// Instances with a container under another name.
    misnamed: HashSet<Uuid>,
    orphans: Orphans,
    corrupt: HashSet<String>,
    image_looked: Option<Instant>,
}

impl<C: Containers, P: Proxy> Actor<C, P> {
    pub fn new(world: Arc<World<C, P>>, health: Health, nudges: Nudges) -> Self {
        Self {
            world,
            health,
            nudges,
            published: Arc::default(),
            tasks: JoinSet::new(),
            driven: HashMap::new(),
            chores: HashSet::new(),
            step_due: None,
            policy_followed: None,
            swept: None,
            misnamed: HashSet::new(),
            orphans: Orphans::default(),
            corrupt: HashSet::new(),
            image_looked: None,
        }
    }

    /// Whether nothing is under way.
    pub fn idle(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Waits for a task to finish and takes its outcome down; waits for ever when there is none.
    pub async fn finished(&mut self) {
        let Some(joined) = self.tasks.join_next_with_id().await else { return std::future::pending().await };
        self.take_down(joined);
        while let Some(joined) = self.tasks.try_join_next_with_id() {
            self.take_down(joined);
        }
    }

    fn take_down(&mut self, joined: Result<(Id, Done), JoinError>) {
        match joined {
            Ok((task, Done::Driven { look_again })) => {
                self.driven.remove(&task);
                if look_again {
                    self.nudges.nudge();
                }
            }
            Ok((_, Done::Published { routes, outcome })) => {
                self.chores.remove(&Chore::Publish);
                if let Ok(mut published) = self.published.write() {
                    self.health.haproxy(published.tried(routes, &outcome));
                }
                self.nudges.nudge();
            }
            Ok((_, Done::OrphansRemoved)) => {
                self.chores.remove(&Chore::RemoveOrphans);
                self.nudges.nudge();
            }
            Ok((_, Done::PolicyFollowed { due })) => {
                self.chores.remove(&Chore::FollowPolicy);
                self.step_due = due;
                self.nudges.nudge();
            }
            Ok((_, Done::Swept)) => {
                self.chores.remove(&Chore::Sweep);
            }
            Err(panicked) => {
                // A bug, of which one instance has the harm: it is looked at again in a while.
                log::error!("a task of the reconciler failed: {panicked}");
                if self.driven.remove(&panicked.id()).is_none() {
                    self.chores.clear();
                }
            }
        }
    }

    /// One look at everything. Says when the next one is due at the latest, if before the period.
    pub async fn pass(&mut self) -> Option<DateTime<Utc>> {
        // What is changed from here on is newer than what is read now.
        if let Ok(mut published) = self.published.write() {
            published.reading();
        }
        self.world.awake.reading();
        let read = self.world.proxy.now().await;
        let (live, corrupt) = match self.world.manifest.live().await {
            Ok(found) => found,
            Err(error) => {
                self.health.postgres(Some(error.to_string()));
                return None;
            }
        };
        self.health.postgres(None);
        self.report_corrupt(&corrupt);
        self.world.awake.sync(&live);
        self.world.lanes.forget_failures_but(&live);
        self.publish(&live, read);
        let look = self.follow_policy(&live);
        let owned = self.look_at_docker().await;
        self.free_ports().await;
        let owned = owned?;
        self.misnamed = self.remove_orphans(&owned, &live);
        self.sweep();

        let by_name: HashMap<&str, &Owned> = owned.iter().map(|owned| (owned.name.as_str(), owned)).collect();
        let now = Utc::now();
        let reload_due = self.published.read().map_or(None, |published| published.due_in());
        let mut wake = reload_due.map(|rest| now + rest).into_iter().chain(self.step_due).chain(look).min();
        let driven: HashSet<Uuid> = self.driven.values().copied().collect();
        for instance in &live {
            if driven.contains(&instance.id) || self.misnamed.contains(&instance.id) {
                continue;
            }
            let container = seen(instance, by_name.get(instance.container.as_str()).copied());
            let routed = self.published.read().map_or(None, |published| published.routed(instance));
            let room = self.world.awake.has(instance.id);
            match plan(instance, &Observed { container, routed, room }, now) {
                Step::Settled | Step::AwaitPublish => {}
                Step::WaitUntil(at) => wake = Some(wake.map_or(at, |earliest| earliest.min(at))),
                _ => self.drive(instance.id),
            }
        }
        wake
    }

    /// Works on those that somebody waits for, without a look at all the others first.
    pub fn drive_urgent(&mut self) {
        let driven: HashSet<Uuid> = self.driven.values().copied().collect();
        for id in self.nudges.take_urgent() {
            if !driven.contains(&id) && !self.misnamed.contains(&id) {
                self.drive(id);
            }
        }
    }

    /// Follows the policy when a step may be due: it needs the rows, and then HAProxy's word.
    /// Says when it has to be looked at again soon.
    fn follow_policy(&mut self, live: &[Instance]) -> Option<DateTime<Utc>> {
        let rolls = live.iter().any(|row| row.next_spec.is_some() && row.desired == Desired::Running);
        let look = if rolls { ROLL_LOOK } else { self.world.settings.period.clamp(POLICY_LOOK_MIN, POLICY_LOOK) };
        let due = self.step_due.is_some_and(|due| due <= Utc::now())
            || self.policy_followed.is_none_or(|at| at.elapsed() >= look);
        let next_look = rolls.then(|| Utc::now() + ROLL_LOOK);
        if !due || !self.chores.insert(Chore::FollowPolicy) {
            return next_look;
        }
        (self.step_due, self.policy_followed) = (None, Some(Instant::now()));
        let (world, round) = (Arc::clone(&self.world), self.world.policy_round(live));
        self.tasks.spawn(async move { Done::PolicyFollowed { due: world.follow_policy(round).await } });
        next_look
    }

    /// Looks for what no row claims, every now and then.
    fn sweep(&mut self) {
        let recent = self.swept.is_some_and(|at| at.elapsed() < SWEEP_EVERY);
        if recent || !self.chores.insert(Chore::Sweep) {
            return;
        }
        self.swept = Some(Instant::now());
        let world = Arc::clone(&self.world);
        self.tasks.spawn(async move {
            world.sweep().await;
            Done::Swept
        });
    }

    fn drive(&mut self, id: Uuid) {
        let (world, published) = (Arc::clone(&self.world), Arc::clone(&self.published));
        let task = self.tasks.spawn(async move { Done::Driven { look_again: drive(world, published, id).await } });
        self.driven.insert(task.id(), id);
    }

    fn publish(&mut self, live: &[Instance], read: Moment) {
        if self.chores.contains(&Chore::Publish) {
            return;
        }
        let wanted = routes(live);
        let Ok(mut published) = self.published.write() else { return };
        if self.nudges.take_haproxy() {
            published.look_again();
        }
        if !published.due(&wanted, self.world.settings.period) {
            return;
        }
        published.trying(&wanted);
        drop(published);
        self.chores.insert(Chore::Publish);
        let world = Arc::clone(&self.world);
        self.tasks.spawn(async move {
            let outcome = world.proxy.publish(&wanted, read).await;
            Done::Published { routes: wanted, outcome }
        });
    }

    /// Ports that were given back are free again once no old worker can route to them.
    async fn free_ports(&self) {
        if !matches!(self.world.manifest.has_draining_ports().await, Ok(true)) {
            return;
        }
        // They may as well be freed by a later pass: nobody waits for HAProxy here.
        let oldest = timeout(PORTS_LOOK, self.world.proxy.oldest_leaving_worker()).await;
        match oldest.unwrap_or(Err(HaproxyError::NotOurs)) {
            Ok(oldest) => {
                if let Err(error) = self.world.manifest.free_drained_ports(oldest).await {
                    log::warn!("ports could not be freed: {error}");
                }
            }
            Err(error) => log::debug!("ports stay withheld: {error}"),
        }
    }

    async fn look_at_docker(&mut self) -> Option<Vec<Owned>> {
        let away = |_| Err(ContainersError::Unreachable("it does not answer".to_owned()));
        let listed = timeout(LOOK_TIMEOUT, self.world.containers.list()).await.unwrap_or_else(away);
        match &listed {
            Ok(_) => self.health.docker(None),
            Err(error) => self.health.docker(Some(error.to_string())),
        }
        if listed.is_ok() && self.image_looked.is_none_or(|at| at.elapsed() >= self.world.settings.period) {
            self.image_looked = Some(Instant::now());
            look_at_image(&self.world.containers, &self.health).await;
        }
        listed.ok()
    }

    /// Returns the instances with a container under another name: two Hoodies on one volume would
    /// destroy it, so they have to wait until that one is gone.
    fn remove_orphans(&mut self, owned: &[Owned], live: &[Instance]) -> HashSet<Uuid> {
        let names: HashMap<Uuid, &str> = live.iter().map(|row| (row.id, row.container.as_str())).collect();
        let live: HashSet<Uuid> = names.keys().copied().collect();
        let mut due = self.orphans.due(owned, &live, self.world.settings.orphan_grace, Instant::now());
        let misnamed =
            |owned: &&Owned| owned.instance.and_then(|id| names.get(&id)).is_some_and(|name| *name != owned.name);
        let misnamed: Vec<Owned> = owned.iter().filter(misnamed).cloned().collect();
        let ids = misnamed.iter().filter_map(|owned| owned.instance).collect();
        let renamed: HashSet<String> = misnamed.iter().map(|owned| owned.id.clone()).collect();
        due.extend(misnamed);
        if due.is_empty() || !self.chores.insert(Chore::RemoveOrphans) {
            return ids;
        }
        let world = Arc::clone(&self.world);
        self.tasks.spawn(async move {
            for orphan in due {
                // A row may have come to want it since.
                let wanted = match orphan.instance {
                    Some(id) => world
                        .manifest
                        .get(id)
                        .await
                        .map_or(true, |row| row.is_some_and(|row| row.phase != crate::instance::Phase::Deleted)),
                    None => false,
                };
                if wanted && !renamed.contains(&orphan.id) {
                    continue;
                }
                match world.containers.remove_owned(&orphan).await {
                    Ok(()) => log::warn!("container {} belonged to no live instance; removed", orphan.name),
                    Err(error) => log::warn!("orphan {} could not be removed: {error}", orphan.name),
                }
            }
            Done::OrphansRemoved
        });
        ids
    }

    fn report_corrupt(&mut self, corrupt: &[ManifestError]) {
        let corrupt: HashSet<String> = corrupt.iter().map(ToString::to_string).collect();
        for news in corrupt.difference(&self.corrupt) {
            log::error!("{news}; it is left alone");
        }
        self.corrupt = corrupt;
    }
}

/// A look at the tenants' image.
pub(super) async fn look_at_image<C: Containers>(containers: &C, health: &Health) {
    let away = |_| Err(ContainersError::Unreachable("it does not answer".to_owned()));
    match timeout(LOOK_TIMEOUT, containers.health()).await.unwrap_or_else(away) {
        Ok(()) => health.image(None),
        Err(ContainersError::Unreachable(_)) => {}
        Err(error) => health.image(Some(error.to_string())),
    }
}

/// What a listing shows of an instance's container. Less than an inspection: a foreign one
/// looks like none, and a stopped one has no port. The executor inspects before it acts.
fn seen(instance: &Instance, owned: Option<&Owned>) -> Seen {
    let Some(owned) = owned else { return Seen::Absent };
    let container = if owned.instance == Some(instance.id) {
        owned.container.clone()
    } else {
        Container { generation: -1, ..owned.container.clone() }
    };
    Seen::Ours(container)
}

/// What a pass would do next for an instance that is not settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// The instance.
    pub instance: Instance,
    /// Its next step.
    pub step: Step,
}

/// What a pass would do now, without doing it.
///
/// # Errors
/// [`ReconcileError`]: what the manifest, or the engine, says.
pub async fn dry_run<C: Containers, P: Proxy>(
    world: &World<C, P>,
    routed: impl Fn(&Instance) -> Option<bool>,
) -> Result<Vec<Planned>, ReconcileError> {
    let (live, _) = world.manifest.live().await?;
    let now = Utc::now();
    let mut planned = Vec::new();
    for instance in live {
        let container = world.containers.inspect(&instance).await?;
        let routed = routed(&instance);
        match plan(&instance, &Observed { container, routed, room: true }, now) {
            Step::Settled => {}
            step => planned.push(Planned { instance, step }),
        }
    }
    Ok(planned)
}
