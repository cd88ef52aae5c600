//! A canary that writes other rows is never promoted, and the key that differs is named.

use std::time::Duration;

use anyhow::{Result, ensure};
use penstock_worker::failpoint::Point;

use crate::stage::{ALL_SUMS, Load, Reader, Stage};

/// What is done to the canary's tables behind its back, and what must be said of it.
const WRONG: [(&str, &str); 10] = [
    ("DELETE FROM accounts WHERE id = 7", "id=7: missing in the canary"),
    ("INSERT INTO accounts VALUES (1000, 0, 0, NULL)", "id=1000: extra in the canary"),
    ("UPDATE accounts SET note = note || ' ' WHERE id = 8", "id=8: differs in note"),
    ("UPDATE accounts SET note = NULL WHERE id = 9", "id=9: differs in note"),
    (
        "UPDATE accounts SET note = overlay(note placing 'X' from 3 for 1) WHERE id = 10",
        "id=10: differs in note",
    ),
    (
        "UPDATE accounts SET units = version, version = units WHERE id = 11",
        "id=11: differs in units, version",
    ),
    (
        "UPDATE accounts SET units = units + 1 WHERE id = 12; UPDATE accounts SET units = units - 1 WHERE id = 13",
        "id=12: differs in units",
    ),
    ("UPDATE accounts SET id = 2000 WHERE id = 14", "id=14: missing in the canary"),
    ("INSERT INTO journal SELECT * FROM journal LIMIT 1", "extra in the canary"),
    ("DELETE FROM journal WHERE ctid = (SELECT min(ctid) FROM journal)", "missing in the canary"),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_canary_is_not_promoted_and_its_key_is_named() -> Result<()> {
    let stage = Stage::new().await?;
    let rig = &stage.rig;
    rig.on_source("UPDATE accounts SET note = 'note of ' || id; INSERT INTO journal SELECT -1, 1, 2; UPDATE accounts SET version = version + 1 WHERE id <= 2").await?;
    stage.assert_both_equal().await?;
    for (wrong, named) in WRONG {
        rig.on_sink(&format!("SET search_path = {}; BEGIN; CREATE TABLE kept AS SELECT * FROM accounts; CREATE TABLE kept_lines AS SELECT * FROM journal; {wrong}; COMMIT", stage.shadow)).await?;
        let (code, said) = stage.command(&["promote"])?;
        ensure!(code != 0 && said.contains(named), "{wrong}: {code}: {said}");
        let (code, said) = stage.command(&["compare", "--stable"])?;
        ensure!(code == 1 && said.contains(named), "{wrong}: {code}: {said}");
        rig.on_sink(&format!(
            "SET search_path = {}; BEGIN; TRUNCATE accounts, journal; INSERT INTO accounts SELECT * FROM kept; \
             INSERT INTO journal SELECT * FROM kept_lines; DROP TABLE kept, kept_lines; COMMIT",
            stage.shadow
        ))
        .await?;
    }
    let (code, said) = stage.command(&["compare", "--stable"])?;
    ensure!(code == 0 && said.contains("equal to the stable revision"), "{code}: {said}");
    Ok(())
}

/// The wrong row comes between the comparison and the exchange, and is none of those that somebody looked at before.
#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_between_the_comparison_and_the_exchange_is_found_at_the_hold() -> Result<()> {
    let stage = Stage::new().await?;
    let rig = &stage.rig;
    let load = Load::start(rig).await?;
    let reader = Reader::start(rig, ALL_SUMS).await?;
    // Whoever is not seen to do it does it from now on only.
    rig.on_sink(&format!(
        "SET search_path = {0}; CREATE FUNCTION round_it() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN IF NEW.note = 'odd' THEN NEW.note = 'even'; END IF; RETURN NEW; END $$; \
         CREATE TRIGGER round_it BEFORE UPDATE ON {0}.accounts FOR EACH ROW EXECUTE FUNCTION {0}.round_it()",
        stage.shadow
    ))
    .await?;
    let go_on = rig.state_dir(7).with_extension("go-on");
    let pause = format!("{:?}=1*return(pause:{})", Point::BeforeHold, go_on.display());
    let coordinator = rig.spawn_with_failpoints(&["promote", "--hold", "120"], &pause)?;
    rig.wait_for_at_source("SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE '%compare%'", "1")
        .await?;
    rig.wait_for("SELECT count(*) > 0 FROM penstock.barrier", "t").await?;
    rig.wait_for("SELECT count(*) FROM penstock.barrier", "0").await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    rig.on_source("UPDATE accounts SET note = 'odd' WHERE id = 77").await?;
    std::fs::write(&go_on, "")?;
    let output = tokio::task::block_in_place(|| coordinator.wait_with_output())?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    ensure!(!output.status.success() && said.contains("id=77: differs in note"), "{said}");
    ensure!(!stage.stable_key().await?.contains('/'), "it was promoted");
    load.stop().await?;
    reader.stop().await?;
    Ok(())
}
