//! The fake world's proxy.

use chrono::{DateTime, Utc};

use super::FakeWorld;
use crate::failpoint::Boundary;
use crate::haproxy::{HaproxyError, Moment, Proxy, Publication, RouteChange, Routes, Standing, Usage};
use crate::instance::name::Hostname;
use crate::instance::plan::Status;

impl Proxy for FakeWorld {
    async fn publish(&self, routes: &Routes, read: Moment) -> Result<Publication, HaproxyError> {
        tokio::task::yield_now().await;
        if self.state().rejecting {
            return Err(HaproxyError::Rejected { message: "the fake proxy refuses".to_owned() });
        }
        self.faults.hit(Boundary::CandidateChecked).await;
        self.faults.hit(Boundary::MapSwapped).await;
        self.faults.hit(Boundary::ConfigSwapped).await;
        {
            let mut state = self.state();
            let mut wanted = routes.clone();
            state.recent.retain(|_, (changed, _)| Moment(*changed) > read);
            for (host, (_, route)) in &state.recent {
                match route {
                    Some(route) => wanted.insert(route.clone()),
                    None => wanted.remove(host),
                }
            }
            if state.routes != wanted {
                state.routes = wanted;
                state.reloads += 1;
            }
        }
        self.faults.hit(Boundary::HaproxySignalled).await;
        self.faults.hit(Boundary::HaproxyConfirmed).await;
        let standing = if self.state().proxy_down { Standing::Down } else { Standing::Live };
        Ok(Publication { generation: "fake".to_owned(), standing, reload_due: None, trouble: None })
    }

    async fn forget(&self) {}

    async fn now(&self) -> Moment {
        Moment(self.state().sequence)
    }

    async fn change(&self, change: &RouteChange) -> Result<bool, HaproxyError> {
        tokio::task::yield_now().await;
        if self.state().no_lane {
            return Ok(false);
        }
        {
            let mut state = self.state();
            state.sequence += 1;
            let changed = state.sequence;
            match change {
                RouteChange::Set(route) => {
                    state.routes.insert(route.clone());
                    state.recent.insert(route.host.clone(), (changed, Some(route.clone())));
                }
                RouteChange::Unset(hosts) => {
                    for host in hosts {
                        state.routes.remove(host);
                        state.recent.insert(host.clone(), (changed, None));
                    }
                }
            }
        }
        self.faults.hit(Boundary::RunningMapChanged).await;
        let state = self.state();
        Ok(!state.proxy_down && !state.unsure)
    }

    async fn busy(&self, _: u16) -> Result<bool, HaproxyError> {
        Ok(false)
    }

    async fn usage(&self) -> Result<Option<Usage>, HaproxyError> {
        let state = self.state();
        Ok((!state.proxy_down).then(|| state.usage.clone()))
    }

    async fn oldest_leaving_worker(&self) -> Result<Option<DateTime<Utc>>, HaproxyError> {
        Ok(None)
    }

    async fn answers(&self, host: &Hostname) -> bool {
        let state = self.state();
        let Some(route) = state.routes.iter().find(|route| route.host == *host) else { return false };
        let mut containers = state.containers.values();
        !state.proxy_down
            && containers.any(|container| container.port == Some(route.port) && container.status == Status::Running)
    }

    async fn health(&self) -> Result<(), HaproxyError> {
        if self.state().proxy_down { Err(HaproxyError::NotOurs) } else { Ok(()) }
    }
}
