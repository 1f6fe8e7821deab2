//! Who cleans up, and when: the graded way down of an instance that nobody uses. See
//! docs/lifecycle.md. Pure: what is due, and when, is told; whoever asks writes it as intent.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;
use utoipa::ToSchema;

use super::{Desired, Instance, Phase};

/// A time after which something happens, or that it never does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeLimit {
    /// After this time.
    After(Duration),
    /// Never.
    Never,
}

/// A text that is no time limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("must be a time such as \"500ms\", \"30s\", \"5m\", \"2h\" or \"7d\", or \"never\"")]
pub struct NoTimeLimit;

impl TimeLimit {
    /// The moment, counted from another one; none for never.
    #[must_use]
    pub fn from(self, start: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let Self::After(time) = self else { return None };
        chrono::Duration::from_std(time).ok().and_then(|time| start.checked_add_signed(time))
    }

    /// Whether so much time is within it.
    #[must_use]
    pub fn covers(self, time: chrono::Duration) -> bool {
        match self {
            Self::Never => true,
            Self::After(limit) => chrono::Duration::from_std(limit).is_ok_and(|limit| time < limit),
        }
    }
}

/// Parses a whole number with its unit: `ms`, `s`, `m`, `h` or `d`.
#[must_use]
pub fn duration(text: &str) -> Option<Duration> {
    let unit = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(unit);
    let number: u64 = number.parse().ok()?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(milliseconds).map(Duration::from_millis)
}

impl std::str::FromStr for TimeLimit {
    type Err = NoTimeLimit;

    fn from_str(text: &str) -> Result<Self, NoTimeLimit> {
        match text {
            "never" | "off" => Ok(Self::Never),
            text => duration(text).map(Self::After).ok_or(NoTimeLimit),
        }
    }
}

/// In the largest unit that leaves nothing over.
impl fmt::Display for TimeLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::After(time) = self else { return f.pad("never") };
        let milliseconds = time.as_millis();
        let units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];
        let unit = units.into_iter().find(|(_, size)| milliseconds > 0 && milliseconds % size == 0);
        let (unit, size) = unit.unwrap_or(("ms", 1));
        f.pad(&format!("{}{unit}", milliseconds / size))
    }
}

impl Serialize for TimeLimit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TimeLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The times of the way down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// From the last use to sleep.
    pub idle_after: TimeLimit,
    /// From the last use to the pause before it.
    pub pause_after: TimeLimit,
    /// From the beginning of sleep to the archive.
    pub archive_after: TimeLimit,
    /// From the archive to the tombstone.
    pub delete_after: TimeLimit,
    /// From the tombstone to the end.
    pub purge_after: TimeLimit,
}

/// Where one instance departs from the installation's policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Overrides {
    /// See [`Policy::idle_after`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "2h")]
    pub idle_after: Option<TimeLimit>,
    /// See [`Policy::pause_after`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "10m")]
    pub pause_after: Option<TimeLimit>,
    /// See [`Policy::archive_after`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "never")]
    pub archive_after: Option<TimeLimit>,
    /// See [`Policy::delete_after`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "never")]
    pub delete_after: Option<TimeLimit>,
    /// See [`Policy::purge_after`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "90d")]
    pub purge_after: Option<TimeLimit>,
    /// How much of the disk its data may take, in MiB; 0 for no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 4096)]
    pub disk_mib: Option<u32>,
    /// How many files and folders its data may have; 0 for no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 500_000)]
    pub files: Option<u32>,
}

impl Policy {
    /// The times of one instance.
    #[must_use]
    pub fn with(self, overrides: &Overrides) -> Self {
        Self {
            idle_after: overrides.idle_after.unwrap_or(self.idle_after),
            pause_after: overrides.pause_after.unwrap_or(self.pause_after),
            archive_after: overrides.archive_after.unwrap_or(self.archive_after),
            delete_after: overrides.delete_after.unwrap_or(self.delete_after),
            purge_after: overrides.purge_after.unwrap_or(self.purge_after),
        }
    }
}

