//! Bodies of requests: JSON or a form, small, and without a field that we don't know.

use std::collections::BTreeMap;
use std::fmt;

use actix_web::http::header::CONTENT_TYPE;
use actix_web::{HttpRequest, web};
use futures_util::StreamExt;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::Api;
use super::auth::Caller;
use super::problem::{FieldError, Problem};
use crate::clients::Right;
use crate::instance::name::NameError;

const LIMIT: usize = 16 * 1024;
const JSON: &str = "application/json";
const FORM: &str = "application/x-www-form-urlencoded";

/// The fields of a body, from whichever of the two forms.
pub(super) struct Fields {
    values: BTreeMap<String, Value>,
    errors: Vec<FieldError>,
    /// Whether values have types, rather than being text.
    json: bool,
}

impl Fields {
    /// Reads the body, and lets in who is known and has this right. Nothing else of it is looked at
    /// before.
    pub async fn read(
        request: &HttpRequest,
        body: web::Payload,
        api: &Api,
        right: Right,
    ) -> Result<(Caller, Self), Problem> {
        let kind = content_type(request);
        let parse = match kind.as_str() {
            JSON => from_json,
            FORM => from_form,
            _ => return Err(Problem::UnsupportedMediaType { taken: &[JSON, FORM] }),
        };
        let bytes = collect(body).await?;
        let (mut values, repeated) = parse(&bytes)?.into_values();
        let secret = values.remove("secret");
        let caller = Caller::admit(request, api, right, &bytes, secret.as_ref().and_then(Value::as_str)).await?;
        let mut fields = Self::new(values, repeated, kind == JSON)?;
        if secret.is_some_and(|secret| !secret.is_string() && !secret.is_null()) {
            // Who asks has shown it otherwise; it is no secret all the same.
            fields.wrong("secret", "must be text");
        }
        Ok((caller, fields))
    }

    /// The same of a body that is JSON, and holds no secret.
    pub async fn read_json(
        request: &HttpRequest,
        body: web::Payload,
        api: &Api,
        right: Right,
    ) -> Result<(Caller, Self), Problem> {
        let bytes = collect(body).await?;
        let caller = Caller::admit(request, api, right, &bytes, None).await?;
        if content_type(request) != JSON {
            return Err(Problem::UnsupportedMediaType { taken: &[JSON] });
        }
        let (values, repeated) = from_json(&bytes)?.into_values();
        Ok((caller, Self::new(values, repeated, true)?))
    }

    pub(super) fn new(values: BTreeMap<String, Value>, repeated: Option<String>, json: bool) -> Result<Self, Problem> {
        match repeated {
            Some(name) => Err(Problem::MalformedBody(format!("the field {:?} is there twice", shorten(&name)))),
            None => Ok(Self { values, errors: Vec::new(), json }),
        }
    }

    fn wrong(&mut self, field: &str, detail: &str) {
        self.errors.push(FieldError { field: field.to_owned(), detail: detail.to_owned() });
    }

