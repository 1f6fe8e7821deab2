//! A client's public keys: a JWK set (RFC 7517, section 5), as it stands in a file.

use std::collections::HashSet;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use serde::Deserialize;
use serde_json::Value;

use super::is_id;

/// RFC 7518, section 3.3: 2048 bits.
const MODULUS_MIN: usize = 256;
const KINDS: &str = "has to be of Ed25519 (alg EdDSA), or of RSA (alg RS256) with 2048 bits or more";

/// A public key, and what it verifies.
#[derive(Clone)]
pub(super) struct PublicKey {
    /// `kid`, by which a token says that it is meant.
    pub kid: String,
    /// The only one that is taken, whatever a token says (RFC 8725, section 3.1).
    pub algorithm: Algorithm,
    pub key: DecodingKey,
}

#[derive(Deserialize)]
struct File {
    keys: Vec<Value>,
}

/// The keys of a set that can be used, and what is wrong with the others.
///
/// # Errors
/// What is wrong with all of it, in a few words.
pub(super) fn parse(text: &str) -> Result<(Vec<PublicKey>, Vec<String>), String> {
    let file: File = serde_json::from_str(text).map_err(|_| "is no JWK set (RFC 7517)".to_owned())?;
    let (mut keys, mut mistakes, mut kids) = (Vec::new(), Vec::new(), HashSet::new());
    for (number, value) in file.keys.iter().enumerate() {
        match public_key(value) {
            Ok(key) if kids.insert(key.kid.clone()) => keys.push(key),
            Ok(key) => mistakes.push(format!("has kid {} twice: the first one counts", key.kid)),
            Err(why) => mistakes.push(format!("key {}: {why}", number + 1)),
        }
    }
    if keys.is_empty() && mistakes.is_empty() {
        return Err("has no key".to_owned());
    }
    Ok((keys, mistakes))
}

fn public_key(value: &Value) -> Result<PublicKey, &'static str> {
    // Private parts of RSA and Ed25519, and symmetric keys.
    if ["d", "k"].iter().any(|part| value.get(part).is_some()) {
        return Err("is a private one: only the public one belongs here, and this one is known to others now");
    }
    let word = |name: &str| value.get(name).and_then(Value::as_str);
    let kid = word("kid").filter(|kid| is_id(kid)).ok_or("kid has to be there, of letters, digits and . _ - alone")?;
    if word("use").is_some_and(|purpose| purpose != "sig") {
        return Err("use is not sig");
    }
    let jwk: Jwk = serde_json::from_value(value.clone()).map_err(|_| KINDS)?;
    let key = DecodingKey::from_jwk(&jwk).map_err(|_| KINDS)?;
    let (algorithm, fits) = match &jwk.algorithm {
        AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => {
            (Algorithm::EdDSA, matches!(key.kind(), DecodingKeyKind::SecretOrDer(key) if key.len() == 32))
        }
        AlgorithmParameters::RSA(_) => (
            Algorithm::RS256,
            matches!(key.kind(), DecodingKeyKind::RsaModulusExponent { n, .. } if n.len() >= MODULUS_MIN),
        ),
        _ => return Err(KINDS),
    };
    let named = match word("alg") {
        None => true,
        // RFC 9864 gives it a name of its own.
        Some("EdDSA" | "Ed25519") => algorithm == Algorithm::EdDSA,
        Some(name) => algorithm == Algorithm::RS256 && name == "RS256",
    };
    if fits && named { Ok(PublicKey { kid: kid.to_owned(), algorithm, key }) } else { Err(KINDS) }
}
