//! `haas client`: who may ask the control API, and for what.

use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::json;

use super::intent::named;
use super::table::{print, table};
use super::{Global, Outcome, settings};
use crate::clients::{self, Clients, Policy, Right, UsernamePattern, Usernames};
use crate::credentials::make_secret;
use crate::whole_file::{self, Durability};

#[derive(Debug, Subcommand)]
pub(super) enum Client {
    /// List clients, their keys and what they may do
    List(List),
    /// Make a client with a key, or another key for one that is there
    Add(Add),
    /// Take one of a client's keys away, or the whole client
    Remove(Remove),
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// A JSON array
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Add {
    /// Its id: letters, digits, - and _
    client: String,
    /// A name for the key, beside one that is there
    #[arg(long)]
    key: Option<String>,
    /// What it may do: provision, deprovision, read, sso or admin; several times. Without, everything
    #[arg(long = "right", value_name = "RIGHT", value_parser = Right::parse)]
    rights: Vec<Right>,
    /// For whom: a username, or the beginning of some and a star; several times. Without, for everybody
    #[arg(long = "user", value_name = "PATTERN", value_parser = |text: &str| UsernamePattern::try_from(text.to_owned()))]
    usernames: Vec<UsernamePattern>,
    /// Instead of a secret: a file with the public keys (a JWK set) of tokens that it signs itself
    #[arg(long, value_name = "FILE")]
    jwks: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Remove {
    /// Its id
    client: String,
    /// This key alone
    #[arg(long)]
    key: Option<String>,
    /// Of those, the public keys of its tokens alone
    #[arg(long)]
    jwks: bool,
}

pub(super) async fn run(global: &Global, command: &Client) -> anyhow::Result<Outcome> {
    let config = settings::of_server(global)?;
    let dir = &config.secrets.dir;
    let manifest = settings::manifest(&config);
    if !matches!(command, Client::List(_)) {
        // What could not be written down is not done.
        manifest.ping().await?;
    }
    let (done, kind, detail) = match command {
        Client::List(arguments) => return list(dir, arguments),
        Client::Add(arguments) => (
            add(dir, arguments)?,
            "client added",
            json!({ "client": arguments.client, "key": arguments.key, "jwks": arguments.jwks.is_some() }),
        ),
        Client::Remove(arguments) => (
            remove(dir, arguments)?,
            "client removed",
            json!({ "client": arguments.client, "key": arguments.key, "jwks": arguments.jwks }),
        ),
    };
    if done == Outcome::Done {
        manifest.note_change(kind, detail).await?;
    }
    Ok(done)
}

fn list(dir: &Path, arguments: &List) -> anyhow::Result<Outcome> {
    let clients = Clients::read(dir)?;
    for mistake in clients.mistakes() {
        eprintln!("haas: {mistake}");
    }
    let rights = |policy: &Policy| policy.rights.iter().map(|right| right.as_str()).collect::<Vec<_>>();
    let usernames = |policy: &Policy| match &policy.usernames {
        Usernames::All => vec!["*".to_owned()],
        Usernames::Only(patterns) => patterns.iter().map(ToString::to_string).collect(),
    };
    if arguments.json {
        let keys = clients.keys().into_iter().map(|key| {
            let policy = &key.client.policy;
            json!({ "key": key.id, "client": key.client.id, "rights": rights(policy), "usernames": usernames(policy) })
        });
        say!("{}", serde_json::to_string_pretty(&keys.collect::<Vec<_>>())?);
        return Ok(Outcome::Done);
    }
    let mut rows = table(&["CLIENT", "KEY", "RIGHTS", "USERS"]);
    for key in clients.keys() {
        let policy = &key.client.policy;
        rows.add_row([key.client.id.clone(), key.id.clone(), rights(policy).join(" "), usernames(policy).join(" ")]);
    }
    print(&rows);
    Ok(Outcome::Done)
}

fn add(dir: &Path, arguments: &Add) -> anyhow::Result<Outcome> {
    if !are_names(&arguments.client, arguments.key.as_deref()) {
        return Ok(Outcome::Refused);
    }
    let ending = if arguments.jwks.is_some() { "jwks" } else { "secret" };
    let path = dir.join(clients::key_file(&arguments.client, arguments.key.as_deref(), ending));
    if path.exists() {
        eprintln!("haas: {} is there already; --key gives another one a name", path.display());
        return Ok(Outcome::Refused);
    }
    let public_keys = match &arguments.jwks {
        None => None,
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            let mistakes = clients::public_key_mistakes(&text);
            for mistake in &mistakes {
                eprintln!("haas: {}: {mistake}", path.display());
            }
            if !mistakes.is_empty() {
                return Ok(Outcome::Refused);
            }
            Some(text)
        }
    };
    let policy_path = dir.join(clients::policy_file(&arguments.client));
    let restricted = !arguments.rights.is_empty() || !arguments.usernames.is_empty();
    // Before the key: there is no moment in which it may do more.
    if restricted {
        if policy_path.exists() || !key_files(dir, &arguments.client)?.is_empty() {
            eprintln!(
                "haas: the client is there already: what it may do stands, or belongs, in {}",
                policy_path.display()
            );
            return Ok(Outcome::Refused);
        }
        let text = Policy::write(&arguments.rights, &arguments.usernames);
        whole_file::replace(&policy_path, text.as_bytes(), 0o600, Durability::Power)
            .with_context(|| policy_path.display().to_string())?;
        hand_over(dir, &policy_path)?;
    }
    match public_keys {
        Some(text) => whole_file::replace(&path, text.as_bytes(), 0o600, Durability::Power).map(drop),
        None => make_secret(&path),
    }
    .with_context(|| path.display().to_string())?;
    hand_over(dir, &path)?;
    say!("{}", path.display());
    Ok(Outcome::Done)
}

fn remove(dir: &Path, arguments: &Remove) -> anyhow::Result<Outcome> {
    let key = arguments.key.as_deref();
    if !are_names(&arguments.client, key) {
        return Ok(Outcome::Refused);
    }
    let present: Vec<_> = match key {
        Some(_) => key_paths(dir, &arguments.client, key),
        None => key_files(dir, &arguments.client)?,
    };
    let (going, staying): (Vec<PathBuf>, Vec<PathBuf>) = present
        .into_iter()
        .partition(|path| !arguments.jwks || path.extension().is_some_and(|ending| ending == "jwks"));
    if going.is_empty() {
        eprintln!("haas: there is no such key");
        return Ok(Outcome::NotFound);
    }
    for path in &going {
        std::fs::remove_file(path).with_context(|| path.display().to_string())?;
        say!("{} is removed", path.display());
    }
    // What it was allowed stays for its other keys; without any, it goes after them.
    if key.is_none() && staying.is_empty() {
        match std::fs::remove_file(dir.join(clients::policy_file(&arguments.client))) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    Ok(Outcome::Done)
}

/// What there is of one of a client's keys: a secret, public keys, or both.
fn key_paths(dir: &Path, client: &str, key: Option<&str>) -> Vec<PathBuf> {
    let all = clients::KEY_ENDINGS.map(|ending| dir.join(clients::key_file(client, key, ending)));
    all.into_iter().filter(|path| path.exists()).collect()
}

/// Every file with a key of a client, be it in force or not.
fn key_files(dir: &Path, client: &str) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.rsplit_once('.'));
        let name = name.filter(|(_, ending)| clients::KEY_ENDINGS.contains(ending)).map(|(name, _)| name);
        if name.and_then(clients::client_of) == Some(client) {
            found.push(path);
        }
    }
    Ok(found)
}

/// Whether these can be a client's id and a key's name; what is wrong with them is said.
fn are_names(client: &str, key: Option<&str>) -> bool {
    let client = named("client", clients::check_id(client));
    client.is_some() && key.is_none_or(|key| named("key", clients::check_id(key)).is_some())
}

/// Gives a file to whoever has the folder: the server, where this command was root's.
fn hand_over(dir: &Path, path: &Path) -> anyhow::Result<()> {
    let owner = std::fs::metadata(dir)?;
    let file = std::fs::symlink_metadata(path)?;
    if (owner.uid(), owner.gid()) != (file.uid(), file.gid()) {
        lchown(path, Some(owner.uid()), Some(owner.gid())).with_context(|| path.display().to_string())?;
    }
    Ok(())
}
