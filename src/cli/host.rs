//! `haas host add` and `haas host remove`: custom domains.

use clap::{Args, Subcommand};

use super::intent::named;
use super::{Global, Outcome, settings};
use crate::http::InstanceView;
use crate::instance::hosts::extra_host;
use crate::instance::name::{AppName, Hostname, Username};
use crate::manifest::ManifestError;

#[derive(Debug, Subcommand)]
pub(super) enum Host {
    /// Let a custom domain lead to an instance
    Add(Arguments),
    /// Let it lead there no more
    Remove(Arguments),
}

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Whose it is
    user: String,
    /// Which app it serves
    app: String,
    /// A full host name outside of the installation's own domain
    host: String,
    /// A JSON object: the instance
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(global: &Global, command: &Host) -> anyhow::Result<Outcome> {
    let config = settings::of_server(global)?;
    let (Host::Add(arguments) | Host::Remove(arguments)) = command;
    let host = match command {
        Host::Add(_) => extra_host(&arguments.host, &config.installation.domain),
        // What was good before the domain was changed must not stay for ever.
        Host::Remove(_) => Hostname::parse(&arguments.host),
    };
    let parsed = (
        named("user", Username::parse(&arguments.user)),
        named("app", AppName::parse(&arguments.app)),
        named("host", host),
    );
    let (Some(username), Some(appname), Some(host)) = parsed else { return Ok(Outcome::Refused) };
    let manifest = settings::manifest(&config);
    let written = match command {
        Host::Add(_) => manifest.add_host(&username, &appname, &host).await,
        Host::Remove(_) => manifest.remove_host(&username, &appname, &host).await,
    };
    let row = match written {
        Ok(Some(row)) => row,
        Ok(None) => {
            eprintln!("haas: there never was an app {appname} of {username}");
            return Ok(Outcome::NotFound);
        }
        Err(error @ (ManifestError::NameTaken(_) | ManifestError::TooManyHosts)) => {
            eprintln!("haas: {error}");
            return Ok(Outcome::Refused);
        }
        Err(error) => return Err(error.into()),
    };
    if arguments.json {
        say!("{}", serde_json::to_string_pretty(&InstanceView::new(&row, config.public()))?);
        return Ok(Outcome::Done);
    }
    let hosts: Vec<&str> = row.hosts().map(Hostname::as_str).collect();
    let when = if row.routable() { "" } else { ", once it runs" };
    say!("{} answers at {}{when}", row.container, hosts.join(", "));
    Ok(Outcome::Done)
}
