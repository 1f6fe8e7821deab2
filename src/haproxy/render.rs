//! From routes to the text of haproxy.cfg and routes.map.
//!
//! tera does not escape a `.cfg`, so only checked types go in: a newline in a value would be a
//! new line of HAProxy's configuration.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use chrono::SecondsFormat;
use serde::Serialize;
use sha2::{Digest, Sha256};
use tera::{Context, Tera};

use super::files::FIXED;
use super::{HaproxyError, Route, Routes, Settings};
use crate::instance::name::Hostname;

/// The template that is built in.
const TEMPLATE: &str = include_str!("../../templates/haproxy.cfg.tera");
/// The map's name in haproxy.cfg. Relative to it (`default-path config`, HAProxy manual section
/// 3.1), so that the very bytes that were checked in one folder are used in another.
pub(super) const MAP: &str = "routes.map";
/// Stands where the generation goes until it is known: it can't be part of what it is a hash of.
const BLANK: &str = "00000000000000000000000000000000";
/// How long an editor may take to write the template.
pub(super) const HALF_WRITTEN: Duration = Duration::from_millis(80);
/// What comes before the generation in haproxy.cfg.
const VARIABLE: &str = "proc.haas_generation str(";

/// What could be published. Whether HAProxy accepts it, only the checker knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    cfg: String,
    map: String,
    generation: String,
}

impl Candidate {
    /// The text of haproxy.cfg.
    #[must_use]
    pub fn cfg(&self) -> &str {
        &self.cfg
    }

    /// The text of routes.map.
    #[must_use]
    pub fn map(&self) -> &str {
        &self.map
    }

    /// Names what a worker loads and keeps: haproxy.cfg, the pages and the filters, and without
    /// live routes the map.
    #[must_use]
    pub fn generation(&self) -> &str {
        &self.generation
    }
}

/// What the template may use.
#[derive(Serialize)]
struct View<'a> {
    generation: &'a str,
    domain: &'a str,
    dir: &'a str,
    errors: String,
    master_socket: &'a str,
    stats_socket: &'a str,
    http_bind: &'a str,
    /// Empty for plain HTTP alone.
    https_bind: &'a str,
    /// `:8443`, or nothing where the port is the scheme's own.
    https_port_suffix: String,
    /// The folder of certificates, with the slash that HAProxy's runtime commands name it by.
    certs: String,
    /// In seconds; 0 for none.
    hsts: u64,
    allow_insecure: bool,
    user: &'a str,
    group: &'a str,
    maxconn: u32,
    /// Connections past `maxconn` that are accepted to be answered 429.
    maxconn_spare: u32,
    app_maxconn: u32,
    app_requests_in_ten_seconds: u64,
    /// In bytes.
    body_max: u64,
    /// In milliseconds, as are the next ones.
    head_timeout: u128,
    hard_stop_after: u128,
    control: &'a [String],
    control_timeout: u128,
    live_routes: bool,
    sections_max: usize,
    /// Whether there are more apps than sections.
    sections_left_out: bool,
    /// Apps with a section of their own: all of them or, past `sections_max`, none.
    sections: Vec<Section<'a>>,
}

#[derive(Serialize)]
struct Section<'a> {
    host: &'a str,
    /// Separated by spaces.
    extra_hosts: String,
    port: u16,
    container: &'a str,
    since: String,
}

impl<'a> From<&'a Route> for Section<'a> {
    fn from(route: &'a Route) -> Self {
        let extra_hosts: Vec<&str> = route.extra_hosts.iter().map(Hostname::as_str).collect();
        Self {
            host: route.host.as_str(),
            extra_hosts: extra_hosts.join(" "),
            port: route.port,
            container: route.container.as_str(),
            since: route.since.to_rfc3339_opts(SecondsFormat::Secs, true),
        }
    }
}

/// The template's text: read anew each time, so that an edited one counts with the next publication.
pub(super) async fn template(settings: &Settings) -> Result<String, HaproxyError> {
    match &settings.template {
        None => Ok(TEMPLATE.to_owned()),
        Some(path) => tokio::fs::read_to_string(path)
            .await
            .map_err(|error| HaproxyError::Template { reason: format!("{}: {error}", path.display()) }),
    }
}

/// Whether the template is as it will stay: one that was written a moment ago may be half written.
pub(super) async fn template_is_settled(settings: &Settings) -> bool {
    let Some(path) = &settings.template else { return true };
    let modified = tokio::fs::metadata(path).await.and_then(|metadata| metadata.modified());
    !modified.is_ok_and(|modified| modified.elapsed().is_ok_and(|ago| ago < HALF_WRITTEN))
}

