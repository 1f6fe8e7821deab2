//! The folders: what the operator gives, and what HAProxy loads.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use thiserror::Error;

use super::authority::{Authority, AuthorityError};
use super::bundle::Bundle;
use super::leaves::{Leaf, Plan, missing, plan};
use crate::instance::name::Hostname;
use crate::whole_file::{self, Durability};

/// The leaves' names in `live/`: `haas-0001.pem`.
const LEAF_PREFIX: &str = "haas-";
/// What is longer is no certificate.
const FILE_MAX: u64 = 256 * 1024;

/// A file that could not be read or written.
#[derive(Debug, Error)]
#[error("{doing}: {source}")]
pub struct StoreError {
    /// What was being done, with the path.
    pub doing: String,
    /// Why it failed.
    pub source: std::io::Error,
}

/// Where certificates lie, and whence they come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `tls.dir`.
    pub dir: PathBuf,
    /// The bare domain.
    pub domain: Hostname,
    /// Whether there is a local CA.
    pub local_ca: bool,
}

impl Settings {
    /// The operator's folder.
    #[must_use]
    pub fn given(&self) -> PathBuf {
        self.dir.join("certs")
    }

    /// The folder that HAProxy loads.
    #[must_use]
    pub fn live(&self) -> PathBuf {
        self.dir.join("live")
    }
}

/// A file of the operator's that is not in force, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Its name in `certs/`.
    pub file: String,
    /// What is wrong with it.
    pub reason: String,
    /// Whether an older copy serves on.
    pub older_serves: bool,
}

/// What tells one state of a file from another.
type Trace = (u64, i64, i64, u64);

/// The folders, as they were last looked at.
pub struct Store {
    settings: Settings,
    /// As ca.pem was when it was read.
    authority: Option<(Trace, Authority)>,
    live: BTreeMap<String, (Trace, Bundle)>,
    given: BTreeMap<String, (Trace, Result<Bundle, String>)>,
    /// What lies in `live/` and has no business there.
    stray: BTreeSet<String>,
    /// Names that single apps were given since all that are needed were last told.
    lately: BTreeSet<String>,
}

