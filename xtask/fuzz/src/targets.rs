//! The targets. What they return is of no interest, so errors are dropped throughout.

use std::fs;
use std::path::Path;

use engine::model::config_json;
use engine::server::fields::Fields;
use engine::server::messages::Conversation;
use engine::server::prompt::take_prompts;
use engine::server::sampling_fields::Generation;
use engine::server::state::{Limits, Seeds};
use engine::text::gguf_metadata::GgufMetadata;
use engine::text::{ChatInput, ChatTemplate, Tokenizer};
use engine::weights::gguf::{config, header};
use engine::weights::safetensors::TensorFiles;
use experiments::import::Source;
use experiments::import::result_file::ResultFile;
use experiments::loadgen::sse::SseDecoder;
use experiments::spec::{Experiment, Overrides};
use serde_json::{Map, json};

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

/// With AWQ's part in it.
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
    };
    let seeds = Seeds::new(Some(0));
    let Ok(mut fields) = Fields::parse(bytes) else {
        return;
    };
    let mut chat = fields.clone();
    let _ = take_prompts(&mut fields, &limits);
    let _ = Generation::take(&mut fields, &limits, &seeds, None);
    let _ = Conversation::take(&mut chat);
    let _ = Generation::take(&mut chat, &limits, &seeds, Some(3));
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
    ];
    let tools = [json!({"type": "function", "function": {"name": "f", "parameters": {}}})];
    let _ = template.render(&ChatInput {
        messages: &messages,
        tools: Some(&tools),
        add_generation_prompt: true,
        extra: Map::new(),
    });
}

/// The first byte says how the rest was cut on its way.
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

pub fn imported(_: &Path, bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    for source in [Source::Vllm, Source::Sglang] {
        if let Ok(results) = ResultFile::parse(source, text) {
            let _ = experiments::import::figures::table("fuzz", &results);
        }
    }
}
