//! A canary that does something else to rows on their way is compared but for what it is meant to change.

use anyhow::{Result, ensure};
use penstock_e2e::postgres::Version;
use serde_json::json;

use crate::common::Rig;
use crate::stage::{Load, SCHEMA, STREAMING, start_canary};

#[tokio::test(flavor = "multi_thread")]
async fn a_mask_is_rolled_out_beside_the_tables_without_it() -> Result<()> {
    let mut rig = Rig::new(Version::V15, &["public.accounts", "public.journal"]).await?;
    rig.on_source(SCHEMA).await?;
    rig.on_source("UPDATE accounts SET note = 'secret of ' || id").await?;
    let stable = rig.start(0)?;
    stable.wait_for_output(STREAMING).await?;
    rig.manifest["spec"]["transforms"] = json!([{
        "tables": ["public.accounts"], "maskColumns": [{"columns": ["note"], "redact": {}}],
    }]);
    let canary = start_canary(&rig)?;
    canary.wait_for_output(STREAMING).await?;
    let load = Load::start(&rig).await?;
    let run = |arguments: &[&str]| {
        let output = tokio::task::block_in_place(|| rig.command(arguments))?;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        anyhow::Ok((output.status.code(), said))
    };
    let (code, said) = run(&["promote", "--hold", "120"])?;
    ensure!(code == Some(1) && said.contains("differs in note"), "{code:?}: {said}");
    let (code, said) = run(&["promote", "--hold", "120", "--leave-out", "note"])?;
    ensure!(code == Some(0), "{code:?}: {said}");
    load.stop().await?;
    rig.wait_until_caught_up().await?;
    let masked = rig.sink_value("SELECT count(*) FROM accounts WHERE note = '***'").await?;
    ensure!(masked == "100", "{masked} rows are masked");
    let units = "SELECT string_agg(id || '=' || units, ',' ORDER BY id) FROM accounts";
    ensure!(rig.sink_value(units).await? == rig.source_value(units).await?, "units differ");
    Ok(())
}
