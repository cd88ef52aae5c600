//! The Secrets that a manifest names: what is missing, said before a pod hangs on it.

use penstock_crds::connection::PostgresConnection;
use penstock_crds::names::FILE_MASK_KEY;
use penstock_crds::transform::key_secrets;

use crate::world::{SecretKeys, World};

/// What the Secret of a mask holds.
pub(crate) const MASK_KEYS: [&str; 1] = [FILE_MASK_KEY];

/// What must be made before workers can start, as one sentence; absent when everything is there.
pub(super) fn missing(world: &World) -> Option<String> {
    let mut sentences = missing_for_connections(world);
    for secret in key_secrets(&world.pipeline.spec.transforms) {
        sentences.extend(missing_in(world, "transforms.maskColumns.hash.keySecret", secret, &MASK_KEYS));
    }
    (!sentences.is_empty()).then(|| sentences.join(". "))
}

/// The same before a deleted pipeline can be cleaned up: no row is masked any more, so nothing waits for a mask's key.
pub(super) fn missing_for_clean_up(world: &World) -> Option<String> {
    let sentences = missing_for_connections(world);
    (!sentences.is_empty()).then(|| sentences.join(". "))
}

fn missing_for_connections(world: &World) -> Vec<String> {
    let spec = &world.pipeline.spec;
    let ends = [("source", &spec.source.postgres.connection), ("sink", &spec.sink.postgres.connection)];
    let mut sentences: Vec<String> = Vec::new();
    for (end, connection) in ends {
        for (field, secret, keys) in required(connection) {
            let path = format!("{end}.postgres.connection.{field}");
            sentences.extend(missing_in(world, &path, secret, keys));
        }
    }
    sentences
}

/// The Secrets of a connection: which field names them, and the keys they need.
pub(crate) fn required(
    connection: &PostgresConnection,
) -> Vec<(&'static str, &str, &'static [&'static str])> {
    let tls = &connection.tls;
    let optional = [
        tls.ca_secret.as_deref().map(|secret| ("tls.caSecret", secret, ["ca.crt"].as_slice())),
        tls.client_certificate_secret
            .as_deref()
            .map(|secret| ("tls.clientCertificateSecret", secret, ["tls.crt", "tls.key"].as_slice())),
    ];
    let credentials =
        ("credentialsSecret", connection.credentials_secret.as_str(), ["username", "password"].as_slice());
    std::iter::once(credentials).chain(optional.into_iter().flatten()).collect()
}

fn missing_in(world: &World, path: &str, secret: &str, keys: &[&str]) -> Option<String> {
    let namespace = world.namespace();
    match world.secrets.get(secret) {
        None | Some(SecretKeys::Missing) => Some(format!(
            "The Secret {secret} that {path} names does not exist in the namespace {namespace}: create it with {}",
            keys_text(keys),
        )),
        Some(SecretKeys::Present(present)) => {
            let absent: Vec<&str> = keys.iter().copied().filter(|key| !present.contains(*key)).collect();
            (!absent.is_empty()).then(|| {
                format!(
                    "The Secret {secret} that {path} names has no {}: add {}",
                    absent.join(" and no "),
                    keys_text(&absent)
                )
            })
        }
    }
}

fn keys_text(keys: &[&str]) -> String {
    let word = if keys.len() == 1 { "the key" } else { "the keys" };
    format!("{word} {}", keys.join(" and "))
}
