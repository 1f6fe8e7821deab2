//! Certificates into the running HAProxy, without a reload.
//!
//! HAProxy loads the folder `live/` when it starts (see [`crate::tls`]); later, certificates come,
//! change and go through its socket (HAProxy management guide, section 9.3, `new`, `set`,
//! `commit`, `del ssl cert`; `add`, `del ssl crt-list`, for which a folder is a list). As for
//! routes: the files first, then the worker, and what it has is looked at, not remembered. A
//! worker that was not seen before, and every one after a while, is compared file by file.
//!
//! Only the current worker matters: an old one begins no connection any more, and TLS is
//! negotiated at the beginning of one.
//!
//! When the socket does not do (an answer that is not understood, a file that is too long for
//! it), a reload does: see `Haproxy::certificates_in_force`.

mod worker;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use chrono::Utc;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::master::Master;
use super::processes::Worker;
use super::{COMPARE_EVERY, HaproxyError, Route, Routes, Settings, check, files};
use crate::instance::name::Hostname;
use crate::tls::{Bundle, Refusal, Store, StoreError, covers, is_leaf, needed};

#[cfg(feature = "fuzzing")]
pub(super) use worker::fuzzing;
use worker::{Mark, Present, Running, mark};

/// How much rarer the current worker's certificates are compared for each of them.
const COMPARE_REST: Duration = Duration::from_millis(10);

/// See the module's documentation.
pub(super) struct Certs {
    settings: Settings,
    store: Arc<StdMutex<Store>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The current worker, and what it was seen to have.
    worker: Option<(i32, Present)>,
    compared: Option<Instant>,
    /// The names that it has certificates for.
    names: HashSet<String>,
    /// Hosts without a certificate that were told of.
    told: BTreeSet<String>,
}

/// What `haas doctor` tells of the certificates.
pub struct Certificates {
    /// Those that HAProxy loads, by file.
    pub live: Vec<(String, Bundle)>,
    /// Files of the operator's that it does not.
    pub refused: Vec<Refusal>,
    /// Files that the running worker should have and has not, or not in this state.
    pub amiss: Vec<String>,
}

impl Certificates {
    /// Whether one of them is good for a host.
    #[must_use]
    pub fn cover(&self, host: &Hostname) -> bool {
        self.live.iter().any(|(_, bundle)| bundle.names.iter().any(|name| covers(name, host)))
    }
}

impl Certs {
    pub fn new(settings: &Settings) -> Self {
        let store = Store::new(settings.tls.clone());
        Self { settings: settings.clone(), store: Arc::new(StdMutex::new(store)), state: Mutex::default() }
    }

    fn off(&self) -> bool {
        !self.settings.https()
    }

