//! The commands. Those that change something write intent into the manifest, as the API does;
//! the server carries it out.

/// Prints a line; see [`output::line`].
macro_rules! say {
    ($($argument:tt)*) => { $crate::cli::output::line(format_args!($($argument)*)) };
}

mod client;
mod config;
mod doctor;
mod down;
mod events;
mod firewall;
mod gc;
mod host;
mod instances;
mod intent;
mod lifecycle;
mod migrate;
mod output;
mod policy;
mod reconcile;
mod rehost;
mod roll;
mod routes;
mod serve;
mod settings;
mod sign_on;
mod table;
mod transfer;
mod up;
mod volume;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use log::LevelFilter;

use crate::instance::policy::Descent;

/// Hoodie as a Service: gives a user's app a Hoodie backend at its own domain.
#[derive(Debug, Parser)]
#[command(name = "haas", version, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done; 1 failed; 2 wrong usage; 3 not (yet) as wanted: not ready in time, \
or doctor found something; 4 no such instance; 5 refused: a name is taken, a value won't do.";

/// Options of every command.
#[derive(Debug, Clone, Args)]
struct Global {
    /// The folder of `haas up`; other commands find its database there
    #[arg(long, global = true, env = "HAAS_DIR", default_value = "./var", value_name = "DIR")]
    dir: PathBuf,
    /// Settings; docs/haas.example.toml has all of them
    #[arg(long, global = true, env = "HAAS_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run everything below one folder: Postgres, HAProxy and the server
    Up(up::Arguments),
    /// Run the server, with a Postgres and a HAProxy that others run
    Serve(serve::Arguments),
    /// Stop what `haas up` has started; tenants' data always stays
    Down(down::Arguments),
    /// Give a user a Hoodie for an app
    Provision(intent::Provision),
    /// Take a Hoodie away; its data stays, and can be restored until it is purged
    Deprovision(intent::Deprovision),
    /// Bring a deleted one back, with its data
    Restore(lifecycle::Arguments),
    /// Take a Hoodie away with its data, at once and for good
    Purge(lifecycle::Arguments),
    /// Stop a Hoodie; the next request wakes it
    Sleep(lifecycle::Arguments),
    /// Start one that rests
    Wake(lifecycle::Arguments),
    /// Pack one away: its data goes into a file, and comes back with the next request
    Archive(lifecycle::Arguments),
    /// Show, or change, where an instance departs from the clean-up policy
    Policy(policy::Arguments),
    /// Follow the clean-up policy at once; the server does this all the time
    Gc(gc::Arguments),
    /// Write one tenant's data into a file, for another installation
    Export(transfer::Export),
    /// Take a tenant over from such a file
    Import(transfer::Import),
    /// Work on a tenant's volume, in the server's own container for that
    #[command(hide = true)]
    Volume(volume::Arguments),
    /// Bring a new image, or new limits, to the instances that are there
    Roll(roll::Arguments),
    /// Print a link that signs an app's owner on to its admin dashboard, once, within a minute
    Sso(sign_on::Sso),
    /// Give an app's admin another password; ends every session of it, and loses no data
    Rotate(sign_on::Rotate),
    /// List instances
    List(instances::List),
    /// Show one instance: its state, its latest events, its last log lines if it failed
    Show(instances::Show),
    /// Show who changed what, and when
    Events(events::Arguments),
    /// Show, make and remove the clients that may use the control API
    #[command(subcommand)]
    Client(client::Client),
    /// Give an instance a custom domain, or take it away
    #[command(subcommand)]
    Host(host::Host),
    /// Make every host the one that the domain and the pattern give, after they were changed
    Rehost(rehost::Arguments),
    /// Show which host leads where, by the manifest, the files, and HAProxy itself
    Routes(routes::Arguments),
    /// Print the generated haproxy.cfg, or the settings
    Config(config::Arguments),
    /// Make the world agree with the manifest, once; the server does this all the time
    Reconcile(reconcile::Arguments),
    /// Bring the database up to this version, as its owner; `haas up` does this by itself
    Migrate(migrate::Arguments),
    /// Put the walls around tenants in, as root; look at them, or take them away
    Firewall(firewall::Arguments),
    /// Look at every part, and say what is wrong and what to do
    Doctor(doctor::Arguments),
}

/// How a command ended; see the exit codes in `haas --help`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// As wanted.
    Done,
    /// Not at all.
    Failed,
    /// Not (yet) as wanted.
    NotReady,
    /// There is no such instance.
    NotFound,
    /// A name is taken, or a value won't do.
    Refused,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(match outcome {
            Outcome::Done => 0,
            Outcome::Failed => 1,
            Outcome::NotReady => 3,
            Outcome::NotFound => 4,
            Outcome::Refused => 5,
        })
    }
}

impl Cli {
    /// Servers tell what they do; commands only what goes wrong. `HAAS_LOG` overrides both.
    #[must_use]
    pub fn log_level(&self) -> LevelFilter {
        match self.command {
            Command::Up(_) | Command::Serve(_) => LevelFilter::Info,
            _ => LevelFilter::Warn,
        }
    }

    /// Carries the command out.
    ///
    /// # Errors
    /// For a person to read.
    pub async fn run(self) -> anyhow::Result<Outcome> {
        let global = self.global;
        match self.command {
            Command::Up(arguments) => up::run(&global, &arguments).await,
            Command::Serve(arguments) => serve::run(&global, &arguments).await,
            Command::Down(arguments) => down::run(&global, &arguments).await,
            Command::Provision(arguments) => intent::provision(&global, &arguments).await,
            Command::Deprovision(arguments) => intent::deprovision(&global, &arguments).await,
            Command::Restore(arguments) => lifecycle::restore(&global, &arguments).await,
            Command::Purge(arguments) => lifecycle::purge(&global, &arguments).await,
            Command::Sleep(arguments) => lifecycle::descend(&global, &arguments, Descent::Sleep).await,
            Command::Wake(arguments) => lifecycle::wake(&global, &arguments).await,
            Command::Archive(arguments) => lifecycle::descend(&global, &arguments, Descent::Archive).await,
            Command::Policy(arguments) => policy::run(&global, &arguments).await,
            Command::Gc(arguments) => gc::run(&global, &arguments).await,
            Command::Export(arguments) => transfer::export(&global, &arguments).await,
            Command::Import(arguments) => transfer::import(&global, &arguments).await,
            Command::Volume(arguments) => volume::run(&arguments).await,
            Command::Roll(arguments) => roll::run(&global, &arguments).await,
            Command::Sso(arguments) => sign_on::sso(&global, &arguments).await,
            Command::Rotate(arguments) => sign_on::rotate(&global, &arguments).await,
            Command::List(arguments) => instances::list(&global, &arguments).await,
            Command::Show(arguments) => instances::show(&global, &arguments).await,
            Command::Events(arguments) => events::run(&global, &arguments).await,
            Command::Client(command) => client::run(&global, &command).await,
            Command::Host(arguments) => host::run(&global, &arguments).await,
            Command::Rehost(arguments) => rehost::run(&global, &arguments).await,
            Command::Routes(arguments) => routes::run(&global, &arguments).await,
            Command::Config(arguments) => config::run(&global, &arguments).await,
            Command::Reconcile(arguments) => reconcile::run(&global, &arguments).await,
            Command::Migrate(arguments) => migrate::run(&global, &arguments).await,
            Command::Firewall(arguments) => firewall::run(&global, &arguments).await,
            Command::Doctor(arguments) => doctor::run(&global, &arguments).await,
        }
    }
}
