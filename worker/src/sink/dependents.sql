-- For each table that readers know: the table itself, and the one that takes its place.
WITH wanted AS (
    SELECT * FROM ROWS FROM (pg_catalog.unnest(ARRAY[{schemas}]::pg_catalog.text[]),
                             pg_catalog.unnest(ARRAY[{names}]::pg_catalog.text[]),
                             pg_catalog.unnest(ARRAY[{rising}]::pg_catalog.text[])) AS wanted (schema, name, rising)
), live AS (
    SELECT c.oid, c.reltype, c.relowner, c.relacl, c.relrowsecurity, c.relkind, c.relispartition,
           pg_catalog.format('%I.%I', n.nspname, c.relname) AS name, wanted.rising, wanted.name AS bare
    FROM wanted JOIN pg_catalog.pg_namespace AS n ON n.nspname = wanted.schema
    JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = wanted.name
), rising AS (
    SELECT c.oid, c.relowner, c.relacl, live.oid AS live, live.name AS live_name,
           pg_catalog.format('%I.%I', n.nspname, c.relname) AS name
    FROM live JOIN pg_catalog.pg_namespace AS n ON n.nspname = live.rising
    JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = live.bare
), depending AS (
    -- Whatever names a table, a column of it, or its row type.
    SELECT DISTINCT live.oid AS live, live.name, d.classid, d.objid, d.objsubid
    FROM live JOIN pg_catalog.pg_depend AS d
      ON (d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = live.oid)
      OR (d.refclassid = 'pg_catalog.pg_type'::pg_catalog.regclass AND d.refobjid = live.reltype)
    WHERE NOT (d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = live.oid)
      AND NOT (d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass
               AND d.objid IN (live.reltype, (SELECT t.typarray FROM pg_catalog.pg_type AS t WHERE t.oid = live.reltype)))
), view AS (
    SELECT DISTINCT v.oid, v.relowner, v.reloptions, pg_catalog.format('%I.%I', n.nspname, v.relname) AS name, v.relkind
    FROM depending JOIN pg_catalog.pg_rewrite AS r
      ON depending.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND r.oid = depending.objid
    JOIN pg_catalog.pg_class AS v ON v.oid = r.ev_class
    JOIN pg_catalog.pg_namespace AS n ON n.oid = v.relnamespace
    WHERE r.rulename = '_RETURN' AND v.relkind = 'v'
      -- One of a table whose name nobody has afterwards cannot be made anew.
      AND NOT EXISTS (SELECT FROM depending AS other JOIN live ON live.oid = other.live AND live.rising IS NULL
                      WHERE other.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND other.objid = r.oid)
), own AS (
    -- Parts of a table: they come and go with it.
    SELECT live, classid, objid FROM depending
    WHERE (classid = 'pg_catalog.pg_class'::pg_catalog.regclass
           AND EXISTS (SELECT FROM pg_catalog.pg_index AS i WHERE i.indexrelid = objid AND i.indrelid = live))
       OR (classid = 'pg_catalog.pg_class'::pg_catalog.regclass
           AND EXISTS (SELECT FROM pg_catalog.pg_class AS t WHERE t.reltoastrelid = objid AND t.oid = live))
       OR (classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass
           AND EXISTS (SELECT FROM pg_catalog.pg_attrdef AS a WHERE a.oid = objid AND a.adrelid = live))
       OR (classid = 'pg_catalog.pg_constraint'::pg_catalog.regclass
           AND EXISTS (SELECT FROM pg_catalog.pg_constraint AS k WHERE k.oid = objid AND k.conrelid = live AND k.contype <> 'f'))
)
SELECT 1 AS place, true AS is_obstacle,
       pg_catalog.format('%s depends on %s', pg_catalog.pg_describe_object(classid, objid, objsubid), name) AS text
FROM depending
WHERE NOT EXISTS (SELECT FROM own WHERE (own.live, own.classid, own.objid) = (depending.live, depending.classid, depending.objid))
  AND NOT (classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass
           AND EXISTS (SELECT FROM pg_catalog.pg_rewrite AS r JOIN view ON view.oid = r.ev_class
                       WHERE r.oid = objid AND r.rulename = '_RETURN'))
UNION ALL
-- What belongs to the table and is not made by itself: readers would miss it, or what it forbids.
SELECT 1, true, pg_catalog.format('%s has no index like %s (run: %s)', rising.name, i.indexrelid::pg_catalog.regclass,
                                  pg_catalog.replace(pg_catalog.pg_get_indexdef(i.indexrelid), ' ON ' || live_name || ' USING ',
                                                     ' ON ' || rising.name || ' USING '))
FROM rising JOIN pg_catalog.pg_index AS i ON i.indrelid = rising.live
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_constraint AS k WHERE k.conindid = i.indexrelid AND k.conrelid = rising.live)
  AND NOT EXISTS (
      SELECT FROM pg_catalog.pg_index AS o WHERE o.indrelid = rising.oid AND o.indisvalid AND o.indisunique = i.indisunique
        AND pg_catalog.split_part(pg_catalog.pg_get_indexdef(o.indexrelid), ' ON ' || rising.name || ' USING ', 2)
          = pg_catalog.split_part(pg_catalog.pg_get_indexdef(i.indexrelid), ' ON ' || live_name || ' USING ', 2))
