//! Tables for people: plain columns, so that they can be read, and cut with awk too.

use chrono::{DateTime, Utc};
use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};

/// A table with these headings.
pub(super) fn table(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(headings.to_vec());
    table
}

/// Prints it, without the blanks that padding leaves at the ends of lines.
pub(super) fn print(table: &Table) {
    for line in table.to_string().lines() {
        say!("{}", line.strip_prefix(' ').unwrap_or(line).trim_end());
    }
}

/// How long ago, in the largest unit that fits.
pub(super) fn age(since: DateTime<Utc>) -> String {
    let seconds = (Utc::now() - since).num_seconds().max(0);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

/// The first line of a text, shortened.
pub(super) fn brief(text: &str) -> String {
    const WIDTH: usize = 60;
    let line = text.lines().next().unwrap_or_default();
    if line.chars().count() <= WIDTH {
        return line.to_owned();
    }
    line.chars().take(WIDTH - 1).chain(['…']).collect()
}
