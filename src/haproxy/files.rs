//! The files: written beside their place, synced, renamed into it.

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tokio::fs;
use tokio::io::AsyncWriteExt;

use super::render::{self, MAP};
use super::{Candidate, CheckedConfig, HaproxyError, Settings};
use crate::tls::Bundle;
use crate::whole_file::{self, Durability};

/// The configuration's name.
pub(super) const CFG: &str = "haproxy.cfg";

macro_rules! fixed {
    ($($name:literal),+ $(,)?) => {
        &[$(($name, include_str!(concat!("../../haproxy/", $name)))),+]
    };
}

/// Files that haproxy.cfg names and that depend on nothing.
///
/// errors/ is what HAProxy answers with by itself (HAProxy manual, section 4.2, `errorfile`):
/// problem+json (RFC 9457) with CORS headers, since most callers are pages of another origin. A
/// request that never became one (a head that can't be parsed, or is not complete in time) is
/// answered 400 or 408 by HAProxy's own page instead, seen on 2.6: no browser sends such a head.
pub(super) const FIXED: &[(&str, &str)] = fixed![
    "errors/400.http",
    "errors/403.http",
    "errors/404.http",
    "errors/408.http",
    "errors/413.http",
    "errors/429.http",
    "errors/500.http",
    "errors/502.http",
    "errors/503.http",
    "errors/503-control.http",
    "errors/504.http",
    "filters/body-limit.lua",
];

/// haproxy.cfg and routes.map as they are in some folder.
pub(super) struct Pair {
    cfg: String,
    map: String,
}

impl Pair {
    /// None when one of them is missing or isn't text: then they are written anew.
    pub(super) async fn read(folder: &Path) -> Result<Option<Self>, HaproxyError> {
        let (cfg, map) = (read(&folder.join(CFG)).await?, read(&folder.join(MAP)).await?);
        Ok(cfg.zip(map).map(|(cfg, map)| Self { cfg, map }))
    }

    /// Whether they are this candidate, to the byte; with live routes the map is the lane's.
    pub(super) fn is(&self, candidate: &Candidate, settings: &Settings) -> bool {
        self.cfg == candidate.cfg() && settings.loads(&self.map) == settings.loads(candidate.map())
    }

    /// The generation that haproxy.cfg says it is, if it really is.
    pub(super) fn generation(&self, settings: &Settings) -> Option<String> {
        render::own_generation(&self.cfg, settings.loads(&self.map))
    }
}

/// Writes the fixed files that are missing or different, and makes the folder of certificates.
pub(super) async fn write_fixed(settings: &Settings) -> Result<(), HaproxyError> {
    for folder in ["errors", "filters"] {
        create_folder(&settings.dir.join(folder)).await?;
    }
    for (name, text) in FIXED {
        let path = settings.dir.join(name);
        if read(&path).await?.as_deref() != Some(text) {
            replace(&path, (*text).to_owned(), Durability::Power).await?;
        }
    }
    if settings.https()
        && let Err(error) = create_folder(&settings.tls.live()).await
    {
        // The certificates' trouble: routes go on with those that HAProxy has.
        log::debug!("{error}");
    }
    Ok(())
}

/// Whether a file says this.
pub(super) async fn says(path: &Path, text: &str) -> Result<bool, HaproxyError> {
    Ok(read(path).await?.as_deref() == Some(text))
}

/// Writes a file whole or not at all. In one go, since somebody may wait for it.
pub(super) async fn replace(path: &Path, text: String, durability: Durability) -> Result<(), HaproxyError> {
    let to = path.to_owned();
    let write = move || whole_file::replace(&to, text.as_bytes(), 0o644, durability);
    let written = tokio::task::spawn_blocking(write).await.unwrap_or_else(|gone| Err(std::io::Error::other(gone)));
    written.map_err(io("replacing", path))
}

/// Writes both files into a folder of their own.
pub(super) async fn write_pair(folder: &Path, cfg: &str, map: &str) -> Result<(), HaproxyError> {
    create_folder(folder).await?;
    write(&folder.join(MAP), map).await?;
    write(&folder.join(CFG), cfg).await
}

/// Writes certificates for HAProxy to look at, with a haproxy.cfg that names their folder.
pub(super) async fn write_certificates(
    folder: &Path,
    cfg: &str,
    certs: &Path,
    candidates: &[(String, Bundle)],
) -> Result<(), HaproxyError> {
    create_folder(certs).await?;
    // They hold keys.
    let own = std::fs::Permissions::from_mode(0o700);
    fs::set_permissions(folder, own).await.map_err(io("closing the folder", folder))?;
    for (name, bundle) in candidates {
        write(&certs.join(name), bundle.pem()).await?;
    }
    write(&folder.join(CFG), cfg).await
}

