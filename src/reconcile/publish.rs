//! What HAProxy routes to: what the manifest asks for, and what was last confirmed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::haproxy::{HaproxyError, Publication, Route, RouteChange, Routes, Standing};
use crate::instance::Instance;
use crate::instance::name::Hostname;

/// How soon HAProxy is looked for again after it was found down.
const DOWN_RETRY: Duration = Duration::from_secs(1);

/// The routes that the manifest asks for, of all instances that live.
#[must_use]
pub fn routes<'a>(instances: impl IntoIterator<Item = &'a Instance>) -> Routes {
    let mut unrouted = Vec::new();
    let routed = instances.into_iter().filter_map(|instance| {
        let route = route(instance);
        if route.is_none() && !instance.desired.gone() {
            unrouted.extend(instance.hosts().cloned());
        }
        route
    });
    Routes::new(routed).with_unrouted(unrouted)
}

/// An instance's route, if it should have one.
pub(super) fn route(instance: &Instance) -> Option<Route> {
    instance.routable().then_some(())?;
    Some(Route {
        host: instance.host.clone(),
        extra_hosts: instance.extra_hosts.clone(),
        port: instance.port?,
        container: instance.container.clone(),
        since: instance.ready_at?,
    })
}

/// What is known of HAProxy's routes.
#[derive(Default)]
pub(super) struct Published {
    /// What was last confirmed; none until then.
    confirmed: Option<(Routes, Standing)>,
    /// What was last tried, and when.
    tried: Option<(Routes, Instant)>,
    /// When a reload is due that was put off.
    reload_due: Option<Instant>,
    /// What is being published right now.
    under_way: Option<Routes>,
    /// Changes of single apps since the routes were read that are being published: they are newer.
    meanwhile: BTreeMap<Hostname, Option<Route>>,
    /// Ports that may or may not be routed to: a change that is not sure, a publication that
    /// failed half-way. With the number of the doubt.
    doubtful: BTreeMap<u16, u64>,
    /// How many doubts there were, and how many of them when the routes were last read.
    doubts: u64,
    doubts_read: u64,
}

impl Published {
    /// From here on changes are newer than the routes that are read now.
    pub fn reading(&mut self) {
        if self.under_way.is_none() {
            self.meanwhile.clear();
            self.doubts_read = self.doubts;
        }
    }

    /// Whether HAProxy sends requests for an instance to it; none while that is not known.
    pub fn routed(&self, instance: &Instance) -> Option<bool> {
        if instance.port.is_none() {
            // It was given back when nothing led there any more.
            return Some(false);
        }
        let confirmed = self.confirmed(instance)?;
        if self.doubtful.contains_key(&instance.port?) {
            return None;
        }
        // A publication that says otherwise may come into force at any moment.
        let changing = self.under_way.as_ref().is_some_and(|next| leads_to(next, instance) != confirmed)
            && !self.meanwhile.contains_key(&instance.host);
        (!changing).then_some(confirmed)
    }

    fn confirmed(&self, instance: &Instance) -> Option<bool> {
        self.confirmed.as_ref().and_then(|(routes, standing)| match standing {
            Standing::Live => Some(leads_to(routes, instance)),
            // Nobody is served now; but a HAProxy that comes back serves what its files say.
            Standing::Down if leads_to(routes, instance) => None,
            Standing::Down => Some(false),
        })
    }

    /// Every host that may lead to an instance: its own, and those that it had when its route was
    /// last published or changed.
    pub fn hosts(&self, instance: &Instance) -> Vec<Hostname> {
        let known = self.confirmed.as_ref().map(|(routes, _)| routes).into_iter().chain(&self.under_way);
        let earlier = known.filter_map(|routes| Some(routes.hosts_of(instance.port?))).flatten();
        let hosts: BTreeSet<&Hostname> = instance.hosts().chain(earlier).collect();
        hosts.into_iter().cloned().collect()
    }

    /// Whether it is time to publish: something new, or time for another look.
    pub fn due(&self, wanted: &Routes, period: Duration) -> bool {
        let Some((tried, at)) = &self.tried else { return true };
        let down = matches!(self.confirmed, Some((_, Standing::Down)));
        tried != wanted
            || at.elapsed() >= period
            || (down && at.elapsed() >= DOWN_RETRY)
            || self.reload_due.is_some_and(|due| due <= Instant::now())
    }

    /// How long until the next publication is due, if that is known.
    pub fn due_in(&self) -> Option<Duration> {
        self.reload_due.map(|due| due.saturating_duration_since(Instant::now()))
    }

