//! Which host leads where, as the manifest asks for it.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use crate::instance::name::{ContainerName, Hostname};

/// One app's way: its host, and the loopback port that its container is published on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// What end users ask for; names the section, too.
    pub host: Hostname,
    /// Further hosts that lead to the same app.
    pub extra_hosts: Vec<Hostname>,
    /// Where it answers, on 127.0.0.1.
    pub port: u16,
    /// Whose it is; for people who read haproxy.cfg.
    pub container: ContainerName,
    /// Since when it is ready; for people who read haproxy.cfg.
    pub since: DateTime<Utc>,
}

impl Route {
    /// What the map has for its hosts: the name of its section.
    #[must_use]
    pub fn target(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// Every host that leads to it.
    pub fn hosts(&self) -> impl Iterator<Item = &Hostname> {
        std::iter::once(&self.host).chain(&self.extra_hosts)
    }
}

/// A change of where one app's hosts lead, for the live lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteChange {
    /// The route is to be there.
    Set(Route),
    /// These hosts are to lead nowhere.
    Unset(Vec<Hostname>),
}

impl RouteChange {
    /// The hosts that it is about.
    pub(super) fn hosts(&self) -> Vec<&Hostname> {
        match self {
            Self::Set(route) => route.hosts().collect(),
            Self::Unset(hosts) => hosts.iter().collect(),
        }
    }

    /// The section that they are to lead to; none for nowhere.
    pub(super) fn target(&self) -> Option<String> {
        match self {
            Self::Set(route) => Some(route.target()),
            Self::Unset(_) => None,
        }
    }
}

/// A moment in the order of changes; see [`Proxy::publish`](super::Proxy::publish).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Moment(pub(crate) u64);

/// Routes, sorted by host, one for each: equal sets render to equal bytes. Clones share them, since
/// several places remember the same ten thousand.
#[derive(Debug, Clone, Default)]
pub struct Routes {
    routes: Arc<Vec<Route>>,
    unrouted: Arc<Vec<Hostname>>,
}

impl PartialEq for Routes {
    /// Whether they route alike.
    fn eq(&self, other: &Self) -> bool {
        self.routes == other.routes
    }
}

impl Eq for Routes {}

impl Routes {
    /// Sorts them. Of several with the same host the last one stays; the manifest lets none of
    /// them come about.
    #[must_use]
    pub fn new(routes: impl IntoIterator<Item = Route>) -> Self {
        let sorted: BTreeMap<Hostname, Route> = routes.into_iter().map(|route| (route.host.clone(), route)).collect();
        Self { routes: Arc::new(sorted.into_values().collect()), ..Self::default() }
    }

    /// With the hosts of apps that have no route now, such as a sleeping one: the request that
    /// wakes it comes by HTTPS, and for that its host needs a certificate.
    #[must_use]
    pub fn with_unrouted(self, hosts: Vec<Hostname>) -> Self {
        Self { unrouted: Arc::new(hosts), ..self }
    }

    /// Every host that needs a certificate.
    pub fn covered(&self) -> impl Iterator<Item = &Hostname> {
        self.iter().flat_map(Route::hosts).chain(self.unrouted.iter())
    }

    /// In the order of their hosts.
    pub fn iter(&self) -> std::slice::Iter<'_, Route> {
        self.routes.iter()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.routes.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }

    /// Puts a route in, in place of one with the same host.
    pub fn insert(&mut self, route: Route) {
        let routes = Arc::make_mut(&mut self.routes);
        match routes.binary_search_by(|present| present.host.cmp(&route.host)) {
            Ok(at) => routes[at] = route,
            Err(at) => routes.insert(at, route),
        }
    }

    /// Takes a route out.
    pub fn remove(&mut self, host: &Hostname) {
        if let Ok(at) = self.routes.binary_search_by(|present| present.host.cmp(host)) {
            Arc::make_mut(&mut self.routes).remove(at);
        }
    }

    /// Which host leads to which section, further hosts included. The control API's own host leads
    /// nowhere else, though an app may still hold it from before the domain was changed.
    pub(crate) fn entries(&self, control: &Hostname) -> BTreeMap<Hostname, String> {
        let hosts = |route: &'_ Route| route.hosts().filter(|host| *host != control).cloned().collect::<Vec<_>>();
        self.routes.iter().flat_map(|route| hosts(route).into_iter().map(|host| (host, route.target()))).collect()
    }

    /// The hosts of every route to this port.
    #[must_use]
    pub fn hosts_of(&self, port: u16) -> Vec<&Hostname> {
        self.routes.iter().filter(|route| route.port == port).flat_map(Route::hosts).collect()
    }

    /// Whether this host is routed to this port.
    #[must_use]
    pub fn contains(&self, host: &Hostname, port: u16) -> bool {
        self.routes.binary_search_by(|route| route.host.cmp(host)).is_ok_and(|at| self.routes[at].port == port)
    }
}

impl<'a> IntoIterator for &'a Routes {
    type Item = &'a Route;
    type IntoIter = std::slice::Iter<'a, Route>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
