//! /provision and the rest of the control API: requests in, intent into the manifest, answers
//! out. It touches neither Docker nor HAProxy.
//!
//! The bare domain is the control API. Below `/.haas/` every app's host is ours, too (`own`).
//! Everything else gets here only because HAProxy has no route for its host: an app that rests, or is on its way, has its requests held and passed on (`hold`,
//! `forward`); others are told that there is no such app.

mod auth;
mod body;
mod bucket;
mod changes;
mod forward;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod health;
mod hold;
mod hosts;
mod instances;
mod openapi;
mod own;
mod problem;
mod provision;
mod request_id;
pub mod signature;
mod sso;
mod throttle;
mod unrouted;
mod view;
mod wait;

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use actix_web::dev::{Server, Service, ServiceResponse};
use actix_web::guard::GuardContext;
use actix_web::{App, HttpServer, web};

use crate::clients::Clients;
use crate::config::{Config, Listen, Public};
use crate::credentials::InstanceKey;
use crate::failpoint::Faults;
use crate::instance::name::Hostname;
use crate::manifest::Manifest;
use crate::reconcile::{Health, Held, Nudges};

pub use changes::Changes;
pub use openapi::document as openapi_document;
pub use own::sign_on_url;
pub use problem::Problem;
use request_id::RequestId;
pub use throttle::Throttle;
pub use view::InstanceView;

/// What the handlers work with.
#[derive(Clone)]
pub struct Api {
    /// Where intent goes, and answers come from.
    pub manifest: Manifest,
    /// How handlers hear that a row has changed.
    pub nudges: Nudges,
    /// What the reconciler last saw of each part.
    pub health: Health,
    /// Who may ask.
    pub clients: Clients,
    /// Who has failed to show that too often.
    pub throttle: Throttle,
    /// What each of them has changed lately.
    pub changes: Changes,
    /// Where a test ends the process.
    pub faults: Faults,
    /// Requests that wait for apps to come up.
    pub held: Held,
    /// Derives the passwords that admins are signed on with.
    pub key: InstanceKey,
    /// How endpoints are spelled, and how long a request waits.
    pub settings: Settings,
}

/// What the handlers need of the configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    domain: Hostname,
    public: Public,
    wait: Duration,
    workers: usize,
    wake_timeout: Duration,
    /// Requests that one app may have under way.
    app_maxconn: u32,
    /// The longest request body, in bytes.
    body_max: u64,
}

impl Settings {
    /// The part of the configuration that the API goes by.
    #[must_use]
    pub fn from_config(config: &Config) -> Self {
        Self {
            domain: config.installation.domain.clone(),
            public: config.public(),
            wait: config.http.wait,
            workers: config.http.workers,
            wake_timeout: config.lifecycle.wake_timeout,
            app_maxconn: config.haproxy.app_maxconn,
            body_max: u64::from(config.haproxy.body_max_mib) * 1024 * 1024,
        }
    }

    /// The control API's own address, as clients spell it.
    fn origin(&self) -> String {
        self.public.origin(&self.domain)
    }
}

/// Where the server takes requests from; made by the caller, so that a test can take port 0.
#[derive(Debug)]
pub enum Listener {
    /// A TCP socket.
    Tcp(std::net::TcpListener),
    /// A Unix socket.
    Unix(std::os::unix::net::UnixListener),
}

impl Listener {
    /// Binds. A socket file that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// What the system says; `AddrInUse` when somebody listens there.
    pub fn bind(listen: &Listen) -> io::Result<Self> {
        match listen {
            Listen::Tcp(address) => std::net::TcpListener::bind(address).map(Self::Tcp),
            Listen::Unix(path) => bind_unix(path).map(Self::Unix),
        }
    }
}

fn bind_unix(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    use std::os::unix::net::{UnixListener, UnixStream};
    if UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, format!("{}: somebody listens there", path.display())));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // HAProxy's workers may run as another user; who may come near is the folder's to say.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

