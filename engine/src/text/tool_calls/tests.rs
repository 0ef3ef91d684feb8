use proptest::prelude::*;

use serde_json::json;

use super::ToolCallFormat::{Hermes, Llama3Json, Qwen3Coder};
use super::{Tool, ToolCallFormat, ToolCallParser, ToolEvent};

/// Content, and (name, arguments) of each call.
fn parse(format: ToolCallFormat, pieces: &[String]) -> (String, Vec<(String, String)>) {
    parse_by(ToolCallParser::new(format), pieces)
}

fn parse_by(mut parser: ToolCallParser, pieces: &[String]) -> (String, Vec<(String, String)>) {
    let mut events = Vec::new();
    for piece in pieces {
        events.extend(parser.push(piece));
    }
    events.extend(parser.finish());
    let (mut content, mut calls) = (String::new(), Vec::new());
    for event in events {
        match event {
            ToolEvent::Content(text) => content.push_str(&text),
            ToolEvent::Call { name } => calls.push((name, String::new())),
            ToolEvent::Arguments(text) => {
                let (_, arguments) = calls.last_mut().expect("arguments belong to a call");
                arguments.push_str(&text);
            }
        }
    }
    (content, calls)
}

fn check(format: ToolCallFormat, text: &str, content: &str, calls: &[(&str, &str)]) {
    let calls: Vec<(String, String)> = calls
        .iter()
        .map(|(name, arguments)| ((*name).to_owned(), (*arguments).to_owned()))
        .collect();
    let expected = (content.to_owned(), calls);
    assert_eq!(parse(format, &[text.to_owned()]), expected, "{text:?}");
    let letters: Vec<String> = text.chars().map(String::from).collect();
    assert_eq!(parse(format, &letters), expected, "letters of {text:?}");
}

#[test]
fn hermes_calls_are_read_out_of_the_text() {
    let weather = "<tool_call>\n{\"name\": \"날씨\", \"arguments\": {\"city\": \"서울 }\\\"\"}}\n</tool_call>";
    let call = ("날씨", "{\"city\": \"서울 }\\\"\"}");
    check(Hermes, weather, "", &[call]);
    check(
        Hermes,
        &format!("{weather}\n{weather}\n"),
        "",
        &[call, call],
    );
    check(
        Hermes,
        &format!("Let me see.\n\n{weather}"),
        "Let me see.",
        &[call],
    );
    check(Hermes, "no call <tool", "no call <tool", &[]);
    check(Hermes, "a\n\nb \n", "a\n\nb \n", &[]);
    let reversed = "<tool_call>{\"arguments\": {\"a\": [1, {}]}, \"name\": \"f\"}</tool_call>";
    check(Hermes, reversed, "", &[("f", "{\"a\": [1, {}]}")]);
    check(
        Hermes,
        "<tool_call>{\"name\": \"f\"}</tool_call>",
        "",
        &[("f", "{}")],
    );
    let as_string = "<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": 1}\"}</tool_call>";
    check(Hermes, as_string, "", &[("f", "{\"a\": 1}")]);
    let tag_in_string =
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"</tool_call>\"}}</tool_call>";
    check(
        Hermes,
        tag_in_string,
        "",
        &[("f", "{\"a\": \"</tool_call>\"}")],
    );
}

#[test]
fn what_is_no_call_is_content() {
    for text in [
        "<tool_call>f(1)</tool_call>",
        "<tool_call>{\"city\": 1}</tool_call>",
        "<tool_call>",
    ] {
        check(Hermes, text, text, &[]);
    }
    // White space around text that is not a call is content too.
    for text in [
        "The tag <tool_call> is used to call. Done.",
        "a\n\n<tool_call>\n\nb\n",
        " <tool_call> {\"a\": 1} </tool_call> x",
        "a <tool_call>{\"name\": 1}\n",
    ] {
        check(Hermes, text, text, &[]);
    }
    // The second one is a call.
    let text = "<tool_call>x <tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>";
    check(Hermes, text, "<tool_call>x", &[("f", "{}")]);
    for text in [
        "{\"city\": 1}",
        "plain {\"name\": \"f\"}",
        "{\"name\"",
        "<|pyt",
        "{\"name\": \"Bob\", \"age\": 3}",
        "{\"name\":\"Bob\"}",
        "{\"name\": \"f\"} hello",
        " \n<|python_tag|> {\"name\": \"f\"}",
        "{\"name\": \"f\"",
    ] {
        check(Llama3Json, text, text, &[]);
    }
}

