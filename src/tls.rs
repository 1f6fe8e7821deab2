//! Certificates: which there are, which names they have, and whether they may be shown to HAProxy.
//!
//! Below the configured folder (`tls.dir`):
//!
//! * `certs/` is the operator's: each `*.pem` holds a certificate, its chain and its key. Haas
//!   only reads it.
//! * `live/` is what HAProxy loads. Haas alone writes it: checked copies of the operator's files
//!   under their own names, and the leaves of the local CA. A file that does not pass leaves its
//!   older copy as it was; one that is taken away takes its copy along.
//! * `ca.pem` and `ca.key` are the local CA of an installation that has one.
//!
//! This room knows files and certificates, not HAProxy: that has the last word on a copy, and is
//! told of changes by the room `haproxy`.

mod authority;
mod bundle;
mod leaves;
mod names;
mod store;
mod trust;

pub use authority::{Authority, AuthorityError};
pub use bundle::{Bundle, BundleError};
pub use leaves::{Leaf, Plan, missing, plan};
pub use names::{covers, needed};
pub use store::{Refusal, Settings, Store, StoreError, is_leaf};
pub use trust::{TrustError, Trusted, client};

/// Makes ring the process's cryptography. Clients with TLS can't be built before; calling it
/// again does nothing.
pub fn use_ring() {
    // It fails only when there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
