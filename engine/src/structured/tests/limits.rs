//! Constraints that would exhaust stack, memory or time: each at its limit, and beyond.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::{END, compile, grammars, walk};
use crate::guide::{Guide, GuideError};
use crate::structured::nesting::{MAX_NESTING, depth};
use crate::structured::{Constraint, Preamble, StructuredError};

/// The stack of a server thread.
const STACK_BYTES: usize = 2 << 20;

/// A constraint of `n` links, and the levels that each of them adds.
type Chain = (&'static str, fn(usize) -> Constraint);

const CHAINS: [Chain; 8] = [
    ("rules", |n| {
        let chain: Vec<String> = (1..n - 1).map(|i| format!("r{i}: r{}\n", i + 1)).collect();
        let chain = chain.concat();
        Constraint::Lark(format!("start: r1\n{chain}r{}: \"x\"", n - 1))
    }),
    ("terminals", |n| {
        let link = |i| format!("R{i}: \"x\" R{}\n", i + 1);
        let chain = (1..n - 1).map(link).collect::<Vec<_>>().concat();
        Constraint::Lark(format!("start: R1\n{chain}R{}: \"x\"", n - 1))
    }),
    ("$ref", |n| schemas(n, |next| next)),
    ("properties", |n| {
        schemas(n / 2, |next| json!({"properties": {"a": next}}))
    }),
    ("anyOf", |n| {
        schemas(n / 2, |next| json!({"anyOf": [next, {"type": "null"}]}))
    }),
    ("items", |n| schemas(n / 2, |next| json!({"items": next}))),
    ("allOf", |n| {
        schemas(n / 2, |next| json!({"allOf": [next, {"title": "a"}]}))
    }),
    ("forced call", |n| {
        let Constraint::JsonSchema(schema) = schemas(n / 2, |next| json!({"items": next})) else {
            unreachable!("a schema");
        };
        Constraint::LarkWithJson {
            lark: "start: \"<a>\" @json_0".to_owned(),
            schemas: vec![schema],
        }
    }),
];

/// `n` definitions, each of which refers to the next. The root is one level.
fn schemas(n: usize, link: fn(Value) -> Value) -> Constraint {
    let mut definitions = Map::new();
    for i in 1..n {
        let next = json!({"$ref": format!("#/$defs/{}", i + 1)});
        definitions.insert(i.to_string(), link(next));
    }
    definitions.insert(n.to_string(), json!({"type": "boolean"}));
    Constraint::JsonSchema(json!({"$defs": definitions, "$ref": "#/$defs/1"}))
}

fn on_a_servers_stack<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = thread::Builder::new().stack_size(STACK_BYTES);
        let thread = thread.spawn_scoped(scope, work).expect("a thread");
        thread.join().expect("no panic")
    })
}

/// Each would have aborted the process.
#[test]
fn chains_are_compiled_up_to_the_limit_and_refused_beyond_it() {
    for (name, chain) in CHAINS {
        let at_limit = (1..=MAX_NESTING)
            .rev()
            .map(chain)
            .find(|constraint| depth(constraint) <= MAX_NESTING)
            .expect("a chain");
        assert!(depth(&at_limit) + 2 >= MAX_NESTING, "{name}");
        on_a_servers_stack(|| {
            // Whether it is refused does not matter here: compiling must return, and masks must be
            // computed and everything dropped on an ordinary stack.
            let compiled = compile(&at_limit, Preamble::Nothing);
            match compiled {
                Ok(grammar) => {
                    let _ = walk(&grammar, 7, 20);
                }
                Err(error) => assert!(!matches!(error, StructuredError::TooDeep { .. }), "{name}"),
            }
        });
        for n in [MAX_NESTING + 2, 10 * MAX_NESTING] {
            let beyond = chain(n);
            let error = grammars(16 << 20)
                .compile(&beyond, Preamble::Nothing, 1)
                .err()
                .expect("refused");
            let (depth, limit) = (depth(&beyond), MAX_NESTING);
            let what = beyond.what();
            assert_eq!(error, StructuredError::TooDeep { what, depth, limit });
            let message = error.to_string();
            assert!(
                message.contains(&format!("{depth} levels deep")),
                "{message}"
            );
            assert!(message.contains("the limit is 1000"), "{message}");
        }
    }
}

#[test]
fn brackets_of_regular_expressions_have_a_limit() {
    for n in [10, 200, 300, 30_000] {
        let regex = format!("{}a{}", "(".repeat(n), ")".repeat(n));
        for constraint in [
            Constraint::Regex(regex.clone()),
            Constraint::JsonSchema(json!({"type": "string", "pattern": regex})),
            Constraint::Lark(format!("start: /{regex}/")),
        ] {
            let compiled = on_a_servers_stack(|| compile(&constraint, Preamble::Nothing).err());
            assert_eq!(compiled.is_some(), n > 250, "{n}: {compiled:?}");
        }
    }
}

