//! A client by HTTPS, for which every name is here, and certificates to serve it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use chrono::{Datelike, TimeDelta, Utc};
use rcgen::{CertificateParams, DnType, KeyPair};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Certificate, Client, ClientBuilder};
use sha1::{Digest, Sha1};

struct Here;

impl Resolve for Here {
    fn resolve(&self, _: Name) -> Resolving {
        let here: Addrs = Box::new(std::iter::once(SocketAddr::from(([127, 0, 0, 1], 0))));
        Box::pin(std::future::ready(Ok(here)))
    }
}

fn builder() -> ClientBuilder {
    haas::tls::use_ring();
    Client::builder().no_proxy().timeout(std::time::Duration::from_mins(1)).dns_resolver(Here)
}

/// Trusts this CA and no other.
pub fn client_of(ca: &Path) -> Client {
    let ca = Certificate::from_pem(&std::fs::read(ca).unwrap()).unwrap();
    builder().tls_certs_only([ca]).build().unwrap()
}

/// The fingerprint of the certificate that a new connection is shown; none when it is refused.
pub async fn shown(port: u16, host: &str) -> Option<String> {
    let client = builder().tls_danger_accept_invalid_certs(true).tls_info(true).build().unwrap();
    let answer = client.get(format!("https://{host}:{port}/")).send().await.ok()?;
    let info = answer.extensions().get::<reqwest::tls::TlsInfo>().unwrap();
    Some(fingerprint(info.peer_certificate().unwrap()))
}

fn fingerprint(der: &[u8]) -> String {
    hex::encode_upper(Sha1::digest(der))
}

/// What an operator has from a CA: certificate, key, and both in one.
pub struct Made {
    pub certificate: String,
    pub key: String,
    pub fingerprint: String,
}

impl Made {
    pub fn new(names: &[&str]) -> Self {
        Self::with(names, |_| {})
    }

    pub fn with(names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Self {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::OrganizationName, "test");
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let made = params.self_signed(&key).unwrap();
        Self { certificate: made.pem(), key: key.serialize_pem(), fingerprint: fingerprint(made.der()) }
    }

    pub fn pem(&self) -> String {
        format!("{}{}", self.certificate, self.key)
    }

    /// The same with a certificate behind it that HAProxy itself does not like.
    pub fn with_weak_chain(&self) -> String {
        let arguments = "req -x509 -newkey rsa:1024 -nodes -days 9 -subj /CN=weak -keyout /dev/null";
        let output = Command::new("openssl").args(arguments.split(' ')).output().unwrap();
        let weak = String::from_utf8(output.stdout).unwrap();
        format!("{}{weak}{}", self.certificate, self.key)
    }
}

/// Lets a certificate end at the beginning of the day that is so many days away.
pub fn ends_in_days(params: &mut CertificateParams, days: i64) {
    let day = Utc::now() + TimeDelta::days(days);
    let byte = |number: u32| u8::try_from(number).unwrap();
    params.not_after = rcgen::date_time_ymd(day.year(), byte(day.month()), byte(day.day()));
}

/// The operator's folder.
pub fn given(tls: &Path, file: &str) -> PathBuf {
    let folder = tls.join("certs");
    std::fs::create_dir_all(&folder).unwrap();
    folder.join(file)
}

/// A network namespace with a way to this machine, for as long as it is kept.
pub struct Elsewhere {
    name: String,
    /// This machine, seen from there.
    pub address: String,
}

impl Elsewhere {
    pub fn new() -> Self {
        let word = &uuid::Uuid::new_v4().simple().to_string()[..8];
        let name = format!("haas-{word}");
        let (here, there) = (format!("h{word}"), format!("t{word}"));
        let byte = |at: usize| u8::from_str_radix(&word[at..at + 2], 16).unwrap();
        // The range for tests between networks (RFC 2544): no real one has it.
        let net = format!("198.{}.{}", 18 + byte(0) % 2, byte(2));
        let host = u16::from(byte(4) % 63) * 4;
        let (address, peer) = (format!("{net}.{}", host + 1), format!("{net}.{}", host + 2));
        let elsewhere = Self { name: name.clone(), address: address.clone() };
        ip(&format!("netns add {name}"));
        ip(&format!("link add {here} type veth peer name {there} netns {name}"));
        ip(&format!("addr add {address}/30 dev {here}"));
        ip(&format!("link set {here} up"));
        ip(&format!("-n {name} addr add {peer}/30 dev {there}"));
        ip(&format!("-n {name} link set {there} up"));
        elsewhere
    }

    /// The status that curl gets there.
    pub async fn status(&self, port: u16, host: &str, path: &str) -> String {
        let output = tokio::process::Command::new("ip")
            .args(["netns", "exec", &self.name, "curl", "-sS", "--max-time", "10", "-o", "/dev/null"])
            .args(["-w", "%{http_code} %{redirect_url}", "-H", &format!("Host: {host}")])
            .arg(format!("http://{}:{port}{path}", self.address))
            .output()
            .await
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "curl in {}: {errors}", self.name);
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Drop for Elsewhere {
    /// The pair of devices goes with it.
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}
