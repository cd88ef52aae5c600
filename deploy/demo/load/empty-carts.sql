TRUNCATE carts;
