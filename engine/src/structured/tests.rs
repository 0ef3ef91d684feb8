//! Constraints over a vocabulary of bytes, sampled at random.

mod limits;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Constraint, Grammar, Grammars, Preamble, StructuredError};
use crate::guide::Guide;
use crate::text::Tokenizer;

const END: u32 = 257;
const N_VOCAB: usize = 300;

/// 256 bytes, and two special tokens, the second of which ends a text.
pub(crate) fn grammars(max_bytes: usize) -> Grammars {
    let tokenizer = Arc::new(Tokenizer::of_bytes(&["<|im_start|>", "<|im_end|>"]));
    Grammars::new(tokenizer, N_VOCAB, &[END], max_bytes)
}

/// For tests of a guide's states.
pub(crate) fn guide_of(regex: &str) -> Guide {
    grammar_of(regex).guide()
}

pub(crate) fn grammar_of(regex: &str) -> Grammar {
    let grammar = compile(&Constraint::Regex(regex.to_owned()), Preamble::Nothing);
    grammar.expect("compiles")
}

fn compile(constraint: &Constraint, preamble: Preamble) -> Result<Grammar, StructuredError> {
    grammars(1 << 16).compile(constraint, preamble, 1)
}

/// A text that the grammar allows, chosen by a seed; `None` if it did not end within `n_tokens`.
fn walk(grammar: &Grammar, seed: u64, n_tokens: usize) -> Option<String> {
    let guide = grammar.guide();
    let mut hash = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::new();
    for i in 0..n_tokens {
        let mask = guide.mask(i).expect("a mask");
        let allowed = mask.allowed();
        assert!(!allowed.is_empty(), "no token is allowed after {bytes:?}");
        assert!(
            allowed.iter().all(|id| *id < 256 || *id == END),
            "{allowed:?}"
        );
        hash ^= hash << 13;
        hash ^= hash >> 7;
        hash ^= hash << 17;
        let token = allowed[(hash % allowed.len() as u64) as usize];
        guide.advance(i, token);
        if token == END {
            return Some(String::from_utf8(bytes).expect("UTF-8"));
        }
        bytes.push(token as u8);
    }
    assert_eq!(guide.failure(), None);
    None
}

/// The texts of many walks that ended.
fn texts(constraint: &Constraint, preamble: Preamble) -> Vec<String> {
    let grammar = compile(constraint, preamble).expect("compiles");
    let texts: Vec<String> = (1..40)
        .filter_map(|seed| walk(&grammar, seed, 400))
        .collect();
    assert!(texts.len() > 10, "only {} walks ended", texts.len());
    texts
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 5},
            "size": {"enum": ["small", "large"]},
            "count": {"type": "integer", "minimum": 0, "maximum": 20},
        },
        "required": ["name", "size", "count"],
        "additionalProperties": false,
    })
}

#[test]
fn a_walk_under_a_schema_ends_as_an_instance_of_it() {
    for text in texts(&Constraint::JsonSchema(schema()), Preamble::Nothing) {
        let value: Value = serde_json::from_str(&text).expect("JSON");
        let object = value.as_object().expect("an object");
        assert_eq!(object.len(), 3, "{text}");
        assert!(object["name"].as_str().expect("a string").chars().count() <= 5);
        assert!(["small", "large"].contains(&object["size"].as_str().expect("a string")));
        assert!((0..=20).contains(&object["count"].as_i64().expect("an integer")));
    }
}

#[test]
fn a_walk_under_choices_or_a_regex_ends_as_one_of_them() {
    let choices = ["예", "아니요", "say \"maybe\"\n"].map(str::to_owned);
    for text in texts(&Constraint::Choice(choices.to_vec()), Preamble::Nothing) {
        assert!(choices.contains(&text), "{text:?}");
    }
    let regex = Constraint::Regex(r"[0-9]{3}-[가-나]{2}(a|b)?".to_owned());
    for text in texts(&regex, Preamble::Nothing) {
        let chars: Vec<char> = text.chars().collect();
        assert!(
            chars[..3].iter().all(char::is_ascii_digit) && chars[3] == '-',
            "{text}"
        );
        assert!(
            chars[4..6].iter().all(|c| ('가'..='나').contains(c)),
            "{text}"
        );
        assert!(matches!(chars[6..], [] | ['a' | 'b']), "{text}");
    }
    let lark = Constraint::Lark("start: item (\",\" item)~1..3\nitem: /[a-c]/".to_owned());
    for text in texts(&lark, Preamble::Nothing) {
        let items: Vec<&str> = text.split(',').collect();
        assert!((2..=4).contains(&items.len()), "{text}");
        assert!(
            items.iter().all(|item| ["a", "b", "c"].contains(item)),
            "{text}"
        );
    }
}

#[test]
fn a_thought_may_come_first_where_it_is_allowed() {
    let choices = Constraint::Choice(vec!["yes".to_owned(), "no".to_owned()]);
    let grammar = compile(&choices, Preamble::MaybeThought).expect("compiles");
    let follow = |text: &str| {
        let guide = grammar.guide();
        for (i, byte) in text.bytes().enumerate() {
            let mask = guide.mask(i).expect("a mask");
            if !mask.allows(byte.into()) {
                return Err(i);
            }
            guide.advance(i, byte.into());
        }
        let mask = guide.mask(text.len()).expect("a mask");
        if mask.allows(END) {
            Ok(())
        } else {
            Err(text.len())
        }
    };
    assert_eq!(follow("yes"), Ok(()));
    assert_eq!(follow("<think>a < b, 그래서</think>\n\nno"), Ok(()));
    assert_eq!(follow("<think>a"), Err(8));
    assert_eq!(follow("<think>a</think>maybe"), Err(16));
    let grammar = compile(&choices, Preamble::RestOfThought).expect("compiles");
    let first = grammar.guide().mask(0).expect("a mask");
    assert!(first.allows(u32::from(b'z')) && !first.allows(END));
}

