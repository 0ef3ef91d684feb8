//! How deep a constraint nests, found without recursion and before anything is compiled.
//!
//! The compiler calls itself for each rule that a rule names, each `$ref` of a schema, each bracket
//! and each schema within a schema, so a few kilobytes of one regular pattern would ask for any
//! stack. Of a chain that closes on itself every member counts once: no call visits one twice.
//! Regular expressions have a limit of their own in their parser.

mod chain;
mod lark;
mod schema;

pub(super) use self::lark::schemas as schemas_in_lark;
use super::constraint::Constraint;

/// Levels that a constraint may nest. Grammars of programming languages and schemas of
/// configuration files have a few dozen.
pub(super) const MAX_NESTING: usize = 1000;

/// Levels of the deepest chain; an upper bound of how deep the compiler calls itself.
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
