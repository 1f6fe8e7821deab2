//! One tenant on its way between installations, as a file that is verified on both sides. On the
//! real engine, database and proxy.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};
use support::hoodie::{Hoodie, client};
use support::installation::{Installation, docker};

/// One that is archived and exported to this file, with carol's account in it.
async fn exported(haas: &Installation, user: &str) -> PathBuf {
    haas.provision(user, "notes").await.sign_up("carol").await;
    haas.order("archive", user, "notes").await;
    let file = haas.dir.path().join("exported.tar.zst");
    export(haas, user, &file).await;
    file
}

/// `haas export`, which has to work, and to say what is in the file.
async fn export(haas: &Installation, user: &str, file: &Path) {
    let (code, out, errors) =
        haas.haas(&["export", &haas.user(user), "notes", "--output", file.to_str().unwrap()]).await;
    assert_eq!(code, 0, "{out}{errors}\n{}", haas.log());
    let bytes = std::fs::read(file).unwrap();
    let sha256 = hex::encode(Sha256::digest(&bytes));
    assert_eq!(out.trim(), format!("{}: {} bytes, sha256 {sha256}", file.display(), bytes.len()));
}

/// The files in the folder of archives, unfinished ones included, and what is in them.
fn archives(haas: &Installation) -> BTreeSet<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(haas.layout.archive_dir()).into_iter().flatten();
    entries
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
        .collect()
}

/// All that an import could leave behind.
async fn everything(haas: &Installation) -> (String, Vec<String>, String, BTreeSet<(String, Vec<u8>)>) {
    let label = format!("label=haas.installation={}", haas.sql("SELECT id FROM installation").await);
    (
        haas.sql("SELECT string_agg(instances::text, ' ' ORDER BY id), (SELECT count(*) FROM events) FROM instances")
            .await,
        haas.containers().await,
        docker(&["volume", "ls", "-q", "--filter", &label]).await,
        archives(haas),
    )
}

/// When a container was started last, and which it is.
async fn started(haas: &Installation, user: &str) -> String {
    docker(&["inspect", "-f", "{{.Id}} {{.State.StartedAt}}", &haas.container(user, "notes")]).await
}

#[tokio::test]
async fn an_app_is_exported_whether_it_is_awake_asleep_or_archived_and_stays_what_it_is() {
    let haas = Installation::up_with("[tenant]\nstop_timeout = \"2s\"").await;
    let states = ["awake", "asleep", "archived"];
    for user in states {
        haas.provision(user, "notes").await.sign_up(user).await;
    }
    haas.order("sleep", "asleep", "notes").await;
    haas.order("archive", "archived", "notes").await;
    let asleep = started(&haas, "asleep").await;
    let packed = archives(&haas);
    assert_eq!(packed.len(), 1);

    let file = |user: &str| haas.dir.path().join(format!("{user}.tar.zst"));
    for user in states {
        export(&haas, user, &file(user)).await;
    }
    haas.comes_to_be("awake", "notes", "running").await;
    assert_eq!(haas.instance("asleep", "notes").await["state"], "asleep");
    assert_eq!(started(&haas, "asleep").await, asleep, "it was not woken for that");
    assert_eq!(haas.instance("archived", "notes").await["state"], "archived");
    assert_eq!(archives(&haas), packed, "an export is a copy, and leaves nothing else");
    assert_eq!(std::fs::read(file("archived")).unwrap(), packed.first().unwrap().1, "byte by byte");

    // A file that is there is not overwritten, whatever state it is in.
    for user in states {
        let before = std::fs::read(file(user)).unwrap();
        let (code, out, errors) =
            haas.haas(&["export", &haas.user(user), "notes", "-o", file(user).to_str().unwrap()]).await;
        assert_eq!((code, out.as_str()), (5, ""), "{errors}");
        assert!(errors.contains(&format!("{} is there already", file(user).display())), "{errors}");
        assert_eq!(std::fs::read(file(user)).unwrap(), before);
    }
    assert_eq!(haas.sql("SELECT count(*) FROM events WHERE kind = 'wake'").await, "1", "the one that was awake");
    let (code, _, errors) = haas.haas(&["export", &haas.user("nobody"), "notes"]).await;
    assert_eq!(code, 4, "{errors}");

    // Each file has what its app had, and no other's.
    for user in states {
        let copy = haas.user(&format!("copy-of-{user}"));
        let (code, out, errors) = haas.haas(&["import", file(user).to_str().unwrap(), "--user", &copy]).await;
        assert_eq!(code, 0, "{out}{errors}\n{}", haas.log());
        for (hoodie, what) in
            [(haas.hoodie(&format!("copy-of-{user}"), "notes"), "copy"), (haas.hoodie(user, "notes"), "original")]
        {
            assert!(hoodie.knows(user).await, "the {what} of {user}");
            for other in states.into_iter().filter(|other| *other != user) {
                assert!(!hoodie.knows(other).await, "the {what} of {user} knows {other}");
            }
        }
    }
}

