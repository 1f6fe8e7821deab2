//! Tokens: JSON Web Tokens (RFC 7519) that a client's own key has signed, each for one user, so that
//! whoever shows one needs no key.

use std::sync::Arc;

use jsonwebtoken::crypto::verify;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{TokenData, Validation, decode, decode_header};
use serde_json::{Map, Value};
use thiserror::Error;

use super::jwks::PublicKey;
use super::{Client, Clients};
use crate::instance::name::Username;

/// How long a token may be good for, in seconds: whoever copies it has it for so long.
const LIFETIME_MAX: i64 = 3600;
/// How far clocks may differ, in seconds (RFC 7519, section 4.1.4: a small leeway).
const LEEWAY: i64 = 60;

/// Why a token lets nobody in.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TokenError {
    /// It does not look like one.
    #[error("this is no token")]
    None,
    /// No key that is known makes its signature.
    #[error("the token's signature does not match")]
    Mismatch,
    /// A client has signed it, and it won't do.
    #[error("{0}")]
    Claims(String),
}

/// A public key of a client.
#[derive(Clone)]
pub(super) struct TokenKey {
    /// The file's name without its ending, `#`, and the key's own name.
    pub id: String,
    pub client: Arc<Client>,
    pub public: PublicKey,
}

/// Whom a token lets in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Who has signed it.
    pub client: Arc<Client>,
    /// The name of the key that has.
    pub key_id: String,
    /// The one user for whom it is good (`sub`).
    pub username: Username,
}

impl Clients {
    /// Whom a token lets in that was made for this audience (`aud`).
    ///
    /// # Errors
    /// [`TokenError`] says why it lets nobody in. Of a key that is not known it says the same as of one that
    /// has not made the signature.
    pub fn admit_token(&self, token: &str, audience: &str) -> Result<Grant, TokenError> {
        let header = decode_header(token).map_err(|_| TokenError::None)?;
        let kid = header.kid.unwrap_or_default();
        let known = self.known();
        let mut refused = TokenError::Mismatch;
        // Two clients' keys may have one name, and even be the same.
        for key in known.token_keys.iter().filter(|key| key.public.kid == kid && key.has_signed(token)) {
            match key.grant(token, audience) {
                Ok(grant) => return Ok(grant),
                Err(why) => refused = TokenError::Claims(why),
            }
        }
        Err(refused)
    }
}

impl TokenKey {
    fn has_signed(&self, token: &str) -> bool {
        let parts = token.rsplit_once('.');
        parts.is_some_and(|(text, signature)| {
            verify(signature, text.as_bytes(), &self.public.key, self.public.algorithm).unwrap_or(false)
        })
    }