/// One step of the way down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Descent {
    /// Freeze it.
    Pause,
    /// Stop it.
    Sleep,
    /// Pack its data away.
    Archive,
    /// Make it a tombstone.
    Delete,
    /// Remove its data.
    Purge,
}

impl Descent {
    /// What an instance that takes this step should be.
    #[must_use]
    pub fn desired(self) -> Desired {
        match self {
            Self::Pause => Desired::Paused,
            Self::Sleep => Desired::Asleep,
            Self::Archive => Desired::Archived,
            Self::Delete => Desired::Deleted,
            Self::Purge => Desired::Purged,
        }
    }

    /// Whether the owner is told before.
    #[must_use]
    pub fn is_announced(self) -> bool {
        matches!(self, Self::Archive | Self::Purge)
    }
}

impl fmt::Display for Descent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pause => "pause",
            Self::Sleep => "sleep",
            Self::Archive => "archive",
            Self::Delete => "delete",
            Self::Purge => "purge",
        })
    }
}

/// The next step down of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Next {
    /// Which.
    pub step: Descent,
    /// When.
    pub due: DateTime<Utc>,
    /// Since when the time has been counted.
    pub since: DateTime<Utc>,
    /// The time that the policy gives it.
    pub limit: TimeLimit,
}

impl Next {
    /// For people.
    #[must_use]
    pub fn why(&self) -> String {
        let since = self.since.format("%F %T");
        match self.step {
            Descent::Pause => format!("not used since {since} (pause_after {})", self.limit),
            Descent::Sleep => format!("not used since {since} (idle_after {})", self.limit),
            Descent::Archive => format!("asleep since {since} (archive_after {})", self.limit),
            Descent::Delete => format!("archived since {since} (delete_after {})", self.limit),
            Descent::Purge => format!("deleted since {since} (purge_after {})", self.limit),
        }
    }
}