#[test]
fn a_grammar_may_refer_to_schemas() {
    let constraint = Constraint::LarkWithJson {
        lark: "start: \"<a>\" @json_0 \"</a>\" | \"<b>\" @json_1 \"</b>\"".to_owned(),
        schemas: vec![json!({"enum": [1, 2]}), json!({"type": "boolean"})],
    };
    for text in texts(&constraint, Preamble::Nothing) {
        let all = ["<a>1</a>", "<a>2</a>", "<b>true</b>", "<b>false</b>"];
        assert!(all.contains(&text.as_str()), "{text}");
    }
}

/// A model that writes white space wherever it is allowed still reaches the end.
#[test]
fn white_space_has_an_end() {
    for constraint in [Constraint::JsonSchema(schema()), Constraint::JsonObject] {
        for blank in [b'\n', b'\t', b' ', b'\r'] {
            let grammar = compile(&constraint, Preamble::Nothing).expect("compiles");
            let guide = grammar.guide();
            let (mut longest, mut run, mut is_in_string) = (0, 0, false);
            for i in 0..400 {
                let mask = guide.mask(i).expect("a mask");
                let blanks = [blank, b'\n', b'\t', b' ', b'\r'].map(u32::from);
                let mut blanks = blanks.into_iter().filter(|_| !is_in_string);
                let token = blanks.find(|blank| mask.allows(*blank));
                run = if token.is_some() { run + 1 } else { 0 };
                longest = longest.max(run);
                // Ends strings and the object if possible.
                let other = || {
                    let ends = [END, u32::from(b'}'), u32::from(b'"')];
                    let mut ends = ends.into_iter().skip(if is_in_string { 2 } else { 0 });
                    let end = ends.find(|end| mask.allows(*end));
                    end.unwrap_or_else(|| mask.allowed()[0])
                };
                let token = token.unwrap_or_else(other);
                if token == END {
                    break;
                }
                is_in_string ^= token == u32::from(b'"');
                guide.advance(i, token);
            }
            // Two line breaks of two bytes and 20 blanks.
            assert!((1..=24).contains(&longest), "{constraint:?}: {longest}");
        }
    }
}

#[test]
fn what_cannot_be_used_is_refused_with_the_reason() {
    let large = Constraint::Regex("a".repeat(100));
    let error = grammars(99).compile(&large, Preamble::Nothing, 1).err();
    let message = error.expect("too large").to_string();
    assert_eq!(
        message,
        "the regular expression has 100 bytes, the limit is 99 (--max-schema-bytes)"
    );
    for constraint in [
        Constraint::Regex("(".to_owned()),
        Constraint::JsonSchema(json!({"type": "strin"})),
        Constraint::JsonSchema(json!({"type": "object", "properties": 3})),
        Constraint::JsonSchema(json!({"allOf": [{"const": 1}, {"const": 2}]})),
        Constraint::Lark("start: nothing".to_owned()),
        Constraint::Regex("[b-a]".to_owned()),
        Constraint::Lark("start: \"a\" start".to_owned()),
        Constraint::JsonSchema(json!({
            "type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"],
        })),
    ] {
        let error = compile(&constraint, Preamble::Nothing).err();
        let message = error
            .unwrap_or_else(|| panic!("{constraint:?}"))
            .to_string();
        assert!(message.contains("cannot be used"), "{message}");
        assert!(message.len() < 2000, "{message}");
    }
    let tokenizer = Arc::new(Tokenizer::of_bytes(&[]));
    let endless = Grammars::new(tokenizer, 256, &[], 100);
    let error = endless.compile(&Constraint::JsonObject, Preamble::Nothing, 1);
    assert_eq!(error.err(), Some(StructuredError::NoEndToken));
}

#[test]
fn masks_are_made_beside_the_caller() {
    let grammar = compile(&Constraint::JsonSchema(schema()), Preamble::Nothing).expect("compiles");
    let guides: Vec<_> = (0..8).map(|_| grammar.guide()).collect();
    for (i, byte) in b"{\"name\"".iter().enumerate() {
        for guide in &guides {
            assert!(guide.mask(i).expect("a mask").allows(u32::from(*byte)));
            guide.advance(i, u32::from(*byte));
        }
        let begun = Instant::now();
        while !guides.iter().all(Guide::is_ready) {
            assert!(begun.elapsed() < Duration::from_secs(10), "no worker came");
            std::thread::yield_now();
        }
    }
    let counts = guides[0].mask_counts();
    assert_eq!((counts.ready, counts.late), (8 * 7, 0));
}

#[test]
fn a_token_counts_once_and_a_wrong_place_is_a_failure_of_its_own_guide() {
    let grammar =
        compile(&Constraint::Regex("ab".to_owned()), Preamble::Nothing).expect("compiles");
    let (guide, other) = (grammar.guide(), grammar.guide());
    guide.advance(0, u32::from(b'a'));
    guide.advance(0, u32::from(b'a'));
    let mask = guide.mask(1).expect("a mask");
    assert_eq!(mask.allowed(), [u32::from(b'b')]);
    assert!(guide.mask(5).is_none());
    assert!(guide.failure().is_some());
    assert_eq!(
        other.mask(0).map(|mask| mask.allowed()),
        Some(vec![u32::from(b'a')])
    );
}
