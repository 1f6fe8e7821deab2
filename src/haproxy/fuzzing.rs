//! What the readers of HAProxy's sockets promise, for any answer.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::certs::fuzzing as certs;
use super::lane::{count_differences, fuzzing as lane, parse_map};
use super::master::{generation, pool_mib};
use super::processes::{self, Processes};
use super::usage::{self, REMEMBERED_FOR, Usage};
use crate::instance::name::Hostname;

/// Parts an answer from what a worker's map should say.
const WANTED: &str = "\n===\n";

/// The text as the answer to each question that HAProxy is asked. What follows a line `===` is the map as it
/// should be.
///
/// # Panics
/// When what was read is not what it must be.
pub fn runtime_socket(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (answer, wanted) = text.split_once(WANTED).unwrap_or((&text, ""));
    show_proc(answer);
    show_table(answer);
    show_map(answer, wanted);
    show_certificates(answer);
    if let Some(generation) = generation(answer) {
        assert!(answer.contains(&format!("value=<{generation}>")), "{generation}");
    }
    if let Some(mib) = pool_mib(answer) {
        assert!(answer.contains("PoolAlloc_MB:"), "{mib} from nowhere");
    }
}

fn show_proc(answer: &str) {
    let Some(now) = DateTime::<Utc>::from_timestamp(1_790_000_000, 0) else { return };
    let Some(read) = processes::parse(answer, now) else { return };
    // It is signalled: 0 and less would be whole groups of processes (kill(2)).
    assert!(read.master > 0 && read.workers.iter().all(|worker| worker.pid > 0), "{read:?}");
    let current = read.workers.iter().take_while(|worker| worker.current).count();
    assert!(read.workers.is_empty() || current > 0, "somebody serves: {read:?}");
    assert!(read.workers[current..].iter().all(|worker| !worker.current), "the current one is first: {read:?}");
    assert!(read.workers.iter().all(|worker| worker.started < now), "none is younger than it can be: {read:?}");
    assert_eq!(processes::parse(&as_shown(&read, now), now).as_ref(), Some(&read), "as HAProxy would show it");
}

fn as_shown(processes: &Processes, now: DateTime<Utc>) -> String {
    let Processes { master, reloads, failed, workers } = processes;
    let mut text = format!("#<PID> <type>\n{master} master {reloads} [failed: {failed}] 0d00h00m00s 2.6.12\n");
    for (current, title) in [(true, "# workers\n"), (false, "# old workers\n")] {
        text.push_str(title);
        for worker in workers.iter().filter(|worker| worker.current == current) {
            let seconds = (now - worker.started - TimeDelta::seconds(1)).num_seconds();
            let (days, hours, rest) = (seconds / 86_400, seconds / 3600 % 24, seconds % 3600);
            let line = format!("{} worker 1 {days}d{hours:02}h{:02}m{:02}s 2.6.12\n", worker.pid, rest / 60, rest % 60);
            text.push_str(&line);
        }
    }
    text + "# programs\n\n"
}

fn show_table(answer: &str) {
    let mut read = Usage::new();
    usage::add(&mut read, answer);
    for of in read.values() {
        assert!(of.idle <= REMEMBERED_FOR && (of.open == 0 || of.idle == Duration::ZERO), "{of:?}");
    }
    // Whichever worker tells first.
    let mut reversed = Usage::new();
    for line in answer.lines().rev() {
        usage::add(&mut reversed, line);
    }
    assert_eq!(reversed, read);
    let mut twice = read.clone();
    usage::add(&mut twice, answer);
    assert!(twice.iter().all(|(port, of)| of.requests >= read[port].requests && of.idle == read[port].idle));
}

fn show_map(answer: &str, wanted: &str) {
    let entry = |line: &str| {
        let (host, target) = line.split_once(' ')?;
        let plain = target.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".:-".contains(&byte));
        (plain && !target.is_empty()).then_some((Hostname::parse(host).ok()?, target.to_owned()))
    };
    let wanted: BTreeMap<Hostname, String> = wanted.lines().filter_map(entry).collect();
    let present = parse_map(answer);
    let mut map: HashMap<&str, &str> = HashMap::new();
    let mut twice = false;
    for (host, target) in present {
        twice |= map.insert(host, target).is_some();
    }
    let differ = count_differences(answer, &wanted);
    match lane::repair(answer, &wanted) {
        lane::Repair::Nothing => assert!(differ == 0 && !twice),
        lane::Repair::Singly(steps) => {
            assert!(steps.len() == differ && !twice);
            for step in &steps {
                do_step(&mut map, step);
            }
            let as_wanted: HashMap<&str, &str> =
                wanted.iter().map(|(host, target)| (host.as_str(), target.as_str())).collect();
            assert_eq!(map, as_wanted, "after {steps:?}");
        }
        lane::Repair::Whole => assert!(differ > 0 || twice),
    }
    for (host, target) in &wanted {
        let shown = format!("type=str, case=sensitive, found=yes, idx=tree, key=\"{host}\", value=\"{target}\"");
        assert!(lane::is_told_by(host, Some(target), &shown) && !lane::is_told_by(host, None, &shown));
        assert!(!lane::is_told_by(host, Some(&format!("{target}0")), &shown));
    }
}

/// What a worker does with a command; it takes several in a line, and several lines.
fn do_step<'a>(map: &mut HashMap<&'a str, &'a str>, step: &'a str) {
    assert!(!step.contains([';', '\n', '\r', '\\', '<']), "more than one command: {step:?}");
    let words: Vec<&str> = step.split(' ').collect();
    let done = match words[..] {
        ["add", "map", "routes.map", host, target] => map.insert(host, target).is_none(),
        ["set", "map", "routes.map", host, target] => map.insert(host, target).is_some(),
        ["del", "map", "routes.map", host] => map.remove(host).is_some(),
        _ => false,
    };
    assert!(done, "{step:?}");
}

fn show_certificates(answer: &str) {
    let (listed, stored) = certs::read("/x/live", answer);
    for file in listed.iter().chain(stored.keys()) {
        // It becomes a part of commands.
        let plain = |byte: u8| byte.is_ascii_graphic() && !b";\\<".contains(&byte);
        assert!(!file.is_empty() && file.bytes().all(plain), "{file:?}");
        assert!(answer.contains(&format!("/x/live/{file}")), "{file:?}");
    }
    let list: Vec<String> = listed.iter().map(|file| format!("/x/live/{file}")).collect();
    let details: String = stored.iter().map(|(file, mark)| shown(file, mark.as_ref())).collect();
    let again: (BTreeSet<String>, _) = certs::read("/x/live", &list.join("\n"));
    assert_eq!(again.0, listed, "as HAProxy would list them");
    assert_eq!(certs::read("/x/live", &details).1, stored, "as HAProxy would show them");
}

fn shown(file: &str, mark: Option<&(String, usize)>) -> String {
    let Some((fingerprint, chain)) = mark else { return format!("Filename: /x/live/{file}\nStatus: Empty\n\n") };
    let chain = "Chain Subject: /CN=a\n".repeat(*chain);
    format!("Filename: /x/live/{file}\nStatus: Used\nSHA1 FingerPrint: {fingerprint}\n{chain}\n")
}