    /// Takes a field out and parses it; what is wrong with it is kept for [`Fields::finish`].
    pub fn take<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, NameError>) -> Option<T> {
        let parsed = match self.values.remove(name) {
            None | Some(Value::Null) => Err("is required".to_owned()),
            Some(Value::String(text)) => parse(&text).map_err(|error| error.to_string()),
            Some(_) => Err("must be text".to_owned()),
        };
        parsed.map_err(|detail| self.errors.push(FieldError { field: name.to_owned(), detail })).ok()
    }

    /// Takes a truth value out; a field that is not there is false. A form has it as text.
    pub fn take_flag(&mut self, name: &str) -> Option<bool> {
        let flag = match self.values.remove(name) {
            None | Some(Value::Null) => Some(false),
            Some(Value::Bool(flag)) => Some(flag),
            Some(Value::String(text)) if !self.json => text.parse().ok(),
            Some(_) => None,
        };
        if flag.is_none() {
            self.wrong(name, "must be true or false");
        }
        flag
    }

    /// Takes a list out and parses each of its items, of which there may be `max`.
    pub fn take_list<T>(
        &mut self,
        name: &str,
        max: usize,
        parse: impl Fn(&str) -> Result<T, NameError>,
    ) -> Option<Vec<T>> {
        let before = self.errors.len();
        let mut wrong = |field: String, detail: String| self.errors.push(FieldError { field, detail });
        let mut parsed = Vec::new();
        match self.values.remove(name) {
            None | Some(Value::Null) => wrong(name.to_owned(), "is required".to_owned()),
            Some(Value::Array(items)) if items.len() > max => {
                wrong(name.to_owned(), format!("must have at most {max} items"));
            }
            Some(Value::Array(items)) => {
                for (index, item) in items.iter().enumerate() {
                    match item.as_str().map(&parse) {
                        Some(Ok(item)) => parsed.push(item),
                        Some(Err(error)) => wrong(format!("{name}[{index}]"), error.to_string()),
                        None => wrong(format!("{name}[{index}]"), "must be text".to_owned()),
                    }
                }
            }
            Some(_) => wrong(name.to_owned(), "must be a list".to_owned()),
        }
        (self.errors.len() == before).then_some(parsed)
    }

    /// Refuses what was not taken out, and every field that was wrong, at once.
    pub fn finish(self) -> Result<(), Problem> {
        if !self.values.is_empty() {
            let unknown = self.values.into_keys().take(16);
            let unknown = unknown.map(|name| FieldError { field: shorten(&name), detail: "is not a field".to_owned() });
            return Err(Problem::UnknownField(unknown.collect()));
        }
        if self.errors.is_empty() { Ok(()) } else { Err(Problem::InvalidFields(self.errors)) }
    }
}

fn content_type(request: &HttpRequest) -> String {
    let kind = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// As much of a client's own text as an answer repeats.
fn shorten(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(64).collect()
}

async fn collect(mut body: web::Payload) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::new();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|_| Problem::MalformedBody("the body broke off".to_owned()))?;
        if bytes.len() + chunk.len() > LIMIT {
            return Err(Problem::BodyTooLarge);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Fields in the order of the body, repeated ones included.
pub(super) struct Pairs(pub(super) Vec<(String, Value)>);

impl Pairs {
    /// The fields by their names, and one that was there twice.
    pub(super) fn into_values(self) -> (BTreeMap<String, Value>, Option<String>) {
        let (mut values, mut repeated) = (BTreeMap::new(), None);
        for (name, value) in self.0 {
            if values.insert(name.clone(), value).is_some() {
                repeated = Some(name);
            }
        }
        (values, repeated)
    }
}

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Pairs;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

pub(super) fn from_json(bytes: &[u8]) -> Result<Pairs, Problem> {
    serde_json::from_slice(bytes).map_err(|error| {
        // serde's own words may repeat the input, a secret in it too.
        Problem::MalformedBody(format!("not a JSON object: line {}, column {}", error.line(), error.column()))
    })
}

pub(super) fn from_form(bytes: &[u8]) -> Result<Pairs, Problem> {
    let text = std::str::from_utf8(bytes).map_err(|_| Problem::MalformedBody("not UTF-8".to_owned()))?;
    let pairs = url::form_urlencoded::parse(text.as_bytes());
    Ok(Pairs(pairs.map(|(name, value)| (name.into_owned(), Value::String(value.into_owned()))).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_object_is_refused_without_being_repeated() {
        for bad in ["", "[]", "\"secret\"", "{\"secret\":\"hunter2\"", "{\"a\":1}x", "nul"] {
            let Err(Problem::MalformedBody(why)) = from_json(bad.as_bytes()) else { panic!("{bad}") };
            assert!(!why.contains("hunter2") && !why.contains("secret"), "{why}");
        }
        assert!(from_json(&[0xff, 0xfe]).is_err());
        assert!(from_form(&[0xff, 0xfe]).is_err());
    }

    #[test]
    fn repeated_fields_are_seen_in_both_forms() {
        assert_eq!(from_json(br#"{"a":"1","a":"2"}"#).unwrap().0.len(), 2);
        assert_eq!(from_form(b"a=1&a=2").unwrap().0.len(), 2);
    }
}
