//! Runs the programs that Docker's engine uses, too: `iptables` and its kin, whichever of their two
//! kinds the machine has. No shell.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::{Family, FirewallError};

/// Seconds that others may hold the lock of the tables (iptables(8), `--wait`).
const WAIT: &str = "20";
/// Administrators' programs: root's PATH may lack their folders.
const FOLDERS: &str = "/usr/local/sbin:/usr/sbin:/sbin";

/// The table `filter`, as `iptables -S` prints it.
pub(super) async fn list(family: Family) -> Result<String, FirewallError> {
    let program = match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    };
    run(program, &["-w", WAIT, "-t", "filter", "-S"], "").await
}

/// Carries a text out, all of it in one step or nothing.
pub(super) async fn restore(family: Family, script: &str) -> Result<(), FirewallError> {
    let program = match family {
        Family::V4 => "iptables-restore",
        Family::V6 => "ip6tables-restore",
    };
    run(program, &["-w", WAIT, "--noflush"], script).await.map(drop)
}

async fn run(program: &'static str, arguments: &[&str], input: &str) -> Result<String, FirewallError> {
    let failed = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => FirewallError::NoProgram(program),
        _ => FirewallError::Io { program, error },
    };
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(OsString::from(format!(":{FOLDERS}")));
    let mut child = Command::new(program)
        .args(arguments)
        .env("PATH", path)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input.as_bytes()).await {
            // It ends without reading when it refuses: it says why.
            Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(failed(error)),
            _ => {}
        }
    }
    let output = child.wait_with_output().await.map_err(failed)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(FirewallError::Refused { program, message })
}
