//! Both databases by TLS inside the cluster, with a CA of one's own.

use anyhow::Result;
use penstock_e2e::kubernetes::{Certificate, Cluster, Database, Pipeline, apply};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::json;

use crate::stage::{MINUTE, Stage};

struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut parameters = CertificateParams::new(Vec::new())?;
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = parameters.self_signed(&key)?.pem();
        Ok(Self { certificate, issuer: Issuer::new(parameters, key) })
    }

    fn sign(&self, host: &str) -> Result<Certificate> {
        let key = KeyPair::generate()?;
        let signed = CertificateParams::new(vec![host.to_owned()])?.signed_by(&key, &self.issuer)?;
        Ok(Certificate { certificate: signed.pem(), key: key.serialize_pem() })
    }
}

/// A stage whose databases have certificates for their names.
async fn encrypted(authority: &Authority) -> Result<Stage> {
    let cluster = Cluster::connect().await?;
    let namespace = cluster.namespace("tls").await?;
    let (source, sink) = (authority.sign("source")?, authority.sign("sink")?);
    let (source, sink) = tokio::try_join!(
        Database::start_with_tls(&cluster, &namespace, "source", &["-c", "wal_level=logical"], &source),
        Database::start_with_tls(&cluster, &namespace, "sink", &[], &sink),
    )?;
    Stage { cluster, namespace, source, sink }.filled().await
}

/// Connections of the worker, and whether all of them are encrypted.
const CONNECTIONS: &str = "SELECT (count(*) > 0) || ' ' || coalesce(bool_and(s.ssl), false)
    FROM pg_stat_ssl AS s JOIN pg_stat_activity AS a USING (pid) WHERE a.application_name LIKE 'penstock%'";

#[tokio::test]
async fn both_ends_are_verified_in_full_and_a_certificate_of_another_ca_is_refused() -> Result<()> {
    let (ours, another) = (Authority::new()?, Authority::new()?);
    let stage = encrypted(&ours).await?;
    for (name, authority) in [("ours", &ours), ("another", &another)] {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": stage.namespace},
            "stringData": {"ca.crt": authority.certificate},
        });
        apply(&stage.cluster, secret).await?;
    }
    let mut manifest = stage.manifest(&["public.notes"]);
    manifest["spec"]["source"]["postgres"]["connection"]["tls"] =
        json!({"mode": "verify-full", "caSecret": "ours"});
    manifest["spec"]["sink"]["postgres"]["connection"]["tls"] =
        json!({"mode": "verify-full", "caSecret": "another"});
    let pipeline = Pipeline::apply(&stage.cluster, manifest).await?;
    let message = pipeline.wait_for("Stalled", "True", Some("SinkTlsFailed"), 2 * MINUTE).await?;
    assert!(message.contains("caSecret"), "{message}");

    pipeline
        .patch(json!({"spec": {"sink": {"postgres": {"connection": {"tls": {"caSecret": "ours"}}}}}}))
        .await?;
    pipeline.wait_until_ready().await?;
    stage.source.execute("INSERT INTO notes VALUES (501, 'encrypted')").await?;
    stage.ensure_equal(&["public.notes"]).await?;
    assert_eq!(stage.source.text(CONNECTIONS).await?, "true true");
    assert_eq!(stage.sink.text(CONNECTIONS).await?, "true true");
    stage.end().await
}
