use std::process::Command;

use chrono::TimeDelta;

use super::*;

fn made(names: &[&str]) -> (String, String) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

/// What openssl makes, in the forms that other tools write.
fn openssl(arguments: &str, input: &str) -> String {
    use std::io::Write;
    let mut child = Command::new("openssl")
        .args(arguments.split(' '))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}

#[test]
fn names_dates_and_fingerprint_are_read() {
    let (certificate, key) = made(&["Notes.example.org", "*.example.org"]);
    let bundle = Bundle::parse(format!("{certificate}{key}").as_bytes()).unwrap();
    assert_eq!(bundle.names, ["notes.example.org", "*.example.org"]);
    assert_eq!(bundle.chain, 0);
    let told = openssl("x509 -noout -fingerprint -sha1", &certificate);
    assert_eq!(told.trim().replace(':', ""), format!("sha1 Fingerprint={}", bundle.fingerprint));
    assert!(bundle.check_expiry(bundle.not_after - TimeDelta::seconds(1)).is_ok());
    assert_eq!(bundle.check_expiry(bundle.not_after), Err(BundleError::Expired(bundle.not_after)));
    assert_eq!(bundle.days_left(bundle.not_after - TimeDelta::days(3)), 3);
    assert_eq!(bundle.days_left(bundle.not_after + TimeDelta::seconds(1)), -1);
    assert!(!format!("{bundle:?}").contains("PRIVATE"));
}

#[test]
fn what_stands_between_the_sections_is_left_out() {
    let (certificate, key) = made(&["a.example"]);
    let other = made(&["ca.example"]).0;
    let parameters = openssl("ecparam -name prime256v1", "");
    assert!(parameters.contains("EC PARAMETERS"));
    let text = format!("Bag Attributes\n\n{parameters}\n\n{key}\nsubject=/CN=x\n\n{certificate}\n\n{other}\n")
        .replace('\n', "\r\n");
    let bundle = Bundle::parse(text.as_bytes()).unwrap();
    assert_eq!(bundle.chain, 1);
    assert_eq!(bundle.pem(), format!("{certificate}{other}{key}").replace('\r', ""));
    assert!(!bundle.pem().contains("\n\n"));
    assert_eq!(Bundle::parse(bundle.pem().as_bytes()), Ok(bundle));
}

#[test]
fn every_common_form_of_a_key_will_do() {
    for (kind, forms) in [
        ("-newkey rsa:2048", &["rsa -traditional", "pkcs8 -topk8 -nocrypt"][..]),
        ("-newkey ec -pkeyopt ec_paramgen_curve:P-256", &["ec", "pkcs8 -topk8 -nocrypt"][..]),
        ("-newkey ec -pkeyopt ec_paramgen_curve:P-384", &["ec"][..]),
        ("-newkey ed25519", &["pkcs8 -topk8 -nocrypt"][..]),
    ] {
        let both = openssl(
            &format!("req -x509 {kind} -nodes -days 9 -subj /CN=x -addext subjectAltName=DNS:x.example -keyout -"),
            "",
        );
        for form in forms {
            let key = openssl(form, &both);
            let tag = key.lines().next().unwrap().to_owned();
            let certificate = openssl("x509", &both);
            assert!(Bundle::parse(format!("{certificate}{key}").as_bytes()).is_ok(), "{kind} {tag}");
            let stranger = made(&["x.example"]).0;
            let mixed = Bundle::parse(format!("{stranger}{key}").as_bytes());
            assert_eq!(mixed, Err(BundleError::KeyMismatch), "{kind} {tag}");
        }
    }
}

#[test]
fn what_is_wrong_is_said() {
    let (certificate, key) = made(&["a.example"]);
    let error = |text: &str| Bundle::parse(text.as_bytes()).unwrap_err();
    assert_eq!(error(""), BundleError::NoCertificate);
    assert_eq!(error("garbage"), BundleError::NoCertificate);
    assert_eq!(error(&key), BundleError::NoCertificate);
    assert_eq!(error(&certificate), BundleError::NoKey);
    assert!(matches!(
        error(&certificate.replace("-----END", "-----FIN")),
        BundleError::NotPem(_) | BundleError::NoCertificate
    ));
    let encrypted = openssl("pkcs8 -topk8 -passout pass:secret", &key);
    assert!(encrypted.contains("ENCRYPTED"));
    assert_eq!(error(&format!("{certificate}{encrypted}")), BundleError::NoKey);
    let damaged = Pem::new("PRIVATE KEY", b"nothing".to_vec()).to_string();
    assert!(matches!(error(&format!("{certificate}{damaged}")), BundleError::Key(_)));
    let damaged = Pem::new("CERTIFICATE", b"nothing".to_vec()).to_string();
    assert!(matches!(error(&format!("{damaged}{key}")), BundleError::Certificate { at: 1, .. }));
    assert!(matches!(error(&format!("{certificate}{damaged}{key}")), BundleError::Certificate { at: 2, .. }));
    let nameless = openssl("req -x509 -newkey rsa:2048 -nodes -days 9 -subj /CN=x.example -keyout -", "");
    assert_eq!(error(&nameless), BundleError::NoNames);
    for text in ["garbage", &certificate, &format!("{certificate}{encrypted}")] {
        assert!(!error(text).to_string().contains("MI"), "a reason repeats nothing of the file");
    }
}