/// The next step down, and when it is due; none for an instance that is on its way somewhere, or
/// stays where it is for ever. `last_used` is the last use that is known, of whatever kind.
#[must_use]
pub fn next(instance: &Instance, policy: &Policy, last_used: Option<DateTime<Utc>>) -> Option<Next> {
    let policy = policy.with(&instance.overrides());
    // One that has just come up has been asked for.
    let used = last_used.into_iter().chain(instance.last_used_at).max();
    let step = |step: Descent, since: DateTime<Utc>, limit: TimeLimit| {
        limit.from(since).map(|due| Next { step, due, since, limit })
    };
    match (instance.desired, instance.phase) {
        (Desired::Running, Phase::Running) if !instance.rolling => {
            let since = used.map_or(instance.phase_since, |used| used.max(instance.phase_since));
            let (pause, sleep) =
                (step(Descent::Pause, since, policy.pause_after), step(Descent::Sleep, since, policy.idle_after));
            [pause, sleep].into_iter().flatten().min_by_key(|next| (next.due, std::cmp::Reverse(next.step)))
        }
        (Desired::Paused, Phase::Paused) => {
            step(Descent::Sleep, used.unwrap_or(instance.phase_since), policy.idle_after)
        }
        (Desired::Asleep, Phase::Asleep) => step(Descent::Archive, instance.phase_since, policy.archive_after),
        (desired, Phase::Archived) if desired.resting() => {
            step(Descent::Delete, instance.phase_since, policy.delete_after)
        }
        (Desired::Deleted, Phase::Deleted) => {
            let limit = policy.purge_after;
            let due = instance.restorable_until?;
            Some(Next { step: Descent::Purge, due, since: instance.phase_since, limit })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: Policy = Policy {
        idle_after: TimeLimit::After(Duration::from_secs(1800)),
        pause_after: TimeLimit::Never,
        archive_after: TimeLimit::After(Duration::from_secs(86_400)),
        delete_after: TimeLimit::Never,
        purge_after: TimeLimit::After(Duration::from_secs(86_400)),
    };

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + chrono::Duration::seconds(seconds)
    }

    fn instance(desired: Desired, phase: Phase) -> Instance {
        Instance { desired, phase, ..Instance::example() }
    }

    #[test]
    fn idleness_is_counted_from_the_last_use_of_whatever_kind() {
        let row = Instance { phase_since: at(100), ..instance(Desired::Running, Phase::Running) };
        let due = |row: &Instance, used| next(row, &POLICY, used).map(|next| (next.step, next.due));
        assert_eq!(due(&row, None), Some((Descent::Sleep, at(1900))), "it has just come up");
        assert_eq!(due(&row, Some(at(500))), Some((Descent::Sleep, at(2300))));
        let noted = Instance { last_used_at: Some(at(700)), ..row.clone() };
        assert_eq!(due(&noted, Some(at(500))), Some((Descent::Sleep, at(2500))));
        let never = Overrides { idle_after: Some(TimeLimit::Never), ..Overrides::default() };
        assert_eq!(due(&Instance { overrides: Some(Box::new(never)), ..row }, None), None);
    }

    #[test]
    fn a_pause_comes_before_sleep_or_not_at_all() {
        let paused = Overrides { pause_after: Some(TimeLimit::After(Duration::from_secs(60))), ..Overrides::default() };
        let row = Instance { overrides: Some(Box::new(paused)), ..instance(Desired::Running, Phase::Running) };
        assert_eq!(next(&row, &POLICY, Some(at(0))).unwrap().step, Descent::Pause);
        let row = Instance {
            last_used_at: Some(at(0)),
            ..Instance { overrides: Some(Box::new(paused)), ..instance(Desired::Paused, Phase::Paused) }
        };
        let then = next(&row, &POLICY, None).unwrap();
        assert_eq!((then.step, then.due), (Descent::Sleep, at(1800)), "counted from the last use, not from the pause");
        let late = Overrides { pause_after: Some(TimeLimit::After(Duration::from_secs(3600))), ..Overrides::default() };
        let row = Instance { overrides: Some(Box::new(late)), ..instance(Desired::Running, Phase::Running) };
        assert_eq!(next(&row, &POLICY, None).unwrap().step, Descent::Sleep);
    }

    #[test]
    fn what_is_on_its_way_is_left_alone() {
        for desired in Desired::ALL {
            for phase in Phase::ALL {
                let settled = matches!(
                    (desired, phase),
                    (Desired::Running, Phase::Running)
                        | (Desired::Paused, Phase::Paused)
                        | (Desired::Asleep, Phase::Asleep)
                        | (Desired::Deleted, Phase::Deleted)
                );
                let row = Instance { restorable_until: Some(at(9)), ..instance(*desired, *phase) };
                assert_eq!(next(&row, &POLICY, None).is_some(), settled, "{desired} {phase}");
            }
        }
        let tombstone = instance(Desired::Deleted, Phase::Deleted);
        assert_eq!(next(&tombstone, &POLICY, None), None, "kept for ever");
    }

    proptest! {
        #[test]
        fn limits_survive_being_written(milliseconds in 0u64..1 << 50) {
            let limit = TimeLimit::After(Duration::from_millis(milliseconds));
            prop_assert_eq!(limit.to_string().parse(), Ok(limit));
        }

        #[test]
        fn no_text_is_too_much(text in ".*") {
            if let Ok(limit) = text.parse::<TimeLimit>() {
                prop_assert_eq!(limit.to_string().parse(), Ok(limit));
            }
        }
    }

    #[test]
    fn durations_carry_their_unit() {
        assert_eq!(duration("1500ms"), Some(Duration::from_millis(1500)));
        assert_eq!(duration("2h"), Some(Duration::from_secs(7200)));
        for bad in ["", "5", "s", "1.5s", "-1s", "1 s", "1w", "99999999999999999999s", "18446744073709551615d"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }
}
