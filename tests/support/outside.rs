//! A host outside that a test makes itself: a network namespace at the other end of a veth, with
//! addresses that look like others'. Packets to them can't leave this machine: each has a route to the
//! veth, and a second one that throws them away should the first be gone.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::fs::File;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinHandle;

use crate::support::eventually;

pub struct Outside {
    pub namespace: String,
    /// The end of the veth that this machine has, and its address.
    pub veth: String,
    pub here: String,
    /// The host's own address on the veth, in a private network (RFC 1918).
    pub private: String,
    addresses: Vec<String>,
}

impl Outside {
    /// Makes the host, with these addresses beside its private one.
    pub async fn new(addresses: &[&str]) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "network namespaces are made by root: run these tests as root");
        let word = &uuid::Uuid::new_v4().simple().to_string()[..8];
        let (namespace, veth, peer) = (format!("haas-{word}"), format!("hv{word}"), format!("hp{word}"));
        let octets: Vec<u8> = (0..2).map(|_| rand::random::<u8>()).collect();
        let net = format!("10.213.{}.{}", octets[0], octets[1] & 0xfc);
        let last = (octets[1] & 0xfc) + 1;
        let address = |n: u8| format!("{}.{}", net.rsplit_once('.').unwrap().0, last + n);
        let outside = Self {
            namespace: namespace.clone(),
            veth: veth.clone(),
            here: address(0),
            private: address(1),
            addresses: addresses.iter().map(|address| (*address).to_owned()).collect(),
        };
        ip(&["netns", "add", &namespace]);
        ip(&["link", "add", &veth, "type", "veth", "peer", "name", &peer, "netns", &namespace]);
        ip(&["addr", "add", &format!("{}/30", outside.here), "dev", &veth]);
        ip(&["link", "set", &veth, "up"]);
        let there = |arguments: &[&str]| ip(&[&["-n", &namespace], arguments].concat());
        there(&["link", "set", "lo", "up"]);
        there(&["addr", "add", &format!("{}/30", outside.private), "dev", &peer]);
        there(&["link", "set", &peer, "up"]);
        there(&["route", "add", "default", "via", &outside.here]);
        for address in addresses {
            let host = format!("{address}/32");
            there(&["addr", "add", &host, "dev", "lo"]);
            // Another test may have the same address at the same time.
            eventually(&format!("{address} is free"), Duration::from_mins(4), || async {
                tried(&["route", "add", "blackhole", &host, "metric", "4096"]).is_ok().then_some(())
            })
            .await;
            ip(&["route", "add", &host, "via", &outside.private, "dev", &veth]);
        }
        outside
    }

    /// Insists that what is sent to an address, by this machine or from behind a bridge, goes to this host
    /// and nowhere else, or to the machine itself.
    pub fn insist(&self, address: &str, from: Option<(&str, &str)>) {
        let mut arguments = vec!["route", "get", address];
        if let Some((source, bridge)) = from {
            arguments.extend(["from", source, "iif", bridge]);
        }
        let route = ip(&arguments);
        let ours = route.contains(&format!("dev {} ", self.veth)) || route.starts_with("local ");
        assert!(ours, "a packet to {address} would not stay here: {route}");
    }

    /// Listens there.
    pub fn listen(&self, port: u16) -> Ear {
        let at = SocketAddr::from(([0, 0, 0, 0], port));
        Ear::from_std(self.inside(move || std::net::TcpListener::bind(at).unwrap()))
    }

    /// Takes datagrams there, at one address: its answers come from the same.
    pub fn listen_udp(&self, address: &str, port: u16) -> Ear {
        let at = SocketAddr::new(address.parse().unwrap(), port);
        Ear::from_std_udp(self.inside(move || std::net::UdpSocket::bind(at).unwrap()))
    }

    /// A socket stays in the network that it was made in: one thread goes there, and ends.
    fn inside<T: Send + 'static>(&self, make: impl FnOnce() -> T + Send + 'static) -> T {
        let path = format!("/run/netns/{}", self.namespace);
        std::thread::spawn(move || {
            setns(File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            make()
        })
        .join()
        .unwrap()
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // The other end goes with it, and the routes that lead there; then those that throw packets away.
        tried(&["link", "del", &self.veth]).ok();
        tried(&["netns", "del", &self.namespace]).ok();
        for address in &self.addresses {
            tried(&["route", "del", "blackhole", &format!("{address}/32"), "metric", "4096"]).ok();
        }
    }
}

