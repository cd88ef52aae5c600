//! How to reach a PostgreSQL server.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a Kubernetes object's name looks like, as a CEL rule on the name.
pub(crate) const OBJECT_NAME_RULE: &str =
    "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')";
/// What to write instead of a Secret's name.
pub(crate) const OBJECT_NAME_MESSAGE: &str = "must be the name of a Secret of the pipeline's namespace: lowercase letters, digits, '-' and '.', for example shop-db";

/// How to reach a PostgreSQL database.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PostgresConnection {
    /// Host name or address.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("!self.contains('/') && !self.contains(' ')")
        .message("connection.host must be a host name or an address, without scheme, path or spaces: write shop-db, not postgres://shop-db/shop"))]
    #[x_kube(validation = Rule::new("!self.matches('^[^:]*:[0-9]*$')")
        .message("connection.host must not hold the port: write it in connection.port"))]
    pub host: String,

    /// TCP port.
    #[serde(default = "PostgresConnection::default_port")]
    #[schemars(range(min = 1, max = 65_535))]
    pub port: u16,

    /// Database name.
    #[schemars(length(min = 1, max = 63))]
    pub database: String,

    /// Secret of the pipeline's namespace with the keys `username` and `password`.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new(OBJECT_NAME_RULE).message(OBJECT_NAME_MESSAGE))]
    pub credentials_secret: String,

    /// Encryption of the connection.
    #[serde(default)]
    pub tls: Tls,
}

impl PostgresConnection {
    fn default_port() -> u16 {
        5432
    }
}

/// Encryption of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.mode != 'disable' || (!has(self.caSecret) && !has(self.clientCertificateSecret))")
    .message("tls.mode is disable, so caSecret and clientCertificateSecret would be ignored: remove them or set mode to verify-full"))]
#[x_kube(validation = Rule::new("self.mode != 'require' || !has(self.caSecret)")
    .message("tls.mode require encrypts without checking the certificate, so caSecret would be ignored: remove it or set mode to verify-ca or verify-full"))]
pub struct Tls {
    /// How strict: `disable`, `require` (encrypted, certificate not checked), `verify-ca` (signed by a
    /// trusted CA) or `verify-full` (and made for this host).
    #[serde(default)]
    pub mode: TlsMode,

    /// Secret with the key `ca.crt`: the CA certificates to trust, PEM. Without it, `verify-ca` and
    /// `verify-full` trust the CAs of the worker's image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new(OBJECT_NAME_RULE).message(OBJECT_NAME_MESSAGE))]
    pub ca_secret: Option<String>,

    /// Secret with the keys `tls.crt` and `tls.key`: the certificate that the worker shows, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new(OBJECT_NAME_RULE).message(OBJECT_NAME_MESSAGE))]
    pub client_certificate_secret: Option<String>,
}

/// How strict the encryption is, in libpq's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TlsMode {
    /// No encryption.
    Disable,
    /// Encrypted; the server's certificate is not checked.
    Require,
    /// Encrypted; the server's certificate is signed by a trusted CA.
    VerifyCa,
    /// Encrypted; signed by a trusted CA and made for this host.
    #[default]
    VerifyFull,
}
