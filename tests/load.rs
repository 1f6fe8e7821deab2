//! Clients ask all the time, streams stay open, and meanwhile apps come and go and HAProxy reloads:
//! not one request fails, not one stream breaks.
//!
//! Small by default; `HAAS_TEST_LOAD=full` is the size of docs/benchmarks.md. The containers are
//! stubs, everything else is real.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use haas::haproxy::Worker;
use haas::instance::Phase;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::house::House;
use support::{eventually, ports_for};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

struct Size {
    apps: usize,
    /// Apps that come and go meanwhile.
    comers: usize,
    /// How many of them at a time.
    lanes: usize,
    streams: usize,
    /// Reloads that are forced: by turns, a signal from outside and an edit of the template.
    reloads: usize,
    /// Clients that keep their connections; a tenth as many make one for each request.
    clients: usize,
}

const SMALL: Size = Size { apps: 10, comers: 12, lanes: 3, streams: 6, reloads: 6, clients: 20 };
const FULL: Size = Size { apps: 50, comers: 100, lanes: 4, streams: 20, reloads: 20, clients: 50 };

/// Between two requests of a client.
const THINK: Duration = Duration::from_millis(20);
/// Nothing here takes so long, but for a machine that is busy with something else.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the clients share.
#[derive(Default)]
struct Load {
    port: u16,
    /// Hosts that have to answer, and by which name.
    hosts: RwLock<BTreeMap<String, String>>,
    over: AtomicBool,
    requests: AtomicUsize,
    failures: RwLock<Vec<String>>,
}

impl Load {
    fn fail(&self, what: String) {
        self.failures.write().unwrap().push(what);
    }

    fn over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    fn open(&self, house: &House, user: &str) {
        self.hosts.write().unwrap().insert(house.host(user), format!("{user}-notes"));
    }

