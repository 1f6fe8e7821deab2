//! Restarting what died.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::error::EmbeddedError;
use super::haproxy::{self, HaproxyProcess};
use super::layout::Layout;
use super::postgres::{self, Postgres};
use super::process::Process;
use super::{Started, files};

const PERIOD: Duration = Duration::from_millis(500);
/// Being alive is looked at every period; whether it answers, every so many of them.
const PERIODS_TO_ASK: u32 = 20;
/// So many times without an answer in a row make a living process one to look after.
const SILENCES: u32 = 3;
const FIRST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(30);
/// One that ran this long has its earlier deaths forgiven.
const STABLE_AFTER: Duration = Duration::from_mins(1);

/// Restarts Postgres and HAProxy when they die, and trims their logs. Runs until it is dropped;
/// both must have been ensured before, and are stopped only after it was dropped. `on_restart` gets the part's name, "postgres" or
/// "haproxy", when it is back.
pub async fn supervise(layout: Layout, haproxy_binary: PathBuf, on_restart: impl Fn(&'static str) + Send) {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let tell = async move {
        while let Some(name) = receiver.recv().await {
            on_restart(name);
        }
    };
    let postgres = watch(Part::Postgres, &layout, &haproxy_binary, sender.clone());
    let haproxy = watch(Part::Haproxy, &layout, &haproxy_binary, sender);
    tokio::join!(tell, postgres, haproxy, trim_logs(&layout));
}

#[derive(Clone, Copy)]
enum Part {
    Postgres,
    Haproxy,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Haproxy => "haproxy",
        }
    }

    async fn process(self, layout: &Layout) -> Option<Process> {
        match self {
            Self::Postgres => postgres::postmaster(layout),
            Self::Haproxy => haproxy::master(layout).await,
        }
    }

    async fn answers(self, layout: &Layout) -> bool {
        match self {
            Self::Postgres => Postgres::is_running(layout).await,
            Self::Haproxy => HaproxyProcess::is_running(layout).await,
        }
    }

    async fn ensure(self, layout: &Layout, haproxy_binary: &Path) -> Result<Started, EmbeddedError> {
        match self {
            Self::Postgres => Postgres::ensure(layout).await,
            Self::Haproxy => HaproxyProcess::ensure(layout, haproxy_binary).await,
        }
    }
}

async fn watch(part: Part, layout: &Layout, haproxy_binary: &Path, restarted: mpsc::UnboundedSender<&'static str>) {
    let mut rest = Rest::default();
    let mut process = part.process(layout).await;
    loop {
        let why = until_needy(part, layout, &mut process, &mut rest).await;
        log::warn!("{} {why}: it is started again", part.name());
        let mut last_error = String::new();
        loop {
            sleep(rest.next(Instant::now())).await;
            match part.ensure(layout, haproxy_binary).await {
                Ok(started) => {
                    process = part.process(layout).await;
                    log::info!("{} runs again", part.name());
                    if started == Started::Fresh && restarted.send(part.name()).is_err() {
                        return;
                    }
                    break;
                }
                Err(error) => {
                    let error = error.to_string();
                    // The same reason every 30 seconds would hide all else.
                    if error != last_error {
                        log::warn!("{} can't be started: {error}", part.name());
                        last_error = error;
                    }
                }
            }
        }
    }
}

/// Returns when the part has died or fallen silent, with a word on which.
async fn until_needy(part: Part, layout: &Layout, process: &mut Option<Process>, rest: &mut Rest) -> String {
    let mut silences = 0;
    let mut periods = 0;
    loop {
        if let Some(known) = *process {
            if !known.is_alive() {
                return format!("(pid {}) has died", known.pid());
            }
        } else {
            // It answered, or we would not be here; who it is was not told in time.
            *process = part.process(layout).await;
        }
        periods += 1;
        if process.is_none() || periods % PERIODS_TO_ASK == 0 {
            silences = if part.answers(layout).await { 0 } else { silences + 1 };
        }
        if silences >= SILENCES {
            return "gives no answer".to_owned();
        }
        rest.lived(Instant::now());
        sleep(PERIOD).await;
    }
}

/// How long to wait before a start: not at all after a long life, longer each time otherwise.
#[derive(Default)]
struct Rest {
    started: Option<Instant>,
    length: Duration,
}

impl Rest {
    fn next(&mut self, now: Instant) -> Duration {
        let length = self.length;
        self.length = (length * 2).clamp(FIRST_REST, LONGEST_REST);
        self.started = Some(now + length);
        length
    }

    fn lived(&mut self, now: Instant) {
        if self.started.is_some_and(|started| now >= started + STABLE_AFTER) {
            *self = Self::default();
        }
    }
}

async fn trim_logs(layout: &Layout) {
    let mut ticks = interval(Duration::from_secs(30));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for path in [layout.postgres_log(), layout.haproxy_log()] {
            let trimmed = tokio::task::spawn_blocking(move || (files::trim(&path, files::LOG_MAX), path)).await;
            if let Ok((Err(error), path)) = trimmed {
                log::warn!("can't trim {}: {error}", path.display());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_dying_is_started_less_and_less_often() {
        let mut rest = Rest::default();
        let mut now = Instant::now();
        for seconds in [0, 1, 2, 4, 8, 16, 30, 30] {
            let length = rest.next(now);
            assert_eq!(length.as_secs(), seconds);
            now += length;
            rest.lived(now);
        }
        now += STABLE_AFTER;
        rest.lived(now);
        assert_eq!(rest.next(now).as_secs(), 0);
    }
}