    /// Whom a token of this key's lets in; else what is wrong with it.
    fn grant(&self, token: &str, audience: &str) -> Result<Grant, String> {
        let mut validation = Validation::new(self.public.algorithm);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.set_issuer(&[&self.client.id]);
        validation.set_audience(&[audience]);
        validation.validate_nbf = true;
        validation.leeway = LEEWAY.unsigned_abs();
        let token: TokenData<Map<String, Value>> =
            decode(token, &self.public.key, &validation).map_err(|error| match error.kind() {
                ErrorKind::MissingRequiredClaim(name) => format!("{name} has to be there"),
                ErrorKind::InvalidClaimFormat(name) => format!("{name} can't be read"),
                ErrorKind::InvalidIssuer => "iss is not the client whose key has signed it".to_owned(),
                ErrorKind::InvalidAudience => format!("aud has to be {audience}"),
                ErrorKind::ExpiredSignature => "exp is over".to_owned(),
                ErrorKind::ImmatureSignature => "nbf has not come yet".to_owned(),
                _ => "its header or its claims can't be read".to_owned(),
            })?;
        let seconds = |name: &str| token.claims.get(name).and_then(Value::as_f64);
        let (Some(issued), Some(expires)) = (seconds("iat"), seconds("exp")) else {
            return Err("iat has to be there, and a number".to_owned());
        };
        #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 are whole in a double for ages")]
        let (now, leeway, lifetime) = (chrono::Utc::now().timestamp() as f64, LEEWAY as f64, LIFETIME_MAX as f64);
        if issued > now + leeway {
            return Err("iat has not come yet".to_owned());
        }
        if expires - issued > lifetime {
            return Err(format!("it may be good for {LIFETIME_MAX} seconds at most, from iat to exp"));
        }
        let subject = token.claims.get("sub").and_then(Value::as_str).ok_or("sub has to be a username")?;
        let username = Username::parse(subject).map_err(|error| format!("sub {error}"))?;
        Ok(Grant { client: Arc::clone(&self.client), key_id: self.id.clone(), username })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use ring::rand::SystemRandom;
    use ring::signature::{Ed25519KeyPair, KeyPair};
    use serde_json::json;

    use super::*;

    const AUDIENCE: &str = "https://haas.example";

    struct Signer(Ed25519KeyPair);

    impl Signer {
        fn new() -> Self {
            let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
            Self(Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap())
        }

        fn jwk(&self, kid: &str) -> Value {
            let x = URL_SAFE_NO_PAD.encode(self.0.public_key());
            json!({ "kty": "OKP", "crv": "Ed25519", "x": x, "kid": kid })
        }

        fn sign(&self, header: &Value, claims: &Value) -> String {
            let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
            let text = format!("{}.{}", part(header), part(claims));
            format!("{text}.{}", URL_SAFE_NO_PAD.encode(self.0.sign(text.as_bytes())))
        }
    }

    fn header() -> Value {
        json!({ "alg": "EdDSA", "typ": "JWT", "kid": "1" })
    }

    fn claims() -> Value {
        let now = chrono::Utc::now().timestamp();
        json!({ "iss": "appmaker", "aud": AUDIENCE, "sub": "Alice", "iat": now, "exp": now + 300 })
    }

    fn put(dir: &tempfile::TempDir, name: &str, text: &str) {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    }

    fn known(signer: &Signer) -> (tempfile::TempDir, Clients) {
        let dir = tempfile::tempdir().unwrap();
        put(&dir, "appmaker.2026.jwks", &json!({ "keys": [signer.jwk("1")] }).to_string());
        put(&dir, "appmaker.toml", "rights = [\"provision\"]");
        let clients = Clients::read(dir.path()).unwrap();
        assert_eq!(clients.mistakes(), Vec::<String>::new());
        (dir, clients)
    }

    fn why(clients: &Clients, token: &str) -> String {
        clients.admit_token(token, AUDIENCE).unwrap_err().to_string()
    }

    #[test]
    fn a_token_is_good_for_its_user_and_what_it_says_has_to_be_right() {
        let signer = Signer::new();
        let (_dir, clients) = known(&signer);
        let bearer = clients.admit_token(&signer.sign(&header(), &claims()), AUDIENCE).unwrap();
        assert_eq!((bearer.username.as_str(), bearer.key_id.as_str()), ("alice", "appmaker.2026#1"));
        assert_eq!(bearer.client.policy.rights, [crate::clients::Right::Provision]);
        assert_eq!(clients.keys()[0].id, "appmaker.2026#1");
        let several = json!({ "aud": ["https://other.example", AUDIENCE] });
        let now = chrono::Utc::now().timestamp();
        for (change, expected) in [
            (several, ""),
            (json!({ "exp": now - 30 }), ""),
            (json!({ "exp": now - 90 }), "exp is over"),
            (json!({ "exp": null }), "exp has to be there"),
            (json!({ "exp": "soon" }), "exp has to be there"),
            (json!({ "exp": now + 3601 }), "it may be good for 3600 seconds at most, from iat to exp"),
            (json!({ "iat": now + 90, "exp": now + 300 }), "iat has not come yet"),
            (json!({ "iat": null }), "iat has to be there, and a number"),
            (json!({ "nbf": now + 90 }), "nbf has not come yet"),
            (json!({ "nbf": "later" }), "nbf can't be read"),
            (json!({ "aud": "https://other.example" }), "aud has to be https://haas.example"),
            (json!({ "aud": null }), "aud has to be there"),
            (json!({ "iss": "provision" }), "iss is not the client whose key has signed it"),
            (json!({ "iss": 7 }), "iss has to be there"),
            (json!({ "sub": null }), "sub has to be there"),
            (json!({ "sub": ["alice"] }), "its header or its claims can't be read"),
            (json!({ "sub": "a.b" }), "sub must be"),
        ] {
            let mut all = claims();
            all.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            let token = signer.sign(&header(), &all);
            if expected.is_empty() {
                clients.admit_token(&token, AUDIENCE).unwrap();
            } else {
                let why = why(&clients, &token);
                assert!(why.starts_with(expected), "{change}: {why}");
            }
        }
    }

    #[test]
    fn what_the_key_has_not_signed_lets_nobody_in_whichever_way() {
        let (signer, other) = (Signer::new(), Signer::new());
        let (dir, clients) = known(&signer);
        let good = signer.sign(&header(), &claims());
        let mismatch = TokenError::Mismatch.to_string();
        for token in [other.sign(&header(), &claims()), signer.sign(&json!({ "alg": "EdDSA", "kid": "2" }), &claims())]
        {
            assert_eq!(why(&clients, &token), mismatch, "which keys there are is not told");
        }
        for header in [
            json!({ "alg": "none", "kid": "1" }),
            json!({ "alg": "RS256", "kid": "1" }),
            json!({ "alg": "EdDSA" }),
            json!({ "alg": "EdDSA", "kid": "1", "crit": ["x"], "x": 1 }),
            json!({ "kid": "1" }),
            json!(7),
        ] {
            assert!(clients.admit_token(&signer.sign(&header, &claims()), AUDIENCE).is_err(), "{header}");
        }
        // As if the public key were a secret that both sides have (RFC 8725, section 2.1).
        let text = good.rsplit_once('.').unwrap().0.replacen(
            &URL_SAFE_NO_PAD.encode(header().to_string()),
            &URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","kid":"1"}"#),
            1,
        );
        let tag = ring::hmac::sign(
            &ring::hmac::Key::new(ring::hmac::HMAC_SHA256, signer.0.public_key().as_ref()),
            text.as_bytes(),
        );
        let forged = format!("{text}.{}", URL_SAFE_NO_PAD.encode(tag));
        assert_eq!(why(&clients, &forged), mismatch);
        // No byte of it can be another one, be missing, or be there twice.
        for at in 0..good.len() {
            for byte in ["", "A", "B", ".", "=", "-", "\u{e9}"] {
                let (before, after) = (&good[..at], &good[at + 1..]);
                let changed = format!("{before}{byte}{after}");
                assert!(changed == good || clients.admit_token(&changed, AUDIENCE).is_err(), "{changed}");
            }
        }
        for token in ["", ".", "..", "a.b.c", "e30.e30.e30", &good[..good.len() / 2], &format!("{good}.{good}")] {
            assert!(clients.admit_token(token, AUDIENCE).is_err(), "{token}");
        }
        // Two clients whose keys have one name: each is its own.
        put(&dir, "partner.jwks", &json!({ "keys": [other.jwk("1")] }).to_string());
        clients.reload().unwrap();
        let mut theirs = claims();
        theirs["iss"] = json!("partner");
        assert_eq!(clients.admit_token(&other.sign(&header(), &theirs), AUDIENCE).unwrap().client.id, "partner");
        assert_eq!(clients.admit_token(&good, AUDIENCE).unwrap().client.id, "appmaker");
        assert!(clients.admit_token(&other.sign(&header(), &claims()), AUDIENCE).is_err(), "in another's name");
        // Nor does whoever shows a key of another's as its own keep that one out.
        put(&dir, "a.jwks", &json!({ "keys": [signer.jwk("1")] }).to_string());
        put(&dir, "z.jwks", &json!({ "keys": [signer.jwk("1")] }).to_string());
        clients.reload().unwrap();
        assert_eq!(clients.admit_token(&good, AUDIENCE).unwrap().client.id, "appmaker");
        assert!(why(&clients, &signer.sign(&header(), &theirs)).starts_with("iss is not"));
        // And taken away, it is good no more.
        for name in ["appmaker.2026.jwks", "a.jwks", "z.jwks"] {
            fs::remove_file(dir.path().join(name)).unwrap();
        }
        clients.reload().unwrap();
        assert_eq!(why(&clients, &good), mismatch);
    }

    #[test]
    fn keys_that_cant_be_used_are_told_and_keep_no_other_from_being() {
        let signer = Signer::new();
        let (dir, clients) = known(&signer);
        let with = |part: &str, value: Value| {
            let mut jwk = signer.jwk("2");
            jwk[part] = value;
            jwk
        };
        let modulus =
            |modulus: &[u8], e: &str| json!({ "kty": "RSA", "kid": "3", "e": e, "n": URL_SAFE_NO_PAD.encode(modulus) });
        let rsa = |bytes: usize| modulus(&vec![0xc1; bytes], "AQAB");
        let padded = [vec![0; 128], vec![0xc1; 128]].concat();
        let x = |byte: u8| {
            let mut point = [0; 32];
            point[0] = byte;
            with("x", json!(URL_SAFE_NO_PAD.encode(point)))
        };
        let wrong = [
            (with("d", json!("AAAA")), "is a private one"),
            (json!({ "kty": "RSA", "kid": "3", "e": "AQAB", "n": "AQAB", "p": "AQAB" }), "is a private one"),
            (json!({ "kty": "oct", "kid": "2", "k": "AAAA" }), "is a private one"),
            (with("kid", json!("a b")), "kid has to be there"),
            (with("kid", Value::Null), "kid has to be there"),
            (with("use", json!("enc")), "use is not sig"),
            (with("key_ops", json!(["sign"])), "key_ops has no verify"),
            (with("alg", json!("HS256")), "has to be of Ed25519"),
            (with("alg", json!("Ed25519")), "has to be of Ed25519"),
            (with("alg", json!("RS256")), "has to be of Ed25519"),
            (with("x", json!("AAAA")), "has to be of Ed25519"),
            (with("crv", json!("X25519")), "has to be of Ed25519"),
            (x(0), "has to be of Ed25519"),
            (x(1), "has to be of Ed25519"),
            (rsa(128), "has to be of Ed25519"),
            (rsa(1025), "has to be of Ed25519"),
            (modulus(&padded, "AQAB"), "has to be of Ed25519"),
            (modulus(&[0xc0; 256], "AQAB"), "has to be of Ed25519"),
            (modulus(&[0xc1; 256], "AQ"), "has to be of Ed25519"),
            (modulus(&[0xc1; 256], "AQAA"), "has to be of Ed25519"),
            (modulus(&[0xc1; 256], ""), "has to be of Ed25519"),
            (json!({ "kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "kid": "2" }), "has to be of Ed25519"),
            (json!("x"), "kid has to be there"),
            (signer.jwk("1"), "has kid 1 twice"),
        ];
        let all: Vec<Value> = [signer.jwk("1"), rsa(256), with("kid", json!("4"))]
            .into_iter()
            .chain(wrong.iter().map(|(jwk, _)| jwk.clone()))
            .collect();
        put(&dir, "appmaker.2026.jwks", &json!({ "keys": all }).to_string());
        clients.reload().unwrap();
        let ids: Vec<String> = clients.keys().into_iter().map(|key| key.id).collect();
        assert_eq!(ids, ["appmaker.2026#1", "appmaker.2026#3", "appmaker.2026#4"]);
        let mistakes = clients.mistakes();
        assert_eq!(mistakes.len(), wrong.len(), "{mistakes:?}");
        for ((jwk, expected), mistake) in wrong.iter().zip(&mistakes) {
            assert!(mistake.contains("appmaker.2026.jwks: ") && mistake.contains(expected), "{jwk}: {mistake}");
        }
        for (text, mistake) in [("{", "is no JWK set"), ("[]", "is no JWK set"), ("{\"keys\":[]}", "has no key")] {
            put(&dir, "appmaker.2026.jwks", text);
            clients.reload().unwrap();
            assert!(clients.keys().is_empty() && clients.mistakes()[0].contains(mistake), "{:?}", clients.mistakes());
        }
        // Whoever may write it could let himself in.
        put(&dir, "appmaker.2026.jwks", &json!({ "keys": [signer.jwk("1")] }).to_string());
        fs::set_permissions(dir.path().join("appmaker.2026.jwks"), fs::Permissions::from_mode(0o664)).unwrap();
        clients.reload().unwrap();
        assert!(clients.keys().is_empty() && clients.mistakes()[0].contains("others may write it"));
        // Without rights that can be read there are none.
        put(&dir, "appmaker.2026.jwks", &json!({ "keys": [signer.jwk("1")] }).to_string());
        put(&dir, "appmaker.toml", "rights = 1");
        clients.reload().unwrap();
        assert!(clients.keys().is_empty() && clients.mistakes()[0].contains("appmaker.toml"));
    }
}