/// The slowest accepted constraints; beyond the limits they would take minutes and gigabytes.
#[test]
fn compiling_ends_soon_whatever_the_numbers_are() {
    let integer = |multiple: u64| json!({"type": "integer", "multipleOf": multiple});
    for (constraint, is_refused) in [
        (Constraint::JsonSchema(integer(9973)), false),
        (Constraint::JsonSchema(integer(999_983)), true),
        (
            Constraint::JsonSchema(json!({"allOf": [integer(9973), {"multipleOf": 9967}]})),
            true,
        ),
        (
            Constraint::Lark(format!("start: %json {}", integer(999_983))),
            true,
        ),
        (Constraint::Regex("(a{1000}){1000}".to_owned()), false),
        (Constraint::Regex(".*[ab].{300}z".to_owned()), false),
        (
            Constraint::JsonSchema(json!({"allOf": [
                {"type": "string", "pattern": ".*[ab].{50}z"},
                {"pattern": ".*[cd].{50}z"},
                {"pattern": ".*[ef].{50}z"},
            ]})),
            false,
        ),
    ] {
        let begun = Instant::now();
        let compiled = compile(&constraint, Preamble::Nothing);
        // Without optimisation, on a busy machine.
        assert!(begun.elapsed() < Duration::from_secs(20), "{constraint:?}");
        if is_refused {
            assert!(matches!(
                compiled.err(),
                Some(StructuredError::Multiple { .. })
            ));
        }
    }
}

/// Work that grows faster than the schema or the grammar.
#[test]
fn compiling_ends_soon_whatever_is_combined() {
    let alternatives = |i: usize| {
        let option =
            |name: &str| json!({"type": "object", "properties": {format!("{name}{i}"): true}});
        json!({"anyOf": [option("a"), option("b")]})
    };
    let hard = |i: usize| (format!("[ab]{{{i}}}.*[ab].{{40}}z$"), json!(true));
    let patterns = |n: usize| json!({"patternProperties": (0..n).map(hard).collect::<Map<_, _>>()});
    let disjoint = |n: usize| {
        let patterns = (0..n).map(|i| (format!("^n{i}[ab]*$"), json!(true)));
        json!({"patternProperties": patterns.collect::<Map<_, _>>()})
    };
    let nulls = json!({"anyOf": vec![json!({"type": "null"}); 400]});
    let wide: Map<_, _> = (0..600)
        .map(|i| (format!("p{i}"), json!({"type": "null"})))
        .collect();
    let wide = json!({"type": "object", "properties": wide});
    let combined: Vec<Value> = (0..40)
        .flat_map(|_| [json!({"$ref": "#/$defs/n"}), json!({"$ref": "#/$defs/w"})])
        .collect();
    let names: Vec<String> = (0..900).map(|i| format!("n{i}")).collect();
    let text: String = (0..40_000_u32)
        .map(|i| char::from(b'a' + (i * i % 26) as u8))
        .collect();
    let repeats: Vec<String> = (0..2000).map(|i| format!("(a|b){{{i}}}c|")).collect();
    for constraint in [
        Constraint::JsonSchema(json!({"allOf": (0..20).map(alternatives).collect::<Vec<_>>()})),
        Constraint::JsonSchema(patterns(10)),
        Constraint::JsonSchema(patterns(1000)),
        Constraint::JsonSchema(disjoint(100)),
        Constraint::JsonSchema(json!({
            "$defs": {"n": nulls, "w": wide}, "allOf": combined,
        })),
        Constraint::JsonSchema(json!({
            "$defs": {"n": nulls, "w": wide},
            "anyOf": (0..40).map(|_| json!({
                "$ref": "#/$defs/w", "properties": {"p1": {"$ref": "#/$defs/n"}},
            })).collect::<Vec<_>>(),
        })),
        Constraint::JsonSchema(json!({"allOf": vec![patterns(8); 50]})),
        Constraint::JsonSchema(json!({"oneOf": names.iter().map(|name| json!({
            "type": "object", "properties": {"k": {"const": name}}, "required": ["k"],
        })).collect::<Vec<_>>()})),
        Constraint::JsonSchema(
            json!({"type": "array", "items": {"enum": names}, "minItems": 29_999}),
        ),
        Constraint::JsonSchema(json!({"type": "string", "maxLength": 1_000_000_000})),
        Constraint::Lark("start: a{1,100000}\na: \"x\" b{1,100000}\nb: \"y\"".to_owned()),
        Constraint::Lark(
            "start: A\nA: ~(/.*[ab].{20}z/) & /.*[cd].{20}z/ & /.*[ef].{20}z/".to_owned(),
        ),
        Constraint::Lark(format!("start: %regex {{\"substring_chars\": {text:?}}}")),
        Constraint::Regex("((a|b)*a(a|b){9}){9}".to_owned()),
        Constraint::Regex(repeats.concat()),
    ] {
        let begun = Instant::now();
        let compiled = compile(&constraint, Preamble::Nothing);
        let shown: String = format!("{constraint:?}").chars().take(90).collect();
        match compiled {
            Ok(grammar) => drop(walk(&grammar, 7, 30)),
            Err(error) => assert!(!error.to_string().contains("panic"), "{shown}: {error}"),
        }
        // Without optimisation, on a busy machine.
        assert!(begun.elapsed() < Duration::from_mins(1), "{shown}");
    }
}

