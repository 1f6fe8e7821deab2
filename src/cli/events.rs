//! `haas events`: who changed what, and when.

use std::time::Duration;

use chrono::{TimeDelta, Utc};
use clap::Args;

use super::intent::named;
use super::{Global, Outcome, settings};
use crate::instance::name::{AppName, Username};
use crate::instance::policy::duration;
use crate::manifest::{EventFilter, Manifest};

const PAGE: i64 = 1000;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// One instance's only: whose it is
    #[arg(requires = "app")]
    user: Option<String>,
    /// And which app it serves
    app: Option<String>,
    /// How far back, such as 30m, 1h or 7d
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = |text: &str| duration(text).ok_or("must be a time such as 30m, 1h or 7d"))]
    since: Duration,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(global: &Global, arguments: &Arguments) -> anyhow::Result<Outcome> {
    let names = match (&arguments.user, &arguments.app) {
        (Some(user), Some(app)) => {
            let parsed = (named("user", Username::parse(user)), named("app", AppName::parse(app)));
            let (Some(username), Some(appname)) = parsed else { return Ok(Outcome::Refused) };
            Some((username, appname))
        }
        _ => None,
    };
    let since = TimeDelta::from_std(arguments.since).ok().and_then(|ago| Utc::now().checked_sub_signed(ago));
    let manifest = Manifest::new(&settings::of_server(global)?);
    let mut filter = EventFilter { names, since, after: None };
    loop {
        let page = manifest.event_log(&filter, PAGE).await?;
        for event in &page {
            if arguments.json {
                say!("{}", serde_json::to_string(event)?);
            } else {
                say!("{event}");
            }
        }
        match page.last() {
            Some(last) => filter.after = Some(last.id),
            None => return Ok(Outcome::Done),
        }
    }
}
