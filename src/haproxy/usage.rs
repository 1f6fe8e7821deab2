//! Who is used: what HAProxy counted for each app, read from the stick-table `limits` of every
//! living worker (HAProxy management guide, section 9.3, `show table`). A worker that was told to
//! leave still counts the streams that it has.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::HaproxyError;
use super::master::Master;

/// How long the table remembers an app that nobody asks for; `expire` in the template.
pub const REMEMBERED_FOR: Duration = Duration::from_secs(60);
const TABLE: &str = "limits";

/// What was counted for one app, all workers together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AppUsage {
    /// Requests and streams under way.
    pub open: u64,
    /// Requests so far, as far as living workers know.
    pub requests: u64,
    /// How long ago it was last asked, or answered.
    pub idle: Duration,
}

/// What was counted, by the apps' ports. One that is not in it was not asked for anything since
/// [`REMEMBERED_FOR`], or since its worker started.
pub type Usage = HashMap<u16, AppUsage>;

/// What was counted before a reload: the workers that knew it may be gone by now.
#[derive(Default)]
pub(super) struct Earlier(Mutex<Option<(Instant, Usage)>>);

impl Earlier {
    /// Keeps what the workers know, since they are about to be told to leave.
    pub async fn keep(&self, master: &Master) {
        match self.read(master).await {
            Ok(Some(usage)) => *self.0.lock().await = Some((Instant::now(), usage)),
            Ok(None) => {}
            Err(error) => log::debug!("who was used before a reload is not known: {error}"),
        }
    }

    /// What the living workers know and, of what others knew, how long ago it was.
    pub async fn read(&self, master: &Master) -> Result<Option<Usage>, HaproxyError> {
        let Some(mut usage) = ask(master).await? else { return Ok(None) };
        let mut earlier = self.0.lock().await;
        let Some((kept, before)) = &*earlier else { return Ok(Some(usage)) };
        let ago = kept.elapsed();
        for (port, of) in before {
            let idle = of.idle + ago;
            let entry = usage.entry(*port).or_insert(AppUsage { open: 0, idle, ..*of });
            entry.idle = entry.idle.min(idle);
        }
        if ago >= REMEMBERED_FOR {
            *earlier = None;
        }
        Ok(Some(usage))
    }
}

/// Asks every living worker; none when HAProxy is down.
async fn ask(master: &Master) -> Result<Option<Usage>, HaproxyError> {
    let Some(workers) = master.workers_for_sure().await? else { return Ok(None) };
    let mut usage = Usage::new();
    for worker in workers {
        match master.tell(worker.pid, &format!("show table {TABLE}")).await {
            Ok(Some(answer)) => add(&mut usage, &answer),
            // It has left.
            Ok(None) => {}
            Err(error) if master.is_silence_of(&worker, &error).await => {
                log::debug!("an old worker does not tell who is used: {error}");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Some(usage))
}

/// Adds the lines of one worker, such as
/// `0x7f3c: key=notes.alice.example:5521 use=0 exp=59123 shard=0 conn_cur=0 gpc0=7 gpc0_rate(10000)=2`.
pub(super) fn add(usage: &mut Usage, answer: &str) {
    for line in answer.lines() {
        let Some((port, of)) = entry(line) else { continue };
        usage
            .entry(port)
            .and_modify(|sum| {
                sum.open = sum.open.saturating_add(of.open);
                sum.requests = sum.requests.saturating_add(of.requests);
                sum.idle = sum.idle.min(of.idle);
            })
            .or_insert(of);
    }
}

fn entry(line: &str) -> Option<(u16, AppUsage)> {
    let (mut port, mut usage) = (None, AppUsage { idle: REMEMBERED_FOR, ..AppUsage::default() });
    for word in line.split_ascii_whitespace() {
        let Some((name, value)) = word.split_once('=') else { continue };
        match name {
            "key" => port = value.rsplit_once(':').and_then(|(_, port)| port.parse().ok()),
            "exp" => {
                let left = Duration::from_millis(value.parse().ok()?);
                usage.idle = REMEMBERED_FOR.saturating_sub(left);
            }
            "conn_cur" => usage.open = value.parse().ok()?,
            // The first element of the array goes by its old name.
            "gpc0" => usage.requests = value.parse().ok()?,
            _ => {}
        }
    }
    if usage.open > 0 {
        usage.idle = Duration::ZERO;
    }
    port.map(|port| (port, usage))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ANSWER: &str = "# table: limits, type: string, size:102400, used:2\n\
        0x55e8: key=notes.alice.example:5521 use=0 exp=59000 conn_cur=0 gpc0=7 gpc0_rate(10000)=2\n\
        0x55f0: key=todo.alice.example:5522 use=1 exp=0 shard=0 conn_cur=1 gpc0=1 gpc0_rate(10000)=0\n\n";

    #[test]
    fn use_is_the_sum_over_all_workers() {
        let mut usage = Usage::new();
        add(&mut usage, ANSWER);
        assert_eq!(usage[&5521], AppUsage { open: 0, requests: 7, idle: Duration::from_secs(1) });
        assert_eq!(usage[&5522], AppUsage { open: 1, requests: 1, idle: Duration::ZERO }, "a stream is use");
        add(
            &mut usage,
            "0x1: key=notes.alice.example:5521 use=0 exp=20000 shard=0 conn_cur=2 gpc0=3 gpc0_rate(10000)=0\n",
        );
        assert_eq!(usage[&5521], AppUsage { open: 2, requests: 10, idle: Duration::ZERO });
    }

    proptest! {
        #[test]
        fn any_answer_is_read(answer in ".*") {
            add(&mut Usage::new(), &answer);
        }

        #[test]
        fn any_entry_is_read(words in proptest::collection::vec("(key|exp|conn_cur|gpc0)=[a-z0-9.:-]{0,24}", 0..6)) {
            add(&mut Usage::new(), &words.join(" "));
        }
    }
}
