//! What bodies and signatures promise, for any bytes.

use std::sync::OnceLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Map, Value};
use sha2::Sha256;

use super::body::{Fields, Pairs, from_form, from_json};
pub use super::own::fuzzing::sso_token;
use super::problem::Problem;
use super::signature::{Message, Signature, SignatureError, content_digest};
use crate::instance::hosts::{EXTRA_HOSTS_MAX, extra_host};
use crate::instance::name::{AppName, Email, Hostname, Username};

type Provision = (Username, Email, AppName);

/// The bytes as the body of POST /provision, in both forms.
///
/// # Panics
/// When a body is read otherwise than it says, or an answer repeats a secret.
pub fn payload(data: &[u8]) {
    let read = from_json(data);
    let other: Result<Map<String, Value>, _> = serde_json::from_slice(data);
    match (&read, &other) {
        // serde_json reads a repeated field by its last value, too.
        (Ok(pairs), Ok(object)) => {
            let (values, repeated) = Pairs(pairs.0.clone()).into_values();
            assert_eq!(&Map::from_iter(values), object);
            assert_eq!(repeated.is_some(), pairs.0.len() > object.len());
        }
        (Err(_), Err(_)) => {}
        _ => panic!("the two don't agree on whether it is a JSON object"),
    }
    let form = from_form(data);
    if let Ok(pairs) = &form {
        assert!(pairs.0.iter().all(|(_, value)| value.is_string()));
    }
    for (body, json) in [(read, true), (form, false)] {
        let another = body.as_ref().ok().map(|pairs| with_another_secret(&pairs.0));
        let outcome = provision(body, json);
        if let Some(another) = another {
            assert_eq!(provision(Ok(another), json), outcome, "a secret has no part in what is answered");
        }
        match outcome {
            Ok(request) => the_same_in_both_forms(&request),
            Err(problem) => is_clear(&problem),
        }
    }
}

fn with_another_secret(pairs: &[(String, Value)]) -> Pairs {
    let another = |(name, value): &(String, Value)| {
        (name.clone(), if name == "secret" { "0123456789abcdef".into() } else { value.clone() })
    };
    Pairs(pairs.iter().map(another).collect())
}

/// As the handler reads it; flag and list are other handlers'.
fn provision(body: Result<Pairs, Problem>, json: bool) -> Result<Provision, Problem> {
    let (mut values, repeated) = body?.into_values();
    values.remove("secret");
    let hosts = values.contains_key("hosts");
    let mut fields = Fields::new(values, repeated, json)?;
    let username = fields.take("username", Username::parse);
    let email = fields.take("emailaddress", Email::parse);
    let appname = fields.take("appname", AppName::parse);
    let flag = fields.take_flag("purge");
    let mut list = Some(Vec::new());
    if let Ok(domain) = Hostname::parse("haas.example")
        && hosts
    {
        list = fields.take_list("hosts", EXTRA_HOSTS_MAX, |text| extra_host(text, &domain));
    }
    fields.finish()?;
    assert!(flag.is_some() && list.is_some_and(|hosts| hosts.len() <= EXTRA_HOSTS_MAX), "without an error");
    match (username, email, appname) {
        (Some(username), Some(email), Some(appname)) => Ok((username, email, appname)),
        missing => panic!("accepted without {missing:?}"),
    }
}

fn the_same_in_both_forms((username, email, appname): &Provision) {
    let names = [("username", username.as_str()), ("emailaddress", email.as_str()), ("appname", appname.as_str())];
    let object: Map<String, Value> = names.iter().map(|(name, text)| ((*name).to_owned(), (*text).into())).collect();
    let json = Value::Object(object).to_string();
    let form = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(names).finish();
    for again in [provision(from_json(json.as_bytes()), true), provision(from_form(form.as_bytes()), false)] {
        assert_eq!(again.as_ref(), Ok(&(username.clone(), email.clone(), appname.clone())));
    }
}

/// Of the client's own text an answer has at most names of fields, cut, and without control characters.
fn is_clear(problem: &Problem) {
    assert!(problem.is_the_callers(), "{problem:?}");
    let document = serde_json::to_string(&problem.document()).unwrap_or_default();
    assert!(!document.is_empty() && document.len() < 16 * 1024, "{document}");
    match problem {
        Problem::MalformedBody(why) => {
            let ours = ["not a JSON object: line ", "not UTF-8", "the field \""];
            assert!(ours.iter().any(|words| why.starts_with(words)), "{why}");
            assert!(why.starts_with("the field") || !why.contains('"'), "{why}");
        }
        Problem::UnknownField(errors) => {
            let short = |name: &str| name.chars().count() <= 64 && !name.chars().any(char::is_control);
            assert!((1..=16).contains(&errors.len()) && errors.iter().all(|error| short(&error.field)), "{errors:?}");
        }
        Problem::InvalidFields(errors) => {
            let ours = ["username", "emailaddress", "appname", "purge", "hosts"];
            let known = |field: &str| ours.contains(&field.split('[').next().unwrap_or_default());
            assert!(!errors.is_empty() && errors.iter().all(|error| known(&error.field)), "{errors:?}");
        }
        other => panic!("a body's problem is {other:?}"),
    }
}

