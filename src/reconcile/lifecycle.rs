//! The policy's steps down: who is due, what holds it back, and the intent that is written then.
//! [`crate::instance::policy`] says what is due when; this file asks and acts.

use std::collections::HashSet;

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::{Settings, Uses, World};
use crate::containers::Containers;
use crate::haproxy::Proxy;
use crate::instance::policy::{Descent, Next, next};
use crate::instance::{Desired, Instance, Phase};
use crate::manifest::{Announced, ManifestError};

/// How often it is written down that HAProxy was asked: less than it remembers.
const NOTE_READ_AT: TimeDelta = TimeDelta::seconds(30);

/// What is known when it is decided.
pub struct Outlook<'a> {
    /// Rows that are no tombstones.
    pub live: &'a [Instance],
    /// Tombstones whose time is over, or will be within the time of notice.
    pub tombstones: &'a [Instance],
    /// Who is used.
    pub uses: &'a Uses,
    /// What owners were told.
    pub announced: &'a Announced,
    /// Whether anybody is told at all.
    pub tells: bool,
}

/// What one look at all rows has found.
pub(super) struct Round {
    /// Those that may have to do something; to be looked at more closely.
    candidates: Vec<Instance>,
    /// Who was used, to be written down.
    uses: Vec<(Uuid, DateTime<Utc>)>,
    /// How many are on their way to rest, or out.
    leaving: usize,
    /// How many are being made anew.
    rolling: usize,
    /// When the next of the others is due.
    later: Option<DateTime<Utc>>,
}

/// A step that is due, or soon will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision<'a> {
    /// Whose.
    pub instance: &'a Instance,
    /// Which step, and when.
    pub next: Next,
    /// What keeps it from being taken when it is due; none if nothing does.
    pub held_back: Option<String>,
    /// Whether its owner has to be told now.
    pub announce: bool,
}

impl Decision<'_> {
    /// Whether it is taken now.
    #[must_use]
    pub fn is_due(&self, now: DateTime<Utc>) -> bool {
        self.next.due <= now && self.held_back.is_none()
    }
}

/// The next step of everyone who has one, with what holds it back.
#[must_use]
pub fn decide<'a>(outlook: &Outlook<'a>, settings: &Settings, now: DateTime<Utc>) -> Vec<Decision<'a>> {
    let horizon = notice_horizon(settings, now);
    let all = outlook.live.iter().chain(outlook.tombstones);
    all.filter_map(|instance| {
        let next = next(instance, &settings.policy, outlook.uses.last_used(instance))?;
        let announced = outlook.announced.of(instance.id, next.step);
        let announce = outlook.tells && next.step.is_announced() && next.due <= horizon && announced.is_none();
        // Not before what its owner was told, nor before the whole time of the notice is over.
        let promised = announced.and_then(|told| told.promised(settings.notice_before));
        let needs_notice = match next.step {
            Descent::Purge => settings.purge_needs_notice,
            // Nothing is lost by it: where nobody is told of anything, it needs no word.
            Descent::Archive => outlook.tells,
            Descent::Pause | Descent::Sleep | Descent::Delete => false,
        };
        let unheard = needs_notice && promised.is_none();
        let held_back = if unheard && !outlook.tells {
            Some("its owner can't be told: lifecycle.webhook_url is empty".to_owned())
        } else if unheard {
            Some("its owner was not told yet: the notice is not delivered".to_owned())
        } else if let Some(promised) = promised.filter(|promised| *promised > now) {
            Some(format!("its owner was told of {}", promised.format("%F %T")))
        } else if matches!(next.step, Descent::Pause | Descent::Sleep) && outlook.uses.busy(instance) {
            Some("somebody uses it right now".to_owned())
        } else {
            None
        };
        Some(Decision { instance, next, held_back, announce })
    })
    .collect()
}

