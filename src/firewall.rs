//! The walls around tenants that Docker alone can't build: rules of iptables that keep a tenant from
//! this machine, from private networks and, unless it is wanted, from the internet.
//!
//! Two chains of an installation's own get what comes in from its bridge: one is led to from
//! `DOCKER-USER`, which sees what is forwarded (Docker's manual, "Packet filtering and firewalls"), the
//! other from `INPUT`, which sees what goes to the machine itself. They only ever refuse: what they let
//! pass goes on to whatever other rules there are.
//!
//! `rules` says what should be there, `state` what is there and what that lacks, both without doing
//! anything; `iptables` runs the programs. This room knows nothing of Docker or the manifest.

mod iptables;
mod rules;
mod state;

use std::fmt;
use std::path::Path;

use thiserror::Error;
use uuid::Uuid;

use crate::instance::spec::Egress;
use rules::Plan;
use state::Table;

/// How often a change is tried again that somebody else's change came in between.
const ATTEMPTS: u32 = 5;

/// Why the rules can't be seen or changed.
#[derive(Debug, Error)]
pub enum FirewallError {
    /// Only root may.
    #[error("only root can see and change the machine's rules")]
    NotRoot,
    /// The program is not there.
    #[error("{0} is not there: it is in the package iptables, which Docker's engine needs, too")]
    NoProgram(&'static str),
    /// The program refused.
    #[error("{program}: {message}")]
    Refused {
        /// Which one.
        program: &'static str,
        /// Its own words.
        message: String,
    },
    /// The program can't be run.
    #[error("{program}: {error}")]
    Io {
        /// Which one.
        program: &'static str,
        /// The system's own words.
        error: std::io::Error,
    },
    /// Docker has not made its chain yet.
    #[error(
        "there is no chain DOCKER-USER: start Docker's engine first, or say --before-docker; \
         if it runs, it uses another iptables than this one (iptables-nft, iptables-legacy)"
    )]
    NoDockerUser,
    /// No name of a network interface.
    #[error("{0} is no name of a bridge: up to 15 letters, digits, '-', '_' and '.'")]
    BadBridge(String),
}

/// IPv4 or IPv6: each has its own programs and tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    family: Family,
    what: String,
    dockers: bool,
}

impl Gap {
    /// Whether it is Docker's own rule that is missing, which it puts in when it starts.
    #[must_use]
    pub fn is_dockers(&self) -> bool {
        self.dockers
    }
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.family, self.what)
    }
}

/// The walls of one installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walls {
    installation: Uuid,
    bridge: String,
    egress: Egress,
}

impl Walls {
    /// What should be there for the tenants on a bridge.
    ///
    /// # Errors
    /// [`FirewallError::BadBridge`] when no network interface can have the name; `+` at its end would
    /// mean any interface (iptables(8), `--in-interface`).
    pub fn new(installation: Uuid, bridge: &str, egress: Egress) -> Result<Self, FirewallError> {
        let plain = bridge.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if !plain || bridge.is_empty() || bridge.len() > 15 || bridge.starts_with('-') {
            return Err(FirewallError::BadBridge(bridge.to_owned()));
        }
        Ok(Self { installation, bridge: bridge.to_owned(), egress })
    }

    /// The bridge that they are around.
    #[must_use]
    pub fn bridge(&self) -> &str {
        &self.bridge
    }

    /// Puts the rules in, at the top; says whether anything had to be changed. All rules of a family are
    /// changed in one step, so that at no moment a wall is missing that was there. With `before_docker` the
    /// chain DOCKER-USER is made where it is missing; an engine that starts later takes it as it is.
    ///
    /// # Errors
    /// [`FirewallError`]; then the rules of that family are as they were.
    pub async fn install(&self, before_docker: bool) -> Result<bool, FirewallError> {
        let mut changed = false;
        for family in families() {
            let plan = Plan::new(self, family);
            changed |= change(family, |table| {
                if family == Family::V4 && !before_docker && !table.has_chain(rules::DOCKER_USER) {
                    return Err(FirewallError::NoDockerUser);
                }
                Ok(plan.install(table))
            })
            .await?;
        }
        Ok(changed)
    }

    /// What is not as it should be; nothing if all is.
    ///
    /// # Errors
    /// [`FirewallError`] when the rules can't be seen.
    pub async fn gaps(&self) -> Result<Vec<Gap>, FirewallError> {
        let mut gaps = Vec::new();
        for family in families() {
            let table = look(family).await?;
            let plan = Plan::new(self, family);
            gaps.extend(plan.own_gaps(&table).into_iter().map(|what| Gap { family, what, dockers: false }));
            gaps.extend(plan.dockers_gap(&table).map(|what| Gap { family, what, dockers: true }));
        }
        Ok(gaps)
    }
}

/// Whether this process may see and change the machine's rules.
#[must_use]
pub fn may_look() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Whether anything of an installation's rules is there.
///
/// # Errors
/// [`FirewallError`] when the rules can't be seen.
pub async fn is_installed(installation: Uuid) -> Result<bool, FirewallError> {
    for family in families() {
        if rules::remove(installation, &look(family).await?).is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Takes an installation's rules away, and nothing else; says whether there were any.
///
/// # Errors
/// [`FirewallError`]; then the rules of that family are as they were.
pub async fn remove(installation: Uuid) -> Result<bool, FirewallError> {
    let mut changed = false;
    for family in families() {
        changed |= change(family, |table| Ok(rules::remove(installation, table))).await?;
    }
    Ok(changed)
}

/// The families that the kernel has.
fn families() -> Vec<Family> {
    let v6 = Path::new("/proc/sys/net/ipv6").exists();
    [Family::V4].into_iter().chain(v6.then_some(Family::V6)).collect()
}

async fn look(family: Family) -> Result<Table, FirewallError> {
    if !may_look() {
        return Err(FirewallError::NotRoot);
    }
    Ok(Table::parse(&iptables::list(family).await?))
}

/// Looks, and carries out what is to be done; says whether that was anything.
async fn change(
    family: Family,
    plan: impl Fn(&Table) -> Result<Option<String>, FirewallError>,
) -> Result<bool, FirewallError> {
    let mut attempt = 1;
    loop {
        let Some(script) = plan(&look(family).await?)? else { return Ok(false) };
        match iptables::restore(family, &script).await {
            Ok(()) => return Ok(true),
            // A rule that it names may be gone since the look: then nothing was changed.
            Err(FirewallError::Refused { .. }) if attempt < ATTEMPTS => attempt += 1,
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_one_bridge_are_taken() {
        let new = |bridge: &str| Walls::new(Uuid::nil(), bridge, Egress::None);
        assert_eq!(new("haas-0a1b2c3d4e").unwrap().bridge(), "haas-0a1b2c3d4e");
        assert!(new("br-0123456789ab").is_ok());
        for bad in ["", "haas+", "a b", "a/b", "-j", "0123456789abcdef", "br\n-A INPUT"] {
            assert!(new(bad).is_err(), "{bad:?}");
        }
    }
}
