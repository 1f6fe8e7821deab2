use std::os::unix::fs::PermissionsExt;

use chrono::TimeDelta;
use tempfile::TempDir;

use super::*;

struct Folder {
    dir: TempDir,
    store: Store,
}

fn bundle(name: &str) -> Bundle {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    Bundle::parse(format!("{}{}", made.cert.pem(), made.signing_key.serialize_pem()).as_bytes()).unwrap()
}

fn names(of: &[&str]) -> BTreeSet<String> {
    of.iter().map(|name| (*name).to_owned()).collect()
}

impl Folder {
    fn new(local_ca: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("certs")).unwrap();
        let store = Self::fresh(&dir, local_ca);
        Self { dir, store }
    }

    fn fresh(dir: &TempDir, local_ca: bool) -> Store {
        let domain = Hostname::parse("haas.localhost").unwrap();
        Store::new(Settings { dir: dir.path().to_owned(), domain, local_ca })
    }

    /// As after a restart.
    fn forget(&mut self, local_ca: bool) {
        self.store = Self::fresh(&self.dir, local_ca);
    }

    fn give(&self, file: &str, text: &str) {
        let path = self.dir.path().join("certs").join(file);
        fs::write(&path, text).unwrap();
    }

    /// What a publication does; HAProxy accepts everything here.
    fn settle(&mut self) {
        for (file, bundle) in self.store.review(Utc::now()).unwrap() {
            self.store.accept(&file, bundle).unwrap();
        }
        self.store.sweep().unwrap();
    }

    fn files(&self) -> Vec<String> {
        let mut files: Vec<String> =
            list(&self.dir.path().join("live")).unwrap().into_iter().map(|(name, _)| name).collect();
        files.sort();
        files
    }

    fn reasons(&self) -> String {
        let lines = self.store.refused().into_iter().map(|Refusal { file, reason, older_serves }| {
            let kept = if older_serves { "kept" } else { "none" };
            [file, ": ".to_owned(), reason, format!(" {kept}\n")].concat()
        });
        lines.collect()
    }
}

#[test]
fn the_operators_files_are_copied_renewed_and_taken_away() {
    let mut folder = Folder::new(false);
    let (first, second) = (bundle("a.example"), bundle("a.example"));
    folder.give("a.pem", first.pem());
    folder.give("README", "no certificate, and none of ours");
    folder.settle();
    assert_eq!(folder.files(), ["a.pem"]);
    let path = folder.dir.path().join("live/a.pem");
    assert_eq!(fs::read_to_string(&path).unwrap(), first.pem());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(folder.store.review(Utc::now()).unwrap().is_empty(), "nothing is left to do");
    folder.forget(false);
    assert!(folder.store.review(Utc::now()).unwrap().is_empty(), "nor after a restart");
    folder.give("a.pem", second.pem());
    folder.settle();
    assert_eq!(fs::read_to_string(&path).unwrap(), second.pem());
    fs::remove_file(folder.dir.path().join("certs/a.pem")).unwrap();
    folder.settle();
    assert!(folder.files().is_empty());
}

#[test]
fn a_broken_file_leaves_its_older_copy() {
    let mut folder = Folder::new(false);
    let good = bundle("a.example");
    folder.give("a.pem", good.pem());
    folder.settle();
    for broken in ["garbage", "", &bundle("b.example").pem().replace("PRIVATE KEY", "SECRET KEY")] {
        folder.give("a.pem", broken);
        folder.give("new.pem", broken);
        folder.settle();
        assert_eq!(folder.files(), ["a.pem"]);
        assert_eq!(fs::read_to_string(folder.dir.path().join("live/a.pem")).unwrap(), good.pem());
        let reasons = folder.reasons();
        assert!(reasons.contains("a.pem: it has no") && reasons.contains("kept\nnew.pem: it has no"), "{reasons}");
    }
    folder.forget(false);
    folder.settle();
    assert_eq!(folder.files(), ["a.pem"], "also after a restart");
    // One that HAProxy refuses is not tried again and again.
    folder.give("new.pem", bundle("b.example").pem());
    let pending = folder.store.review(Utc::now()).unwrap();
    assert_eq!(pending.len(), 1);
    folder.store.refuse("new.pem", "HAProxy refused it".to_owned());
    assert!(folder.store.review(Utc::now()).unwrap().is_empty());
    folder.give("new.pem", bundle("c.example").pem());
    assert_eq!(folder.store.review(Utc::now()).unwrap().len(), 1);
}

