use proptest::prelude::*;

use super::*;

const KEY: &[u8] = b"a key that is long enough";
const NOW: i64 = 1_790_000_000;
const COVERED: &str = r#"("@method" "@target-uri" "content-digest")"#;

fn sign(base: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(KEY).unwrap();
    mac.update(base.as_bytes());
    format!("haas=:{}:", STANDARD.encode(mac.finalize().into_bytes()))
}

fn params(covered: &str) -> String {
    format!(r#"{covered};created={NOW};keyid="appmaker";nonce="0123456789";alg="hmac-sha256""#)
}

fn message<'a>(digest: &'a str, body: &'a [u8]) -> Message<'a> {
    Message {
        method: "POST",
        scheme: "https",
        host: "Haas.example:443",
        target: "/provision?x=1",
        fields: vec![
            ("host", b"Haas.example:443"),
            ("content-digest", digest.as_bytes()),
            ("x-a", b" 1 "),
            ("x-a", b"2"),
        ],
        body,
    }
}

fn base(digest: &str, params: &str) -> String {
    format!(
        "\"@method\": POST\n\"@target-uri\": https://haas.example/provision?x=1\n\"content-digest\": {digest}\n\"@signature-params\": {params}"
    )
}

fn verified(message: &Message<'_>, params: &str, signature: &str) -> Result<(), SignatureError> {
    Signature::parse(&format!("haas={params}"), signature)?.verify(message, KEY, NOW)
}

#[test]
fn a_request_that_was_signed_by_hand_is_verified() {
    let digest = content_digest(b"{}");
    let params = params(COVERED);
    let signature = sign(&base(&digest, &params));
    assert_eq!(verified(&message(&digest, b"{}"), &params, &signature), Ok(()));
    // Other words for the same.
    let params = r#"("@method" "@request-target" "host" "content-digest" "x-a" "@path" "@query" "@scheme");created=1790000000;keyid="a";nonce="0123456789""#;
    let base = format!(
        "\"@method\": POST\n\"@request-target\": /provision?x=1\n\"host\": Haas.example:443\n\"content-digest\": {digest}\n\"x-a\": 1, 2\n\
         \"@path\": /provision\n\"@query\": ?x=1\n\"@scheme\": https\n\"@signature-params\": {params}"
    );
    assert_eq!(verified(&message(&digest, b"{}"), params, &sign(&base)), Ok(()));
}

/// RFC 9421, appendix B.2.5: the request and the shared secret of its example.
#[test]
fn the_rfcs_own_example_has_the_signature_that_it_says() {
    let secret = STANDARD
        .decode("uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8jsasjlTMtDQ==")
        .unwrap();
    let message = Message {
        method: "POST",
        scheme: "https",
        host: "example.com",
        target: "/foo?param=Value&Pet=dog",
        fields: vec![("date", b"Tue, 20 Apr 2021 02:07:55 GMT"), ("content-type", b"application/json")],
        body: b"",
    };
    let input = r#"sig-b25=("date" "@authority" "content-type");created=1618884473;keyid="test-shared-secret";nonce="12345678""#;
    let signature = Signature::parse(input, "sig-b25=:AA==:").unwrap();
    let expected = "\"date\": Tue, 20 Apr 2021 02:07:55 GMT\n\"@authority\": example.com\n\"content-type\": application/json\n\
        \"@signature-params\": (\"date\" \"@authority\" \"content-type\");created=1618884473;keyid=\"test-shared-secret\"";
    // The example has no nonce: the base is compared without it, and its MAC with the RFC's.
    assert_eq!(signature.base(&message).unwrap().replace(";nonce=\"12345678\"", ""), expected);
    let mut mac = Hmac::<Sha256>::new_from_slice(&secret).unwrap();
    mac.update(expected.as_bytes());
    assert_eq!(STANDARD.encode(mac.finalize().into_bytes()), "pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8=");
}

#[test]
fn whatever_is_changed_breaks_it() {
    let digest = content_digest(b"{}");
    let params = params(COVERED);
    let signature = sign(&base(&digest, &params));
    let good = message(&digest, b"{}");
    for bad in [
        Message { method: "PUT", ..good.clone() },
        Message { scheme: "http", ..good.clone() },
        Message { host: "haas.example:8443", ..good.clone() },
        Message { target: "/provision?x=2", ..good.clone() },
        Message { target: "/deprovision?x=1", ..good.clone() },
    ] {
        assert_eq!(verified(&bad, &params, &signature), Err(SignatureError::Mismatch), "{bad:?}");
    }
    assert_eq!(verified(&message(&digest, b"[]"), &params, &signature), Err(SignatureError::Digest));
    let other = content_digest(b"[]");
    assert_eq!(verified(&message(&other, b"[]"), &params, &signature), Err(SignatureError::Mismatch));
    let parsed = Signature::parse(&format!("haas={params}"), &signature).unwrap();
    assert_eq!(parsed.verify(&good, b"another key", NOW), Err(SignatureError::Mismatch));
    for (now, outcome) in [
        (NOW + TOLERANCE, Ok(())),
        (NOW - TOLERANCE, Ok(())),
        (NOW + TOLERANCE + 1, Err(SignatureError::OutOfTime)),
        (NOW - TOLERANCE - 1, Err(SignatureError::OutOfTime)),
    ] {
        assert_eq!(parsed.verify(&good, KEY, now), outcome, "{now}");
    }
}

#[test]
fn what_has_to_be_signed_has_to_be_signed() {
    let digest = content_digest(b"{}");
    for covered in [
        r#"("@target-uri" "content-digest")"#,
        r#"("@method" "content-digest" "host")"#,
        r#"("@method" "@path" "content-digest" "host")"#,
        r#"("@method" "@request-target" "content-digest")"#,
        r#"("@method" "@target-uri")"#,
        "()",
    ] {
        let outcome = verified(&message(&digest, b"{}"), &params(covered), &sign("x"));
        assert!(matches!(outcome, Err(SignatureError::NotCovered(_))), "{covered}: {outcome:?}");
    }
    for (input, signature) in [
        ("", "haas=:AA==:"),
        ("haas=1", "haas=:AA==:"),
        (r#"haas=();created=1;keyid="a""#, "haas=:AA==:"),
        (r#"haas=();created=1;nonce="0123456789""#, "haas=:AA==:"),
        (r#"haas=();nonce="0123456789";keyid="a""#, "haas=:AA==:"),
        (r#"haas=();created=1;nonce="short";keyid="a""#, "haas=:AA==:"),
        (r#"haas=();created="1";nonce="0123456789";keyid="a""#, "haas=:AA==:"),
        (r#"haas=();created=1;nonce="0123456789";keyid="a";alg="ed25519""#, "haas=:AA==:"),
        (r#"haas=();created=1;nonce="0123456789";keyid="a";zone=1"#, "haas=:AA==:"),
        (r#"haas=("host";sf);created=1;nonce="0123456789";keyid="a""#, "haas=:AA==:"),
        (r#"haas=("host" "host");created=1;nonce="0123456789";keyid="a""#, "haas=:AA==:"),
        (r#"haas=("Host");created=1;nonce="0123456789";keyid="a""#, "haas=:AA==:"),
        (r#"haas=();created=1;nonce="0123456789";keyid="a""#, "other=:AA==:"),
        (r#"haas=();created=1;nonce="0123456789";keyid="a""#, "haas=\"AA==\""),
        (r#"haas=();created=1;nonce="0123456789";keyid="a", b=()"#, "haas=:AA==:"),
    ] {
        assert!(matches!(Signature::parse(input, signature), Err(SignatureError::Malformed(_))), "{input}");
    }
    // Signed, and not there, or not to be signed at all.
    for covered in [
        r#"("@method" "@target-uri" "content-digest" "x-b")"#,
        r#"("@method" "@target-uri" "content-digest" "@status")"#,
    ] {
        let outcome = verified(&message(&digest, b"{}"), &params(covered), &sign("x"));
        assert!(matches!(outcome, Err(SignatureError::Malformed(_))), "{covered}: {outcome:?}");
    }
}

proptest! {
    #[test]
    fn nothing_that_is_sent_makes_it_panic(input in ".{0,200}", signature in ".{0,80}", target in ".{0,40}", digest in ".{0,80}") {
        if let Ok(parsed) = Signature::parse(&input, &signature) {
            let message = Message { target: &target, ..message(&digest, b"{}") };
            prop_assert!(parsed.verify(&message, KEY, NOW).is_err());
        }
    }

    #[test]
    fn a_signature_holds_for_its_own_body_alone(body in prop::collection::vec(any::<u8>(), 1..64), other in prop::collection::vec(any::<u8>(), 1..64)) {
        let digest = content_digest(&body);
        let params = params(COVERED);
        let signature = sign(&base(&digest, &params));
        prop_assert_eq!(verified(&message(&digest, &body), &params, &signature), Ok(()));
        prop_assert_eq!(verified(&message(&digest, &other), &params, &signature).is_ok(), body == other);
    }
}
