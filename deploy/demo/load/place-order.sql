-- A customer orders a product: three changes in one transaction. The product's long description is not
-- among what PostgreSQL sends.
\set customer random(1, 20000)
\set number random(1, 500)
\set quantity random(1, 5)
BEGIN;
UPDATE products SET stock = stock - :quantity WHERE number = :number;
INSERT INTO orders (customer_id, status) VALUES (:customer, 'placed') RETURNING id AS order_id \gset
INSERT INTO order_items (order_id, line, sku, quantity)
SELECT :order_id, 1, sku, :quantity FROM products WHERE number = :number;
COMMIT;
