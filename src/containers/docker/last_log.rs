//! The end of a failed Hoodie's log. A tenant writes what it likes, in lines of any length.

use std::time::Duration;

use bollard::query_parameters::LogsOptions;
use futures_util::StreamExt;
use tokio::time::timeout;

use super::{Admin, ContainersError, Docker, classify, status};
use crate::bounded::{LOG_MAX, last};
use crate::instance::Instance;

/// Lines that are asked for; the engine counts pieces of 16 KiB of a long line as lines.
const LINES: &str = "40";
/// How much of them is read, and for how long: an engine may split lines in another way.
const READ_MAX: usize = 1024 * 1024;
const READ_TIME: Duration = Duration::from_secs(5);
/// Fewer characters of a secret than this are no secret.
const HALF_LEAST: usize = 8;
const MASK: &[u8] = "…".as_bytes();

impl Docker {
    pub(super) async fn end_of_log(&self, instance: &Instance) -> Result<String, ContainersError> {
        let options = LogsOptions { stdout: true, stderr: true, tail: LINES.to_owned(), ..LogsOptions::default() };
        let Some(id) = self.own(instance).await?.and_then(|found| found.id) else { return Ok(String::new()) };
        let mut pieces = self.client().await?.logs(&id, Some(options));
        let Admin { password, session_salt } = Admin::of(instance, &self.settings.key);
        let mut end = End::without([&password, &session_salt]);
        let reading = async {
            let mut read = 0;
            while read < READ_MAX {
                match pieces.next().await {
                    Some(Ok(piece)) => {
                        let piece = piece.into_bytes();
                        read += piece.len();
                        end.add(&piece);
                    }
                    Some(Err(error)) if status(&error) != Some(404) => return Err(classify(error)),
                    _ => break,
                }
            }
            Ok(())
        };
        // What was read in time is better than nothing.
        timeout(READ_TIME, reading).await.unwrap_or(Ok(()))?;
        Ok(end.text())
    }
}

/// The last [`LOG_MAX`] bytes of what is added, without secrets.
struct End<'a> {
    secrets: [&'a [u8]; 2],
    bytes: Vec<u8>,
}

impl<'a> End<'a> {
    fn without(secrets: [&'a str; 2]) -> Self {
        Self { secrets: secrets.map(str::as_bytes), bytes: Vec::new() }
    }

    /// Masks before it cuts: no cut leaves the second half of a secret. A secret whose end is not here yet
    /// is at the end, which stays.
    fn add(&mut self, piece: &[u8]) {
        // Postgres can't hold NUL. Without them first: what they kept apart may be a secret.
        self.bytes.extend(piece.iter().filter(|byte| **byte != 0));
        for secret in self.secrets {
            mask(&mut self.bytes, secret);
        }
        let over = self.bytes.len().saturating_sub(LOG_MAX);
        self.bytes.drain(..over);
        if over > 0 {
            // The rest of a character that was cut.
            let rest = self.bytes.iter().take(3).take_while(|byte| **byte & 0xc0 == 0x80).count();
            self.bytes.drain(..rest);
        }
    }

    fn text(mut self) -> String {
        // The engine cuts, too: before the first line that it gives, and wherever reading has ended.
        for secret in self.secrets {
            let halves = HALF_LEAST..secret.len();
            if let Some(n) = halves.clone().rev().find(|n| self.bytes.starts_with(&secret[secret.len() - n..])) {
                self.bytes.splice(..n, MASK.iter().copied());
            }
            if let Some(n) = halves.rev().find(|n| self.bytes.ends_with(&secret[..*n])) {
                self.bytes.truncate(self.bytes.len() - n);
                self.bytes.extend_from_slice(MASK);
            }
        }
        // What is no UTF-8 takes more room than it did.
        last(&String::from_utf8_lossy(&self.bytes), LOG_MAX).to_owned()
    }
}

fn mask(bytes: &mut Vec<u8>, secret: &[u8]) {
    let mut from = 0;
    while let Some(at) = bytes[from..].windows(secret.len()).position(|window| window == secret) {
        bytes.splice(from + at..from + at + secret.len(), MASK.iter().copied());
        from += at + MASK.len();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASSWORD: &str = "0123456789abcdef0123456789abcdeX";
    const SALT: &str = "fedcba9876543210";

    fn end_of<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> String {
        let mut end = End::without([PASSWORD, SALT]);
        for piece in pieces {
            end.add(piece);
            assert!(end.bytes.len() <= LOG_MAX);
        }
        end.text()
    }

    fn tells(text: &str) -> bool {
        [PASSWORD, SALT]
            .iter()
            .any(|secret| (0..=secret.len() - HALF_LEAST).any(|at| text.contains(&secret[at..at + HALF_LEAST])))
    }

    #[test]
    fn lines_of_any_length_leave_their_end() {
        let line = [b"x".repeat(16 * 1024), b"the end\n".to_vec()].concat();
        let text = end_of(std::iter::repeat_n(&*line, 50));
        assert!(text.len() == LOG_MAX && text.ends_with("xthe end\n"));
        let wide = "€".repeat(LOG_MAX);
        let text = end_of([wide.as_bytes()]);
        assert!(text.len() > LOG_MAX - 3 && text.chars().all(|c| c == '€'));
        // Each byte of this takes three.
        let text = end_of([&*vec![0xff; 2 * LOG_MAX]]);
        assert!(text.len() > LOG_MAX - 3 && text.len() <= LOG_MAX && text.chars().all(|c| c == '\u{fffd}'));
        assert_eq!(end_of([&b"short\n"[..], b"\0and \xc3", b"\xa9\n"]), "short\nand é\n");
    }

    #[test]
    fn no_cut_leaves_a_part_of_a_secret() {
        for secret in [PASSWORD, SALT] {
            for shift in 0..=secret.len() + 1 {
                let (first, second) = secret.split_at(shift.min(secret.len()));
                // Where this one cuts; where one piece ends and the next begins; where the engine has cut.
                let after = "y".repeat(LOG_MAX - shift);
                for pieces in [
                    [secret, &after],
                    ["no secret: ", &format!("{secret}{after}")],
                    [&format!("so {first}"), &format!("{second} far")],
                    [second, &after[..100]],
                    ["so far ", first],
                ] {
                    let text = end_of(pieces.map(str::as_bytes));
                    assert!(!tells(&text), "{shift}: {}", last(&text, 100));
                }
            }
            let apart: String = secret.chars().flat_map(|c| [c, '\0']).collect();
            assert_eq!(end_of([apart.as_bytes()]), "…");
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_it_is_a_bounded_end_without_secrets(
            pieces in prop::collection::vec(
                prop_oneof![
                    Just(PASSWORD.as_bytes().to_vec()),
                    Just(SALT.as_bytes().to_vec()),
                    Just(b"z".repeat(16 * 1024 - 7)),
                    prop::collection::vec(any::<u8>(), 0..40),
                ],
                0..12,
            ),
        ) {
            let text = end_of(pieces.iter().map(|piece| &**piece));
            prop_assert!(text.len() <= LOG_MAX && !text.contains('\0'));
            prop_assert!(!text.contains(PASSWORD) && !text.contains(SALT));
            let plain: Vec<u8> = pieces.concat().into_iter().filter(|byte| *byte != 0).collect();
            let whole = String::from_utf8_lossy(&plain).replace(PASSWORD, "…").replace(SALT, "…");
            if !text.starts_with('\u{fffd}') {
                prop_assert!(whole.ends_with(&text));
            }
        }
    }
}
