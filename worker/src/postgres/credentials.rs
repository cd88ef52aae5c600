//! User names and passwords, from mounted Secrets or from the environment.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::endpoint::Endpoint;
use super::error::ConnectError;

/// Where credentials and certificates of one end are.
#[derive(Clone, Debug)]
pub struct EndpointFiles {
    /// Folder with the files `username` and `password`.
    pub credentials: PathBuf,
    /// Folder with `ca/ca.crt`, `client/tls.crt` and `client/tls.key`, as far as the manifest names them.
    pub tls: PathBuf,
    /// Credentials from environment or flags, on a laptop. They win over the files.
    pub environment: Option<Credentials>,
}

/// A user name and its password. `Debug` does not show the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Name of the role.
    pub username: String,
    /// Its password.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

impl Credentials {
    /// Reads the credentials of an end as they are now.
    pub(super) async fn read(endpoint: &Endpoint) -> Result<Self, ConnectError> {
        if let Some(credentials) = &endpoint.files.environment {
            return Ok(credentials.clone());
        }
        let folder = &endpoint.files.credentials;
        Ok(Self {
            username: read_key(endpoint, folder, "username").await?,
            password: read_key(endpoint, folder, "password").await?,
        })
    }
}

/// One key of a mounted Secret. One line end at the end of the file, as an editor or `echo` leaves it, is not
/// part of the value.
async fn read_key(endpoint: &Endpoint, folder: &Path, key: &'static str) -> Result<String, ConnectError> {
    let path = folder.join(key);
    let missing = |problem: io::Error| ConnectError::CredentialsMissing {
        path: path.clone(),
        secret: endpoint.connection.credentials_secret.clone(),
        key,
        problem: problem.to_string(),
    };
    let text = tokio::fs::read_to_string(&path).await.map_err(missing)?;
    let value = text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
    if value.is_empty() {
        return Err(missing(io::Error::other("the file is empty")));
    }
    if value.contains('\0') {
        return Err(missing(io::Error::other("the file holds a zero byte")));
    }
    Ok(value.to_owned())
}