    fn running<'a>(&self, master: &'a Master, worker: &Worker) -> Running<'a> {
        Running { master, pid: worker.pid, folder: self.settings.tls.live().to_string_lossy().into_owned() }
    }

    /// Brings the folder in line with what the operator gives and what the routes need. What goes
    /// wrong with one certificate is no reason to leave the others; it is returned.
    pub async fn settle(&self, routes: &Routes) -> Result<(), String> {
        if self.off() {
            return Ok(());
        }
        self.take_given().await?;
        let domain = &self.settings.tls.domain;
        let names = routes.covered().map(|host| needed(host, domain)).collect();
        self.with_store(move |store| {
            let issued = store.issue_all(names, Utc::now()).map_err(|error| error.to_string());
            store.sweep().map_err(|error| error.to_string())?;
            issued.map(drop)
        })
        .await
    }

    /// Takes over the operator's files that pass.
    async fn take_given(&self) -> Result<(), String> {
        let before = self.with_store(|store| store.refused()).await;
        let pending = self.with_store(|store| store.review(Utc::now())).await.map_err(|error| error.to_string())?;
        for (file, bundle, verdict) in self.judge(pending).await.map_err(|error| error.to_string())? {
            let taken = self.with_store(move |store| match verdict {
                Ok(()) => {
                    log::info!(
                        "certificate {file}, for {}: until {}",
                        bundle.names.join(" "),
                        bundle.not_after.format("%F")
                    );
                    if bundle.not_before > Utc::now() {
                        log::warn!("certificate {file} is valid only from {} on", bundle.not_before);
                    }
                    store.accept(&file, bundle)
                }
                Err(reason) => {
                    store.refuse(&file, reason);
                    Ok::<(), StoreError>(())
                }
            });
            taken.await.map_err(|error| error.to_string())?;
        }
        for refusal in self.with_store(|store| store.refused()).await {
            if !before.contains(&refusal) {
                let rest = if refusal.older_serves { "; the one before it serves on" } else { "" };
                log::error!("certificate {} is refused: {}{rest}", refusal.file, refusal.reason);
            }
        }
        Ok(())
    }

    /// HAProxy's own word on certificates: it knows more reasons than we do (a weak key, a weak
    /// signature), and with one that it does not like it would not start.
    async fn judge(
        &self,
        pending: Vec<(String, Bundle)>,
    ) -> Result<Vec<(String, Bundle, Result<(), String>)>, HaproxyError> {
        if pending.is_empty() {
            return Ok(Vec::new());
        }
        if self.ask_about(&pending).await?.is_ok() {
            return Ok(pending.into_iter().map(|(file, bundle)| (file, bundle, Ok(()))).collect());
        }
        let mut judged = Vec::new();
        for one in pending {
            let verdict = self.ask_about(std::slice::from_ref(&one)).await?;
            judged.push((one.0, one.1, verdict));
        }
        Ok(judged)
    }

    async fn ask_about(&self, candidates: &[(String, Bundle)]) -> Result<Result<(), String>, HaproxyError> {
        let folder = self.settings.dir.join(format!("candidate-certs-{}", std::process::id()));
        let certs = folder.join("certs");
        let cfg = format!(
            "defaults\n    mode http\n    timeout connect 1s\n    timeout client 1s\n    timeout server 1s\n\
             frontend certificates\n    bind 127.0.0.1:1 ssl crt {}/\n",
            certs.display()
        );
        let asked = async {
            files::write_certificates(&folder, &cfg, &certs, candidates).await?;
            check::ask(&self.settings, &folder).await
        };
        let verdict = asked.await;
        files::remove_folder(&folder).await?;
        match verdict {
            Ok(()) => Ok(Ok(())),
            Err(HaproxyError::Rejected { message }) => Ok(Err(reason(&message, &certs))),
            Err(error) => Err(error),
        }
    }

    /// Sees to it, before a route is told, that its hosts have a certificate: with a local CA it
    /// is made. False when that is not sure; then a publication has to see to it.
    pub async fn cover(&self, master: &Master, route: &Route) -> bool {
        let tls = &self.settings.tls;
        if self.off() || !tls.local_ca {
            return true;
        }
        let names: BTreeSet<String> = route.hosts().map(|host| needed(host, &tls.domain)).collect();
        let mut state = self.state.lock().await;
        if names.iter().all(|name| state.names.contains(name)) {
            return true;
        }
        let wanted = names.clone();
        let issued = self.with_store(move |store| store.issue(wanted, Utc::now()).map_err(|error| error.to_string()));
        let done = match issued.await {
            Ok(_) => self.follow_locked(master, &mut state, false).await.map_err(|error| error.to_string()),
            Err(error) => Err(error),
        };
        match done {
            Ok(Ok(())) => names.iter().all(|name| state.names.contains(name)),
            Ok(Err(why)) | Err(why) => {
                log::debug!("a certificate for {} is left to the next publication: {why}", route.host);
                false
            }
        }
    }

    /// Brings the current worker in line with the folder. The inner error says why that could not
    /// be done through its socket. Nothing to do when HAProxy is down.
    pub async fn follow(&self, master: &Master) -> Result<Result<(), String>, HaproxyError> {
        if self.off() {
            return Ok(Ok(()));
        }
        self.follow_locked(master, &mut *self.state.lock().await, true).await
    }

    async fn follow_locked(
        &self,
        master: &Master,
        state: &mut State,
        may_compare: bool,
    ) -> Result<Result<(), String>, HaproxyError> {
        let Some(current) = master.current_worker().await? else {
            *state = State { told: std::mem::take(&mut state.told), ..State::default() };
            return Ok(Ok(()));
        };
        let wanted: BTreeMap<String, Mark> =
            self.with_store(|store| store.live().map(|(file, bundle)| (file.to_owned(), mark(bundle))).collect()).await;
        let worker = self.running(master, &current);
        let rest = COMPARE_EVERY + COMPARE_REST * u32::try_from(wanted.len()).unwrap_or(u32::MAX);
        let compare = may_compare && state.compared.is_none_or(|at| at.elapsed() >= rest);
        let known = state.worker.take().filter(|(pid, _)| *pid == current.pid && !compare);
        state.names.clear();
        let mut present = if let Some((_, present)) = known {
            present
        } else {
            state.compared = Some(Instant::now());
            worker.look().await?
        };
        let outcome = self.bring_in_line(&worker, &mut present, &wanted).await?;
        let in_force: Vec<String> =
            wanted.iter().filter(|(file, mark)| present.serves(file, mark)).map(|(file, _)| file.clone()).collect();
        state.names = self
            .with_store(move |store| {
                let in_force: HashSet<&str> = in_force.iter().map(String::as_str).collect();
                let live = store.live().filter(|(file, _)| in_force.contains(file));
                live.flat_map(|(_, bundle)| bundle.names.iter().cloned()).collect()
            })
            .await;
        state.worker = Some((current.pid, present));
        Ok(outcome)
    }

    /// New files first, then those that have changed, then those that go: a name that moves from
    /// one to another is in force all the while.
    async fn bring_in_line(
        &self,
        worker: &Running<'_>,
        present: &mut Present,
        wanted: &BTreeMap<String, Mark>,
    ) -> Result<Result<(), String>, HaproxyError> {
        let mut outcome = Ok(());
        let differ: Vec<_> = wanted.iter().filter(|(file, mark)| !present.serves(file, mark)).collect();
        let (changed, new): (Vec<_>, Vec<_>) = differ.into_iter().partition(|(file, _)| present.listed.contains(*file));
        for (file, mark) in new.into_iter().chain(changed) {
            let name = file.clone();
            let bundle = self
                .with_store(move |store| store.live().find(|(file, _)| *file == name).map(|(_, bundle)| bundle.clone()))
                .await;
            let Some(bundle) = bundle else { continue };
            match worker.put(present, file, &bundle, mark).await? {
                Ok(()) => log::info!("certificate {file} is in force, for {} names", bundle.names.len()),
                Err(why) => outcome = Err(why),
            }
        }
        let missing = outcome.is_err();
        for file in present.stored.keys().filter(|file| !wanted.contains_key(*file)).cloned().collect::<Vec<_>>() {
            if missing && is_leaf(&file) {
                // Its names may be in the file that could not be put; the reload that is next has both.
                continue;
            }
            match worker.remove(present, &file).await? {
                Ok(()) => log::info!("certificate {file} is out of force"),
                Err(why) => outcome = Err(why),
            }
        }
        Ok(outcome)
    }

    /// Tells once of each routed host that no certificate in force is good for.
    pub async fn tell_uncovered(&self, routes: &Routes) {
        let mut state = self.state.lock().await;
        if self.off() || state.worker.is_none() {
            return;
        }
        let has = |host: &Hostname| {
            let wildcard =
                host.as_str().split_once('.').is_some_and(|(_, rest)| state.names.contains(&format!("*.{rest}")));
            wildcard || state.names.contains(host.as_str())
        };
        let bare: BTreeSet<String> =
            routes.iter().flat_map(Route::hosts).filter(|host| !has(host)).map(ToString::to_string).collect();
        if bare.iter().any(|host| !state.told.contains(host)) {
            let some: Vec<&str> = bare.iter().take(10).map(String::as_str).collect();
            log::warn!("no certificate covers {} host(s), among them {}", bare.len(), some.join(" "));
        }
        state.told = bare;
    }

    /// Everything, for a person to read. Changes nothing.
    pub async fn report(&self, master: &Master) -> Result<Certificates, HaproxyError> {
        let pending = self
            .with_store(|store| store.review(Utc::now()))
            .await
            .map_err(|error| HaproxyError::Io { doing: error.doing, source: error.source })?;
        let mut late = Vec::new();
        for (file, _, verdict) in self.judge(pending).await? {
            match verdict {
                Ok(()) => late.push(file),
                Err(reason) => self.with_store(move |store| store.refuse(&file, reason)).await,
            }
        }
        let (live, refused) = self
            .with_store(|store| {
                let live = store.live().map(|(file, bundle)| (file.to_owned(), bundle.clone()));
                (live.collect::<Vec<_>>(), store.refused())
            })
            .await;
        if let Some(current) = master.current_worker().await? {
            let present = self.running(master, &current).look().await?;
            let missing = live.iter().filter(|(file, bundle)| !present.serves(file, &mark(bundle)));
            late.extend(missing.map(|(file, _)| file.clone()));
            let known = |file: &&String| live.iter().any(|(live, _)| live == *file);
            late.extend(present.stored.keys().filter(|file| !known(file)).cloned());
        }
        late.sort();
        late.dedup();
        Ok(Certificates { live, refused, amiss: late })
    }

    /// Files are not worked on where others wait.
    async fn with_store<T: Send + 'static>(&self, work: impl FnOnce(&mut Store) -> T + Send + 'static) -> T {
        let store = Arc::clone(&self.store);
        let work = move || work(&mut store.lock().unwrap_or_else(PoisonError::into_inner));
        match tokio::task::spawn_blocking(work).await {
            Ok(done) => done,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }
}

/// What HAProxy complains of, without where it was shown it.
fn reason(message: &str, folder: &Path) -> String {
    let alert = message.lines().find(|line| line.contains("[ALERT]")).unwrap_or(message);
    let words = alert.rsplit(" : ").next().unwrap_or(alert);
    format!("HAProxy refused it: {}", words.replace(&format!("{}/", folder.display()), ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn haproxys_reason_is_short() {
        let said = "[NOTICE]   (1) : haproxy version is 2.6.12\n[ALERT]    (1) : config : parsing [/c/haproxy.cfg:7] : \
            'bind 127.0.0.1:1' in section 'frontend' : error processing line 0 in file '/c/certs' : \
            unable to load SSL certificate into SSL Context '/c/certs/weak.pem'.\n[ALERT]    (1) : config : Fatal";
        let expected = "HAProxy refused it: unable to load SSL certificate into SSL Context 'weak.pem'.";
        assert_eq!(reason(said, Path::new("/c/certs")), expected);
    }
}
