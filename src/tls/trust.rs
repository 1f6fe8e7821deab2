//! Whom a client of this process trusts.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use thiserror::Error as ThisError;

/// Whose certificates are good.
#[derive(Clone, PartialEq, Eq)]
pub enum Trusted {
    /// Those that this certificate, in PEM form, vouches for.
    Authority(Vec<u8>),
    /// Any, from whomever.
    Anybody,
}

/// Why nobody can be trusted.
#[derive(Debug, ThisError)]
pub enum TrustError {
    /// No section CERTIFICATE.
    #[error("the authority's file has no certificate")]
    NoAuthority,
    /// What rustls says of it.
    #[error("the authority's certificate can't be used: {0}")]
    Unusable(#[from] Error),
}

/// A client's settings that trusts so.
///
/// # Errors
/// [`TrustError`] when the authority's certificate is none.
pub fn client(trusted: &Trusted) -> Result<ClientConfig, TrustError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = match trusted {
        Trusted::Authority(file) => {
            let authority = pem::parse(file).ok().filter(|section| section.tag() == "CERTIFICATE");
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from(authority.ok_or(TrustError::NoAuthority)?.into_contents()))?;
            builder.with_root_certificates(roots)
        }
        Trusted::Anybody => builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider))),
    };
    let mut config = builder.with_no_client_auth();
    // Each look is at the certificate that is there now.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Looks at no certificate; only whether the other end has its key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
