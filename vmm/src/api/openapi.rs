//! The OpenAPI document, from the calls and types that are served.
//!
//! The generator speaks OpenAPI 3.1; the generators of this field's clients speak 3.0, where a type is one word and an
//! absent value is told by the member not being required. The differences that our types meet are rewritten.

use serde_json::{Map, Value};

use super::routes;

/// The document, OpenAPI 3.0.
pub fn document() -> Value {
    let document = routes::calls().into_openapi();
    let mut document =
        serde_json::to_value(document).expect("the document is maps with string keys, which are always JSON");
    downgrade(&mut document);
    document["openapi"] = Value::from("3.0.1");
    document
}

/// Turns the schemas within `value` from 3.1 to 3.0.
fn downgrade(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(downgrade),
        Value::Object(object) => {
            object.values_mut().for_each(downgrade);
            one_type(object);
            one_choice(object);
            // 3.0 has no word for what keys look like; JSON's are always strings.
            object.remove("propertyNames");
        }
        _ => {}
    }
}

/// `type: [T, "null"]` is `type: T` with `nullable` in 3.0.
fn one_type(object: &mut Map<String, Value>) {
    let Some(Value::Array(types)) = object.get_mut("type") else {
        return;
    };
    let nullable = types.iter().any(|t| t == "null");
    types.retain(|t| t != "null");
    if let [only] = types.as_mut_slice() {
        let only = only.take();
        object.insert("type".to_owned(), only);
        if nullable {
            object.insert("nullable".to_owned(), Value::from(true));
        }
    }
}

/// `oneOf: [{type: null}, S]` is `allOf: [S]` with `nullable` in 3.0.
fn one_choice(object: &mut Map<String, Value>) {
    let Some(Value::Array(choices)) = object.get_mut("oneOf") else {
        return;
    };
    let before = choices.len();
    choices.retain(|choice| choice.get("type").is_none_or(|t| t != "null"));
    if choices.len() == 1 && before == 2 {
        let choices = object.remove("oneOf").expect("it was found above");
        object.insert("allOf".to_owned(), choices);
        object.insert("nullable".to_owned(), Value::from(true));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_3_1_is_left() {
        fn walk(value: &Value) {
            match value {
                Value::Array(items) => items.iter().for_each(walk),
                Value::Object(object) => {
                    assert!(!matches!(object.get("type"), Some(Value::Array(_))), "{object:?}");
                    assert!(object.get("type").is_none_or(|t| t != "null"), "{object:?}");
                    assert!(!object.contains_key("propertyNames"), "{object:?}");
                    object.values().for_each(walk);
                }
                _ => {}
            }
        }
        let document = document();
        walk(&document);
        assert_eq!(document["openapi"], "3.0.1");
        let cpus = &document["components"]["schemas"]["CpusConfig"];
        assert_eq!(cpus["required"], serde_json::json!(["boot_vcpus", "max_vcpus"]));
        assert_eq!(cpus["properties"]["max_phys_bits"]["default"], 46);
        let payload = &document["components"]["schemas"]["PayloadConfig"]["properties"]["kernel"];
        assert_eq!(
            (&payload["type"], &payload["nullable"]),
            (&"string".into(), &true.into())
        );
    }

    #[test]
    fn what_is_referred_to_is_there() {
        fn walk(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Array(items) => items.iter().for_each(|v| walk(v, found)),
                Value::Object(object) => {
                    if let Some(Value::String(target)) = object.get("$ref") {
                        found.push(target.clone());
                    }
                    object.values().for_each(|v| walk(v, found));
                }
                _ => {}
            }
        }
        let (document, mut targets) = (document(), Vec::new());
        walk(&document, &mut targets);
        assert!(targets.iter().any(|t| t == "#/components/schemas/VmConfig"));
        for target in targets {
            assert!(document.pointer(target.trim_start_matches('#')).is_some(), "{target}");
        }
    }
}