#[tokio::test]
async fn an_app_moves_to_another_installation_under_its_names_or_others() {
    let settings = "[tenant]\nstop_timeout = \"2s\"";
    let (one, two) = tokio::join!(Installation::up_with(settings), Installation::up_with(settings));
    let file = exported(&one, "alice").await;
    let file = file.to_str().unwrap();
    let before = everything(&one).await;
    assert_eq!(before.3.len(), 1);

    let hoodie_of = |user: &str, app: &str| Hoodie {
        client: client(),
        host: format!("{app}.{user}.haas.localhost"),
        port: two.ports.http,
        https: false,
    };
    let (alice, bob) = (one.user("alice"), two.user("bob"));
    let (code, out, errors) = two.haas(&["import", file]).await;
    assert_eq!(code, 0, "{out}{errors}\n{}", two.log());
    let (code, out, errors) =
        two.haas(&["import", file, "--user", &bob, "--app", "todo", "--email", "bob@example.org", "--json"]).await;
    let told: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (code, &told["state"], &told["emailaddress"]),
        (0, &"running".into(), &"bob@example.org".into()),
        "{errors}"
    );
    let rows = "SELECT string_agg(username || ' ' || appname || ' ' || email, ',' ORDER BY appname) FROM instances";
    assert_eq!(two.sql(rows).await, format!("{alice} notes alice@example.com,{bob} todo bob@example.org"));
    let (same, other) = (hoodie_of(&alice, "notes"), hoodie_of(&bob, "todo"));
    for hoodie in [&same, &other] {
        assert!(hoodie.knows("carol").await && !hoodie.knows("dave").await, "{}", hoodie.host);
    }
    other.sign_up("dave").await;
    assert!(!same.knows("dave").await, "each has a copy of its own");
    // What they were unpacked from stays for its time of grace.
    let whole = std::fs::read(file).unwrap();
    let of = |user: &str| archives(&two).into_iter().filter(|(name, _)| name.starts_with(user)).collect::<Vec<_>>();
    for user in [&alice, &bob] {
        assert!(matches!(&of(user)[..], [(_, bytes)] if *bytes == whole), "{user}");
    }
    assert_eq!(everything(&one).await, before, "the original is untouched");

    // On one engine, two can't have the container's name: this one goes before the original wakes.
    let (code, _, errors) = two.haas(&["purge", &alice, "notes"]).await;
    assert_eq!(code, 0, "{errors}");
    assert_eq!((of(&alice).len(), of(&bob).len()), (0, 1), "a copy is data, too");
    let original = one.hoodie("alice", "notes");
    assert!(original.knows("carol").await && !original.knows("dave").await);
    assert!(other.knows("dave").await);
}

