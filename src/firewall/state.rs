//! What is there, as `iptables -S` prints it, and what that lacks.

use super::Family;
use super::rules::{Chains, DOCKER_USER, Jump, Plan};

/// The table `filter`: its chains, and their rules in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Table {
    chains: Vec<String>,
    /// The chain, and what follows it.
    rules: Vec<(String, String)>,
}

impl Table {
    /// Reads lines such as `-P INPUT ACCEPT`, `-N DOCKER-USER` and `-A FORWARD -j DOCKER-USER`.
    pub fn parse(text: &str) -> Self {
        let mut table = Self::default();
        for line in text.lines() {
            let Some((kind, rest)) = line.trim().split_once(' ') else { continue };
            let (chain, rule) = rest.split_once(' ').unwrap_or((rest, ""));
            match kind {
                "-P" | "-N" => table.chains.push(chain.to_owned()),
                "-A" => table.rules.push((chain.to_owned(), rule.to_owned())),
                _ => {}
            }
        }
        table
    }

    pub fn has_chain(&self, name: &str) -> bool {
        self.chains.iter().any(|chain| chain == name)
    }

    fn rules_of(&self, chain: &str) -> Vec<&str> {
        self.rules.iter().filter(|(of, _)| of == chain).map(|(_, rule)| rule.as_str()).collect()
    }

    /// Every rule, of others' chains, that leads to one of these.
    pub fn jumps_to(&self, chains: &Chains) -> Vec<(&str, &str)> {
        let ours = |chain: &str| chains.all().contains(&chain);
        let leads = |(of, rule): &&(String, String)| !ours(of) && target(rule).is_some_and(ours);
        self.rules.iter().filter(leads).map(|(of, rule)| (of.as_str(), rule.as_str())).collect()
    }
}

/// Where a rule leads.
fn target(rule: &str) -> Option<&str> {
    let mut words = rule.split(' ');
    words.find(|word| *word == "-j" || *word == "-g")?;
    words.next()
}

/// Whether a rule can take nothing away from a wall behind it: it is for another interface, refuses, or is a
/// wall of ours around another bridge.
fn harmless(rule: &str, bridge: &str) -> bool {
    // What somebody says in a comment is in quotes, and means nothing here.
    let plain: String = rule.split('"').step_by(2).collect();
    let words: Vec<&str> = plain.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "-i");
    let other_interface = at.is_some_and(|at| {
        let negated = at > 0 && words[at - 1] == "!";
        words.get(at + 1).is_some_and(|name| !negated && !name.ends_with('+') && *name != bridge)
    });
    other_interface || matches!(target(&plain), Some("DROP" | "REJECT" | "LOG" | "NFLOG") | None)
}

impl Plan {
    /// What is wrong with Docker's own way to its chain.
    pub fn dockers_gap(&self, table: &Table) -> Option<String> {
        if self.family == Family::V4 { leads_to_docker_user(table, &self.bridge) } else { None }
    }

    /// What putting the rules in would mend.
    pub fn own_gaps(&self, table: &Table) -> Vec<String> {
        let there = table.jumps_to(&self.chains);
        if there.is_empty() && !self.bodies.iter().any(|(chain, _)| table.has_chain(chain)) {
            return vec!["none of the rules is there".to_owned()];
        }
        let mut gaps = Vec::new();
        for (chain, wanted) in &self.bodies {
            gaps.extend(body_gaps(table, chain, wanted));
        }
        let wanted = |jump: &Jump, (of, rule): (&str, &str)| of == jump.parent(table) && rule == jump.rule;
        for jump in &self.jumps {
            let parent = jump.parent(table);
            match there.iter().filter(|found| wanted(jump, **found)).count() {
                0 => gaps.push(format!("{parent} lacks `{}`", jump.rule)),
                1 => {}
                more => gaps.push(format!("{parent} has `{}` {more} times", jump.rule)),
            }
            let before = table.rules_of(parent).into_iter().take_while(|rule| *rule != jump.rule);
            if there.iter().any(|found| wanted(jump, *found)) {
                let harmful = before.filter(|rule| !harmless(rule, &self.bridge));
                gaps.extend(harmful.map(|rule| format!("{parent} has `{rule}` before ours")));
            }
        }
        let strange = there.iter().filter(|found| !self.jumps.iter().any(|jump| wanted(jump, **found)));
        gaps.extend(strange.map(|(of, rule)| format!("{of} has `{rule}`, which should not be there")));
        gaps
    }
}

fn body_gaps(table: &Table, chain: &str, wanted: &[String]) -> Vec<String> {
    if !table.has_chain(chain) {
        return vec![format!("there is no chain {chain}")];
    }
    let there = table.rules_of(chain);
    let lacking = wanted.iter().filter(|rule| !there.contains(&rule.as_str()));
    let mut gaps: Vec<String> = lacking.map(|rule| format!("{chain} lacks `{rule}`")).collect();
    let strange = there.iter().filter(|rule| !wanted.iter().any(|wanted| wanted == *rule));
    gaps.extend(strange.map(|rule| format!("{chain} has `{rule}`, which should not be there")));
    if gaps.is_empty() && there != wanted {
        gaps.push(format!("{chain} has its rules in another order, or twice"));
    }
    gaps
}

