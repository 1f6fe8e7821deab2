//! The parts that `haas up` runs, for real: each test has a folder, a cluster and an HAProxy of
//! its own.

#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use diesel::sql_types::Integer;
use diesel::{QueryableByName, sql_query};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use haas::embedded::{DirLock, EmbeddedError, HaproxyProcess, Layout, Postgres, Started, supervise};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

const HAPROXY: &str = "haproxy";

/// A folder whose processes end with the test, however that ends.
struct World {
    dir: TempDir,
    layout: Layout,
    address: SocketAddrV4,
}

impl World {
    fn new() -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(&dir.path().join("var")).unwrap();
        layout.create().unwrap();
        // A loopback address of one's own, so that no two tests meet on a port.
        let [high, low] = u16::try_from(std::process::id() % 65_000).unwrap().to_be_bytes();
        let address = Ipv4Addr::new(127, high, low, NEXT.fetch_add(1, Ordering::Relaxed));
        let world = Self { dir, layout, address: SocketAddrV4::new(address, 18_080) };
        world.write_cfg("");
        world
    }

    fn write_cfg(&self, more: &str) {
        let text = format!(
            "global\n  stats socket {} mode 600 level admin\n  log stdout format raw local0\n{more}\n\
             defaults\n  mode http\n  timeout connect 1s\n  timeout client 1m\n  timeout server 1m\n\
             frontend all\n  bind {}\n  http-request return status 200 content-type text/plain string hello\n",
            self.layout.stats_socket().display(),
            self.address,
        );
        fs::write(self.layout.haproxy_dir().join("haproxy.cfg"), text).unwrap();
    }

    async fn ensure_haproxy(&self) -> Result<Started, EmbeddedError> {
        HaproxyProcess::ensure(&self.layout, Path::new(HAPROXY)).await
    }

    fn postmaster(&self) -> i32 {
        let text = fs::read_to_string(self.layout.postgres_data().join("postmaster.pid")).unwrap();
        text.lines().next().unwrap().parse().unwrap()
    }

    fn master(&self) -> i32 {
        let masters = self.pids().into_iter().filter(|pid| arguments(*pid).contains(" -W -S "));
        masters.min_by_key(|pid| stat(*pid, 19)).unwrap()
    }

    /// Everything that works in the folder or has it among its arguments.
    fn pids(&self) -> Vec<i32> {
        let entries = fs::read_dir("/proc").unwrap();
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let us = i32::try_from(std::process::id()).unwrap();
        let ours = |pid: &i32| {
            let in_it = fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(self.dir.path()));
            *pid != us && (in_it || arguments(*pid).contains(self.dir.path().to_str().unwrap()))
        };
        pids.filter(ours).collect()
    }

    fn haproxy_answers(&self) -> bool {
        let exchange = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(self.address)?;
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        exchange().is_ok_and(|text| text.ends_with("hello"))
    }

    async fn sql(&self, sql: &str) {
        self.connection().await.batch_execute(sql).await.unwrap();
    }

    async fn connection(&self) -> AsyncPgConnection {
        AsyncPgConnection::establish(&self.layout.owner_url()).await.unwrap()
    }

    async fn number(&self, sql: &str) -> i32 {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = Integer)]
            number: i32,
        }
        sql_query(sql).get_result::<Row>(&mut self.connection().await).await.unwrap().number
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for pid in self.pids() {
                eprintln!("{pid} {:?} {}", stat(pid, 3), arguments(pid));
            }
            for log in ["haproxy.log", "postgres.log"] {
                eprintln!("{log}:\n{}", fs::read_to_string(self.layout.log_dir().join(log)).unwrap_or_default());
            }
        }
        // One that was killed may have left a child that the list did not have yet.
        for _ in 0..100 {
            let pids = self.pids();
            for pid in &pids {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            if pids.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn arguments(pid: i32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).replace('\0', " ")
}

/// A field of /proc/…/stat, counted from the state as 0.
fn stat(pid: i32, field: usize) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit_once(')')?.1.split_ascii_whitespace().nth(field)?.parse().ok()
}

