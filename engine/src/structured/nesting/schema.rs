//! The depth of a JSON schema: schemas within schemas, and the targets of `$ref`.

use std::collections::HashMap;

use serde_json::Value;

use super::chain::longest;
use crate::structured::schema::{Holds, parts, resolve};

/// Each target of a `$ref` is a node, the root is the first; a node's weight is the depth of its
/// tree.
pub(super) fn depth(root: &Value) -> usize {
    let mut nodes: Vec<&Value> = vec![root];
    let mut index_of: HashMap<*const Value, usize> = HashMap::from([(std::ptr::from_ref(root), 0)]);
    let (mut weights, mut references) = (Vec::new(), Vec::new());
    let mut n_measured = 0;
    while let Some(node) = nodes.get(n_measured).copied() {
        n_measured += 1;
        let (weight, targets) = tree(root, node);
        weights.push(weight);
        let targets = targets.into_iter().map(|target| {
            *index_of
                .entry(std::ptr::from_ref(target))
                .or_insert_with(|| {
                    nodes.push(target);
                    nodes.len() - 1
                })
        });
        references.push(targets.collect());
    }
    longest(&weights, &references)
}

/// The depth of the schema itself, and the targets of its `$ref`s. The compiler refuses invalid
/// ones.
fn tree<'a>(root: &'a Value, node: &'a Value) -> (usize, Vec<&'a Value>) {
    let mut deepest = 0;
    let mut targets = Vec::new();
    let mut open = vec![(node, 1)];
    while let Some((value, level)) = open.pop() {
        deepest = deepest.max(level);
        let Some(object) = value.as_object() else {
            continue;
        };
        let reference = object.get("$ref").and_then(Value::as_str);
        targets.extend(reference.and_then(|path| resolve(root, path)));
        for (holds, _, part) in parts(object) {
            match holds {
                Holds::Schemas => open.push((part, level + 1)),
                Holds::Data => deepest = deepest.max(level + data_depth(part)),
                // Reached only through `$ref`.
                Holds::Definitions | Holds::Nothing => {}
            }
        }
    }
    (deepest, targets)
}

fn data_depth(data: &Value) -> usize {
    let mut deepest = 0;
    let mut open = vec![(data, 1)];
    while let Some((value, level)) = open.pop() {
        deepest = deepest.max(level);
        match value {
            Value::Array(items) => open.extend(items.iter().map(|item| (item, level + 1))),
            Value::Object(fields) => open.extend(fields.values().map(|item| (item, level + 1))),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn schemas_within_schemas_and_references_count() {
        for (schema, expected) in [
            (json!(true), 1),
            (json!({"type": "object"}), 1),
            (json!({"properties": {"a": {"items": {}}}}), 3),
            (json!({"enum": [[[1]]]}), 5),
            // Unused definitions are not compiled.
            (json!({"$defs": {"a": {"items": {"items": {}}}}}), 1),
            (
                json!({"$defs": {"a": {"items": {}}}, "$ref": "#/$defs/a"}),
                3,
            ),
            // A property with that name is not a definition.
            (json!({"properties": {"$defs": {"items": {}}}}), 3),
            (json!({"properties": {"next": {"$ref": "#"}}}), 2),
            (json!({"$ref": "#/nowhere"}), 1),
            (
                json!({"$defs": {
                    "a": {"anyOf": [{"$ref": "#/$defs/b"}, {"type": "null"}]},
                    "b": {"items": {"$ref": "#/$defs/a"}},
                }, "items": {"$ref": "#/$defs/a"}}),
                6,
            ),
        ] {
            assert_eq!(depth(&schema), expected, "{schema}");
        }
    }
}
