//! Tables of which the stream left changes out, or that are others than they were: never taken for whole, always
//! copied again. The tables are made, dropped, renamed and unpublished by hand while the worker runs, and while not.

mod common;

use anyhow::{Context as _, Result, ensure};
use common::{Rig, Worker};
use penstock_e2e::postgres::Version;
use serde_json::json;

const STREAMING: &str = "\"message\":\"streaming\"";
const A_AND_B: &str = "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY);
    INSERT INTO a VALUES (1); INSERT INTO b VALUES (1)";

async fn rig(tables: &[&str]) -> Result<Rig> {
    let rig = Rig::new(Version::V15, tables).await?;
    rig.on_source(A_AND_B).await?;
    Ok(rig)
}

async fn streaming(rig: &Rig) -> Result<Worker> {
    let worker = rig.start(0)?;
    worker.wait_for_output(STREAMING).await?;
    Ok(worker)
}

async fn alter_publication(rig: &Rig, what: &str) -> Result<()> {
    let name = rig.source_value("SELECT pubname FROM pg_publication").await?;
    rig.on_source(&format!("ALTER PUBLICATION {name} {what}")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_taken_out_of_the_publication_under_the_stream_is_copied_again() -> Result<()> {
    let rig = rig(&["public.a", "public.b"]).await?;
    let _worker = streaming(&rig).await?;
    alter_publication(&rig, "DROP TABLE b").await?;
    rig.on_source("INSERT INTO b VALUES (2); DELETE FROM b WHERE id = 1; INSERT INTO a VALUES (2)").await?;
    rig.wait_for("SELECT string_agg(id::text, ' ' ORDER BY id) FROM b", "2").await?;
    rig.wait_until_caught_up().await?;
    rig.assert_equal(&["a", "b"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_taken_out_and_put_back_while_no_worker_ran_is_copied_again() -> Result<()> {
    let rig = rig(&["public.a", "public.b"]).await?;
    let mut worker = streaming(&rig).await?;
    worker.terminate()?;
    alter_publication(&rig, "DROP TABLE b").await?;
    rig.on_source("INSERT INTO b VALUES (2); DELETE FROM b WHERE id = 1").await?;
    alter_publication(&rig, "ADD TABLE ONLY b").await?;
    let _again = rig.start(0)?;
    rig.wait_for("SELECT string_agg(id::text, ' ' ORDER BY id) FROM b", "2").await?;
    rig.assert_equal(&["a", "b"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_given_publication_that_lost_a_table_for_a_while_is_not_trusted_again() -> Result<()> {
    let mut rig = rig(&["public.a", "public.b"]).await?;
    rig.on_source("CREATE PUBLICATION given FOR TABLE a, b").await?;
    rig.manifest["spec"]["source"]["postgres"]["publication"] = json!("given");
    let worker = streaming(&rig).await?;
    alter_publication(&rig, "DROP TABLE b").await?;
    rig.on_source("INSERT INTO b VALUES (2); DELETE FROM b WHERE id = 1").await?;
    worker.wait_for_output("\"reason\":\"PublicationUnsuitable\"").await?;
    alter_publication(&rig, "ADD TABLE b").await?;
    rig.wait_for("SELECT string_agg(id::text, ' ' ORDER BY id) FROM b", "2").await?;
    rig.assert_equal(&["a", "b"]).await
}

/// What takes a table out of the publication of its schema, and what puts it back.
const OUT_AND_BACK: [(&str, &str); 2] = [
    (
        "ALTER PUBLICATION given DROP TABLES IN SCHEMA public",
        "ALTER PUBLICATION given ADD TABLES IN SCHEMA public",
    ),
    ("ALTER TABLE b SET SCHEMA elsewhere", "ALTER TABLE elsewhere.b SET SCHEMA public"),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_out_of_its_schemas_publication_while_no_worker_ran_is_copied_again() -> Result<()> {
    for (out, back) in OUT_AND_BACK {
        let mut rig = rig(&["public.a", "public.b"]).await?;
        rig.on_source("CREATE SCHEMA elsewhere; CREATE PUBLICATION given FOR TABLES IN SCHEMA public")
            .await?;
        rig.manifest["spec"]["source"]["postgres"]["publication"] = json!("given");
        let mut worker = streaming(&rig).await?;
        worker.terminate()?;
        rig.on_source(out).await?;
        let path = "SET search_path = public, elsewhere";
        rig.on_source(&format!("{path}; INSERT INTO b VALUES (2); DELETE FROM b WHERE id = 1")).await?;
        rig.on_source(back).await?;
        // What leaves the table where it is causes no copy.
        rig.on_source("GRANT SELECT ON a TO PUBLIC; ALTER TABLE a SET (fillfactor = 90)").await?;
        rig.on_sink("INSERT INTO a VALUES (77)").await?;
        let _again = rig.start(0)?;
        rig.wait_for("SELECT string_agg(id::text, ' ' ORDER BY id) FROM b", "2").await.context(out)?;
        rig.wait_until_caught_up().await?;
        if out.contains("SET SCHEMA") {
            ensure!(rig.sink_value("SELECT count(*) FROM a").await? == "2", "{out}: copied for nothing");
        } else {
            rig.assert_equal(&["a", "b"]).await?;
        }
    }
    Ok(())
}

/// How `b` is away for a while, and what is written to it meanwhile; at last with a namesake in its place.
const AWAY: [(&str, &[&str]); 3] = [
    (
        "",
        &[
            "ALTER TABLE b RENAME TO c",
            "INSERT INTO c VALUES (2)",
            "DELETE FROM c WHERE id = 1",
            "ALTER TABLE c RENAME TO b",
        ],
    ),
    (
        "",
        &[
            "ALTER TABLE b SET SCHEMA elsewhere",
            "INSERT INTO elsewhere.b VALUES (2)",
            "DELETE FROM elsewhere.b WHERE id = 1",
            "ALTER TABLE elsewhere.b SET SCHEMA public",
        ],
    ),
    (
        "FOR ALL TABLES",
        &[
            "ALTER TABLE b RENAME TO c",
            "CREATE TABLE b (id int PRIMARY KEY)",
            "INSERT INTO b VALUES (7)",
            "INSERT INTO c VALUES (2)",
            "DELETE FROM c WHERE id = 1",
            "DROP TABLE b",
            "ALTER TABLE c RENAME TO b",
        ],
    ),
];

/// The stream brings what was written under the other name, and it is the same table.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_had_another_name_while_no_worker_ran_goes_on_without_a_copy() -> Result<()> {
    for (selection, away) in AWAY {
        let mut rig = rig(&["public.a", "public.b"]).await?;
        rig.on_source("CREATE SCHEMA elsewhere").await?;
        if !selection.is_empty() {
            rig.on_source(&format!("CREATE PUBLICATION given {selection}")).await?;
            rig.manifest["spec"]["source"]["postgres"]["publication"] = json!("given");
        }
        let mut worker = streaming(&rig).await?;
        worker.terminate()?;
        for statement in away {
            rig.on_source(statement).await?;
        }
        rig.on_sink("INSERT INTO b VALUES (77)").await?;
        let _again = rig.start(0)?;
        rig.on_source("INSERT INTO b VALUES (3); INSERT INTO a VALUES (2)").await?;
        let rows = "SELECT string_agg(id::text, ' ' ORDER BY id) FROM b";
        rig.wait_for(rows, "2 3 77").await.with_context(|| away.join("; "))?;
        rig.wait_until_caught_up().await?;
        rig.assert_equal(&["a"]).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_copies_nothing_again_by_whichever_entry_a_table_is_published() -> Result<()> {
    for version in [Version::V14, Version::V18] {
        let all = ["FOR ALL TABLES", "FOR TABLE a, b", "FOR TABLES IN SCHEMA public"];
        for selection in all.iter().filter(|of| version != Version::V14 || !of.contains("SCHEMA")) {
            let mut rig = Rig::new(version, &["public.a", "public.b"]).await?;
            rig.on_source(A_AND_B).await?;
            rig.on_source(&format!("CREATE PUBLICATION given {selection}")).await?;
            rig.manifest["spec"]["source"]["postgres"]["publication"] = json!("given");
            let mut worker = streaming(&rig).await?;
            worker.terminate()?;
            rig.on_sink("INSERT INTO b VALUES (77)").await?;
            rig.on_source("INSERT INTO b VALUES (2)").await?;
            let mut worker = rig.start(0)?;
            rig.wait_for("SELECT string_agg(id::text, ' ' ORDER BY id) FROM b", "1 2 77").await?;
            // As an older worker noted it.
            worker.terminate()?;
            rig.on_sink("UPDATE penstock.assignment SET published_as = 0").await?;
            rig.on_source("INSERT INTO b VALUES (3)").await?;
            let _worker = rig.start(0)?;
            rig.wait_for("SELECT string_agg(id::text, ' ' ORDER BY id) FROM b", "1 2 3 77").await?;
            let noted = "SELECT count(*) FROM penstock.assignment WHERE published_as <> 0";
            rig.wait_for(noted, "2").await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_made_anew_under_the_stream_is_copied_again_without_a_change_of_it() -> Result<()> {
    let rig = rig(&["public.*"]).await?;
    let _worker = streaming(&rig).await?;
    rig.wait_until_caught_up().await?;
    rig.on_source(
        "BEGIN; ALTER TABLE b RENAME TO old_b; CREATE TABLE b (id int PRIMARY KEY); INSERT INTO b VALUES (7); \
         DROP TABLE old_b; COMMIT",
    )
    .await?;
    rig.wait_for("SELECT string_agg(id::text, ' ' ORDER BY id) FROM b", "7").await?;
    rig.assert_equal(&["a", "b"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_table_is_taken_while_the_stream_runs_and_an_unsuitable_one_does_not_stop_it() -> Result<()> {
    let rig = rig(&["public.*"]).await?;
    let worker = streaming(&rig).await?;
    rig.on_source("CREATE TABLE c (id int PRIMARY KEY); INSERT INTO c VALUES (1)").await?;
    rig.wait_for("SELECT count(*) FROM c", "1").await?;
    rig.on_source("CREATE TABLE nameless (id int); INSERT INTO nameless VALUES (1)").await?;
    worker.wait_for_output("NewTableUnsuitable").await?;
    ensure!(worker.output()?.contains("public.nameless"), "the table is not named");
    rig.on_source("INSERT INTO c VALUES (2)").await?;
    rig.wait_for("SELECT count(*) FROM c", "2").await?;
    rig.on_source("ALTER TABLE nameless ADD PRIMARY KEY (id)").await?;
    rig.wait_for("SELECT count(*) FROM nameless", "1").await?;
    rig.assert_equal(&["a", "b", "c", "nameless"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn other_shards_take_new_tables_and_copy_lost_ones_again_without_a_restart_by_hand() -> Result<()> {
    let mut rig = rig(&["public.*"]).await?;
    rig.manifest["spec"]["worker"] = json!({"shards": 2});
    let _workers = [rig.start(0)?, rig.start(1)?];
    rig.wait_for("SELECT count(*) FROM penstock.table_state WHERE state = 'ready'", "2").await?;
    // Enough of them that each shard gets some.
    for table in 0..6 {
        rig.on_source(&format!(
            "CREATE TABLE t{table} (id int PRIMARY KEY); INSERT INTO t{table} VALUES (1)"
        ))
        .await?;
    }
    rig.wait_for("SELECT count(*) FROM penstock.table_state WHERE state = 'ready'", "8").await?;
    let of_shard_1 = "SELECT min(source_table) FROM penstock.assignment WHERE shard = 1";
    let lost = rig.sink_value(of_shard_1).await?;
    alter_publication(&rig, &format!("DROP TABLE {lost}")).await?;
    rig.on_source(&format!("INSERT INTO {lost} VALUES (2)")).await?;
    rig.wait_for(&format!("SELECT count(*) FROM {lost}"), "2").await?;
    rig.wait_until_caught_up().await?;
    rig.assert_equal(&["a", "b", "t0", "t1", "t2", "t3", "t4", "t5"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_were_never_copied_are_not_taken_for_whole_after_changes_were_left_out() -> Result<()> {
    let mut rig = rig(&["public.a", "public.b"]).await?;
    rig.on_sink(A_AND_B).await?;
    rig.manifest["spec"]["source"]["postgres"]["snapshot"] = json!({"mode": "Never"});
    let mut worker = streaming(&rig).await?;
    worker.kill()?;
    alter_publication(&rig, "DROP TABLE b").await?;
    rig.on_source("INSERT INTO b VALUES (2)").await?;
    let again = rig.start(0)?;
    again.wait_for_output("\"reason\":\"SinkDiverged\"").await?;
    ensure!(again.output()?.contains("public.b"), "the table is not named");
    ensure!(
        rig.sink_value("SELECT state FROM penstock.table_state WHERE source_table = 'b'").await? == "stale"
    );
    ensure!(rig.sink_value("SELECT count(*) FROM b").await? == "1", "rows that are the user's were touched");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_whose_new_values_nobody_knows_are_copied_again_as_advised_or_when_the_sink_table_is_dropped()
-> Result<()> {
    for is_dropped in [false, true] {
        let rig = rig(&["public.a"]).await?;
        let worker = streaming(&rig).await?;
        rig.on_source("ALTER TABLE a ADD COLUMN chance float DEFAULT random(); INSERT INTO a VALUES (2)")
            .await?;
        worker.wait_for_output("penstock-worker resnapshot public.a").await?;
        if is_dropped {
            rig.on_sink("DROP TABLE a").await?;
        } else {
            ensure!(rig.command(&["resnapshot", "public.a"])?.status.success());
            worker.wait_for_output("ADD COLUMN \\\"chance\\\" double precision").await?;
            rig.on_sink("ALTER TABLE a ADD COLUMN chance double precision").await?;
        }
        rig.wait_for("SELECT count(chance) FROM a", "2").await?;
        rig.assert_equal(&["a"]).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_table_is_told_and_its_rows_stay_in_the_sink() -> Result<()> {
    let mut rig = rig(&["public.a", "public.b"]).await?;
    let mut worker = streaming(&rig).await?;
    rig.on_source("DROP TABLE b; INSERT INTO a VALUES (2)").await?;
    worker.wait_for_output("No table of the source matches public.b").await?;
    ensure!(rig.sink_value("SELECT count(*) FROM b").await? == "1", "rows that the source dropped are gone");
    worker.terminate()?;
    rig.manifest["spec"]["source"]["postgres"]["tables"] = json!(["public.a"]);
    let _worker = streaming(&rig).await?;
    rig.on_source("INSERT INTO a VALUES (3)").await?;
    rig.wait_for("SELECT count(*) FROM a", "3").await?;
    ensure!(rig.sink_value("SELECT count(*) FROM b").await? == "1");
    ensure!(
        rig.sink_value("SELECT count(*) FROM penstock.table_state").await? == "1",
        "it is still followed"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_table_that_a_wildcard_named_stops_nothing() -> Result<()> {
    let rig = rig(&["public.*"]).await?;
    let worker = streaming(&rig).await?;
    rig.on_source("INSERT INTO b VALUES (2)").await?;
    rig.wait_for("SELECT count(*) FROM b", "2").await?;
    rig.on_source("DROP TABLE b").await?;
    worker.wait_for_output("the tables are looked at again").await?;
    rig.on_source("INSERT INTO a VALUES (2)").await?;
    rig.wait_for("SELECT count(*) FROM a", "2").await?;
    rig.wait_for("SELECT count(*) FROM penstock.table_state", "1").await?;
    ensure!(rig.sink_value("SELECT count(*) FROM b").await? == "2", "what was written before is not there");
    ensure!(!worker.output()?.contains("TableMissing"), "a person was asked");
    Ok(())
}