fn kill_9(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

/// Waits for something that should come true.
async fn soon(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..600 {
        if holds().await {
            return;
        }
        sleep(Duration::from_millis(50)).await;
    }
    panic!("{what}: not within 30 s");
}

async fn gone(pid: i32) {
    soon("its end", async || !Path::new(&format!("/proc/{pid}")).exists()).await;
}

#[tokio::test]
async fn postgres_is_started_adopted_and_stopped() {
    let world = World::new();
    assert!(!Postgres::is_running(&world.layout).await);
    assert!(!Postgres::stop(&world.layout).await.unwrap());
    assert_eq!(Postgres::ensure(&world.layout).await.unwrap(), Started::Fresh);
    let postmaster = world.postmaster();
    world.sql("CREATE TABLE t AS SELECT 7 AS number").await;
    assert_eq!(world.number("SELECT current_setting('max_connections')::int AS number").await, 60);
    assert_eq!(world.number("SELECT (current_setting('data_checksums') = 'on')::int AS number").await, 1);
    assert_eq!(world.number("SELECT (current_setting('listen_addresses') = '')::int AS number").await, 1);

    // A session of its own, so that no terminal's signal reaches it.
    assert_eq!(stat(postmaster, 3), Some(u64::try_from(postmaster).unwrap()));
    assert_eq!(fs::read_link(format!("/proc/{postmaster}/fd/0")).unwrap(), PathBuf::from("/dev/null"));
    for private in [world.layout.postgres_socket_dir(), world.layout.secrets_dir(), world.layout.postgres_data()] {
        assert_eq!(fs::metadata(&private).unwrap().permissions().mode() & 0o777, 0o700, "{}", private.display());
    }

    assert_eq!(Postgres::ensure(&world.layout).await.unwrap(), Started::Adopted);
    assert_eq!(world.postmaster(), postmaster);
    assert!(Postgres::is_running(&world.layout).await);

    // An open session does not hold it up.
    let _open = world.connection().await;
    assert!(timeout(Duration::from_secs(10), Postgres::stop(&world.layout)).await.unwrap().unwrap());
    assert!(!Postgres::is_running(&world.layout).await);
    gone(postmaster).await;
    assert!(!Postgres::stop(&world.layout).await.unwrap());

    assert_eq!(Postgres::ensure(&world.layout).await.unwrap(), Started::Fresh);
    assert_eq!(world.number("SELECT number FROM t").await, 7);
}

#[tokio::test]
async fn haproxy_is_started_adopted_and_stopped() {
    let world = World::new();
    assert!(!HaproxyProcess::is_running(&world.layout).await);
    assert!(!HaproxyProcess::stop(&world.layout).await.unwrap());
    assert_eq!(world.ensure_haproxy().await.unwrap(), Started::Fresh);
    assert!(world.haproxy_answers());
    let master = world.master();
    assert_eq!(stat(master, 3), Some(u64::try_from(master).unwrap()));

    // A reload puts arguments before ours, and it is ours all the same.
    kill(Pid::from_raw(master), Signal::SIGUSR2).unwrap();
    soon("a worker of the reload", async || world.pids().into_iter().any(|pid| arguments(pid).contains(" -sf "))).await;
    soon("its answer", async || HaproxyProcess::is_running(&world.layout).await).await;
    assert_eq!(world.ensure_haproxy().await.unwrap(), Started::Adopted);
    assert_eq!(world.master(), master);

    assert!(HaproxyProcess::stop(&world.layout).await.unwrap());
    assert!(!HaproxyProcess::is_running(&world.layout).await && !world.haproxy_answers());
    gone(master).await;
    assert!(world.pids().is_empty());
    let log = fs::read_to_string(world.layout.log_dir().join("haproxy.log")).unwrap();
    assert!(log.contains("New worker"), "{log}");
}

#[tokio::test]
async fn a_killed_postgres_heals_though_a_busy_backend_outlives_it() {
    let world = World::new();
    Postgres::ensure(&world.layout).await.unwrap();
    world.sql("CREATE TABLE t AS SELECT 7 AS number").await;
    let mut busy = world.connection().await;
    let query = tokio::spawn(async move {
        busy.batch_execute("DO 'BEGIN LOOP PERFORM 1; END LOOP; END'").await.unwrap_err();
    });
    soon("the busy one", async || {
        world.number("SELECT count(*)::int AS number FROM pg_stat_activity WHERE query LIKE 'DO%LOOP%'").await == 1
    })
    .await;
    let postmaster = world.postmaster();
    kill_9(postmaster);
    gone(postmaster).await;
    assert!(!Postgres::is_running(&world.layout).await);
    assert!(!world.pids().is_empty(), "the busy backend should still be there");

    assert_eq!(Postgres::ensure(&world.layout).await.unwrap(), Started::Fresh);
    assert_eq!(world.number("SELECT number FROM t").await, 7);
    query.await.unwrap();

    // With a busy backend and no postmaster, stop still leaves nothing behind.
    kill_9(world.postmaster());
    Postgres::stop(&world.layout).await.unwrap();
    soon("nothing left", async || world.pids().is_empty()).await;
}

#[tokio::test]
async fn a_killed_haproxy_heals() {
    let world = World::new();
    world.ensure_haproxy().await.unwrap();
    let master = world.master();
    // A stream that stays open must not keep the old worker.
    let mut open = TcpStream::connect(world.address).unwrap();
    open.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    kill_9(master);
    gone(master).await;
    assert_eq!(world.ensure_haproxy().await.unwrap(), Started::Fresh);
    assert!(world.haproxy_answers());
    assert_eq!(world.pids().len(), 2, "one master, one worker");
}

#[tokio::test]
async fn pids_in_files_are_not_believed() {
    let world = World::new();
    Postgres::ensure(&world.layout).await.unwrap();
    Postgres::stop(&world.layout).await.unwrap();
    // Somebody else has the pid by now.
    let mut bystander = Command::new("sleep").arg("600").spawn().unwrap();
    let data = world.layout.postgres_data();
    let socket = world.layout.postgres_socket_dir().join(".s.PGSQL.5432");
    let lock = format!("{}\n{}\n1700000000\n5432\n", bystander.id(), data.display());
    fs::write(data.join("postmaster.pid"), &lock).unwrap();
    fs::write(socket.with_extension("5432.lock"), &lock).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    drop(std::os::unix::net::UnixListener::bind(world.layout.master_socket()).unwrap());
    drop(std::os::unix::net::UnixListener::bind(world.layout.stats_socket()).unwrap());

    assert!(!Postgres::is_running(&world.layout).await);
    assert!(!Postgres::stop(&world.layout).await.unwrap());
    assert_eq!(Postgres::ensure(&world.layout).await.unwrap(), Started::Fresh);
    assert_eq!(world.ensure_haproxy().await.unwrap(), Started::Fresh);
    assert!(bystander.try_wait().unwrap().is_none(), "nobody else is signalled");

    // The same with a zombie, which nobody may ever reap.
    Postgres::stop(&world.layout).await.unwrap();
    bystander.kill().unwrap();
    fs::write(data.join("postmaster.pid"), &lock).unwrap();
    assert_eq!(Postgres::ensure(&world.layout).await.unwrap(), Started::Fresh);
    bystander.wait().unwrap();
}

#[tokio::test]
async fn a_half_made_cluster_is_made_again() {
    let world = World::new();
    // initdb was killed in the middle, at another time between it and CREATE DATABASE.
    let half = world.layout.postgres_data().with_file_name("data.new.1");
    fs::create_dir(&half).unwrap();
    fs::write(half.join("PG_VERSION"), "15\n").unwrap();
    Postgres::ensure(&world.layout).await.unwrap();
    assert!(!half.exists());
    let url = world.layout.owner_url().replace("/haas?", "/postgres?");
    let mut connection = AsyncPgConnection::establish(&url).await.unwrap();
    connection.batch_execute("DROP DATABASE haas").await.unwrap();
    assert_eq!(Postgres::ensure(&world.layout).await.unwrap(), Started::Adopted);
    assert_eq!(world.number("SELECT 1 AS number").await, 1);
}

#[tokio::test]
async fn what_cannot_work_is_said_clearly() {
    let world = World::new();
    let data = world.layout.postgres_data();
    fs::create_dir(&data).unwrap();
    let error = Postgres::ensure(&world.layout).await.unwrap_err();
    assert!(matches!(error, EmbeddedError::NotACluster { .. }), "{error}");
    fs::write(data.join("PG_VERSION"), "8\n").unwrap();
    let error = Postgres::ensure(&world.layout).await.unwrap_err();
    assert!(matches!(error, EmbeddedError::PostgresMajorMissing { wanted: 8, .. }), "{error}");
    assert!(error.to_string().contains("install postgresql-8"), "{error}");

    world.write_cfg("  nonsense here");
    let error = world.ensure_haproxy().await.unwrap_err();
    assert!(error.to_string().contains("nonsense"), "{error}");
    let error = HaproxyProcess::ensure(&world.layout, Path::new("haproxy-0.1")).await.unwrap_err();
    assert!(matches!(error, EmbeddedError::ProgramMissing { .. }), "{error}");

    let error = Layout::new(&world.dir.path().join("x".repeat(100))).unwrap_err();
    assert!(matches!(error, EmbeddedError::PathTooLong { .. }), "{error}");
    let error = Layout::new(&world.dir.path().join("a b")).unwrap_err();
    assert!(error.to_string().contains("' '"), "{error}");
    fs::write(world.dir.path().join("file"), "").unwrap();
    let error = Layout::new(&world.dir.path().join("file/var")).unwrap().create().unwrap_err();
    assert!(error.to_string().contains("can't make"), "{error}");
}

#[tokio::test]
async fn two_folders_side_by_side() {
    let (one, other) = (World::new(), World::new());
    let (a, b) = tokio::join!(Postgres::ensure(&one.layout), Postgres::ensure(&other.layout));
    assert_eq!((a.unwrap(), b.unwrap()), (Started::Fresh, Started::Fresh));
    one.ensure_haproxy().await.unwrap();
    assert_eq!(other.ensure_haproxy().await.unwrap(), Started::Fresh);
    one.sql("CREATE TABLE only_here ()").await;
    assert_eq!(other.number("SELECT (to_regclass('only_here') IS NULL)::int AS number").await, 1);

    assert!(Postgres::stop(&one.layout).await.unwrap() && HaproxyProcess::stop(&one.layout).await.unwrap());
    assert!(Postgres::is_running(&other.layout).await && HaproxyProcess::is_running(&other.layout).await);
    assert!(other.haproxy_answers() && !one.haproxy_answers());
}

#[tokio::test]
async fn the_folder_is_locked_by_one_at_a_time() {
    let world = World::new();
    assert_eq!(DirLock::holder(&world.layout).unwrap(), None);
    let lock = DirLock::acquire(&world.layout).unwrap();
    let us = i32::try_from(std::process::id()).unwrap();
    assert_eq!(fs::read_to_string(world.layout.server_pid_file()).unwrap(), format!("{us}\n"));
    assert_eq!(DirLock::holder(&world.layout).unwrap(), Some(us));
    let error = DirLock::acquire(&world.layout).unwrap_err();
    assert!(matches!(error, EmbeddedError::Locked { pid: Some(pid), .. } if pid == us), "{error}");
    // What we start does not keep it.
    world.ensure_haproxy().await.unwrap();
    drop(lock);
    assert_eq!(DirLock::holder(&world.layout).unwrap(), None);
    assert!(!world.layout.server_pid_file().exists());
    DirLock::acquire(&world.layout).unwrap();
}

#[tokio::test]
async fn both_outlive_a_killed_server_and_a_ctrl_c() {
    let world = World::new();
    // A second process of this very program, with a process group as a shell would give it.
    let mut server = Command::new(std::env::current_exe().unwrap());
    server.args(["--ignored", "--exact", "the_server_of_another_test", "--nocapture"]);
    server.env("HAAS_DIR", world.layout.dir()).stdout(Stdio::piped()).process_group(0);
    let mut server = server.spawn().unwrap();
    let lines = BufReader::new(server.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "ready"));
    let pids = (world.postmaster(), world.master());
    assert_eq!(DirLock::holder(&world.layout).unwrap(), i32::try_from(server.id()).ok());
    let group = Pid::from_raw(server.id().try_into().unwrap());
    killpg(group, Signal::SIGINT).unwrap();
    let _ = killpg(group, Signal::SIGKILL);
    server.wait().unwrap();

    assert_eq!(DirLock::holder(&world.layout).unwrap(), None);
    let _lock = DirLock::acquire(&world.layout).unwrap();
    assert!(world.haproxy_answers());
    assert_eq!(Postgres::ensure(&world.layout).await.unwrap(), Started::Adopted);
    assert_eq!(world.ensure_haproxy().await.unwrap(), Started::Adopted);
    assert_eq!((world.postmaster(), world.master()), pids);
    // Not our children, and ended all the same.
    assert!(Postgres::stop(&world.layout).await.unwrap());
    assert!(HaproxyProcess::stop(&world.layout).await.unwrap());
    assert!(!Postgres::is_running(&world.layout).await && !HaproxyProcess::is_running(&world.layout).await);
}

