//! The Secrets that a manifest names: what is missing, said before a pod hangs on it.

use penstock_crds::connection::PostgresConnection;

use crate::world::{SecretKeys, World};

/// What must be made before workers can start, as one sentence; absent when everything is there.
pub(super) fn missing(world: &World) -> Option<String> {
    let spec = &world.pipeline.spec;
    let ends = [("source", &spec.source.postgres.connection), ("sink", &spec.sink.postgres.connection)];
    let mut sentences: Vec<String> = Vec::new();
    for (end, connection) in ends {
        for (field, secret, keys) in required(connection) {
            let path = format!("{end}.postgres.connection.{field}");
            sentences.extend(missing_in(world, &path, secret, keys));
        }
    }
    (!sentences.is_empty()).then(|| sentences.join(". "))
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