    pub fn trying(&mut self, routes: &Routes) {
        self.tried = Some((routes.clone(), Instant::now()));
        self.under_way = Some(routes.clone());
        self.reload_due = None;
    }

    /// Something outside has changed: the next pass publishes, whatever was tried before.
    pub fn look_again(&mut self) {
        self.tried = None;
    }

    /// Takes down that it is not known whether anything leads to a port, until a publication of
    /// routes that are read from here on says so.
    pub fn doubt(&mut self, port: u16) {
        self.doubts += 1;
        self.doubtful.insert(port, self.doubts);
        self.look_again();
    }

    /// Takes down that an instance's route was changed alone, and is in force.
    pub fn changed(&mut self, port: u16, change: RouteChange) {
        self.doubtful.remove(&port);
        let changes: Vec<(Hostname, Option<Route>)> = match change {
            RouteChange::Set(route) => vec![(route.host.clone(), Some(route))],
            RouteChange::Unset(hosts) => hosts.into_iter().map(|host| (host, None)).collect(),
        };
        for (host, route) in changes {
            if let Some((routes, _)) = &mut self.confirmed {
                apply(routes, &host, route.clone());
            }
            self.meanwhile.insert(host, route);
        }
        // It was made from a row that may be older than what the last pass has read.
        self.look_again();
    }

    /// Takes the outcome down; returns what is wrong with HAProxy, if anything.
    pub fn tried(&mut self, routes: Routes, outcome: &Result<Publication, HaproxyError>) -> Option<String> {
        self.under_way = None;
        let meanwhile = std::mem::take(&mut self.meanwhile);
        match outcome {
            Ok(publication) => {
                let mut routes = routes;
                for (host, route) in meanwhile {
                    apply(&mut routes, &host, route);
                }
                self.confirmed = Some((routes, publication.standing));
                let read = self.doubts_read;
                self.doubtful.retain(|_, doubt| *doubt > read);
                self.reload_due = publication.reload_due;
                let down = matches!(publication.standing, Standing::Down);
                let down = down.then(|| "does not run; its files are in place for when it does".to_owned());
                down.or_else(|| publication.trouble.clone())
            }
            // The last good configuration serves on; but some of it may be in force already, and
            // what was only written may or may not have been taken up meanwhile.
            Err(error) => {
                match self.confirmed.take() {
                    Some((confirmed, Standing::Live)) => {
                        for port in differing_ports(&confirmed, &routes) {
                            self.doubts += 1;
                            self.doubtful.insert(port, self.doubts);
                        }
                        self.confirmed = Some((confirmed, Standing::Live));
                    }
                    Some((_, Standing::Down)) | None => {}
                }
                Some(error.to_string())
            }
        }
    }
}

/// Whether requests for an instance reach it; of one that is to be left alone, whether any do,
/// also by a host that it has no more. Its port is given back when none do.
fn leads_to(routes: &Routes, instance: &Instance) -> bool {
    let Some(port) = instance.port else { return false };
    routes.contains(&instance.host, port) || (!instance.routable() && !routes.hosts_of(port).is_empty())
}

/// Ports that one of them leads to by a host, and the other does not.
fn differing_ports(one: &Routes, other: &Routes) -> BTreeSet<u16> {
    let missing = |here: &Routes, there: &Routes| -> Vec<u16> {
        here.iter().filter(|route| !there.contains(&route.host, route.port)).map(|route| route.port).collect()
    };
    missing(one, other).into_iter().chain(missing(other, one)).collect()
}