    /// The `turn`th of the hosts that answer now.
    fn pick(&self, turn: usize) -> (String, String) {
        let hosts = self.hosts.read().unwrap();
        let (host, name) = hosts.iter().nth(turn % hosts.len()).unwrap();
        (host.clone(), name.clone())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_fails_while_apps_come_and_go_and_haproxy_reloads() {
    let size = if std::env::var("HAAS_TEST_LOAD").is_ok_and(|size| size == "full") { FULL } else { SMALL };
    // A port that was given back stays withheld while old workers live.
    let ports = ports_for(u16::try_from(size.apps + size.comers + 5).unwrap());
    let house = Arc::new(House::start(ports, &[("haproxy.reload_min_interval", "1s")], 0).await);
    let load = Arc::new(Load { port: ports.http, ..Load::default() });
    let mut rows = Vec::new();
    for n in 0..size.apps {
        rows.push(house.provision(&format!("app-{n}")).await);
    }
    for (n, id) in rows.into_iter().enumerate() {
        house.comes_to_be(id, Phase::Running).await;
        load.open(&house, &format!("app-{n}"));
    }

    let mut clients = JoinSet::new();
    for number in 0..size.clients + size.clients / 10 {
        clients.spawn(client(Arc::clone(&load), number, number < size.clients));
    }
    let mut comings = JoinSet::new();
    for lane in 0..size.lanes {
        let users = (lane..size.comers).step_by(size.lanes).map(|n| format!("comer-{n}")).collect();
        comings.spawn(come_and_go(Arc::clone(&house), Arc::clone(&load), users));
    }
    let most = tokio::spawn(most_workers(Arc::clone(&house), Arc::clone(&load)));
    let mut streams = JoinSet::new();
    for number in 0..size.reloads.max(size.streams) {
        if number < size.streams {
            streams.spawn(stream(Arc::clone(&load), load.pick(number).0));
        }
        if number < size.reloads {
            reload(&house, number).await;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    while let Some(ended) = comings.join_next().await {
        ended.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let open = streams.len();
    load.over.store(true, Ordering::SeqCst);
    let most = most.await.unwrap();
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    let mut bytes = 0;
    while let Some(ended) = streams.join_next().await {
        bytes += ended.unwrap();
    }

    let requests = load.requests.load(Ordering::SeqCst);
    let failures = load.failures.read().unwrap().clone();
    eprintln!(
        "{requests} requests, {} failures; {open} streams to the end, {bytes} bytes of them; {most} workers at most",
        failures.len()
    );
    assert!(failures.is_empty(), "{} of {requests} failed: {:#?}", failures.len(), &failures[..failures.len().min(20)]);
    assert!(requests > 1000 && open == size.streams, "{requests} requests, {open} streams");
    // One for each reload that was forced. Of its own accord Haas adds some only while there are
    // fewer old ones than haproxy.old_workers_max.
    let bound = 1 + size.reloads + house.cluster.config.haproxy.old_workers_max;
    assert!(most <= bound, "{most} workers, {bound} are allowed");
    eventually("every old worker has left", Duration::from_secs(30), || async {
        (house.haproxy.workers().await.ok()?.len() == 1).then_some(())
    })
    .await;
}

/// Provisions and deprovisions one after another; in between they have to answer as all others do.
async fn come_and_go(house: Arc<House>, load: Arc<Load>, users: Vec<String>) {
    for user in users {
        let id = house.provision(&user).await;
        house.comes_to_be(id, Phase::Running).await;
        load.open(&house, &user);
        tokio::time::sleep(Duration::from_millis(300)).await;
        load.hosts.write().unwrap().remove(&house.host(&user));
        // Whoever has picked it by now has its answer then.
        tokio::time::sleep(Duration::from_millis(200)).await;
        house.deprovision(&user).await;
        house.comes_to_be(id, Phase::Deleted).await;
    }
}

/// Forces a reload, and waits until another worker is the current one.
async fn reload(house: &House, number: usize) {
    let current = async || Some(house.haproxy.workers().await.ok()?.into_iter().find(|worker| worker.current)?.pid);
    let before = eventually("HAProxy has a worker", PATIENCE, &current).await;
    if number.is_multiple_of(2) {
        kill(parent(before), Signal::SIGUSR2).unwrap();
    } else {
        house.edit_template(&number.to_string());
    }
    eventually("another worker", Duration::from_secs(30), async || current().await.filter(|pid| *pid != before)).await;
}

/// A worker's master.
fn parent(pid: i32) -> Pid {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    Pid::from_raw(fields.split_whitespace().nth(1).unwrap().parse().unwrap())
}

async fn most_workers(house: Arc<House>, load: Arc<Load>) -> usize {
    let mut most = 0;
    while !load.over() {
        // While the master replaces itself it gives no answer.
        let workers: Vec<Worker> = house.haproxy.workers().await.unwrap_or_default();
        most = most.max(workers.len());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    most
}

/// Asks one host after another. What it takes for no failure: a connection that is closed after
/// `Connection: close`, or while no request is under way.
async fn client(load: Arc<Load>, number: usize, keeps: bool) {
    let mut kept: Option<BufReader<TcpStream>> = None;
    let mut turn = number;
    while !load.over() {
        turn += 1;
        let (host, name) = load.pick(turn);
        load.requests.fetch_add(1, Ordering::SeqCst);
        let asked = timeout(PATIENCE, ask(load.port, kept.take(), &host, keeps)).await;
        match asked.unwrap_or_else(|_| Err("no answer".to_owned())) {
            Ok(answer) if answer.status == 200 && answer.body == name => kept = answer.connection,
            Ok(answer) => load.fail(format!("{host}: {} from {}", answer.status, answer.body)),
            Err(error) => load.fail(format!("{host}: {error}")),
        }
        let Some(connection) = &mut kept else {
            tokio::time::sleep(THINK).await;
            continue;
        };
        match timeout(THINK, connection.fill_buf()).await {
            Err(_) => {}
            Ok(Ok([])) => kept = None,
            Ok(unasked) => {
                load.fail(format!("{host}: between two requests came {unasked:?}"));
                kept = None;
            }
        }
    }
}

struct Answer {
    status: u16,
    body: String,
    /// If it is kept.
    connection: Option<BufReader<TcpStream>>,
}

async fn ask(port: u16, kept: Option<BufReader<TcpStream>>, host: &str, keep: bool) -> Result<Answer, String> {
    let fresh = kept.is_none();
    let failed = |doing: &'static str| {
        move |error: std::io::Error| format!("{doing}, {} connection: {error}", if fresh { "new" } else { "kept" })
    };
    let mut stream = match kept {
        Some(stream) => stream,
        None => BufReader::new(TcpStream::connect(("127.0.0.1", port)).await.map_err(failed("connecting"))?),
    };
    let close = if keep { "" } else { "Connection: close\r\n" };
    let request = format!("GET /hoodie/ HTTP/1.1\r\nHost: {host}\r\n{close}\r\n");
    stream.write_all(request.as_bytes()).await.map_err(failed("asking"))?;
    let head = head(&mut stream).await.map_err(failed("reading"))?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).ok_or("no status")?;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
    let mut body = vec![0; length.trim().parse().map_err(|_| "no length")?];
    stream.read_exact(&mut body).await.map_err(failed("reading the body"))?;
    let connection = (keep && !head.contains("connection: close")).then_some(stream);
    Ok(Answer { status, body: String::from_utf8_lossy(&body).into_owned(), connection })
}

/// In lower case.
async fn head(stream: &mut BufReader<TcpStream>) -> std::io::Result<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(head.to_ascii_lowercase())
}

/// An answer without an end. Returns how much of it came.
async fn stream(load: Arc<Load>, host: String) -> usize {
    let mut bytes = 0;
    let reading = async {
        let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", load.port)).await?);
        let request = format!("GET /stream HTTP/1.1\r\nHost: {host}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let head = head(&mut stream).await?;
        if !head.starts_with("http/1.1 200 ") {
            return Err(std::io::Error::other(head));
        }
        let mut buffer = [0; 256];
        while !load.over() {
            match timeout(PATIENCE, stream.read(&mut buffer)).await?? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                read => bytes += read,
            }
        }
        Ok(())
    };
    if let Err(error) = reading.await {
        load.fail(format!("the stream of {host} after {bytes} bytes: {error}"));
    }
    bytes
}