UNION ALL
SELECT 1, true, pg_catalog.format('%s has no constraint like %s of %s (run: ALTER TABLE %s ADD CONSTRAINT %I %s)', rising.name, k.conname,
                                  live_name, rising.name, k.conname, pg_catalog.pg_get_constraintdef(k.oid))
FROM rising JOIN pg_catalog.pg_constraint AS k ON k.conrelid = rising.live AND k.contype IN ('p', 'u', 'c', 'x')
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_constraint AS o WHERE o.conrelid = rising.oid AND o.contype = k.contype
                    AND pg_catalog.pg_get_constraintdef(o.oid) = pg_catalog.pg_get_constraintdef(k.oid))
UNION ALL
SELECT 1, true, pg_catalog.format('row-level security is on for %s', name) FROM live WHERE relrowsecurity
UNION ALL
SELECT 1, true, pg_catalog.format('%s is no plain table', name) FROM live
WHERE relkind <> 'r' OR relispartition OR EXISTS (SELECT FROM pg_catalog.pg_inherits WHERE live.oid IN (inhparent, inhrelid))
UNION ALL
SELECT 1, true, pg_catalog.format('the role %I may not act as the owner of %s, who is %I', current_user, name,
                                  pg_catalog.pg_get_userbyid(relowner))
FROM (SELECT name, relowner FROM live UNION ALL SELECT name, relowner FROM view) AS owned
WHERE NOT pg_catalog.pg_has_role(relowner, 'USAGE')
UNION ALL
SELECT 0, false, pg_catalog.format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', name) FROM view
UNION ALL
-- What belongs to the table, is not made by itself, and has nothing of its own in pg_depend.
SELECT 1, true, pg_catalog.format('%s has another replica identity than %s', rising.name, live_name)
FROM rising JOIN pg_catalog.pg_class AS was ON was.oid = rising.live JOIN pg_catalog.pg_class AS is_now ON is_now.oid = rising.oid
WHERE was.relreplident <> is_now.relreplident
UNION ALL
SELECT DISTINCT 1, true, pg_catalog.format('%s has a security label', name) FROM live
JOIN pg_catalog.pg_seclabel AS l ON l.classoid = 'pg_catalog.pg_class'::pg_catalog.regclass AND l.objoid = live.oid
UNION ALL
SELECT 1, true, pg_catalog.format('%s has no computed column like %I of %s', rising.name, a.attname, live_name)
FROM rising JOIN pg_catalog.pg_attribute AS a ON a.attrelid = rising.live AND a.attgenerated <> '' AND NOT a.attisdropped
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_attribute AS o
                  WHERE o.attrelid = rising.oid AND o.attname = a.attname AND o.attgenerated = a.attgenerated)
UNION ALL
SELECT 3, false, pg_catalog.format('ALTER TABLE %s OWNER TO %I', live_name, pg_catalog.pg_get_userbyid(live.relowner))
FROM rising JOIN live ON live.oid = rising.live WHERE live.relowner <> rising.relowner
UNION ALL
-- What was granted on it when it had the name before.
SELECT DISTINCT 2, false, pg_catalog.format('REVOKE ALL ON TABLE %s FROM %s CASCADE', live_name,
                                   CASE WHEN grantee = 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(grantee)) END)
FROM rising, LATERAL (
    SELECT grantee FROM pg_catalog.aclexplode(rising.relacl)
    UNION SELECT (pg_catalog.aclexplode(a.attacl)).grantee FROM pg_catalog.pg_attribute AS a WHERE a.attrelid = rising.oid) AS granted
WHERE grantee NOT IN (rising.relowner, (SELECT live.relowner FROM live WHERE live.oid = rising.live))
UNION ALL
SELECT 4, false, pg_catalog.format('GRANT %s ON TABLE %s TO %s%s', privilege_type, name,
                                   CASE WHEN grantee = 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(grantee)) END,
                                   CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
FROM live, pg_catalog.aclexplode(live.relacl) WHERE rising IS NOT NULL AND grantee <> relowner
UNION ALL
SELECT 4, false, pg_catalog.format('GRANT %s (%I) ON TABLE %s TO %s%s', privilege_type, a.attname, name,
                                   CASE WHEN grantee = 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(grantee)) END,
                                   CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
FROM live JOIN pg_catalog.pg_attribute AS a ON a.attrelid = live.oid AND NOT a.attisdropped, pg_catalog.aclexplode(a.attacl)
WHERE rising IS NOT NULL
UNION ALL
SELECT 5, false, pg_catalog.format('COMMENT ON %s IS %L',
                                   CASE WHEN d.objsubid = 0 THEN 'TABLE ' || name
                                        ELSE pg_catalog.format('COLUMN %s.%I', name, a.attname) END, d.description)
FROM live JOIN pg_catalog.pg_description AS d
  ON d.classoid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objoid = live.oid
LEFT JOIN pg_catalog.pg_attribute AS a ON a.attrelid = live.oid AND a.attnum = d.objsubid AND d.objsubid > 0
WHERE rising IS NOT NULL
UNION ALL
SELECT 6, false, pg_catalog.format('CREATE OR REPLACE VIEW %s%s AS %s', name,
                                   coalesce(' WITH (' || pg_catalog.array_to_string(reloptions, ', ') || ')', ''),
                                   pg_catalog.rtrim(pg_catalog.pg_get_viewdef(oid), ';'))
FROM view
