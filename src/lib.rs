//! Hoodie as a Service: one request, and a user has a working Hoodie at its own domain.
//!
//! ```text
//! Appmaker ──POST /provision──▶ http ──intent──▶ manifest ◀──▶ reconcile ──▶ containers  (Docker: one Hoodie each)
//!                                               (Postgres)          └──────▶ haproxy     (cfg + map ─▶ reload)
//! end users ──notes.alice.haas.example──▶ HAProxy ──127.0.0.1:5521──▶ container alice-notes :80
//! ```
//!
//! The house has four rooms and a plan. A room's own file is what others may call; its folder
//! is private. Data flows one way: `http | cli → manifest → reconcile → containers | haproxy →
//! manifest`. End users' traffic never passes through this process.
//!
//! | module | what it owns |
//! |---|---|
//! | [`instance`] | the domain, pure: names that were checked once, phases, and the planner that makes every decision |
//! | [`http`] | requests in, intent into the manifest, answers out |
//! | [`manifest`] | Postgres: what should be, what was last seen, which port is whose; the only source of truth |
//! | [`reconcile`] | the one loop that makes the world agree with the manifest; all side effects start there |
//! | [`containers`] | Docker: observe, ensure, remove |
//! | [`haproxy`] | render, check, swap, signal, confirm |
//! | [`clients`] | who may ask the control API for what: keys, tokens, rights |
//! | [`archive`] | tenants' data as compressed, checksummed files |
//! | [`tls`] | certificates: the local CA, what the operator gives, what HAProxy may load |
//! | [`firewall`] | the rules around tenants' network, put in by root's `haas firewall` |
//! | [`webhook`] | what owners have to know, posted to the operator's URL |
//! | [`watch`] | events from outside, turned into nudges |
//! | [`server`] | puts the rooms together |
//! | [`embedded`] | the Postgres and HAProxy that `haas up` runs beside the server |
//! | [`config`], [`cli`] | settings, and the commands |
//! | [`credentials`] | the instance key, and what is derived from it: the admins' passwords, the salts of their sessions |
//! | `app_connection` | a connection to an app, which can harm nobody by what it answers |
//! | `bounded` | what is kept of text that tenants and engines write |
//! | `whole_file` | a file that is written whole or not at all |
//! | `fuzzing` | the doors of a fuzzer, to parsers of what comes from outside |
//! | [`failpoint`] | where a test ends the process, to show that no moment is a bad one |

#![forbid(unsafe_code)]

mod app_connection;
pub mod archive;
mod bounded;
pub mod cli;
pub mod clients;
pub mod config;
pub mod containers;
pub mod credentials;
pub mod embedded;
pub mod failpoint;
pub mod firewall;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod haproxy;
pub mod http;
pub mod instance;
pub mod manifest;
pub mod reconcile;
pub mod server;
pub mod tls;
pub mod watch;
pub mod webhook;
mod whole_file;
