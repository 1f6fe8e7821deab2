//! The command line: parses, sets up logging, and turns the outcome into an exit code.

use std::process::ExitCode;

use clap::Parser;

use haas::cli::{Cli, Outcome};

/// Threads for what may block: file operations, mostly. Each keeps memory of its own after use.
const BLOCKING_THREADS: usize = 8;

fn main() -> ExitCode {
    let cli = Cli::parse();
    env_logger::Builder::new().parse_filters(&filters(std::env::var("HAAS_LOG").ok(), cli.log_level())).init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(cli.run()),
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(outcome) => outcome.into(),
        Err(error) => {
            eprintln!("haas: {error:#}");
            Outcome::Failed.into()
        }
    }
}

/// A bare level is meant for our own modules: what other crates trace holds whole requests, a
/// secret in them too. Who wants those says so, `HAAS_LOG=haas=debug,bollard=trace`.
fn filters(wanted: Option<String>, default: log::LevelFilter) -> String {
    match wanted {
        Some(filters) if filters.contains(['=', ',']) => filters,
        Some(level) => format!("warn,haas={level}"),
        None => format!("warn,haas={default}"),
    }
}
