//! A client's public keys: a JWK set (RFC 7517, section 5), as it stands in a file.

use std::collections::HashSet;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use serde::Deserialize;
use serde_json::Value;

use super::is_id;

const KINDS: &str = "has to be of Ed25519 (alg EdDSA), or of RSA (alg RS256) with 2048 to 8192 bits";

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

/// The keys of a set that can be used, and what is wrong with the others, or with all of it.
pub(super) fn parse(text: &str) -> (Vec<PublicKey>, Vec<String>) {
    let (mut keys, mut mistakes, mut kids) = (Vec::new(), Vec::new(), HashSet::new());
    let Ok(file) = serde_json::from_str::<File>(text) else {
        return (keys, vec!["is no JWK set (RFC 7517)".to_owned()]);
    };
    for (number, value) in file.keys.iter().enumerate() {
        match public_key(value) {
            Ok(key) if kids.insert(key.kid.clone()) => keys.push(key),
            Ok(key) => mistakes.push(format!("has kid {} twice: the first one counts", key.kid)),
            Err(why) => mistakes.push(format!("key {}: {why}", number + 1)),
        }
    }
    if file.keys.is_empty() {
        mistakes.push("has no key".to_owned());
    }
    (keys, mistakes)
}

fn public_key(value: &Value) -> Result<PublicKey, &'static str> {
    // RFC 7518, sections 6.3.2 and 6.4.1, and RFC 8037, section 2.
    if ["d", "p", "q", "dp", "dq", "qi", "oth", "k"].iter().any(|part| value.get(part).is_some()) {
        return Err("is a private one: only the public one belongs here, and this one is known to others now");
    }
    let word = |name: &str| value.get(name).and_then(Value::as_str);
    let kid = word("kid").filter(|kid| is_id(kid)).ok_or("kid has to be there, of letters, digits and . _ - alone")?;
    if word("use").is_some_and(|purpose| purpose != "sig") {
        return Err("use is not sig");
    }
    let operations = value.get("key_ops").and_then(Value::as_array);
    if operations.is_some_and(|operations| !operations.iter().any(|operation| operation == "verify")) {
        return Err("key_ops has no verify");
    }
    let jwk: Jwk = serde_json::from_value(value.clone()).map_err(|_| KINDS)?;
    let key = DecodingKey::from_jwk(&jwk).map_err(|_| KINDS)?;
    let algorithm = match (&jwk.algorithm, key.kind()) {
        (AlgorithmParameters::OctetKeyPair(pair), DecodingKeyKind::SecretOrDer(point))
            if pair.curve == EllipticCurve::Ed25519 && is_point(point) =>
        {
            Algorithm::EdDSA
        }
        (AlgorithmParameters::RSA(_), DecodingKeyKind::RsaModulusExponent { n, e }) if is_rsa(n, e) => Algorithm::RS256,
        _ => return Err(KINDS),
    };
    let named = if algorithm == Algorithm::EdDSA { "EdDSA" } else { "RS256" };
    if word("alg").is_some_and(|alg| alg != named) {
        return Err(KINDS);
    }
    Ok(PublicKey { kid: kid.to_owned(), algorithm, key })
}

/// Whether this can be a public key of Ed25519: none of the points of small order, for which anybody can
/// make signatures (RFC 8032, section 5.1.7, does not refuse them).
fn is_point(bytes: &[u8]) -> bool {
    const SMALL_ORDER: [&str; 7] = [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ];
    let Ok(mut point) = <[u8; 32]>::try_from(bytes) else { return false };
    // The sign of x.
    point[31] &= 0x7f;
    !SMALL_ORDER.contains(&hex::encode(point).as_str())
}

/// Whether ring verifies by such a key: a modulus of 2048 to 8192 bits, an exponent of 33 at most, both odd
/// and without zeros before them.
fn is_rsa(n: &[u8], e: &[u8]) -> bool {
    let odd = |number: &[u8]| {
        number.first().is_some_and(|first| *first != 0) && number.last().is_some_and(|last| last % 2 == 1)
    };
    let bits = |number: &[u8]| number.len() * 8 - number.first().map_or(0, |first| first.leading_zeros() as usize);
    odd(n) && odd(e) && (2048..=8192).contains(&bits(n)) && (2..=33).contains(&bits(e))
}
