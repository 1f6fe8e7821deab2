//! A client of HAProxy's command sockets (HAProxy management guide, sections 9.3 and 9.4).
//!
//! One line of commands a connection: the sending side is closed after it, and the answer ends
//! where HAProxy closes its own.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::HaproxyError;

/// While it reads a big file the master answers late, not never.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);
/// How the master begins to say that a worker is not, or no longer, there.
pub(super) const NO_SUCH_WORKER: &str = "Can't find the target";
/// What the master says of a worker that is just coming or leaving.
const NO_CONNECTION: &str = "Can't connect to the target CLI!\n";

/// Where HAProxy is asked.
pub(super) struct Socket {
    path: PathBuf,
    /// Who listened when it was last asked; 0 when that can't be seen from here.
    listener: AtomicI32,
}

/// Which file: whoever listens anew makes another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SocketFile {
    inode: u64,
    changed: (i64, i64),
}

/// What came of one question.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Nobody listens, at this file if there is one.
    Nobody(Option<SocketFile>),
    /// Nobody listens at the moment; whether somebody is there can't be said.
    Unclear,
    /// More have asked than are listened to at a time: it was not heard.
    Unheard,
    /// Somebody took the question and was gone before the answer was whole.
    CutOff,
    /// It was not there in time.
    Late,
    /// All of it.
    Whole(String),
}

impl Socket {
    pub fn new(path: PathBuf) -> Self {
        Self { path, listener: AtomicI32::new(0) }
    }

    /// The answer; none when nobody listens.
    pub async fn ask(&self, command: &str) -> Result<Option<String>, HaproxyError> {
        self.finally(self.ask_once(command, TIMEOUT).await?)
    }

    /// One question, whose answer is waited for so long.
    pub async fn ask_once(&self, command: &str, limit: Duration) -> Result<Answer, HaproxyError> {
        match timeout(limit, self.talk(command)).await {
            Ok(Ok(answer)) if is_whole(command, &answer) => Ok(Answer::Whole(answer)),
            Ok(Ok(_)) => Ok(Answer::CutOff),
            Ok(Err(error)) => match error.kind() {
                ErrorKind::NotFound => Ok(Answer::Nobody(None)),
                ErrorKind::ConnectionRefused => Ok(Answer::Nobody(self.file().await)),
                ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Ok(Answer::CutOff),
                // connect(2) at a socket whose backlog is full.
                ErrorKind::WouldBlock => Ok(Answer::Unheard),
                _ => Err(self.error(error.to_string())),
            },
            Err(_) => Ok(Answer::Late),
        }
    }

    /// What it is to those who don't ask again; none when nobody listens.
    pub fn finally(&self, answer: Answer) -> Result<Option<String>, HaproxyError> {
        match answer {
            Answer::Whole(answer) => Ok(Some(answer)),
            Answer::Nobody(_) | Answer::Unclear => Ok(None),
            Answer::Unheard => Err(self.error("too many ask at once".to_owned())),
            Answer::CutOff => Err(self.error("it was gone before its answer was whole".to_owned())),
            Answer::Late => Err(HaproxyError::Deaf { path: self.path.clone(), after: TIMEOUT }),
        }
    }

    /// The process that listened when it was last asked, if it can be seen from here (unix(7),
    /// `SO_PEERCRED`).
    pub fn listener(&self) -> Option<i32> {
        Some(self.listener.load(Ordering::Relaxed)).filter(|pid| *pid > 0)
    }

    async fn file(&self) -> Option<SocketFile> {
        let file = tokio::fs::symlink_metadata(&self.path).await.ok()?;
        Some(SocketFile { inode: file.ino(), changed: (file.ctime(), file.ctime_nsec()) })
    }

    async fn talk(&self, command: &str) -> std::io::Result<String> {
        let mut stream = UnixStream::connect(&self.path).await?;
        let listener = stream.peer_cred().ok().and_then(|of| of.pid());
        self.listener.store(listener.unwrap_or(0), Ordering::Relaxed);
        stream.write_all(command.as_bytes()).await?;
        // A payload ends with an empty line of its own.
        if !command.ends_with("\n\n") {
            stream.write_all(b"\n").await?;
        }
        stream.shutdown().await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    pub fn error(&self, reason: String) -> HaproxyError {
        HaproxyError::Socket { path: self.path.clone(), reason }
    }
}

/// Whether an answer is there to its end: each has at least one line, and a list an empty one
/// after its last.
fn is_whole(command: &str, answer: &str) -> bool {
    if answer.ends_with(NO_CONNECTION) {
        return false;
    }
    let refusal = answer.starts_with(NO_SUCH_WORKER);
    let list = is_question(command) && command.contains("show ") && !refusal;
    if list { answer == "\n" || answer.ends_with("\n\n") } else { answer.ends_with('\n') }
}

/// Whether a command only asks, so that it may be asked again.
pub(super) fn is_question(command: &str) -> bool {
    let commands = command.split(';').map(|command| match command.split_once(' ') {
        Some((prefix, command)) if prefix.starts_with('@') => command,
        _ => command,
    });
    commands.map(str::trim_start).all(|command| command.starts_with("show ") || command.starts_with("get "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_was_cut_off_is_known() {
        // As HAProxy 2.6 and 3.4 end them.
        for (command, answer) in [
            ("show proc", "# programs\n\n"),
            ("@!7 show ssl cert", "\n"),
            ("@!7 show info", "Can't find the target PID matching the prefix '@!7'\n"),
            ("@1 get var proc.haas_generation", "proc.haas_generation: type=str value=<abc>\n"),
            ("@1 get var proc.haas_generation", "proc.haas_generation: type=str value=<abc>\n\n"),
            ("@!7 set map routes.map a b", "\n"),
        ] {
            assert!(is_whole(command, answer), "{command}: {answer:?}");
            assert!(!is_whole(command, ""), "{command}");
        }
        assert!(!is_whole("@!7 show table limits", "# table: limits, type: string\n0x7f: key=a:1\n"));
        assert!(!is_whole("@!7 show table limits", "# table: limits, type: str"));
        assert!(!is_whole("@1 get var proc.haas_generation", "Can't connect to the target CLI!\n"));
    }

    #[test]
    fn what_changes_something_is_no_question() {
        for command in ["show proc", "@1 get var x", "@!7 show ssl cert a;@!7 show ssl cert b", "show info;show proc"] {
            assert!(is_question(command), "{command}");
        }
        for command in ["@!7 set map a b c", "add map a b c", "@!7 show info;@!7 del map a b", "@!7 prepare map a"] {
            assert!(!is_question(command), "{command}");
        }
    }
}
