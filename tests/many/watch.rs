//! What runs, and what memory it takes, while a test goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use haas::config::Config;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::task::{AbortHandle, JoinSet};

use super::LOOK;
use super::support::installation::docker;

/// Looks all the time at what runs and what memory it takes; ends when it is dropped.
pub struct Watch {
    awake: usize,
    seen: Arc<Mutex<Seen>>,
    watching: [AbortHandle; 2],
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct Seen {
    looks: usize,
    /// Containers that ran at a look, at most; those that are paused included.
    most: usize,
    /// Their memory in bytes at a look, at most, and how many they were then.
    memory: (u64, usize),
    /// The engine's own word of each start and end: between two looks nothing is missed.
    told: Told,
}

#[derive(Default)]
struct Told {
    running: BTreeSet<String>,
    most: usize,
    starts: usize,
}

impl Watch {
    pub fn start(installation: &str, awake: usize) -> Self {
        let seen = Arc::<Mutex<Seen>>::default();
        let label = format!("label=haas.installation={installation}");
        let mut tasks = JoinSet::new();
        let watching =
            [tasks.spawn(look(Arc::clone(&seen), label.clone())), tasks.spawn(listen(Arc::clone(&seen), label))];
        Self { awake, seen, watching, _tasks: tasks }
    }

    pub fn starts(&self) -> usize {
        self.seen.lock().unwrap().told.starts
    }

    pub fn assert_bounds(&self) {
        assert!(!self.watching.iter().any(AbortHandle::is_finished), "nobody watches any more");
        let seen = self.seen.lock().unwrap();
        assert!(seen.looks > 0 && seen.most > 0, "nobody has looked: {} looks, {} ran", seen.looks, seen.most);
        assert!(seen.most <= self.awake, "{} ran at once, {} may", seen.most, self.awake);
        assert!(seen.told.most <= self.awake, "the engine told of {} at once, {} may", seen.told.most, self.awake);
        let mib = seen.memory.0 >> 20;
        let each = u64::from(Config::load(None, [], BTreeMap::new()).unwrap().tenant.memory_mib);
        assert!(mib > 0, "their memory could not be read");
        assert!(mib <= each * self.awake as u64, "{mib} MiB, {each} may be taken by each of {}", self.awake);
    }

    pub fn report(&self) -> String {
        let seen = self.seen.lock().unwrap();
        let (bytes, of) = seen.memory;
        let mut text = format!("{} looks: {} ran at most; ", seen.looks, seen.most);
        write!(text, "by the engine's events {} at most, {} starts; ", seen.told.most, seen.told.starts).unwrap();
        write!(text, "memory at most {} MiB, of {of} containers", bytes >> 20).unwrap();
        text
    }
}

async fn look(seen: Arc<Mutex<Seen>>, label: String) {
    loop {
        let ids = docker(&["ps", "-q", "--no-trunc", "--filter", &label]).await;
        let ids: Vec<&str> = ids.lines().collect();
        let memory: u64 = ids.iter().filter_map(|id| memory(id)).sum();
        {
            let mut seen = seen.lock().unwrap();
            seen.looks += 1;
            seen.most = seen.most.max(ids.len());
            seen.memory = seen.memory.max((memory, ids.len()));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What a container's processes and the kernel take for it, as `docker stats` tells it: without
/// pages of files that are not in use. None once it has ended.
fn memory(id: &str) -> Option<u64> {
    let places = [
        (format!("memory/docker/{id}"), "memory.usage_in_bytes", "total_inactive_file "),
        (format!("docker/{id}"), "memory.current", "inactive_file "),
        (format!("system.slice/docker-{id}.scope"), "memory.current", "inactive_file "),
    ];
    places.into_iter().find_map(|(place, usage, inactive)| {
        let place = PathBuf::from("/sys/fs/cgroup").join(place);
        let usage: u64 = std::fs::read_to_string(place.join(usage)).ok()?.trim().parse().ok()?;
        let stat = std::fs::read_to_string(place.join("memory.stat")).ok()?;
        let inactive: u64 = stat.lines().find_map(|line| line.strip_prefix(inactive))?.parse().ok()?;
        Some(usage.saturating_sub(inactive))
    })
}

async fn listen(seen: Arc<Mutex<Seen>>, label: String) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let mut events = tokio::process::Command::new("docker")
        .args(["events", "--since", &now.to_string(), "--filter", "type=container", "--filter", &label])
        .args(["--filter", "event=start", "--filter", "event=die", "--format", "{{.Action}} {{.ID}}"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(events.stdout.take().unwrap()).lines();
    while let Some(line) = lines.next_line().await.unwrap() {
        let told = &mut seen.lock().unwrap().told;
        match line.split_once(' ').unwrap() {
            ("start", id) => {
                told.starts += 1;
                told.running.insert(id.to_owned());
            }
            (_, id) => {
                told.running.remove(id);
            }
        }
        told.most = told.most.max(told.running.len());
    }
    panic!("the engine tells nothing any more");
}
