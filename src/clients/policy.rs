//! What a client may do, and for whom.

use std::fmt;
use std::io::ErrorKind;
use std::path::Path;

use serde::Deserialize;

use crate::instance::name::Username;

/// Usernames in one policy: a listing asks the database about each.
const PATTERNS_MAX: usize = 200;

/// Something that a client may be allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Right {
    /// To provision and restore instances, and to give them custom domains.
    Provision,
    /// To take instances away, with their data too.
    Deprovision,
    /// To list and show instances.
    Read,
    /// To sign an owner on to an instance's admin.
    Sso,
    /// All of these.
    Admin,
}

impl Right {
    /// Reads one, as it stands in a policy's file.
    ///
    /// # Errors
    /// Which there are.
    pub fn parse(text: &str) -> Result<Self, String> {
        let all = [Self::Provision, Self::Deprovision, Self::Read, Self::Sso, Self::Admin];
        let found = all.into_iter().find(|right| right.as_str() == text);
        found.ok_or_else(|| format!("must be one of {}", all.map(Self::as_str).join(", ")))
    }

    /// As it stands in a policy's file.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Provision => "provision",
            Self::Deprovision => "deprovision",
            Self::Read => "read",
            Self::Sso => "sso",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for UsernamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(username) => username.fmt(f),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
        }
    }
}

/// A username, or those that begin alike: `team-*`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum UsernamePattern {
    /// This one.
    Exactly(Username),
    /// Those that begin so.
    Prefix(String),
}

impl TryFrom<String> for UsernamePattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let Some(prefix) = text.strip_suffix('*') else {
            let parsed = Username::parse(&text);
            return parsed.map(Self::Exactly).map_err(|error| format!("usernames: {text:?} {error}"));
        };
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if prefix.len() <= 63 && prefix.bytes().all(plain) {
            Ok(Self::Prefix(prefix.to_owned()))
        } else {
            Err(format!("usernames: {text:?} must be a username, or the beginning of one and a star"))
        }
    }
}

/// For whom a client may act.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Usernames {
    /// Everybody.
    #[default]
    All,
    /// These alone.
    Only(Vec<UsernamePattern>),
}

impl Usernames {
    /// Whether this one is among them.
    #[must_use]
    pub fn permits(&self, username: &Username) -> bool {
        match self {
            Self::All => true,
            Self::Only(patterns) => patterns.iter().any(|pattern| match pattern {
                UsernamePattern::Exactly(exactly) => exactly == username,
                UsernamePattern::Prefix(prefix) => username.as_str().starts_with(prefix),
            }),
        }
    }
}

/// What a client may do, and for whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Its rights.
    pub rights: Vec<Right>,
    /// For whom.
    pub usernames: Usernames,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    rights: Option<Vec<Right>>,
    usernames: Option<Vec<UsernamePattern>>,
}

impl Policy {
    /// Reads a policy's file; without one, everything is allowed. One that is there has to say which
    /// rights: a file that is being written must not be taken for none.
    ///
    /// # Errors
    /// What is wrong with it, in a line.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Ok(Self { rights: vec![Right::Admin], usernames: Usernames::All });
            }
            Err(error) => return Err(format!("{}: {error}", path.display())),
        };
        let file: File = toml::from_str(&text).map_err(|error| format!("{}: {}", path.display(), error.message()))?;
        let rights = file.rights.ok_or_else(|| format!("{}: rights is missing", path.display()))?;
        if file.usernames.as_ref().is_some_and(|patterns| patterns.len() > PATTERNS_MAX) {
            return Err(format!("{}: usernames has more than {PATTERNS_MAX}: let some begin alike", path.display()));
        }
        Ok(Self { rights, usernames: file.usernames.map_or(Usernames::All, Usernames::Only) })
    }

    /// The text of a file that says this. Without rights it is all of them, without usernames everybody.
    #[must_use]
    pub fn write(rights: &[Right], usernames: &[UsernamePattern]) -> String {
        let list = |name: &str, words: Vec<String>| {
            // Words without a character that would have to be escaped.
            let words = words.join("\", \"");
            if words.is_empty() { String::new() } else { format!("{name} = [\"{words}\"]\n") }
        };
        let rights = if rights.is_empty() { &[Right::Admin] } else { rights };
        let rights = list("rights", rights.iter().map(|right| right.as_str().to_owned()).collect());
        rights + &list("usernames", usernames.iter().map(ToString::to_string).collect())
    }

    /// Whether it has this right.
    #[must_use]
    pub fn allows(&self, right: Right) -> bool {
        self.rights.contains(&right) || self.rights.contains(&Right::Admin)
    }
}
