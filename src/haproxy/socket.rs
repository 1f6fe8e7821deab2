//! A client of HAProxy's command sockets (HAProxy management guide, sections 9.3 and 9.4).
//!
//! One line of commands a connection: the sending side is closed after it, and the answer ends
//! where HAProxy closes its own.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::HaproxyError;

/// While it reads a big file the master answers late, not never.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Where HAProxy is asked.
pub(super) struct Socket {
    path: PathBuf,
}

impl Socket {
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The answer; none when nobody listens.
    pub async fn ask(&self, command: &str) -> Result<Option<String>, HaproxyError> {
        let talk = async {
            let mut stream = match UnixStream::connect(&self.path).await {
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                    return Ok(None);
                }
                other => other?,
            };
            stream.write_all(command.as_bytes()).await?;
            // A payload ends with an empty line of its own.
            if !command.ends_with("\n\n") {
                stream.write_all(b"\n").await?;
            }
            stream.shutdown().await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            Ok::<_, std::io::Error>(Some(String::from_utf8_lossy(&answer).into_owned()))
        };
        match tokio::time::timeout(TIMEOUT, talk).await {
            Ok(result) => result.map_err(|error| self.error(error.to_string())),
            Err(_) => Err(self.error(format!("no answer within {} s", TIMEOUT.as_secs()))),
        }
    }

    pub fn error(&self, reason: String) -> HaproxyError {
        HaproxyError::Socket { path: self.path.clone(), reason }
    }
}
