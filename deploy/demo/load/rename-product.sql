-- Changes a primary key, and, by their foreign key, the items that point at it.
\set number random(1, 500)
\set suffix random(1, 1000000000)
UPDATE products SET sku = format('SKU-%s-%s', number, :suffix) WHERE number = :number;
