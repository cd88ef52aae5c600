//! The rustls configuration of a connection: which certificates are trusted and which one is shown. The crypto
//! provider is passed explicitly; nothing is installed for the whole process.

use std::path::Path;
use std::sync::Arc;

use penstock_crds::connection::TlsMode;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::endpoint::Endpoint;
use super::error::ConnectError;

/// Builds the configuration from the files as they are now; `None` when the mode is `disable`.
pub(super) async fn client_config(endpoint: &Endpoint) -> Result<Option<ClientConfig>, ConnectError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| ConnectError::Tls(error.to_string()))?;
    let builder = match endpoint.connection.tls.mode {
        TlsMode::Disable => return Ok(None),
        TlsMode::Require => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier { provider, trusted: None })),
        TlsMode::VerifyCa => {
            let trusted = Some(trusted_roots(endpoint).await?);
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Verifier { provider, trusted }))
        }
        TlsMode::VerifyFull => builder.with_root_certificates(trusted_roots(endpoint).await?),
    };
    let Some(secret) = &endpoint.connection.tls.client_certificate_secret else {
        return Ok(Some(builder.with_no_client_auth()));
    };
    let folder = endpoint.files.tls.join("client");
    let chain = read_certificates(&folder.join("tls.crt"), secret, "tls.crt").await?;
    let key_path = folder.join("tls.key");
    let key = PrivateKeyDer::from_pem_slice(&read_file(&key_path, secret, "tls.key").await?)
        .map_err(|error| invalid(&key_path, secret, "tls.key", &format!("no private key in PEM: {error}")))?;
    let config = builder
        .with_client_auth_cert(chain, key)
        .map_err(|error| invalid(&folder.join("tls.crt"), secret, "tls.crt", &error.to_string()))?;
    Ok(Some(config))
}

async fn trusted_roots(endpoint: &Endpoint) -> Result<RootCertStore, ConnectError> {
    let mut roots = RootCertStore::empty();
    if let Some(secret) = &endpoint.connection.tls.ca_secret {
        let path = endpoint.files.tls.join("ca").join("ca.crt");
        for certificate in read_certificates(&path, secret, "ca.crt").await? {
            roots.add(certificate).map_err(|error| invalid(&path, secret, "ca.crt", &error.to_string()))?;
        }
        return Ok(roots);
    }
    let native = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs)
        .await
        .map_err(|error| ConnectError::Tls(format!("the system's trusted CAs cannot be read: {error}")))?;
    roots.add_parsable_certificates(native.certs);
    if roots.is_empty() {
        return Err(ConnectError::Tls(
            "the system trusts no CA: set tls.caSecret to a Secret with the key ca.crt".into(),
        ));
    }
    Ok(roots)
}

async fn read_certificates(
    path: &Path,
    secret: &str,
    key: &'static str,
) -> Result<Vec<CertificateDer<'static>>, ConnectError> {
    let pem = read_file(path, secret, key).await?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| invalid(path, secret, key, &error.to_string()))?;
    if certificates.is_empty() {
        return Err(invalid(path, secret, key, "no certificate in PEM"));
    }
    Ok(certificates)
}

async fn read_file(path: &Path, secret: &str, key: &'static str) -> Result<Vec<u8>, ConnectError> {
    tokio::fs::read(path).await.map_err(|error| ConnectError::CertificateMissing {
        path: path.to_owned(),
        secret: secret.to_owned(),
        key,
        problem: error.to_string(),
    })
}

fn invalid(path: &Path, secret: &str, key: &'static str, problem: &str) -> ConnectError {
    ConnectError::CertificateInvalid {
        path: path.to_owned(),
        secret: secret.to_owned(),
        key,
        problem: problem.to_owned(),
    }
}

/// `require` (no CA is trusted: any certificate is taken) and `verify-ca` (the chain is checked, the host name
/// is not). Either way the server must prove that it owns the certificate's key.
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    trusted: Option<RootCertStore>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(roots) = &self.trusted {
            verify_server_cert_signed_by_trust_anchor(
                &ParsedCertificate::try_from(end_entity)?,
                roots,
                intermediates,
                now,
                self.provider.signature_verification_algorithms.all,
            )?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
