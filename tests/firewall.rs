//! `haas firewall` puts its own rules in and takes them away, and touches no other: on machines of the
//! tests' own, network namespaces with rules as others have them.
#![allow(clippy::unwrap_used)]

#[path = "support/outside.rs"]
mod outside;
mod support;

use std::path::Path;

use outside::Outside;

/// A network of a test's own, with rules as they are on a machine of others', where nobody else changes any.
struct Machine {
    outside: Outside,
    kind: &'static str,
    bin: tempfile::TempDir,
}

impl Machine {
    async fn new(kind: &'static str) -> Self {
        let bin = tempfile::tempdir().unwrap();
        for name in ["iptables", "iptables-restore", "ip6tables", "ip6tables-restore"] {
            let real = format!("/usr/sbin/{}", name.replace("tables", &format!("tables-{kind}")));
            assert!(Path::new(&real).exists(), "{real}");
            std::os::unix::fs::symlink(real, bin.path().join(name)).unwrap();
        }
        Self { outside: Outside::new(&[]).await, kind, bin }
    }

    fn command(&self, program: &str, arguments: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new("ip");
        command.args(["netns", "exec", &self.outside.namespace, program]).args(arguments);
        command.env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.bin.path().display()));
        for name in ["DATABASE_URL", "HAAS_DIR", "HAAS_CONFIG"] {
            command.env_remove(name);
        }
        // No `haas up` has run there.
        command.current_dir(self.bin.path());
        command
    }

    async fn iptables(&self, arguments: &[&str]) {
        let output = self.command("iptables", arguments).output().await.unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Everything in every table of either family, without the counters.
    async fn saved(&self) -> String {
        let mut text = String::new();
        for program in ["iptables", "ip6tables"] {
            let output = self.command(program, &["-S"]).output().await.unwrap();
            assert!(output.status.success());
            text.push_str(&String::from_utf8_lossy(&output.stdout));
        }
        text
    }

    async fn firewall(&self, arguments: &[&str]) -> (i32, String) {
        let all = [&["firewall"], arguments].concat();
        let output = self.command(env!("CARGO_BIN_EXE_haas"), &all).output().await.unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8_lossy(&text).into_owned())
    }
}

const ONE: &str = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9";
const TWO: &str = "ffffffff-4e5f-6071-8293-a4b5c6d7e8f9";

async fn puts_in_and_takes_away_its_own(kind: &'static str) {
    let machine = Machine::new(kind).await;
    let one = ["--installation", ONE, "--bridge", "haas-0a1b2c3d4e"];
    let two = ["--installation", TWO, "--bridge", "br-0123456789ab"];
    let with = |action: &'static str, rest: [&'static str; 4]| [&[action], &rest[..]].concat();
    let (code, text) = machine.firewall(&with("--install", one)).await;
    assert_eq!(code, 1);
    assert!(text.contains("there is no chain DOCKER-USER"), "{text}");
    let bare = machine.saved().await;
    assert!(!bare.contains("HAAS"), "a refusal changes nothing: {bare}");

    // What Docker and others have put in.
    for rule in [
        "-N DOCKER-USER",
        "-A FORWARD -j DOCKER-USER",
        "-A DOCKER-USER -s 198.51.100.0/24 -j DROP",
        "-A DOCKER-USER -j RETURN",
        "-N f2b-sshd",
        "-A INPUT -p tcp -m tcp --dport 22 -j f2b-sshd",
        "-A INPUT -i lo -j ACCEPT",
        "-A f2b-sshd -j RETURN",
        "-A OUTPUT -d 198.51.100.7/32 -j REJECT",
    ] {
        machine.iptables(&rule.split(' ').collect::<Vec<_>>()).await;
    }
    let before = machine.saved().await;
    let (code, text) = machine.firewall(&with("--check", one)).await;
    assert_eq!(code, 3, "{text}");
    let (code, text) = machine.firewall(&with("--install", one)).await;
    assert_eq!(code, 0, "{text}");
    let only_one = machine.saved().await;
    for line in before.lines() {
        assert!(only_one.lines().any(|there| there == line), "{line} is left as it was");
    }
    assert_eq!(machine.firewall(&with("--install", one)).await.0, 0);
    assert_eq!(machine.saved().await, only_one, "twice is once");

    // Another installation beside it.
    assert_eq!(machine.firewall(&with("--install", two)).await.0, 0);
    let both = machine.saved().await;
    for other in [one, two] {
        assert_eq!(machine.firewall(&with("--check", other)).await.0, 0);
    }
    // Each of its rules that somebody deletes is missed, and put in again.
    let ours: Vec<&str> = both.lines().filter(|line| line.starts_with("-A") && line.contains("0a1b2c3d4e")).collect();
    assert_eq!(ours.len(), 12, "{both}");
    let v6: Vec<&str> = ours.iter().copied().filter(|line| line.ends_with("DROP")).collect();
    for line in ours.iter().filter(|line| !v6.contains(line)) {
        let rule: Vec<&str> = line.split(' ').collect();
        let first_family = !line.starts_with("-A FORWARD");
        let program = if first_family { "iptables" } else { "ip6tables" };
        let output = machine.command(program, &[&["-D"], &rule[1..]].concat()).output().await.unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        let (code, text) = machine.firewall(&with("--check", one)).await;
        assert_eq!(code, 3, "{line}: {text}");
        assert_eq!(machine.firewall(&with("--check", two)).await.0, 0, "the other one's are there");
        assert_eq!(machine.firewall(&with("--install", one)).await.0, 0);
        assert_eq!(machine.firewall(&with("--check", one)).await.0, 0, "{line}");
    }
    // What somebody puts before ours is seen, and ours are put first again.
    machine.iptables(&["-I", "INPUT", "-p", "tcp", "-j", "ACCEPT"]).await;
    let (code, text) = machine.firewall(&with("--check", one)).await;
    assert!(code == 3 && text.contains("INPUT has `-p tcp -j ACCEPT` before ours"), "{text}");
    assert_eq!(machine.firewall(&with("--install", one)).await.0, 0);
    assert_eq!(machine.firewall(&with("--check", one)).await.0, 0);
    machine.iptables(&["-D", "INPUT", "-p", "tcp", "-j", "ACCEPT"]).await;

    // Taken away, and nothing else.
    assert_eq!(machine.firewall(&["--remove", "--installation", ONE]).await.0, 0);
    let left = machine.saved().await;
    assert!(!left.contains("0a1b2c3d4e") && left.contains("HAAS-ffffffff4e-INPUT"), "{left}");
    assert_eq!(machine.firewall(&with("--check", two)).await.0, 0);
    assert_eq!(machine.firewall(&["--remove", "--installation", TWO]).await.0, 0);
    assert_eq!(machine.saved().await, before, "exactly what was there, with {}", machine.kind);
    let (code, text) = machine.firewall(&["--remove", "--installation", TWO]).await;
    assert!(code == 0 && text.contains("there were none"), "{text}");
}

