//! Haas.
#![forbid(unsafe_code)]
pub mod cli;
pub mod config;
pub mod containers;
pub mod embedded;
pub mod failpoint;
pub mod haproxy;
pub mod http;
pub mod instance;
pub mod manifest;
pub mod reconcile;
pub mod server;
pub mod watch;
