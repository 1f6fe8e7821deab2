//! Apps that hang at their start: nothing answers, nothing ends, and no CPU is used.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::installation::Installation;

/// Files of this name, in a folder and those below.
fn named(folder: &Path, name: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.flat_map(|path| if path.is_dir() { named(&path, name) } else { vec![path] });
    files.filter(|path| path.ends_with(name)).collect()
}

/// Puts an app to sleep. From its next start on it hangs: `LevelDB` reads `CURRENT` first, and nothing ever
/// writes into the FIFO in its place.
pub async fn hangs(haas: &Installation, user: &str, app: &str) {
    haas.order("sleep", user, app).await;
    haas.comes_to_be(user, app, "asleep").await;
    let found = named(&haas.data_folder(user, app).await, "CURRENT");
    assert!(!found.is_empty());
    for path in found {
        std::fs::remove_file(&path).unwrap();
        mkfifo(&path, Mode::from_bits_truncate(0o666)).unwrap();
        chown(&path, Some(1000), Some(1000)).unwrap();
    }
}