/// Docker puts that rule in when it makes its chain; after somebody has flushed FORWARD, an engine with
/// live-restore was seen to start without doing so again. What others put before it may let tenants
/// pass; of a chain of theirs that can't be known.
fn leads_to_docker_user(table: &Table, bridge: &str) -> Option<String> {
    let rules = table.rules_of("FORWARD");
    let jump = format!("-j {DOCKER_USER}");
    let Some(at) = rules.iter().position(|rule| *rule == jump) else {
        return Some(format!("FORWARD lacks `{jump}`, Docker's own: restart Docker, or `iptables -I FORWARD {jump}`"));
    };
    let accepts = rules[..at].iter().find(|rule| target(rule) == Some("ACCEPT") && !harmless(rule, bridge))?;
    Some(format!("FORWARD has `{accepts}` before `{jump}`: take that rule away, or put it behind"))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::Walls;
    use super::*;
    use crate::instance::spec::Egress;

    const BRIDGE: &str = "haas-0a1b2c3d4e";

    fn plan() -> Plan {
        let id = Uuid::from_u128(0x0a1b_2c3d_4e5f_6071_8293_a4b5_c6d7_e8f9);
        Plan::new(&Walls::new(id, BRIDGE, Egress::None).unwrap(), Family::V4)
    }

    const GOOD: &str = "-P INPUT ACCEPT
-P FORWARD DROP
-N DOCKER-USER
-N HAAS-0a1b2c3d4e-FORWARD
-N HAAS-0a1b2c3d4e-INPUT
-N HAAS-0a1b2c3d4e-REFUSE
-A INPUT -i haas-0a1b2c3d4e -j HAAS-0a1b2c3d4e-INPUT
-A INPUT -j ufw-before-input
-A FORWARD -j DOCKER-USER
-A DOCKER-USER -i haas-0a1b2c3d4e -j HAAS-0a1b2c3d4e-FORWARD
-A DOCKER-USER -j RETURN
-A HAAS-0a1b2c3d4e-FORWARD -m conntrack --ctstate ESTABLISHED --ctdir REPLY -j RETURN
-A HAAS-0a1b2c3d4e-FORWARD -j HAAS-0a1b2c3d4e-REFUSE
-A HAAS-0a1b2c3d4e-INPUT -m conntrack --ctstate ESTABLISHED --ctdir REPLY -j RETURN
-A HAAS-0a1b2c3d4e-INPUT -j HAAS-0a1b2c3d4e-REFUSE
-A HAAS-0a1b2c3d4e-REFUSE -p tcp -j REJECT --reject-with tcp-reset
-A HAAS-0a1b2c3d4e-REFUSE -j REJECT --reject-with icmp-admin-prohibited
";

    fn gaps(text: &str) -> Vec<String> {
        let table = Table::parse(text);
        plan().own_gaps(&table).into_iter().chain(plan().dockers_gap(&table)).collect()
    }

    #[test]
    fn each_line_that_somebody_deletes_is_missed() {
        assert_eq!(gaps(GOOD), Vec::<String>::new());
        for line in GOOD.lines().filter(|line| line.contains("HAAS-") || *line == "-A FORWARD -j DOCKER-USER") {
            let without = GOOD.replace(&format!("{line}\n"), "");
            assert!(!gaps(&without).is_empty(), "{line}");
            let rule = line.starts_with("-A ") && line.contains("HAAS-");
            assert!(!rule || plan().install(&Table::parse(&without)).is_some(), "{line}");
        }
    }

    #[test]
    fn where_nothing_is_there_one_line_says_so() {
        let bare: Vec<&str> = GOOD.lines().filter(|line| !line.contains("HAAS-")).collect();
        assert_eq!(gaps(&bare.join("\n")), ["none of the rules is there"]);
    }

    #[test]
    fn what_was_added_or_put_before_is_seen() {
        let add = |at: &str, rule: &str| gaps(&GOOD.replace(at, &format!("{rule}\n{at}")));
        for (at, rule) in [
            ("-A HAAS-0a1b2c3d4e-INPUT -j", "-A HAAS-0a1b2c3d4e-INPUT -p tcp -j ACCEPT"),
            ("-A INPUT -i", "-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT"),
            ("-A INPUT -i", "-A INPUT ! -i lo -j ACCEPT"),
            ("-A INPUT -i", "-A INPUT -i haas-+ -j ACCEPT"),
            ("-A INPUT -i", "-A INPUT -i haas-0a1b2c3d4e -j ACCEPT"),
            ("-A INPUT -i", "-A INPUT -j ufw-before-input"),
            ("-A DOCKER-USER -i", "-A DOCKER-USER -j RETURN"),
            ("-A DOCKER-USER -i", "-A DOCKER-USER -o eth0 -j ACCEPT"),
            ("-A FORWARD -j", "-A FORWARD -j ACCEPT"),
            ("-A FORWARD -j", "-A OUTPUT -j HAAS-0a1b2c3d4e-INPUT"),
        ] {
            assert_eq!(add(at, rule).len(), 1, "{rule}: {:?}", add(at, rule));
        }
        for (at, rule) in [
            ("-A INPUT -i", "-A INPUT -i lo -j ACCEPT"),
            ("-A INPUT -i", "-A INPUT -s 198.51.100.9/32 -j DROP"),
            ("-A INPUT -i", "-A INPUT -i haas-ffffffffff -j HAAS-ffffffffff-INPUT"),
            ("-A FORWARD -j", "-A FORWARD -i wg0 -j ACCEPT"),
            ("-A FORWARD -j", "-A FORWARD -j LIBVIRT_FWI"),
        ] {
            assert!(add(at, rule).is_empty(), "{rule}: {:?}", add(at, rule));
        }
        assert_eq!(gaps(&GOOD.replace("-i haas-0a1b2c3d4e -j", "-i br-0123456789ab -j")).len(), 4, "another bridge");
    }
}
