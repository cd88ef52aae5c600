\set customer random(1, 20000)
INSERT INTO carts (customer_id) VALUES (:customer);
