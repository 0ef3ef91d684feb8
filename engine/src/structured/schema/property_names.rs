//! Rewrites `propertyNames`: the compiler supports listed names and name patterns.

use serde_json::{Map, Value, json};

use super::rewrite::{ANNOTATIONS, Names, refused};
use crate::structured::constraint::StructuredError;

/// Names from a list or pattern become `patternProperties`, and all others are forbidden.
pub(super) fn rewrite_property_names(
    object: &mut Map<String, Value>,
    allowed: &Value,
    names: &Names,
    path: &str,
) -> Result<(), StructuredError> {
    const KEYWORD: &str = "propertyNames";
    let unusable = || {
        let reason = "only a list of names (enum, const), a pattern or a length is supported";
        refused(KEYWORD, path, reason)
    };
    let allowed = names.followed(allowed).ok_or_else(unusable)?;
    let mut allowed = match allowed {
        Value::Bool(true) => return Ok(()),
        Value::Object(allowed) => allowed,
        _ => return Err(unusable()),
    };
    allowed.retain(|name, _| {
        // Names are strings. Formats of names are annotations.
        !ANNOTATIONS.contains(&name.as_str()) && name != "type" && name != "format"
    });
    if allowed.is_empty() {
        return Ok(());
    }
    let is_only = |names: &[&str]| allowed.keys().all(|name| names.contains(&name.as_str()));
    let listed: Option<Vec<&str>> = match (allowed.get("enum"), allowed.get("const")) {
        (Some(Value::Array(names)), None) => names.iter().map(Value::as_str).collect(),
        (None, Some(name)) => name.as_str().map(|name| vec![name]),
        _ => None,
    };
    if let Some(listed) = listed.filter(|_| is_only(&["enum", "const"])) {
        restrict_to(object, &listed);
        return Ok(());
    }
    if object.contains_key("properties") || object.contains_key("patternProperties") {
        let reason =
            "together with properties or patternProperties only a list of names is supported";
        return Err(refused(KEYWORD, path, reason));
    }
    let pattern = if is_only(&["pattern"]) {
        allowed
            .get("pattern")
            .and_then(Value::as_str)
            .map(str::to_owned)
    } else if is_only(&["minLength", "maxLength"]) {
        let length = |name| allowed.get(name).and_then(Value::as_u64);
        let least = length("minLength").unwrap_or(0);
        let most = length("maxLength")
            .map(|n| n.to_string())
            .unwrap_or_default();
        Some(format!("^[\\s\\S]{{{least},{most}}}$"))
    } else {
        None
    };
    let pattern = pattern.ok_or_else(unusable)?;
    let value = object.remove("additionalProperties").unwrap_or(json!(true));
    object.insert("patternProperties".to_owned(), json!({pattern: value}));
    object.insert("additionalProperties".to_owned(), json!(false));
    Ok(())
}

/// Listed names become properties, like the existing ones.
fn restrict_to(object: &mut Map<String, Value>, listed: &[&str]) {
    let additional = object
        .insert("additionalProperties".to_owned(), json!(false))
        .unwrap_or(json!(true));
    let has_patterns = object.contains_key("patternProperties");
    let properties = object.entry("properties").or_insert(json!({}));
    if let Some(properties) = properties.as_object_mut() {
        for (name, schema) in properties.iter_mut() {
            if !listed.contains(&name.as_str()) {
                *schema = json!(false);
            }
        }
        for name in listed {
            // A pattern's schema applies to the names that it matches.
            let schema = if has_patterns {
                json!(true)
            } else {
                additional.clone()
            };
            properties.entry(*name).or_insert(schema);
        }
    }
}
