//! Simplifies `$ref`s: targets whose path contains escapes (`~0`, `~1`, `%25`), and anchors, are
//! moved to a definition with a plain name.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::{visit, visit_mut};

const PREFIX: &str = "target-";

/// Rewrites every `$ref` within the document without escapes. Invalid ones, and those to another
/// document, are left for the compiler to refuse.
pub(super) fn make_plain(root: &mut Value) {
    let (references, anchors) = collect(root);
    let mut targets: HashMap<String, String> = HashMap::new();
    for reference in references {
        let Some(fragment) = reference.strip_prefix('#') else {
            continue;
        };
        let Some(decoded) = percent_decoded(fragment) else {
            continue;
        };
        let pointer = match anchors.get(&decoded) {
            Some(pointer) => pointer.clone(),
            None if decoded != fragment || decoded.contains('~') => decoded,
            None => continue,
        };
        if root.pointer(&pointer).is_some() {
            targets.insert(reference, pointer);
        }
    }
    if targets.is_empty() {
        return;
    }
    // Inner ones first: a target within another target is moved out of it.
    let mut pointers: Vec<String> = targets.values().cloned().collect();
    pointers.sort_by_key(|pointer| std::cmp::Reverse(pointer.matches('/').count()));
    pointers.dedup();
    let mut moved: HashMap<String, String> = HashMap::new();
    let mut definitions = Map::new();
    for pointer in pointers {
        let name = format!("{PREFIX}{}", definitions.len());
        let path = format!("#/$defs/{name}");
        if pointer.is_empty() {
            moved.insert(pointer, "#".to_owned());
        } else if !moved.contains_key(&pointer)
            && let Some(target) = root.pointer_mut(&pointer)
        {
            let schema = std::mem::replace(target, json!({"$ref": path}));
            definitions.insert(name, schema);
            moved.insert(pointer, path);
        }
    }
    let plain: HashMap<String, String> = targets
        .into_iter()
        .filter_map(|(reference, pointer)| Some((reference, moved.get(&pointer)?.clone())))
        .collect();
    if let Some(object) = root.as_object_mut()
        && let Some(all) = object.entry("$defs").or_insert(json!({})).as_object_mut()
    {
        all.extend(definitions);
    }
    replace(root, &plain);
}

/// Moves a schema to `path` (`#/…`) of another document: its `$ref`s keep their targets.
pub(crate) fn moved(mut schema: Value, path: &str) -> Value {
    make_plain(&mut schema);
    visit_mut(&mut schema, &mut |schema| {
        let reference = schema.get("$ref").and_then(Value::as_str);
        if let Some(fragment) = reference.and_then(|text| text.strip_prefix('#')) {
            let moved = format!("{path}{fragment}");
            schema.insert("$ref".to_owned(), json!(moved));
        }
    });
    schema
}

/// All `$ref`s, and the location of each `$anchor`.
fn collect(root: &Value) -> (Vec<String>, HashMap<String, String>) {
    let (mut references, mut anchors) = (Vec::new(), HashMap::new());
    visit(root, "", &mut |schema, path| {
        let text = |name: &str| schema.get(name).and_then(Value::as_str).map(str::to_owned);
        references.extend(text("$ref"));
        anchors.extend(text("$anchor").map(|anchor| (anchor, path.to_owned())));
    });
    (references, anchors)
}

fn replace(root: &mut Value, plain: &HashMap<String, String>) {
    visit_mut(root, &mut |schema| {
        let reference = schema.get("$ref").and_then(Value::as_str);
        if let Some(path) = reference.and_then(|reference| plain.get(reference)) {
            schema.insert("$ref".to_owned(), json!(path));
        }
    });
}

/// `None` if it is not UTF-8.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).filter(|_| *first == b'%');
        let digits = digits.filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() {
            &after[2..]
        } else {
            after
        };
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(mut schema: Value) -> Value {
        make_plain(&mut schema);
        schema
    }

    #[test]
    fn a_schema_that_moves_takes_its_references_along() {
        let schema = json!({
            "$ref": "#/$defs/a~1b",
            "$defs": {"a/b": {"items": {"$ref": "#"}}, "c": {"$ref": "https://example.com/#x"}},
        });
        let document = json!({"items": moved(schema, "#/items")});
        let first = document["items"]["$ref"].as_str().expect("a path");
        let target = document.pointer(&first[1..]).expect("a target");
        assert_eq!(target["items"]["$ref"], "#/items");
        assert_eq!(
            document["items"]["$defs"]["c"]["$ref"],
            "https://example.com/#x"
        );
    }

    #[test]
    fn targets_with_escapes_and_anchors_move_to_plain_names() {
        for (schema, reference, target) in [
            (
                json!({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"const": 1}}}),
                "#/$defs/target-0",
                json!({"const": 1}),
            ),
            (
                json!({"$ref": "#/$defs/a%25~0b", "$defs": {"a%~b": {"const": 1}}}),
                "#/$defs/target-0",
                json!({"const": 1}),
            ),
            (
                json!({"$ref": "#/definitions/Foo%3CBar%3E", "definitions": {"Foo<Bar>": {"const": 1}}}),
                "#/$defs/target-0",
                json!({"const": 1}),
            ),
            (
                json!({"$ref": "#here", "$defs": {"a": {"$anchor": "here", "const": 1}}}),
                "#/$defs/target-0",
                json!({"$anchor": "here", "const": 1}),
            ),
        ] {
            let written = plain(schema);
            assert_eq!(written["$ref"], reference, "{written}");
            assert_eq!(written.pointer(&reference[1..]), Some(&target), "{written}");
        }
        // One within the other, and one that refers to itself.
        let written = plain(json!({
            "properties": {
                "a/b": {"properties": {"c/d": {"const": 1}, "e": {"$ref": "#/properties/a~1b"}}},
                "f": {"$ref": "#/properties/a~1b/properties/c~1d"},
            },
        }));
        let f = written["properties"]["f"]["$ref"].as_str().expect("a path");
        assert_eq!(written.pointer(&f[1..]), Some(&json!({"const": 1})));
        let outer = written["properties"]["a/b"]["$ref"]
            .as_str()
            .expect("a path");
        let outer_schema = written.pointer(&outer[1..]).expect("a schema");
        assert_eq!(outer_schema["properties"]["e"]["$ref"], outer);
        // Nothing to do, or nothing that could be done.
        for schema in [
            json!({"$ref": "#/$defs/a", "$defs": {"a": {}}}),
            json!({"properties": {"a": {"$ref": "#"}}}),
            json!({"$ref": "#/$defs/a~1b"}),
            json!({"$ref": "#/$defs/a%+1%", "$defs": {"a%+1%": {}}}),
            json!({"$ref": "https://example.com/a~1b"}),
            json!(true),
        ] {
            assert_eq!(plain(schema.clone()), schema);
        }
    }
}
