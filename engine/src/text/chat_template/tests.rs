use flate2::read::GzDecoder;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::*;

/// Known differences of minijinja, and why they are acceptable.
const KNOWN_DIFFERENCES: &[&str] = &[
    // Jinja2's `attr` finds no item of a mapping, only Python attributes.
    "{{ messages[0] | attr('role') }}",
    "{{ messages | max(attribute='n') | attr('role') }}",
    // A cycler does not return the next item in advance.
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}",
    // Macros accept only the arguments that they name.
    "{% macro m(a, b=2) %}{{ a }}{{ b }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1) }}{{ m(1, b=3) }}",
];

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

/// A recorded file of tests/data.
fn recorded<T: DeserializeOwned>(packed: &[u8]) -> T {
    serde_json::from_reader(GzDecoder::new(packed)).expect("a record")
}

/// Every template of the file, rendered by Jinja2 with transformers' settings.
#[test]
fn renders_what_jinja2_renders() {
    let cases: Vec<Json> = recorded(include_bytes!("../../../tests/data/chat_templates.json.gz"));
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
}

/// Everything that nests, `n` times: within a tag, and by tags.
fn nested(n: usize) -> (Vec<String>, Vec<String>) {
    let repeated = |text: &str| text.repeat(n);
    let of_one_tag = [
        ("{{ ", "[", "", "]", " }}"),
        ("{{ ", "(", "1", ")", " }}"),
        ("{{ ", "{1:", "1", "}", " }}"),
        ("{% set ", "(", "a", ")", " = 1 %}"),
        ("{{ ", "not ", "x", "", " }}"),
        ("{{ ", "-", "x", "", " }}"),
        ("{{ x", "|list", "", "", " }}"),
        ("{% filter upper", "|upper", "", "", " %}x{% endfilter %}"),
        ("{{ x", ".a", "", "", " }}"),
        ("{{ x", "[0]", "", "", " }}"),
        ("{{ x", "()", "", "", " }}"),
        ("{{ x", "+x", "", "", " }}"),
        ("{{ x", " or x", "", "", " }}"),
        ("{{ x", " is string", "", "", " }}"),
        ("{{ x", " if x else x", "", "", " }}"),
    ];
    let of_many_tags = [
        ("", "{% if x %}", "", "{% endif %}", ""),
        ("", "{% for a in [1] %}", "", "{% endfor %}", ""),
        ("{% if x %}", "{% elif x %}", "", "", "{% endif %}"),
        ("{% set x = [] %}", "{% set x = [x] %}", "", "", "{{ x }}"),
    ];
    let write = |(before, open, inner, close, after): &(&str, &str, &str, &str, &str)| {
        format!(
            "{before}{}{inner}{}{after}",
            repeated(open),
            repeated(close)
        )
    };
    (
        of_one_tag.iter().map(write).collect(),
        of_many_tags.iter().map(write).collect(),
    )
}

#[test]
fn what_is_too_long_to_nest_safely_is_refused_before_it_is_parsed() {
    let (of_one_tag, of_many_tags) = nested(90_000);
    for source in of_one_tag.iter().chain(&of_many_tags) {
        let message = template(source).render(&input(&[])).unwrap_err();
        let message = message.to_string();
        let says = |n: &str, limit: usize| {
            message.contains(n) && message.contains(&format!("the limit is {limit}"))
        };
        assert!(
            says(&source.len().to_string(), compile::MAX_SOURCE_BYTES)
                || says("tokens", compile::MAX_TAG_TOKENS),
            "{source:.20}…: {message}"
        );
    }
    let (of_one_tag, _) = nested(compile::MAX_TAG_TOKENS);
    for source in of_one_tag {
        let message = template(&source).render(&input(&[])).unwrap_err();
        let message = message.to_string();
        let limit = format!("tokens, the limit is {}", compile::MAX_TAG_TOKENS);
        assert!(message.contains(&limit), "{source:.20}…: {message}");
    }
}

/// A failure of this test aborts the process.
#[test]
fn what_nests_as_deep_as_a_template_may_ends_in_a_text_or_an_error() {
    let render = |source: &str| template(source).render(&input(&[]));
    let is_refused = |outcome: &Result<String, TextError>| {
        let message = outcome.as_ref().err().map(ToString::to_string);
        message.is_some_and(|message| message.contains("the limit is"))
    };
    let mut n_rendered = 0;
    for (i, one) in nested(1).0.iter().enumerate() {
        // By the number of repeated tokens.
        let deepest = [4090, 2040, 1360, 1020, 810].map(|n| nested(n).0.swap_remove(i));
        let mut outcomes = deepest.iter().map(|source| render(source));
        let outcome = outcomes.find(|outcome| !is_refused(outcome));
        n_rendered += usize::from(outcome.unwrap_or_else(|| panic!("{one}: refused")).is_ok());
    }
    for (i, (one, two)) in nested(1).1.iter().zip(nested(2).1).enumerate() {
        let n = (compile::MAX_SOURCE_BYTES - 64) / (two.len() - one.len());
        let outcome = render(&nested(n).1[i]);
        assert!(!is_refused(&outcome), "{one}: refused");
        n_rendered += usize::from(outcome.is_ok());
    }
    assert!(n_rendered > 5, "{n_rendered}");
}

