//! JSON schemas as values: access to their parts, and rewriting before llguidance compiles them.

mod multiples;
mod patterns;
mod property_names;
mod references;
mod rewrite;

use serde_json::{Map, Value};

pub(crate) use references::moved;
pub(super) use rewrite::usable;

use super::constraint::StructuredError;

/// Refuses schemas that would take the compiler too long.
pub(super) fn check_work(schema: &Value) -> Result<(), StructuredError> {
    multiples::check(schema)?;
    patterns::check(schema)
}

/// What a schema's keyword contains.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    /// Schemas that apply at the keyword's own location.
    Schemas,
    /// Schemas that apply where a `$ref` names them.
    Definitions,
    /// JSON that instances are compared with.
    Data,
    /// Neither: annotations, numbers, keywords that no draft has.
    Nothing,
}

enum Shape {
    One,
    List,
    Named,
}

/// Classifies a keyword's values as schemas or data, and their arrangement.
fn keyword(name: &str, value: &Value) -> (Holds, Shape) {
    match name {
        "properties" | "patternProperties" | "dependentSchemas" => (Holds::Schemas, Shape::Named),
        "$defs" | "definitions" => (Holds::Definitions, Shape::Named),
        "allOf" | "anyOf" | "oneOf" | "prefixItems" => (Holds::Schemas, Shape::List),
        "items" if value.is_array() => (Holds::Schemas, Shape::List),
        "items"
        | "additionalItems"
        | "additionalProperties"
        | "propertyNames"
        | "contains"
        | "not"
        | "if"
        | "then"
        | "else"
        | "unevaluatedItems"
        | "unevaluatedProperties" => (Holds::Schemas, Shape::One),
        "const" | "enum" => (Holds::Data, Shape::One),
        _ => (Holds::Nothing, Shape::One),
    }
}

/// The parts of a schema object, each with its relative path.
pub(super) fn parts(schema: &Map<String, Value>) -> Vec<(Holds, String, &Value)> {
    let mut parts = Vec::new();
    for (name, value) in schema {
        let (holds, shape) = keyword(name, value);
        match (shape, value) {
            _ if holds == Holds::Nothing => {}
            (Shape::One, value) => parts.push((holds, format!("/{name}"), value)),
            (Shape::List, Value::Array(items)) => {
                let items = items.iter().enumerate();
                parts.extend(items.map(|(i, item)| (holds, format!("/{name}/{i}"), item)));
            }
            (Shape::Named, Value::Object(fields)) => {
                let path = |key| format!("/{name}/{}", escaped(key));
                parts.extend(fields.iter().map(|(key, part)| (holds, path(key), part)));
            }
            // Not a schema; the compiler reports it.
            (Shape::List | Shape::Named, _) => {}
        }
    }
    parts
}

/// As [`parts`], without data.
pub(super) fn schemas_mut(schema: &mut Map<String, Value>) -> Vec<(String, &mut Value)> {
    let mut parts = Vec::new();
    for (name, value) in schema.iter_mut() {
        let (holds, shape) = keyword(name, value);
        match (shape, value) {
            _ if !matches!(holds, Holds::Schemas | Holds::Definitions) => {}
            (Shape::One, value) => parts.push((format!("/{name}"), value)),
            (Shape::List, Value::Array(items)) => {
                let items = items.iter_mut().enumerate();
                parts.extend(items.map(|(i, item)| (format!("/{name}/{i}"), item)));
            }
            (Shape::Named, Value::Object(fields)) => {
                let path = |key| format!("/{name}/{}", escaped(key));
                parts.extend(fields.iter_mut().map(|(key, part)| (path(key), part)));
            }
            (Shape::List | Shape::Named, _) => {}
        }
    }
    parts
}

/// Every schema in a schema, itself included, with its path from the root.
pub(super) fn visit(schema: &Value, path: &str, look: &mut impl FnMut(&Map<String, Value>, &str)) {
    let Some(object) = schema.as_object() else {
        return;
    };
    look(object, path);
    for (holds, part_path, part) in parts(object) {
        if holds != Holds::Data {
            visit(part, &format!("{path}{part_path}"), look);
        }
    }
}

/// Changes every schema in a schema, itself included.
pub(super) fn visit_mut(schema: &mut Value, change: &mut impl FnMut(&mut Map<String, Value>)) {
    let Some(object) = schema.as_object_mut() else {
        return;
    };
    change(object);
    for (_, part) in schemas_mut(object) {
        visit_mut(part, change);
    }
}

/// A key as a step of a JSON pointer.
fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

/// The target of a `$ref` within its own document; `None` if there is none or it is in another
/// document.
pub(super) fn resolve<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    root.pointer(reference.strip_prefix('#')?)
}
