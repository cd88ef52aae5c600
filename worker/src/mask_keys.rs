//! The keys of masks, from mounted Secrets or from the environment. Read anew by every attempt: another key is another
//! transform.

use std::io;
use std::path::{Path, PathBuf};

use penstock_crds::names::FILE_MASK_KEY;
use penstock_crds::report::Reason;
use penstock_crds::transform::{TableTransform, key_secrets};

use crate::failure::Failure;
use crate::transform::{MaskKey, MaskKeys};

/// Prefix of the environment variables, one for each Secret.
const VARIABLE: &str = "PENSTOCK_MASK_KEY_";

/// Where keys are.
#[derive(Clone, Debug)]
pub struct MaskKeyFiles {
    /// Folder with one folder per Secret.
    folder: PathBuf,
}

impl MaskKeyFiles {
    /// With one folder per Secret in `folder`. The environment comes first.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// The keys that the entries name, as they are now.
    ///
    /// # Errors
    /// `CredentialsMissing`, with what has to be made.
    pub async fn read(&self, transforms: &[TableTransform]) -> Result<MaskKeys, Failure> {
        let mut keys = MaskKeys::new();
        for secret in key_secrets(transforms) {
            keys.insert(secret.to_owned(), self.key(secret).await?);
        }
        Ok(keys)
    }

    async fn key(&self, secret: &str) -> Result<MaskKey, Failure> {
        let (variable, path) = (variable(secret), self.folder.join(secret).join(FILE_MASK_KEY));
        let missing = |problem: &dyn std::fmt::Display| {
            let message = format!(
                "The key of a mask cannot be read ({}: {problem}). Create the Secret {secret} with the key {FILE_MASK_KEY}, at \
                 least 16 bytes that nobody can guess, or set {variable}.",
                path.display()
            );
            Failure::new(Reason::CredentialsMissing, message)
        };
        let text = match std::env::var(&variable) {
            Ok(text) if !text.is_empty() => text.into_bytes(),
            Ok(_) | Err(_) => tokio::fs::read(&path).await.map_err(|error: io::Error| missing(&error))?,
        };
        // One line end, as an editor or `echo` leaves it, is not part of the key.
        let key = text.strip_suffix(b"\n").map_or(&text[..], |line| line.strip_suffix(b"\r").unwrap_or(line));
        MaskKey::new(key).ok_or_else(|| missing(&"it has less than 16 bytes"))
    }
}

/// The environment variable of a Secret: `PENSTOCK_MASK_KEY_SHOP_PII` for `shop-pii`.
fn variable(secret: &str) -> String {
    let part = |letter: char| if letter.is_ascii_alphanumeric() { letter.to_ascii_uppercase() } else { '_' };
    VARIABLE.chars().chain(secret.chars().map(part)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_of_a_secret_is_its_name_in_capitals() {
        assert_eq!(variable("shop-pii.2"), "PENSTOCK_MASK_KEY_SHOP_PII_2");
    }

    #[tokio::test]
    async fn a_key_that_is_missing_or_short_says_what_to_make() {
        let folder = tempfile::tempdir().unwrap();
        let files = MaskKeyFiles::new(folder.path());
        let told = |failure: Failure| {
            assert_eq!(failure.reason, Reason::CredentialsMissing);
            assert!(failure.message.contains("Create the Secret pii-of-tests with the key key"), "{failure}");
            failure.message
        };
        told(files.key("pii-of-tests").await.unwrap_err());
        std::fs::create_dir(folder.path().join("pii-of-tests")).unwrap();
        let file = folder.path().join("pii-of-tests/key");
        std::fs::write(&file, "short-and-secret\r\n").unwrap();
        assert_eq!(files.key("pii-of-tests").await.ok(), MaskKey::new(b"short-and-secret"));
        std::fs::write(&file, "too-short").unwrap();
        let message = told(files.key("pii-of-tests").await.unwrap_err());
        assert!(message.contains("less than 16 bytes") && !message.contains("too-short"), "{message}");
    }
}
