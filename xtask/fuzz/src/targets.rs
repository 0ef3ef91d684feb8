//! The targets. Their results do not matter, so errors are dropped throughout.

use std::fs;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use engine::model::config_json;
use engine::served_model::{Limits, Seeds};
use engine::server::request::anthropic_request;
use engine::server::request::fields::Fields;
use engine::server::request::generate_request::GenerateRequest;
use engine::server::request::messages::Conversation;
use engine::server::request::prompt::take_prompts;
use engine::server::request::responses_request::ResponsesRequest;
use engine::server::request::sampling_fields::Generation;
use engine::server::request::tool_fields::ToolUse;
use engine::server::stored_responses::ResponseStore;
use engine::structured::tool_calls;
use engine::structured::{Constraint, Grammars, Preamble};
use engine::text::gguf_metadata::GgufMetadata;
use engine::text::{
    ChatInput, ChatTemplate, ThoughtSplitter, ThoughtStart, Tokenizer, Tool, ToolCallFormat,
    ToolCallParser, ToolEvent,
};
use engine::weights::gguf::{config, header};
use engine::weights::safetensors::TensorFiles;
use experiments::commands::import::Source;
use experiments::commands::import::result_file::ResultFile;
use experiments::load::sse::SseDecoder;
use experiments::spec::{Experiment, Overrides};
use records::campaign::SealedCampaign;
use records::{imported, rows_tar};
use serde_json::{Map, json};

use crate::seeds;

const FORMATS: [ToolCallFormat; 3] = [
    ToolCallFormat::Hermes,
    ToolCallFormat::Llama3Json,
    ToolCallFormat::Qwen3Coder,
];

pub fn gguf(_: &Path, bytes: &[u8]) {
    let Ok(header) = header::parse(bytes) else {
        return;
    };
    let _ = config::read(&header, None);
    let metadata = GgufMetadata::from_header(&header);
    let _ = ChatTemplate::from_metadata(&metadata);
    if let Ok(tokenizer) = Tokenizer::from_metadata(&metadata) {
        let _ = tokenizer.encode("Hello, 세계!", true);
    }
}

pub fn safetensors(folder: &Path, bytes: &[u8]) {
    if fs::write(folder.join("model.safetensors"), bytes).is_ok() {
        let _ = TensorFiles::open(folder);
    }
}

/// Including what it says about packed matrices.
pub fn config_json(_: &Path, bytes: &[u8]) {
    let Ok(value) = serde_json::from_slice(bytes) else {
        return;
    };
    let _ = config_json::parse(&value, None);
    let _ = config_json::parse(&json!({}), Some(&value));
}

pub fn tokenizer_json(folder: &Path, bytes: &[u8]) {
    if fs::write(folder.join("tokenizer.json"), bytes).is_err() {
        return;
    }
    if let Ok(tokenizer) = Tokenizer::from_folder(folder) {
        let _ = tokenizer.encode("Hello, 세계!", true);
    }
}

pub fn request(_: &Path, bytes: &[u8]) {
    let limits = Limits {
        max_sequence_tokens: 4096,
        sequence_limit_name: "the context length",
        allow_auto_truncate: false,
        max_stop_strings: 16,
        max_prompt_tokens: Some(2048),
        max_output_tokens: Some(2048),
        vocab: 32_000,
        max_schema_bytes: 64 << 10,
        sampling_defaults: engine::request::sampling_defaults::SamplingDefaults::default(),
    };
    let seeds = Seeds::new(Some(0));
    let Ok(mut fields) = Fields::parse(bytes) else {
        return;
    };
    let message = anthropic_request::convert(&mut fields.clone(), false);
    let response = ResponsesRequest::take(&mut fields.clone(), &ResponseStore::default());
    for mut chat in message
        .into_iter()
        .chain(response.map(|request| request.chat))
    {
        let read = Conversation::take(&mut chat.fields).map(|_| ());
        let read = read
            .and_then(|()| Generation::take(&mut chat.fields, &limits, &seeds, None).map(|_| ()));
        let _ = read.map_err(|error| chat.in_their_names(error));
    }
    let mut chat = fields.clone();
    let _ = GenerateRequest::take(&mut fields.clone(), &limits, &seeds);
    let _ = take_prompts(&mut fields, &limits);
    let _ = Generation::take(&mut fields, &limits, &seeds, None);
    if let Ok(conversation) = Conversation::take(&mut chat) {
        for format in FORMATS {
            let _ = ToolUse::take(&mut chat.clone(), conversation.tools(), Some(format));
        }
    }
    let _ = Generation::take(&mut chat, &limits, &seeds, Some(3));
}

