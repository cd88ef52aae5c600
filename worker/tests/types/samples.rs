//! Values of every type that a column can have, as SQL writes them.

use penstock_e2e::postgres::Version;

/// A type and values of it that hold something awkward.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// As SQL writes it, in the schema `types` if somebody made it.
    pub(crate) type_sql: &'static str,
    /// Expressions that are cast to it.
    pub(crate) values: &'static [&'static str],
    /// NULL is one of them.
    pub(crate) is_nullable: bool,
    /// The first version that takes the values.
    pub(crate) since: Version,
}

const fn sample(type_sql: &'static str, values: &'static [&'static str]) -> Sample {
    Sample { type_sql, values, is_nullable: true, since: Version::V14 }
}

/// Every built-in type that is carried.
pub(crate) const BUILT_IN: &[Sample] = &[
    sample("boolean", &["true", "false"]),
    sample("smallint", &["-32768", "32767", "0"]),
    sample("integer", &["-2147483648", "2147483647", "0"]),
    sample("bigint", &["-9223372036854775808", "9223372036854775807", "0"]),
    sample(
        "numeric",
        &[
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
            "0",
            "'0.000'",
            "'1.0'",
            "'1.00'",
            "'-12345678901234567890.123456789000'",
            "repeat('9', 1000)",
            "'0.' || repeat('0', 999) || '1'",
            "'-' || repeat('7', 500) || '.' || repeat('3', 500)",
            "'1e-16383'",
            "'1e131071'",
        ],
    ),
    sample("numeric(12,4)", &["'NaN'", "'-99999999.9999'", "'0.00005'"]),
    sample("real", &["'NaN'", "'Infinity'", "'-Infinity'", "'-0'", "0", "'1e-45'", "'3.4028235e38'", "0.1"]),
    sample(
        "double precision",
        &[
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
            "'-0'",
            "0",
            "'5e-324'",
            "'2.2250738585072009e-308'",
            "'1.7976931348623157e308'",
            "0.1",
        ],
    ),
    sample("money", &["'-92233720368547758.08'", "'92233720368547758.07'", "'-0.01'"]),
    sample(
        "text",
        &[
            "''",
            "E'Grüße, \\\\N \\\\. \\t\\n\\r\\b\\f\\v ''\"{},()'",
            "chr(1) || chr(127) || chr(128) || chr(2047) || chr(2048) || chr(55295) || chr(57344) || chr(65533) || chr(65536) || chr(1114111)",
            // A character of every plane, the private ones too.
            "(SELECT string_agg(chr(plane * 65536 + 65533), '') FROM generate_series(0, 16) AS plane)",
            "U&'e\\0301 \\200F\\FEFF'",
            "'NULL'",
            "repeat('long ', 200000)",
        ],
    ),
    sample("character varying(20)", &["'  spaces  '", "''", "repeat('ü', 20)"]),
    sample("character varying", &["'no bound'"]),
    sample("character(5)", &["'ab'", "''", "'ünï'"]),
    sample("bpchar", &["'no bound  '"]),
    sample("name", &["'a name'", "repeat('n', 63)", "''"]),
    sample("\"char\"", &["'x'", "''", "'\\'"]),
    // Their text is another one before 16.
    Sample { since: Version::V16, ..sample("\"char\"", &["(-1)::integer", "(-128)::integer"]) },
    sample("bytea", &["''", "'\\x00ff10'", "decode(repeat('00ff0a5c', 100000), 'hex')"]),
    sample("bit(5)", &["B'10101'", "B'00000'"]),
    sample("bit varying", &["B''", "B'1'", "repeat('10', 5000)::bit varying"]),
    sample("bit varying(9)", &["B'111111111'"]),
    sample("uuid", &["'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", "'00000000-0000-0000-0000-000000000000'"]),
    sample(
        "date",
        &[
            "'4713-01-01 BC'",
            "'5874897-12-31'",
            "'infinity'",
            "'-infinity'",
            "'0001-12-31 BC'",
            "'2024-02-29'",
        ],
    ),
    sample("time", &["'00:00'", "'24:00:00'", "'23:59:59.999999'"]),
    sample("time(3)", &["'23:59:59.999'"]),
    sample("time with time zone", &["'24:00:00+15:59'", "'00:00:00-15:59:59'", "'12:00:00.000001+05:30'"]),
    sample(
        "timestamp",
        &[
            "'4713-01-01 00:00:00 BC'",
            "'294276-12-31 23:59:59.999999'",
            "'infinity'",
            "'-infinity'",
            "'0044-03-15 12:00:00 BC'",
        ],
    ),
    sample("timestamp(0)", &["'2026-01-01 12:00:00'"]),
    sample(
        "timestamp with time zone",
        &[
            "'4713-01-01 00:00:00+00 BC'",
            "'294276-12-31 23:59:59.999999+00'",
            "'infinity'",
            "'-infinity'",
            "'1880-01-01 00:00:00+00:53:28'",
        ],
    ),
    sample(
        "interval",
        &[
            "'-1 year 2 mons -3 days 04:05:06.789'",
            "'1 mon -1 day 00:00:00.000001'",
            "'-178000000 years'",
            "'178000000 years -2000000000 days'",
            "'0'",
        ],
    ),
    Sample { since: Version::V17, ..sample("interval", &["'infinity'", "'-infinity'"]) },
    sample("interval day to second(3)", &["'3 days 04:05:06.789'"]),
    sample(
        "json",
        &["'{\"a\":  1, \"a\": 2,\n \"b\" :[ ]}'", "' 1.10 '", "'\"\\u0000 \\ud83d\\ude00\"'", "'null'"],
    ),
    sample("jsonb", &["'{\"b\": [1, null, 1.50], \"a\": {\"ü\": true}, \"\": 1e400}'", "'null'", "'[]'"]),
    sample("jsonpath", &["'$.a[*] ? (@ > 1 && @.b like_regex \"^x\" flag \"i\")'", "'strict $'"]),
    sample("xml", &["'<a b=\"c\">d<!-- e --></a>'", "'no <b/> root &amp;'"]),
    sample("tsvector", &["'a:1A b:2,3C ''it''''s'''", "''"]),
    // Binary cannot carry the empty one.
    sample("tsquery", &["'a:*A & !(b | ''it''''s'') <2> c'", "''"]),
    sample("inet", &["'2001:db8::1/64'", "'10.1.2.3'", "'0.0.0.0/0'"]),
    sample("cidr", &["'10.0.0.0/8'", "'2001:db8::/32'"]),
    sample("macaddr", &["'08:00:2b:01:02:03'"]),
    sample("macaddr8", &["'08:00:2b:01:02:03:04:05'"]),
    sample("point", &["'(1.5,-2)'", "'(NaN,Infinity)'", "'(-0,5e-324)'"]),
    sample("line", &["'{1,2,3}'"]),
    sample("lseg", &["'[(1,2),(3,4)]'"]),
    sample("box", &["'(3,4),(1,2)'"]),
    sample("path", &["'[(1,2),(3,4)]'", "'((1,2),(3,4))'"]),
    sample("polygon", &["'((0,0),(1,1),(1,0))'"]),
    sample("circle", &["'<(1,2),3>'"]),
    sample("int4range", &["'[1,10)'", "'empty'", "'(,)'", "'[,5]'"]),
    sample("int8range", &["'[-9223372036854775808,9223372036854775807)'"]),
    sample("numrange", &["'[1.10,NaN]'", "'(-Infinity,1)'"]),
    sample("tsrange", &["'[4713-01-01 00:00:00 BC,infinity)'"]),
    sample("tstzrange", &["'[2026-01-01 00:00+00,)'"]),
    sample("daterange", &["'[-infinity,2026-01-01)'"]),
    sample("int4multirange", &["'{[1,3),[5,8)}'", "'{}'"]),
    sample("int8multirange", &["'{(,3),[5,8)}'"]),
    sample("nummultirange", &["'{[1.10,2.20),[3,)}'"]),
    sample("tsmultirange", &["'{[2026-01-01 00:00:00,infinity)}'"]),
    sample("tstzmultirange", &["'{[2026-01-01 00:00:00+00,)}'"]),
    sample("datemultirange", &["'{[2026-01-01,2026-02-01),[2026-03-01,)}'"]),
    sample("oid", &["0", "4294967295"]),
    sample("xid", &["'4294967295'"]),
    sample("xid8", &["'18446744073709551615'"]),
    sample("cid", &["'4294967295'"]),
    sample("tid", &["'(4294967295,65535)'"]),
    sample("pg_lsn", &["'16/B374D848'", "'FFFFFFFF/FFFFFFFF'"]),
    sample("pg_snapshot", &["'10:20:10,14,15'"]),
    sample("txid_snapshot", &["'10:20:10,14,15'"]),
    sample("refcursor", &["'a cursor'"]),
    sample("int2vector", &["'1 -2 3'", "''"]),
    sample("oidvector", &["'1 2 4294967295'"]),
];

/// Made before [`MADE`] and [`BY_HAND`] are used. The sink gets them from the worker.
pub(crate) const MAKE: &str = r#"
    CREATE TYPE types.mood AS ENUM ('sad', 'it''s "ok", {really}', 'ünï\');
    CREATE DOMAIN types.short AS varchar(5);
    CREATE DOMAIN types.shorter AS types.short NOT NULL CHECK (length(VALUE) < 4);
    CREATE DOMAIN types.numbers AS integer[] CHECK (array_length(VALUE, 1) < 5);
    CREATE DOMAIN types.feeling AS types.mood;
    CREATE TYPE types.pair AS (a integer, "B ""b" text, mood types.mood, price numeric(10,2), dropped text, short types.short);
    ALTER TYPE types.pair DROP ATTRIBUTE dropped;
    CREATE DOMAIN types.couple AS types.pair CHECK ((VALUE).a > 0);
    CREATE TYPE types.nested AS (one types.pair, many types.pair[], domains types.short[], couple types.couple, at timestamp(3)[]);
    CREATE TYPE types.span AS RANGE (subtype = types.mood);
    CREATE TYPE types.floats AS RANGE (subtype = float8, multirange_type_name = public.many_floats);
    CREATE TYPE types."Ünï ""quoted"" type whose name is as long as a name may be: 63 by" AS ENUM ('1', '2');
"#;

/// Types that somebody made, of what every server has.
pub(crate) const MADE: &[Sample] = &[
    sample("types.mood", &["'sad'", "'it''s \"ok\", {really}'", "'ünï\\'"]),
    sample("types.short", &["'dom'", "''"]),
    Sample { is_nullable: false, ..sample("types.shorter", &["'abc'", "'x'"]) },
    sample("types.numbers", &["'{1,NULL,3}'", "'{}'", "'[2:3]={4,5}'"]),
    sample("types.feeling", &["'sad'"]),
    sample(
        "types.pair",
        &[
            "ROW(1, '(\"a\\,)', 'sad', 1.5, 'x')",
            "ROW(NULL, NULL, NULL, NULL, NULL)",
            "ROW(-1, '', 'ünï\\', 'NaN', '')",
        ],
    ),
    sample("types.couple", &["ROW(1, 'x', 'sad', 0, 'y')::types.pair"]),
    sample(
        "types.nested",
        &[
            "ROW(ROW(1, 'x', 'sad', 1.5, 'y'), ARRAY[ROW(2, '\"', NULL, 0, ''), NULL]::types.pair[], '{a,NULL,\"\"}', \
                 ROW(1, 'x', 'sad', 0, 'y'), '{2026-01-01 00:00:00.123,infinity}')",
            "ROW(NULL, '{}', NULL, NULL, '[-1:0]={2026-01-01,NULL}')",
        ],
    ),
    sample("types.span", &["'[sad,ünï\\\\]'", "'empty'", "'(,sad)'"]),
    sample("types.span_multirange", &["'{[sad,sad]}'"]),
    sample("types.floats", &["'[-Infinity,5e-324)'", "'[1.5,1.5]'"]),
    sample("public.many_floats", &["'{[1,2),(3,NaN]}'"]),
    sample("types.\"Ünï \"\"quoted\"\" type whose name is as long as a name may be: 63 by\"", &["'1'"]),
];

/// A base type without a binary form, as somebody may make one. Both ends must have it.
pub(crate) const MAKE_BASE: &str = "
    CREATE TYPE types.number;
    CREATE FUNCTION types.number_in(cstring) RETURNS types.number LANGUAGE internal IMMUTABLE STRICT AS 'int4in';
    CREATE FUNCTION types.number_out(types.number) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'int4out';
    CREATE TYPE types.number (INPUT = types.number_in, OUTPUT = types.number_out, LIKE = int4);";

/// Made of the base type, by the worker in the sink.
pub(crate) const MAKE_OF_BASE: &str = "
    CREATE DOMAIN types.figure AS types.number;
    CREATE TYPE types.numbered AS (number types.number, numbers types.number[], body bytea, at timestamptz, label text);";

/// Types that can only travel as text.
pub(crate) const BY_HAND: &[Sample] = &[
    sample("types.number", &["'1'", "'-2147483648'"]),
    sample("types.figure", &["'7'"]),
    sample(
        "types.numbered",
        &[
            "ROW('1', '{2,NULL}', '\\x00ff5c', 'infinity', E'a\\\\b\\t\"')",
            "ROW(NULL, '[0:1]={3,4}', '', '0044-03-15 12:00:00+00 BC', '')",
        ],
    ),
];

/// The extensions, which both ends must have; their schema may differ.
pub(crate) const EXTENSIONS: &[&str] = &["citext", "hstore", "ltree", "cube", "seg", "isn", "intarray"];

/// Types of extensions. The source has the extensions in the schema `types`.
pub(crate) const OF_EXTENSIONS: &[Sample] = &[
    sample("types.citext", &["'Key'", "'ÜNÏ'", "''"]),
    sample("types.hstore", &["'a=>1, \"b c\"=>NULL, \"\"=>\"it''s \\\"x\\\\\"'", "''"]),
    sample("types.ltree", &["'Top.Science.Astronomy'", "''"]),
    sample("types.lquery", &["'Top.*{1,2}.!a|b@*%'"]),
    sample("types.ltxtquery", &["'Top & !b@'"]),
    sample("types.cube", &["'(1, 2),(0.1, 5e-324)'"]),
    sample("types.seg", &["'1.5 .. 2.50'", "'~3.0'"]),
    sample("types.isbn", &["'0-306-40615-2'"]),
    sample("types.ean13", &["'978-0-306-40615-7'"]),
    sample("types.query_int", &["'1 & (2 | !3)'"]),
    sample("types.tagged", &["ROW('Key', '{a=>1,NULL}', '{Top.a}')"]),
];

/// Made of the types of extensions, by the worker in the sink.
pub(crate) const MAKE_OF_EXTENSIONS: &str =
    "CREATE TYPE types.tagged AS (key types.citext, pairs types.hstore[], paths types.ltree[]);";
