//! Checks a value against a structural schema, as an API server with strict field validation does.

use serde_json::{Map, Value};

use super::Mistake;

/// Everything in `object` that the schema of its kind does not allow. `apiVersion`, `kind` and `metadata`
/// are the API server's own and only need a name.
pub(super) fn mistakes(schema: &Value, object: &Value) -> Vec<Mistake> {
    let mut found = Vec::new();
    if object.pointer("/metadata/name").and_then(Value::as_str).is_none_or(str::is_empty) {
        found.push(Mistake {
            path: "metadata.name".into(),
            message: "required: give the pipeline a name".into(),
        });
    }
    let mut body = object.clone();
    if let Value::Object(fields) = &mut body {
        for envelope in ["apiVersion", "kind", "metadata"] {
            fields.remove(envelope);
        }
    }
    check(schema, &body, "", &mut found);
    found
}

fn check(schema: &Value, value: &Value, path: &str, found: &mut Vec<Mistake>) {
    if schema["x-kubernetes-int-or-string"] == true {
        if !value.is_string() && !value.is_i64() {
            report(found, path, format!("must be a whole number or a string, not {}", kind_of(value)));
        }
        return;
    }
    match (schema["type"].as_str(), value) {
        (Some("object"), Value::Object(fields)) => check_object(schema, fields, path, found),
        (Some("array"), Value::Array(items)) => check_array(schema, items, path, found),
        (Some("string"), Value::String(text)) => check_string(schema, text, path, found),
        (Some("integer"), Value::Number(number)) if number.is_i64() || number.is_u64() => {
            check_number(schema, number, path, found);
        }
        (Some("boolean"), Value::Bool(_)) | (None, _) => {}
        (Some(expected), _) => {
            report(found, path, format!("must be {}, not {}", article(expected), kind_of(value)));
        }
    }
}

fn check_object(schema: &Value, fields: &Map<String, Value>, path: &str, found: &mut Vec<Mistake>) {
    for required in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !fields.contains_key(required) {
            report(found, &join(path, required), "required".into());
        }
    }
    if let Some(most) = schema["maxProperties"].as_u64()
        && fields.len() as u64 > most
    {
        report(found, path, format!("must have at most {most} entries, not {}", fields.len()));
    }
    for (name, value) in fields {
        if let Some(property) = schema["properties"].get(name) {
            check(property, value, &join(path, name), found);
        } else if schema["additionalProperties"].is_object() {
            check(&schema["additionalProperties"], value, &join(path, name), found);
        } else {
            report(found, &join(path, name), unknown_field(schema));
        }
    }
}

fn unknown_field(schema: &Value) -> String {
    let known: Vec<&str> =
        schema["properties"].as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
    format!("unknown field; the fields here are {}", known.join(", "))
}

fn check_array(schema: &Value, items: &[Value], path: &str, found: &mut Vec<Mistake>) {
    let count = items.len() as u64;
    if let Some(most) = schema["maxItems"].as_u64().filter(|most| count > *most) {
        report(found, path, format!("must have at most {most} entries, not {count}"));
    }
    if let Some(least) = schema["minItems"].as_u64().filter(|least| count < *least) {
        report(found, path, format!("must have at least {least} entry, not {count}"));
    }
    for (index, item) in items.iter().enumerate() {
        let at = format!("{path}[{index}]");
        check(&schema["items"], item, &at, found);
        if items[..index].iter().any(|earlier| is_same_entry(schema, earlier, item)) {
            report(found, &at, format!("written twice: {item}; write it once"));
        }
    }
}

/// Whether two entries of a list mean the same, as `x-kubernetes-list-type` says.
fn is_same_entry(schema: &Value, one: &Value, other: &Value) -> bool {
    match schema["x-kubernetes-list-type"].as_str() {
        Some("set") => one == other,
        Some("map") => schema["x-kubernetes-list-map-keys"].as_array().is_some_and(|keys| {
            keys.iter().filter_map(Value::as_str).all(|key| one.get(key) == other.get(key))
        }),
        Some(_) | None => false,
    }
}

fn check_string(schema: &Value, text: &str, path: &str, found: &mut Vec<Mistake>) {
    if let Some(allowed) = schema["enum"].as_array() {
        let allowed: Vec<&str> = allowed.iter().filter_map(Value::as_str).collect();
        if !allowed.contains(&text) {
            report(found, path, format!("must be one of {}, not `{text}`", allowed.join(", ")));
        }
        return;
    }
    let length = text.chars().count() as u64;
    if let Some(most) = schema["maxLength"].as_u64().filter(|most| length > *most) {
        report(found, path, format!("must have at most {most} characters, not {length}"));
    }
    if let Some(least) = schema["minLength"].as_u64().filter(|least| length < *least) {
        let sentence = if length == 0 {
            "must not be empty".into()
        } else {
            format!("must have at least {least} characters")
        };
        report(found, path, sentence);
    }
}

fn check_number(schema: &Value, number: &serde_json::Number, path: &str, found: &mut Vec<Mistake>) {
    let value = number.as_i64().unwrap_or(i64::MAX);
    let least = schema["minimum"].as_i64().unwrap_or(i64::MIN);
    let most = schema["maximum"].as_i64().unwrap_or(i64::MAX);
    if !(least..=most).contains(&value) {
        report(found, path, format!("must be between {least} and {most}, not {number}"));
    }
}

fn report(found: &mut Vec<Mistake>, path: &str, message: String) {
    found.push(Mistake { path: path.to_owned(), message });
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn article(kind: &str) -> String {
    match kind {
        "object" | "array" | "integer" => format!("an {kind}"),
        other => format!("a {other}"),
    }
}

fn kind_of(value: &Value) -> String {
    match value {
        Value::Null => "empty (null)".into(),
        Value::Bool(flag) => format!("the boolean {flag}"),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => format!("the string `{text}`"),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
    }
}
