//! Types whose order the source and the worker agree on: bytes that are ordered as the server orders the values.
//!
//! Equal values have equal bytes, also where their binary forms differ (1.0 and 1.00, 0 and -0).

/// How the binary forms of a type are ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyOrder {
    /// A big-endian number with sign: integers, dates, times, timestamps.
    Signed,
    /// Byte by byte: OIDs, booleans, UUIDs, `bytea`.
    Bytes,
    /// IEEE 754; NaN is the largest.
    Float,
    /// `numeric`; NaN is the largest.
    Numeric,
}

impl KeyOrder {
    /// Of a built-in type; `None` where the order depends on more than the bytes (collations) or is not known here.
    pub fn of_type(oid: u32) -> Option<Self> {
        match oid {
            // int8, int2, int4, date, time, timestamp, timestamptz
            20 | 21 | 23 | 1082 | 1083 | 1114 | 1184 => Some(Self::Signed),
            // bool, bytea, oid, uuid
            16 | 17 | 26 | 2950 => Some(Self::Bytes),
            700 | 701 => Some(Self::Float),
            1700 => Some(Self::Numeric),
            _ => None,
        }
    }

    /// Bytes whose order is that of the values.
    pub(super) fn bytes(self, value: &[u8]) -> Vec<u8> {
        match self {
            Self::Signed => with_sign_flipped(value),
            Self::Bytes => value.to_vec(),
            Self::Float => float(value),
            Self::Numeric => numeric(value),
        }
    }
}

fn with_sign_flipped(value: &[u8]) -> Vec<u8> {
    let mut bytes = value.to_vec();
    if let Some(first) = bytes.first_mut() {
        *first ^= 0x80;
    }
    bytes
}

fn float(value: &[u8]) -> Vec<u8> {
    let single = value.try_into().map(f32::from_be_bytes).map(f64::from);
    let number = single.or_else(|_| value.try_into().map(f64::from_be_bytes)).unwrap_or(f64::NAN);
    // One NaN, one zero.
    let bits = if number.is_nan() { f64::NAN.to_bits() & !SIGN } else { (number + 0.0).to_bits() };
    let ordered = if bits & SIGN == 0 { bits | SIGN } else { !bits };
    ordered.to_be_bytes().to_vec()
}

const SIGN: u64 = 1 << 63;

/// The binary form is: number of digits, weight of the first one, sign, scale, digits to the base of 10,000; 16 bits each.
fn numeric(value: &[u8]) -> Vec<u8> {
    let mut words =
        value.chunks_exact(2).map(|word| word.iter().fold(0_u16, |all, byte| all << 8 | u16::from(*byte)));
    let (_, weight, sign, _) = (words.next(), words.next(), words.next(), words.next());
    let digits: Vec<u16> = words.collect();
    let leading = digits.iter().take_while(|digit| **digit == 0).count();
    let trailing = digits.iter().skip(leading).rev().take_while(|digit| **digit == 0).count();
    let digits = digits.get(leading..digits.len() - trailing).unwrap_or_default();
    let weight =
        i32::from(weight.unwrap_or_default().cast_signed()) - i32::try_from(leading).unwrap_or(i32::MAX);
    match sign.unwrap_or(SIGN_NAN) {
        SIGN_MINUS_INFINITY => vec![0],
        SIGN_PLUS_INFINITY => vec![4],
        SIGN_PLUS | SIGN_MINUS if digits.is_empty() => vec![2],
        SIGN_PLUS => [&[3], magnitude(weight, digits).as_slice()].concat(),
        SIGN_MINUS => {
            std::iter::once(1).chain(magnitude(weight, digits).into_iter().map(|byte| !byte)).collect()
        }
        _ => vec![5],
    }
}

const SIGN_PLUS: u16 = 0;
const SIGN_MINUS: u16 = 0x4000;
const SIGN_NAN: u16 = 0xC000;
const SIGN_PLUS_INFINITY: u16 = 0xD000;
const SIGN_MINUS_INFINITY: u16 = 0xF000;

/// Ends with what is less than any digit, so that the order can be turned round.
fn magnitude(weight: i32, digits: &[u16]) -> Vec<u8> {
    let weight = with_sign_flipped(&weight.to_be_bytes());
    let digits = digits.iter().map(|digit| digit + 1).chain(std::iter::once(0));
    weight.into_iter().chain(digits.flat_map(u16::to_be_bytes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_any_sign_and_length_are_in_order() {
        let number = |sign: u16, weight: i16, digits: &[u16]| {
            let count = u16::try_from(digits.len()).unwrap();
            let words = [count, weight.cast_unsigned(), sign, 7].into_iter().chain(digits.iter().copied());
            words.flat_map(u16::to_be_bytes).collect::<Vec<u8>>()
        };
        let ascending = [
            number(SIGN_MINUS_INFINITY, 0, &[]),
            number(SIGN_MINUS, 1, &[1]),
            number(SIGN_MINUS, 0, &[9999, 1]),
            number(SIGN_MINUS, 0, &[9999]),
            number(SIGN_MINUS, 0, &[1, 0, 1]),
            number(SIGN_MINUS, 0, &[1]),
            number(SIGN_MINUS, -1, &[5]),
            number(SIGN_PLUS, 0, &[]),
            number(SIGN_PLUS, -2, &[9999]),
            number(SIGN_PLUS, 0, &[1]),
            number(SIGN_PLUS, 0, &[1, 0, 1]),
            number(SIGN_PLUS, 0, &[2]),
            number(SIGN_PLUS, 40, &[1]),
            number(SIGN_PLUS_INFINITY, 0, &[]),
            number(SIGN_NAN, 0, &[]),
        ];
        let bytes: Vec<Vec<u8>> = ascending.iter().map(|value| KeyOrder::Numeric.bytes(value)).collect();
        assert!(bytes.is_sorted_by(|one, next| one < next), "{bytes:?}");
        let same = [number(SIGN_PLUS, 0, &[1]), number(SIGN_PLUS, 0, &[1, 0]), number(SIGN_PLUS, 1, &[0, 1])];
        assert!(same.iter().all(|value| KeyOrder::Numeric.bytes(value) == KeyOrder::Numeric.bytes(&same[0])));
    }

    #[test]
    fn floats_are_in_order_and_zeros_are_one() {
        let ascending =
            [f64::NEG_INFINITY, -1.5, -f64::MIN_POSITIVE, 0.0, 5e-324, 1.5, f64::INFINITY, f64::NAN];
        let bytes = ascending.map(|value| KeyOrder::Float.bytes(&value.to_be_bytes()));
        assert!(bytes.is_sorted_by(|one, next| one < next), "{bytes:?}");
        let of = |value: f64| KeyOrder::Float.bytes(&value.to_be_bytes());
        assert_eq!((of(0.0), of(f64::NAN)), (of(-0.0), of(-f64::NAN)));
        assert_eq!(KeyOrder::Float.bytes(&0.1_f32.to_be_bytes()), of(f64::from(0.1_f32)));
    }
}
