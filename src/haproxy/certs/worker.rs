//! One worker's certificates: what it has, as it tells, and the commands that change it.

use std::collections::{BTreeMap, BTreeSet};

use super::super::HaproxyError;
use super::super::master::Master;
use crate::tls::Bundle;

/// What a worker takes as one command: its buffer has 16 KiB (`tune.bufsize`).
const COMMAND_MAX: usize = 15 * 1024;
/// Questions in one line.
const QUESTIONS_MAX: usize = 8 * 1024;

/// What tells one certificate from another: its fingerprint, and how many stand behind it.
pub type Mark = (String, usize);

/// A worker's certificates that come from our folder, by file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Present {
    /// None for one that can't be used yet.
    pub stored: BTreeMap<String, Option<Mark>>,
    /// Those that connections are given.
    pub listed: BTreeSet<String>,
}

/// What HAProxy would show of it.
pub fn mark(bundle: &Bundle) -> Mark {
    (bundle.fingerprint.clone(), bundle.chain)
}

impl Present {
    pub fn serves(&self, file: &str, mark: &Mark) -> bool {
        self.listed.contains(file) && self.stored.get(file).is_some_and(|stored| stored.as_ref() == Some(mark))
    }
}

/// A worker, as far as its certificates go.
pub struct Running<'a> {
    pub master: &'a Master,
    pub pid: i32,
    /// As haproxy.cfg names it, but for the slash at its end.
    pub folder: String,
}

impl Running<'_> {
    async fn tell(&self, commands: &[String]) -> Result<String, HaproxyError> {
        let line = commands.join(&format!(";@!{} ", self.pid));
        let gone = || self.master.error(format!("the worker {} has left", self.pid));
        self.master.tell(self.pid, &line).await?.ok_or_else(gone)
    }

    fn path(&self, file: &str) -> String {
        format!("{}/{file}", self.folder)
    }

    /// What it has, and an end to what somebody has begun and left.
    pub async fn look(&self) -> Result<Present, HaproxyError> {
        let stored = self.tell(&["show ssl cert".to_owned()]).await?;
        let listed = self.tell(&[format!("show ssl crt-list {}/", self.folder)]).await?;
        let mut present = Present { listed: files(&self.folder, &listed), ..Present::default() };
        for line in stored.lines() {
            if let Some(left) = line.strip_prefix('*').filter(|path| is_word(path)) {
                self.tell(&[format!("abort ssl cert {left}")]).await?;
            }
        }
        let mut questions: Vec<String> = Vec::new();
        let mut length = 0;
        for file in files(&self.folder, &stored) {
            let question = format!("show ssl cert {}", self.path(&file));
            present.stored.insert(file, None);
            if length + question.len() > QUESTIONS_MAX {
                details(&self.folder, &mut present, &self.tell(&questions).await?);
                questions.clear();
                length = 0;
            }
            // With what stands before each of them.
            length += question.len() + 16;
            questions.push(question);
        }
        if !questions.is_empty() {
            details(&self.folder, &mut present, &self.tell(&questions).await?);
        }
        Ok(present)
    }

    /// The inner error says why not.
    pub async fn put(
        &self,
        present: &mut Present,
        file: &str,
        bundle: &Bundle,
        mark: &Mark,
    ) -> Result<Result<(), String>, HaproxyError> {
        let path = self.path(file);
        let set = format!("set ssl cert {path} <<\n{}\n", bundle.pem());
        if set.len() + path.len() + 64 > COMMAND_MAX {
            return Ok(Err(format!("{file} is too long for HAProxy's socket")));
        }
        let mut commands = Vec::new();
        if !present.stored.contains_key(file) {
            commands.push(format!("new ssl cert {path}"));
        }
        commands.push(set);
        let answer = self.tell(&commands).await?;
        present.stored.entry(file.to_owned()).or_default();
        if !answer.contains(&format!("Transaction created for certificate {path}!")) {
            // One that was begun and left takes the new content for its own (seen on 2.6).
            let begun = answer.split_once("for certificate ").and_then(|(_, rest)| rest.split_once('!'));
            let begun = begun.map_or(path.as_str(), |(begun, _)| begun);
            self.tell(&[format!("abort ssl cert {begun}")]).await?;
            return Ok(Err(format!("{file}: HAProxy answered {:?}", answer.trim())));
        }
        let mut commands = vec![format!("commit ssl cert {path}")];
        if !present.listed.contains(file) {
            commands.push(format!("add ssl crt-list {}/ {path}", self.folder));
        }
        commands.push(format!("show ssl cert {path}"));
        let answer = self.tell(&commands).await?;
        details(&self.folder, present, &answer);
        if answer.contains("Status: Used") {
            present.listed.insert(file.to_owned());
        }
        if present.serves(file, mark) {
            return Ok(Ok(()));
        }
        self.tell(&[format!("abort ssl cert {path}")]).await?;
        Ok(Err(format!("{file}: HAProxy answered {:?}", answer.trim())))
    }

    pub async fn remove(&self, present: &mut Present, file: &str) -> Result<Result<(), String>, HaproxyError> {
        let path = self.path(file);
        let mut commands = Vec::new();
        if present.listed.contains(file) {
            commands.push(format!("del ssl crt-list {}/ {path}", self.folder));
        }
        commands.push(format!("del ssl cert {path}"));
        let answer = self.tell(&commands).await?;
        if answer.contains(&format!("Certificate '{path}' deleted!")) {
            present.listed.remove(file);
            present.stored.remove(file);
            return Ok(Ok(()));
        }
        Ok(Err(format!("{file}: HAProxy answered {:?}", answer.trim())))
    }
}

