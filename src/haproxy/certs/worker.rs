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
        let mut present = Present { listed: self.files(&listed), ..Present::default() };
        for line in stored.lines() {
            if let Some(left) = line.strip_prefix('*') {
                self.tell(&[format!("abort ssl cert {left}")]).await?;
            }
        }
        let mut questions: Vec<String> = Vec::new();
        let mut length = 0;
        for file in self.files(&stored) {
            let question = format!("show ssl cert {}", self.path(&file));
            present.stored.insert(file, None);
            if length + question.len() > QUESTIONS_MAX {
                self.details(&mut present, &self.tell(&questions).await?);
                questions.clear();
                length = 0;
            }
            // With what stands before each of them.
            length += question.len() + 16;
            questions.push(question);
        }
        if !questions.is_empty() {
            self.details(&mut present, &self.tell(&questions).await?);
        }
        Ok(present)
    }

    /// The files of ours in a list of paths, one a line.
    fn files(&self, answer: &str) -> BTreeSet<String> {
        let file = |line: &str| Some(line.trim().strip_prefix(&self.folder)?.strip_prefix('/')?.to_owned());
        answer.lines().filter_map(file).filter(|file| !file.is_empty()).collect()
    }

    /// Reads the answers to `show ssl cert FILE`.
    fn details(&self, present: &mut Present, answer: &str) {
        for block in answer.split("Filename: ").skip(1) {
            let mut lines = block.lines();
            let Some(file) = lines.next().and_then(|path| path.trim().strip_prefix(&self.folder)?.strip_prefix('/'))
            else {
                continue;
            };
            let (mut fingerprint, mut chain) = (None, 0);
            for line in lines {
                if let Some(word) = line.strip_prefix("SHA1 FingerPrint: ") {
                    fingerprint = Some(word.trim().to_owned());
                } else if line.starts_with("Chain Subject: ") {
                    chain += 1;
                }
            }
            present.stored.insert(file.to_owned(), fingerprint.map(|fingerprint| (fingerprint, chain)));
        }
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
        self.details(present, &answer);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_worker_has_is_read_as_haproxy_shows_it() {
        let master = Master::new("/nowhere".into(), true);
        let worker = Running { master: &master, pid: 1, folder: "/x/live".to_owned() };
        let listing = "# transaction\n*/x/live/b.pem\n# filename\n/x/live/a.pem\n/x/live/b.pem\n/etc/other.pem\n\n";
        assert_eq!(worker.files(listing), BTreeSet::from(["a.pem".to_owned(), "b.pem".to_owned()]));
        assert!(worker.files("# /x/live\n").is_empty());
        let mut present = Present::default();
        let answer = "Filename: /x/live/a.pem\nStatus: Used\nSHA1 FingerPrint: AB\nChain Subject: /CN=c\n\n\
            Filename: /x/live/b.pem\nStatus: Empty\n\nFilename: /etc/other.pem\nSHA1 FingerPrint: CD\n\n";
        worker.details(&mut present, answer);
        let expected = [("a.pem".to_owned(), Some(("AB".to_owned(), 1))), ("b.pem".to_owned(), None)];
        assert_eq!(present.stored, BTreeMap::from(expected));
        assert!(!present.serves("a.pem", &("AB".to_owned(), 1)), "no connection is given it");
        present.listed.insert("a.pem".to_owned());
        assert!(present.serves("a.pem", &("AB".to_owned(), 1)));
        assert!(!present.serves("a.pem", &("AB".to_owned(), 0)) && !present.serves("c.pem", &("AB".to_owned(), 0)));
    }
}
