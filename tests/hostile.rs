//! A tenant that answers garbage, never, or without an end harms itself alone: asked through HAProxy,
//! through Haas while it wakes, and by Haas' own looks. On the real engine, database and proxy; the
//! tenants run a program that means harm.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use support::eventually;
use support::hoodie::Hoodie;
use support::hostile::hostile_image;
use support::image::Image;
use support::installation::Installation;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

const MIB: u64 = 1024 * 1024;
/// What Haas and HAProxy may grow by, each, while gigabytes are on offer. HAProxy has buffers of its own
/// for each connection, and Haas' debug build stacks.
const GROWTH: u64 = 64 * MIB;
/// How long an answer without an end is read, at least; what is buffered meanwhile would be hundreds of MiB.
const PATIENCE: Duration = Duration::from_secs(3);
/// An answer whose body has no end is read so far.
const ENOUGH: u64 = 64 * MIB;

/// Ways of not answering, and the statuses that a client may see for them; none for no answer in
/// this time.
const WAYS: [(&str, &[Option<u16>]); 15] = [
    ("garbage", &[Some(502)]),
    ("status", &[Some(502)]),
    ("headers", &[Some(502)]),
    ("header", &[Some(502)]),
    ("twice", &[Some(502)]),
    ("early", &[Some(502), Some(103), None]),
    ("silent", &[None]),
    // These begin well, and the client sees them break off, or go on as long as it likes.
    ("extension", &[Some(200), Some(502)]),
    ("size", &[Some(200), Some(502)]),
    ("trailers", &[Some(200), Some(502)]),
    ("body", &[Some(200)]),
    ("cut", &[Some(200), Some(502)]),
    ("short", &[Some(200)]),
    ("long", &[Some(200)]),
    ("both", &[Some(200)]),
];

/// An installation whose tenants all run the program that means harm, and one of them that does none.
struct Scene {
    bystander: Bystander,
    haas: Installation,
    _image: Image,
}

impl Scene {
    async fn set() -> Self {
        let image = hostile_image().await;
        let settings = format!(
            "[tenant]\nimage = \"{}\"\nstop_timeout = \"1s\"\ndrain_timeout = \"1s\"\nready_timeout = \"8s\"\n\
             [lifecycle]\nwake_timeout = \"5s\"\n[reconcile]\nbackoff_base = \"1m\"",
            image.0
        );
        let haas = Installation::up_with(&settings).await;
        let bystander = Bystander::start(haas.provision("bystander", "notes").await);
        Self { bystander, haas, _image: image }
    }

    /// Has it answer some at once: what is bounded for each is bounded for all.
    async fn harms_itself_alone(&self, hostile: &Hoodie, way: &str, statuses: &[Option<u16>], patience: Duration) {
        let before = self.bystander.answered();
        let path = format!("/x/{way}");
        let all = futures_util::future::join_all((0..8).map(|_| ask(hostile, &path, patience))).await;
        println!("{way}: {:?}", all[0]);
        for seen in &all {
            assert!(statuses.contains(&seen.status), "{way}: {seen:?}");
        }
        self.bystander.goes_on(before, way).await;
    }
}

