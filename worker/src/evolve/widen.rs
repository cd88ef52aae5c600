//! Which types take every value of another one, and leave its text as it is.

use crate::change::ShapeColumn;

const TEXT: u32 = 25;
const VARCHAR: u32 = 1043;
const VARBIT: u32 = 1562;
const NUMERIC: u32 = 1700;
/// time, timestamp, timestamptz, timetz.
const WITH_PRECISION: [u32; 4] = [1083, 1114, 1184, 1266];
const MODIFIER_HEADER: i32 = 4;

/// Whether every value keeps its text under the new type, if the rows were not rewritten.
pub(super) fn keeps_text(was: &ShapeColumn, now: &ShapeColumn) -> bool {
    if was.is_generated != now.is_generated {
        return was.is_generated && was.type_oid == now.type_oid && was.type_modifier == now.type_modifier;
    }
    widens((was.type_oid, was.type_modifier), (now.type_oid, now.type_modifier))
}

/// Whether a type (OID and modifier) takes every value of another one, with the same text. Numbers of other widths
/// too: whether the source's own rows kept their values is another question, see [`explain`](super::explain).
pub fn widens(from: (u32, i32), to: (u32, i32)) -> bool {
    let ((from, modifier), (to, wider)) = (from, to);
    if from == to {
        return modifier == wider
            || match from {
                VARCHAR | VARBIT => wider == -1 || (modifier != -1 && modifier <= wider),
                NUMERIC => wider == -1 || (modifier != -1 && is_wider_numeric(modifier, wider)),
                other if WITH_PRECISION.contains(&other) => {
                    wider == -1 || (modifier != -1 && modifier <= wider)
                }
                _ => false,
            };
    }
    match (from, to) {
        (VARCHAR, TEXT) | (21, 20 | 23) | (23, 20) => true,
        // Without a length it takes everything.
        (TEXT, VARCHAR) => wider == -1,
        _ => false,
    }
}

/// Another scale would give values other zeros.
fn is_wider_numeric(modifier: i32, wider: i32) -> bool {
    let (modifier, wider) = (modifier - MODIFIER_HEADER, wider - MODIFIER_HEADER);
    modifier & 0xffff == wider & 0xffff && modifier >> 16 <= wider >> 16
}
