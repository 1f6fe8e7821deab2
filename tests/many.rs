//! Many tenants, of whom few are awake: whoever is asked answers with data of its own, no request
//! fails, and at no time are more of them awake than may be. On the real engine, database and proxy.
//!
//! Small by default; `HAAS_TEST_MANY=full` is the size of docs/benchmarks.md. `HAAS_TEST_SEED` is
//! another walk.
#![allow(clippy::unwrap_used)]

#[path = "many/history.rs"]
mod history;
mod support;
#[path = "many/watch.rs"]
mod watch;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use haas::embedded::Layout;
use history::{Counts, History};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::{Client, Method, RequestBuilder};
use serde_json::{Value, json};
use support::cluster::sql;
use support::installation::Installation;
use support::{eventually, ports_for};
use tokio::task::JoinSet;
use watch::Watch;

struct Size {
    tenants: usize,
    /// How many may be awake.
    awake: usize,
    /// Fewer than may be awake: each keeps one busy.
    clients: usize,
    walk: Duration,
}

const SMALL: Size = Size { tenants: 12, awake: 4, clients: 3, walk: Duration::from_secs(20) };
const FULL: Size = Size { tenants: 200, awake: 20, clients: 6, walk: Duration::from_secs(180) };

const APP: &str = "notes";
/// Tenants that are provisioned at the same time.
const LANES: usize = 3;
/// Requests of a burst.
const BURST: usize = 10;
/// A request that takes longer has failed.
const PATIENCE: Duration = Duration::from_mins(1);
/// Between two looks at what runs.
const LOOK: Duration = Duration::from_millis(150);
const JSON_API: &str = "application/vnd.api+json";
/// What clients do, and how often of a hundred times.
const WHATS: [(&str, u32); 6] =
    [("page", 40), ("account", 15), ("stranger", 10), ("write", 12), ("read", 15), ("burst", 8)];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_asked_answers_and_no_more_are_awake_than_may_be() {
    let size = if std::env::var("HAAS_TEST_MANY").is_ok_and(|size| size == "full") { FULL } else { SMALL };
    let seed = std::env::var("HAAS_TEST_SEED").map_or(1, |seed| seed.parse().unwrap());
    let settings = format!("[http]\nwait = \"50s\"\n[lifecycle]\nmax_awake = {}\n", size.awake);
    let mut haas = Installation::prepared(&settings);
    haas.ports = ports_for(u16::try_from(size.tenants + 10).unwrap());
    haas.start().await;
    let watch = Watch::start(&haas.sql("SELECT id FROM installation").await, size.awake);
    let load = Arc::new(Load::new(&haas, size.tenants));

    let began = Instant::now();
    let new = stream::iter(0..size.tenants).map(|number| load.settle_in(&haas, number)).buffer_unordered(LANES);
    new.collect::<Vec<()>>().await;
    load.take_stock("settling in", began);
    watch.assert_bounds();
    let settled = Counts::of(&haas).await;
    assert!(settled.evictions >= size.tenants - size.awake, "all but {} had to make room: {settled:?}", size.awake);

    let began = Instant::now();
    let mut visits = JoinSet::new();
    for client in 0..size.clients {
        visits.spawn(visit_all(Arc::clone(&load), client, size.clients));
    }
    visits.join_all().await;
    load.take_stock("a visit to each", began);
    watch.assert_bounds();
    let visited = Counts::of(&haas).await;
    let woken = visited.wakes - settled.wakes;
    assert!(woken >= size.tenants - size.awake, "most of them slept, but only {woken} were woken");

    let began = Instant::now();
    let mut walks = JoinSet::new();
    for client in 0..size.clients {
        walks.spawn(walk(Arc::clone(&load), haas.layout.clone(), seed * 1000 + client as u64));
    }
    tokio::time::sleep(size.walk).await;
    load.over.store(true, Ordering::SeqCst);
    walks.join_all().await;
    let asked = load.take_stock(&format!("a walk with seed {seed}"), began);
    watch.assert_bounds();
    for (what, _) in WHATS {
        assert!(asked.get(what).is_some_and(|count| *count > 0), "the walk had no {what}: {asked:?}");
    }

    let counts = Counts::of(&haas).await;
    let (wakes, evictions) = (counts.wakes - visited.wakes, counts.evictions - visited.evictions);
    eprintln!("in the walk: {wakes} wakes, {evictions} evictions; all in all {counts:?}");
    eprintln!("{}", watch.report());
    let history = History::of(&haas, size.awake).await;
    eprintln!("{history}");
    assert_eq!(history.needless, 0, "somebody was put to sleep for nobody");
    assert!(wakes > 0 && evictions > 0, "{wakes} wakes, {evictions} evictions");
    assert_eq!(counts.failures, 0, "{counts:?}");
    // Who is up was provisioned or woken, and not put to sleep since.
    assert_eq!(size.tenants + counts.wakes - counts.sleeps, counts.up, "{counts:?}");
    assert!(counts.up <= size.awake, "{counts:?}");
    assert!(counts.starts <= size.tenants + counts.wakes, "one start for each wake at most: {counts:?}");
    assert!(watch.starts() >= size.tenants, "the engine told of {} starts", watch.starts());
}

