//! The transactions of the load, each as one message of SQL. They choose their rows in the server, so that they
//! need to know nothing of what other writers did.

use rand::RngExt;
use rand::rngs::StdRng;

/// One transaction.
#[derive(Debug)]
pub(super) struct Transaction {
    /// `BEGIN` to `COMMIT` or `ROLLBACK`.
    pub(super) sql: String,
    /// Ends with `COMMIT`.
    pub(super) commits: bool,
}

/// A random product, order, customer: the first at or after a random point of the key.
const PRODUCT: &str = "(SELECT sku FROM shop.products WHERE sku >= 'SKU-' || lpad((random() * \
    (SELECT count(*) FROM shop.products))::int::text, 7, '0') ORDER BY sku LIMIT 1)";
const ORDER: &str = "(SELECT id FROM shop.orders WHERE id >= (random() * (SELECT max(id) FROM shop.orders))::bigint \
    ORDER BY id LIMIT 1)";
const CUSTOMER: &str = "(SELECT id FROM shop.customers WHERE id >= (random() * (SELECT max(id) FROM \
    shop.customers))::bigint ORDER BY id LIMIT 1)";

/// Makes the statements between `BEGIN` and the end.
type MakeBody = fn(&mut StdRng) -> String;

/// What a transaction does, and how often of 100.
const KINDS: [(u32, MakeBody); 13] = [
    (25, place_order),
    (14, advance_order),
    (12, change_price),
    (8, rewrite_description),
    (6, rename_product),
    (6, move_order_line),
    (6, cancel_order),
    (6, greet_customer),
    (4, write_one_row_often),
    (4, replace_product),
    (4, change_many),
    (3, undo_a_savepoint),
    (2, add_and_remove),
];
/// Of 100 transactions, this many are rolled back.
const ROLLED_BACK_PERCENT: u32 = 5;

impl Transaction {
    pub(super) fn random(random: &mut StdRng) -> Self {
        let total: u32 = KINDS.iter().map(|(weight, _)| weight).sum();
        let mut ticket = random.random_range(0..total);
        let mut body = String::new();
        for (weight, make) in KINDS {
            if ticket < weight {
                body = make(random);
                break;
            }
            ticket -= weight;
        }
        let commits = random.random_range(0..100) >= ROLLED_BACK_PERCENT;
        let end = if commits { "COMMIT" } else { "ROLLBACK" };
        Self { sql: format!("BEGIN; {body}; {end}"), commits }
    }
}

fn place_order(random: &mut StdRng) -> String {
    let lines = random.random_range(1..=6);
    format!(
        "WITH placed AS (INSERT INTO shop.orders (customer_id, tags) VALUES ({CUSTOMER}, ARRAY['web']) RETURNING id), \
         items AS (INSERT INTO shop.order_items SELECT id, line, {PRODUCT}, 1 + line % 3, line * 1.25 \
             FROM placed, generate_series(1, {lines}) AS line RETURNING sku, quantity) \
         UPDATE shop.products SET stock = stock - quantity FROM items WHERE products.sku = items.sku; \
         UPDATE shop.orders SET total = {lines} * 3.75 WHERE id = (SELECT max(id) FROM shop.orders)"
    )
}

fn advance_order(_: &mut StdRng) -> String {
    format!(
        "UPDATE shop.orders SET status = CASE status WHEN 'new' THEN 'paid' WHEN 'paid' THEN 'sent' \
         WHEN 'sent' THEN 'delivered' ELSE 'returned' END::shop.order_status, \
         delivery_time = clock_timestamp() - placed_at WHERE id = {ORDER}"
    )
}

/// Leaves description and image as they are: `Unchanged` in the stream.
fn change_price(random: &mut StdRng) -> String {
    let price = f64::from(random.random_range(1..100_000)) / 100.0;
    format!("UPDATE shop.products SET price = {price} WHERE sku = {PRODUCT}")
}

fn rewrite_description(random: &mut StdRng) -> String {
    let (seed, repeats) = (random.random::<u32>(), random.random_range(0..600));
    if random.random_range(0..10) == 0 {
        return format!("UPDATE shop.products SET description = NULL, image = NULL WHERE sku = {PRODUCT}");
    }
    format!(
        "UPDATE shop.products SET description = repeat(md5('{seed}'), {repeats}), \
         image = decode(repeat(md5('{seed}'), {repeats} / 2), 'hex') WHERE sku = {PRODUCT}"
    )
}