/// Found before anything is generated, even if a text would get there late.
#[test]
fn more_alternatives_than_can_be_followed_are_refused() {
    let properties = |n: usize| {
        let names = (0..n).map(|i| (format!("p{i}"), json!({"type": "boolean"})));
        json!({"type": "object", "properties": names.collect::<Map<_, _>>()})
    };
    let rules = |n: usize| {
        let names: Vec<String> = (0..n).map(|i| format!("r{i}")).collect();
        let rules: Vec<String> = names
            .iter()
            .map(|name| format!("{name}: \"{name}\" x\n"))
            .collect();
        let rules = rules.concat();
        Constraint::Lark(format!(
            "start: {}\nx: \"x\" x | \"y\"\n{rules}",
            names.join(" | ")
        ))
    };
    for constraint in [
        Constraint::JsonSchema(properties(100)),
        Constraint::JsonSchema(properties(500)),
        rules(500),
    ] {
        assert_eq!(compile(&constraint, Preamble::Nothing).err(), None);
    }
    for constraint in [
        Constraint::JsonSchema(properties(2000)),
        Constraint::JsonSchema(json!({"type": "array", "items": properties(2000)})),
        rules(10_000),
    ] {
        let grammars = grammars(16 << 20);
        let error = grammars.compile(&constraint, Preamble::Nothing, 1).err();
        let error = error.expect("refused").to_string();
        assert!(
            error.contains("the limit") || error.contains("too"),
            "{error}"
        );
    }
}

/// 128 choices that each take a different path through an automaton of 2^300 states.
#[test]
fn lexers_of_all_choices_together_have_a_limit() {
    let constraint = Constraint::Regex(".*[ab].{300}z".to_owned());
    let grammar = grammars(1 << 16)
        .compile(&constraint, Preamble::Nothing, 128)
        .expect("compiles");
    let guides: Vec<_> = (0..128).map(|_| grammar.guide()).collect();
    let mut slowest = Duration::ZERO;
    let mut seed = 1_u64;
    'text: for i in 0..400 {
        for guide in &guides {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            let one = Instant::now();
            let Some(mask) = guide.mask(i) else {
                break 'text;
            };
            slowest = slowest.max(one.elapsed());
            let token = b"abcz"[(seed % 4) as usize];
            assert!(mask.allows(token.into()) || mask.allows(END));
            guide.advance(i, token.into());
        }
    }
    let failure = guides.iter().find_map(Guide::failure);
    let what = "states of its automaton, over all choices of the request";
    let limit = 32_000;
    assert_eq!(failure, Some(GuideError::TooLarge { what, limit }));
    // Without optimisation, on a busy machine; one mask delays all rows of a step.
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
}

/// A form as large as real ones get: an invoice of customers, addresses and lines with patterns,
/// formats, ranges and a long enumeration, in sixteen choices that go different ways. Random texts go
/// through more states than a model's do.
#[test]
fn large_honest_schemas_stay_below_the_limit_of_states() {
    let countries: Vec<String> = (0..250).map(|i| format!("country {i:03}")).collect();
    let address = json!({
        "type": "object",
        "properties": {
            "street": {"type": "string", "maxLength": 80},
            "zip": {"type": "string", "pattern": "^[0-9]{5}(-[0-9]{4})?$"},
            "country": {"enum": countries},
        },
        "required": ["street", "zip", "country"],
    });
    let mut properties = json!({
        "id": {"type": "string", "format": "uuid"},
        "at": {"type": "string", "format": "date-time"},
        "email": {"type": "string", "format": "email"},
        "billing": {"$ref": "#/$defs/address"},
        "delivery": {"$ref": "#/$defs/address"},
        "lines": {"type": "array", "minItems": 2, "maxItems": 40, "items": {
            "type": "object",
            "properties": {
                "sku": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{6}$"},
                "count": {"type": "integer", "minimum": 1, "maximum": 9999},
                "price": {"type": "number", "minimum": 0, "maximum": 100_000},
                "note": {"type": ["string", "null"], "maxLength": 200},
            },
            "required": ["sku", "count", "price"],
        }},
    });
    let fields = properties.as_object_mut().expect("an object");
    for i in 0..60 {
        fields.insert(
            format!("field_{i}"),
            json!({"type": "string", "maxLength": 30 + i}),
        );
    }
    let required: Vec<String> = fields.keys().cloned().collect();
    let schema = json!({
        "$defs": {"address": address}, "type": "object", "properties": properties,
        "required": required, "additionalProperties": false,
    });
    let grammar = grammars(1 << 20)
        .compile(&Constraint::JsonSchema(schema), Preamble::Nothing, 16)
        .expect("compiles");
    let guides: Vec<_> = (0..16).map(|_| grammar.guide()).collect();
    let mut seed = 1_u64;
    for i in 0..250 {
        for guide in &guides {
            let mask = guide.mask(i);
            assert_eq!(guide.failure(), None, "after {i} tokens");
            let allowed = mask.expect("a mask").allowed();
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            guide.advance(i, allowed[(seed % allowed.len() as u64) as usize]);
        }
    }
}