impl Store {
    /// Touches nothing yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let (live, given) = (BTreeMap::new(), BTreeMap::new());
        Self { settings, authority: None, live, given, stray: BTreeSet::new(), lately: BTreeSet::new() }
    }

    /// Looks at both folders; files that are as they were are not read again. Returns the
    /// operator's certificates that differ from their copies: whoever shows them to HAProxy
    /// calls [`Store::accept`] or [`Store::refuse`].
    ///
    /// # Errors
    /// [`StoreError`] when a folder can't be read.
    pub fn review(&mut self, now: DateTime<Utc>) -> Result<Vec<(String, Bundle)>, StoreError> {
        let live = self.settings.live();
        let mut present = BTreeMap::new();
        self.stray.clear();
        for (name, trace) in list(&live)? {
            let known = self.live.remove(&name).filter(|(known, _)| *known == trace);
            match known.map_or_else(|| parse(&live.join(&name), trace).ok().map(|bundle| (trace, bundle)), Some) {
                Some(entry) if checked_name(&name).is_ok() => drop(present.insert(name, entry)),
                // Torn by a crash, or another's: HAProxy would refuse to start.
                _ => drop(self.stray.insert(name)),
            }
        }
        self.live = present;

        let folder = self.settings.given();
        let mut given = BTreeMap::new();
        for (name, trace) in list(&folder)? {
            if name.starts_with('.') || Path::new(&name).extension().is_none_or(|extension| extension != "pem") {
                continue;
            }
            let known = self.given.remove(&name).filter(|(known, _)| *known == trace);
            let entry = known.unwrap_or_else(|| {
                let read = checked_name(&name).and_then(|()| {
                    if is_leaf(&name) {
                        return Err(format!("names that begin with {LEAF_PREFIX} are the local CA's: rename it"));
                    }
                    parse(&folder.join(&name), trace)
                });
                (trace, read)
            });
            given.insert(name, entry);
        }
        self.given = given;
        let mut pending = Vec::new();
        for (name, (_, read)) in &mut self.given {
            let Ok(bundle) = &read else { continue };
            if self.live.get(name).is_some_and(|(_, live)| live == bundle) {
                continue;
            }
            match bundle.check_expiry(now) {
                Ok(()) => pending.push((name.clone(), bundle.clone())),
                Err(error) => *read = Err(error.to_string()),
            }
        }
        Ok(pending)
    }

    /// Puts a certificate where HAProxy loads it.
    ///
    /// # Errors
    /// [`StoreError`]; the older one stays then.
    pub fn accept(&mut self, file: &str, bundle: Bundle) -> Result<(), StoreError> {
        self.put(file, bundle, Durability::Power)
    }

    /// Remembers why one of the operator's files is not to be used, until it changes.
    pub fn refuse(&mut self, file: &str, reason: String) {
        if let Some((_, read)) = self.given.get_mut(file) {
            *read = Err(reason);
        }
    }

    /// With a local CA: sees to it that there are leaves with these names, and that none of them
    /// is about to expire. Says whether anything was written.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn issue(&mut self, names: BTreeSet<String>, now: DateTime<Utc>) -> Result<bool, AuthorityError> {
        self.lately.extend(names.iter().cloned());
        self.issue_by(names, now, |leaves, domain, names| {
            let written = missing(leaves, domain, names).into_iter().collect();
            Plan { written, removed: BTreeSet::new() }
        })
    }

    /// The same where these names are all that are needed, but for those that were issued since they
    /// were read: leaves are packed anew, without the others, when those outweigh them.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn issue_all(&mut self, mut needed: BTreeSet<String>, now: DateTime<Utc>) -> Result<bool, AuthorityError> {
        needed.append(&mut self.lately);
        self.issue_by(needed, now, plan)
    }

    fn issue_by(
        &mut self,
        mut names: BTreeSet<String>,
        now: DateTime<Utc>,
        plan: impl FnOnce(&BTreeMap<u32, Leaf>, &str, &BTreeSet<String>) -> Plan,
    ) -> Result<bool, AuthorityError> {
        if !self.settings.local_ca {
            return Ok(false);
        }
        let domain = self.settings.domain.as_str().to_owned();
        names.insert(domain.clone());
        let leaves: BTreeMap<u32, (Leaf, Bundle)> = self
            .live
            .iter()
            .filter_map(|(name, (_, leaf))| {
                Some((leaf_number(name)?, (leaf.names.iter().cloned().collect(), leaf.clone())))
            })
            .collect();
        let present = leaves.iter().map(|(number, (names, _))| (*number, names.clone())).collect();
        let authority = self.authority(now)?;
        let Plan { mut written, removed } = plan(&present, &domain, &names);
        let planned: BTreeSet<u32> = written.iter().map(|(number, _)| *number).chain(removed.iter().copied()).collect();
        for (number, (names, leaf)) in leaves {
            if !planned.contains(&number) && !authority.stands_by(&leaf, now) {
                written.push((number, names));
            }
        }
        let made: Vec<(String, Bundle)> = written
            .into_iter()
            .map(|(number, names)| Ok((leaf_name(number), authority.issue(&names, now)?)))
            .collect::<Result<_, AuthorityError>>()?;
        let any = !made.is_empty();
        // A request waits for it, and a leaf torn by a power cut is made anew; but not when others
        // go for it.
        let durability = if removed.is_empty() { Durability::Process } else { Durability::Power };
        for (name, bundle) in made {
            self.put(&name, bundle, durability)?;
        }
        if !removed.is_empty() {
            log::info!(
                "{} leaves of the local CA, most of whose names no app has any more, are packed anew",
                removed.len()
            );
        }
        // What these had to tell is in those by now.
        for number in removed {
            self.remove(&leaf_name(number))?;
        }
        Ok(any)
    }

    /// Takes away the copies whose files are gone, leaves when there is no local CA any more, and
    /// whatever else HAProxy could stumble over.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn sweep(&mut self) -> Result<(), StoreError> {
        let wanted = |name: &String| if is_leaf(name) { self.settings.local_ca } else { self.given.contains_key(name) };
        let unwanted: Vec<String> = self.live.keys().filter(|name| !wanted(name)).cloned().collect();
        for name in unwanted.into_iter().chain(std::mem::take(&mut self.stray)) {
            log::info!("{} is taken away", self.settings.live().join(&name).display());
            self.remove(&name)?;
        }
        Ok(())
    }

    /// What HAProxy loads, by file.
    pub fn live(&self) -> impl Iterator<Item = (&str, &Bundle)> {
        self.live.iter().map(|(name, (_, bundle))| (name.as_str(), bundle))
    }

    /// The operator's files that are not in force.
    #[must_use]
    pub fn refused(&self) -> Vec<Refusal> {
        let refusal = |(name, (_, read)): (&String, &(Trace, Result<Bundle, String>))| {
            let older_serves = self.live.contains_key(name);
            read.as_ref().err().map(|reason| Refusal { file: name.clone(), reason: reason.clone(), older_serves })
        };
        self.given.iter().filter_map(refusal).collect()
    }

    /// The local CA, made when there is none; read again when its file has changed.
    fn authority(&mut self, now: DateTime<Utc>) -> Result<&Authority, AuthorityError> {
        let Settings { dir, domain, .. } = &self.settings;
        let path = dir.join("ca.pem");
        let there = fs::metadata(&path).ok().map(|metadata| trace(&metadata));
        let known = self.authority.take().filter(|(known, _)| Some(*known) == there);
        let known = if let Some(known) = known {
            known
        } else {
            create_folder(dir)?;
            let authority = Authority::open(dir, domain, now)?;
            (trace(&fs::metadata(&path).map_err(failed("reading", &path))?), authority)
        };
        if known.1.not_after <= now {
            return Err(AuthorityError::Expired(known.1.not_after));
        }
        Ok(&self.authority.insert(known).1)
    }

    fn remove(&mut self, file: &str) -> Result<(), StoreError> {
        let path = self.settings.live().join(file);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed("removing", &path)(error)),
            _ => {}
        }
        self.live.remove(file);
        Ok(())
    }

    fn put(&mut self, file: &str, bundle: Bundle, durability: Durability) -> Result<(), StoreError> {
        let folder = self.settings.live();
        create_folder(&folder)?;
        let path = folder.join(file);
        whole_file::replace(&path, bundle.pem().as_bytes(), 0o600, durability).map_err(failed("writing", &path))?;
        let metadata = fs::metadata(&path).map_err(failed("reading", &path))?;
        self.stray.remove(file);
        self.live.insert(file.to_owned(), (trace(&metadata), bundle));
        Ok(())
    }
}

