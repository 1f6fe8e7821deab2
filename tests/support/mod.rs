//! What the tests share. Each test has a folder, a database, ports and containers of its own,
//! and takes them away again when it ends, however it ends.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod cluster;
pub mod echo;
pub mod hanging;
pub mod hoodie;
pub mod hostile;
pub mod house;
pub mod image;
pub mod installation;
pub mod sign_on;
pub mod tenants;

use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// Ports of one test: tenants' ports first, then some for other uses.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    pub first: u16,
    pub last: u16,
    pub http: u16,
    pub spare: u16,
}

/// A block of ports that no other test of this process has, and that nobody listens on.
pub fn ports() -> Ports {
    ports_for(35)
}

/// Ports for so many tenants, and some more.
pub fn ports_for(tenants: u16) -> Ports {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let size = tenants + 5;
    // Test processes that run at the same time begin at different places.
    let offset = (std::process::id() % 64) as u16 * 150;
    loop {
        let first = 18_000 + (offset + NEXT.fetch_add(size, Ordering::SeqCst)) % 14_000;
        let free = |port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
        if (first..first + size).all(free) {
            return Ports { first, last: first + tenants, http: first + size - 2, spare: first + size - 1 };
        }
    }
}

/// A word that no other test uses in a name.
pub fn unique() -> String {
    format!("t{}", &uuid::Uuid::new_v4().simple().to_string()[..8])
}

/// Looks until `probe` has something, or fails the test after `limit`.
pub async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
