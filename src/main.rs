//! The command line: parses, sets up logging, and turns the outcome into an exit code.

use std::process::ExitCode;

use clap::Parser;

use haas::cli::{Cli, Outcome};

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    env_logger::Builder::new()
        .filter_level(cli.log_level())
        .parse_env(env_logger::Env::new().filter("HAAS_LOG"))
        .init();
    match cli.run().await {
        Ok(outcome) => outcome.into(),
        Err(error) => {
            eprintln!("haas: {error:#}");
            Outcome::Failed.into()
        }
    }
}
