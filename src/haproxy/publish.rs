//! One publication: what has to be written, told and reloaded, in which order.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::lane::Following;
use super::master::Running;
use super::{
    COMPARE_EVERY, Candidate, Haproxy, HaproxyError, Memory, Moment, Publication, Rendered, Routes, Standing, check,
    files,
};
use crate::failpoint::Boundary;

/// Between two reloads for certificates alone.
const RELOAD_REST: Duration = Duration::from_secs(10);

/// The longest rest after reloads that failed.
const FAILED_REST_MAX: Duration = Duration::from_secs(300);

/// A generation that no worker came up with.
pub(super) struct FailedReload {
    generation: String,
    reason: String,
    attempts: u32,
}

/// A publication whose routes are in force as far as `following` goes.
fn confirmed(publication: Publication, following: Following) -> Result<Publication, HaproxyError> {
    let reason = match following {
        Following::All => return Ok(publication),
        Following::Nobody => return Ok(Publication { standing: Standing::Down, ..publication }),
        Following::InDoubt => "the running worker does not have the routes",
        Following::OldInDoubt => "an old worker does not have the routes",
    };
    Err(HaproxyError::Unconfirmed { generation: publication.generation, reason: reason.to_owned(), restored: false })
}

impl Haproxy {
    /// The routes through the lane; then haproxy.cfg, at once or when its time has come. What is
    /// wrong with haproxy.cfg does not keep routes from being in force.
    pub(super) async fn publish_live(
        &self,
        memory: &mut Memory,
        routes: &Routes,
        read: Moment,
    ) -> Result<Publication, HaproxyError> {
        let compare = memory.compared.is_none_or(|at| at.elapsed() >= COMPARE_EVERY);
        let following = self.lane.settle(&self.master, routes.entries(&self.settings.domain), read.0, compare).await?;
        memory.compared = compare.then(Instant::now).or(memory.compared);
        let error = match self.publish_config(memory, routes, following).await {
            Ok(publication) => return Ok(publication),
            Err(error) => error,
        };
        // A reload that failed may have changed who is there.
        if following == Following::All && self.lane.look(&self.master).await? == Following::All {
            let trouble = Some(error.to_string());
            let generation = self.running_generation().await?.unwrap_or_default();
            return Ok(Publication { generation, standing: Standing::Live, reload_due: None, trouble });
        }
        Err(error)
    }

    async fn publish_config(
        &self,
        memory: &mut Memory,
        routes: &Routes,
        following: Following,
    ) -> Result<Publication, HaproxyError> {
        let Rendered { candidate, skeleton, .. } = self.rendered(memory, routes).await?;
        let (candidate, skeleton) = (Arc::clone(candidate), skeleton.clone());
        let generation = candidate.generation().to_owned();
        let running = self.master.running().await?;
        let runs = matches!(&running, Running::Generation(running) if *running == generation);
        let mut publication = Publication { generation, standing: Standing::Live, reload_due: None, trouble: None };
        if running == Running::Down {
            self.put_in_place(&candidate, &running).await?;
            publication.standing = Standing::Down;
            return Ok(publication);
        }
        if runs && following != Following::InDoubt {
            self.put_in_place(&candidate, &running).await?;
            let since = memory.reloaded.take().map_or_else(Instant::now, |(at, _)| at);
            (memory.reloaded, memory.failed) = (Some((since, skeleton)), None);
            return confirmed(publication, following);
        }
        // Only sections can wait, and only while the current worker has the routes.
        if following != Following::InDoubt
            && let Some((at, of)) = &memory.reloaded
            && *of == skeleton
        {
            let failed = memory.failed.as_ref().filter(|failed| failed.generation == publication.generation);
            let due = self.sections_due(*at, failed.map_or(0, |failed| failed.attempts)).await?;
            if due > Instant::now() {
                publication.reload_due = Some(due);
                publication.trouble = failed.map(|failed| failed.reason.clone());
                return confirmed(publication, following);
            }
        }
        self.put_in_place(&candidate, &running).await?;
        let reloaded = self.reload_and_compare(candidate.generation()).await;
        memory.reloaded = Some((Instant::now(), skeleton));
        match reloaded {
            Ok(following) => {
                memory.failed = None;
                confirmed(publication, following?)
            }
            Err(error) => {
                let generation = publication.generation;
                let before = memory.failed.take().filter(|failed| failed.generation == generation);
                let attempts = before.map_or(0, |failed| failed.attempts).saturating_add(1);
                memory.failed = Some(FailedReload { generation, reason: error.to_string(), attempts });
                Err(error)
            }
        }
    }

    /// A reload with the live lane on: how far the workers follow after it, or why there was none.
    async fn reload_and_compare(&self, generation: &str) -> Result<Result<Following, HaproxyError>, HaproxyError> {
        self.lane.reload_begins().await;
        let reloaded = self.reload(generation).await;
        // Whether it went well or not, workers may have come and gone.
        let following = self.lane.reload_ends(&self.master).await;
        reloaded.map(|()| following)
    }