#[test]
fn all_that_stands_within_a_tag_is_read() {
    let (f, g) = ("{\"name\": \"f\", \"arguments\": {}}", "{\"name\": \"g\"}");
    let calls = [("f", "{}"), ("g", "{}")];
    check(
        Hermes,
        &format!("<tool_call>\n{f}\n{g}\n</tool_call>"),
        "",
        &calls,
    );
    check(
        Hermes,
        &format!("<tool_call>{f}<tool_call>{g}</tool_call>"),
        "",
        &calls,
    );
    check(
        Hermes,
        &format!("<tool_call>{f} extra</tool_call>"),
        " extra",
        &calls[..1],
    );
    check(
        Hermes,
        &format!("<tool_call>{f}\n{{\"x\": 1}} y</tool_call>z<tool_call>{g}"),
        "\n{\"x\": 1} yz",
        &calls,
    );
    check(
        Hermes,
        &format!("<tool_call>{f} a < b"),
        " a < b",
        &calls[..1],
    );
    check(Hermes, &format!("<tool_call>{f}\n</tool"), "", &calls[..1]);
}

#[test]
fn calls_of_other_tools_are_content_where_the_tools_are_known() {
    let parse = |format, text: &str| {
        let tool = Tool {
            name: "f".to_owned(),
            parameters: None,
        };
        let mut parser = ToolCallParser::for_tools(format, [tool].into(), true);
        let mut events = parser.push(text);
        events.extend(parser.finish());
        events
    };
    let object = |name: &str| format!("{{\"name\": \"{name}\", \"parameters\": {{\"x\": 1}}}}");
    for (format, text) in [
        (Llama3Json, object("Bob")),
        (Hermes, format!("<tool_call>{}</tool_call>", object("Bob"))),
        (
            Qwen3Coder,
            "<tool_call>\n<function=Bob>\n</function>\n</tool_call>".to_owned(),
        ),
    ] {
        let content: String = parse(format, &text)
            .into_iter()
            .map(|event| match event {
                ToolEvent::Content(text) => text,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(content, text);
        let events = parse(format, &text.replace("Bob", "f"));
        assert!(
            matches!(&events[0], ToolEvent::Call { name } if name == "f"),
            "{events:?}"
        );
    }
}

#[test]
fn llama_calls_are_the_whole_output() {
    let call = "{\"name\": \"f\", \"parameters\": {\"a\": \"b;\"}}";
    let expected = ("f", "{\"a\": \"b;\"}");
    check(Llama3Json, call, "", &[expected]);
    check(
        Llama3Json,
        &format!("<|python_tag|>{call}"),
        "",
        &[expected],
    );
    let reversed = "{\"parameters\": {}, \"name\": \"f\"}";
    check(Llama3Json, reversed, "", &[("f", "{}")]);
    let then_text = format!("{call}; {{\"a\": 1}}");
    check(Llama3Json, &then_text, "; {\"a\": 1}", &[expected]);
    check(
        Llama3Json,
        &format!("{call}; {call}"),
        "",
        &[expected, expected],
    );
}

#[test]
fn a_cut_off_call_keeps_what_was_written() {
    let cut = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"b";
    check(Hermes, cut, "", &[("f", "{\"a\": \"b")]);
    check(
        Hermes,
        "<tool_call>{\"name\": \"f",
        "<tool_call>{\"name\": \"f",
        &[],
    );
}

#[test]
fn arguments_come_as_they_are_written() {
    let mut parser = ToolCallParser::new(Hermes);
    assert_eq!(parser.push("<tool_call>{\"name\": \"f"), []);
    let call = ToolEvent::Call {
        name: "f".to_owned(),
    };
    assert_eq!(parser.push("\", \"arguments\": "), [call]);
    let arguments = |text: &str| ToolEvent::Arguments(text.to_owned());
    assert_eq!(parser.push("{\"a\""), [arguments("{\"a\"")]);
    assert_eq!(parser.push(": 1}"), [arguments(": 1}")]);
    assert_eq!(parser.push("}\n</tool_call>"), []);
}

#[test]
fn coder_calls_are_typed_by_the_tools_schema() {
    let tool = Tool {
        name: "run".to_owned(),
        parameters: Some(json!({"type": "object", "properties": {
            "code": {"type": "string"}, "n": {"type": "integer"}, "flags": {"type": "array"},
        }})),
    };
    let text = "I run it.\n<tool_call>\n<function=run>\n<parameter=code>\nif a < \"b\":\n    한()\n\n\
                </parameter>\n<parameter=n>\n3\n</parameter>\n<parameter=flags>\n[\"-v\", 1]\n\
                </parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=run>\n</function>\n\
                </tool_call>";
    let arguments =
        "{\"code\": \"if a < \\\"b\\\":\\n    한()\\n\", \"n\": 3, \"flags\": [\"-v\", 1]}";
    let calls = [("run", arguments), ("run", "{}")].map(|(a, b)| (a.to_owned(), b.to_owned()));
    let expected = ("I run it.".to_owned(), calls.to_vec());
    let letters: Vec<String> = text.chars().map(String::from).collect();
    for pieces in [vec![text.to_owned()], letters] {
        let tools = [tool.clone()].into();
        let parser = ToolCallParser::for_tools(Qwen3Coder, tools, false);
        assert_eq!(parse_by(parser, &pieces), expected);
    }
    // Without the outer tag, only a known tool is called.
    for (name, n_calls) in [("run", 1), ("walk", 0)] {
        let text = format!("<function={name}>\n<parameter=n>\n4\n</parameter>\n</function>");
        let parser = ToolCallParser::for_tools(Qwen3Coder, [tool.clone()].into(), false);
        assert_eq!(parse_by(parser, &[text]).1.len(), n_calls);
    }
}

#[test]
fn coder_calls_that_are_not_quite_right_lose_nothing() {
    for text in [
        "<tool_call>\n{\"name\": \"f\"}\n</tool_call>",
        "a <tool_call> b",
        "<tool_call>\n<function=\n>",
        "<function=f>",
        "<tool_call>\n<func",
    ] {
        check(Qwen3Coder, text, text, &[]);
    }
    let begun = "<tool_call><function=f><parameter=a>";
    for (rest, content, arguments) in [
        ("1</function></tool_call>", "", "{\"a\": \"1\"}"),
        (
            "1\n<parameter=b>\n2\n</parameter></tool_call>",
            "",
            "{\"a\": \"1\", \"b\": \"2\"}",
        ),
        (
            "</parameter> x\n</function></tool_call> y",
            " x y",
            "{\"a\": \"\"}",
        ),
        ("1\n2", "", "{\"a\": \"1\\n2"),
        ("<b></parameter", "", "{\"a\": \"<b></parameter"),
    ] {
        check(
            Qwen3Coder,
            &format!("{begun}{rest}"),
            content,
            &[("f", arguments)],
        );
    }
}

#[test]
fn coder_texts_come_as_they_are_written() {
    let mut parser = ToolCallParser::new(Qwen3Coder);
    let arguments = |text: &str| [ToolEvent::Arguments(text.to_owned())];
    let begun = parser.push("<tool_call>\n<function=f>\n<parameter=a>\n");
    assert_eq!(begun.last(), arguments("\"").last());
    assert_eq!(parser.push("one\n"), arguments("one"));
    assert_eq!(parser.push("two </p"), arguments("\\ntwo "));
    assert_eq!(parser.push("arameter>"), arguments("\""));
    assert_eq!(parser.push("\n</function>"), arguments("}"));
}

#[test]
fn a_template_says_the_format() {
    for (source, format) in [
        ("within <tool_call></tool_call> XML tags", Some(Hermes)),
        (
            "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>",
            Some(Qwen3Coder),
        ),
        ("{{- '<|python_tag|>' }}", Some(Llama3Json)),
        ("{{ message.content }}", None),
    ] {
        assert_eq!(ToolCallFormat::of_template(source), format);
    }
}

proptest! {
    #[test]
    fn any_pieces_give_the_calls_of_the_whole(
        parts in proptest::collection::vec(
            prop_oneof![
                Just("<tool_call>"), Just("</tool_call>"), Just("{\"name\": \"f\", "),
                Just("\"arguments\": {\"a\": \"</tool_call>\"}"), Just("\"parameters\": [1]"),
                Just("}"), Just("{"), Just("\""), Just("\\"), Just(":"), Just(","), Just("]"),
                Just(" "), Just("\n"), Just("한"), Just(";"), Just("<|python_tag|>"), Just("1"),
                Just("<function=f>"), Just("<function="), Just("<parameter=a>"), Just("<parameter="),
                Just("</parameter>"), Just("</function>"), Just("<"), Just(">"),
            ],
            0..20,
        ),
        format in prop_oneof![Just(Hermes), Just(Llama3Json), Just(Qwen3Coder)],
    ) {
        let whole: String = parts.concat();
        let expected = parse(format, std::slice::from_ref(&whole));
        let words: Vec<String> = parts.iter().map(|part| (*part).to_owned()).collect();
        prop_assert_eq!(parse(format, &words), expected.clone());
        let letters: Vec<String> = whole.chars().map(String::from).collect();
        prop_assert_eq!(parse(format, &letters), expected);
    }
}
