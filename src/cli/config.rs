//! `haas config`: the generated haproxy.cfg, what would be generated now, or the settings.

use anyhow::Context;
use clap::Args;
use similar::TextDiff;

use super::{Global, Outcome, output, settings};
use crate::config::Config;
use crate::haproxy::{Haproxy, Settings};
use crate::manifest::Manifest;
use crate::reconcile;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// What publishing now would change; exit code 3 if anything
    #[arg(long, conflicts_with = "example")]
    diff: bool,
    /// An annotated settings file with every default
    #[arg(long)]
    example: bool,
}

pub(super) async fn run(global: &Global, arguments: &Arguments) -> anyhow::Result<Outcome> {
    if arguments.example {
        output::text(&Config::example());
        return Ok(Outcome::Done);
    }
    let config = settings::of_server(global)?;
    let mut changed = false;
    let read = |name: &str| {
        let path = config.haproxy.dir.join(name);
        std::fs::read_to_string(&path).with_context(|| path.display().to_string())
    };
    if !arguments.diff {
        output::text(&read("haproxy.cfg")?);
        return Ok(Outcome::Done);
    }
    let (live, _) = Manifest::new(&config).live().await?;
    let haproxy = Haproxy::new(Settings::from_config(&config));
    let candidate = haproxy.render_candidate(&reconcile::routes(&live)).await?;
    for (name, text) in [("haproxy.cfg", candidate.cfg()), ("routes.map", candidate.map())] {
        let present = read(name).unwrap_or_default();
        if present != text {
            changed = true;
            let diff = TextDiff::from_lines(present.as_str(), text);
            output::text(&diff.unified_diff().header(name, &format!("{name} (candidate)")).to_string());
        }
    }
    Ok(if changed { Outcome::NotReady } else { Outcome::Done })
}
