use bytes::{BufMut as _, BytesMut};
use proptest::prelude::*;

use super::fixtures::*;
use crate::change::travel::Format;
use crate::transform::{CopyColumns, CopyMask, RowError};
use penstock_crds::transform::TableTransform;

/// `id` and `mail`, of which the second is redacted.
fn masking() -> CopyColumns {
    let entry = TableTransform {
        select_columns: names(&["id", "mail"]),
        rename_columns: [("mail".to_owned(), "m".to_owned())].into(),
        mask_columns: vec![redact(&["mail"])],
        ..entry()
    };
    CopyColumns::of(&users(), Some(&steps(entry)), |_| false)
}

fn binary(rows: &[[Option<&[u8]>; 2]]) -> Vec<u8> {
    let mut data = BytesMut::from(&b"PGCOPY\n\xff\r\n\0"[..]);
    data.put_i32(0);
    data.put_i32(0);
    for row in rows {
        data.put_i16(2);
        for value in row {
            match value {
                None => data.put_i32(-1),
                Some(value) => {
                    data.put_i32(i32::try_from(value.len()).unwrap());
                    data.extend_from_slice(value);
                }
            }
        }
    }
    data.put_i16(-1);
    data.to_vec()
}

/// The data, however it is cut.
fn through(mut mask: CopyMask, data: &[u8], cut: usize) -> Result<Vec<u8>, RowError> {
    let mut out = Vec::new();
    for piece in data.chunks(cut.max(1)) {
        out.extend(mask.push(piece)?);
    }
    mask.finish().map(|()| out)
}

#[test]
fn only_masked_tables_are_taken_apart() {
    assert!(masking().mask(Format::Binary).is_some());
    let renamed = TableTransform {
        drop_columns: names(&["token"]),
        rename_columns: [("mail".to_owned(), "m".to_owned())].into(),
        ..entry()
    };
    let columns = CopyColumns::of(&users(), Some(&steps(renamed)), |name| name == "m");
    assert!(columns.mask(Format::Binary).is_none(), "bytes pass as they are");
    assert_eq!(columns.source, ["id", "name", "size"], "the sink leaves m out");
    let plain = CopyColumns::of(&users(), None, |_| false);
    assert_eq!(plain.source, plain.sink);
    assert!(plain.mask(Format::Text).is_none());
}

#[test]
fn names_of_both_ends_are_in_the_same_order() {
    let columns = masking();
    assert_eq!((columns.source, columns.sink), (names(&["id", "mail"]), names(&["id", "m"])));
}

#[test]
fn a_copy_that_ends_within_a_row_is_an_error() {
    let data = binary(&[[Some(b"1"), Some(b"a@b")]]);
    for end in 0..data.len() {
        let cut_short = through(masking().mask(Format::Binary).unwrap(), &data[..end], 7);
        assert_eq!(cut_short, Err(RowError::NotWhole), "{end}");
    }
    assert!(through(masking().mask(Format::Text).unwrap(), b"1\ta@b", 3).is_err());
    assert!(through(masking().mask(Format::Text).unwrap(), b"1\n", 3).is_err(), "a column is missing");
    assert!(through(masking().mask(Format::Text).unwrap(), b"1\t2\t3\n", 3).is_err(), "there is one more");
}

#[test]
fn text_is_read_and_written_as_copy_does() {
    let entry = TableTransform {
        select_columns: names(&["id", "mail"]),
        mask_columns: vec![truncate(&["mail"], 4)],
        ..entry()
    };
    let mask = CopyColumns::of(&users(), Some(&steps(entry)), |_| false).mask(Format::Text).unwrap();
    let data = b"1\ta\\tb\\\\cd\n2\t\\N\n\\N\t\\n\\r\\bxyz\n3\t\n";
    let expected = b"1\ta\\tb\\\\\n2\t\\N\n\\N\t\\n\\r\x08x\n3\t\n";
    assert_eq!(through(mask, data, 5).unwrap(), expected);
}

type Rows = Vec<(Option<Vec<u8>>, Option<Vec<u8>>)>;

fn rows() -> impl Strategy<Value = Rows> {
    let value = || proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40));
    proptest::collection::vec((value(), value()), 0..20)
}

proptest! {
    #[test]
    fn every_row_comes_out_masked_however_the_data_is_cut(rows in rows(), cut in 1_usize..64) {
        let given: Vec<_> = rows.iter().map(|(id, mail)| [id.as_deref(), mail.as_deref()]).collect();
        let expected: Vec<_> = given.iter().map(|[id, mail]| [*id, mail.map(|_| &b"***"[..])]).collect();
        let masked = through(masking().mask(Format::Binary).unwrap(), &binary(&given), cut);
        prop_assert_eq!(masked, Ok(binary(&expected)));
    }
}
