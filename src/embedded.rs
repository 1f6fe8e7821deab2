//! What `haas up` runs beside the server: a Postgres cluster of its own and HAProxy, under one
//! folder.
//!
//! Both are services that outlive us. Each has a session of its own, so neither Ctrl-C on the
//! terminal nor a `kill -9` of `haas up` reaches it, and running apps stay reachable. The next
//! `haas up` finds them and adopts them: `ensure` means "there is one, and it answers", however
//! it came to be.
//!
//! Nothing here trusts a pid that it read from a file. A process is ours when the kernel says so:
//! Postgres by its program and its working folder (the cluster's), HAProxy by the master
//! socket in its arguments. What is signalled was verified right before, and a zombie
//! counts as dead, because in a bare container nobody may ever reap it.
//!
//! Whoever calls `ensure`, `stop` or [`supervise`] holds the [`DirLock`], or knows that nobody
//! does (`haas down`).

mod binaries;
mod cluster;
mod database;
mod error;
mod files;
mod haproxy;
mod layout;
mod lock;
mod postgres;
mod process;
mod supervise;

pub use error::EmbeddedError;
pub use haproxy::HaproxyProcess;
pub use layout::Layout;
pub use lock::DirLock;
pub use postgres::Postgres;
pub use supervise::supervise;

/// How `ensure` found the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Started {
    /// It was not there, or not usable, and was started.
    Fresh,
    /// An earlier one was running, and was kept.
    Adopted,
}