/// The files of a folder in a list of paths, one a line.
fn files(folder: &str, answer: &str) -> BTreeSet<String> {
    answer.lines().filter_map(|line| file(folder, line)).collect()
}

/// A path's file, if it is in the folder and may stand in a command.
fn file(folder: &str, path: &str) -> Option<String> {
    let file = path.trim().strip_prefix(folder)?.strip_prefix('/')?;
    is_word(file).then(|| file.to_owned())
}

/// Whether it is one word to HAProxy, and no command of its own.
fn is_word(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_graphic() && !b";\\<".contains(&byte);
    !text.is_empty() && text.bytes().all(plain)
}

/// Reads the answers to `show ssl cert FILE`.
fn details(folder: &str, present: &mut Present, answer: &str) {
    for block in answer.split("Filename: ").skip(1) {
        let mut lines = block.lines();
        let Some(file) = lines.next().and_then(|path| file(folder, path)) else { continue };
        let (mut fingerprint, mut chain) = (None, 0);
        for line in lines {
            if let Some(word) = line.strip_prefix("SHA1 FingerPrint: ") {
                fingerprint = Some(word.trim().to_owned());
            } else if line.starts_with("Chain Subject: ") {
                chain += 1;
            }
        }
        present.stored.insert(file, fingerprint.map(|fingerprint| (fingerprint, chain)));
    }
}

/// The door of a fuzzer.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    use super::{BTreeMap, BTreeSet, Mark, Present, details, files};

    /// The files of the folder in an answer that lists them, and in one that shows them.
    pub fn read(folder: &str, answer: &str) -> (BTreeSet<String>, BTreeMap<String, Option<Mark>>) {
        let mut present = Present::default();
        details(folder, &mut present, answer);
        (files(folder, answer), present.stored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_worker_has_is_read_as_haproxy_shows_it() {
        let folder = "/x/live";
        let listing = "# transaction\n*/x/live/b.pem\n# filename\n/x/live/a.pem\n/x/live/b.pem\n/etc/other.pem\n\n";
        assert_eq!(files(folder, listing), BTreeSet::from(["a.pem".to_owned(), "b.pem".to_owned()]));
        assert!(files(folder, "# /x/live\n").is_empty());
        assert!(files(folder, "/x/live/a.pem;del ssl cert b.pem\n/x/live/a b\n/x/live/\n").is_empty());
        let mut present = Present::default();
        let answer = "Filename: /x/live/a.pem\nStatus: Used\nSHA1 FingerPrint: AB\nChain Subject: /CN=c\n\n\
            Filename: /x/live/b.pem\nStatus: Empty\n\nFilename: /etc/other.pem\nSHA1 FingerPrint: CD\n\n";
        details(folder, &mut present, answer);
        let expected = [("a.pem".to_owned(), Some(("AB".to_owned(), 1))), ("b.pem".to_owned(), None)];
        assert_eq!(present.stored, BTreeMap::from(expected));
        assert!(!present.serves("a.pem", &("AB".to_owned(), 1)), "no connection is given it");
        present.listed.insert("a.pem".to_owned());
        assert!(present.serves("a.pem", &("AB".to_owned(), 1)));
        assert!(!present.serves("a.pem", &("AB".to_owned(), 0)) && !present.serves("c.pem", &("AB".to_owned(), 0)));
    }
}
