//! Attacks over the network from inside a tenant's container, against stand-ins that the tests make themselves. Each has
//! a control that shows what it would reach without the wall, so that none passes for the wrong reason.
//!
//! No packet goes to an address that isn't ours: hosts outside are network namespaces, and each address
//! is seen to lead there before anything is sent to it.
#![allow(clippy::unwrap_used)]

#[path = "support/outside.rs"]
mod outside;
mod support;
#[path = "support/walled.rs"]
mod walled;

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use outside::{Ear, Outside, ip};
use serde_json::{Value, json};
use support::installation::{Installation, docker, node, run, talk};
use support::{eventually, unique};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use walled::{Beside, Walled, address, network};

/// An address of TEST-NET-3 (RFC 5737).
fn documented() -> String {
    format!("203.0.113.{}", rand::random_range(1..255))
}

/// One of the relays of 6to4, which nobody runs any more (RFC 7526); it counts as public.
fn public() -> String {
    format!("192.88.99.{}", rand::random_range(1..255))
}

const METADATA: &str = "169.254.169.254";

/// One thing to be reached.
struct Target {
    what: String,
    kind: &'static str,
    host: String,
    port: u16,
}

fn tcp(what: &str, host: &str, port: u16) -> Target {
    Target { what: what.to_owned(), kind: "tcp", host: host.to_owned(), port }
}

fn udp(what: &str, host: &str, port: u16) -> Target {
    Target { kind: "udp", ..tcp(what, host, port) }
}

/// Tries all of them from inside, at the same time; what came of each.
async fn attack(container: &str, targets: &[Target]) -> Vec<(String, String)> {
    let list: Vec<Value> = targets.iter().map(|t| json!({ "kind": t.kind, "host": t.host, "port": t.port })).collect();
    let words = node(container, include_str!("walls/attack.js"), &Value::from(list).to_string()).await;
    let words: Vec<String> = serde_json::from_str(&words).unwrap();
    targets.iter().map(|target| target.what.clone()).zip(words).collect()
}

fn which(outcome: &[(String, String)], open: bool) -> Vec<String> {
    outcome.iter().filter(|(_, word)| (word == "open") == open).map(|(what, word)| format!("{what}: {word}")).collect()
}

/// The machine's own addresses, but for loopback, and for what other tests have made and will take away.
fn own_addresses(bridge: &str, veth: &str) -> Vec<String> {
    let all = ip(&["-4", "-o", "addr"]);
    let mut found = Vec::new();
    for line in all.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (name, address) = (words[1], words[3].split('/').next().unwrap());
        let others = ["lo", "br-", "haas-", "hv"].iter().any(|prefix| name.starts_with(prefix));
        if name == bridge || name == veth || !others {
            found.push(address.to_owned());
        }
    }
    found
}

/// Alice and Bob, and everything around them that Alice has no business with.
struct Scene {
    outside: Outside,
    ears: Vec<Ear>,
    alice: String,
    bob: String,
    bridge: String,
    /// What Docker keeps from her by itself.
    others: Vec<Target>,
    /// What nobody but the rules keeps from her: this machine, and all that is not public.
    near: Vec<Target>,
    /// What egress "internet" leaves open.
    internet: Vec<Target>,
}

impl Scene {
    async fn set(walled: &Walled) -> Self {
        let haas = &walled.haas;
        for user in ["alice", "bob"] {
            haas.provision(user, "notes").await.sign_up("carol").await;
        }
        let (alice, bob) = (haas.container("alice", "notes"), haas.container("bob", "notes"));
        let (documented, public) = (documented(), public());
        let outside = Outside::new(&[&documented, &public, METADATA]).await;
        let (_, bridge, gateway) = network(&alice).await;
        // In place of Postgres on TCP, of HAProxy on every address, and of whatever else listens there.
        let (postgres, service) = (Ear::on_the_host(&format!("{gateway}:0")), Ear::on_the_host("0.0.0.0:0"));
        let datagrams = Ear::on_the_host_udp("0.0.0.0:0");
        let (web, name_server) = (outside.listen(80), outside.listen_udp(&documented, 53));
        let public_name_server = outside.listen_udp(&public, 53);
        let own = own_addresses(&bridge, &outside.veth);
        assert!(own.contains(&outside.here) && own.contains(&gateway) && own.contains(&docker0().await), "{own:?}");
        let mut near = vec![
            tcp("Postgres on the gateway's address", &gateway, postgres.port),
            udp("a datagram to the host", &gateway, datagrams.port),
            tcp("metadata, link-local", METADATA, web.port),
            tcp("a neighbour in a private network", &outside.private, web.port),
            tcp("a host at a documentation address", &documented, web.port),
            udp("a name server at a documentation address", &documented, name_server.port),
        ];
        for address in &own {
            near.push(tcp(&format!("a port of the host's at {address}"), address, service.port));
        }
        let others = vec![tcp("Bob's container", &address(&bob).await, 80)];
        let internet = vec![
            tcp("a public host", &public, web.port),
            udp("a public name server", &public, public_name_server.port),
        ];
        let scene = Self {
            outside,
            ears: vec![postgres, service, datagrams, web, name_server, public_name_server],
            alice,
            bob,
            bridge,
            others,
            near,
            internet,
        };
        let from = address(&scene.alice).await;
        for target in scene.near.iter().chain(&scene.internet) {
            scene.outside.insist(&target.host, None);
            scene.outside.insist(&target.host, Some((&from, &scene.bridge)));
        }
        scene
    }