#[tokio::test]
async fn what_is_no_whole_export_is_refused_and_leaves_nothing() {
    let haas = Installation::up_with("[tenant]\nstop_timeout = \"2s\"").await;
    let whole = std::fs::read(exported(&haas, "alice").await).unwrap();
    let before = everything(&haas).await;
    let file = haas.dir.path().join("damaged.tar.zst");
    let user = haas.user("bob");
    let refused = async |what: String, bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        let (code, out, errors) = haas.haas(&["import", file.to_str().unwrap(), "--user", &user]).await;
        assert_eq!((code, out.as_str()), (5, ""), "{what}: {errors}");
        assert!(errors.contains("damaged") || errors.contains("cut short"), "{what}: {errors}");
    };
    // From the magic number to the last byte of the checksum. Whole bytes: one bit of the fourth means
    // nothing (RFC 8878, section 3.1.1.1.1).
    let last = whole.len() - 1;
    for at in [0, 4, 7, last / 4, last / 2, last / 4 * 3, last - 4, last] {
        let mut bytes = whole.clone();
        bytes[at] ^= 0xff;
        refused(format!("byte {at} of {last} is flipped"), &bytes).await;
    }
    for length in [0, 1, 100, last / 2, last] {
        refused(format!("cut after {length} of {}", last + 1), &whole[..length]).await;
    }
    let random: Vec<u8> = (0..100_000).map(|_| rand::random()).collect();
    refused("a random file".to_owned(), &random).await;
    refused("something comes after it".to_owned(), &[&whole, &random[..10]].concat()).await;
    // What can be unpacked, and is no archive of ours.
    let tar = haas.dir.path().join("other");
    std::fs::create_dir(&tar).unwrap();
    std::fs::write(tar.join("haas.txt"), "hello").unwrap();
    let made =
        std::process::Command::new("tar").arg("-C").arg(&tar).args(["--zstd", "-cf"]).arg(&file).arg(".").status();
    assert!(made.unwrap().success());
    let foreign = std::fs::read(&file).unwrap();
    refused("somebody else's archive".to_owned(), &foreign).await;
    assert_eq!(everything(&haas).await, before);
    // The whole one would have been taken: nothing but the damage was refused.
    std::fs::write(&file, &whole).unwrap();
    let (code, out, errors) = haas.haas(&["import", file.to_str().unwrap(), "--user", &user]).await;
    assert_eq!(code, 0, "{out}{errors}");
    assert!(haas.hoodie("bob", "notes").knows("carol").await);
}

#[tokio::test]
async fn nobody_is_overwritten_by_an_import() {
    let haas = Installation::up_with("[tenant]\nstop_timeout = \"2s\"").await;
    let file = exported(&haas, "alice").await;
    let file = file.to_str().unwrap();
    haas.provision("bob", "notes").await.sign_up("dave").await;
    haas.provision("deleted", "notes").await.sign_up("erin").await;
    haas.order("deprovision", "deleted", "notes").await;
    let before = everything(&haas).await;
    // It rests, is awake, is deleted; and names that are no names, which must not be made good.
    let bad = ["..".to_owned(), "Upper Case".to_owned()];
    for user in ["alice", "bob", "deleted"].map(|user| haas.user(user)).iter().chain(&bad) {
        let (code, out, errors) = haas.haas(&["import", file, "--user", user]).await;
        assert_eq!((code, out.as_str()), (5, ""), "{user}: {errors}");
        assert!(errors.starts_with("haas: "), "{errors}");
    }
    assert_eq!(everything(&haas).await, before);
    assert!(haas.hoodie("bob", "notes").knows("dave").await);
    haas.order("restore", "deleted", "notes").await;
    assert!(haas.hoodie("deleted", "notes").knows("erin").await);
    // Once it is purged, its name is free.
    haas.order("purge", "deleted", "notes").await;
    let (code, out, errors) = haas.haas(&["import", file, "--user", &haas.user("deleted")]).await;
    assert_eq!(code, 0, "{out}{errors}");
    let imported = haas.hoodie("deleted", "notes");
    assert!(imported.knows("carol").await && !imported.knows("erin").await);
}
