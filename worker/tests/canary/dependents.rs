//! What hangs on the tables that readers know goes with their names, or is named before anything is done.

use anyhow::{Result, ensure};

use crate::stage::Stage;

/// Whatever depends on the stable tables, as a person sees it.
const GRANTS: &str = "SELECT string_agg(grantee || ' ' || privilege_type, ', ' ORDER BY 1) FROM information_schema.role_table_grants \
                      WHERE table_schema = 'public' AND table_name = 'accounts' AND grantee LIKE 'reader%'";
const COLUMN_GRANTS: &str = "SELECT string_agg(grantee || ' ' || column_name, ', ' ORDER BY 1) FROM information_schema.column_privileges \
                             WHERE table_schema = 'public' AND table_name = 'journal' AND grantee = 'clerk'";

#[tokio::test(flavor = "multi_thread")]
async fn views_owners_grants_and_comments_follow_the_name_both_ways() -> Result<()> {
    let stage = Stage::new().await?;
    stage
        .rig
        .on_sink(
            "CREATE ROLE reader; CREATE ROLE reader_too; CREATE ROLE clerk; CREATE ROLE owner_of_tables;
             GRANT SELECT ON accounts TO reader; GRANT SELECT, UPDATE ON accounts TO reader_too WITH GRANT OPTION;
             GRANT SELECT (step) ON journal TO clerk; GRANT CREATE ON SCHEMA public TO owner_of_tables;
             ALTER TABLE journal OWNER TO owner_of_tables;
             COMMENT ON TABLE accounts IS 'what there is'; COMMENT ON COLUMN accounts.units IS 'it''s in units';
             CREATE SCHEMA reports;
             CREATE VIEW reports.\"Rich ones\" WITH (security_barrier = true) AS SELECT id, units FROM accounts WHERE units > 0;
             CREATE VIEW reports.over_it AS SELECT count(*) AS n FROM reports.\"Rich ones\";
             GRANT SELECT ON reports.\"Rich ones\" TO reader",
        )
        .await?;
    let rig = &stage.rig;
    let of_both = "SELECT string_agg(d.description, '; ' ORDER BY d.objsubid) FROM pg_description d WHERE d.objoid = 'public.accounts'::regclass";
    let owner = "SELECT tableowner FROM pg_tables WHERE schemaname = 'public' AND tablename = 'journal'";
    let options =
        "SELECT array_to_string(reloptions, ',') FROM pg_class WHERE oid = 'reports.\"Rich ones\"'::regclass";
    let looks = [GRANTS, COLUMN_GRANTS, of_both, owner, options];
    let mut before = Vec::new();
    for look in looks {
        before.push(rig.sink_value(look).await?);
    }
    for direction in ["promote", "roll-back", "promote"] {
        stage.must(&[direction])?;
        for (look, expected) in looks.iter().zip(&before) {
            let found = rig.sink_value(look).await?;
            ensure!(found == *expected, "{direction}: {look}: {found}, before {expected}");
        }
        // The views are those of the tables that have the name now.
        rig.on_source("UPDATE accounts SET units = units + 1000 WHERE id = 1; UPDATE accounts SET units = units - 1000 WHERE id = 2").await?;
        stage.assert_both_equal().await?;
        let through = rig.sink_value("SELECT units FROM reports.\"Rich ones\" WHERE id = 1").await?;
        ensure!(
            through == rig.source_value("SELECT units FROM accounts WHERE id = 1").await?,
            "{direction}: {through}"
        );
        let depends_on_live = "SELECT count(*) FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid \
            WHERE r.ev_class = 'reports.\"Rich ones\"'::regclass AND d.refobjid = 'public.accounts'::regclass";
        ensure!(
            rig.sink_value(depends_on_live).await? != "0",
            "{direction}: the view is one of the other table"
        );
    }
    // A grant that was taken back while the other table had the name does not come back with it.
    rig.on_sink("REVOKE ALL ON accounts FROM reader_too CASCADE").await?;
    let revoked = rig.sink_value(GRANTS).await?;
    stage.must(&["roll-back"])?;
    let found = rig.sink_value(GRANTS).await?;
    ensure!(found == revoked, "{found}, revoked {revoked}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_follow_is_named_and_nothing_is_done() -> Result<()> {
    let stage = Stage::new().await?;
    let rig = &stage.rig;
    let shadow = &stage.shadow;
    for (make, remove, named) in [
        (
            "CREATE MATERIALIZED VIEW sums AS SELECT sum(units) FROM accounts",
            "DROP MATERIALIZED VIEW sums",
            "materialized view",
        ),
        (
            "CREATE FUNCTION kinds() RETURNS bigint LANGUAGE SQL BEGIN ATOMIC SELECT count(*) FROM accounts; END",
            "DROP FUNCTION kinds",
            "function",
        ),
        ("CREATE TABLE other (account int REFERENCES accounts)", "DROP TABLE other", "constraint"),
        ("CREATE TABLE whole (was accounts)", "DROP TABLE whole", "column was of table"),
        (
            "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$; CREATE TRIGGER t BEFORE INSERT ON accounts FOR EACH ROW EXECUTE FUNCTION f()",
            "DROP FUNCTION f CASCADE",
            "trigger",
        ),
        (
            "CREATE POLICY p ON accounts; ALTER TABLE accounts ENABLE ROW LEVEL SECURITY",
            "DROP POLICY p ON accounts; ALTER TABLE accounts DISABLE ROW LEVEL SECURITY",
            "row-level security",
        ),
        ("CREATE PUBLICATION onward FOR TABLE accounts", "DROP PUBLICATION onward", "publication"),
        ("CREATE STATISTICS more ON id, units FROM accounts", "DROP STATISTICS more", "statistics"),
        ("CREATE RULE r AS ON UPDATE TO accounts DO ALSO NOTHING", "DROP RULE r ON accounts", "rule"),
        ("CREATE TABLE child () INHERITS (accounts)", "DROP TABLE child", "child"),
        ("CREATE INDEX by_units ON accounts (units) WHERE units > 5", "DROP INDEX by_units", "no index like"),
        (
            "ALTER TABLE accounts ADD CONSTRAINT positive CHECK (id > 0)",
            "ALTER TABLE accounts DROP CONSTRAINT positive",
            "no constraint like",
        ),
    ] {
        rig.on_sink(make).await?;
        let (code, said) = stage.command(&["promote"])?;
        ensure!(
            code != 0 && said.contains("cannot be exchanged") && said.contains(named),
            "{make}: {code}, {said}"
        );
        ensure!(!stage.stable_key().await?.contains('/'), "{make}: promoted");
        rig.on_sink(remove).await?;
    }
    // What is told can be run, and then it follows.
    rig.on_sink("CREATE INDEX by_units ON accounts (units) WHERE units > 5; ALTER TABLE accounts ADD CONSTRAINT positive CHECK (id > 0)").await?;
    let (_, said) = stage.command(&["promote"])?;
    let statements: Vec<&str> = said
        .split("(run: ")
        .skip(1)
        .filter_map(|rest| rest.split("); ").next()?.split("). ").next())
        .collect();
    ensure!(
        statements.len() == 2 && statements.iter().all(|sql| sql.contains(shadow.as_str())),
        "{statements:?}: {said}"
    );
    for statement in statements {
        rig.on_sink(statement).await?;
    }
    stage.must(&["promote"]).map(drop)
}