    fn heard(&self) -> usize {
        self.ears.iter().map(Ear::count).sum()
    }

    /// Without rules everything but Bob is open to her: the attacks are real ones.
    async fn control(&self) {
        let outcome = attack(&self.alice, &self.near).await;
        assert_eq!(which(&outcome, false), Vec::<String>::new(), "without the wall each is reached");
        let outcome = attack(&self.alice, &self.internet).await;
        assert_eq!(which(&outcome, false), Vec::<String>::new());
        assert!(self.heard() >= self.near.len() + self.internet.len(), "and hears her");
        // Bob listens, and her attack would get through to what listens there: it does to herself.
        let own = [tcp("herself", &address(&self.alice).await, 80)];
        assert_eq!(which(&attack(&self.alice, &own).await, true).len(), 1);
        let within = [tcp("Bob, from within", "127.0.0.1", 80)];
        assert_eq!(which(&attack(&self.bob, &within).await, true).len(), 1, "Bob listens");
    }
}

async fn docker0() -> String {
    docker(&["network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}"]).await
}

#[tokio::test]
async fn with_egress_none_a_tenant_reaches_nothing() {
    let walled = Walled::up("").await;
    let haas = &walled.haas;
    let scene = Scene::set(&walled).await;
    assert_eq!(walled.rules().await, Vec::<String>::new(), "the server puts none in");
    let (code, doctor, _) = haas.haas(&["doctor"]).await;
    assert_eq!(code, 0, "{doctor}");
    assert!(
        doctor.contains("WARNING  firewall   tenants on") && doctor.contains("haas firewall --install"),
        "{doctor}"
    );
    scene.control().await;

    walled.install().await;
    let before = scene.heard();
    let outcome_near = attack(&scene.alice, &scene.near).await;
    assert_eq!(which(&outcome_near, true), Vec::<String>::new());
    assert_eq!(which(&attack(&scene.alice, &scene.internet).await, true), Vec::<String>::new());
    let outcome = attack(&scene.alice, &scene.others).await;
    assert_eq!(outcome[0].1, "ECONNREFUSED", "the wall refuses before Docker drops");
    assert_eq!(scene.heard(), before, "nobody has heard anything");
    for (target, (what, word)) in scene.near.iter().zip(&outcome_near) {
        assert!(target.kind != "tcp" || word == "ECONNREFUSED", "{what}: {word}: she is told at once");
    }

    // Apps answer as before, those that were there and a new one: readiness is asked through the wall.
    for user in ["alice", "bob"] {
        assert!(haas.hoodie(user, "notes").knows("carol").await, "{user}");
    }
    haas.provision("late", "notes").await.sign_up("dave").await;
    haas.order("sleep", "bob", "notes").await;
    assert!(haas.hoodie("bob", "notes").knows("carol").await, "a request wakes him");
    let (code, doctor, _) = haas.haas(&["doctor"]).await;
    assert_eq!(code, 0, "{doctor}");
    assert!(
        doctor.contains(&format!("ok       firewall   tenants on {} are walled off; egress none", scene.bridge)),
        "{doctor}"
    );
    assert_eq!(scene.bridge, format!("haas-{}", walled.short()), "known before there was one");

    // Somebody deletes a rule.
    let chain = format!("HAAS-{}-INPUT", walled.short());
    run("iptables", &["-w", "20", "-D", &chain, "-j", &format!("HAAS-{}-REFUSE", walled.short())]).await;
    let (code, out, _) = walled.firewall(&["--check"]).await;
    assert_eq!(code, 3, "{out}");
    assert!(out.contains(&format!("IPv4: {chain} lacks `-j ")), "{out}");
    let (_, doctor, _) = haas.haas(&["doctor"]).await;
    assert!(doctor.contains("WARNING  firewall") && doctor.contains(&format!("{chain} lacks")), "{doctor}");
    let open = attack(&scene.alice, &scene.near[..1]).await;
    assert_eq!(open[0].1, "open", "it was right to complain");
    walled.install().await;
    assert_eq!(which(&attack(&scene.alice, &scene.near).await, true), Vec::<String>::new());
    let rules = walled.rules().await;
    walled.install().await;
    assert_eq!(walled.rules().await, rules, "twice is once");
    let (code, out, errors) = walled.firewall(&["--check"]).await;
    assert_eq!(code, 0, "{out}{errors}");

    let (code, out, _) = walled.firewall(&["--remove"]).await;
    assert_eq!((code, walled.rules().await), (0, Vec::new()), "{out}");
    scene.control().await;
}