    /// Everything by a reload, the map too.
    pub(super) async fn publish_by_reload(&self, candidate: &Arc<Candidate>) -> Result<Publication, HaproxyError> {
        let generation = candidate.generation().to_owned();
        let running = self.master.running().await?;
        self.put_in_place(candidate, &running).await?;
        let standing = match running {
            Running::Down => Standing::Down,
            Running::Generation(running) if running == generation => Standing::Live,
            Running::Generation(_) | Running::Foreign => {
                self.reload(&generation).await?;
                Standing::Live
            }
        };
        Ok(Publication { generation, standing, reload_due: None, trouble: None })
    }

    /// Brings the current worker's certificates in line with the folder; by a reload where that
    /// can't be done through its socket.
    pub(super) async fn certificates_in_force(&self, memory: &mut Memory, routes: &Routes) -> Result<(), String> {
        let followed = match self.certs.follow(&self.master).await {
            Ok(followed) => followed,
            Err(error) => Err(error.to_string()),
        };
        let followed = match followed {
            Ok(()) => Ok(()),
            Err(why) => self.reload_for_certificates(memory, &why).await.map_err(|error| error.unwrap_or(why)),
        };
        self.certs.tell_uncovered(routes).await;
        followed
    }

    /// The inner none stands for a reload that is not due yet.
    async fn reload_for_certificates(&self, memory: &mut Memory, why: &str) -> Result<(), Option<String>> {
        let wait = self.settings.reload_min_interval.max(RELOAD_REST);
        if memory.reloaded_for_certificates.is_some_and(|at| at.elapsed() < wait) {
            return Err(None);
        }
        memory.reloaded_for_certificates = Some(Instant::now());
        log::warn!("certificates need a reload: {why}");
        let generation = match files::Pair::read(&self.settings.dir).await {
            Ok(pair) => pair.and_then(|pair| pair.generation(&self.settings)),
            Err(error) => return Err(Some(error.to_string())),
        };
        let Some(generation) = generation else { return Err(None) };
        let reloaded = if self.settings.live_routes {
            self.reload_and_compare(&generation).await.and_then(|following| following.map(drop))
        } else {
            self.reload(&generation).await
        };
        reloaded.map_err(|error| Some(error.to_string()))?;
        self.certs.follow(&self.master).await.map_err(|error| Some(error.to_string()))?.map_err(Some)
    }

    /// When the next reload may give apps their sections: later and later while it fails.
    async fn sections_due(&self, reloaded: Instant, failures: u32) -> Result<Instant, HaproxyError> {
        let rest = self.settings.reload_min_interval;
        let rest = if failures == 0 {
            rest
        } else {
            rest.max(Duration::from_secs(1)).saturating_mul(1 << failures.min(16)).min(FAILED_REST_MAX)
        };
        let due = reloaded + rest;
        let now = Instant::now();
        if due > now {
            return Ok(due);
        }
        // Each reload leaves a worker behind for as long as its streams last.
        let old = self.workers().await?.iter().filter(|worker| !worker.current).count();
        let wait = self.settings.reload_min_interval.max(Duration::from_secs(1));
        Ok(if old >= self.settings.old_workers_max { now + wait } else { now })
    }

    /// Check and swap, unless the files are there already.
    async fn put_in_place(&self, candidate: &Arc<Candidate>, running: &Running) -> Result<(), HaproxyError> {
        let present = files::Pair::read(&self.settings.dir).await?;
        if present.as_ref().is_some_and(|pair| pair.is(candidate, &self.settings)) {
            return Ok(());
        }
        let checked = self.checked(candidate, present.as_ref(), running).await?;
        self.faults.hit(Boundary::CandidateChecked).await;
        let half = files::swap_map(&self.settings, checked).await?;
        if !self.settings.live_routes {
            self.faults.hit(Boundary::MapSwapped).await;
        }
        half.swap_config().await?;
        self.faults.hit(Boundary::ConfigSwapped).await;
        Ok(())
    }

    /// Keeps what runs well, and has HAProxy look at the candidate. One that it refuses is kept
    /// for the administrator.
    async fn checked(
        &self,
        candidate: &Arc<Candidate>,
        present: Option<&files::Pair>,
        running: &Running,
    ) -> Result<check::CheckedConfig, HaproxyError> {
        let dir = &self.settings.dir;
        let keep = async {
            match (present, running) {
                (Some(pair), Running::Generation(generation)) => {
                    files::keep_last_good(&self.settings, pair, generation).await
                }
                _ => Ok(()),
            }
        };
        let folder = dir.join("candidate");
        let (kept, checked) = tokio::join!(keep, check::check(&self.settings, Arc::clone(candidate), folder.clone()));
        kept?;
        match checked {
            Err(HaproxyError::Rejected { message }) => {
                let kept = files::keep_rejected(dir, &folder).await?;
                let message = message.replace(&*folder.to_string_lossy(), &kept.to_string_lossy());
                Err(HaproxyError::Rejected { message })
            }
            other => other,
        }
    }
}