/// The output format of a request: the first byte selects the kind, the rest is the client's text.
/// Then some output that it allows.
pub fn grammar(folder: &Path, bytes: &[u8]) {
    static GRAMMARS: OnceLock<Grammars> = OnceLock::new();
    const N_TOKENS: usize = 12;
    let Some((kind, rest)) = bytes.split_first() else {
        return;
    };
    let Ok(text) = std::str::from_utf8(rest) else {
        return;
    };
    let Some(constraint) = constraint(*kind, text) else {
        return;
    };
    let grammars = GRAMMARS.get_or_init(|| small_grammars(folder));
    let preambles = [
        Preamble::Nothing,
        Preamble::RestOfThought,
        Preamble::MaybeThought,
    ];
    let preamble = preambles[usize::from(*kind / 16) % preambles.len()];
    let Ok(grammar) = grammars.compile(&constraint, preamble, 1) else {
        return;
    };
    let guide = grammar.guide();
    let mut choices = bytes.iter().cycle().map(|byte| usize::from(*byte));
    for i in 0..N_TOKENS {
        let Some(mask) = guide.mask(i) else { return };
        let allowed = mask.allowed();
        let Some(token) = choices
            .next()
            .and_then(|n| allowed.get(n % allowed.len().max(1)))
        else {
            return;
        };
        guide.advance(i, *token);
    }
}

fn constraint(kind: u8, text: &str) -> Option<Constraint> {
    Some(match kind % 16 {
        0..4 => Constraint::JsonSchema(serde_json::from_str(text).ok()?),
        4..7 => Constraint::Regex(text.to_owned()),
        7..12 => Constraint::Lark(text.to_owned()),
        12 => Constraint::Choice(text.lines().map(str::to_owned).collect()),
        format => {
            let tool = Tool {
                name: text.lines().next()?.to_owned(),
                parameters: serde_json::from_str(text.split_once('\n')?.1).ok(),
            };
            let format = FORMATS[usize::from(format) % FORMATS.len()];
            tool_calls::constraint(format, &[tool], kind >= 128)
        }
    })
}

/// Grammars of a model that knows printable characters.
fn small_grammars(folder: &Path) -> Grammars {
    const END: u32 = 3;
    let characters = (b'!'..=b'~').map(char::from).chain(['Ġ', 'Ċ']);
    let further: Vec<char> = characters.filter(|c| !"He".contains(*c)).collect();
    let path = folder.join("tokenizer.json");
    fs::write(path, seeds::tokenizer_json(&further).to_string()).expect("a folder to write to");
    let tokenizer = Tokenizer::from_folder(folder).expect("a right tokenizer");
    Grammars::new(Arc::new(tokenizer), 4 + further.len(), &[END], 64 << 10)
}

pub fn chat_template(_: &Path, bytes: &[u8]) {
    let Ok(source) = std::str::from_utf8(bytes) else {
        return;
    };
    let special = vec![("bos_token".to_owned(), "<s>".to_owned())];
    let template = ChatTemplate::new(&[("default".to_owned(), source.to_owned())], special);
    let messages = [
        json!({"role": "system", "content": "be kind"}),
        json!({"role": "user", "content": "안녕"}),
        json!({"role": "developer", "content": "42"}),
    ];
    let tools = [json!({"type": "function", "function": {"name": "f", "parameters": {}}})];
    let input = ChatInput {
        messages: &messages,
        tools: Some(&tools),
        add_generation_prompt: true,
        extra: Map::new(),
    };
    let _ = template.render_conversation(&input, false);
    let _ = template.render_conversation(&input, true);
}

