use super::fixtures::*;
use crate::change::{PartColumn, ShapeColumn, ShapePart, TableShape};
use crate::evolve::{Change, Generated, Later, Origin};
use penstock_crds::transform::TableTransform;

fn kept(from: &str) -> Origin {
    Origin::Kept { from: from.into(), later: Later::Stays }
}

/// `mail` is left out, `name` is hashed, `size` is called `height`.
fn mixed() -> TableTransform {
    TableTransform {
        drop_columns: names(&["mail", "twice"]),
        rename_columns: [("size".to_owned(), "height".to_owned())].into(),
        mask_columns: vec![hash(&["name"])],
        ..entry()
    }
}

fn told(
    entry: TableTransform,
    columns: &[&str],
    origins: Vec<Origin>,
    dropped: &[&str],
) -> Result<Change, String> {
    let steps = steps(entry);
    let relation = relation(columns);
    let plan = steps.plan(&relation).map_err(|error| error.to_string())?;
    let change = Change { columns: origins, dropped: names(dropped), ..Change::default() };
    steps.change(&relation, &plan, &change)
}

#[test]
fn the_sink_hears_of_changes_in_its_own_names() {
    let columns = ["id", "mail", "name", "size", "born"];
    let added = Origin::Added { existing: Some("1".into()) };
    let origins = vec![kept("id"), kept("mail"), kept("name"), kept("size"), added.clone()];
    let change = told(mixed(), &columns, origins, &["token"]).unwrap();
    assert_eq!(change.columns, [kept("id"), kept("name"), kept("height"), added]);
    assert_eq!(change.dropped, ["token"]);
}

#[test]
fn a_column_that_an_entry_names_and_that_is_gone_stops_the_table_whatever_happened_to_it() {
    let missing = ["id", "letter", "name", "token", "size"];
    for gone in [["id", "mail", "letter", "token", "size"], missing] {
        let steps = steps(mixed());
        let error = steps.plan(&relation(&gone)).unwrap_err().to_string();
        assert!(error.contains("and the table has no such column"), "{error}");
    }
}

#[test]
fn a_column_that_is_renamed_under_a_mask_or_out_of_one_is_never_mixed() {
    // The source dropped `name` and called `token` so.
    let columns = ["id", "mail", "name", "size"];
    let origins = vec![kept("id"), kept("mail"), kept("token"), kept("size")];
    let why = told(mixed(), &columns, origins, &["name"]).unwrap_err();
    assert_eq!(why, "column token was renamed to name, and the transforms do something else to it");
    // It dropped `size`, and called the column that is left out so.
    let origins = vec![kept("id"), kept("token"), kept("name"), kept("mail")];
    let why = told(mixed(), &columns, origins, &["size"]).unwrap_err();
    assert!(why.contains("column mail was renamed to size"), "{why}");
}

#[test]
fn a_column_that_is_renamed_into_what_is_left_out_is_dropped_in_the_sink() {
    // The source dropped `mail` and called `token` so.
    let columns = ["id", "mail", "name", "size"];
    let origins = vec![kept("id"), kept("token"), kept("name"), kept("size")];
    let change = told(mixed(), &columns, origins, &["mail"]).unwrap();
    assert_eq!((change.columns.len(), change.dropped), (3, names(&["token"])));
}

#[test]
fn a_masked_column_that_was_made_anew_is_copied_again_and_its_default_is_told_to_nobody() {
    let columns = ["id", "mail", "name", "size"];
    let secret = Origin::Added { existing: Some("a secret".into()) };
    let origins = vec![kept("id"), kept("mail"), secret, kept("size")];
    let why = told(mixed(), &columns, origins, &["name"]).unwrap_err();
    assert_eq!(why, "column name was made anew, and is masked");
}

#[test]
fn columns_that_are_added_to_a_selection_are_nothing_to_the_sink() {
    let selected = TableTransform { select_columns: names(&["id", "name"]), ..entry() };
    let columns = ["id", "name", "born"];
    let origins = vec![kept("id"), kept("name"), Origin::Added { existing: None }];
    let change = told(selected, &columns, origins, &[]).unwrap();
    assert_eq!(change.columns, [kept("id"), kept("name")]);
}

#[test]
fn what_a_column_is_called_later_is_told_in_the_names_of_the_sink() {
    let later = |later| Origin::Kept { from: "token".into(), later };
    let columns = ["id", "mail", "name", "token", "size"];
    let of = |own| {
        let origins = vec![kept("id"), kept("mail"), kept("name"), later(own), kept("size")];
        told(mixed(), &columns, origins, &[]).unwrap().columns[2].clone()
    };
    assert_eq!(of(Later::Renamed("size".into())), later(Later::Renamed("height".into())));
    assert_eq!(of(Later::Renamed("mail".into())), later(Later::Dropped));
    assert_eq!(of(Later::Dropped), later(Later::Dropped));
}

#[test]
fn generated_columns_are_told_as_far_as_they_are_carried() {
    let steps = steps(TableTransform { drop_columns: names(&["mail"]), ..entry() });
    let relation = whole();
    let plan = steps.plan(&relation).unwrap();
    let generated = vec![
        Generated::Dropped("twice".into()),
        Generated::Added("mail".into()),
        Generated::Renamed("mail".into(), "half".into()),
        Generated::Renamed("half".into(), "mail".into()),
    ];
    let change = Change { generated, ..Change::default() };
    let told = steps.change(&relation, &plan, &change).unwrap().generated;
    let expected = [
        Generated::Dropped("twice".into()),
        Generated::Added("half".into()),
        Generated::Dropped("half".into()),
    ];
    assert_eq!(told, expected);
}

#[test]
fn the_shape_that_is_kept_in_the_sink_holds_no_value_of_a_hidden_column() {
    let part = |name: &str| PartColumn {
        number: 1,
        name: name.into(),
        version: 1,
        default: 7,
        missing: Some(format!("secret of {name}")),
    };
    let mut shape = TableShape {
        columns: ["mail", "name", "token"].map(shape_column).into(),
        parts: vec![ShapePart {
            id: 1,
            file: 1,
            toast: 1,
            entries: Vec::new(),
            columns: ["mail", "name", "token"].map(part).into(),
        }],
        ..TableShape::default()
    };
    let steps = steps(mixed());
    steps.veil(&mut shape);
    let missing: Vec<_> = shape.parts[0].columns.iter().map(|column| column.missing.as_deref()).collect();
    assert_eq!(missing, [Some(""), Some(""), Some("secret of token")]);
    let carried: Vec<String> = steps.shape(&shape).columns.into_iter().map(|column| column.name).collect();
    assert_eq!(carried, ["name", "token"]);
}

fn shape_column(name: &str) -> ShapeColumn {
    ShapeColumn {
        number: 1,
        name: name.into(),
        type_oid: 25,
        type_modifier: -1,
        is_not_null: false,
        is_generated: false,
        default: 0,
    }
}