#[tokio::test]
async fn with_egress_internet_a_tenant_reaches_public_addresses_alone() {
    let haas = Installation::up_with("").await;
    let id = haas.sql("SELECT id FROM installation").await;
    // As networks were made before their bridges had names.
    let name = format!("haas-{}", id.replace('-', ""));
    docker(&[
        "network",
        "create",
        "-o",
        "com.docker.network.bridge.enable_icc=false",
        "--label",
        &format!("haas.installation={id}"),
        &name,
    ])
    .await;
    let walled = Walled { haas, id };
    let scene = Scene::set(&walled).await;
    assert!(scene.bridge.starts_with("br-"), "{}", scene.bridge);
    scene.control().await;

    walled.install_with("internet").await;
    let before = scene.heard();
    let outcome = attack(&scene.alice, &scene.near).await;
    assert_eq!(which(&outcome, true), Vec::<String>::new());
    assert_eq!(attack(&scene.alice, &scene.others).await[0].1, "ECONNREFUSED");
    assert_eq!(scene.heard(), before);
    let outcome = attack(&scene.alice, &scene.internet).await;
    assert_eq!(which(&outcome, false), Vec::<String>::new(), "public addresses are open");
    assert!(walled.haas.hoodie("alice", "notes").knows("carol").await);

    // What she has begun while she might ends with it: a wall is no wall for whom it lets go on.
    let script = "const s=require('net').connect({host:process.argv[1].split(' ')[0],port:+process.argv[1].split(' ')[1]});\
        s.on('error',()=>{});s.on('data',()=>console.log('connected'));\
        process.stdin.on('data',d=>s.write(d));";
    let target = format!("{} {}", scene.internet[0].host, scene.internet[0].port);
    let (mut talking, mut stdin, mut lines) = talk(&scene.alice, script, &target);
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "connected");
    stdin.write_all(b"allowed").await.unwrap();
    let web = &scene.ears[3];
    eventually("her words arrive", Duration::from_secs(10), || async { web.heard("allowed").then_some(()) }).await;
    walled.install_with("none").await;
    stdin.write_all(b"forbidden").await.unwrap();
    // A new attempt, which comes after it, has its answer.
    assert_eq!(which(&attack(&scene.alice, &scene.internet).await, true), Vec::<String>::new());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!web.heard("forbidden"));
    talking.kill().await.unwrap();
}

