-- Deletes an order and, by its foreign key, its items.
\set order random(1, 50000)
DELETE FROM orders WHERE id = :order;