/// Asks one app all the time: each answer has to be a 200.
struct Bystander {
    end: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Bystander {
    fn start(app: Hoodie) -> Self {
        let (end, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ended, count) = (Arc::clone(&end), Arc::clone(&answered));
        let task = tokio::spawn(async move {
            while !ended.load(Ordering::SeqCst) {
                let answer = app.get("/").await.unwrap();
                assert_eq!(answer.status(), 200);
                assert_eq!(answer.text().await.unwrap(), "ok");
                count.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        Self { end, answered, task }
    }

    fn answered(&self) -> u64 {
        self.answered.load(Ordering::SeqCst)
    }

    /// Waits for one more answer than there were.
    async fn goes_on(&self, before: u64, way: &str) {
        let what = format!("{way}: the other one is answered");
        eventually(&what, Duration::from_secs(5), || async { (self.answered() > before).then_some(()) }).await;
        assert!(!self.task.is_finished(), "{way}");
    }

    async fn end(self) {
        self.end.store(true, Ordering::SeqCst);
        self.task.await.unwrap();
        assert!(self.answered.load(Ordering::SeqCst) > 50);
    }
}

fn resident(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kib| kib * 1024)
}

/// HAProxy's master and workers: the processes that were started with its file.
fn haproxies(haas: &Installation) -> Vec<u32> {
    let file = haas.layout.haproxy_dir().join("haproxy.cfg").display().to_string();
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.contains(&file)
    })
    .collect()
}

/// The most memory that Haas and HAProxy have taken since the beginning.
struct Memory {
    end: Arc<AtomicBool>,
    most: Arc<[AtomicU64; 2]>,
    before: [u64; 2],
    task: JoinHandle<()>,
}

impl Memory {
    async fn watch(haas: &Installation) -> Self {
        let own = haas.pid();
        let proxies = eventually("HAProxy is there", Duration::from_secs(10), || async {
            Some(haproxies(haas)).filter(|found| found.len() >= 2)
        })
        .await;
        // The worker that is there at the end may be another one: each counts.
        let look = move || {
            let proxy = proxies.iter().filter_map(|pid| resident(*pid)).max();
            [resident(own).unwrap_or_default(), proxy.unwrap_or_default()]
        };
        let before = look();
        assert!(before.iter().all(|bytes| *bytes > MIB), "{before:?}");
        let (end, most) = (Arc::new(AtomicBool::new(false)), Arc::new([AtomicU64::new(0), AtomicU64::new(0)]));
        let (ended, seen) = (Arc::clone(&end), Arc::clone(&most));
        let task = tokio::spawn(async move {
            while !ended.load(Ordering::SeqCst) {
                for (most, now) in seen.iter().zip(look()) {
                    most.fetch_max(now, Ordering::SeqCst);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        Self { end, most, before, task }
    }

    async fn end(self) {
        self.end.store(true, Ordering::SeqCst);
        self.task.await.unwrap();
        for ((who, before), most) in ["Haas", "HAProxy"].iter().zip(self.before).zip(self.most.iter()) {
            let grown = most.load(Ordering::SeqCst).saturating_sub(before);
            println!("{who}: {} MiB, and {} KiB more at most", before / MIB, grown / 1024);
            assert!(grown < GROWTH, "{who} took {} MiB more than {}", grown / MIB, before / MIB);
        }
    }
}

/// What a client sees that reads bytes, whatever they are.
#[derive(Debug, Default)]
struct Seen {
    status: Option<u16>,
    bytes: u64,
    /// Whether the connection was closed by the other side.
    closed: bool,
}

async fn ask(app: &Hoodie, path: &str, patience: Duration) -> Seen {
    let mut stream = TcpStream::connect(("127.0.0.1", app.port)).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", app.host);
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut seen = Seen::default();
    let mut head = Vec::new();
    let reading = async {
        let mut buffer = vec![0; 64 * 1024];
        while seen.bytes < ENOUGH {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => {
                    seen.closed = true;
                    return;
                }
                Ok(read) => {
                    seen.bytes += read as u64;
                    if head.len() < 64 {
                        head.extend_from_slice(&buffer[..read.min(64)]);
                        let head = String::from_utf8_lossy(&head);
                        seen.status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
                    }
                }
            }
        }
    };
    tokio::time::timeout(patience, reading).await.ok();
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_haproxy_it_harms_itself_alone() {
    let scene = Scene::set().await;
    let haas = &scene.haas;
    let hostile = haas.provision("hostile", "notes").await;
    let memory = Memory::watch(haas).await;
    for (way, statuses) in WAYS {
        scene.harms_itself_alone(&hostile, way, statuses, PATIENCE).await;
    }
    // Who asks for much and reads nothing has nobody buffer it.
    let mut idle = Vec::new();
    for _ in 0..16 {
        let mut stream = TcpStream::connect(("127.0.0.1", hostile.port)).await.unwrap();
        let request = format!("GET /x/body HTTP/1.1\r\nhost: {}\r\n\r\n", hostile.host);
        stream.write_all(request.as_bytes()).await.unwrap();
        idle.push(stream);
    }
    tokio::time::sleep(PATIENCE).await;
    drop(idle);
    memory.end().await;
    // It is itself again as soon as it answers like one.
    assert_eq!(hostile.get("/x/ok").await.unwrap().text().await.unwrap(), "ok");
    scene.bystander.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_haas_while_it_wakes_it_harms_itself_alone() {
    let scene = Scene::set().await;
    let haas = &scene.haas;
    let hostile = haas.provision("hostile", "notes").await;
    let memory = Memory::watch(haas).await;
    for (way, statuses) in WAYS {
        haas.order("sleep", "hostile", "notes").await;
        // Held, all of them, and passed on by Haas itself.
        scene.harms_itself_alone(&hostile, way, statuses, 2 * PATIENCE).await;
    }
    memory.end().await;
    // Whoever went away is not held any more: it can be put to sleep, and wakes for the next one.
    haas.order("sleep", "hostile", "notes").await;
    assert_eq!(hostile.get("/x/ok").await.unwrap().text().await.unwrap(), "ok");
    scene.bystander.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_whether_it_is_ready_gives_it_nothing() {
    let scene = Scene::set().await;
    let (haas, bystander) = (&scene.haas, &scene.bystander);
    // Whoever follows a tenant's redirect asks where the tenant can't.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let canary = listener.local_addr().unwrap();
    let ways = WAYS.map(|(way, _)| way.to_owned());
    // Some are good to whom asks at the port, and are looked at through HAProxy then.
    let named = ["garbage", "headers", "early", "silent", "size"].map(|way| format!("named:{way}"));
    let ways: Vec<String> = ways.into_iter().chain(named).chain([format!("redirect:{canary}")]).collect();
    for (number, way) in ways.iter().enumerate() {
        let hostile = haas.provision(&format!("hostile{number}"), "notes").await;
        assert_eq!(hostile.get(&format!("/become/{way}")).await.unwrap().status(), 200);
        haas.order("sleep", &format!("hostile{number}"), "notes").await;
    }
    let memory = Memory::watch(haas).await;
    let before = bystander.answered();
    // Now its first answer is what it is. All of them wake at once.
    let woken = (0..ways.len()).map(|number| haas.hoodie(&format!("hostile{number}"), "notes"));
    let woken: Vec<Hoodie> = woken.collect();
    let all = woken.iter().map(|hostile| ask(hostile, "/", Duration::from_secs(20)));
    let all = futures_util::future::join_all(all).await;
    for (way, seen) in ways.iter().zip(&all) {
        println!("{way}: {seen:?}");
        if way.starts_with("named:") {
            // It is ready as far as anybody looks without its name; whoever waits for it is passed on to it.
            continue;
        }
        // One whose head is good is ready, whatever its body is.
        let good = ["extension", "size", "trailers", "body", "cut", "short", "long", "both"].contains(&way.as_str());
        let expected: &[Option<u16>] = if good { &[Some(200), Some(502), Some(503)] } else { &[Some(503)] };
        assert!(expected.contains(&seen.status), "{way}: {seen:?}");
    }
    assert!(bystander.answered() > before + 50, "the other one is answered meanwhile");
    for number in [0, ways.len() - 1] {
        let user = format!("hostile{number}");
        // They have their turn one after the other, and each is waited for.
        eventually(&format!("{user} has failed"), Duration::from_secs(90), || async {
            (haas.instance(&user, "notes").await["state"] == "failed").then_some(())
        })
        .await;
    }
    for way in ["garbage", "headers", "early", "silent"] {
        let number = ways.iter().position(|known| *known == format!("named:{way}")).unwrap();
        let container = format!("{}-notes", haas.user(&format!("hostile{number}")));
        let told = format!("{container} left alone: its Hoodie answers, but not through HAProxy");
        eventually(&told, Duration::from_secs(90), || async { haas.log().contains(&told).then_some(()) }).await;
        let answers = haas.log().matches(&format!("{container} answers at")).count();
        assert_eq!(answers, 1, "{way}: when it was good");
    }
    memory.end().await;
    let asked = tokio::time::timeout(Duration::from_millis(100), listener.accept()).await;
    assert!(asked.is_err(), "somebody has followed the redirect");
    let parts = haas.control("/readyz").await.unwrap();
    let (status, parts) = (parts.status(), parts.text().await.unwrap());
    assert_eq!(status, 200, "the parts are well: {parts}");
    haas.provision("another", "notes").await;
    scene.bystander.end().await;
}
