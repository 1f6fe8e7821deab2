//! What should be there, as text for `iptables-restore`. Rules are written as `iptables -S` prints them,
//! so that both can be compared.

use uuid::Uuid;

use super::state::Table;
use super::{Family, Walls};
use crate::instance::spec::Egress;

/// The chain that Docker leaves to the administrator: it sees what is forwarded before Docker's rules do.
pub(super) const DOCKER_USER: &str = "DOCKER-USER";

/// An answer to a connection that the other end has begun, such as HAProxy or a readiness probe. Not
/// what a tenant itself has begun, even before the rules were there; and nothing that is merely related,
/// since a tenant has nobody to report an error to.
const ANSWERS: &str = "-m conntrack --ctstate ESTABLISHED --ctdir REPLY -j RETURN";
/// The caller is told at once: who waits for an answer that never comes holds on to things meanwhile. Errors
/// by ICMP alone would not do, since the kernel sends one a second (icmp(7), `icmp_ratelimit`).
const REFUSALS: [&str; 2] =
    ["-p tcp -j REJECT --reject-with tcp-reset", "-j REJECT --reject-with icmp-admin-prohibited"];
/// Tenants have no IPv6: whoever speaks it is owed no answer.
const DROP: &str = "-j DROP";

/// What is not the public internet (IANA IPv4 Special-Purpose Address Registry, RFC 6890, and multicast),
/// in order. The relays of 6to4 (192.88.99.0/24) and two of the registry's blocks of services are public.
pub(super) const NOT_PUBLIC: [&str; 15] = [
    // "This network".
    "0.0.0.0/8",
    // Private (RFC 1918).
    "10.0.0.0/8",
    // Shared between carriers and their customers (RFC 6598).
    "100.64.0.0/10",
    // Loopback.
    "127.0.0.0/8",
    // Link-local (RFC 3927), a cloud's metadata among it.
    "169.254.0.0/16",
    "172.16.0.0/12",
    // IETF protocol assignments.
    "192.0.0.0/24",
    // TEST-NET-1 (RFC 5737).
    "192.0.2.0/24",
    "192.168.0.0/16",
    // Benchmarks (RFC 2544).
    "198.18.0.0/15",
    // TEST-NET-2 and 3.
    "198.51.100.0/24",
    "203.0.113.0/24",
    // Multicast.
    "224.0.0.0/4",
    // Reserved, broadcast among it.
    "240.0.0.0/4",
    // Azure's own services on every machine, metadata-like, at a public address.
    "168.63.129.16/32",
];

/// The chains of an installation. iptables takes 28 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chains {
    pub forward: String,
    pub input: String,
    pub refuse: String,
}

impl Chains {
    pub fn of(installation: Uuid) -> Self {
        let id = &installation.simple().to_string()[..10];
        let name = |what| format!("HAAS-{id}-{what}");
        Self { forward: name("FORWARD"), input: name("INPUT"), refuse: name("REFUSE") }
    }

    pub fn all(&self) -> [&str; 3] {
        [&self.forward, &self.input, &self.refuse]
    }
}

/// What leads from a chain of others to one of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Jump {
    /// The chain that it is in, if there is such a one; else the second.
    parents: [&'static str; 2],
    /// Ours.
    pub chain: String,
    /// What follows `-A PARENT`.
    pub rule: String,
}

impl Jump {
    pub fn parent(&self, table: &Table) -> &'static str {
        let [first, second] = self.parents;
        if table.has_chain(first) { first } else { second }
    }
}

/// Everything that should be there for one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    pub family: Family,
    pub bridge: String,
    pub chains: Chains,
    /// Our chains, and what follows `-A CHAIN` for each of their rules.
    pub bodies: Vec<(String, Vec<String>)>,
    pub jumps: [Jump; 2],
}

impl Plan {
    pub fn new(walls: &Walls, family: Family) -> Self {
        let chains = Chains::of(walls.installation);
        let drop = || vec![DROP.to_owned()];
        let refuse = format!("-j {}", chains.refuse);
        let bodies = match family {
            Family::V4 => vec![
                (chains.forward.clone(), forwarded(walls, &refuse)),
                (chains.input.clone(), vec![ANSWERS.to_owned(), refuse]),
                (chains.refuse.clone(), REFUSALS.map(str::to_owned).to_vec()),
            ],
            Family::V6 => vec![(chains.forward.clone(), drop()), (chains.input.clone(), drop())],
        };
        let jump = |parents, chain: &str| Jump {
            parents,
            chain: chain.to_owned(),
            rule: format!("-i {} -j {chain}", walls.bridge),
        };
        // Only newer engines have a DOCKER-USER of IPv6.
        let second = if family == Family::V6 { "FORWARD" } else { DOCKER_USER };
        let jumps = [jump([DOCKER_USER, second], &chains.forward), jump(["INPUT", "INPUT"], &chains.input)];
        Self { family, bridge: walls.bridge.clone(), chains, bodies, jumps }
    }

