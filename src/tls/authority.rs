//! The local CA: made once, then read.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;

use chrono::{DateTime, Datelike, TimeDelta, Utc};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use thiserror::Error;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::bundle::{Bundle, BundleError};
use super::store::{StoreError, failed};
use crate::instance::name::Hostname;
use crate::whole_file::{self, Durability};

/// The CA's life, in days: who trusts it does so by hand.
const AUTHORITY_DAYS: i64 = 3650;
/// A leaf's life, in days: what browsers bound it to elsewhere.
const LEAF_DAYS: i64 = 397;
/// It is renewed when this many are left.
const RENEWED_DAYS: i64 = 30;

/// What is wrong with the local CA.
#[derive(Debug, Error)]
pub enum AuthorityError {
    /// The files.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// One of the two files is gone, or they are of different CAs.
    #[error(
        "ca.key does not belong to ca.pem: put the right one back, or remove both for a new CA, which has to be trusted anew"
    )]
    Mismatch,
    /// What has been trusted for ten years is to be replaced by a person.
    #[error("ca.pem expired on {}: remove it and ca.key for a new CA, which has to be trusted anew", .0.format("%F"))]
    Expired(DateTime<Utc>),
    /// The files are damaged, or what was asked for can't be made.
    #[error("the local CA: {0}")]
    Certificate(#[from] rcgen::Error),
    /// What was made is no good; never seen.
    #[error("the local CA made a certificate that won't do: {0}")]
    Bundle(#[from] BundleError),
}

/// The local CA.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    subject: Vec<u8>,
    /// Until when it is valid.
    pub not_after: DateTime<Utc>,
}

impl Authority {
    /// The CA of the folder; made when there is none.
    ///
    /// # Errors
    /// [`AuthorityError`]. One that is there is never replaced.
    pub fn open(dir: &Path, domain: &Hostname, now: DateTime<Utc>) -> Result<Self, AuthorityError> {
        if let Some(authority) = Self::read(dir)? {
            return Ok(authority);
        }
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        // One that replaces it must not pass for it: a leaf is known to be its by this name.
        let mark = hex::encode(&key.public_key_raw()[1..5]);
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::OrganizationName, "Haas");
        params.distinguished_name.push(DnType::CommonName, format!("{:.40} local CA {mark}", domain.as_str()));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        dates(&mut params, now, AUTHORITY_DAYS);
        let certificate = params.self_signed(&key)?;
        // The key first: a certificate without it would be trusted for nothing.
        for (name, text, mode) in [("ca.key", key.serialize_pem(), 0o600), ("ca.pem", certificate.pem(), 0o644)] {
            let path = dir.join(name);
            whole_file::replace(&path, text.as_bytes(), mode, Durability::Power).map_err(failed("writing", &path))?;
        }
        Self::read(dir)?.ok_or(AuthorityError::Mismatch)
    }

    /// The CA of the folder, if there is one.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn read(dir: &Path) -> Result<Option<Self>, AuthorityError> {
        let path = dir.join("ca.pem");
        let Some(certificate) = read(&path)? else { return Ok(None) };
        let key = read(&dir.join("ca.key"))?.ok_or(AuthorityError::Mismatch)?;
        let key = KeyPair::from_pem(&key)?;
        let der = pem::parse(&certificate).map_err(|_| rcgen::Error::CouldNotParseCertificate)?;
        let (_, parsed) =
            X509Certificate::from_der(der.contents()).map_err(|_| rcgen::Error::CouldNotParseCertificate)?;
        if *parsed.public_key().subject_public_key.data != *key.public_key_raw() {
            return Err(AuthorityError::Mismatch);
        }
        let not_after = DateTime::from_timestamp(parsed.validity().not_after.timestamp(), 0).unwrap_or_default();
        let subject = parsed.subject().as_raw().to_vec();
        Ok(Some(Self { issuer: Issuer::from_ca_cert_pem(&certificate, key)?, subject, not_after }))
    }

    /// Makes a certificate for these names, with a key of its own.
    ///
    /// # Errors
    /// [`AuthorityError`] when a name is none.
    pub fn issue(&self, names: &BTreeSet<String>, now: DateTime<Utc>) -> Result<Bundle, AuthorityError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::new(names.iter().cloned().collect::<Vec<_>>())?;
        // A common name would count as a host.
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::OrganizationName, "Haas");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        dates(&mut params, now, LEAF_DAYS);
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Bundle::parse(format!("{}{}", certificate.pem(), key.serialize_pem()).as_bytes())?)
    }

    /// Whether a leaf is this CA's, and good for a while.
    #[must_use]
    pub fn stands_by(&self, leaf: &Bundle, now: DateTime<Utc>) -> bool {
        leaf.issuer == self.subject && leaf.days_left(now) >= RENEWED_DAYS
    }
}

/// From yesterday on, since clocks differ.
fn dates(params: &mut CertificateParams, now: DateTime<Utc>, days: i64) {
    let day = |at: DateTime<Utc>| {
        let (month, day) = (u8::try_from(at.month()).unwrap_or(1), u8::try_from(at.day()).unwrap_or(1));
        rcgen::date_time_ymd(at.year(), month, day)
    };
    params.not_before = day(now - TimeDelta::days(1));
    params.not_after = day(now + TimeDelta::days(days - 1));
}

fn read(path: &Path) -> Result<Option<String>, StoreError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StoreError { doing: format!("reading {}", path.display()), source }),
    }
}