/// Lists nested as deep as the instructions allow, and everything that traverses them.
#[test]
fn values_nested_as_deep_as_the_fuel_allows_have_stack_enough() {
    let (opened, closed) = ("[".repeat(60), "]".repeat(60));
    let wrap = |name: &str| format!("{{% set ns.{name} = {opened}ns.{name}{closed} %}}");
    let looped = |body: &str, n: usize| format!("{{% for i in range({n}) %}}{body}{{% endfor %}}");
    let start = "{% set ns = namespace(x=[], y=[]) %}";
    let one = format!("{start}{}", looped(&wrap("x"), 14_000));
    let two = format!("{start}{}", looped(&(wrap("x") + &wrap("y")), 7_000));
    let n_levels = 14_000 * 60 + 1;
    let printed = "[".repeat(n_levels) + &"]".repeat(n_levels);
    for (nests, walks, expected) in [
        (&one, "{{ ns.x }}", printed.as_str()),
        (&one, "{{ ns.x | string | length }}", "1680002"),
        (&two, "{{ ns.x == ns.y }}{{ ns.x < ns.y }}", "TrueFalse"),
        (&two, "{{ [ns.x] in [[ns.y]] }}", "True"),
        (&two, "{{ [ns.x, ns.y] | unique | list | length }}", "1"),
    ] {
        let text = template(&format!("{nests}{walks}")).render(&input(&[]));
        let text = text.unwrap_or_else(|error| panic!("{walks}: {error}"));
        assert!(
            text.eq_ignore_ascii_case(expected),
            "{walks}: {} bytes, {text:.80}",
            text.len()
        );
    }
    let endless = format!("{start}{}", looped(&wrap("x"), 90_000));
    let error = template(&endless).render(&input(&[])).unwrap_err();
    assert!(
        matches!(error, TextError::TemplateLimit { limit: FUEL, .. }),
        "{error}"
    );
    let json = format!("{one}{{{{ ns.x | tojson }}}}");
    assert!(template(&json).render(&input(&[])).is_err());
}

#[test]
fn the_date_is_available() {
    let text = template("{{ strftime_now('%Y-%m-%d') }}")
        .render(&input(&[]))
        .unwrap();
    let year: i32 = text[..4].parse().unwrap();
    assert!(text.len() == 10 && year >= 2024, "{text}");
}

/// Tests, filters, globals, methods and statements, compared with Jinja2.
#[test]
fn builtins_do_what_jinja2s_do() {
    let table: Json = recorded(include_bytes!("../../../tests/data/jinja_builtins.json.gz"));
    let cases = table["cases"].as_array().unwrap();
    assert!(cases.len() > 400);
    let extra = table["context"].as_object().cloned().unwrap();
    let mut wrong = Vec::new();
    for case in cases {
        let source = case["source"].as_str().unwrap();
        if KNOWN_DIFFERENCES.contains(&source) {
            continue;
        }
        let mut extra = extra.clone();
        let messages = extra.remove("messages").unwrap();
        let result = template(source).render(&ChatInput {
            extra,
            ..input(messages.as_array().unwrap())
        });
        let is_right = match (&result, case["rendered"].as_str()) {
            (Ok(text), Some(expected)) => text == expected,
            (Err(_), None) => true,
            _ => false,
        };
        if !is_right {
            let expected = case["rendered"].as_str().or(case["error"].as_str());
            wrong.push(format!(
                "{source}\n  got      {result:?}\n  expected {expected:?}"
            ));
        }
    }
    let n_wrong = wrong.len();
    assert!(wrong.is_empty(), "{n_wrong} wrong:\n{}", wrong.join("\n"));
}

/// Like Qwen3's template: drops messages of unknown roles.
const DROPPING: &str = "{% for m in messages %}{% if m.role in ['user', 'assistant'] or \
    (m.role == 'system' and loop.first) %}<{{ m.role }}>{{ m.content }}</>{% elif m.role == 'tool' %}\
    <result>{{ m.content }}</>{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";

fn message(role: &str, content: &str) -> Json {
    json!({"role": role, "content": content})
}