#[tokio::test]
async fn it_takes_away_exactly_what_it_put_in() {
    puts_in_and_takes_away_its_own("nft").await;
}

#[tokio::test]
async fn it_takes_away_exactly_what_it_put_in_with_the_older_iptables() {
    puts_in_and_takes_away_its_own("legacy").await;
}

#[tokio::test]
async fn at_boot_the_rules_are_there_before_docker_is() {
    let machine = Machine::new("nft").await;
    let (code, text) = machine.firewall(&["--install", "--before-docker", "--installation", ONE]).await;
    assert_eq!(code, 0, "{text}");
    let saved = machine.saved().await;
    assert!(saved.contains("-N DOCKER-USER") && saved.contains("-A INPUT -i haas-0a1b2c3d4e "), "{saved}");
    // As an engine does that starts: it takes the chain as it is (Docker's manual).
    machine.iptables(&["-I", "FORWARD", "-j", "DOCKER-USER"]).await;
    machine.iptables(&["-A", "DOCKER-USER", "-j", "RETURN"]).await;
    let (code, text) = machine.firewall(&["--check", "--installation", ONE, "--bridge", "haas-0a1b2c3d4e"]).await;
    assert_eq!(code, 0, "{text}");
}

#[tokio::test]
async fn bad_input_and_no_root_are_told_and_change_nothing() {
    let machine = Machine::new("nft").await;
    let before = machine.saved().await;
    for (arguments, code, words) in [
        (&["--install", "--installation", "x"][..], 2, "invalid value"),
        (&["--install", "--check"], 2, "cannot be used with"),
        (&["--installation", ONE], 2, "--install|--check|--remove"),
        (&["--install", "--before-docker", "--installation", ONE, "--bridge", "haas+"], 1, "no name of a bridge"),
        (&["--install"], 1, "no `haas up` has run"),
    ] {
        let (ended, text) = machine.firewall(arguments).await;
        assert!(ended == code && text.contains(words), "{arguments:?}: {ended} {text}");
    }
    assert_eq!(machine.saved().await, before);
    let mut command = machine.command(
        "setpriv",
        &[
            "--reuid",
            "1000",
            "--clear-groups",
            env!("CARGO_BIN_EXE_haas"),
            "firewall",
            "--check",
            "--installation",
            ONE,
        ],
    );
    let output = command.output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && text.contains("only root can see"), "{text}");
}
