//! HAProxy's processes: as its master lists them (HAProxy management guide, section 9.4,
//! `show proc`), and as the kernel knows them (proc(5)).

use chrono::{DateTime, TimeDelta, Utc};

/// HAProxy's processes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Processes {
    /// The master's process id.
    pub master: i32,
    /// Reloads so far, failed ones too.
    pub reloads: u32,
    /// How many of them failed since one succeeded.
    pub failed: u32,
    /// The current worker first.
    pub workers: Vec<Worker>,
}

/// A process that serves, or still serves, requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// Its process id.
    pub pid: i32,
    /// Whether it takes new connections. An old one only ends what it has begun.
    pub current: bool,
    /// When it started.
    pub started: DateTime<Utc>,
}

/// Reads the answer to `show proc`. The columns have changed between versions, so a line is known
/// by its type, and the uptime by its form. An uptime is rounded down: the start is put a second
/// earlier, since to think a worker younger than it is would be the dangerous mistake; one whose uptime
/// can't be read is as old as can be.
pub(super) fn parse(answer: &str, now: DateTime<Utc>) -> Option<Processes> {
    let mut master = None;
    let mut workers = Vec::new();
    let mut current = true;
    for line in answer.lines() {
        if line.starts_with('#') {
            current = !line.contains("old workers");
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        // 0 and less are whole groups of processes to whoever signals them (kill(2)).
        let pid = words.first().and_then(|word| word.parse().ok()).filter(|pid| *pid > 0);
        let (Some(pid), Some(kind)) = (pid, words.get(1)) else { continue };
        match *kind {
            "master" => {
                let number = |word: &&str| word.trim_end_matches(']').parse().ok();
                let failed = words.iter().position(|word| *word == "[failed:");
                let reloads = failed.and_then(|at| words.get(at.checked_sub(1)?).and_then(number));
                let failed = failed.and_then(|at| words.get(at + 1).and_then(number));
                master = Some((pid, reloads.unwrap_or(0), failed.unwrap_or(0)));
            }
            "worker" => {
                let uptime = words.iter().find_map(|word| uptime(word));
                let started = uptime.and_then(|uptime| now.checked_sub_signed(uptime + TimeDelta::seconds(1)));
                workers.push(Worker { pid, current, started: started.unwrap_or(DateTime::UNIX_EPOCH) });
            }
            _ => {}
        }
    }
    // From 3.1 on, every worker is an old one after a reload that failed: the youngest serves.
    if workers.iter().all(|worker| !worker.current)
        && let Some(youngest) = (0..workers.len()).rev().max_by_key(|of| workers[*of].started)
    {
        workers[youngest].current = true;
    }
    workers.sort_by_key(|worker| !worker.current);
    master.map(|(master, reloads, failed)| Processes { master, reloads, failed, workers })
}

/// `0d00h02m07s`
fn uptime(word: &str) -> Option<TimeDelta> {
    let mut rest = word;
    let mut seconds = 0;
    for (unit, length) in [('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)] {
        let (number, after) = rest.split_once(unit)?;
        seconds += i64::from(number.parse::<u32>().ok()?) * length;
        rest = after;
    }
    TimeDelta::try_seconds(seconds).filter(|_| rest.is_empty())
}

/// When a process started.
pub(super) async fn started(pid: i32) -> Option<DateTime<Utc>> {
    /// The kernel's USER_HZ, which is 100 on every architecture that HAProxy is built for.
    const MILLISECONDS_A_TICK: i64 = 10;
    let tick = start_tick(pid).await?;
    let uptime = tokio::fs::read_to_string("/proc/uptime").await.ok()?;
    let (seconds, hundredths) = uptime.split_whitespace().next()?.split_once('.')?;
    let now = seconds.parse::<i64>().ok()? * 1000 + hundredths.parse::<i64>().ok()? * 10;
    Some(Utc::now() - TimeDelta::try_milliseconds(now - tick * MILLISECONDS_A_TICK)?)
}

/// When a living process started, in ticks since boot: field 22 of its `stat` (proc(5)).
pub(super) async fn start_tick(pid: i32) -> Option<i64> {
    let stat = tokio::fs::read_to_string(format!("/proc/{pid}/stat")).await.ok()?;
    // The second field is a name in parentheses, and may itself have any character.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    // One that has ended stays, as Z, until its parent has asked how.
    let ended = matches!(*fields.first()?, "Z" | "X");
    fields.get(19).filter(|_| !ended)?.parse().ok()
}

/// Resident memory of a process (proc(5), `VmRSS`).
pub(super) async fn resident_mib(pid: i32) -> Option<u64> {
    let status = tokio::fs::read_to_string(format!("/proc/{pid}/status")).await.ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn show_proc_is_read_in_the_forms_that_versions_give_it() {
        let now = Utc::now();
        let ago = |seconds: i64| now - TimeDelta::seconds(seconds + 1);
        let answer = "#<PID>          <type>          <reloads>       <uptime>        <version>\n\
            1162            master          5 [failed: 2]   0d00h02m07s     2.6.12\n\
            # workers\n\
            1271            worker          1               0d00h00m09s     2.6.12\n\
            # old workers\n\
            1233            worker          3               1d01h01m43s     2.6.12\n\
            # programs\n\
            1244            foo             0               0d00h00m00s     -\n\n";
        let expected = Processes {
            master: 1162,
            reloads: 5,
            failed: 2,
            workers: vec![
                Worker { pid: 1271, current: true, started: ago(9) },
                Worker { pid: 1233, current: false, started: ago(90_103) },
            ],
        };
        assert_eq!(parse(answer, now), Some(expected));
        // 2.4 and earlier: no count of failures, and a relative number for each worker.
        let answer = "#<PID> <type> <relative PID> <reloads> <uptime> <version>\n\
            7 master 0 2 0d00h00m01s 2.4\n# workers\n8 worker 1 0 0d00h00m01s 2.4\n# programs\n";
        let read = parse(answer, now).unwrap();
        assert_eq!((read.master, read.failed, read.workers.len()), (7, 0, 1));
        assert_eq!(read.workers[0].started, ago(1));
        // 3.1 and later, after a reload that failed.
        let answer = "7 master 2 [failed: 1] 0d00h00m13s 3.4.7-1\n# workers\n# old workers\n\
            5 worker 3 0d00h01m13s 3.4.7-1\n8 worker 2 0d00h00m11s 3.4.7-1\n6 worker 4 0d00h02m13s 3.4.7-1\n\n";
        let read = parse(answer, now).unwrap();
        assert_eq!((read.reloads, read.failed), (2, 1));
        let workers: Vec<_> = read.workers.iter().map(|worker| (worker.pid, worker.current)).collect();
        assert_eq!(workers, [(8, true), (5, false), (6, false)]);
        assert_eq!(parse("Permission denied", now), None);
    }

    #[test]
    fn what_no_haproxy_says_harms_nobody() {
        let now = Utc::now();
        assert_eq!(parse("-1 master 0 [failed: 0] 0d00h00m01s 2.6\n", now), None, "kill(-1) would reach everybody");
        assert_eq!(parse("0 master 0 [failed: 0] 0d00h00m01s 2.6\n", now), None);
        let started = |uptime: &str| {
            let answer = format!("7 master 0 [failed: 0] 0d00h00m01s 2.6\n# workers\n8 worker 0 {uptime} 2.6\n");
            parse(&answer, now).unwrap().workers[0].started
        };
        for uptime in ["-9d00h00m00s", "99999999999d00h00m00s", "4000000000d00h00m00s", "now", "0d00h00m00s1"] {
            assert_eq!(started(uptime), DateTime::UNIX_EPOCH, "{uptime}");
        }
        let answer = "7 master 0 [failed: 0] 0d00h00m01s 2.6\n# old workers\n8 worker 1 0d00h00m09s 2.6\n\
            # workers\n9 worker 0 0d00h00m01s 2.6\n";
        let read = parse(answer, now).unwrap();
        let workers: Vec<_> = read.workers.iter().map(|worker| (worker.pid, worker.current)).collect();
        assert_eq!(workers, [(9, true), (8, false)]);
    }

    #[tokio::test]
    async fn the_kernel_knows_when_a_process_started() {
        let age = Utc::now() - started(std::process::id().cast_signed()).await.unwrap();
        assert!(age >= TimeDelta::milliseconds(-50) && age < TimeDelta::hours(1), "{age}");
    }
}
