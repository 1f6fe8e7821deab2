use std::process::Command;

use chrono::{DateTime, Utc};
use proptest::prelude::*;

use super::*;
use crate::config::{Config, Public};
use crate::haproxy::files;
use crate::instance::name::{AppName, ContainerName, HostPattern, Hostname, Username};

fn settings() -> Settings {
    let mut settings = Settings::from_config(&Config::load(None, [], [].into()).unwrap());
    settings.dir = "/var/haas/haproxy".into();
    settings
}

fn route(user: &str, app: &str, pattern: HostPattern, port: u16, since: DateTime<Utc>) -> Option<Route> {
    let (user, app) = (Username::parse(user).ok()?, AppName::parse(app).ok()?);
    let host = pattern.host(&user, &app, &Hostname::parse("haas.localhost").ok()?).ok()?;
    Some(Route { host, extra_hosts: Vec::new(), port, container: ContainerName::of(&user, &app), since })
}

fn two() -> Routes {
    let since = "2026-01-02T03:04:05.678Z".parse().unwrap();
    let of = |user, app, port| route(user, app, HostPattern::Nested, port, since).unwrap();
    Routes::new([of("bob", "todo", 5522), of("alice", "notes", 5521)])
}

/// One host more, and one of another app's.
fn more() -> Routes {
    let mut routes: Vec<Route> = two().iter().cloned().collect();
    routes[0].extra_hosts = vec![Hostname::parse("www.example.org").unwrap()];
    routes.push(Route { host: Hostname::parse("x.y.haas.localhost").unwrap(), port: 1, ..routes[1].clone() });
    Routes::new(routes)
}

fn rendered(settings: &Settings, routes: &Routes) -> Candidate {
    render(settings, routes, TEMPLATE).unwrap()
}

#[test]
fn no_app() {
    insta::assert_snapshot!(rendered(&settings(), &Routes::default()).cfg());
}

#[test]
fn two_apps() {
    let candidate = rendered(&settings(), &two());
    insta::assert_snapshot!(candidate.cfg());
    assert_eq!(
        candidate.map(),
        "notes.alice.haas.localhost notes.alice.haas.localhost:5521\ntodo.bob.haas.localhost todo.bob.haas.localhost:5522\n"
    );
}

#[test]
fn the_control_host_leads_to_no_app_whoever_has_it() {
    let settings = Settings { domain: Hostname::parse("www.example.org").unwrap(), ..settings() };
    let candidate = rendered(&settings, &more());
    assert!(!candidate.map().lines().any(|line| line.starts_with("www.example.org")), "{}", candidate.map());
    assert_eq!(candidate.map().lines().count(), 3);
}

#[test]
fn more_apps_than_sections_and_two_control_servers() {
    let mut settings = settings();
    settings.sections_max = 1;
    settings.control = vec!["10.0.0.1:5500".to_owned(), "unix@/run/haas.sock".to_owned()];
    (settings.user, settings.group) = ("haproxy".to_owned(), "haproxy".to_owned());
    insta::assert_snapshot!(rendered(&settings, &two()).cfg());
}

#[test]
fn without_live_routes_the_generation_names_both_files() {
    let settings = Settings { live_routes: false, ..settings() };
    let candidate = rendered(&settings, &two());
    let own = |cfg: &str, map: &str| own_generation(cfg, Some(map));
    assert_eq!(own(candidate.cfg(), candidate.map()).as_deref(), Some(candidate.generation()));
    assert_eq!(own(candidate.cfg(), "other.haas.localhost 127.0.0.1:1\n"), None);
    assert_eq!(own(&format!("{}\n", candidate.cfg()), candidate.map()), None);
    assert_eq!(own("", ""), None);
    let mut other = settings;
    other.maxconn += 1;
    assert_ne!(rendered(&other, &two()).generation(), candidate.generation());
}

#[test]
fn with_live_routes_the_generation_names_what_a_worker_keeps() {
    let mut settings = settings();
    settings.sections_max = 0;
    let (one, other) = (rendered(&settings, &two()), rendered(&settings, &more()));
    assert_ne!(one.map(), other.map());
    assert_eq!(one.generation(), other.generation(), "past the sections no route needs a reload");
    assert_eq!(own_generation(one.cfg(), None).as_deref(), Some(one.generation()));
    assert_eq!(own_generation(&format!("{}\n", one.cfg()), None), None);
}

