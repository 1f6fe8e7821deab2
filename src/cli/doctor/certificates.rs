//! Each certificate, with its names and the days that it has left, and the hosts without one.

use chrono::Utc;

use super::Findings;
use crate::config::Config;
use crate::haproxy::{Certificates, Haproxy, Route, Settings};
use crate::instance::Instance;
use crate::reconcile;
use crate::tls::{Authority, Bundle};

const PART: &str = "tls";
/// Days left below which it is time to renew; the local CA's leaves are renewed before that.
const DAYS_FEW: i64 = 21;
/// So many names, or hosts, are listed.
const LISTED: usize = 8;

pub(super) async fn look(config: &Config, live: &[Instance], findings: &mut Findings) {
    if config.haproxy.https_bind.is_empty() {
        return;
    }
    let settings = Settings::from_config(config);
    if config.tls.local_ca {
        look_at_ca(&settings, findings);
    }
    match Haproxy::new(settings).certificates().await {
        Ok(found) => {
            for (file, bundle) in &found.live {
                look_at_one(file, bundle, findings);
            }
            look_at_folder(config, &found, findings);
            look_at_hosts(config, live, &found, findings);
        }
        Err(error) => findings.broken(PART, error.to_string(), "see haproxy, and the folder tls.dir"),
    }
}

fn look_at_ca(settings: &Settings, findings: &mut Findings) {
    let dir = &settings.tls.dir;
    match Authority::read(dir) {
        Ok(Some(ca)) => {
            let days = (ca.not_after - Utc::now()).num_days();
            let text = format!("local CA {}: {days} days left", dir.join("ca.pem").display());
            if days < DAYS_FEW {
                findings.warn(PART, text, "remove ca.pem and ca.key for a new one, which has to be trusted anew");
            } else {
                findings.ok(PART, text);
            }
        }
        Ok(None) => findings.warn(PART, "there is no local CA yet", "the server makes it when it publishes"),
        Err(error) => findings.broken(PART, error.to_string(), "until then no new host gets a certificate"),
    }
}

fn look_at_one(file: &str, bundle: &Bundle, findings: &mut Findings) {
    let now = Utc::now();
    let (names, days) = (some(&bundle.names), bundle.days_left(now));
    let renew = "renew it: put the new one in its place in tls.dir/certs";
    if bundle.check_expiry(now).is_err() {
        findings.broken(PART, format!("{file}: {names}: expired on {}", bundle.not_after.format("%F")), renew);
    } else if bundle.not_before > now {
        let text = format!("{file}: {names}: valid only from {} on", bundle.not_before);
        findings.warn(PART, text, "clients refuse it until then; is this machine's clock right?");
    } else if days < DAYS_FEW {
        findings.warn(PART, format!("{file}: {names}: {days} days left"), renew);
    } else {
        findings.ok(PART, format!("{file}: {names}: {days} days left"));
    }
}

fn look_at_folder(config: &Config, found: &Certificates, findings: &mut Findings) {
    for refusal in &found.refused {
        let rest = if refusal.older_serves { " (the one before it serves on)" } else { "" };
        findings.broken(
            PART,
            format!("{} is refused: {}{rest}", refusal.file, refusal.reason),
            format!("correct, or remove, {}", config.tls.dir.join("certs").join(&refusal.file).display()),
        );
    }
    if !found.amiss.is_empty() {
        let text = format!("not, or not in its latest state, in the running HAProxy: {}", some(&found.amiss));
        findings.warn(PART, text, "the server puts it in force within reconcile.period; its log says why if not");
    }
}

fn look_at_hosts(config: &Config, live: &[Instance], found: &Certificates, findings: &mut Findings) {
    let routes = reconcile::routes(live);
    let hosts = routes.iter().flat_map(Route::hosts).chain([&config.installation.domain]);
    let bare: Vec<String> = hosts.filter(|host| !found.cover(host)).map(ToString::to_string).collect();
    if !bare.is_empty() {
        findings.broken(
            PART,
            format!("no certificate covers {} host(s): {}", bare.len(), bare.join(" ")),
            "put one into tls.dir/certs; a wildcard covers one label only",
        );
    }
}

fn some(of: &[String]) -> String {
    let rest = of.len().saturating_sub(LISTED);
    let listed = of.iter().take(LISTED).cloned().collect::<Vec<_>>().join(" ");
    if rest == 0 { listed } else { format!("{listed} and {rest} more") }
}