/// A key change, which cascades to the order items.
fn rename_product(random: &mut StdRng) -> String {
    let suffix = random.random_range(0..10_000);
    format!("UPDATE shop.products SET sku = left(sku, 11) || '-{suffix}' WHERE sku = {PRODUCT}")
}

/// A key change of a composite key.
fn move_order_line(random: &mut StdRng) -> String {
    let line = random.random_range(10..1_000_000);
    format!(
        "UPDATE shop.order_items SET line = {line} WHERE (order_id, line) = \
         (SELECT order_id, line FROM shop.order_items WHERE order_id = {ORDER} LIMIT 1)"
    )
}

fn cancel_order(_: &mut StdRng) -> String {
    format!(
        "WITH chosen AS MATERIALIZED (SELECT {ORDER} AS id), \
         items AS (DELETE FROM shop.order_items USING chosen WHERE order_id = id RETURNING sku, quantity) \
         UPDATE shop.products SET stock = stock + quantity FROM items WHERE products.sku = items.sku; \
         DELETE FROM shop.orders WHERE id = (SELECT id FROM shop.orders WHERE NOT EXISTS \
             (SELECT FROM shop.order_items WHERE order_id = id) LIMIT 1)"
    )
}

fn greet_customer(random: &mut StdRng) -> String {
    let number = random.random::<u32>();
    format!(
        "INSERT INTO shop.customers (name, email, notes) VALUES ('Nëw {number}', '{number}@example.org', NULL); \
         UPDATE shop.customers SET points = points + 10, notes = '' WHERE id = {CUSTOMER}"
    )
}

fn write_one_row_often(random: &mut StdRng) -> String {
    let updates = random.random_range(2..20);
    let update = format!("UPDATE shop.products SET stock = stock + 1 WHERE sku = {PRODUCT}");
    let again = "UPDATE shop.products SET stock = stock + 1 WHERE sku = (SELECT min(sku) FROM shop.products)";
    std::iter::once(update).chain((0..updates).map(|_| again.to_owned())).collect::<Vec<_>>().join("; ")
}

/// Delete and insert of the same key in one transaction.
fn replace_product(random: &mut StdRng) -> String {
    let sku = format!("SKU-{:07}-N{}", random.random_range(0..500), random.random_range(0..20));
    format!(
        "INSERT INTO shop.products VALUES ('{sku}', 'Seasonal', 1, 1, repeat('old', 2000)) ON CONFLICT DO NOTHING; \
         DELETE FROM shop.products WHERE sku = '{sku}' AND NOT EXISTS \
             (SELECT FROM shop.order_items AS item WHERE item.sku = products.sku); \
         INSERT INTO shop.products VALUES ('{sku}', 'Seasonal, again', 2, 2) ON CONFLICT DO NOTHING"
    )
}

fn change_many(random: &mut StdRng) -> String {
    let (modulus, rest) = (random.random_range(3..10), random.random_range(0..3));
    format!("UPDATE shop.customers SET points = points + 1 WHERE id % {modulus} = {rest} AND id <= 2000")
}

fn undo_a_savepoint(_: &mut StdRng) -> String {
    format!(
        "UPDATE shop.customers SET points = points + 1 WHERE id = {CUSTOMER}; SAVEPOINT s; \
         UPDATE shop.products SET price = 0, description = 'never' WHERE sku = {PRODUCT}; \
         DELETE FROM shop.order_items WHERE order_id = {ORDER}; ROLLBACK TO SAVEPOINT s; \
         UPDATE shop.customers SET points = points + 2 WHERE id = {CUSTOMER}; SAVEPOINT t; \
         UPDATE shop.orders SET tags = tags || ARRAY['kept'] WHERE id = {ORDER}; RELEASE SAVEPOINT t"
    )
}

fn add_and_remove(random: &mut StdRng) -> String {
    let id = random.random_range(1_000_000_000_u64..2_000_000_000);
    format!(
        "INSERT INTO shop.customers (id, name, email) VALUES ({id}, 'Ephemeral', 'e@example.org'); \
         UPDATE shop.customers SET points = 1 WHERE id = {id}; DELETE FROM shop.customers WHERE id = {id}"
    )
}
