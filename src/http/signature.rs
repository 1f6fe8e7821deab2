//! Signed requests: HTTP Message Signatures (RFC 9421) with `hmac-sha256` (section 3.3.3), over a body
//! that a `Content-Digest` (RFC 9530) stands for.
//!
//! What has to be signed is what a request could be misused by: method, target, host and body, the
//! moment it was made at, and a nonce that makes it one of its kind. What else is signed is looked at, too.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sfv::{Dictionary, InnerList, ListEntry, Parser};
use sha2::{Digest, Sha256, Sha512};
use subtle::ConstantTimeEq;
use thiserror::Error;

/// How far a request's `created` may be from now, in seconds.
pub const TOLERANCE: i64 = 300;
/// Covered components at most: there are not that many headers worth signing.
const COMPONENTS_MAX: usize = 32;
/// What a nonce may be long.
const NONCE_LENGTH: std::ops::RangeInclusive<usize> = 8..=128;

/// Why a signature is none. What is said helps whoever writes a client, and nobody who has no key.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SignatureError {
    /// The fields can't be read, or say what is not taken here.
    #[error("{0}")]
    Malformed(String),
    /// Something that has to be signed is not.
    #[error("the signature has to cover {0}")]
    NotCovered(&'static str),
    /// No key makes this signature of this request.
    #[error("the signature does not match")]
    Mismatch,
    /// The body is another one than what was signed.
    #[error("the body does not match its Content-Digest")]
    Digest,
    /// It was made too long ago, or in a future that is not near.
    #[error("created is more than {TOLERANCE} seconds from now, or expires is over")]
    OutOfTime,
}

fn malformed(text: impl Into<String>) -> SignatureError {
    SignatureError::Malformed(text.into())
}

/// A request, as far as it can be signed.
#[derive(Clone)]
pub struct Message<'a> {
    /// `POST`.
    pub method: &'a str,
    /// `http` or `https`, as the client sees it.
    pub scheme: &'a str,
    /// What the Host field says.
    pub host: &'a str,
    /// Path and query, as they came.
    pub target: &'a str,
    /// Every field, names in lower case, in their order.
    pub fields: Vec<(&'a str, &'a [u8])>,
    /// The body, whole.
    pub body: &'a [u8],
}

impl fmt::Debug for Message<'_> {
    /// Without what fields and body hold: there may be a secret in them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields: Vec<&str> = self.fields.iter().map(|(name, _)| *name).collect();
        let mut shown = f.debug_struct("Message");
        shown.field("method", &self.method).field("host", &self.host).field("target", &self.target);
        shown.field("fields", &fields).finish_non_exhaustive()
    }
}

impl Message<'_> {
    /// A field's values, joined (RFC 9421, section 2.1).
    fn field(&self, name: &str) -> Option<String> {
        let mut values = Vec::new();
        for (_, value) in self.fields.iter().filter(|(field, _)| *field == name) {
            let text = std::str::from_utf8(value).ok()?.trim_matches([' ', '\t']);
            values.push(text);
        }
        (!values.is_empty()).then(|| values.join(", "))
    }

    fn path_and_query(&self) -> (&str, Option<&str>) {
        match self.target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (self.target, None),
        }
    }

    /// In lower case, without the scheme's own port (RFC 9421, section 2.2.3).
    fn authority(&self) -> String {
        let host = self.host.to_ascii_lowercase();
        let default = if self.scheme == "https" { ":443" } else { ":80" };
        host.strip_suffix(default).map(str::to_owned).unwrap_or(host)
    }

    /// What a component stands for.
    fn component(&self, name: &str) -> Result<String, SignatureError> {
        let (path, query) = self.path_and_query();
        Ok(match name {
            "@method" => self.method.to_owned(),
            "@scheme" => self.scheme.to_owned(),
            "@authority" => self.authority(),
            "@request-target" => self.target.to_owned(),
            "@target-uri" => format!("{}://{}{}", self.scheme, self.authority(), self.target),
            "@path" => if path.is_empty() { "/" } else { path }.to_owned(),
            "@query" => format!("?{}", query.unwrap_or_default()),
            derived if derived.starts_with('@') => return Err(malformed(format!("{derived:?} can't be signed here"))),
            field => {
                self.field(field).ok_or_else(|| malformed(format!("the field {field:?} is signed, and not there")))?
            }
        })
    }
}

