\set order random(1, 50000)
UPDATE orders SET status = 'paid' WHERE id = :order;