/// Runs `ip`, which has to work.
pub fn ip(arguments: &[&str]) -> String {
    tried(arguments).unwrap_or_else(|error| panic!("ip {arguments:?}: {error}"))
}

fn tried(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new("ip").args(arguments).output().expect("ip, of the package iproute2");
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

type Heard = Arc<Mutex<Vec<Vec<u8>>>>;

/// Something that listens, and remembers what it heard: a peer's address, or a datagram.
pub struct Ear {
    pub port: u16,
    heard: Heard,
    task: JoinHandle<()>,
}

impl Ear {
    /// On every address of this machine.
    pub fn on_the_host(at: &str) -> Self {
        Self::from_std(std::net::TcpListener::bind(at).unwrap())
    }

    pub fn on_the_host_udp(at: &str) -> Self {
        Self::try_on_the_host_udp(at).unwrap()
    }

    pub fn try_on_the_host_udp(at: &str) -> std::io::Result<Self> {
        std::net::UdpSocket::bind(at).map(Self::from_std_udp)
    }

    /// Remembers what this task hears.
    fn new<F: Future<Output = ()> + Send + 'static>(at: SocketAddr, listen: impl FnOnce(Heard) -> F) -> Self {
        let heard = Heard::default();
        let task = tokio::spawn(listen(Arc::clone(&heard)));
        Self { port: at.port(), heard, task }
    }

    fn from_std(listener: std::net::TcpListener) -> Self {
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        Self::new(listener.local_addr().unwrap(), |heard| async move {
            loop {
                let Ok((mut stream, peer)) = listener.accept().await else { continue };
                heard.lock().unwrap().push(peer.to_string().into_bytes());
                let heard = Arc::clone(&heard);
                tokio::spawn(async move {
                    stream.write_all(b"open\n").await.ok();
                    let mut buffer = [0; 512];
                    loop {
                        match tokio::io::AsyncReadExt::read(&mut stream, &mut buffer).await {
                            Ok(0) | Err(_) => break,
                            Ok(length) => heard.lock().unwrap().push(buffer[..length].to_vec()),
                        }
                    }
                });
            }
        })
    }

    fn from_std_udp(socket: std::net::UdpSocket) -> Self {
        socket.set_nonblocking(true).unwrap();
        let socket = UdpSocket::from_std(socket).unwrap();
        Self::new(socket.local_addr().unwrap(), |heard| async move {
            let mut buffer = [0; 2048];
            loop {
                let Ok((length, peer)) = socket.recv_from(&mut buffer).await else { continue };
                heard.lock().unwrap().push(buffer[..length].to_vec());
                // As a name server would: the question as an answer that says "no such name" (RFC 1035).
                if length > 3 {
                    buffer[2] |= 0x80;
                    buffer[3] = (buffer[3] & 0xf0) | 3;
                }
                socket.send_to(&buffer[..length], peer).await.ok();
            }
        })
    }

    /// How much it has heard.
    pub fn count(&self) -> usize {
        self.heard.lock().unwrap().len()
    }

    /// Whether a word was in anything that it heard.
    pub fn heard(&self, word: &str) -> bool {
        let heard = self.heard.lock().unwrap();
        heard.iter().any(|bytes| bytes.windows(word.len()).any(|window| window == word.as_bytes()))
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.task.abort();
    }
}