fn leaf_name(number: u32) -> String {
    format!("{LEAF_PREFIX}{number:04}.pem")
}

/// Whether a file in `live/` is the local CA's.
#[must_use]
pub fn is_leaf(name: &str) -> bool {
    leaf_number(name).is_some()
}

fn leaf_number(name: &str) -> Option<u32> {
    name.strip_prefix(LEAF_PREFIX)?.strip_suffix(".pem")?.parse().ok()
}

/// HAProxy's commands know neither quotes nor spaces in a name, and `*` begins one of theirs.
fn checked_name(name: &str) -> Result<(), String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-+@".contains(&byte);
    let pem = Path::new(name).extension().is_some_and(|extension| extension == "pem");
    if pem && !name.starts_with('.') && name.len() <= 200 && name.bytes().all(plain) {
        Ok(())
    } else {
        Err("its name may have letters, digits and . _ - + @ alone, and ends with .pem: rename it".to_owned())
    }
}

fn parse(path: &Path, (_, _, _, length): Trace) -> Result<Bundle, String> {
    if length > FILE_MAX {
        return Err(format!("it is longer than {} KiB", FILE_MAX / 1024));
    }
    let content = fs::read(path).map_err(|error| error.to_string())?;
    Bundle::parse(&content).map_err(|error| error.to_string())
}

/// The files of a folder; none when it is not there.
fn list(folder: &Path) -> Result<Vec<(String, Trace)>, StoreError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed("reading", folder))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed("reading", folder))?;
        // Through links: a renewed certificate is often the target of one. A link that leads
        // nowhere is as good as no file.
        if let Ok(metadata) = fs::metadata(entry.path())
            && metadata.is_file()
        {
            found.push((entry.file_name().to_string_lossy().into_owned(), trace(&metadata)));
        }
    }
    Ok(found)
}

fn trace(metadata: &fs::Metadata) -> Trace {
    (metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.len())
}

fn create_folder(folder: &Path) -> Result<(), StoreError> {
    fs::create_dir_all(folder).map_err(failed("making the folder", folder))
}

pub(super) fn failed<'a>(doing: &'a str, path: &'a Path) -> impl FnOnce(std::io::Error) -> StoreError + 'a {
    move |source| StoreError { doing: format!("{doing} {}", path.display()), source }
}

#[cfg(test)]
mod tests;