/// A signature that was read, and is still to be verified.
#[derive(Debug, Clone, PartialEq)]
pub struct Signature {
    /// Whose it says it is.
    pub key_id: String,
    /// What makes this request one of its kind.
    pub nonce: String,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    expires: Option<i64>,
    pub(super) covered: Vec<String>,
    /// The value of `@signature-params`.
    params: String,
    bytes: Vec<u8>,
}

impl Signature {
    /// Reads the fields `Signature-Input` and `Signature`.
    ///
    /// # Errors
    /// [`SignatureError::Malformed`].
    pub fn parse(input: &str, signature: &str) -> Result<Self, SignatureError> {
        let dictionary = |name: &str, text: &str| {
            let parsed: Result<Dictionary, _> = Parser::new(text).parse();
            parsed.map_err(|_| malformed(format!("{name} is no dictionary (RFC 9651, section 3.2)")))
        };
        let (input, signature) = (dictionary("Signature-Input", input)?, dictionary("Signature", signature)?);
        // With several of them, who is to say which one counts?
        if input.len() != 1 || signature.len() != 1 {
            return Err(malformed("there has to be one signature"));
        }
        let Some((label, ListEntry::InnerList(list))) = input.first() else {
            return Err(malformed("Signature-Input has to hold a list of components"));
        };
        let bytes = match signature.get(label) {
            Some(ListEntry::Item(item)) => item.bare_item.as_byte_sequence(),
            _ => None,
        };
        let bytes =
            bytes.ok_or_else(|| malformed("Signature has to hold bytes, under the label of Signature-Input"))?;
        Self::from_list(list, bytes.to_vec())
    }

    fn from_list(list: &InnerList, bytes: Vec<u8>) -> Result<Self, SignatureError> {
        if list.items.len() > COMPONENTS_MAX {
            return Err(malformed(format!("at most {COMPONENTS_MAX} components can be signed")));
        }
        let mut covered: Vec<String> = Vec::new();
        for item in &list.items {
            let name = item.bare_item.as_string().ok_or_else(|| malformed("a component's name has to be a string"))?;
            let name = name.as_str();
            if !item.params.is_empty() {
                return Err(malformed(format!("parameters of {name:?} are not known here")));
            }
            if name != name.to_ascii_lowercase() || covered.iter().any(|other| other == name) {
                return Err(malformed(format!("{name:?} has to be in lower case, and once")));
            }
            covered.push(name.to_owned());
        }
        let (mut created, mut expires, mut nonce, mut key_id) = (None, None, None, None);
        for (key, value) in &list.params {
            let text = || value.as_string().map(|text| text.as_str().to_owned());
            let number = || value.as_integer().map(i64::from);
            let known = match key.as_str() {
                "created" => number().map(|number| created = Some(number)),
                "expires" => number().map(|number| expires = Some(number)),
                "nonce" => text().map(|text| nonce = Some(text)),
                "keyid" => text().map(|text| key_id = Some(text)),
                "tag" => text().map(drop),
                "alg" => text().filter(|alg| alg == "hmac-sha256").map(drop),
                _ => None,
            };
            if known.is_none() {
                return Err(malformed(format!("the parameter {} won't do", key.as_str())));
            }
        }
        let missing = |name: &str| malformed(format!("the parameter {name} is missing"));
        let nonce = nonce.ok_or_else(|| missing("nonce"))?;
        if !NONCE_LENGTH.contains(&nonce.len()) {
            let (least, most) = NONCE_LENGTH.into_inner();
            return Err(malformed(format!("a nonce has {least} to {most} characters")));
        }
        Ok(Self {
            key_id: key_id.ok_or_else(|| missing("keyid"))?,
            nonce,
            created: created.ok_or_else(|| missing("created"))?,
            expires,
            covered,
            params: serialize(list)?,
            bytes,
        })
    }