#[tokio::test]
async fn no_moment_is_open_while_the_rules_are_put_in_anew() {
    let walled = Walled::up("").await;
    let alice = walled.haas.container("alice", "notes");
    walled.haas.provision("alice", "notes").await;
    let documented = documented();
    let outside = Outside::new(&[&documented]).await;
    let ear = outside.listen_udp(&documented, 9);
    let (_, bridge, _) = network(&alice).await;
    outside.insist(&documented, Some((&address(&alice).await, &bridge)));
    // A datagram each millisecond or so, for as long as its input is open.
    let script = "const s=require('dgram').createSocket('udp4');s.on('error',()=>{});let n=0;\
        const t=setInterval(()=>{n++;s.send('attack',9,process.argv[1],()=>{})},1);\
        console.log('begun');process.stdin.resume();process.stdin.on('end',()=>{console.log(n);process.exit()});";
    let (_sending, stdin, mut lines) = talk(&alice, script, &documented);
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "begun");
    eventually("it is heard", Duration::from_secs(10), || async { (ear.count() > 10).then_some(()) }).await;
    walled.install().await;
    // What was on its way is there.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let before = ear.count();
    let chain = format!("HAAS-{}-FORWARD", walled.short());
    for round in 0..15 {
        // Behind the rule that refuses all, so that it opens nothing; and it has to go.
        run("iptables", &["-w", "20", "-A", &chain, "-j", "RETURN"]).await;
        walled.install().await;
        let last = walled.rules().await.into_iter().rfind(|line| line.starts_with(&format!("-A {chain} ")));
        assert!(last.is_some_and(|rule| !rule.ends_with("RETURN") || rule.contains("conntrack")), "round {round}");
    }
    drop(stdin);
    let sent: usize = lines.next_line().await.unwrap().unwrap().parse().unwrap();
    assert!(sent > 100, "{sent}");
    assert_eq!(ear.count(), before, "none of {sent} got through");
    walled.firewall(&["--remove"]).await;
}

#[tokio::test]
async fn no_name_leaves_through_dockers_resolver() {
    let walled = Walled::up("").await;
    let haas = &walled.haas;
    haas.provision("alice", "notes").await;
    let alice = haas.container("alice", "notes");
    let (_, bridge, _) = network(&alice).await;
    let documented = documented();
    let outside = Outside::new(&[&documented]).await;
    let name_server = outside.listen_udp(&documented, 53);
    // Where a resolver of the machine's own would be, if hers were asked from the engine's network.
    let on_loopback = eventually("nobody else has 127.0.0.1:53", Duration::from_mins(2), || async {
        Ear::try_on_the_host_udp("127.0.0.1:53").ok()
    })
    .await;
    let mut sniffer = Sniffer::start().await;
    let lookup = "const d=require('dns');const n=process.argv[1];const r=new d.Resolver({timeout:500,tries:1});\
        d.lookup(n,(e)=>r.resolve4(n,(f)=>r.resolveTxt(n,(g)=>{console.log([e,f,g].map(x=>x?x.code:'ok').join(' '));process.exit()})));";
    let word = |what: &str| format!("{what}-{}", unique());

    // The control: a container on the same network with a resolver outside, as Docker passes names on.
    let control = word("control");
    outside.insist(&documented, None);
    let beside = Beside::start(&walled, &alice, &["--dns", &documented]).await;
    outside.insist(&documented, Some((&address(&beside.0).await, &bridge)));
    node(&beside.0, lookup, &control).await;
    assert!(name_server.heard(&control), "Docker's resolver asks whom it is told to");
    sniffer.saw(&control).await;
    let aside = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    aside.send_to(b"a question from the host", "127.0.0.1:53").unwrap();
    eventually("it hears the host", Duration::from_secs(5), || async {
        on_loopback.heard("a question from the host").then_some(())
    })
    .await;
    drop(beside);

    // She asks: without rules and with them, no packet leaves.
    for walls in [false, true] {
        if walls {
            walled.install().await;
        }
        let secret = word("secret");
        let began = Instant::now();
        let outcome = node(&alice, lookup, &secret).await;
        assert!(!outcome.contains("ok"), "{outcome}");
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
        // What was sent before the next one is seen has been seen.
        let after = word("after");
        aside.send_to(after.as_bytes(), "127.0.0.1:53").unwrap();
        sniffer.saw(&after).await;
        assert!(!sniffer.has_seen(&secret), "walls {walls}");
        assert!(!name_server.heard(&secret) && !on_loopback.heard(&secret));
    }
    // Nor straight to a name server.
    let straight = [udp("a name server", &documented, 53)];
    assert_ne!(attack(&alice, &straight).await[0].1, "open");
    walled.firewall(&["--remove"]).await;
    assert_eq!(attack(&alice, &straight).await[0].1, "open", "without the wall it is reached");
}

/// Sees every packet to or from a name server, on every interface that this machine has.
struct Sniffer {
    child: tokio::process::Child,
    lines: tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
    seen: String,
}

