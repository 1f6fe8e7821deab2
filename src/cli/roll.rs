//! `haas roll`: a new image, or new limits, for the instances that are there.

use std::io::IsTerminal;
use std::time::Duration;

use chrono::Utc;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::{Instant, sleep};

use super::{Global, Outcome, settings};
use crate::failpoint::Faults;
use crate::manifest::RollStatus;
use crate::server;

const LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The image, if not tenant.image
    #[arg(long)]
    image: Option<String>,
    /// Write the intent and go
    #[arg(long)]
    no_wait: bool,
    /// How long to wait for those that are in use, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    wait: u64,
    /// A JSON object
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(global: &Global, arguments: &Arguments) -> anyhow::Result<Outcome> {
    let mut config = settings::of_server(global)?;
    if let Some(image) = &arguments.image {
        config.tenant.image.clone_from(image);
    }
    let world = server::world(&config, settings::cause(), Faults::default()).await?;
    let (manifest, spec) = (&world.manifest, config.tenant.spec());
    if !world.containers.has_image(&spec.image).await? {
        eprintln!("haas: the image {} is not there", spec.image);
        return Ok(Outcome::Refused);
    }
    let began = Utc::now();
    let mut status = manifest.start_roll(&spec).await?;
    let awake = |status: &RollStatus| status.waiting + status.under_way;
    let total = awake(&status);
    let progress = if std::io::stderr().is_terminal() {
        ProgressBar::new(u64::try_from(total).unwrap_or_default())
    } else {
        ProgressBar::hidden()
    };
    progress.set_style(ProgressStyle::with_template("rolling [{wide_bar}] {pos}/{len} {msg}")?);
    let deadline = Instant::now() + Duration::from_secs(arguments.wait);
    let failed = loop {
        status = if arguments.no_wait { status } else { manifest.roll_status(&spec).await? };
        // After that: whoever was left out because one failed is seen to have been.
        let failed = manifest.roll_failures(began).await?;
        progress.set_position(u64::try_from(total - awake(&status)).unwrap_or_default());
        progress.set_message(format!("{} under way", status.under_way));
        if arguments.no_wait
            || awake(&status) + status.left_out == 0
            || !failed.is_empty()
            || Instant::now() >= deadline
        {
            break failed;
        }
        if status.left_out > 0 {
            // They were on their way to something else.
            manifest.start_roll(&spec).await?;
        }
        sleep(LOOK).await;
    };
    progress.finish_and_clear();
    if arguments.json {
        say!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        say!(
            "{} made of {}, {} under way, {} in use and waiting, {} at rest until their next wake, {} left as they are",
            status.done,
            spec.image,
            status.under_way,
            status.waiting,
            status.resting,
            status.left_out
        );
    }
    for (container, error) in &failed {
        eprintln!("haas: {container} went back to what it was made of: {error}");
    }
    if !failed.is_empty() {
        eprintln!("haas: the roll is halted");
        return Ok(Outcome::Failed);
    }
    Ok(if awake(&status) == 0 || arguments.no_wait { Outcome::Done } else { Outcome::NotReady })
}
