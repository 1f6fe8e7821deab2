//! An engine that has any number of containers and does nothing: it answers what a server asks
//! that finds everything as it should be. For measurements with more containers than a
//! machine can run.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::Result;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;
use uuid::Uuid;

const VERSION: &str =
    r#"{"Version":"20.10.24","ApiVersion":"1.41","MinAPIVersion":"1.12","Os":"linux","Arch":"amd64"}"#;

/// One container, as the manifest knows it.
pub struct Listed {
    pub instance: Uuid,
    pub name: String,
    pub port: u16,
}

/// What was asked.
#[derive(Default)]
pub struct Asked {
    /// When each listing was.
    pub listings: Vec<Instant>,
    /// What a server has no reason to ask when all is well.
    pub unexpected: Vec<String>,
}

/// Ends when it is dropped.
pub struct Engine {
    asked: Arc<Mutex<Asked>>,
    task: JoinHandle<()>,
}

impl Engine {
    pub fn listen(socket: &Path, installation: &str, containers: &[Listed]) -> Result<Self> {
        let listing: Arc<[String]> = containers.iter().map(|listed| entry(installation, listed)).collect();
        let listener = UnixListener::bind(socket)?;
        let asked = Arc::<Mutex<Asked>>::default();
        let log = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (listing, log) = (Arc::clone(&listing), Arc::clone(&log));
                // A client that goes away is no error.
                connections.spawn(async move { drop(serve(stream, &listing, &log).await) });
            }
        });
        Ok(Self { asked, task })
    }

    pub fn asked<T>(&self, look: impl FnOnce(&Asked) -> T) -> T {
        look(&self.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Just enough HTTP/1.1: requests without a body.
async fn serve(stream: UnixStream, listing: &[String], log: &Mutex<Asked>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut request = String::new();
        if stream.read_line(&mut request).await? == 0 {
            return Ok(());
        }
        let mut header = String::new();
        while stream.read_line(&mut header).await? > 2 {
            header.clear();
        }
        let line = request.trim_end().trim_end_matches(" HTTP/1.1").replace("/v1.41", "");
        let path = line.strip_prefix("GET ").unwrap_or_default();
        let page;
        let (status, body) = if path.starts_with("/containers/json") {
            let (first, last) = page_of(path, listing);
            if first == 0 {
                note(log, |asked| asked.listings.push(Instant::now()));
            }
            page = format!("[{}]", listing[first..last].join(","));
            ("200 OK", &*page)
        } else if path.starts_with("/events") {
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await?;
            // Nothing ever happens here.
            return std::future::pending().await;
        } else if path.starts_with("/volumes?") && path.contains("dangling") {
            // Each has its container.
            ("200 OK", r#"{"Volumes":[],"Warnings":null}"#)
        } else if path.starts_with("/networks") {
            ("200 OK", "[]")
        } else if path.starts_with("/images/") {
            ("200 OK", r#"{"Id":"sha256:0"}"#)
        } else if path.starts_with("/info") {
            ("200 OK", r#"{"DockerRootDir":"/var/lib/docker"}"#)
        } else if path.starts_with("/system/df") {
            // Nothing is in their volumes.
            ("200 OK", r#"{"Volumes":[]}"#)
        } else if path.starts_with("/version") {
            ("200 OK", VERSION)
        } else {
            note(log, |asked| asked.unexpected.push(line));
            ("404 Not Found", r#"{"message":"no such thing here"}"#)
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nApi-Version: 1.41\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
    }
}

/// The part of the listing that the query asks for: the engine's `limit` and its filter `before`.
fn page_of(path: &str, listing: &[String]) -> (usize, usize) {
    let Ok(url) = url::Url::parse(&format!("http://engine{path}")) else { return (0, 0) };
    let query: HashMap<_, _> = url.query_pairs().collect();
    let filters: serde_json::Value =
        query.get("filters").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    // Ids are the instances' numbers, twice: see `entry`.
    let before = filters["before"][0].as_str().and_then(|id| usize::from_str_radix(id.get(..32)?, 16).ok());
    let first = before.map_or(0, |before| before + 1);
    let limit = query.get("limit").and_then(|text| text.parse().ok()).unwrap_or(listing.len());
    (first, listing.len().min(first.saturating_add(limit)))
}

fn note(log: &Mutex<Asked>, write: impl FnOnce(&mut Asked)) {
    write(&mut log.lock().unwrap_or_else(PoisonError::into_inner));
}

/// An entry with every field that engine 20.10 gives one, about 1.6 KB.
fn entry(installation: &str, listed: &Listed) -> String {
    let id = format!("{0}{0}", listed.instance.simple());
    let network = format!("haas-{}", installation.replace('-', ""));
    let volume = haas::instance::volume_name(listed.instance, 0);
    let [.., high, low] = listed.instance.into_bytes();
    json!({
        "Id": id,
        "Names": [format!("/{}", listed.name)],
        "Image": "haas/hoodie:28.2.10",
        "ImageID": format!("sha256:{id}"),
        "Command": "node start.js --address 0.0.0.0 --port 80 --data data --dbAdapter pouchdb-adapter-leveldb",
        "Created": 1_795_463_863,
        "Ports": [{ "IP": "127.0.0.1", "PrivatePort": 80, "PublicPort": listed.port, "Type": "tcp" }],
        "Labels": {
            "haas.build": id,
            "haas.generation": "1",
            "haas.installation": installation,
            "haas.instance": listed.instance,
            "haas.spec": "1d0c4ab8f1e3a5c7",
            "haas.volume": volume,
            "org.opencontainers.image.description": "One Hoodie backend: port 80, data in /app/data, run with an init",
            "org.opencontainers.image.licenses": "Apache-2.0",
            "org.opencontainers.image.title": "Hoodie, as a tenant of Haas",
            "org.opencontainers.image.version": "28.2.10",
        },
        "State": "running",
        "Status": "Up 2 hours",
        "HostConfig": { "NetworkMode": network },
        "NetworkSettings": { "Networks": { network: {
            "IPAMConfig": null, "Links": null, "Aliases": null,
            "NetworkID": id, "EndpointID": id,
            "Gateway": "172.24.0.1", "IPAddress": format!("172.24.{high}.{low}"), "IPPrefixLen": 16,
            "IPv6Gateway": "", "GlobalIPv6Address": "", "GlobalIPv6PrefixLen": 0,
            "MacAddress": format!("02:42:ac:18:{high:02x}:{low:02x}"), "DriverOpts": null,
        } } },
        "Mounts": [{
            "Type": "volume", "Name": volume, "Source": format!("/var/lib/docker/volumes/{volume}/_data"),
            "Destination": "/app/data", "Driver": "local", "Mode": "z", "RW": true, "Propagation": "",
        }],
    })
    .to_string()
}