#[test]
fn the_developer_is_the_system_unless_the_template_knows_it() {
    let messages = [message("developer", "be brief"), message("user", "hi")];
    let text = template(DROPPING).render_conversation(&input(&messages), false);
    assert_eq!(text.unwrap(), "<system>be brief</><user>hi</><assistant>");
    let knows = "{% for m in messages %}{% if m.role == 'developer' %}D{% endif %}{{ m.content }}{% endfor %}";
    let text = template(knows).render_conversation(&input(&messages), false);
    assert_eq!(text.unwrap(), "Dbe briefhi");
    // A template that prints any role.
    let any = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}";
    let text = template(any).render_conversation(&input(&messages), false);
    assert_eq!(text.unwrap(), "<system>be brief<user>hi");
}

#[test]
fn no_message_is_left_out_silently() {
    let user = || message("user", "hi");
    let left_out =
        |messages: &[Json]| match template(DROPPING).render_conversation(&input(messages), false) {
            Err(TextError::RoleLeftOut { index, role }) => Some((index, role)),
            Ok(_) => None,
            Err(error) => panic!("{error}"),
        };
    for (messages, expected) in [
        (
            vec![user(), message("function", "42")],
            Some((1, "function")),
        ),
        (vec![message("robot", "x"), user()], Some((0, "robot"))),
        // The content occurs elsewhere in the text.
        (vec![message("robot", "hi"), user()], Some((0, "robot"))),
        (
            vec![user(), message("system", "later")],
            Some((1, "system")),
        ),
        (
            vec![message("system", "a"), message("developer", "b")],
            Some((1, "system")),
        ),
        (vec![user(), message("tool", "42")], None),
        (vec![user(), message("tool", "")], None),
        (
            vec![message("system", ""), user(), message("assistant", "")],
            None,
        ),
    ] {
        let expected = expected.map(|(index, role): (usize, &str)| (index, role.to_owned()));
        assert_eq!(left_out(&messages), expected, "{messages:?}");
    }
}

#[test]
fn a_last_message_is_continued() {
    let continued = |source: &str, content: &str| {
        let messages = [message("user", "hi"), message("assistant", content)];
        let mut input = input(&messages);
        input.add_generation_prompt = false;
        template(source).render_conversation(&input, true)
    };
    let text = continued(DROPPING, "Sure, ").unwrap();
    assert_eq!(text, "<user>hi</><assistant>Sure, ");
    assert_eq!(continued(DROPPING, "").unwrap(), "<user>hi</><assistant>");
    // The same text twice: the last one counts.
    assert_eq!(
        continued(DROPPING, "hi").unwrap(),
        "<user>hi</><assistant>hi"
    );
    // A template that trims contents trims this one too, as in transformers.
    let trims = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</>{% endfor %}";
    let text = continued(trims, " Sure, ").unwrap();
    assert_eq!(text, "<user>hi</><assistant>Sure,");
    let hides = "{{ messages[0].content }}";
    assert!(matches!(
        continued(hides, "x"),
        Err(TextError::NotContinued)
    ));
}

#[test]
fn an_operators_template_keeps_the_checkpoints_tokens() {
    let theirs = template("{{ bos_token }}theirs");
    let ours = theirs.with_source("{{ bos_token }}ours").unwrap();
    assert_eq!(ours.render(&input(&[])).unwrap(), "<s>ours");
    let in_json = ours
        .with_source(r#"{"chat_template": "{{ eos_token }}json"}"#)
        .unwrap();
    assert_eq!(in_json.render(&input(&[])).unwrap(), "</s>json");
    assert!(in_json.with_source("{% if %}").is_err());
}

/// Prompts whose last message is to be continued, as transformers renders them.
#[test]
fn continued_messages_end_as_transformers_ends_them() {
    let cases: Vec<Json> = recorded(include_bytes!(
        "../../../tests/data/continued_chats.json.gz"
    ));
    assert!(cases.len() > 30);
    for case in &cases {
        let mut input = input(case["messages"].as_array().unwrap());
        input.add_generation_prompt = false;
        let template = template(case["source"].as_str().unwrap());
        let text = template.render_conversation(&input, true).unwrap();
        assert_eq!(
            text,
            case["rendered"].as_str().unwrap(),
            "{}",
            case["messages"]
        );
    }
}

/// transformers stores additional templates in a separate folder.
#[test]
fn additional_templates_are_read_beside_the_first() {
    let dir = tempfile::tempdir().expect("a folder");
    let further = dir.path().join("additional_chat_templates");
    std::fs::create_dir(&further).expect("made");
    std::fs::write(dir.path().join("chat_template.jinja"), "plain").expect("written");
    std::fs::write(further.join("tool_use.jinja"), "with tools").expect("written");
    std::fs::write(further.join("notes.txt"), "{% broken").expect("written");
    let template = ChatTemplate::from_folder(dir.path()).expect("reads");
    let rendered = |tools: Option<&[Json]>| {
        let input = ChatInput {
            messages: &[],
            tools,
            add_generation_prompt: false,
            extra: Map::new(),
        };
        template.render(&input).expect("renders")
    };
    assert_eq!(rendered(None), "plain");
    assert_eq!(rendered(Some(&[Json::Null])), "with tools");
}
