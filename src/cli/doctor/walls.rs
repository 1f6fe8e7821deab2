//! Whether the rules of `haas firewall` are there, as far as that can be seen.

use uuid::Uuid;

use super::Findings;
use crate::cli::firewall::bridge_of;
use crate::config::Config;
use crate::firewall::{self, Walls};
use crate::instance::Instance;

const PART: &str = "firewall";

pub(super) async fn look(config: &Config, installation: Uuid, live: &[Instance], findings: &mut Findings) {
    let egress = config.tenant.egress;
    let other = live.iter().filter(|row| row.spec.as_ref().is_some_and(|spec| spec.egress != egress)).count();
    if other > 0 {
        findings.warn(
            PART,
            format!("{other} app(s) were made for another tenant.egress: their resolver is the other one's"),
            "`haas roll` makes them anew",
        );
    }
    if !firewall::may_look() {
        return findings.unknown(PART, "whether tenants are walled off: only root can see the machine's rules");
    }
    // That Docker does not answer stands elsewhere.
    let Ok(bridge) = bridge_of(installation).await else { return };
    let gaps = match Walls::new(installation, &bridge, egress) {
        Ok(walls) => walls.gaps().await,
        Err(error) => Err(error),
    };
    match gaps {
        Ok(gaps) if gaps.is_empty() => {
            findings.ok(PART, format!("tenants on {bridge} are walled off; egress {egress}"));
        }
        Ok(gaps) => {
            let lines: Vec<String> = gaps.iter().map(ToString::to_string).collect();
            let text = format!("tenants on {bridge} are not walled off as they should be:\n{}", lines.join("\n"));
            findings.warn(PART, text, "haas firewall --install, as root");
        }
        Err(error) => findings.unknown(PART, format!("whether tenants are walled off: {error}")),
    }
}
