//! How a setting is written: in TOML, or as text in the environment.

use std::ffi::OsStr;
use std::fmt;
use std::ops::Deref;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use toml::Value;

use crate::instance::name::{HostPattern, Hostname};
use crate::instance::policy::{TimeLimit, duration};
use crate::instance::spec::Egress;

/// A type that a setting can have.
pub(super) trait Setting: Sized {
    /// Reads it, or says what would have been right.
    fn from_value(value: &Value) -> Result<Self, String>;
}

/// The value that a text in the environment stands for: a number or a truth value where it
/// reads as one, text otherwise.
pub(super) fn from_environment(text: &str) -> Value {
    if let Ok(number) = text.parse::<i64>() {
        Value::Integer(number)
    } else if let Ok(number) = text.parse::<f64>() {
        Value::Float(number)
    } else if let Ok(truth) = text.parse::<bool>() {
        Value::Boolean(truth)
    } else {
        Value::String(text.to_owned())
    }
}

/// A default, as it is written in the annotated example.
pub(super) fn from_literal(literal: &str) -> Value {
    let line = format!("value = {literal}");
    let table: Option<toml::Table> = line.parse().ok();
    table.and_then(|mut table| table.remove("value")).unwrap_or_else(|| Value::String(literal.to_owned()))
}

macro_rules! setting {
    ($type:ty, $form:literal, $value:ident => $parse:expr) => {
        impl Setting for $type {
            fn from_value($value: &Value) -> Result<Self, String> {
                let parsed: Option<Self> = $parse;
                parsed.ok_or_else(|| format!("must be {}, not {}", $form, $value))
            }
        }
    };
}

setting!(String, "text", v => match v {
    Value::String(text) => Some(text.clone()),
    // What reads as a number in the environment may still be meant as text.
    Value::Integer(number) => Some(number.to_string()),
    _ => None,
});
setting!(PathBuf, "a path", v => v.as_str().map(PathBuf::from));
setting!(bool, "true or false", v => v.as_bool());
setting!(u32, "a whole number", v => v.as_integer().and_then(|n| n.try_into().ok()));
setting!(usize, "a whole number", v => v.as_integer().and_then(|n| n.try_into().ok()));
setting!(f64, "a number", v => match v {
    Value::Float(number) if number.is_finite() => Some(*number),
    Value::Integer(number) => i32::try_from(*number).ok().map(f64::from),
    _ => None,
});
setting!(Duration, "a time such as \"500ms\", \"30s\", \"5m\" or \"2h\"", v => v.as_str().and_then(duration));
setting!(TimeLimit, "a time such as \"30s\", \"5m\", \"2h\" or \"7d\", or \"never\"",
    v => v.as_str().and_then(|text| text.parse().ok()));
setting!(Hostname, "a host name", v => v.as_str().and_then(|text| Hostname::parse(text).ok()));
setting!(HostPattern, "\"{app}.{user}.{domain}\" or \"{app}--{user}.{domain}\"",
    v => Self::deserialize(v.clone()).ok());
setting!(Egress, "\"none\" or \"internet\"", v => Self::deserialize(v.clone()).ok());
setting!(PortRange, "a range such as \"5521-15520\", between 1 and 65535", v => v.as_str().and_then(PortRange::parse));
setting!(Listen, "\"ADDRESS:PORT\" or \"unix:PATH\"", v => v.as_str().and_then(Listen::parse));

/// Where something is, with what lets one in: a password, or a token. It is shown to nobody.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct SecretUrl(String);

impl SecretUrl {
    /// All of it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "\"\"" } else { "SecretUrl(..)" })
    }
}

impl Deref for SecretUrl {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl AsRef<OsStr> for SecretUrl {
    fn as_ref(&self) -> &OsStr {
        self.0.as_ref()
    }
}

impl Setting for SecretUrl {
    fn from_value(value: &Value) -> Result<Self, String> {
        // What was given instead may be the secret all the same.
        value.as_str().map(|text| Self(text.to_owned())).ok_or_else(|| "must be text".to_owned())
    }
}

/// Loopback ports for tenants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    /// The lowest port.
    pub first: u16,
    /// The highest port, included.
    pub last: u16,
}

impl PortRange {
    /// Parses `FIRST-LAST`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (first, last) = text.split_once('-')?;
        let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (first >= 1 && first <= last).then_some(Self { first, last })
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Where the control API listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A TCP address.
    Tcp(std::net::SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl Listen {
    /// Parses `ADDRESS:PORT` or `unix:PATH`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix("unix:") {
            Some("") => None,
            Some(path) if path.chars().any(|c| c.is_control() || c.is_whitespace()) => None,
            Some(path) => Some(Self::Unix(PathBuf::from(path))),
            None => text.parse().ok().map(Self::Tcp),
        }
    }
}

/// The form that haproxy.cfg has for a server's address (HAProxy manual, section 4.2, `server`).
impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix@{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_ranges_are_ordered() {
        assert_eq!(PortRange::parse("5521-15520").unwrap().to_string(), "5521-15520");
        for bad in ["", "1", "2-1", "0-5", "1-70000", "a-b"] {
            assert_eq!(PortRange::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_lets_one_in_is_not_shown() {
        let url = SecretUrl::from_value(&Value::String("postgres://haas:hunter2@db/haas".to_owned())).unwrap();
        assert_eq!((format!("{url:?}").as_str(), url.len()), ("SecretUrl(..)", 31));
        assert_eq!(format!("{:?}", SecretUrl::default()), "\"\"", "that there is none can be seen");
        let Err(why) = SecretUrl::from_value(&Value::Array(vec!["hunter2".into()])) else { panic!("a list") };
        assert!(!why.contains("hunter2"), "{why}");
    }

    #[test]
    fn listen_addresses_are_tcp_or_unix() {
        assert_eq!(Listen::parse("unix:/run/haas.sock").unwrap().to_string(), "unix@/run/haas.sock");
        assert_eq!(Listen::parse("127.0.0.1:5500").unwrap().to_string(), "127.0.0.1:5500");
        assert_eq!(Listen::parse("localhost"), None);
        assert_eq!(Listen::parse("unix:"), None);
    }
}
