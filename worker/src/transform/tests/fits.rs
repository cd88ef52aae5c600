use super::fixtures::*;
use crate::change::table::TableName;
use crate::change::{RelationId, ReplicaIdentity};
use crate::transform::Transforms;
use penstock_crds::transform::TableTransform;

fn drop_twice() -> Vec<String> {
    names(&["twice"])
}

#[test]
fn a_mistyped_column_is_refused_with_table_and_column_in_every_step() {
    let rename = |from: &str| [(from.to_owned(), "x".to_owned())].into();
    for (entry, step) in [
        (TableTransform { drop_columns: names(&["mial"]), ..entry() }, "dropColumns"),
        (TableTransform { select_columns: names(&["id", "mial"]), ..entry() }, "selectColumns"),
        (TableTransform { rename_columns: rename("mial"), ..entry() }, "renameColumns"),
        (TableTransform { mask_columns: vec![redact(&["mial"])], ..entry() }, "maskColumns"),
    ] {
        let told = refusal(entry);
        assert!(told.contains(&format!("shop.users, column mial: {step} names it")), "{told}");
    }
}

#[test]
fn a_pattern_without_a_table_and_a_table_with_two_entries_are_refused() {
    let orders = TableTransform { tables: names(&["shop.order*"]), drop_columns: names(&["a"]), ..entry() };
    let told = refusal(orders);
    assert!(told.contains("transforms[0].tables: shop.order* matches no table"), "{told}");
    let all = TableTransform { tables: names(&["shop.*"]), drop_columns: names(&["mail"]), ..entry() };
    let one = TableTransform { drop_columns: names(&["name"]), ..entry() };
    let told = transforms(&[all, one], &[users()]).unwrap_err().to_string();
    assert!(told.contains("shop.users is matched by transforms[0] and transforms[1]"), "{told}");
}

#[test]
fn what_names_a_row_is_neither_left_out_nor_made_equal() {
    for (entry, what) in [
        (TableTransform { drop_columns: names(&["id"]), ..entry() }, "it is left out"),
        (TableTransform { select_columns: names(&["mail"]), ..entry() }, "it is left out"),
        (TableTransform { mask_columns: vec![redact(&["id"])], ..entry() }, "it is redacted"),
    ] {
        let told = refusal(entry);
        assert!(told.contains(&format!("shop.users, column id: {what}, and names the rows")), "{told}");
    }
    let mut by_mail = users();
    by_mail.replica_identity = ReplicaIdentity::Index;
    by_mail.identity_columns = names(&["mail"]);
    let short = TableTransform { mask_columns: vec![truncate(&["mail"], 3)], ..entry() };
    assert!(
        refusal_of(short.clone(), by_mail.clone())
            .contains("column mail: it is truncated, and names the rows")
    );
    let hashed =
        TableTransform { mask_columns: vec![hash(&["mail", "id"])], drop_columns: drop_twice(), ..entry() };
    transforms(&[hashed], &[by_mail]).unwrap();
    let mut whole_rows = users();
    whole_rows.replica_identity = ReplicaIdentity::Full;
    whole_rows.primary_key.clear();
    transforms(&[short], &[whole_rows]).unwrap();
}

#[test]
fn a_mask_takes_only_types_whose_text_is_known_in_both_formats() {
    let mut table = users();
    table.columns.push(column("price", 1700, "numeric"));
    let hashed = TableTransform { mask_columns: vec![hash(&["price"])], ..entry() };
    let told = refusal_of(hashed, table.clone());
    assert!(told.contains("shop.users, column price: it is numeric, and hash takes text"), "{told}");
    let cut =
        TableTransform { mask_columns: vec![truncate(&["size"], 1)], drop_columns: drop_twice(), ..entry() };
    let told = refusal_of(cut, table.clone());
    assert!(told.contains("shop.users, column size: it is integer, and truncate takes text"), "{told}");
    let redacted = TableTransform { mask_columns: vec![redact(&["price"])], ..entry() };
    transforms(&[redacted], &[table]).unwrap();
}

#[test]
fn two_columns_or_two_tables_of_one_name_are_refused() {
    let rename = [("mail".to_owned(), "name".to_owned())].into();
    let told = refusal(TableTransform { rename_columns: rename, ..entry() });
    assert!(told.contains("shop.users: two columns would be called name"), "{told}");
    let exchanged = [("mail".to_owned(), "name".to_owned()), ("name".to_owned(), "mail".to_owned())].into();
    transforms(&[TableTransform { rename_columns: exchanged, ..entry() }], &[users()]).unwrap();
    let mut people = users();
    (people.id, people.name) = (RelationId(1), TableName::new("shop", "people"));
    let renamed = TableTransform { rename_table: Some("people".into()), ..entry() };
    let told = transforms(&[renamed], &[people, users()]).unwrap_err().to_string();
    assert!(
        told.contains("shop.people and shop.users would both be written into the sink table shop.people"),
        "{told}"
    );
}

#[test]
fn names_that_postgresql_would_cut_are_refused() {
    let rename = [("mail".to_owned(), "ä".repeat(32))].into();
    let told = refusal(TableTransform { rename_columns: rename, ..entry() });
    assert!(told.contains("a name has at most 63 bytes"), "{told}");
}

#[test]
fn a_generated_column_is_not_computed_from_what_the_sink_has_not() {
    let drop = TableTransform { drop_columns: names(&["size"]), ..entry() };
    let told = refusal(drop);
    assert!(
        told.contains(
            "shop.users, column twice: it is generated, and would be computed in the sink from column size"
        ),
        "{told}"
    );
    let both = steps(TableTransform { drop_columns: names(&["size", "twice"]), ..entry() });
    assert_eq!(both.table(&users()).unwrap().columns.len(), 4);
    both.plan(&whole()).unwrap();
    let other = steps(TableTransform { drop_columns: names(&["mail"]), ..entry() });
    assert!(other.table(&users()).unwrap().columns.iter().any(|column| column.generated.is_some()));
}

#[test]
fn the_sink_is_told_of_a_table_with_other_columns_names_and_types() {
    let entry = TableTransform {
        drop_columns: names(&["token"]),
        rename_columns: [("id".to_owned(), "user".to_owned())].into(),
        mask_columns: vec![hash(&["mail"])],
        ..entry()
    };
    let steps = steps(entry);
    let table = steps.table(&users()).unwrap();
    let shown: Vec<String> =
        table.columns.iter().map(|column| format!("{} {}", column.name, column.column_type.sql)).collect();
    assert_eq!(shown, ["user integer", "mail text", "name text", "size integer", "twice integer"]);
    assert_eq!((table.primary_key, table.identity_columns), (names(&["user"]), names(&["user"])));
    let mail = &table.columns[1];
    assert!(mail.is_masked && mail.constant_default.is_none(), "a default would stand in for masked values");
    assert_eq!(&table.steps, steps.steps());
}

#[test]
fn without_transforms_nothing_is_done() {
    let none = transforms(&[], &[users()]).unwrap();
    assert!(none.of(ID).is_none() && none.names().is_empty());
    assert_eq!(none.table(&users()).unwrap(), users());
    assert!(Transforms::default().of(ID).is_none());
}

#[test]
fn only_the_table_is_renamed_and_its_rows_stay_as_they_are() {
    let renamed = TableTransform { rename_table: Some("people".into()), ..entry() };
    let transforms = transforms(&[renamed], &[users()]).unwrap();
    assert!(transforms.of(ID).is_none(), "its bytes pass through");
    assert_eq!(transforms.names()[&TableName::new("shop", "users")], "people");
}