#[test]
fn an_expired_file_is_refused_but_one_that_expires_in_force_stays() {
    let mut folder = Folder::new(false);
    let good = bundle("a.example");
    folder.give("a.pem", good.pem());
    folder.settle();
    folder.give("b.pem", bundle("b.example").pem());
    let late = good.not_after + TimeDelta::days(1);
    assert!(folder.store.review(late).unwrap().is_empty());
    folder.store.sweep().unwrap();
    assert_eq!(folder.files(), ["a.pem"]);
    assert!(folder.reasons().starts_with("b.pem: it expired on "), "{}", folder.reasons());
}

#[test]
fn names_that_haproxys_socket_has_no_words_for_are_refused() {
    let mut folder = Folder::new(false);
    for odd in ["a b.pem", "*.example.org.pem", "a;b.pem", "haas-0001.pem", "ä.pem"] {
        folder.give(odd, bundle("a.example").pem());
    }
    folder.give(".hidden.pem", "");
    folder.settle();
    assert!(folder.files().is_empty());
    assert_eq!(folder.reasons().matches("rename it").count(), 5, "{}", folder.reasons());
}

#[test]
fn whatever_haproxy_could_stumble_over_goes() {
    let mut folder = Folder::new(true);
    folder.store.issue(names(&["*.alice.haas.localhost"]), Utc::now()).unwrap();
    let live = folder.dir.path().join("live");
    for stray in ["torn.pem", ".a.pem.new", "README", "haas-0009.pem"] {
        fs::write(live.join(stray), "-----BEGIN CERT").unwrap();
    }
    fs::write(live.join("haas-0001.pem"), "").unwrap();
    folder.store.review(Utc::now()).unwrap();
    assert!(folder.store.issue(names(&["*.alice.haas.localhost"]), Utc::now()).unwrap());
    folder.store.sweep().unwrap();
    assert_eq!(folder.files(), ["haas-0000.pem", "haas-0001.pem"]);
    folder.forget(false);
    folder.settle();
    assert!(folder.files().is_empty(), "without a local CA its leaves go");
}

#[test]
fn the_local_ca_is_made_once_and_its_leaves_are_renewed() {
    let mut folder = Folder::new(true);
    let now = Utc::now();
    let wanted = names(&["*.alice.haas.localhost", "www.example.org"]);
    assert!(folder.store.issue(wanted.clone(), now).unwrap());
    let mode = |file: &str| fs::metadata(folder.dir.path().join(file)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("ca.key"), mode("ca.pem")), (0o600, 0o644));
    let ca = fs::read(folder.dir.path().join("ca.pem")).unwrap();
    let of = |folder: &Folder| -> BTreeMap<String, Bundle> {
        folder.store.live().map(|(file, bundle)| (file.to_owned(), bundle.clone())).collect()
    };
    let before = of(&folder);
    assert_eq!(before["haas-0000.pem"].names, ["haas.localhost"]);
    assert_eq!(before["haas-0001.pem"].names.iter().cloned().collect::<BTreeSet<_>>(), wanted);
    assert!((395..=397).contains(&before["haas-0001.pem"].days_left(now)));
    folder.forget(true);
    folder.settle();
    assert!(!folder.store.issue(wanted.clone(), now).unwrap(), "a restart changes nothing");
    assert_eq!(of(&folder), before);
    assert!(!folder.store.issue(wanted.clone(), now + TimeDelta::days(360)).unwrap());
    assert!(folder.store.issue(BTreeSet::new(), now + TimeDelta::days(370)).unwrap(), "under 30 days are left");
    let renewed = of(&folder);
    assert_eq!(renewed["haas-0001.pem"].names, before["haas-0001.pem"].names, "no name gets lost");
    assert_ne!(renewed["haas-0001.pem"].fingerprint, before["haas-0001.pem"].fingerprint);
    assert_eq!(fs::read(folder.dir.path().join("ca.pem")).unwrap(), ca);
    for _ in 0..2 {
        let error = folder.store.issue(wanted.clone(), now + TimeDelta::days(3651)).unwrap_err();
        assert!(matches!(error, AuthorityError::Expired(_)), "{error}");
        folder.forget(true);
    }
}

#[test]
fn a_ca_that_was_replaced_signs_anew_and_half_a_ca_is_never_replaced() {
    let mut folder = Folder::new(true);
    let now = Utc::now();
    folder.store.issue(names(&["*.alice.haas.localhost"]), now).unwrap();
    let (key, pem) = (folder.dir.path().join("ca.key"), folder.dir.path().join("ca.pem"));
    let old_key = fs::read(&key).unwrap();
    fs::remove_file(&pem).unwrap();
    assert!(folder.store.issue(BTreeSet::new(), now).unwrap(), "leaves of the CA before it are renewed");
    folder.settle();
    assert!(!folder.store.issue(BTreeSet::new(), now).unwrap());
    for wrong in [Some(old_key), None] {
        match wrong {
            Some(wrong) => fs::write(&key, wrong).unwrap(),
            None => fs::remove_file(&key).unwrap(),
        }
        folder.forget(true);
        let error = folder.store.issue(BTreeSet::new(), now).unwrap_err();
        assert!(matches!(error, AuthorityError::Mismatch), "{error}");
        assert!(error.to_string().contains("remove both"));
    }
}

