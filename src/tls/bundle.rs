//! One PEM file: a certificate, its chain and its key.

use chrono::{DateTime, Utc};
use pem::{EncodeConfig, LineEnding, Pem};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer};
use rustls::sign::CertifiedKey;
use sha1::{Digest, Sha1};
use thiserror::Error;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Why a file is no certificate that HAProxy could use. The texts never repeat its content.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BundleError {
    /// Not text, or a section that begins and does not end.
    #[error("it is not in PEM form: {0}")]
    NotPem(String),
    /// No section CERTIFICATE.
    #[error("it has no certificate")]
    NoCertificate,
    /// No section with a private key, or one that a passphrase protects.
    #[error("it has no private key (one without a passphrase, behind the certificates)")]
    NoKey,
    /// A section that is not what it says.
    #[error("its certificate {at} can't be read: {reason}")]
    Certificate {
        /// Which one, counted from 1.
        at: usize,
        /// What the parser says.
        reason: String,
    },
    /// A kind of key that nobody here knows, or a damaged one.
    #[error("its private key can't be used (RSA of 2048 bits or more, ECDSA P-256 or P-384, Ed25519): {0}")]
    Key(String),
    /// Two halves of different pairs.
    #[error("its private key does not belong to its first certificate")]
    KeyMismatch,
    /// No host in the certificate's subjectAltName, which alone counts (RFC 9110, section 4.3.4).
    #[error("its certificate names no host (subjectAltName)")]
    NoNames,
    /// Past its notAfter.
    #[error("it expired on {}", .0.format("%F"))]
    Expired(DateTime<Utc>),
}

/// A certificate with its chain and its key, as HAProxy wants them. Its key belongs to it.
#[derive(Clone, PartialEq, Eq)]
pub struct Bundle {
    pem: String,
    /// SHA-1 of the certificate, in upper-case hexadecimal: how HAProxy shows it.
    pub fingerprint: String,
    /// Certificates behind the first one.
    pub chain: usize,
    /// The hosts that it is good for; wildcards begin with `*.`.
    pub names: Vec<String>,
    /// From when on it is valid.
    pub not_before: DateTime<Utc>,
    /// Until when.
    pub not_after: DateTime<Utc>,
    /// Who issued it: a distinguished name in DER.
    pub(super) issuer: Vec<u8>,
}

impl std::fmt::Debug for Bundle {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bundle")
            .field("names", &self.names)
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

impl Bundle {
    /// Reads a file's content. Sections that are neither certificates nor keys (such as
    /// parameters) are left out, as is text between them.
    ///
    /// # Errors
    /// [`BundleError`]; not for dates, since those change by themselves.
    pub fn parse(content: &[u8]) -> Result<Self, BundleError> {
        let sections = pem::parse_many(content).map_err(|error| BundleError::NotPem(error.to_string()))?;
        let certificates: Vec<&Pem> = sections.iter().filter(|section| section.tag() == "CERTIFICATE").collect();
        let first = certificates.first().ok_or(BundleError::NoCertificate)?;
        let (key_section, key) =
            sections.iter().find_map(|section| Some((section, private_key(section)?))).ok_or(BundleError::NoKey)?;
        for (at, certificate) in certificates.iter().enumerate() {
            parse(certificate.contents()).map_err(|reason| BundleError::Certificate { at: at + 1, reason })?;
        }
        let chain = certificates.iter().map(|section| CertificateDer::from(section.contents().to_vec())).collect();
        match CertifiedKey::from_der(chain, key, &ring::default_provider()) {
            Ok(_) => {}
            Err(rustls::Error::InconsistentKeys(_)) => return Err(BundleError::KeyMismatch),
            Err(error) => return Err(BundleError::Key(error.to_string())),
        }
        let read = parse(first.contents()).map_err(|reason| BundleError::Certificate { at: 1, reason })?;
        let names = names(&read);
        if names.is_empty() {
            return Err(BundleError::NoNames);
        }
        let config = EncodeConfig::new().set_line_ending(LineEnding::LF);
        let wanted: Vec<Pem> = certificates.iter().copied().chain([key_section]).cloned().collect();
        Ok(Self {
            // No empty line: HAProxy would take one for the end when it is told at run time.
            pem: pem::encode_many_config(&wanted, config)
                .lines()
                .filter(|line| !line.is_empty())
                .fold(String::new(), |text, line| text + line + "\n"),
            fingerprint: hex::encode_upper(Sha1::digest(first.contents())),
            chain: certificates.len() - 1,
            names,
            not_before: date(read.validity().not_before.timestamp()),
            not_after: date(read.validity().not_after.timestamp()),
            issuer: read.issuer().as_raw().to_vec(),
        })
    }

    /// The whole of it, key included, without an empty line.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// # Errors
    /// [`BundleError::Expired`].
    pub fn check_expiry(&self, now: DateTime<Utc>) -> Result<(), BundleError> {
        if self.not_after <= now { Err(BundleError::Expired(self.not_after)) } else { Ok(()) }
    }

    /// Whole days until it expires; negative afterwards.
    #[must_use]
    pub fn days_left(&self, now: DateTime<Utc>) -> i64 {
        (self.not_after - now).num_seconds().div_euclid(24 * 60 * 60)
    }
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, String> {
    X509Certificate::from_der(der).map(|(_, certificate)| certificate).map_err(|error| error.to_string())
}

fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
    let dns = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    };
    extension.value.general_names.iter().filter_map(dns).collect()
}

fn private_key(section: &Pem) -> Option<PrivateKeyDer<'static>> {
    let der = section.contents().to_vec();
    match section.tag() {
        "PRIVATE KEY" => Some(PrivatePkcs8KeyDer::from(der).into()),
        "RSA PRIVATE KEY" => Some(PrivatePkcs1KeyDer::from(der).into()),
        "EC PRIVATE KEY" => Some(PrivateSec1KeyDer::from(der).into()),
        _ => None,
    }
}

fn date(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(seconds, 0).unwrap_or_default()
}

#[cfg(test)]
mod tests;
