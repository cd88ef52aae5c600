-- The warehouse: the role that the pipeline writes with. The pipeline makes the tables.
\set ON_ERROR_STOP on
SET client_min_messages = warning;
SELECT 'CREATE ROLE penstock LOGIN'
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'penstock') \gexec
ALTER ROLE penstock PASSWORD :'password';
GRANT CREATE ON DATABASE warehouse TO penstock;
GRANT CREATE, USAGE ON SCHEMA public TO penstock;
