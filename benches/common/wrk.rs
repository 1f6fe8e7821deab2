//! wrk, which asks the apps of one proxy for a second or more.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

/// Connections that it keeps open.
const CONNECTIONS: u32 = 50;

pub struct Wrk {
    script: PathBuf,
}

/// What it saw.
#[derive(Clone, Copy)]
pub struct Run {
    pub requests: f64,
    pub per_second: f64,
}

impl Wrk {
    /// Asks `notes.user-00000.haas.localhost` and so many of those that follow, in turns.
    pub fn new(script: &Path, hosts: u16) -> Result<Self> {
        let text = format!(
            "local requests, next = {{}}, 0
             init = function()
                for n = 0, {hosts} - 1 do
                   requests[n] = wrk.format('GET', '/', {{ Host = string.format('notes.user-%05d.haas.localhost', n) }})
                end
             end
             request = function()
                next = (next + 1) % {hosts}
                return requests[next]
             end
             done = function(summary)
                local e = summary.errors
                local errors = e.connect + e.read + e.write + e.status + e.timeout
                io.write(string.format('\\nFIGURES %d %d %d\\n', summary.requests, summary.duration, errors))
             end"
        );
        std::fs::write(script, text)?;
        Ok(Self { script: script.to_owned() })
    }

    /// Asks for so many seconds. One error is too many.
    pub async fn run(&self, scheme: &str, port: u16, seconds: u32) -> Result<Run> {
        let mut wrk = Command::new("wrk");
        wrk.arg(format!("-d{seconds}s")).arg("-t1").arg(format!("-c{CONNECTIONS}")).arg("-s").arg(&self.script);
        wrk.arg(format!("{scheme}://127.0.0.1:{port}/")).stdin(Stdio::null()).kill_on_drop(true);
        let output = wrk.output().await.context("wrk does not start")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.lines().find_map(|line| line.strip_prefix("FIGURES ")).context("wrk gives no figures")?;
        let figures: Vec<f64> = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
        let [requests, microseconds, errors] = figures[..] else { anyhow::bail!("wrk says {line}") };
        ensure!(requests > 0.0 && errors == 0.0, "{errors} errors in {requests} requests:\n{text}");
        Ok(Run { requests, per_second: requests * 1e6 / microseconds })
    }
}
