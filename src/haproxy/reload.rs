//! The signal, and the proof that it was obeyed.
//!
//! SIGUSR2 makes the master read its files again and start a new worker (HAProxy management guide,
//! section 4). A signal reports nothing back, and a file that can't be started leaves the old
//! worker serving: so the worker is asked for its generation until it has the right one.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{Instant, timeout_at};

use super::master::Running;
use super::processes::Processes;
use super::{Haproxy, HaproxyError, files};
use crate::failpoint::Boundary;

/// Between two questions.
const POLL: Duration = Duration::from_millis(5);

/// Sends SIGUSR2 to HAProxy's master, which is given by its process id as HAProxy knows it. The
/// error is the reason, for a person.
pub type ReloadSignal = Arc<dyn Fn(i32) -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// A signal to the process itself.
pub(super) fn to_the_process() -> ReloadSignal {
    Arc::new(|master| {
        let sent = kill(Pid::from_raw(master), Signal::SIGUSR2).map_err(|error| format!("process {master}: {error}"));
        Box::pin(std::future::ready(sent))
    })
}

/// Where the master's process id is another namespace's: here it may be anyone's.
pub(super) fn to_nobody(container: String) -> ReloadSignal {
    Arc::new(move |_| {
        let reason = format!("it runs in the container {container}, and only the server signals that");
        Box::pin(std::future::ready(Err(reason)))
    })
}

impl Haproxy {
    /// Signals the master and waits until the worker carries this generation. If none does, the
    /// last good files are put back: HAProxy may be restarted at any time, and must then come up.
    pub(super) async fn reload(&self, generation: &str) -> Result<(), HaproxyError> {
        self.earlier_usage.keep(&self.master).await;
        let Err(reason) = self.signal_and_confirm(generation).await? else {
            self.faults.hit(Boundary::HaproxyConfirmed).await;
            return Ok(());
        };
        let restored = files::restore_last_good(&self.settings).await?;
        Err(HaproxyError::Unconfirmed { generation: generation.to_owned(), reason, restored })
    }

    /// The inner error says what was seen instead of the generation.
    async fn signal_and_confirm(&self, generation: &str) -> Result<Result<(), String>, HaproxyError> {
        // From who answers at the socket, never from a file: a stale process id could be anyone's.
        let Some(before) = self.master.processes().await? else {
            return Ok(Err("it went away before it could be told to reload".to_owned()));
        };
        if let Err(reason) = (self.signal)(before.master).await {
            return Ok(Err(format!("the signal to its master: {reason}")));
        }
        self.faults.hit(Boundary::HaproxySignalled).await;
        let deadline = Instant::now() + self.settings.confirm_timeout;
        let mut last = "it gives no answer".to_owned();
        let confirmed = timeout_at(deadline, self.confirmed(generation, &before, &mut last)).await;
        match confirmed {
            Ok(Ok(())) => {
                self.old_workers_have_stopped_listening(deadline).await;
                Ok(Ok(()))
            }
            Ok(Err(reason)) => Ok(Err(reason)),
            Err(_) => Ok(Err(format!("{last} after {:?}", self.settings.confirm_timeout))),
        }
    }

    /// Waits until the current worker is a new one with this generation; the error says why it won't
    /// come to that. `last` is what was seen last.
    async fn confirmed(&self, generation: &str, before: &Processes, last: &mut String) -> Result<(), String> {
        loop {
            // While the master replaces itself, connections are cut: no answer is no verdict.
            match self.master.running().await {
                Ok(Running::Generation(running)) if running == generation && self.is_new(before).await => {
                    return Ok(());
                }
                Ok(Running::Generation(running)) => *last = format!("the worker still has generation {running}"),
                Ok(Running::Foreign) => "the worker has no generation".clone_into(last),
                Ok(Running::Down) => "nobody answers at the master's socket".clone_into(last),
                Err(error) => *last = error.to_string(),
            }
            if let Ok(Some(now)) = self.master.processes().await
                && (now.failed > before.failed || (now.failed > 0 && now.reloads > before.reloads))
            {
                let logs = self.master.startup_logs().await;
                let logs = logs.unwrap_or_else(|| "its own log says why".to_owned());
                return Err(format!("the reload failed: {logs}"));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Whether the current worker is another one than before: with the same generation, that is
    /// how a reload is known to be done.
    async fn is_new(&self, before: &Processes) -> bool {
        let Ok(Some(now)) = self.master.processes().await else { return false };
        let current = now.workers.iter().find(|worker| worker.current);
        current.is_some_and(|worker| before.workers.iter().all(|known| known.pid != worker.pid))
    }

    /// The new worker tells the old ones to stop, and they do so a moment later: until then they
    /// take connections too, and answer by their old map. One that does not answer any more
    /// takes none either.
    async fn old_workers_have_stopped_listening(&self, deadline: Instant) {
        let Ok(Some(processes)) = self.master.processes().await else { return };
        for old in processes.workers.iter().filter(|worker| !worker.current) {
            let stops = async {
                while !matches!(self.master.is_listening(old.pid).await, Ok(false) | Err(HaproxyError::Deaf { .. })) {
                    tokio::time::sleep(POLL).await;
                }
            };
            if timeout_at(deadline, stops).await.is_err() {
                return;
            }
        }
    }
}