#[test]
fn https_and_everything_that_goes_with_it() {
    let mut settings = settings();
    settings.https_bind = "*:8443".to_owned();
    settings.public = Public { https: true, port: 8443 };
    settings.hsts = Duration::from_secs(86400);
    insta::assert_snapshot!(rendered(&settings, &two()).cfg());
    settings.allow_insecure = true;
    assert!(!rendered(&settings, &two()).cfg().contains("deny_status 403"));
}

#[test]
fn two_heartbeats_of_a_minute_may_be_missed() {
    let candidate = rendered(&settings(), &two());
    for side in ["client", "server"] {
        assert!(candidate.cfg().contains(&format!("timeout {side} 180s")));
    }
}

fn certificate() -> String {
    let made = rcgen::generate_simple_self_signed(["haas.localhost".to_owned()]).unwrap();
    made.cert.pem() + &made.signing_key.serialize_pem()
}

/// Another HAProxy than the one that is installed (scripts/newest-haproxy), if one is named.
fn program() -> std::ffi::OsString {
    std::env::var_os("HAAS_TEST_HAPROXY").unwrap_or_else(|| "haproxy".into())
}

/// With `-dW` a warning counts as an error (HAProxy management guide, section 3): a deprecated
/// keyword is one.
fn accepted(settings: &Settings, routes: &Routes) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings.clone();
    settings.dir = folder.path().to_owned();
    settings.tls.dir = folder.path().to_owned();
    let certs = settings.tls.live();
    let candidate = rendered(&settings, routes);
    for folder in [certs.clone(), folder.path().join("errors"), folder.path().join("filters")] {
        std::fs::create_dir(folder).unwrap();
    }
    std::fs::write(certs.join("one.pem"), certificate()).unwrap();
    for (name, text) in FIXED {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    std::fs::write(folder.path().join(MAP), candidate.map()).unwrap();
    std::fs::write(folder.path().join(files::CFG), candidate.cfg()).unwrap();
    let output =
        Command::new(program()).args(["-dW", "-c", "-f"]).arg(folder.path().join(files::CFG)).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() && !said.contains("WARNING") { Ok(()) } else { Err(said) }
}

#[test]
fn haproxy_has_nothing_to_warn_about() {
    let mut settings = settings();
    for control in [vec!["127.0.0.1:5500"], vec!["unix@/tmp/haas.sock", "127.0.0.1:5501"]] {
        settings.control = control.into_iter().map(str::to_owned).collect();
        for (sections_max, https_bind) in [(0, ""), (2000, ""), (0, "127.0.0.1:8443"), (2000, "127.0.0.1:8443")] {
            settings.sections_max = sections_max;
            settings.https_bind = https_bind.to_owned();
            accepted(&settings, &two()).unwrap();
            accepted(&settings, &more()).unwrap();
        }
    }
    settings.hard_stop_after = Duration::from_millis(1);
    accepted(&settings, &Routes::default()).unwrap();
}

const LABEL: &str = "[a-z0-9]([a-z0-9]|-[a-z0-9]){0,30}";

prop_compose! {
    fn legal_routes()(
        pattern in prop_oneof![Just(HostPattern::Nested), Just(HostPattern::Flat)],
        of in prop::collection::vec((LABEL, LABEL, 1..=u16::MAX, 0..4_000_000_000_i64), 0..20),
    ) -> Routes {
        Routes::new(of.into_iter().filter_map(|(user, app, port, since)| {
            route(&user, &app, pattern, port, DateTime::from_timestamp(since, 0)?)
        }))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn haproxy_accepts_every_legal_set(routes in legal_routes()) {
        prop_assert_eq!(accepted(&settings(), &routes), Ok(()));
    }
}

proptest! {
    #[test]
    fn no_field_adds_a_line(routes in legal_routes()) {
        let settings = settings();
        let empty = rendered(&settings, &Routes::default()).cfg().lines().count();
        let candidate = rendered(&settings, &routes);
        prop_assert_eq!(candidate.map().lines().count(), routes.len());
        prop_assert_eq!(candidate.cfg().lines().count(), empty + 4 * routes.len());
    }

    #[test]
    fn the_order_that_routes_come_in_does_not_matter(routes in legal_routes()) {
        let backwards = Routes::new(routes.iter().rev().cloned());
        prop_assert_eq!(rendered(&settings(), &routes), rendered(&settings(), &backwards));
        for route in &routes {
            prop_assert!(routes.contains(&route.host, route.port));
        }
    }
}