fn apply(routes: &mut Routes, host: &Hostname, route: Option<Route>) {
    match route {
        Some(route) => routes.insert(route),
        None => routes.remove(host),
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::instance::{Desired, Phase};

    fn instance() -> Instance {
        Instance { phase: Phase::Running, ready_at: Some(DateTime::UNIX_EPOCH), ..Instance::example() }
    }

    #[allow(clippy::unnecessary_wraps, reason = "what publishing returns")]
    fn outcome(standing: Standing) -> Result<Publication, HaproxyError> {
        Ok(Publication { generation: "g".to_owned(), standing, reload_due: None, trouble: None })
    }

    fn publish(published: &mut Published, routes: &Routes, outcome: &Result<Publication, HaproxyError>) {
        published.trying(routes);
        published.tried(routes.clone(), outcome);
    }

    #[test]
    fn a_host_needs_a_certificate_until_its_instance_is_deleted() {
        let row = |phase, desired| Instance { desired, phase, ..instance() };
        for (row, routed, covered) in [
            (row(Phase::Running, Desired::Running), 1, 1),
            (row(Phase::Starting, Desired::Running), 0, 1),
            (row(Phase::Asleep, Desired::Asleep), 0, 1),
            (row(Phase::Archived, Desired::Archived), 0, 1),
            (row(Phase::Draining, Desired::Deleted), 0, 0),
        ] {
            let routes = routes([&row]);
            assert_eq!((routes.len(), routes.covered().count()), (routed, covered), "{row:?}");
        }
    }

    #[test]
    fn a_route_is_known_only_while_nothing_that_says_otherwise_is_under_way() {
        let (row, mut published) = (instance(), Published::default());
        let (with, without) = (routes([&row]), Routes::default());
        assert_eq!(published.routed(&row), None, "nothing is known at first");
        publish(&mut published, &with, &outcome(Standing::Live));
        assert_eq!(published.routed(&row), Some(true));
        published.trying(&with);
        assert_eq!(published.routed(&row), Some(true));
        published.trying(&without);
        assert_eq!(published.routed(&row), None, "it may be gone at any moment");
        published.tried(without.clone(), &outcome(Standing::Live));
        assert_eq!(published.routed(&row), Some(false));
        published.trying(&with);
        assert_eq!(published.routed(&row), None, "it may be there at any moment");
    }

    #[test]
    fn a_route_that_was_only_written_is_not_known_to_be_gone() {
        let (row, mut published) = (instance(), Published::default());
        let (with, without) = (routes([&row]), Routes::default());
        let failed = || Err(HaproxyError::NotOurs);
        publish(&mut published, &with, &outcome(Standing::Down));
        assert_eq!(published.routed(&row), None, "a HAProxy that comes back serves it");
        publish(&mut published, &without, &failed());
        assert_eq!(published.routed(&row), None, "it may have come back meanwhile");
        publish(&mut published, &without, &outcome(Standing::Down));
        assert_eq!(published.routed(&row), Some(false));
        publish(&mut published, &with, &outcome(Standing::Live));
        publish(&mut published, &without, &failed());
        assert_eq!(published.routed(&row), None, "some of it may be in force already");
        published.reading();
        publish(&mut published, &with, &outcome(Standing::Live));
        assert_eq!(published.routed(&row), Some(true));
    }

    #[test]
    fn a_change_that_is_not_sure_leaves_doubt_until_routes_that_were_read_later_are_in_force() {
        let (row, mut published) = (instance(), Published::default());
        let without = Routes::default();
        let port = row.port.unwrap();
        published.reading();
        publish(&mut published, &without, &outcome(Standing::Live));
        assert_eq!(published.routed(&row), Some(false));
        // Read before the change, in force after it.
        published.reading();
        published.trying(&without);
        published.doubt(port);
        assert_eq!(published.routed(&row), None);
        published.tried(without.clone(), &outcome(Standing::Live));
        assert_eq!(published.routed(&row), None, "what it has left alone is not known");
        assert!(published.due(&without, Duration::MAX));
        published.reading();
        publish(&mut published, &without, &outcome(Standing::Live));
        assert_eq!(published.routed(&row), Some(false));
        // One that is sure takes the doubt away.
        published.doubt(port);
        published.changed(port, RouteChange::Set(route(&row).unwrap()));
        assert_eq!(published.routed(&row), Some(true));
    }

    #[test]
    fn a_port_is_left_only_when_no_host_leads_to_it_any_more() {
        let host = |text: &str| Hostname::parse(text).unwrap();
        let old = Instance { extra_hosts: vec![host("www.example.org")], ..instance() };
        let mut published = Published::default();
        publish(&mut published, &routes([&old]), &outcome(Standing::Live));
        // Rehosted, its custom domain taken away, and unwanted, all before the next publication.
        let row = Instance {
            host: host("notes--alice.haas.localhost"),
            extra_hosts: Vec::new(),
            phase: Phase::Draining,
            desired: Desired::Deleted,
            ..old.clone()
        };
        assert_eq!(published.routed(&row), Some(true), "by hosts that it has no more");
        let all = published.hosts(&row);
        assert_eq!(all, [row.host.clone(), old.host.clone(), host("www.example.org")]);
        published.trying(&routes([&old]));
        published.changed(row.port.unwrap(), RouteChange::Unset(all));
        assert_eq!(published.routed(&row), Some(false));
        published.tried(routes([&old]), &outcome(Standing::Live));
        assert_eq!(published.routed(&row), Some(false), "the change was the newer one");
        assert!(published.due(&Routes::default(), Duration::MAX), "and is compared with the manifest");
    }
}