/// A model's output. The first byte selects the parser and how the rest is split; the pieces must
/// give the same result as the whole.
pub fn tool_calls(_: &Path, bytes: &[u8]) {
    let Some((how, rest)) = bytes.split_first() else {
        return;
    };
    let Ok(text) = std::str::from_utf8(rest) else {
        return;
    };
    let format = FORMATS[usize::from(*how) % FORMATS.len()];
    let starts = [
        ThoughtStart::Inside,
        ThoughtStart::Before,
        ThoughtStart::After,
    ];
    let start = starts.get(usize::from(how / 2 % 4)).copied();
    let n_chars = usize::from(how / 8) + 1;
    let chars: Vec<char> = text.chars().collect();
    let pieces = chars.chunks(n_chars).map(|piece| piece.iter().collect());
    assert_eq!(
        output(format, start, pieces),
        output(format, start, [text.to_owned()].into_iter()),
    );
}

/// Reasoning, content, and the name and arguments of every call.
type Output = (String, String, Vec<(String, String)>);

fn output(
    format: ToolCallFormat,
    start: Option<ThoughtStart>,
    pieces: impl Iterator<Item = String>,
) -> Output {
    let (mut thoughts, mut content, mut calls) = Output::default();
    let mut splitter = start.map(ThoughtSplitter::new);
    let mut parser = ToolCallParser::new(format);
    let mut take = |events: Vec<ToolEvent>| {
        for event in events {
            match event {
                ToolEvent::Content(text) => content.push_str(&text),
                ToolEvent::Call { name } => calls.push((name, String::new())),
                ToolEvent::Arguments(text) => {
                    let call = calls.last_mut().expect("arguments are a call's");
                    call.1.push_str(&text);
                }
            }
        }
    };
    for piece in pieces {
        let piece = match &mut splitter {
            None => piece,
            Some(splitter) => {
                let split = splitter.push(&piece);
                thoughts.push_str(&split.thought);
                split.content
            }
        };
        take(parser.push(&piece));
    }
    if let Some(splitter) = &mut splitter {
        let split = splitter.finish();
        thoughts.push_str(&split.thought);
        take(parser.push(&split.content));
    }
    take(parser.finish());
    (thoughts, content, calls)
}

/// The first byte selects how the rest was split in transit.
pub fn sse(_: &Path, bytes: &[u8]) {
    let Some((cut, rest)) = bytes.split_first() else {
        return;
    };
    let mut decoder = SseDecoder::default();
    for chunk in rest.chunks(usize::from(*cut).max(1)) {
        let Ok(events) = decoder.push(chunk) else {
            return;
        };
        for event in events {
            let _ = serde_json::from_str::<serde_json::Value>(&event);
        }
    }
    let _ = decoder.is_between_events();
}

pub fn experiment_toml(folder: &Path, bytes: &[u8]) {
    const NAME: &str = "01-fuzz";
    let own = folder.join(NAME);
    if fs::create_dir_all(&own).is_ok() && fs::write(own.join("experiment.toml"), bytes).is_ok() {
        let quick = Overrides {
            quick: true,
            ..Overrides::default()
        };
        let _ = Experiment::load(folder, NAME, &quick);
        let _ = experiments::spec::tune_table(folder, NAME);
    }
}

/// The output of an import can be read again.
pub fn imported(_: &Path, bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    for source in [Source::Vllm, Source::Sglang] {
        let Ok(results) = ResultFile::parse(source, text) else {
            continue;
        };
        if let Ok(written) = experiments::commands::import::figures::table("fuzz", &results) {
            let read = imported::parse("fuzz", written.as_bytes());
            assert!(read.is_ok_and(|figures| !figures.is_empty()), "{written}");
        }
    }
}

pub fn imported_csv(_: &Path, bytes: &[u8]) {
    let _ = imported::parse("fuzz", bytes);
}

/// A campaign's archive, and the files of runs in it.
pub fn rows_tar(folder: &Path, bytes: &[u8]) {
    let path = folder.join(rows_tar::ROWS);
    if fs::write(&path, bytes).is_err() {
        return;
    }
    let _ = rows_tar::read(&path);
    if let Ok(campaign) = SealedCampaign::open(folder) {
        let _ = campaign.files_of("a");
    }
}
