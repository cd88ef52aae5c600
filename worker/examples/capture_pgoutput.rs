//! Writes the decoder's fixtures anew: what real servers send for a fixed history, one file per version.
//!
//! `cargo run -p penstock-worker --example capture_pgoutput`
//!
//! A file is a row of messages, each after its length (32 bits, big endian).

use std::fs;
use std::path::Path;

use anyhow::Result;
use penstock_e2e::postgres::{Client, Server, Version};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/pgoutput");

const SCHEMA: &str = "
CREATE SCHEMA shop;
CREATE TYPE shop.mood AS ENUM ('sad', 'merry');
CREATE DOMAIN shop.quantity AS integer CHECK (VALUE >= 0);
CREATE TABLE shop.item (
    id integer PRIMARY KEY, name text, big text, price numeric(10,2), mood shop.mood, quantity shop.quantity,
    tags text[], rights aclitem, doubled integer GENERATED ALWAYS AS (id * 2) STORED
);
ALTER TABLE shop.item ALTER big SET STORAGE EXTERNAL;
CREATE TABLE shop.pair (a integer, b text, c integer, PRIMARY KEY (a, b));
ALTER TABLE shop.pair ALTER b SET STORAGE EXTERNAL;
CREATE TABLE shop.whole (a integer, big text, c text);
ALTER TABLE shop.whole ALTER big SET STORAGE EXTERNAL;
ALTER TABLE shop.whole REPLICA IDENTITY FULL;
CREATE TABLE shop.indexed (a integer NOT NULL, b text NOT NULL, c integer);
CREATE UNIQUE INDEX indexed_b ON shop.indexed (b);
ALTER TABLE shop.indexed REPLICA IDENTITY USING INDEX indexed_b;
CREATE TABLE shop.mute (a integer);
ALTER TABLE shop.mute REPLICA IDENTITY NOTHING;
CREATE TABLE shop.parent (id integer PRIMARY KEY);
CREATE TABLE shop.child (id serial PRIMARY KEY, parent integer REFERENCES shop.parent);
";

/// One entry is one message to the server: statements of one entry are one transaction.
const HISTORY: &[&str] = &[
    // INSERT: everything set, everything NULL, empty text, several rows.
    "INSERT INTO shop.item VALUES (1, 'apple', repeat('0123456789', 300), 1.50, 'merry', 3, '{a,NULL,\"b c\"}',
         'postgres=r/postgres')",
    "INSERT INTO shop.item VALUES (2); INSERT INTO shop.item VALUES (3, '', '', 0, 'sad', 0, '{}', NULL)",
    // UPDATE: plain with unchanged TOAST, of the TOAST value, to NULL, of the key, of nothing.
    "UPDATE shop.item SET price = 2.25 WHERE id = 1",
    "UPDATE shop.item SET big = repeat('abcdefghij', 250) WHERE id = 1",
    "UPDATE shop.item SET name = NULL, mood = 'sad' WHERE id = 1",
    "UPDATE shop.item SET id = 11 WHERE id = 1",
    "UPDATE shop.item SET id = id WHERE id = 2",
    // A key of two columns, one of them out of line and unchanged.
    "INSERT INTO shop.pair VALUES (1, repeat('k', 2500), 1)",
    "UPDATE shop.pair SET c = 2",
    "UPDATE shop.pair SET a = 2",
    "DELETE FROM shop.pair",
    // FULL, INDEX, NOTHING.
    "INSERT INTO shop.whole VALUES (1, repeat('full', 1000), 'x'), (1, repeat('full', 1000), 'x'), (NULL, NULL, NULL)",
    "UPDATE shop.whole SET c = 'y' WHERE a = 1",
    "DELETE FROM shop.whole WHERE a IS NULL OR c = 'y'",
    "INSERT INTO shop.indexed VALUES (1, 'one', 1); UPDATE shop.indexed SET c = 2; UPDATE shop.indexed SET b = 'uno';
     DELETE FROM shop.indexed",
    "INSERT INTO shop.mute VALUES (1)",
    // Savepoints and rollbacks leave no trace.
    "BEGIN; INSERT INTO shop.parent VALUES (1); SAVEPOINT s; INSERT INTO shop.parent VALUES (99);
     ROLLBACK TO SAVEPOINT s; INSERT INTO shop.child (parent) VALUES (1); COMMIT",
    "BEGIN; INSERT INTO shop.parent VALUES (98); ROLLBACK",
    // TRUNCATE: one, several, cascade, restart identity.
    "TRUNCATE shop.indexed",
    "TRUNCATE shop.mute, shop.whole RESTART IDENTITY",
    "TRUNCATE shop.parent CASCADE",
    "TRUNCATE shop.parent, shop.child RESTART IDENTITY CASCADE",
    // Messages.
    "BEGIN; SELECT pg_logical_emit_message(true, 'penstock', 'within'); INSERT INTO shop.mute VALUES (2);
     SELECT pg_logical_emit_message(true, 'other', ''); COMMIT",
    "SELECT pg_logical_emit_message(false, 'penstock', 'beside')",
    "SELECT pg_logical_emit_message(true, 'penstock', '\\x00ff'::bytea)",
    // The table becomes another between two changes, and within a transaction.
    "ALTER TABLE shop.indexed ADD d text DEFAULT 'new', DROP c",
    "INSERT INTO shop.indexed VALUES (1, 'after', 'd')",
    "BEGIN; INSERT INTO shop.mute VALUES (3); ALTER TABLE shop.mute ADD b varchar(7);
     INSERT INTO shop.mute VALUES (4, 'b'); COMMIT",
    // A transaction that came by replication.
    "SELECT pg_replication_origin_create('upstream'); SELECT pg_replication_origin_session_setup('upstream')",
    "BEGIN; SELECT pg_replication_origin_xact_setup('0/1234', '2024-05-06 07:08:09+00');
     INSERT INTO shop.mute VALUES (5); COMMIT",
    "SELECT pg_replication_origin_session_reset()",
    // DELETE by key.
    "DELETE FROM shop.item WHERE id = 11",
];

#[tokio::main]
async fn main() -> Result<()> {
    fs::create_dir_all(FOLDER)?;
    for version in Version::ALL {
        let server = Server::start(version).await?;
        let client = server.connect("postgres").await?;
        let messages = capture(&client).await?;
        let path = Path::new(FOLDER).join(format!("pg{version}.bin"));
        let mut file = Vec::new();
        for message in &messages {
            file.extend(u32::try_from(message.len())?.to_be_bytes());
            file.extend(message);
        }
        fs::write(&path, file)?;
        println!("{}: {} messages", path.display(), messages.len());
    }
    Ok(())
}

async fn capture(client: &Client) -> Result<Vec<Vec<u8>>> {
    client.run(SCHEMA).await?;
    client.run("CREATE PUBLICATION everything FOR ALL TABLES").await?;
    client.run("SELECT pg_create_logical_replication_slot('capture', 'pgoutput')").await?;
    for statements in HISTORY {
        client.run(statements).await?;
    }
    let rows = client
        .query(
            "SELECT data FROM pg_logical_slot_peek_binary_changes('capture', NULL, NULL, 'proto_version', '1',
                 'publication_names', 'everything', 'binary', 'true', 'messages', 'true')",
            &[],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