/// Renders on a thread where it may take its time.
pub(super) async fn candidate(settings: Settings, routes: Routes, template: String) -> Result<Candidate, HaproxyError> {
    tokio::task::spawn_blocking(move || render(&settings, &routes, &template))
        .await
        .map_err(|error| HaproxyError::Template { reason: error.to_string() })?
}

/// Pure: the same input gives the same bytes.
pub(super) fn render(settings: &Settings, routes: &Routes, template: &str) -> Result<Candidate, HaproxyError> {
    let refused = |reason: String| HaproxyError::Template { reason };
    let text = |path: &'_ std::path::Path| {
        path.to_str().map(str::to_owned).ok_or_else(|| refused(format!("{} is not UTF-8", path.display())))
    };
    let (dir, master_socket, stats_socket, certs) = (
        text(&settings.dir)?,
        text(&settings.master_socket)?,
        text(&settings.stats_socket)?,
        text(&settings.tls.live())?,
    );
    let sections_left_out = routes.len() > settings.sections_max;
    let sections = if sections_left_out { Vec::new() } else { routes.iter().map(Section::from).collect() };
    let view = View {
        generation: BLANK,
        domain: settings.domain.as_str(),
        errors: format!("{dir}/errors"),
        dir: &dir,
        master_socket: &master_socket,
        stats_socket: &stats_socket,
        http_bind: &settings.http_bind,
        https_bind: &settings.https_bind,
        https_port_suffix: settings.public.port_suffix(),
        certs: format!("{certs}/"),
        hsts: settings.hsts.as_secs(),
        allow_insecure: settings.allow_insecure,
        user: &settings.user,
        group: &settings.group,
        maxconn: settings.maxconn,
        maxconn_spare: settings.maxconn / 16 + 64,
        app_maxconn: settings.app_maxconn,
        app_requests_in_ten_seconds: u64::from(settings.app_request_rate) * 10,
        body_max: settings.body_max,
        head_timeout: settings.head_timeout.as_millis(),
        hard_stop_after: settings.hard_stop_after.as_millis(),
        control: &settings.control,
        control_timeout: settings.control_timeout.as_millis(),
        live_routes: settings.live_routes,
        sections_max: settings.sections_max,
        sections_left_out,
        sections,
    };
    let mut tera = Tera::default();
    tera.add_raw_template("haproxy.cfg", template).map_err(|error| refused(chain(&error)))?;
    let context = Context::from_serialize(view).map_err(|error| refused(chain(&error)))?;
    let blank = tera.render("haproxy.cfg", &context).map_err(|error| refused(chain(&error)))?;
    let map = map_text(&routes.entries(&settings.domain));
    let generation = hash(&blank, settings.loads(&map));
    let mark = |word: &str| format!("{VARIABLE}{word})");
    if !blank.contains(&mark(BLANK)) {
        return Err(refused(format!(
            "it must have the line \"set-var {VARIABLE}{{{{ generation }}}})\": a reload is confirmed by it"
        )));
    }
    let cfg = blank.replacen(&mark(BLANK), &mark(&generation), 1);
    Ok(Candidate { cfg, map, generation })
}

/// One line a host: `host section`, as the converter `map` reads it (HAProxy manual, section
/// 7.3.1).
pub(super) fn map_text(entries: &BTreeMap<Hostname, String>) -> String {
    let mut text = String::with_capacity(entries.len() * 64);
    for (host, target) in entries {
        text.push_str(host.as_str());
        text.push(' ');
        text.push_str(target);
        text.push('\n');
    }
    text
}

/// The generation that a haproxy.cfg says it is, if it really is. `map` is what it was loaded
/// with, if that counts (see [`Settings::loads`]).
pub(super) fn own_generation(cfg: &str, map: Option<&str>) -> Option<String> {
    let start = cfg.find(VARIABLE)? + VARIABLE.len();
    let word = cfg.get(start..start + BLANK.len())?;
    let blank = format!("{}{BLANK}{}", cfg.get(..start)?, cfg.get(start + BLANK.len()..)?);
    (hash(&blank, map) == word).then(|| word.to_owned())
}

impl Settings {
    /// What of the map a worker's generation tells: with live routes nothing, since the map
    /// changes while the worker runs.
    pub(super) fn loads<'a>(&self, map: &'a str) -> Option<&'a str> {
        (!self.live_routes).then_some(map)
    }
}

/// 128 bits of SHA-256 over everything that a worker loads and keeps.
fn hash(blank: &str, map: Option<&str>) -> String {
    let mut hasher = Sha256::new();
    for part in [blank, map.unwrap_or_default()].into_iter().chain(FIXED.iter().map(|(_, text)| *text)) {
        // With the lengths, no two different lists of parts run together into the same bytes.
        hasher.update(part.len().to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hex::encode(&hasher.finalize()[..BLANK.len() / 2])
}

/// tera says what is wrong in the error's sources.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