    /// Whether this is the key's signature of this message, made about now. Whether its nonce was seen
    /// before is not known here.
    ///
    /// # Errors
    /// [`SignatureError`] says what is wrong; whether the key matches is said before all that depends on it.
    pub fn verify(&self, message: &Message<'_>, key: &[u8], now: i64) -> Result<(), SignatureError> {
        self.check_coverage(message)?;
        let base = self.base(message)?;
        let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap_or_else(|_| unreachable!("HMAC takes any key"));
        mac.update(base.as_bytes());
        // In constant time.
        mac.verify_slice(&self.bytes).map_err(|_| SignatureError::Mismatch)?;
        if self.created.abs_diff(now) > TOLERANCE.unsigned_abs() || self.expires.is_some_and(|expires| expires < now) {
            return Err(SignatureError::OutOfTime);
        }
        if self.covers("content-digest") { check_digest(message) } else { Ok(()) }
    }

    fn covers(&self, name: &str) -> bool {
        self.covered.iter().any(|covered| covered == name)
    }

    fn check_coverage(&self, message: &Message<'_>) -> Result<(), SignatureError> {
        let whole = self.covers("@target-uri");
        let parts = self.covers("@path") && (self.covers("@query") || message.path_and_query().1.is_none());
        for (covered, what) in [
            (self.covers("@method"), "@method"),
            (whole || parts || self.covers("@request-target"), "@target-uri or @request-target"),
            (whole || self.covers("@authority") || self.covers("host"), "@target-uri, @authority or host"),
            (message.body.is_empty() || self.covers("content-digest"), "content-digest"),
        ] {
            if !covered {
                return Err(SignatureError::NotCovered(what));
            }
        }
        Ok(())
    }

    /// What is signed (RFC 9421, section 2.5).
    pub(super) fn base(&self, message: &Message<'_>) -> Result<String, SignatureError> {
        let mut base = String::new();
        for name in &self.covered {
            let value = message.component(name)?;
            // A line more would be a component that nobody listed.
            if value.contains('\n') || value.contains('\r') {
                return Err(malformed(format!("{name:?} has more than one line")));
            }
            base.extend(["\"", name, "\": ", &value, "\n"]);
        }
        base.extend(["\"@signature-params\": ", &self.params]);
        Ok(base)
    }
}

/// The list as it is signed: in the one form that it has (RFC 9651, section 4.1.1.1), and in the
/// client's order.
fn serialize(list: &InnerList) -> Result<String, SignatureError> {
    let mut serializer = sfv::ListSerializer::new();
    serializer.members([&ListEntry::InnerList(list.clone())]);
    serializer.finish().ok_or_else(|| malformed("there is nothing signed"))
}

/// Whether the body is the one that `Content-Digest` names (RFC 9530, section 2): by each algorithm that
/// is safe, of which there has to be one.
fn check_digest(message: &Message<'_>) -> Result<(), SignatureError> {
    let field = message.field("content-digest").ok_or(SignatureError::Digest)?;
    let parsed: Result<Dictionary, _> = Parser::new(field.as_str()).parse();
    let digests = parsed.map_err(|_| malformed("Content-Digest is no dictionary"))?;
    let mut any = false;
    for (algorithm, entry) in &digests {
        let actual = match algorithm.as_str() {
            "sha-256" => Sha256::digest(message.body).to_vec(),
            "sha-512" => Sha512::digest(message.body).to_vec(),
            _ => continue,
        };
        let given = match entry {
            ListEntry::Item(item) => item.bare_item.as_byte_sequence(),
            ListEntry::InnerList(_) => None,
        };
        let same: bool = given.ok_or(SignatureError::Digest)?.ct_eq(&actual).into();
        if !same {
            return Err(SignatureError::Digest);
        }
        any = true;
    }
    if any { Ok(()) } else { Err(malformed("Content-Digest has neither sha-256 nor sha-512")) }
}

/// The value of `Content-Digest` for a body.
#[must_use]
pub fn content_digest(body: &[u8]) -> String {
    format!("sha-256=:{}:", STANDARD.encode(Sha256::digest(body)))
}

#[cfg(test)]
mod tests;