/// Starts the server; it runs when it is awaited.
///
/// # Errors
/// When the socket can't be used.
pub fn serve(api: Api, listener: Listener) -> io::Result<Server> {
    let workers = api.settings.workers;
    let server = HttpServer::new(move || {
        let domain = api.settings.domain.clone();
        let control_host = move |context: &GuardContext<'_>| host(context.head()).as_deref() == Some(domain.as_str());
        let own = api.settings.domain.clone();
        App::new()
            .app_data(web::Data::new(api.clone()))
            .wrap_fn(move |request, service| {
                let method = request.method().clone();
                // What tenants' users ask for is not ours to write down.
                let own = host(request.head()).as_deref() == Some(own.as_str());
                let path = if own { request.path().to_owned() } else { "an app's".to_owned() };
                let began = std::time::Instant::now();
                let id = RequestId::of(request.headers());
                let answer = id.clone().scope(service.call(request));
                async move {
                    let mut answer: ServiceResponse = answer.await?;
                    if let Some(value) = id.header() {
                        answer.headers_mut().insert(request_id::HEADER, value);
                    }
                    let milliseconds = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                    // What asks for this asks every few seconds.
                    let level = if path == "/healthz" || !own { log::Level::Debug } else { log::Level::Info };
                    let status = answer.status().as_u16();
                    log::log!(level, status, milliseconds, request = id.as_str(); "{method} {path:?}");
                    Ok(answer)
                }
            })
            .service(
                web::scope("")
                    .guard(actix_web::guard::fn_guard(control_host))
                    .service(resource("/provision", "POST").route(web::post().to(provision::provision)))
                    .service(resource("/deprovision", "POST").route(web::post().to(provision::deprovision)))
                    .service(resource("/restore", "POST").route(web::post().to(provision::restore)))
                    .service(resource("/sso", "POST").route(web::post().to(sso::sso)))
                    .service(resource("/instances", "GET").route(web::get().to(instances::list)))
                    .service(resource("/instances/{username}/{appname}", "GET").route(web::get().to(instances::show)))
                    .service(resource("/instances/{username}/{appname}/hosts", "PUT").route(web::put().to(hosts::put)))
                    .service(resource("/healthz", "GET").route(web::get().to(health::healthz)))
                    .service(resource("/readyz", "GET").route(web::get().to(health::readyz)))
                    .service(resource("/openapi.json", "GET").route(web::get().to(openapi::openapi)))
                    .default_service(web::to(no_such_path)),
            )
            .default_service(web::to(unrouted::unrouted))
    })
    .workers(workers)
    .disable_signals()
    .shutdown_timeout(3)
    // Whoever goes away while a request is held is to be seen going.
    .h1_allow_half_closed(false)
    .tcp_nodelay(true)
    // A provisioning request waits in its handler, not here.
    .client_request_timeout(Duration::from_secs(10));
    let server = match listener {
        Listener::Tcp(socket) => server.listen(socket)?,
        Listener::Unix(socket) => server.listen_uds(socket)?,
    };
    Ok(server.run())
}

/// A path that takes one method; whoever tries another one is told which (RFC 9110, section 15.5.6).
fn resource(path: &str, allow: &'static str) -> actix_web::Resource {
    web::resource(path).default_service(web::to(move || async move { Problem::MethodNotAllowed { allow } }))
}

async fn no_such_path() -> Problem {
    Problem::NoSuchPath
}

/// The host that a request is for, without port and trailing dot, in lower case.
fn host(head: &actix_web::dev::RequestHead) -> Option<String> {
    let given = match head.uri.host() {
        Some(host) => host,
        None => head.headers.get(actix_web::http::header::HOST)?.to_str().ok()?,
    };
    let host = given.split(':').next().unwrap_or_default().trim_end_matches('.');
    Some(host.to_ascii_lowercase())
}
