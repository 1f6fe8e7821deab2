//! A real HAProxy in a folder of its own, apps that are a few lines of TCP, and a client that
//! sees every byte. All of it on loopback.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::net::TcpListener as StdListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use haas::config::Public;
use haas::haproxy::{Haproxy, Route, Routes, Settings};
use haas::instance::name::{ContainerName, Hostname};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// A port that nobody listens on, below the kernel's ephemeral range, so that no outgoing
/// connection of another test takes it meanwhile.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 600).unwrap() * 30;
    loop {
        let port = 14_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 18_000;
        if StdListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Another HAProxy than the one that is installed (scripts/newest-haproxy), if one is named.
pub fn program() -> PathBuf {
    std::env::var_os("HAAS_TEST_HAPROXY").map_or_else(|| PathBuf::from("haproxy"), PathBuf::from)
}

/// Waits until it holds; fails after half a minute, since a master of HAProxy 3.4 that is asked
/// while it starts may let that one question hang for ten seconds.
pub async fn eventually<F: AsyncFnMut() -> bool>(what: &str, mut holds: F) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds().await {
        assert!(Instant::now() < deadline, "not within half a minute: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// One installation's HAProxy.
pub struct Rig {
    folder: TempDir,
    pub settings: Settings,
    pub port: u16,
    child: Option<Child>,
}

impl Rig {
    /// The folder and the settings; HAProxy is not started.
    pub fn new(live_routes: bool) -> Self {
        let folder = tempfile::Builder::new().prefix("haas").tempdir().unwrap();
        let port = free_port();
        let path = |name: &str| folder.path().join(name);
        let settings = Settings {
            domain: Hostname::parse("haas.localhost").unwrap(),
            binary: program(),
            dir: path("haproxy"),
            template: None,
            http_bind: format!("127.0.0.1:{port}"),
            https_bind: String::new(),
            tls: haas::tls::Settings {
                dir: path("tls"),
                domain: Hostname::parse("haas.localhost").unwrap(),
                local_ca: false,
            },
            public: Public { https: false, port },
            hsts: Duration::ZERO,
            allow_insecure: false,
            master_socket: path("master.sock"),
            stats_socket: path("stats.sock"),
            control: vec![format!("127.0.0.1:{}", free_port())],
            control_timeout: Duration::from_mins(1),
            user: String::new(),
            group: String::new(),
            live_routes,
            reload_min_interval: Duration::ZERO,
            hard_stop_after: Duration::from_mins(1),
            old_workers_max: 8,
            sections_max: 2000,
            maxconn: 500,
            app_maxconn: 100,
            app_request_rate: 100_000,
            body_max: 16 * 1024 * 1024,
            head_timeout: Duration::from_secs(10),
            confirm_timeout: Duration::from_secs(10),
            reload_container: None,
        };
        Self { folder, settings, port, child: None }
    }

    /// A publisher; as many as there are, they share the folder.
    pub fn haproxy(&self) -> Haproxy {
        Haproxy::new(self.settings.clone())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.settings.dir.join(name)
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    /// Uses the built-in template with some of its text replaced.
    pub fn template(&mut self, from: &str, to: &str) {
        let text = include_str!("../../templates/haproxy.cfg.tera");
        assert!(text.contains(from), "{from:?} is not in the template");
        let path = self.folder.path().join("template");
        std::fs::write(&path, text.replace(from, to)).unwrap();
        self.settings.template = Some(path);
    }

    /// As an administrator starts it. Returns once its master answers.
    pub async fn start(&mut self) {
        let log = std::fs::File::create(self.folder.path().join("haproxy.log")).unwrap();
        let child = Command::new(&self.settings.binary)
            .arg("-W")
            .arg("-S")
            .arg(format!("{},mode,600", self.settings.master_socket.display()))
            .arg("-f")
            .arg(self.path("haproxy.cfg"))
            .stdin(Stdio::null())
            .stderr(log.try_clone().unwrap())
            .stdout(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        let haproxy = self.haproxy();
        eventually("HAProxy is up", async || haproxy.running_generation().await.unwrap_or(None).is_some()).await;
    }

    /// Ends it and its workers; the socket's file may stay.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let _ = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM);
        for _ in 0..200 {
            if child.try_wait().unwrap().is_some() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = child.kill();
        let _ = child.wait();
    }

    /// The master's process id.
    pub fn master(&self) -> i32 {
        self.child.as_ref().unwrap().id().cast_signed()
    }

    /// A command at the worker's own socket, as an administrator would type it.
    pub async fn tell(&self, command: &str) -> String {
        let mut stream = tokio::net::UnixStream::connect(&self.settings.stats_socket).await.unwrap();
        stream.write_all(format!("{command}\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("haproxy.log")).unwrap_or_default()
    }

    /// One request on a connection of its own.
    pub async fn get(&self, host: &str, path: &str) -> Answer {
        Client::connect(self.port).await.get(host, path).await
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            eprintln!("HAProxy said:\n{}", self.log());
        }
    }
}

pub fn host(app: &str) -> Hostname {
    Hostname::parse(&format!("{app}.alice.haas.localhost")).unwrap()
}

pub fn route(app: &str, port: u16) -> Route {
    let since: DateTime<Utc> = "2026-01-02T03:04:05Z".parse().unwrap();
    Route {
        host: host(app),
        extra_hosts: Vec::new(),
        port,
        container: ContainerName::parse(&format!("alice-{app}")).unwrap(),
        since,
    }
}

pub fn routes(of: &[(&str, u16)]) -> Routes {
    Routes::new(of.iter().map(|(app, port)| route(app, *port)))
}

/// An app. It answers each request with its own name and the request's head; `/slow` takes half a
/// second, `/stream` sends a line each tenth of a second for as long as the client stays.
pub struct Stub {
    pub port: u16,
    serving: JoinHandle<()>,
}

impl Stub {
    pub async fn new(name: &'static str) -> Self {
        Self::at(name, free_port()).await
    }

    pub async fn at(name: &'static str, port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let serving = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(name, stream));
            }
        });
        Self { port, serving }
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(name: &str, stream: TcpStream) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let head = head(&mut stream).await?;
        let path = head.split(' ').nth(1)?;
        if path.starts_with("/stream") {
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.ok()?;
            loop {
                stream.write_all(b"1\r\n\n\r\n").await.ok()?;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        if path.starts_with("/count") {
            let answer = match take_body(&mut stream, &head).await {
                Some(bytes) => format!("{name} took {bytes}"),
                None => return None,
            };
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{answer}", answer.len());
            stream.write_all(answer.as_bytes()).await.ok()?;
            continue;
        }
        if path.starts_with("/slow") {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let body = format!("{name}\n{head}");
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await.ok()?;
    }
}

/// Reads a body of either form; how long it was.
async fn take_body(stream: &mut BufReader<TcpStream>, of: &str) -> Option<usize> {
    let mut taken = 0;
    let mut bytes = vec![0; 64 * 1024];
    if header(of, "transfer-encoding").is_none() {
        let length: usize = header(of, "content-length").map_or(Some(0), |length| length.parse().ok())?;
        while taken < length {
            let room = bytes.len().min(length - taken);
            match stream.read(&mut bytes[..room]).await.ok()? {
                0 => return None,
                read => taken += read,
            }
        }
        return Some(taken);
    }
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let length = usize::from_str_radix(line.trim(), 16).ok()?;
        bytes.resize(length + 2, 0);
        stream.read_exact(&mut bytes).await.ok()?;
        if length == 0 {
            return Some(taken);
        }
        taken += length;
    }
}

async fn head(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await.ok()? == 0 {
            return None;
        }
    }
    Some(head)
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    /// Who answered, if it was a stub.
    pub fn by(&self) -> &str {
        self.body.lines().next().unwrap_or_default()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    /// A header as the app saw it.
    pub fn seen(&self, name: &str) -> Option<&str> {
        header(&self.body, name)
    }
}

fn header<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(": ")?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// A connection to HAProxy, which it may keep alive.
pub struct Client(BufReader<TcpStream>);

impl Client {
    pub async fn connect(port: u16) -> Self {
        Self(BufReader::new(TcpStream::connect(("127.0.0.1", port)).await.unwrap()))
    }

    pub async fn get(&mut self, host: &str, path: &str) -> Answer {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        self.answer().await
    }

    pub async fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
    }

    /// Whether it could still be sent; the other side may have had enough.
    pub async fn try_send(&mut self, text: &str) -> bool {
        let sending = self.0.write_all(text.as_bytes());
        matches!(tokio::time::timeout(Duration::from_secs(5), sending).await, Ok(Ok(())))
    }

    /// A whole answer with a Content-Length.
    pub async fn answer(&mut self) -> Answer {
        let head = self.head().await;
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let length = header(&head, "content-length").map_or(0, |text| text.parse().unwrap());
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await.unwrap();
        Answer { status, head, body: String::from_utf8(body).unwrap() }
    }

    pub async fn head(&mut self) -> String {
        tokio::time::timeout(Duration::from_secs(10), head(&mut self.0))
            .await
            .expect("an answer within ten seconds")
            .expect("an answer before the end")
    }

    /// Some bytes of a stream; none at its end.
    pub async fn bytes(&mut self) -> usize {
        let mut buffer = [0; 64];
        let read = tokio::time::timeout(Duration::from_secs(5), self.0.read(&mut buffer)).await;
        read.expect("bytes within five seconds").unwrap_or(0)
    }
}

/// What could show that a file was written again.
pub fn trace(path: &Path) -> (u64, std::time::SystemTime) {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path).unwrap();
    (metadata.ino(), metadata.modified().unwrap())
}