/// Tombstones have to be looked at from this moment on: their owners are told before they go.
#[must_use]
pub fn notice_horizon(settings: &Settings, now: DateTime<Utc>) -> DateTime<Utc> {
    let before = TimeDelta::from_std(settings.notice_before).ok();
    before.and_then(|before| now.checked_add_signed(before)).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

impl<C: Containers, P: Proxy> World<C, P> {
    /// Asks HAProxy who is used; false if it can't be asked.
    pub(super) async fn read_uses(&self) -> bool {
        match self.uses.read(&self.proxy).await {
            Ok(()) => true,
            Err(error) => {
                log::debug!("who is used is not known: {error}");
                false
            }
        }
    }

    /// How exactly uses are written down: what is lost with this process is less than that.
    fn grain(&self) -> TimeDelta {
        let idle_after = self.settings.policy.idle_after.from(DateTime::UNIX_EPOCH);
        let idle_after = idle_after.map_or(TimeDelta::hours(1), |at| at - DateTime::UNIX_EPOCH);
        (idle_after / 8).clamp(TimeDelta::seconds(1), TimeDelta::minutes(10))
    }

    /// Who may have to take a step, of all rows, and what there is to write down. Cheap: it is done
    /// for all of them, again and again.
    pub(super) fn policy_round(&self, live: &[Instance]) -> Round {
        let (now, settings) = (Utc::now(), &self.settings);
        let horizon = if self.webhook.is_some() { notice_horizon(settings, now) } else { now };
        let (mut candidates, mut later) = (Vec::new(), None::<DateTime<Utc>>);
        let (grain, excess) = (self.grain(), self.awake.excess() > 0);
        let (mut uses, mut leaving, mut rolling) = (Vec::new(), 0, 0);
        for row in live {
            let next = next(row, &settings.policy, self.uses.last_used(row));
            let until = next.as_ref().map(|next| if next.step.is_announced() { horizon } else { now });
            let due = next.as_ref().map(|next| next.due);
            let is_due = due.zip(until).is_some_and(|(due, until)| due <= until);
            let may_go = excess && row.takes_memory();
            if is_due || may_go || (row.next_spec.is_some() && row.desired == Desired::Running) {
                candidates.push(row.clone());
            }
            later = later.into_iter().chain(due.filter(|due| *due > now)).min();
            if let Some(used) = self.uses.last_seen(row).filter(|_| row.takes_memory())
                && row.last_used_at.is_none_or(|noted| used - noted >= grain)
            {
                uses.push((row.id, used));
            }
            let rests = (row.desired, row.phase) == (Desired::Paused, Phase::Paused);
            leaving += usize::from(row.takes_memory() && row.desired != Desired::Running && !rests);
            rolling += usize::from(row.rolling);
        }
        let ports: HashSet<u16> = live.iter().filter_map(|row| row.port).collect();
        self.uses.retain(|port| ports.contains(&port));
        Round { candidates, uses, leaving, rolling, later }
    }

    /// Writes what the policy asks for as intent. Says when the next step is due.
    pub(super) async fn follow_policy(&self, round: Round) -> Option<DateTime<Utc>> {
        self.note_uses(&round.uses).await;
        let now = Utc::now();
        let horizon = notice_horizon(&self.settings, now);
        let (tombstones, announced) = match (self.manifest.tombstones(horizon).await, self.manifest.announced().await) {
            (Ok(tombstones), Ok(announced)) => (tombstones, announced),
            (Err(error), _) | (_, Err(error)) => {
                log::debug!("the policy waits: {error}");
                return None;
            }
        };
        let outlook = Outlook {
            live: &round.candidates,
            tombstones: &tombstones,
            uses: &self.uses,
            announced: &announced,
            tells: self.webhook.is_some(),
        };
        let mut decisions = decide(&outlook, &self.settings, now);
        if decisions.iter().any(|decision| decision.next.step <= Descent::Sleep && decision.next.due <= now) {
            // Before anybody is put to sleep, once more: it may have been asked a moment ago.
            if self.read_uses().await {
                decisions = decide(&outlook, &self.settings, now);
            } else {
                decisions.retain(|decision| decision.next.step > Descent::Sleep);
            }
        }
        for decision in &decisions {
            let Decision { instance, next, .. } = decision;
            // What is due already happens when the notice's time is over.
            if decision.announce
                && let Err(error) = self.manifest.announce(instance, next.step, next.due.max(horizon)).await
            {
                log::warn!(instance:% = instance.id; "its owner is not told yet: {error}");
            }
            if decision.is_due(now) {
                self.step_down(instance, next.step, &next.why()).await;
            }
        }
        self.shed_excess(&round).await;
        self.roll_some(&round).await;
        let pending = decisions.iter().map(|decision| decision.next.due).filter(|due| *due > now);
        pending.chain(round.later).min()
    }

    /// Writes down who was used, so that a restart does not forget it.
    async fn note_uses(&self, uses: &[(Uuid, DateTime<Utc>)]) {
        let Some(read_at) = self.uses.read_at() else { return };
        let stale = self.uses.noted_at().is_none_or(|noted| read_at - noted >= NOTE_READ_AT);
        if uses.is_empty() && !stale {
            return;
        }
        match self.manifest.note_use(uses, Some(read_at)).await {
            Ok(()) => self.uses.noted(read_at),
            Err(error) => log::debug!("who was used is not written down: {error}"),
        }
    }

    async fn step_down(&self, instance: &Instance, step: Descent, why: &str) {
        match self.manifest.descend(instance, step, why).await {
            Ok(_) => log::info!(instance:% = instance.id; "{}: {step}: {why}", instance.container),
            Err(ManifestError::Stale) => {}
            Err(error) => log::warn!(instance:% = instance.id; "{}: {step} waits: {error}", instance.container),
        }
    }

    /// More are awake than may be: the bound was lowered.
    async fn shed_excess(&self, round: &Round) {
        let excess = self.awake.excess().saturating_sub(round.leaving);
        if excess == 0 || !self.read_uses().await {
            return;
        }
        for row in self.longest_idle(&round.candidates).into_iter().take(excess) {
            self.step_down(row, Descent::Sleep, "more are awake than may be").await;
        }
    }

    /// Those that take memory and that nobody uses at the moment, the longest unused first.
    pub(super) fn longest_idle<'a>(&self, rows: &'a [Instance]) -> Vec<&'a Instance> {
        let paused = |row: &Instance| (row.desired, row.phase) == (Desired::Paused, Phase::Paused);
        let mut idle: Vec<&Instance> =
            rows.iter().filter(|row| (runs(row) || paused(row)) && self.is_unused(row)).collect();
        idle.sort_by_key(|row| self.uses.last_used(row).max(row.last_used_at).max(Some(row.phase_since)));
        idle
    }

    fn is_unused(&self, row: &Instance) -> bool {
        !row.rolling && !self.uses.busy(row)
    }

    /// Has some that nobody uses at the moment made of what they are to be rolled to.
    async fn roll_some(&self, round: &Round) {
        let places = self.settings.roll_concurrency.saturating_sub(round.rolling);
        let waiting: Vec<&Instance> = round.candidates.iter().filter(|row| row.next_spec.is_some()).collect();
        // Who was busy a while ago may be idle by now.
        if places == 0 || waiting.is_empty() || !self.read_uses().await {
            return;
        }
        for row in waiting.into_iter().filter(|row| runs(row) && self.is_unused(row)).take(places) {
            match self.manifest.roll(row).await {
                Ok(()) => log::info!(instance:% = row.id; "{} is made anew", row.container),
                Err(ManifestError::Stale) => {}
                Err(error) => log::warn!(instance:% = row.id; "{} is not rolled yet: {error}", row.container),
            }
        }
    }
}

fn runs(row: &Instance) -> bool {
    (row.desired, row.phase) == (Desired::Running, Phase::Running)
}
