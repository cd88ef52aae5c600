//! Which column types can be carried from one server to another without loss. The decision is pure.
//!
//! Built-in types are listed, so that one of a newer server is refused until somebody has looked at it. Types that
//! users and extensions make are carried if all that they are made of is.

use crate::change::ColumnType;

/// Built-in types that are carried, each before its array type: what the send function of one server writes is what
/// every other supported version reads. In the order of the guide.
const CARRIED: &[&[u32]] =
    &[NUMBERS, STRINGS, TIMES, DOCUMENTS, ADDRESSES, SHAPES, RANGES, MULTIRANGES, OF_THE_SERVER];

/// boolean, smallint, integer, bigint, numeric, real, double precision, money.
const NUMBERS: &[u32] = &[16, 1000, 21, 1005, 23, 1007, 20, 1016, 1700, 1231, 700, 1021, 701, 1022, 790, 791];
/// text, character varying, character, name, "char", bytea, bit, bit varying, uuid.
const STRINGS: &[u32] =
    &[25, 1009, 1043, 1015, 1042, 1014, 19, 1003, 18, 1002, 17, 1001, 1560, 1561, 1562, 1563, 2950, 2951];
/// date, time, time with time zone, timestamp, timestamp with time zone, interval.
const TIMES: &[u32] = &[1082, 1182, 1083, 1183, 1266, 1270, 1114, 1115, 1184, 1185, 1186, 1187];
/// json, jsonb, jsonpath, xml, tsvector, tsquery.
const DOCUMENTS: &[u32] = &[114, 199, 3802, 3807, 4072, 4073, 142, 143, 3614, 3643, 3615, 3645];
/// inet, cidr, macaddr, macaddr8.
const ADDRESSES: &[u32] = &[869, 1041, 650, 651, 829, 1040, 774, 775];
/// point, line, lseg, box, path, polygon, circle.
const SHAPES: &[u32] = &[600, 1017, 628, 629, 601, 1018, 603, 1020, 602, 1019, 604, 1027, 718, 719];
/// int4range, int8range, numrange, tsrange, tstzrange, daterange.
const RANGES: &[u32] = &[3904, 3905, 3926, 3927, 3906, 3907, 3908, 3909, 3910, 3911, 3912, 3913];
/// int4multirange, int8multirange, nummultirange, tsmultirange, tstzmultirange, datemultirange.
const MULTIRANGES: &[u32] = &[4451, 6150, 4536, 6157, 4532, 6151, 4533, 6152, 4534, 6153, 4535, 6155];
/// oid, xid, xid8, cid, tid, `pg_lsn`, `pg_snapshot`, `txid_snapshot`, refcursor, int2vector, oidvector.
const OF_THE_SERVER: &[u32] = &[
    26, 1028, 28, 1011, 5069, 271, 29, 1012, 27, 1010, 3220, 3221, 5038, 5039, 2970, 2949, 1790, 2201, 22,
    1006, 30, 1013,
];

/// `regclass`, `regproc`, `regprocedure`, `regoper`, `regoperator`, `regtype`, `regconfig`, `regdictionary`,
/// `regnamespace`, `regrole`, `regcollation` and `aclitem`: their values name objects or roles of one server.
const NAMING: &[u32] = &[
    2205, 2210, 24, 1008, 2202, 2207, 2203, 2208, 2204, 2209, 2206, 2211, 3734, 3735, 3769, 3770, 4089, 4090,
    4096, 4097, 4191, 4192, 1033, 1034,
];

/// Why a column of that type cannot be carried, if so.
pub(super) fn refusal(column_type: &ColumnType) -> Option<String> {
    column_type.all().into_iter().filter(|part| part.is_built_in()).find_map(|part| {
        let name = &part.sql;
        if CARRIED.iter().any(|family| family.contains(&part.oid)) {
            None
        } else if NAMING.contains(&part.oid) {
            Some(format!("values of {name} name objects of one server; store the name as text"))
        } else {
            Some(format!("{name} is not among the built-in types that can be carried"))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::TypeKind;

    #[test]
    fn what_a_type_is_made_of_decides() {
        let built_in = |oid, sql| ColumnType::built_in(oid, -1, sql);
        let array = |element| ColumnType {
            oid: 20_000,
            modifier: -1,
            sql: "s.a[]".into(),
            kind: TypeKind::Array(Box::new(element)),
        };
        assert_eq!(refusal(&built_in(23, "integer")), None);
        assert_eq!(refusal(&array(built_in(1007, "integer[]"))), None);
        for (oid, sql, cause) in [
            (2205, "regclass", "values of regclass name objects of one server"),
            (2210, "regclass[]", "values of regclass[] name objects"),
            (3642, "gtsvector", "gtsvector is not among"),
            (9_999, "of_a_later_version", "of_a_later_version is not among"),
        ] {
            for column_type in [built_in(oid, sql), array(built_in(oid, sql))] {
                let refusal = refusal(&column_type).unwrap();
                assert!(refusal.contains(cause), "{refusal}");
            }
        }
    }
}
