//! `haas up`: everything below one folder.

use std::io::Write as _;

use clap::Args;

use super::migrate::migrate_as_owner;
use super::settings::Started;
use super::{Global, Outcome, serve};
use crate::config::{Config, PortRange};
use crate::credentials::{InstanceKey, make_secret};
use crate::embedded::{self, DirLock, HaproxyProcess, Layout, Postgres};
use crate::haproxy::{Haproxy, HaproxyError, Proxy, Settings};
use crate::instance::name::Hostname;
use crate::manifest::Manifest;
use crate::{reconcile, server, webhook};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The domain below which every app gets its host [default: haas.localhost]
    #[arg(long, value_parser = |text: &str| Hostname::parse(text).map(|_| text.to_owned()))]
    domain: Option<String>,
    /// Where browsers and Appmaker come in, on loopback [default: 8080]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    http_port: Option<u16>,
    /// Where they come in by HTTPS, on loopback; plain HTTP then leads there [default: 8443]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    https_port: Option<u16>,
    /// Plain HTTP alone
    #[arg(long, conflicts_with = "https_port")]
    no_tls: bool,
    /// Loopback ports for tenants [default: 5521-15520]
    #[arg(long, value_name = "FIRST-LAST", value_parser = |text: &str| PortRange::parse(text).map(|_| text.to_owned()).ok_or("must be FIRST-LAST, between 1 and 65535"))]
    ports: Option<String>,
}

pub(super) async fn run(global: &Global, arguments: &Arguments) -> anyhow::Result<Outcome> {
    let layout = Layout::new(&global.dir)?;
    let started = Started {
        config: global.config.as_deref().map(std::path::absolute).transpose()?,
        domain: arguments.domain.clone(),
        http_port: arguments.http_port,
        tls: !arguments.no_tls,
        https_port: arguments.https_port,
        ports: arguments.ports.clone(),
    };
    let config = started.config(&layout)?;
    layout.create()?;
    let lock = DirLock::acquire(&layout)?;
    started.write(&layout)?;
    make_secret(&layout.secrets_dir().join("provision.secret"))?;
    make_secret(&layout.secrets_dir().join(webhook::KEY_FILE))?;
    InstanceKey::make(&server::instance_key_path(&layout.secrets_dir()))?;

    let stop = serve::stopped()?;
    log::info!("Postgres: {:?}", Postgres::ensure(&layout).await?);
    migrate_as_owner(&config).await?;
    let new_ca = started.tls && !layout.ca_file().exists();
    write_first_configuration(&config).await?;
    if new_ca && layout.ca_file().exists() {
        tell_of_ca(&config, &layout);
    }
    log::info!("HAProxy: {:?}", HaproxyProcess::ensure(&layout, &config.haproxy.binary).await?);
    let on_restart = |what: &'static str| log::debug!("{what} was started again");
    let supervisor = tokio::spawn(embedded::supervise(layout.clone(), config.haproxy.binary.clone(), on_restart));

    let served = server::run(&config, stop).await;
    supervisor.abort();
    // Nobody may start a service while it is being stopped.
    drop(supervisor.await);
    let stopped = (HaproxyProcess::stop(&layout).await, Postgres::stop(&layout).await);
    drop(lock);
    served?;
    stopped.0?;
    stopped.1?;
    log::info!("tenants keep running; `haas down --remove` ends them, `haas up` goes on with them");
    Ok(Outcome::Done)
}

/// How to trust the local CA that was just made.
fn tell_of_ca(config: &Config, layout: &Layout) {
    let ca = layout.ca_file();
    let (ca, domain) = (ca.display(), &config.installation.domain);
    // Whoever does not listen is no reason to end.
    let _ = writeln!(
        std::io::stdout(),
        "A local CA was made: {ca}. Nobody trusts it by itself.\n  \
         curl      curl --cacert {ca} {origin}/healthz\n  \
         system    sudo cp {ca} /usr/local/share/ca-certificates/haas-{domain}.crt && sudo update-ca-certificates\n  \
         browsers  import it as an authority for websites: Firefox under Settings, Certificates; Chromium under \
         Settings, Security, Manage certificates, or certutil -d sql:$HOME/.pki/nssdb -A -t C,, -n haas-{domain} -i {ca}\n\
         Who has {ca_key} can pass for any website towards those who trust it: it stays here, with mode 0600.",
        origin = config.public().origin(domain),
        ca_key = layout.tls_dir().join("ca.key").display(),
    );
}

/// HAProxy needs a file to start with: what the manifest says now. One that is refused leaves
/// the last good one, if there is any.
async fn write_first_configuration(config: &Config) -> anyhow::Result<()> {
    let (live, _) = Manifest::new(config).live().await?;
    let haproxy = Haproxy::new(Settings::from_config(config));
    match haproxy.publish_alone(&reconcile::routes(&live)).await {
        Ok(_) => Ok(()),
        Err(
            error @ (HaproxyError::Rejected { .. } | HaproxyError::Template { .. } | HaproxyError::Unconfirmed { .. }),
        ) if config.haproxy.dir.join("haproxy.cfg").exists() => {
            log::error!("HAProxy starts with its last good configuration: {error}");
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}