    /// The text that makes a table as it should be; none if it is. It names each rule of others' chains that
    /// leads to ours, wherever it is, so that one is left at the end: at the top.
    pub fn install(&self, table: &Table) -> Option<String> {
        let made = self.family == Family::V4 && !table.has_chain(DOCKER_USER);
        if !made && self.own_gaps(table).is_empty() {
            return None;
        }
        let mut lines = vec!["*filter".to_owned()];
        // A chain that is named here is made, or emptied.
        lines.extend(self.bodies.iter().map(|(chain, _)| format!(":{chain} - [0:0]")));
        if made {
            lines.push(format!(":{DOCKER_USER} - [0:0]"));
        }
        for (chain, rules) in &self.bodies {
            lines.extend(rules.iter().map(|rule| format!("-A {chain} {rule}")));
        }
        lines.extend(deletions(table, &self.chains));
        lines.extend(self.jumps.iter().map(|jump| format!("-I {} 1 {}", jump.parent(table), jump.rule)));
        Some(script(lines))
    }
}

fn deletions(table: &Table, chains: &Chains) -> Vec<String> {
    table.jumps_to(chains).into_iter().map(|(chain, rule)| format!("-D {chain} {rule}")).collect()
}

fn script(mut lines: Vec<String>) -> String {
    lines.push("COMMIT\n".to_owned());
    lines.join("\n")
}

fn forwarded(walls: &Walls, refuse: &str) -> Vec<String> {
    let mut rules = vec![ANSWERS.to_owned()];
    match walls.egress {
        Egress::None => rules.push(refuse.to_owned()),
        Egress::Internet => {
            // Each other, whatever addresses the engine gives them.
            rules.push(format!("-o {} {refuse}", walls.bridge));
            rules.extend(NOT_PUBLIC.iter().map(|range| format!("-d {range} {refuse}")));
        }
    }
    rules
}

