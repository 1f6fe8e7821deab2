//! A worker's map: HAProxy's words for it (management guide, section 9.3), how it differs from what
//! it should say, and the repair.

use std::collections::{BTreeMap, HashMap};

use crate::haproxy::HaproxyError;
use crate::haproxy::master::Master;
use crate::haproxy::processes::Worker;
use crate::haproxy::render::MAP;
use crate::instance::name::Hostname;

/// Differences up to which a map is repaired entry by entry; past it, it is replaced in one.
const REPAIRED_SINGLY: usize = 64;
/// What a worker takes as one command: its buffer has 16 KiB (`tune.bufsize`).
const PAYLOAD: usize = 12 * 1024;

/// Which host leads to which section.
pub(in crate::haproxy) type Entries = BTreeMap<Hostname, String>;

/// What makes a map that leads a host to one section lead it to another; nothing if they are the
/// same.
fn command(host: &str, before: Option<&str>, after: Option<&str>) -> Option<String> {
    match (before, after) {
        (None, Some(after)) => Some(format!("add map {MAP} {host} {after}")),
        (Some(before), Some(after)) if before != after => Some(format!("set map {MAP} {host} {after}")),
        (Some(_), None) => Some(format!("del map {MAP} {host}")),
        (Some(_), Some(_)) | (None, None) => None,
    }
}

/// One host, where it led and where it is to lead.
pub(super) struct Entry<'a> {
    pub host: &'a Hostname,
    pub before: Option<String>,
    pub after: Option<&'a str>,
}

impl Entry<'_> {
    pub fn changes(&self) -> bool {
        self.before.as_deref() != self.after
    }

    /// What to tell a worker that agrees with what was; nothing if nothing changes.
    pub fn command(&self) -> Option<String> {
        command(self.host.as_str(), self.before.as_deref(), self.after)
    }

    pub fn question(&self) -> String {
        format!("get map {MAP} {}", self.host)
    }

    /// Whether the answer to the question is as it should be.
    pub fn is_told_by(&self, answer: &str) -> bool {
        match self.after {
            Some(after) => answer.contains(&format!("value=\"{after}\"")),
            None => answer.contains("found=no"),
        }
    }
}

/// How a worker's map was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InLine {
    Already,
    Repaired,
    No,
}

/// Compares a worker's map, repairs it, and compares once more. One that has left is in line. With
/// `news` it is no surprise that it differs.
pub(super) async fn bring_in_line(
    master: &Master,
    worker: &Worker,
    entries: &Entries,
    news: bool,
) -> Result<InLine, HaproxyError> {
    let gone = if worker.current { InLine::No } else { InLine::Already };
    let Some(present) = show_map(master, worker).await? else { return Ok(gone) };
    let repair_by = repair(&parse_map(&present), entries);
    let empty = present.trim().is_empty();
    drop(present);
    if repair_by == Repair::Nothing {
        return Ok(InLine::Already);
    }
    if worker.current && !empty && !news {
        log::info!("HAProxy's map differs from the manifest; repairing it");
    }
    match repair_by {
        Repair::Singly(steps) => {
            heard_or_not(tell_each(master, worker.pid, &steps).await)?;
        }
        Repair::Whole | Repair::Nothing => heard_or_not(replace_map(master, worker.pid, entries).await)?,
    }
    let Some(present) = show_map(master, worker).await? else { return Ok(gone) };
    Ok(if repair(&parse_map(&present), entries) == Repair::Nothing { InLine::Repaired } else { InLine::No })
}

async fn tell_each(master: &Master, pid: i32, steps: &[String]) -> Result<(), HaproxyError> {
    for step in steps {
        master.tell(pid, step).await?;
    }
    Ok(())
}

/// What was cut off may have been done or not: how the map is then, says what came of it.
fn heard_or_not(told: Result<(), HaproxyError>) -> Result<(), HaproxyError> {
    match told {
        Err(HaproxyError::Socket { .. }) => Ok(()),
        other => other,
    }
}

/// A worker's map, as it shows it; none when the worker is not there, or is an old one that has no
/// such map: it ran something else before, and routes by nothing of ours.
async fn show_map(master: &Master, worker: &Worker) -> Result<Option<String>, HaproxyError> {
    let answer = master.tell(worker.pid, &format!("show map {MAP}")).await?;
    Ok(answer.filter(|answer| worker.current || !answer.starts_with("Unknown map")))
}

/// Host and section, repeated hosts included, of lines such as
/// `0x55f8d4ebe1a0 notes.alice.example notes.alice.example:5521`.
pub(in crate::haproxy) fn parse_map(answer: &str) -> Vec<(&str, &str)> {
    fn entry(line: &str) -> Option<(&str, &str)> {
        let (pointer, rest) = line.split_once(' ')?;
        let (host, target) = rest.split_once(' ')?;
        pointer.starts_with("0x").then(|| (host, target.trim()))
    }
    answer.lines().filter_map(entry).collect()
}

/// In how many hosts a worker's map, as it shows it, is not as it should be.
pub(in crate::haproxy) fn count_differences(answer: &str, wanted: &Entries) -> usize {
    differences(&parse_map(answer).into_iter().collect(), wanted).count()
}

/// Each host that leads elsewhere than it should: where it leads, and where it should.
fn differences<'a>(
    present: &'a HashMap<&'a str, &'a str>,
    wanted: &'a Entries,
) -> impl Iterator<Item = (&'a str, Option<&'a str>, Option<&'a str>)> {
    let there =
        present.iter().map(|(host, before)| (*host, Some(*before), wanted.get::<str>(host).map(String::as_str)));
    let missing = wanted.iter().filter(|(host, _)| !present.contains_key(host.as_str()));
    let missing = missing.map(|(host, after)| (host.as_str(), None, Some(after.as_str())));
    there.chain(missing).filter(|(_, before, after)| before != after)
}

