//! A table beside the ledger that is copied again, gets columns and is emptied while everything fails. Its rows say
//! nothing by themselves: they must be the source's at the end of each round.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::JoinHandle;

use crate::common::Rig;

/// Two ranges of what is copied at a time, and values that are stored outside of their rows.
const ROWS: u32 = 5_000;
/// After it was emptied.
const ROWS_ANEW: u32 = 2_500;
/// What the other key of a row is above its first one.
const OTHER_KEY: u32 = 1_000_000;
/// A command that meets a sink that is still starting is given again.
const ATTEMPTS: u32 = 20;

/// The table, and its first rows.
pub(crate) fn schema() -> String {
    format!(
        "CREATE TABLE stock (id int PRIMARY KEY, amount bigint NOT NULL, body text);
         ALTER TABLE stock ALTER body SET STORAGE EXTERNAL;
         {};",
        rows(ROWS)
    )
}

fn rows(count: u32) -> String {
    format!("INSERT INTO stock SELECT g, g, repeat(md5(g::text), 80) FROM generate_series(1, {count}) g")
}

/// A writer on the source.
pub(crate) struct StockKeeper {
    stop: Arc<AtomicBool>,
    writer: JoinHandle<()>,
}

impl StockKeeper {
    pub(crate) fn start(rig: &Arc<Rig>, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let writer = tokio::spawn(write(rig.clone(), StdRng::seed_from_u64(seed), stop.clone()));
        Self { stop, writer }
    }

    pub(crate) async fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        Ok(self.writer.await?)
    }
}

/// Writes until stopped; goes on by itself when the source was away.
async fn write(rig: Arc<Rig>, mut random: StdRng, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        if let Ok(client) = rig.source.connect(&rig.database).await {
            while !stop.load(Ordering::Relaxed) && !client.is_closed() {
                if client.run(&transaction(&mut random)).await.is_err() {
                    drop(client.run("ROLLBACK").await);
                }
                tokio::time::sleep(Duration::from_millis(random.random_range(2..20))).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn transaction(random: &mut StdRng) -> String {
    let id = random.random_range(1..=ROWS);
    let row = format!("WHERE id IN ({id}, {id} + {OTHER_KEY})");
    match random.random_range(0..2_000) {
        0 => format!("BEGIN; TRUNCATE stock; {}; COMMIT", rows(ROWS_ANEW)),
        1..200 => format!("UPDATE stock SET id = {id} * 2 + {OTHER_KEY} - id {row}"),
        200..400 => format!("DELETE FROM stock {row}"),
        400..600 => {
            format!(
                "INSERT INTO stock VALUES ({id}, 0, repeat(md5(random()::text), 80)) ON CONFLICT DO NOTHING"
            )
        }
        600..800 => format!("UPDATE stock SET body = repeat(md5(random()::text), 80) {row}"),
        _ => format!("UPDATE stock SET amount = amount + 1 WHERE id BETWEEN {id} AND {id} + 9"),
    }
}

/// A column more, in a transaction that writes before and after it: without a default, or with one that the rows that are
/// there get without a word in the stream.
pub(crate) async fn add_column(rig: &Rig, number: u32) -> Result<()> {
    let default = if number.is_multiple_of(2) { format!("DEFAULT {number}") } else { String::new() };
    rig.on_source(&format!(
        "BEGIN; LOCK TABLE stock; UPDATE stock SET amount = amount + 1 WHERE id % 1000 = 1;
         ALTER TABLE stock ADD COLUMN c{number} int {default};
         UPDATE stock SET c{number} = -amount WHERE id % 1000 = 7; COMMIT"
    ))
    .await
}

/// Asks for a copy of the table from its beginning.
pub(crate) async fn copy_again(rig: &Rig) -> Result<()> {
    let mut said = String::new();
    for _ in 0..ATTEMPTS {
        let output = tokio::task::block_in_place(|| rig.command(&["resnapshot", "public.stock"]))?;
        if output.status.success() {
            return Ok(());
        }
        said = String::from_utf8_lossy(&output.stderr).into_owned();
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    ensure!(said.is_empty(), "no copy of the stock could be asked for: {said}");
    Ok(())
}