/// Brings both files to the disk itself.
pub(super) async fn sync_pair(folder: &Path) -> Result<(), HaproxyError> {
    let (map, cfg) = (folder.join(MAP), folder.join(CFG));
    tokio::try_join!(sync(&map), sync(&cfg))?;
    Ok(())
}

/// The map is in place, haproxy.cfg not yet.
pub(super) struct HalfSwapped {
    dir: PathBuf,
    checked: CheckedConfig,
}

/// The first half of the swap. With live routes the map is the lane's, in place already, and only
/// brought to the disk itself.
pub(super) async fn swap_map(settings: &Settings, checked: CheckedConfig) -> Result<HalfSwapped, HaproxyError> {
    let dir = settings.dir.clone();
    if settings.live_routes {
        sync(&dir.join(MAP)).await?;
    } else {
        rename(&checked.folder().join(MAP), &dir.join(MAP)).await?;
    }
    Ok(HalfSwapped { dir, checked })
}

impl HalfSwapped {
    /// The second half, and the commit point. One sync of the folder is enough for both renames.
    pub(super) async fn swap_config(self) -> Result<(), HaproxyError> {
        rename(&self.checked.folder().join(CFG), &self.dir.join(CFG)).await?;
        sync(&self.dir).await
    }
}

/// Keeps what is in place, if it is what the running worker says that it runs.
pub(super) async fn keep_last_good(settings: &Settings, pair: &Pair, running: &str) -> Result<(), HaproxyError> {
    if pair.generation(settings).as_deref() == Some(running) {
        // No sync: a pair that a crash has torn is found out by its generation.
        write_pair(&settings.dir.join("last-good"), &pair.cfg, &pair.map).await?;
    }
    Ok(())
}

/// Puts the last good files back: with live routes haproxy.cfg alone, since the map is newer and
/// not what was refused. Says whether there were any.
pub(super) async fn restore_last_good(settings: &Settings) -> Result<bool, HaproxyError> {
    let dir = &settings.dir;
    let Some(pair) = Pair::read(&dir.join("last-good")).await? else { return Ok(false) };
    if pair.generation(settings).is_none() {
        return Ok(false);
    }
    let folder = dir.join("candidate");
    write_pair(&folder, &pair.cfg, &pair.map).await?;
    sync_pair(&folder).await?;
    if !settings.live_routes {
        rename(&folder.join(MAP), &dir.join(MAP)).await?;
    }
    rename(&folder.join(CFG), &dir.join(CFG)).await?;
    sync(dir).await?;
    Ok(true)
}

/// Keeps what HAProxy refused where the administrator can look at it.
pub(super) async fn keep_rejected(dir: &Path, folder: &Path) -> Result<PathBuf, HaproxyError> {
    let rejected = dir.join("rejected");
    remove_folder(&rejected).await?;
    rename(folder, &rejected).await?;
    Ok(rejected)
}

/// Removes a folder of ours, if it is there.
pub(super) async fn remove_folder(folder: &Path) -> Result<(), HaproxyError> {
    match fs::remove_dir_all(folder).await {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io("removing", folder)(error)),
        _ => Ok(()),
    }
}

fn io<'a>(doing: &'a str, path: &'a Path) -> impl FnOnce(std::io::Error) -> HaproxyError + 'a {
    move |source| HaproxyError::Io { doing: format!("{doing} {}", path.display()), source }
}

async fn create_folder(folder: &Path) -> Result<(), HaproxyError> {
    fs::create_dir_all(folder).await.map_err(io("making the folder", folder))
}

async fn read(path: &Path) -> Result<Option<String>, HaproxyError> {
    match fs::read_to_string(path).await {
        Ok(text) => Ok(Some(text)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidData) => Ok(None),
        Err(error) => Err(io("reading", path)(error)),
    }
}

/// Never into the inode that is in place: what is there is replaced by a new file.
async fn write(path: &Path, text: &str) -> Result<(), HaproxyError> {
    if let Err(error) = fs::remove_file(path).await
        && error.kind() != ErrorKind::NotFound
    {
        return Err(io("replacing", path)(error));
    }
    let mut file = fs::File::create_new(path).await.map_err(io("making", path))?;
    file.write_all(text.as_bytes()).await.map_err(io("writing", path))?;
    file.flush().await.map_err(io("writing", path))
}

/// For a file its content, for a folder its names.
async fn sync(path: &Path) -> Result<(), HaproxyError> {
    let file = fs::File::open(path).await.map_err(io("opening", path))?;
    file.sync_all().await.map_err(io("syncing", path))
}

async fn rename(from: &Path, to: &Path) -> Result<(), HaproxyError> {
    fs::rename(from, to).await.map_err(io("renaming", from))
}