/// The text that takes away what is of an installation; none if there is nothing.
pub(super) fn remove(installation: Uuid, table: &Table) -> Option<String> {
    let chains = Chains::of(installation);
    let there: Vec<&str> = chains.all().into_iter().filter(|chain| table.has_chain(chain)).collect();
    if there.is_empty() {
        return None;
    }
    let mut lines = vec!["*filter".to_owned()];
    lines.extend(deletions(table, &chains));
    lines.extend(there.iter().map(|chain| format!("-F {chain}")));
    lines.extend(there.iter().map(|chain| format!("-X {chain}")));
    Some(script(lines))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const ID: Uuid = Uuid::from_u128(0x0a1b_2c3d_4e5f_6071_8293_a4b5_c6d7_e8f9);

    fn plan(egress: Egress, family: Family) -> Plan {
        Plan::new(&Walls::new(ID, "haas-0a1b2c3d4e", egress).unwrap(), family)
    }

    fn table(text: &str) -> Table {
        Table::parse(text)
    }

    const DOCKER: &str =
        "-P INPUT ACCEPT\n-P FORWARD DROP\n-N DOCKER-USER\n-A FORWARD -j DOCKER-USER\n-A DOCKER-USER -j RETURN\n";

    #[test]
    fn what_is_put_in() {
        let text = |egress, family| plan(egress, family).install(&table(DOCKER)).unwrap();
        insta::assert_snapshot!("egress_none", text(Egress::None, Family::V4));
        insta::assert_snapshot!("egress_internet", text(Egress::Internet, Family::V4));
        let v6 = plan(Egress::Internet, Family::V6).install(&table("-P INPUT ACCEPT\n-P FORWARD ACCEPT\n")).unwrap();
        insta::assert_snapshot!("ipv6", v6);
        assert!(text(Egress::None, Family::V6).contains("-I DOCKER-USER 1"), "where an engine has one for IPv6");
    }

    #[test]
    fn names_fit() {
        for chain in Chains::of(ID).all() {
            assert!(chain.len() <= 28, "{chain}");
        }
    }

    /// What `iptables -S` shows after the text was carried out, as far as we use it.
    fn after(before: &str, script: &str) -> String {
        let mut lines: Vec<String> = before.lines().map(str::to_owned).collect();
        for line in script.lines() {
            if let Some(chain) = line.strip_prefix(':') {
                let chain = chain.split(' ').next().unwrap();
                lines.retain(|line| !line.starts_with(&format!("-A {chain} ")));
                if !lines.contains(&format!("-N {chain}")) {
                    lines.push(format!("-N {chain}"));
                }
            } else if let Some(rule) = line.strip_prefix("-D ") {
                let at = lines.iter().position(|line| *line == format!("-A {rule}")).expect(rule);
                lines.remove(at);
            } else if let Some(rule) = line.strip_prefix("-I ") {
                let (chain, rule) = rule.split_once(" 1 ").unwrap();
                let at = lines.iter().position(|line| line.starts_with(&format!("-A {chain} ")));
                lines.insert(at.unwrap_or(lines.len()), format!("-A {chain} {rule}"));
            } else if line.starts_with("-A ") {
                lines.push(line.to_owned());
            } else if let Some(chain) = line.strip_prefix("-F ") {
                lines.retain(|line| !line.starts_with(&format!("-A {chain} ")));
            } else if let Some(chain) = line.strip_prefix("-X ") {
                lines.retain(|line| *line != format!("-N {chain}"));
            }
        }
        lines.join("\n") + "\n"
    }

    #[test]
    fn twice_is_once_and_a_change_replaces() {
        let first = plan(Egress::None, Family::V4);
        let there = after(DOCKER, &first.install(&table(DOCKER)).unwrap());
        assert!(first.own_gaps(&table(&there)).is_empty());
        assert_eq!(first.install(&table(&there)), None, "twice is once");
        let other = plan(Egress::Internet, Family::V4);
        assert!(!other.own_gaps(&table(&there)).is_empty());
        let changed = after(&there, &other.install(&table(&there)).unwrap());
        assert!(other.own_gaps(&table(&changed)).is_empty(), "{changed}");
        assert_eq!(changed.matches("-j HAAS-0a1b2c3d4e-INPUT\n").count(), 1);
        let moved = Plan::new(&Walls::new(ID, "br-0123456789ab", Egress::Internet).unwrap(), Family::V4);
        let moved_there = after(&changed, &moved.install(&table(&changed)).unwrap());
        assert!(!moved_there.contains("-i haas-0a1b2c3d4e"), "rules for a bridge of before are gone: {moved_there}");
        assert_eq!(after(&moved_there, &remove(ID, &table(&moved_there)).unwrap()), DOCKER);
        assert_eq!(remove(ID, &table(DOCKER)), None);
    }

    #[test]
    fn installations_side_by_side() {
        let one = plan(Egress::None, Family::V4);
        let there = after(DOCKER, &one.install(&table(DOCKER)).unwrap());
        let id = Uuid::from_u128(0xffff_ffff_ffff_ffff_8293_a4b5_c6d7_e8f9);
        let other = Plan::new(&Walls::new(id, "haas-ffffffffff", Egress::Internet).unwrap(), Family::V4);
        let both = after(&there, &other.install(&table(&there)).unwrap());
        assert!(one.own_gaps(&table(&both)).is_empty(), "the other's jump before ours takes nothing of ours: {both}");
        assert!(other.own_gaps(&table(&both)).is_empty());
        assert_eq!(after(&both, &remove(id, &table(&both)).unwrap()), there);
    }

    fn public(address: &str) -> bool {
        let address = u32::from(address.parse::<Ipv4Addr>().unwrap());
        !NOT_PUBLIC.iter().any(|range| {
            let (base, length) = range.split_once('/').unwrap();
            let mask = u32::MAX << (32 - length.parse::<u32>().unwrap());
            assert_eq!(
                u32::from(base.parse::<Ipv4Addr>().unwrap()) & !mask,
                0,
                "{range}: iptables would print another"
            );
            address & mask == u32::from(base.parse::<Ipv4Addr>().unwrap())
        })
    }

    #[test]
    fn what_is_public() {
        for address in
            ["1.1.1.1", "9.9.9.9", "100.63.255.255", "100.128.0.0", "172.15.255.255", "172.32.0.0", "192.88.99.1"]
        {
            assert!(public(address), "{address}");
        }
        for address in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.0.0.11",
            "169.254.169.254",
            "172.16.0.1",
            "172.17.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.0.2.2",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.10",
            "224.0.0.251",
            "239.255.255.250",
            "240.0.0.1",
            "255.255.255.255",
            "100.100.100.200",
            "168.63.129.16",
        ] {
            assert!(!public(address), "{address}");
        }
    }
}
