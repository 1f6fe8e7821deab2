//! Making the cluster.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use tokio::process::Command;

use super::binaries::Binaries;
use super::error::EmbeddedError;
use super::files;
use super::layout::Layout;
use super::process::search_path;

/// For a manifest of some ten thousand rows and a handful of clients. An administrator may
/// change them: this is written once.
const SETTINGS: &str = "
# Set by haas when it made this cluster.
max_connections = 60
shared_buffers = 32MB
min_wal_size = 48MB
max_wal_size = 256MB
max_parallel_workers_per_gather = 0
log_line_prefix = '%m [%p] %q%a '
log_checkpoints = off
";

/// Makes the cluster if there is none. A killed initdb leaves half of one, so it works in a
/// folder that gets its name only when all is done.
pub(super) async fn make(layout: &Layout, binaries: &Binaries) -> Result<(), EmbeddedError> {
    let data = layout.postgres_data();
    if data.exists() {
        return Ok(());
    }
    remove_leftovers(&layout.postgres_dir());
    let candidate = layout.postgres_dir().join(format!("data.new.{}", std::process::id()));
    let (program, arguments) = binaries.command("initdb")?;
    let mut command = Command::new(&program);
    command.args(arguments).arg("-D").arg(&candidate);
    // Whoever can open the socket is let in; its folder has mode 0700.
    command.args(["--username=haas", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--data-checksums"]);
    command.env_clear().env("PATH", search_path()).env("LC_ALL", "C.UTF-8");
    command.current_dir(layout.postgres_dir()).stdin(std::process::Stdio::null()).kill_on_drop(true);
    let output = command.output().await.map_err(EmbeddedError::spawn(&program))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let _ = fs::remove_dir_all(&candidate);
        if said.starts_with("unshare:") {
            return Err(EmbeddedError::NoUserNamespace(said));
        }
        return Err(EmbeddedError::Ended { what: "initdb", status: output.status.to_string(), log: said });
    }
    let file = candidate.join("postgresql.conf");
    let append = || {
        let mut file = OpenOptions::new().append(true).open(&file)?;
        file.write_all(SETTINGS.as_bytes())?;
        file.sync_all()
    };
    append().map_err(EmbeddedError::file("can't write", &file))?;
    fs::rename(&candidate, &data).map_err(EmbeddedError::file("can't make", &data))?;
    files::sync_dir(&layout.postgres_dir())
}

fn remove_leftovers(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("data.new.")
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            log::warn!("can't remove {}: {error}", entry.path().display());
        }
    }
}
