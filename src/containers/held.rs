//! Files that were deleted and still take room, because a process has them open: no look into a folder
//! finds them. Found by the processes of this machine (proc(5)), as far as this one may look at them.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::disk::BLOCK;
use crate::instance::storage::Taken;

/// What deleted files take, by the volume that the processes which have them open have
/// mounted. `wanted` are the volumes' names.
pub(super) fn held(wanted: &HashSet<&str>) -> HashMap<String, Taken> {
    let own = fs::read_link("/proc/self/ns/mnt").ok();
    let mut found: HashMap<String, HashMap<(u64, u64), u64>> = HashMap::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let is_process = process.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit);
        let path = process.path();
        // Most processes have the mounts that this one has, and no tenant's volume of their own.
        if !is_process || fs::read_link(path.join("ns/mnt")).ok() == own {
            continue;
        }
        // It may end at any moment.
        let Ok(mounts) = fs::read_to_string(path.join("mountinfo")) else { continue };
        let Some(volume) = mounts.lines().find_map(|line| volume_of(line, wanted)) else { continue };
        let files = found.entry(volume.to_owned()).or_default();
        for (id, bytes) in ["fd", "map_files"].into_iter().flat_map(|kind| deleted(&path.join(kind))) {
            files.insert(id, bytes);
        }
    }
    let sum = |files: &HashMap<_, u64>| Taken { bytes: files.values().sum(), files: files.len() as u64 };
    found.into_iter().map(|(volume, files)| (volume, sum(&files))).collect()
}

/// The volume that a line of mountinfo is about: its fourth field is the folder on its file system.
fn volume_of<'a>(line: &'a str, wanted: &HashSet<&str>) -> Option<&'a str> {
    let folder = Path::new(line.split(' ').nth(3)?);
    let volume = folder.parent()?;
    let fits = folder.ends_with("_data") && volume.parent()?.ends_with("volumes");
    volume.file_name()?.to_str().filter(|name| fits && wanted.contains(name))
}

/// Regular files without a name that these links lead to: what each is, and what it takes.
fn deleted(links: &Path) -> Vec<((u64, u64), u64)> {
    let links: Vec<PathBuf> = fs::read_dir(links).into_iter().flatten().flatten().map(|link| link.path()).collect();
    let files = links.iter().filter_map(|link| fs::metadata(link).ok());
    // What has no name and lies in memory is counted as that.
    let nameless = files.filter(|file| file.is_file() && file.nlink() == 0 && is_on_a_disk(file.dev()));
    nameless.map(|file| ((file.dev(), file.ino()), file.blocks() * BLOCK)).collect()
}

/// Devices without a major number are file systems in memory, or made of others.
fn is_on_a_disk(device: u64) -> bool {
    nix::sys::stat::major(device) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_told_by_its_folder() {
        let wanted = HashSet::from(["haas-1"]);
        let line = |folder: &str| format!("731 720 254:0 {folder} /app/data rw,relatime master:1 - ext4 /dev/vda rw");
        for (folder, volume) in [
            ("/var/lib/docker/volumes/haas-1/_data", Some("haas-1")),
            ("/volumes/haas-1/_data", Some("haas-1")),
            ("/var/lib/docker/volumes/haas-2/_data", None),
            ("/var/lib/docker/volumes/haas-1/_data/haas-1/_data", None),
            ("/", None),
        ] {
            assert_eq!(volume_of(&line(folder), &wanted), volume, "{folder}");
        }
        assert_eq!(volume_of("", &wanted), None);
    }

    #[test]
    fn a_deleted_file_counts_while_it_is_open() {
        let folder = tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
        let path = folder.path().join("file");
        let named = deleted(Path::new("/proc/self/fd"));
        fs::write(&path, vec![b'x'; 100_000]).unwrap();
        let open = fs::File::open(&path).unwrap();
        open.sync_all().unwrap();
        let metadata = open.metadata().unwrap();
        let id = (metadata.dev(), metadata.ino());
        let is_there = |files: &[((u64, u64), u64)]| files.iter().any(|(file, bytes)| *file == id && *bytes >= 100_000);
        assert!(!is_there(&named) && !is_there(&deleted(Path::new("/proc/self/fd"))), "it has a name");
        fs::remove_file(&path).unwrap();
        assert!(is_there(&deleted(Path::new("/proc/self/fd"))));
        drop(open);
        assert!(!is_there(&deleted(Path::new("/proc/self/fd"))));
    }
}
