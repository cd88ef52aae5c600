\set customer random(1, 20000)
\set colour random(0, 6)
UPDATE customers
SET newsletter = NOT newsletter, preferences = jsonb_set(preferences, '{colour}', to_jsonb(:colour))
WHERE id = :customer;