#[tokio::test]
#[ignore = "run by both_outlive_a_killed_server_and_a_ctrl_c"]
async fn the_server_of_another_test() {
    let Some(dir) = std::env::var_os("HAAS_DIR") else { return };
    let layout = Layout::new(Path::new(&dir)).unwrap();
    let _lock = DirLock::acquire(&layout).unwrap();
    Postgres::ensure(&layout).await.unwrap();
    HaproxyProcess::ensure(&layout, Path::new(HAPROXY)).await.unwrap();
    println!("\nready");
    sleep(Duration::from_mins(1)).await;
}

#[tokio::test]
async fn what_dies_is_started_again() {
    let world = World::new();
    Postgres::ensure(&world.layout).await.unwrap();
    world.ensure_haproxy().await.unwrap();
    let (sender, mut restarts) = mpsc::unbounded_channel();
    let supervisor = tokio::spawn(supervise(world.layout.clone(), PathBuf::from(HAPROXY), move |name| {
        let _ = sender.send(name);
    }));
    sleep(Duration::from_millis(200)).await;

    kill_9(world.master());
    assert_eq!(timeout(Duration::from_secs(20), restarts.recv()).await.unwrap(), Some("haproxy"));
    assert!(world.haproxy_answers());
    let first = world.postmaster();
    kill_9(first);
    assert_eq!(timeout(Duration::from_secs(20), restarts.recv()).await.unwrap(), Some("postgres"));
    assert!(Postgres::is_running(&world.layout).await);
    gone(first).await;

    // It keeps trying while that can't succeed, and does not give up the other one meanwhile.
    world.write_cfg("  nonsense here");
    kill_9(world.master());
    kill_9(world.postmaster());
    assert_eq!(timeout(Duration::from_secs(20), restarts.recv()).await.unwrap(), Some("postgres"));
    world.write_cfg("");
    assert_eq!(timeout(Duration::from_mins(1), restarts.recv()).await.unwrap(), Some("haproxy"));
    assert!(world.haproxy_answers());

    supervisor.abort();
    assert!(supervisor.await.unwrap_err().is_cancelled());
    assert!(Postgres::is_running(&world.layout).await, "it lives on without a supervisor");
}

#[tokio::test]
async fn one_that_nobody_can_reach_any_more_is_replaced() {
    let world = World::new();
    Postgres::ensure(&world.layout).await.unwrap();
    world.ensure_haproxy().await.unwrap();
    let before = (world.postmaster(), world.master());
    fs::remove_file(world.layout.postgres_socket_dir().join(".s.PGSQL.5432")).unwrap();
    fs::remove_file(world.layout.master_socket()).unwrap();
    let (postgres, haproxy) = tokio::join!(Postgres::ensure(&world.layout), world.ensure_haproxy());
    assert_eq!((postgres.unwrap(), haproxy.unwrap()), (Started::Fresh, Started::Fresh));
    assert!(world.postmaster() != before.0 && world.master() != before.1);
    assert!(Postgres::is_running(&world.layout).await && HaproxyProcess::is_running(&world.layout).await);
}
