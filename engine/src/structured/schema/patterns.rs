//! Limits on `patternProperties`: for each pair of patterns the compiler proves that no name
//! matches both, and again wherever two schemas are combined.

use serde_json::Value;

use super::visit;
use crate::structured::constraint::StructuredError;

/// Maximum number of proofs for a schema, of about ten microseconds each.
const MAX_PROOFS: usize = 5_000;

/// Refuses schemas with too many patterns in too many combined schemas.
pub fn check(root: &Value) -> Result<(), StructuredError> {
    let (mut n_patterns, mut n_combined) = (0_usize, 1_usize);
    visit(root, "", &mut |schema, _| {
        let n_in = |name: &str| match schema.get(name) {
            Some(Value::Array(items)) => items.len(),
            Some(Value::Object(fields)) => fields.len(),
            Some(_) => 1,
            None => 0,
        };
        n_patterns += n_in("patternProperties");
        n_combined += n_in("allOf") + n_in("anyOf") + n_in("oneOf") + n_in("$ref");
    });
    let n_pairs = n_patterns * n_patterns.saturating_sub(1) / 2;
    let n_proofs = n_pairs.saturating_mul(n_combined);
    if n_proofs <= MAX_PROOFS {
        return Ok(());
    }
    Err(StructuredError::Keyword {
        keyword: "patternProperties".to_owned(),
        path: "#".to_owned(),
        reason: format!(
            "{n_patterns} patterns with {n_combined} schemas that are combined are {n_proofs} \
             comparisons, the limit is {MAX_PROOFS}"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Map, json};

    #[test]
    fn some_patterns_pass_and_hundreds_do_not() {
        let patterns = |n: usize| {
            let patterns = (0..n).map(|i| (format!("^n{i}$"), json!(true)));
            json!({"patternProperties": patterns.collect::<Map<_, _>>()})
        };
        for schema in [
            json!({"allOf": vec![json!({}); 10_000]}),
            patterns(1),
            patterns(100),
            json!({"allOf": vec![patterns(2); 8]}),
        ] {
            assert_eq!(check(&schema), Ok(()), "{schema}");
        }
        let definitions = json!({"p": patterns(20)});
        let references = vec![json!({"$ref": "#/$defs/p"}); 100];
        for schema in [
            patterns(101),
            json!({"items": patterns(1000)}),
            json!({"$defs": definitions, "allOf": references}),
        ] {
            let error = check(&schema).expect_err("refused").to_string();
            assert!(error.contains("patternProperties"), "{error}");
            assert!(error.contains("the limit is 5000"), "{error}");
        }
    }
}
