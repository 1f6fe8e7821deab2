//! Rules of the house that the compiler does not know: who may call whom.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// Everything in `src/` but the entry points.
const ROOMS: [&str; 22] = [
    "app_connection",
    "archive",
    "bounded",
    "cli",
    "clients",
    "config",
    "containers",
    "credentials",
    "embedded",
    "failpoint",
    "firewall",
    "fuzzing",
    "haproxy",
    "http",
    "instance",
    "manifest",
    "reconcile",
    "server",
    "tls",
    "watch",
    "webhook",
    "whole_file",
];

fn sources(room: &str) -> Vec<(PathBuf, String)> {
    // Unit tests may reach wherever they like.
    fn collect(path: &Path, found: &mut Vec<(PathBuf, String)>) {
        if path.file_stem().is_some_and(|name| name == "tests") {
            return;
        }
        if path.is_dir() {
            for entry in fs::read_dir(path).unwrap() {
                collect(&entry.unwrap().path(), found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap_or_default().to_owned();
            found.push((path.to_owned(), code));
        }
    }
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    collect(&src.join(room), &mut found);
    collect(&src.join(format!("{room}.rs")), &mut found);
    assert!(!found.is_empty(), "there is no room {room}");
    found
}

fn forbid(room: &str, words: &[&str]) {
    for (path, code) in sources(room) {
        for word in words {
            assert!(!code.contains(word), "{} mentions {word}", path.display());
        }
    }
}

#[test]
fn the_domain_is_pure() {
    forbid(
        "instance",
        &[
            "crate::manifest",
            "crate::containers",
            "crate::haproxy",
            "crate::http",
            "crate::reconcile",
            "tokio::",
            "async fn",
        ],
    );
}

#[test]
fn the_api_touches_neither_docker_nor_haproxy() {
    forbid("http", &["crate::containers", "crate::haproxy", "bollard", "crate::cli::"]);
}

#[test]
fn the_manifest_is_the_only_way_to_the_database() {
    for room in ["http", "reconcile", "containers", "haproxy", "instance", "cli"] {
        forbid(room, &["diesel", "sql_query"]);
    }
}

#[test]
fn only_containers_speak_to_docker_and_only_haproxy_signals_it() {
    for room in ["http", "reconcile", "manifest", "haproxy", "instance", "cli", "embedded", "firewall"] {
        forbid(room, &["bollard"]);
    }
    for room in ["http", "reconcile", "manifest", "containers", "instance"] {
        forbid(room, &["sys::signal"]);
    }
}

#[test]
fn data_flows_one_way() {
    forbid("manifest", &["crate::http", "crate::reconcile", "crate::containers", "crate::haproxy", "crate::cli::"]);
    forbid("containers", &["crate::http", "crate::reconcile", "crate::manifest", "crate::cli::"]);
    forbid("haproxy", &["crate::http", "crate::reconcile", "crate::manifest", "crate::containers", "crate::cli::"]);
}

#[test]
fn archives_know_nothing_of_the_rest() {
    forbid(
        "archive",
        &[
            "crate::http",
            "crate::reconcile",
            "crate::manifest",
            "crate::containers",
            "crate::haproxy",
            "crate::cli::",
            "bollard",
            "diesel",
        ],
    );
}

#[test]
fn certificates_know_nothing_of_haproxy() {
    forbid(
        "tls",
        &[
            "crate::http",
            "crate::reconcile",
            "crate::manifest",
            "crate::containers",
            "crate::haproxy",
            "crate::cli::",
            "tokio::",
            "async fn",
        ],
    );
}

#[test]
fn the_firewall_is_roots_and_never_the_servers() {
    for room in ["http", "reconcile", "manifest", "containers", "haproxy", "server", "embedded", "watch"] {
        forbid(room, &["crate::firewall", "firewall::"]);
    }
    forbid(
        "firewall",
        &["crate::http", "crate::reconcile", "crate::manifest", "crate::containers", "crate::haproxy", "crate::cli::"],
    );
}

/// What an app answers has no end but the one that `app_connection` sets: a client without one is for
/// the operator's own URL.
#[test]
fn apps_are_asked_with_a_bound() {
    for room in ROOMS.into_iter().filter(|room| *room != "webhook") {
        forbid(room, &["reqwest"]);
    }
    for room in ["http", "haproxy", "reconcile"] {
        forbid(room, &["TcpStream::connect"]);
    }
}

#[test]
fn nothing_is_left_for_later() {
    for room in ROOMS {
        forbid(room, &["todo!(", "unimplemented!(", "dbg!(", "TODO", "FIXME"]);
    }
}

#[test]
fn files_stay_small() {
    for room in ROOMS {
        for (path, code) in sources(room) {
            assert!(code.lines().count() <= 500, "{}: look for the second room in it", path.display());
        }
    }
}

/// A threat is answered by a test that is there, in the file that the page names.
#[test]
fn each_test_that_the_threat_model_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let places = |word: &str| {
        let module = word.replace("::", "/");
        let all = [format!("tests/{word}.rs"), format!("src/{module}.rs"), format!("fuzz/fuzz_targets/{word}.rs")];
        all.into_iter().map(|path| root.join(path)).find(|path| path.exists())
    };
    let page = fs::read_to_string(root.join("docs/security.md")).unwrap();
    let mut found = 0;
    for row in page.lines().filter(|line| line.starts_with("| ")) {
        let shown_by = row.trim_end_matches('|').rsplit_once('|').unwrap().1;
        // As the page says where it names no other.
        let mut file = places("walls").unwrap();
        for word in shown_by.split('`').skip(1).step_by(2) {
            if word.matches('_').count() > 2 {
                let code = fs::read_to_string(&file).unwrap();
                assert!(code.contains(&format!("fn {word}(")), "{} has no {word}", file.display());
                found += 1;
            } else {
                file = places(word).unwrap_or_else(|| panic!("there is no {word}: {row}"));
            }
        }
    }
    assert!(found > 30, "{found}");
}
