//! Valid inputs with deep nesting, which mutations of a small input do not produce. A recursive
//! parser needs more stack for them than its thread has.

use serde_json::{Value, json};

/// Levels; several times the parsers' own limits, in few bytes.
const N_LEVELS: usize = 1200;

pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    let texts: Vec<String> = match target {
        "grammar" => grammars(),
        "request" => vec![
            format!("{{\"guided_json\":{}}}", nested("{\"items\":", "{}", "}")),
            format!("{{\"messages\":{}}}", nested("[", "", "]")),
            format!(
                "{{\"tools\":[{{\"function\":{{\"name\":\"f\",\"parameters\":{}}}}}]}}",
                nested("[", "", "]")
            ),
        ],
        "config_json" | "tokenizer_json" | "imported" => {
            vec![nested("[", "", "]"), nested("{\"a\":", "1", "}")]
        }
        "tool_calls" => [
            "\u{6}<tool_call>{\"name\":\"f\",\"arguments\":",
            "\u{1b}{\"name\":\"f\",\"parameters\":",
        ]
        .map(|before| format!("{before}{}}}", nested("{\"a\":", "1", "}")))
        .to_vec(),
        "chat_template" => vec![
            format!("{{{{ {} }}}}", nested("(", "1", ")")),
            format!("{{{{ {} }}}}", nested("[", "1", "]")),
            format!("{{{{ {} }}}}", nested("not ", "x", "")),
            format!("{{{{ 1{} }}}}", "+1".repeat(N_LEVELS)),
            nested("{% if x %}", "y", "{% endif %}"),
        ],
        "sse" => vec![format!("\u{5}data: {}\n\n", nested("[", "", "]"))],
        "experiment_toml" => vec![
            format!("name = \"01-fuzz\"\na = {}\n", nested("[", "1", "]")),
            format!("name = \"01-fuzz\"\n{}x = 1\n", "a.".repeat(N_LEVELS)),
        ],
        _ => Vec::new(),
    };
    texts.into_iter().map(String::into_bytes).collect()
}

fn nested(open: &str, inner: &str, close: &str) -> String {
    format!("{}{inner}{}", open.repeat(N_LEVELS), close.repeat(N_LEVELS))
}

/// The first byte selects the kind; see `targets::grammar`.
fn grammars() -> Vec<String> {
    let rules = |n: usize| {
        let chain: Vec<String> = (0..n).map(|i| format!("r{i}: r{}\n", i + 1)).collect();
        let chain = chain.concat();
        format!("\u{7}start: r0\n{chain}r{n}: \"x\"\n")
    };
    let terminals = |n: usize| {
        let link = |i| format!("R{i}: \"x\" R{}\n", i + 1);
        let chain = (0..n).map(link).collect::<Vec<_>>().concat();
        format!("\u{7}start: R0\n{chain}R{n}: \"x\"\n")
    };
    let schema = |n: usize, link: &dyn Fn(Value) -> Value| {
        let mut definitions = serde_json::Map::new();
        for i in 0..n {
            let next = json!({"$ref": format!("#/$defs/{}", i + 1)});
            definitions.insert(i.to_string(), link(next));
        }
        definitions.insert(n.to_string(), json!({"type": "null"}));
        let schema = json!({"$defs": definitions, "$ref": "#/$defs/0"});
        format!("\0{schema}")
    };
    let mut seeds = Vec::new();
    // Short enough to be mutated a million times; below and above the limit on nesting.
    for n in [12, 90, 250] {
        seeds.extend([
            rules(n),
            terminals(n),
            schema(n, &|next| next),
            schema(n, &|next| json!({"items": next})),
            schema(n, &|next| json!({"properties": {"a": next}})),
            schema(n, &|next| json!({"anyOf": [next, {"type": "null"}]})),
            schema(n, &|next| json!({"allOf": [next, {"title": "a"}]})),
        ]);
    }
    seeds.push(rules(N_LEVELS));
    seeds.push(format!("\u{4}{}", nested("(", "a", ")")));
    seeds.push(format!("\u{7}start: {}", nested("(", "\"a\"", ")")));
    seeds
}