/// What would make the one out of the other.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::haproxy) enum Repair {
    /// They are equal.
    Nothing,
    /// These commands.
    Singly(Vec<String>),
    /// All of it anew: so much differs, a host is there twice (of which `del map` takes all on 2.6 and
    /// one on 3.4), or something is there that is no host: it has no place in a command.
    Whole,
}

fn repair(present: &[(&str, &str)], wanted: &Entries) -> Repair {
    let mut seen: HashMap<&str, &str> = HashMap::with_capacity(present.len());
    for (host, target) in present {
        if seen.insert(host, target).is_some() {
            return Repair::Whole;
        }
    }
    let mut steps = Vec::new();
    for (host, before, after) in differences(&seen, wanted) {
        if Hostname::parse(host).is_err() {
            return Repair::Whole;
        }
        steps.extend(command(host, before, after));
    }
    match steps.len() {
        0 => Repair::Nothing,
        1..=REPAIRED_SINGLY => Repair::Singly(steps),
        _ => Repair::Whole,
    }
}

/// Replaces a worker's map in one moment, however large (management guide, `prepare map`).
async fn replace_map(master: &Master, pid: i32, entries: &Entries) -> Result<(), HaproxyError> {
    let answer = master.tell(pid, &format!("prepare map {MAP}")).await?.unwrap_or_default();
    // "New version created: 1"
    let Some(version) = answer.rsplit(' ').next().and_then(|word| word.trim().parse::<u32>().ok()) else {
        return Ok(());
    };
    let command = format!("add map @{version} {MAP} <<\n");
    let mut payload = command.clone();
    for (host, target) in entries {
        let line = format!("{host} {target}\n");
        if payload.len() + line.len() > PAYLOAD {
            payload.push('\n');
            master.tell(pid, &payload).await?;
            payload.clone_from(&command);
        }
        payload.push_str(&line);
    }
    if payload.len() > command.len() {
        payload.push('\n');
        master.tell(pid, &payload).await?;
    }
    master.tell(pid, &format!("commit map @{version} {MAP}")).await?;
    Ok(())
}

/// The doors of a fuzzer.
#[cfg(feature = "fuzzing")]
pub(in crate::haproxy) mod fuzzing {
    pub(in crate::haproxy) use super::Repair;
    use super::{Entries, Entry, Hostname};

    pub(in crate::haproxy) fn repair(answer: &str, wanted: &Entries) -> Repair {
        super::repair(&super::parse_map(answer), wanted)
    }

    pub(in crate::haproxy) fn is_told_by(host: &Hostname, after: Option<&str>, answer: &str) -> bool {
        Entry { host, before: None, after }.is_told_by(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(of: &[(&str, &str)]) -> Entries {
        of.iter().map(|(host, target)| (Hostname::parse(host).unwrap(), (*target).to_owned())).collect()
    }

    #[test]
    fn a_map_is_read_as_haproxy_shows_it() {
        let answer = "0x55f8d4ebe1a0 a.example a.example:1\n0x55f8d4ebe1f0 b.example a.example:1\n\n";
        let read = parse_map(answer);
        assert_eq!(read, [("a.example", "a.example:1"), ("b.example", "a.example:1")]);
        assert!(parse_map("Unknown map identifier. Please use #<id> or <file>.\n").is_empty());
    }

    #[test]
    fn what_differs_is_repaired_and_nothing_else_is_touched() {
        let wanted = entries(&[("a.example", "a:1"), ("b.example", "b:2"), ("c.example", "c:3")]);
        let same = [("c.example", "c:3"), ("a.example", "a:1"), ("b.example", "b:2")];
        assert_eq!(repair(&same, &wanted), Repair::Nothing);
        let differs = [("a.example", "a:9"), ("x.example", "x:1"), ("b.example", "b:2")];
        let Repair::Singly(mut steps) = repair(&differs, &wanted) else { panic!("so little") };
        steps.sort();
        assert_eq!(
            steps,
            ["add map routes.map c.example c:3", "del map routes.map x.example", "set map routes.map a.example a:1",]
        );
        let twice = [("c.example", "c:3"), ("a.example", "a:1"), ("b.example", "b:2"), ("b.example", "b:2")];
        assert_eq!(repair(&twice, &wanted), Repair::Whole);
        // Each of these would be another command.
        for evil in ["x;shutdown sessions server a/b", "x y", "", "x\\", "*"] {
            let evil = [("c.example", "c:3"), ("a.example", "a:1"), ("b.example", "b:2"), (evil, "x:1")];
            assert_eq!(repair(&evil, &wanted), Repair::Whole);
        }
    }

    #[test]
    fn an_answer_counts_only_for_the_target_that_was_asked_for() {
        let host = Hostname::parse("a.example").unwrap();
        let found = "type=str, case=sensitive, found=yes, idx=tree, key=\"a.example\", value=\"a:1\", type=\"str\"";
        let entry = |after| Entry { host: &host, before: None, after };
        assert!(entry(Some("a:1")).is_told_by(found));
        assert!(!entry(Some("a:12")).is_told_by(found) && !entry(None).is_told_by(found));
        assert!(entry(None).is_told_by("type=str, case=sensitive, found=no"));
        assert!(!entry(None).is_told_by("Unknown map identifier."));
    }
}
