use serde_json::json;

use super::*;

fn template(source: &str) -> ChatTemplate {
    let special = [("bos_token", "<s>"), ("eos_token", "</s>")];
    ChatTemplate::new(
        &[(DEFAULT.to_owned(), source.to_owned())],
        special
            .map(|(name, text)| (name.to_owned(), text.to_owned()))
            .to_vec(),
    )
}

fn input(messages: &[Json]) -> ChatInput<'_> {
    ChatInput {
        messages,
        tools: None,
        add_generation_prompt: true,
        extra: Map::new(),
    }
}

/// Every template of the file, rendered by Jinja2 with transformers' settings.
#[test]
fn renders_what_jinja2_renders() {
    let cases: Vec<Json> =
        serde_json::from_str(include_str!("../../../tests/data/chat_templates.json")).unwrap();
    assert!(cases.len() >= 48);
    let mut wrong = Vec::new();
    for case in &cases {
        let template = template(case["source"].as_str().unwrap());
        let messages = case["messages"].as_array().unwrap();
        let result = template.render(&ChatInput {
            messages,
            tools: case["tools"].as_array().map(Vec::as_slice),
            add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap(),
            extra: Map::new(),
        });
        let is_right = match (&result, case["rendered"].as_str()) {
            (Ok(text), Some(expected)) => text == expected,
            (Err(TextError::TemplateRefused { message }), None) => {
                case["refused"] == true && case["error"] == message.as_str()
            }
            (Err(TextError::Template { .. }), None) => case["refused"] == false,
            _ => false,
        };
        if !is_right {
            let expected = case["rendered"]
                .as_str()
                .or(case["error"].as_str())
                .unwrap();
            wrong.push(format!(
                "{}\n  got      {result:?}\n  expected {expected:?}",
                case["name"]
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn extra_variables_reach_the_template_and_own_names_are_safe() {
    let template = template("{{ mode }}{{ n + 1 }}{{ bos_token }}");
    let extra = |pairs: Json| pairs.as_object().cloned().unwrap();
    let mut with = input(&[]);
    with.extra = extra(json!({"mode": "x", "n": 2}));
    assert_eq!(template.render(&with).unwrap(), "x3<s>");
    with.extra = extra(json!({"messages": []}));
    let error = template.render(&with).unwrap_err();
    assert!(
        matches!(error, TextError::TemplateRefused { .. }),
        "{error}"
    );
}

#[test]
fn named_templates_are_chosen_by_tools() {
    let config = json!({"chat_template": [
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "tools {{ tools | length }}"},
    ]});
    let template = ChatTemplate::new(&named_sources(&config), Vec::new());
    assert_eq!(template.render(&input(&[])).unwrap(), "plain");
    let tools = [json!({})];
    let with_tools = ChatInput {
        tools: Some(&tools),
        ..input(&[])
    };
    assert_eq!(template.render(&with_tools).unwrap(), "tools 1");
}

#[test]
fn a_missing_or_broken_template_fails_at_the_request() {
    let absent = ChatTemplate::new(&[], Vec::new());
    assert!(matches!(absent.problem(), Some(TextError::NoChatTemplate)));
    assert!(matches!(
        absent.render(&input(&[])),
        Err(TextError::NoChatTemplate)
    ));
    let broken = template("{% if %}");
    assert!(broken.problem().is_some());
    assert!(matches!(
        broken.render(&input(&[])),
        Err(TextError::Template { .. })
    ));
}

#[test]
fn hostile_templates_run_into_limits() {
    let limit = |source: &str| template(source).render(&input(&[])).unwrap_err();
    let endless = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}";
    assert!(matches!(
        limit(endless),
        TextError::TemplateLimit {
            unit: "instructions",
            ..
        }
    ));
    let long = "{% for a in range(90000) %}{{ 'x' * 1000 }}{% endfor %}";
    assert!(matches!(
        limit(long),
        TextError::TemplateLimit {
            unit: "output bytes",
            ..
        }
    ));
    let doubling = "{% set ns = namespace(x='aaaaaaaa') %}{% for a in range(60) %}\
                    {% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}";
    assert!(matches!(
        limit(doubling),
        TextError::TemplateLimit {
            unit: "output bytes",
            ..
        }
    ));
    let macros = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
    assert!(matches!(limit(macros), TextError::Template { .. }));
    let nested = format!("{{{{ {}1{} }}}}", "(".repeat(5000), ")".repeat(5000));
    assert!(matches!(limit(&nested), TextError::Template { .. }));
}

#[test]
fn the_date_is_available() {
    let text = template("{{ strftime_now('%Y-%m-%d') }}")
        .render(&input(&[]))
        .unwrap();
    let year: i32 = text[..4].parse().unwrap();
    assert!(text.len() == 10 && year >= 2024, "{text}");
}