/// A request: `METHOD target scheme host`, the two fields, other fields, an empty line, and the body.
struct Request<'a> {
    input: &'a str,
    signature: &'a str,
    message: Message<'a>,
}

impl<'a> Request<'a> {
    fn read(data: &'a [u8]) -> Option<Self> {
        let at = data.windows(2).position(|two| two == b"\n\n");
        let (head, body) = at.map_or((data, &data[..0]), |at| (&data[..at], &data[at + 2..]));
        let mut lines = std::str::from_utf8(head).ok()?.split('\n');
        let mut words = lines.next()?.split(' ');
        let mut word = || words.next();
        let (method, target, scheme, host) = (word()?, word()?, word()?, word()?);
        let (input, signature) = (lines.next()?, lines.next()?);
        let fields: Vec<(&str, &str)> = lines.filter_map(|line| line.split_once(": ")).collect();
        // As the handler takes it.
        let host = fields.iter().find(|(name, _)| *name == "host").map_or(host, |(_, value)| value);
        let fields = fields.into_iter().map(|(name, value)| (name, value.as_bytes())).collect();
        let message = Message { method, scheme, host, target, fields, body };
        Some(Self { input, signature, message })
    }
}

/// Made anew in each process, so that no input can know it.
fn key() -> &'static [u8; 32] {
    static KEY: OnceLock<[u8; 32]> = OnceLock::new();
    KEY.get_or_init(|| {
        let mut key = [0; 32];
        assert!(getrandom::fill(&mut key).is_ok(), "the system gives random bytes");
        key
    })
}

fn mac(base: &str) -> impl AsRef<[u8]> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key()).unwrap_or_else(|_| unreachable!("HMAC takes any key"));
    mac.update(base.as_bytes());
    mac.finalize().into_bytes()
}

/// The bytes as a signed request: it is verified by no key that it can't know. Signed with that key it is;
/// and not any more once anything is another one that has to be signed.
///
/// # Panics
/// When one of these is not so.
pub fn signature(data: &[u8]) {
    let Some(Request { input, signature, message }) = Request::read(data) else { return };
    let Ok(read) = Signature::parse(input, signature) else { return };
    let now = read.created;
    let verdict = read.verify(&message, key(), now);
    assert!(verdict.is_err(), "nobody has signed it");
    let Ok(base) = read.base(&message) else { return };
    // RFC 9421, section 2.5: a line for each component, in its order, and the parameters.
    let lines: Vec<&str> = base.split('\n').collect();
    assert_eq!(lines.len(), read.covered.len() + 1, "{base}");
    for (line, name) in lines.iter().zip(&read.covered) {
        assert!(line.starts_with(&format!("\"{name}\": ")), "{line} for {name}");
    }
    let params = lines.last().and_then(|line| line.strip_prefix("\"@signature-params\": ")).unwrap_or_default();
    let made = STANDARD.encode(mac(&base));
    let signed = Signature::parse(&format!("a={params}"), &format!("a=:{made}:"));
    // The parameters are in their one form already: signed anew they are the same bytes.
    let Ok(signed) = signed else { panic!("can't be read again: {params}") };
    assert_eq!((&signed.key_id, &signed.nonce, signed.created), (&read.key_id, &read.nonce, read.created));
    assert_eq!(signed.base(&message).as_ref(), Ok(&base));
    let verdict = signed.verify(&message, key(), now);
    match &verdict {
        Ok(()) => {}
        Err(SignatureError::NotCovered(_)) => {
            assert_eq!(read.verify(&message, key(), now), verdict, "said whatever the key is");
            return;
        }
        Err(error) => {
            assert_ne!(*error, SignatureError::Mismatch, "it is signed with this key");
            return;
        }
    }
    nothing_else_is_verified(&signed, &message, now);
}

fn nothing_else_is_verified(signed: &Signature, message: &Message<'_>, now: i64) {
    let verify = |message: &Message<'_>| signed.verify(message, key(), now);
    let target = format!("{}x", message.target);
    let method = format!("{}X", message.method);
    let host = format!("x{}", message.host);
    let mut body = message.body.to_vec();
    body.push(b' ');
    assert!(verify(&Message { method: &method, ..message.clone() }).is_err(), "another method");
    assert!(verify(&Message { target: &target, ..message.clone() }).is_err(), "another target");
    assert!(verify(&Message { body: &body, ..message.clone() }).is_err(), "another body");
    let digest = content_digest(&body);
    let mut fields = message.fields.clone();
    fields.retain(|(name, _)| *name != "content-digest");
    fields.push(("content-digest", digest.as_bytes()));
    assert!(verify(&Message { body: &body, fields, ..message.clone() }).is_err(), "another body with its digest");
    // The field is the Host that HTTP has; a request's own may be in both.
    let fields = message.fields.iter().copied();
    let fields = fields.map(|(name, value)| (name, if name == "host" { host.as_bytes() } else { value })).collect();
    assert!(verify(&Message { host: &host, fields, ..message.clone() }).is_err(), "another host");
    for other in [now.checked_add(301), now.checked_sub(301)].into_iter().flatten() {
        assert_eq!(signed.verify(message, key(), other), Err(SignatureError::OutOfTime));
    }
    let mut other = *key();
    other[0] ^= 1;
    assert_eq!(signed.verify(message, &other, now), Err(SignatureError::Mismatch), "another key");
}