/// One tenant, and what its owner has written.
struct Tenant {
    user: String,
    host: String,
    owner: String,
    notes: Mutex<Vec<u64>>,
}

/// What the clients share.
struct Load {
    port: u16,
    tenants: Vec<Tenant>,
    over: AtomicBool,
    notes: AtomicU64,
    times: Mutex<Vec<(&'static str, Duration)>>,
    failures: Mutex<Vec<String>>,
}

impl Load {
    fn new(haas: &Installation, tenants: usize) -> Self {
        let tenant = |number: usize| {
            let user = format!("{number:03}");
            let host = haas.hoodie(&user, APP).host;
            Tenant { user, host, owner: format!("owner-{number}"), notes: Mutex::default() }
        };
        Self {
            port: haas.ports.http,
            tenants: (0..tenants).map(tenant).collect(),
            over: AtomicBool::new(false),
            notes: AtomicU64::new(0),
            times: Mutex::default(),
            failures: Mutex::default(),
        }
    }

    fn over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    fn fail(&self, what: &'static str, tenant: &Tenant, why: &str) {
        self.failures.lock().unwrap().push(format!("{what} at {}: {why}", tenant.host));
    }

    fn request(&self, client: &Client, method: Method, tenant: &Tenant, path: &str) -> RequestBuilder {
        client.request(method, format!("http://127.0.0.1:{}{path}", self.port)).header("host", &tenant.host)
    }

    /// Sends a request that has to be answered so; returns the answer's body if it was.
    async fn ask(&self, what: &'static str, tenant: &Tenant, request: RequestBuilder, status: u16) -> Option<String> {
        let began = Instant::now();
        let answer = async {
            let answer = request.send().await?;
            Ok::<_, reqwest::Error>((answer.status().as_u16(), answer.text().await?))
        };
        let answer = answer.await;
        self.times.lock().unwrap().push((what, began.elapsed()));
        match answer {
            Ok((found, body)) if found == status => return Some(body),
            Ok((found, body)) => self.fail(what, tenant, &format!("{found} instead of {status}: {body}")),
            Err(error) => self.fail(what, tenant, &format!("{error:?}")),
        }
        None
    }

    /// Sends a request whose answer has to be JSON and to have this at this place.
    async fn ask_for(
        &self,
        what: &'static str,
        tenant: &Tenant,
        request: RequestBuilder,
        status: u16,
        (place, expected): (&str, &str),
    ) -> Option<Value> {
        let body = self.ask(what, tenant, request, status).await?;
        let told: Value = serde_json::from_str(&body).unwrap_or_default();
        if told.pointer(place).is_some_and(|found| found == expected) {
            return Some(told);
        }
        self.fail(what, tenant, &format!("{place} is not {expected}: {body}"));
        None
    }

    /// Provisions a tenant, and makes the account and the database of its owner.
    async fn settle_in(&self, haas: &Installation, number: usize) {
        let (client, tenant) = (client(), &self.tenants[number]);
        let answer = haas.post("/provision", &haas.request(&tenant.user, APP)).await.unwrap();
        let status = answer.status();
        assert_eq!(status, 201, "{}: {}", tenant.user, answer.text().await.unwrap());
        let account = json!({ "data": { "type": "account", "id": format!("id-{}", tenant.owner),
            "attributes": { "username": tenant.owner, "password": format!("password of {}", tenant.owner) } } });
        let request = self.request(&client, Method::PUT, tenant, "/hoodie/account/api/session/account");
        let request = request.header("content-type", JSON_API).body(account.to_string());
        self.ask_for("sign-up", tenant, request, 201, ("/data/attributes/username", &tenant.owner)).await;
        let Some(token) = self.sign_in(&client, tenant).await else { return };
        // A Hoodie lets its owner in a moment after it has answered the sign-up.
        eventually("the owner may make the database", Duration::from_secs(10), || async {
            let request = self.request(&client, Method::PUT, tenant, &tenant.database());
            let answer = request.header("authorization", &token).send().await.unwrap();
            let status = answer.status().as_u16();
            assert!(status == 201 || status == 401, "{status}: {}", answer.text().await.unwrap());
            (status == 201).then_some(())
        })
        .await;
    }

