//! The nesting depth of a constraint, computed without recursion and before anything is compiled.
//!
//! The compiler recurses for each rule that a rule names, each `$ref` of a schema, each bracket and
//! each schema within a schema, so a few kilobytes of one pattern could exhaust any stack. In a
//! cyclic chain every member counts once: no recursion visits one twice. Regular expressions have
//! their own limit in their parser.

mod chain;
mod lark;
mod schema;

pub(super) use self::lark::schemas as schemas_in_lark;
use super::constraint::Constraint;

/// Maximum nesting of a constraint. Grammars of programming languages and schemas of configuration
/// files have a few dozen levels.
pub(super) const MAX_NESTING: usize = 1000;

/// Levels of the deepest chain; an upper bound of the compiler's recursion depth.
pub(super) fn depth(constraint: &Constraint) -> usize {
    match constraint {
        Constraint::JsonObject | Constraint::Regex(_) | Constraint::Choice(_) => 1,
        Constraint::JsonSchema(schema) => schema::depth(schema),
        Constraint::Lark(text) => lark::depth(text),
        Constraint::LarkWithJson { lark, schemas } => {
            let schemas = schemas.iter().map(schema::depth);
            lark::depth(lark).max(schemas.max().unwrap_or(0))
        }
    }
}