/// Names of so many leaves.
fn many(from: usize, leaves: usize) -> BTreeSet<String> {
    (from..from + leaves * 50).map(|n| format!("h{n:05}.example.org")).collect()
}

#[test]
fn names_that_no_app_has_any_more_go_when_they_outweigh_the_rest() {
    let mut folder = Folder::new(true);
    let now = Utc::now();
    let kept = names(&["*.alice.haas.localhost"]);
    for round in 0..12 {
        let toggled = many(round * 100, 2).into_iter().chain(kept.clone()).collect();
        folder.store.issue_all(toggled, now).unwrap();
        folder.store.issue_all(kept.clone(), now).unwrap();
        folder.store.review(now).unwrap();
        let files = folder.files();
        assert!(files.len() <= 6, "{files:?}");
        let live: BTreeSet<&String> = folder.store.live().flat_map(|(_, bundle)| &bundle.names).collect();
        assert!(["haas.localhost", "*.alice.haas.localhost"].iter().all(|name| live.contains(&(*name).to_owned())));
    }
    assert!(!folder.store.issue_all(kept, now).unwrap(), "settled");
    let own = folder.store.live().find(|(file, _)| *file == "haas-0000.pem").unwrap().1;
    assert_eq!(own.names, ["haas.localhost"], "the operator's own leaf tells no tenant's name");
}

#[test]
fn a_name_that_was_issued_since_the_others_were_read_is_not_dropped() {
    let mut folder = Folder::new(true);
    let now = Utc::now();
    folder.store.issue_all(many(0, 8), now).unwrap();
    // The lane gives one more app its certificate, and then all are packed for rows that were read before.
    folder.store.issue(names(&["www.example.net"]), now).unwrap();
    let has = |folder: &Folder, name: &str| folder.store.live().any(|(_, leaf)| leaf.names.iter().any(|of| of == name));
    folder.store.issue_all(names(&["*.alice.haas.localhost"]), now).unwrap();
    assert_eq!(folder.files().len(), 2);
    assert!(has(&folder, "www.example.net") && !has(&folder, "h00000.example.org"));
    // The next time it has to be among those that were read.
    folder.store.issue_all(many(1000, 8), now).unwrap();
    folder.store.issue_all(names(&["*.alice.haas.localhost"]), now).unwrap();
    assert!(!has(&folder, "www.example.net"));
}

#[test]
fn a_packing_that_is_cut_off_is_carried_through_by_the_next_process() {
    let mut folder = Folder::new(true);
    let now = Utc::now();
    folder.store.issue_all(many(0, 20), now).unwrap();
    let live = folder.dir.path().join("live");
    let old = tempfile::tempdir().unwrap();
    for file in folder.files() {
        fs::copy(live.join(&file), old.path().join(&file)).unwrap();
    }
    let needed = many(475, 2);
    folder.store.issue_all(needed.clone(), now).unwrap();
    let packed = folder.files();
    assert_eq!(packed.len(), 3);
    // As after a kill before anything was removed: both are there.
    let before: Vec<Vec<u8>> = packed.iter().map(|file| fs::read(live.join(file)).unwrap()).collect();
    for file in fs::read_dir(old.path()).unwrap() {
        let file = file.unwrap();
        if !live.join(file.file_name()).exists() {
            fs::copy(file.path(), live.join(file.file_name())).unwrap();
        }
    }
    folder.forget(true);
    folder.settle();
    assert!(!folder.store.issue_all(needed.clone(), now).unwrap(), "what is written already is good");
    assert_eq!(folder.files(), packed);
    assert_eq!(packed.iter().map(|file| fs::read(live.join(file)).unwrap()).collect::<Vec<_>>(), before);
    // A leaf that can't be written has none of the others removed.
    folder.store.issue_all(many(0, 20), now).unwrap();
    let all = folder.files();
    let free = (1..99).map(leaf_name).find(|file| !all.contains(file)).unwrap();
    fs::create_dir(live.join(&free)).unwrap();
    assert!(folder.store.issue_all(many(3000, 1), now).is_err());
    assert!(all.iter().all(|file| live.join(file).is_file()), "{all:?} {:?}", folder.files());
}