impl Sniffer {
    async fn start() -> Self {
        let mut child = tokio::process::Command::new("tcpdump")
            .args(["-i", "any", "-n", "-l", "-U", "-A", "--immediate-mode", "udp port 53 or tcp port 53"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("tcpdump: scripts/install-deps --test");
        let mut errors = BufReader::new(child.stderr.take().unwrap()).lines();
        while let Some(line) = errors.next_line().await.unwrap() {
            if line.contains("listening on") {
                break;
            }
        }
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines, seen: String::new() }
    }

    /// Waits until a word was seen.
    async fn saw(&mut self, word: &str) {
        assert!(matches!(self.child.try_wait(), Ok(None)), "tcpdump has ended");
        let reading = async {
            while !self.seen.contains(word) {
                let line = self.lines.next_line().await.unwrap().expect("tcpdump goes on");
                self.seen.push_str(&line);
                self.seen.push('\n');
            }
        };
        tokio::time::timeout(Duration::from_secs(10), reading).await.unwrap_or_else(|_| panic!("{word} was not seen"));
    }

    fn has_seen(&self, word: &str) -> bool {
        self.seen.contains(word)
    }
}

#[tokio::test]
async fn egress_is_a_part_of_what_a_container_is_made_of() {
    let mut haas = Installation::up_with("[tenant]\negress = \"internet\"").await;
    haas.provision("alice", "notes").await.sign_up("carol").await;
    let alice = haas.container("alice", "notes");
    let dns = "{{json .HostConfig.Dns}}";
    let own = docker(&["inspect", &alice, "--format", dns]).await;
    assert!(["null", "[]"].contains(&own.as_str()), "Docker's own: {own}");
    // As its row was written before there was egress.
    haas.sql("UPDATE instances SET spec = spec - 'egress'").await;
    haas.stop().await;
    std::fs::write(haas.dir.path().join("haas.toml"), "").unwrap();
    let made = docker(&["inspect", &alice, "--format", "{{.Id}}"]).await;
    haas.start().await;
    haas.running_again("alice", "notes", Duration::from_secs(30)).await;
    assert_eq!(docker(&["inspect", &alice, "--format", "{{.Id}}"]).await, made, "an older one is left as it is");
    let (_, doctor, _) = haas.haas(&["doctor"]).await;
    assert!(doctor.contains("1 app(s) were made for another tenant.egress"), "{doctor}");
    let (code, out, errors) = haas.haas(&["roll"]).await;
    assert_eq!(code, 0, "{out}{errors}");
    assert_eq!(docker(&["inspect", &alice, "--format", dns]).await, "[\"127.0.0.1\"]");
    assert!(haas.hoodie("alice", "notes").knows("carol").await);
    let (_, doctor, _) = haas.haas(&["doctor"]).await;
    assert!(!doctor.contains("another tenant.egress"), "{doctor}");
}

#[tokio::test]
async fn no_ipv6_reaches_the_host() {
    assert!(Path::new("/proc/sys/net/ipv6").exists(), "this kernel has no IPv6, and nothing can be shown");
    let walled = Walled::up("").await;
    let haas = &walled.haas;
    haas.provision("alice", "notes").await;
    let alice = haas.container("alice", "notes");
    let (net, bridge, _) = network(&alice).await;
    assert_eq!(docker(&["network", "inspect", &net, "--format", "{{.EnableIPv6}}"]).await, "false");
    let ear = Ear::on_the_host("[::]:0");
    let links = ip(&["-6", "-o", "addr", "show", "dev", &bridge, "scope", "link"]);
    let link_local = links.split_whitespace().nth(3).unwrap().split('/').next().unwrap().to_owned();
    // A container that has IPv6 on its interface, as tenants have not.
    let six = ["--sysctl", "net.ipv6.conf.all.disable_ipv6=0", "--sysctl", "net.ipv6.conf.default.disable_ipv6=0"];
    let beside = Beside::start(&walled, &alice, &six).await;
    let target = [tcp("the host, link-local", &format!("{link_local}%eth0"), ear.port)];
    // Its address is there a moment later (RFC 4862, duplicate address detection).
    eventually("the host is reached by IPv6 without the wall", Duration::from_secs(15), || async {
        (attack(&beside.0, &target).await[0].1 == "open").then_some(())
    })
    .await;
    assert_ne!(attack(&alice, &target).await[0].1, "open", "a tenant has no IPv6 at all");
    let addresses = node(&alice, "console.log(JSON.stringify(require('os').networkInterfaces()))", "").await;
    assert!(!addresses.contains("IPv6"), "{addresses}");
    walled.install().await;
    let before = ear.count();
    assert_ne!(attack(&beside.0, &target).await[0].1, "open", "the wall is there for whoever had it");
    assert_eq!(ear.count(), before);
}