    /// Signs a tenant's owner in.
    async fn sign_in(&self, client: &Client, tenant: &Tenant) -> Option<String> {
        let request = self.session(client, tenant, &tenant.owner);
        let told =
            self.ask_for("sign-in", tenant, request, 201, ("/included/0/attributes/username", &tenant.owner)).await?;
        Some(format!("Session {}", told["data"]["id"].as_str()?))
    }

    fn session(&self, client: &Client, tenant: &Tenant, owner: &str) -> RequestBuilder {
        let body = json!({ "data": { "type": "session",
            "attributes": { "username": owner, "password": format!("password of {owner}") } } });
        let request = self.request(client, Method::PUT, tenant, "/hoodie/account/api/session");
        request.header("content-type", JSON_API).body(body.to_string())
    }

    /// Its neighbour's owner is unknown here.
    async fn stranger(&self, client: &Client, number: usize) {
        let neighbour = &self.tenants[(number + 1) % self.tenants.len()];
        let tenant = &self.tenants[number];
        self.ask("stranger", tenant, self.session(client, tenant, &neighbour.owner), 401).await;
    }

    async fn page(&self, what: &'static str, client: &Client, tenant: &Tenant) {
        let request = self.request(client, Method::GET, tenant, "/hoodie/");
        if let Some(page) = self.ask(what, tenant, request, 200).await
            && !(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"))
        {
            self.fail(what, tenant, &format!("not the whole page: {page}"));
        }
    }

    async fn account(&self, client: &Client, tenant: &Tenant, token: &str) {
        let request = self.request(client, Method::GET, tenant, "/hoodie/account/api/session/account");
        let request = request.header("authorization", token);
        self.ask_for("account", tenant, request, 200, ("/data/attributes/username", &tenant.owner)).await;
    }

    async fn write(&self, client: &Client, tenant: &Tenant, token: &str) {
        let number = self.notes.fetch_add(1, Ordering::SeqCst);
        let notes = json!({ "docs": [{ "_id": format!("note-{number}"), "text": text(tenant, number) }] });
        let path = format!("{}/_bulk_docs", tenant.database());
        let request = self.request(client, Method::POST, tenant, &path).header("authorization", token);
        let request = request.header("content-type", "application/json").body(notes.to_string());
        if self.ask_for("write", tenant, request, 201, ("/0/id", &format!("note-{number}"))).await.is_some() {
            tenant.notes.lock().unwrap().push(number);
        }
    }

    /// One of those whose owners have written something, if there is any.
    fn pick_written(&self, rng: &mut StdRng) -> usize {
        let written = |number: &usize| !self.tenants[*number].notes.lock().unwrap().is_empty();
        let written: Vec<usize> = (0..self.tenants.len()).filter(written).collect();
        written.get(rng.random_range(0..written.len().max(1))).copied().unwrap_or_default()
    }

    /// Reads a note that was written before.
    async fn read(&self, client: &Client, tenant: &Tenant, token: &str, rng: &mut StdRng) {
        let notes = tenant.notes.lock().unwrap().clone();
        if notes.is_empty() {
            return;
        }
        let number = notes[rng.random_range(0..notes.len())];
        let path = format!("{}/note-{number}", tenant.database());
        let request = self.request(client, Method::GET, tenant, &path).header("authorization", token);
        self.ask_for("read", tenant, request, 200, ("/text", &text(tenant, number))).await;
    }

    /// Prints and forgets the times; nothing may have failed. Says what was asked how often.
    fn take_stock(&self, of: &str, began: Instant) -> BTreeMap<&'static str, usize> {
        let taken = began.elapsed();
        let mut asked = BTreeMap::new();
        let mut times = Vec::new();
        for (what, time) in std::mem::take(&mut *self.times.lock().unwrap()) {
            *asked.entry(what).or_insert(0) += 1;
            times.push(time);
        }
        times.sort();
        // The figure that so many percent are not above (nearest rank).
        let at = |percent: usize| times[(times.len() * percent).div_ceil(100).max(1) - 1].as_millis();
        assert!(!times.is_empty(), "{of}: nobody was asked");
        let failures = std::mem::take(&mut *self.failures.lock().unwrap());
        eprintln!(
            "{of}: {} requests in {:.1} s, {} failures; p50 {} ms, p95 {} ms, p99 {} ms, max {} ms; {asked:?}",
            times.len(),
            taken.as_secs_f64(),
            failures.len(),
            at(50),
            at(95),
            at(99),
            at(100),
        );
        assert!(failures.is_empty(), "{of}: {} failed: {:#?}", failures.len(), &failures[..failures.len().min(20)]);
        asked
    }
}

impl Tenant {
    /// Where its owner's notes are.
    fn database(&self) -> String {
        format!("/hoodie/store/api/user%2Fid-{}", self.owner)
    }
}

/// What a note says: nobody else's says the same.
fn text(tenant: &Tenant, number: u64) -> String {
    format!("{} of {} ", number, tenant.owner).repeat(usize::try_from(number % 10).unwrap() * 100 + 1)
}

fn client() -> Client {
    // Shorter than HAProxy keeps a connection: it never closes one under a request.
    Client::builder().no_proxy().timeout(PATIENCE).pool_idle_timeout(Duration::from_secs(30)).build().unwrap()
}

/// Asks each of the tenants whose turn it is for its own owner and for its neighbour's.
async fn visit_all(load: Arc<Load>, first: usize, step: usize) {
    let client = client();
    for number in (first..load.tenants.len()).step_by(step) {
        let tenant = &load.tenants[number];
        load.page("page", &client, tenant).await;
        if let Some(token) = load.sign_in(&client, tenant).await {
            load.account(&client, tenant, &token).await;
        }
        load.stranger(&client, number).await;
    }
}

/// Goes from tenant to tenant, signs in, and stays for some requests. Each thing is done once, then
/// whatever comes.
async fn walk(load: Arc<Load>, layout: Layout, seed: u64) {
    let (client, mut rng) = (client(), StdRng::seed_from_u64(seed));
    let mut firsts = WHATS.iter().map(|(what, _)| *what);
    let mut stay: Option<(usize, String)> = None;
    while !load.over() {
        let what = firsts.next().unwrap_or_else(|| choose(&mut rng));
        let stays = rng.random_ratio(3, 5);
        let number = match &stay {
            // Something can be read only where it was written.
            _ if what == "read" => load.pick_written(&mut rng),
            Some((number, _)) if stays => *number,
            _ => rng.random_range(0..load.tenants.len()),
        };
        let tenant = &load.tenants[number];
        // A session outlives its Hoodie's sleep.
        let token = match stay.take() {
            Some((at, token)) if at == number => token,
            _ => match load.sign_in(&client, tenant).await {
                Some(token) => token,
                None => continue,
            },
        };
        match what {
            "page" => load.page("page", &client, tenant).await,
            "account" => load.account(&client, tenant, &token).await,
            "stranger" => load.stranger(&client, number).await,
            "write" => load.write(&client, tenant, &token).await,
            "read" => load.read(&client, tenant, &token, &mut rng).await,
            _ => {
                // Many at once to one that sleeps.
                let asleep = "SELECT host FROM instances WHERE phase = 'asleep' ORDER BY host";
                let asleep = sql(&layout, asleep).await.unwrap();
                let hosts: Vec<&str> = asleep.lines().collect();
                if !hosts.is_empty() {
                    let host = hosts[rng.random_range(0..hosts.len())];
                    let tenant = load.tenants.iter().find(|tenant| tenant.host == host).unwrap();
                    join_all((0..BURST).map(|_| load.page("burst", &client, tenant))).await;
                }
            }
        }
        stay = Some((number, token));
        tokio::time::sleep(Duration::from_millis(rng.random_range(10..100))).await;
    }
}

fn choose(rng: &mut StdRng) -> &'static str {
    let mut left = rng.random_range(0..WHATS.iter().map(|(_, of_hundred)| of_hundred).sum());
    for (what, of_hundred) in WHATS {
        if left < of_hundred {
            return what;
        }
        left -= of_hundred;
    }
    unreachable!("the shares are a hundred together")
}
