//! Limits on `multipleOf`. The automaton of a multiple has a state for each remainder and is built
//! when the schema is compiled.

use std::collections::HashSet;

use serde_json::Value;

use super::{Holds, parts, resolve};
use crate::structured::constraint::StructuredError;

/// Maximum divisor, in units of its last decimal place: 0.01 is 1, 2.5 is 25.
pub const MAX_MULTIPLE: u64 = 10_000;
/// Decimal places.
const MAX_PLACES: u32 = 9;

/// Refuses a schema if a divisor is too large: a single one, or the least common multiple of those
/// that apply together through `allOf`, `$ref` and similar.
pub fn check(root: &Value) -> Result<(), StructuredError> {
    let mut seen = HashSet::new();
    let mut open = vec![root];
    while let Some(value) = open.pop() {
        let Some(object) = value.as_object() else {
            continue;
        };
        let together = multiples_at(root, value);
        // The compiler refuses numbers that are not positive.
        let numbers: Vec<f64> = together.iter().filter_map(|value| value.as_f64()).collect();
        if least_common(&numbers).is_none() {
            let numbers: Vec<String> = together.iter().map(ToString::to_string).collect();
            return Err(StructuredError::Multiple {
                numbers: numbers.join(", "),
                limit: MAX_MULTIPLE,
            });
        }
        let parts = parts(object).into_iter();
        open.extend(parts.filter_map(|(holds, _, part)| (holds != Holds::Data).then_some(part)));
        let target = object.get("$ref").and_then(Value::as_str);
        let target = target.and_then(|path| resolve(root, path));
        open.extend(target.filter(|target| seen.insert(std::ptr::from_ref::<Value>(target))));
    }
    Ok(())
}

/// All `multipleOf` that apply to one value. Those of alternatives count as if all applied.
fn multiples_at<'a>(root: &'a Value, schema: &'a Value) -> Vec<&'a Value> {
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    let mut open = vec![schema];
    while let Some(value) = open.pop() {
        let Some(object) = value.as_object() else {
            continue;
        };
        if !seen.insert(std::ptr::from_ref(value)) {
            continue;
        }
        found.extend(object.get("multipleOf"));
        for name in ["allOf", "anyOf", "oneOf"] {
            open.extend(
                object
                    .get(name)
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten(),
            );
        }
        let target = object.get("$ref").and_then(Value::as_str);
        open.extend(target.and_then(|path| resolve(root, path)));
    }
    found
}

/// In units of the last decimal place of any of them; `None` beyond the limit.
fn least_common(numbers: &[f64]) -> Option<u64> {
    let decimals: Option<Vec<(u64, u32)>> = numbers.iter().map(|n| decimal(n.abs())).collect();
    let decimals = decimals?;
    let places = decimals
        .iter()
        .map(|(_, places)| *places)
        .max()
        .unwrap_or(0);
    let mut common = 1_u64;
    for (digits, own_places) in decimals {
        if digits == 0 {
            continue;
        }
        let digits = digits.checked_mul(10_u64.checked_pow(places - own_places)?)?;
        common = (common / greatest_divisor(common, digits)).checked_mul(digits)?;
        if common > MAX_MULTIPLE {
            return None;
        }
    }
    Some(common)
}

/// A number's digits without its point, and the number of decimal places.
fn decimal(number: f64) -> Option<(u64, u32)> {
    let text = number.to_string();
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let places = u32::try_from(fraction.len()).ok()?;
    if places > MAX_PLACES {
        return None;
    }
    let digits = format!("{whole}{fraction}").parse().ok()?;
    Some((digits, places))
}

fn greatest_divisor(a: u64, b: u64) -> u64 {
    if b == 0 {
        a
    } else {
        greatest_divisor(b, a % b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ordinary_multiples_pass_and_large_ones_are_refused_with_their_numbers() {
        for schema in [
            json!({"multipleOf": 0.01}),
            json!({"multipleOf": 1e-9}),
            json!({"multipleOf": 10_000}),
            json!({"allOf": [{"multipleOf": 12}, {"multipleOf": 18}], "multipleOf": 0.5}),
            // Two values, not one.
            json!({"properties": {"a": {"multipleOf": 9973}, "b": {"multipleOf": 9967}}}),
            json!({"const": {"multipleOf": 999_983}}),
            json!({"properties": {"multipleOf": {"type": "integer"}}}),
        ] {
            assert_eq!(check(&schema), Ok(()), "{schema}");
        }
        let refused = json!({"multipleOf": 9967, "$ref": "#/$defs/a", "$defs": {
            "a": {"multipleOf": 9973}}});
        for (schema, numbers) in [
            (json!({"multipleOf": 10_001}), "10001"),
            (json!({"multipleOf": 1e300}), "1e+300"),
            (json!({"multipleOf": 1e-10}), "1e-10"),
            (json!({"multipleOf": 100.01}), "100.01"),
            (json!({"items": {"multipleOf": 999_983}}), "999983"),
            (
                json!({"$ref": "#/x", "x": {"multipleOf": 999_983}}),
                "999983",
            ),
            (
                json!({"allOf": [{"type": "integer", "multipleOf": 9973}, {"multipleOf": 9967}]}),
                "9967, 9973",
            ),
            (refused, "9967, 9973"),
        ] {
            let limit = MAX_MULTIPLE;
            let numbers = numbers.to_owned();
            let error = StructuredError::Multiple { numbers, limit };
            assert_eq!(check(&schema), Err(error), "{schema}");
        }
    }
}
