use std::sync::Arc;

use super::*;
use crate::text::gguf_metadata::MetadataValue;
use crate::text::{TextOrigin, TokenStream};

fn metadata(entries: &[(&str, MetadataValue)]) -> GgufMetadata {
    let mut metadata = GgufMetadata::default();
    for (key, value) in entries {
        metadata.insert(&format!("tokenizer.ggml.{key}"), value.clone());
    }
    metadata
}

fn texts(texts: &[&str]) -> MetadataValue {
    MetadataValue::Texts(texts.iter().map(|t| (*t).to_owned()).collect())
}

/// A Llama-2 style vocabulary: three special tokens, 256 bytes, twelve pieces from id 259 on.
fn sentencepiece() -> Vec<(&'static str, MetadataValue)> {
    let pieces = [
        ("▁", -11.0),
        ("h", -11.0),
        ("i", -11.0),
        ("▁h", -1.0),
        ("hi", -2.0),
        ("▁hi", -3.0),
        ("a", -11.0),
        ("b", -11.0),
        ("ab", -4.0),
        ("▁ab", -6.0),
        ("▁a", -5.0),
        ("[x]", 0.0),
    ];
    let mut tokens = vec!["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    let mut kinds = vec![2, 3, 3];
    kinds.extend([6; 256]);
    let mut scores = vec![0.0; 259];
    for (piece, score) in pieces {
        tokens.push(piece.to_owned());
        kinds.push(if piece == "[x]" { 4 } else { 1 });
        scores.push(score);
    }
    vec![
        ("model", MetadataValue::Text("llama".to_owned())),
        ("tokens", MetadataValue::Texts(tokens)),
        ("token_type", MetadataValue::Integers(kinds)),
        ("scores", MetadataValue::Floats(scores)),
        ("bos_token_id", MetadataValue::Integer(1)),
        ("eos_token_id", MetadataValue::Integer(2)),
    ]
}

#[test]
fn sentencepiece_vocabularies_segment_as_computed_by_hand() {
    let tokenizer = Tokenizer::from_metadata(&metadata(&sentencepiece())).unwrap();
    let encode = |text: &str| tokenizer.encode(text, false).unwrap();
    // ▁hi: ▁h (-1) before hi (-2), then ▁h+i = ▁hi (-3).
    assert_eq!(encode("hi"), [264]);
    // ▁ab: ab (-4) before ▁a (-5), then ▁+ab = ▁ab.
    assert_eq!(encode("ab"), [268]);
    // ▁hi▁ab; no piece spans the two.
    assert_eq!(encode("hi ab"), [264, 268]);
    // ▁ ▁ a: the second ▁ takes the a.
    assert_eq!(encode(" a"), [259, 269]);
    // 한 is in no piece: three bytes, ids 3 + byte.
    assert_eq!(encode("한"), [259, 3 + 0xed, 3 + 0x95, 3 + 0x9c]);
    assert_eq!(encode("\n"), [259, 3 + 10]);
    assert_eq!(encode(""), [0u32; 0]);
    // Special and user-defined tokens written out; each stretch between gets its space.
    assert_eq!(encode("<s>hi</s>hi"), [1, 264, 2, 264]);
    assert_eq!(encode("hi[x]ab"), [264, 270, 268]);
    assert_eq!(tokenizer.encode("hi", true).unwrap(), [1, 264]);
    assert_eq!(tokenizer.id_of("<s>"), Some(1));
    assert_eq!(tokenizer.id_of("▁hi"), Some(264));
    assert_eq!(
        (tokenizer.bos_id(), tokenizer.eos_ids()),
        (Some(1), [2].as_slice())
    );
}

#[test]
fn sentencepiece_options_are_followed() {
    let mut entries = sentencepiece();
    entries.push(("add_space_prefix", MetadataValue::Bool(false)));
    entries.push(("add_bos_token", MetadataValue::Bool(false)));
    entries.push(("add_eos_token", MetadataValue::Bool(true)));
    let tokenizer = Tokenizer::from_metadata(&metadata(&entries)).unwrap();
    assert_eq!(tokenizer.encode("hi", true).unwrap(), [263, 2]);
    assert_eq!(tokenizer.decode(&[264], true), " hi");
}

#[test]
fn decoding_undoes_the_space_prefix_only_at_the_start() {
    let tokenizer = Arc::new(Tokenizer::from_metadata(&metadata(&sentencepiece())).unwrap());
    assert_eq!(tokenizer.decode(&[1, 264, 268], true), "hi ab");
    assert_eq!(tokenizer.decode(&[1, 264], false), "<s> hi");
    let streamed = |origin| {
        let mut stream = TokenStream::new(Arc::clone(&tokenizer), origin, true);
        let shown: Vec<Option<String>> = [1, 264, 3 + 0xed, 3 + 0x95, 3 + 0x9c, 268]
            .into_iter()
            .map(|id| stream.push(id))
            .collect();
        assert_eq!(stream.finish(), None);
        shown
    };
    let shown = |first: &str| {
        [None, Some(first), None, None, Some("한"), Some(" ab")].map(|t| t.map(str::to_owned))
    };
    assert_eq!(streamed(TextOrigin::Start), shown("hi"));
    assert_eq!(streamed(TextOrigin::Continuation), shown(" hi"));
    assert_eq!(tokenizer.token_bytes(3 + 0xed), [0xed]);
    assert_eq!(tokenizer.token_bytes(9999), [0u8; 0]);
}

/// A byte-level vocabulary of the 256 byte characters, one merge and two added tokens.
fn byte_level(pre: &str) -> Vec<(&'static str, MetadataValue)> {
    let mut tokens: Vec<String> = (0..0x144u32)
        .filter_map(char::from_u32)
        .map(String::from)
        .filter(|c| byte_level_bytes(c).len() == 1 && (!c.is_ascii() || c.as_str() > " "))
        .filter(|c| c != "\u{7f}")
        .collect();
    tokens.extend(["12", "123", "<|im_end|>", "[x]"].map(str::to_owned));
    let mut kinds = vec![1; tokens.len() - 2];
    kinds.extend([3, 4]);
    vec![
        ("model", MetadataValue::Text("gpt2".to_owned())),
        ("pre", MetadataValue::Text(pre.to_owned())),
        ("tokens", MetadataValue::Texts(tokens)),
        ("token_type", MetadataValue::Integers(kinds)),
        ("merges", texts(&["1 2", "12 3"])),
    ]
}

#[test]
fn pre_tokenizers_differ_where_their_families_do() {
    let numbers = |pre: &str| {
        let tokenizer = Tokenizer::from_metadata(&metadata(&byte_level(pre))).unwrap();
        let ids = tokenizer.encode("1234[x]<|im_end|>", false).unwrap();
        ids.into_iter()
            .map(|id| String::from_utf8(tokenizer.token_bytes(id)).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(numbers("gpt-2"), ["123", "4", "[x]", "<|im_end|>"]);
    assert_eq!(numbers("llama-bpe"), ["123", "4", "[x]", "<|im_end|>"]);
    assert_eq!(numbers("default"), ["123", "4", "[x]", "<|im_end|>"]);
    assert_eq!(numbers("qwen2"), ["1", "2", "3", "4", "[x]", "<|im_end|>"]);
    assert_eq!(numbers("smollm"), ["1", "2", "3", "4", "[x]", "<|im_end|>"]);
}

#[test]
fn every_byte_round_trips() {
    let tokenizer = Tokenizer::from_metadata(&metadata(&byte_level("gpt-2"))).unwrap();
    let text = "가나다 👩‍👩‍👧‍👦 \u{0}\u{7f}\u{a0}é\r\n\t  end ";
    let ids = tokenizer.encode(text, true).unwrap();
    assert_eq!(tokenizer.decode(&ids, true), text);
    assert_eq!(tokenizer.decode(&[u32::MAX, 0], true).len(), 1);
    assert_eq!(
        tokenizer.eos_ids(),
        [tokenizer.id_of("<|im_end|>").unwrap()]
    );
    let skipped = tokenizer.encode("a<|im_end|>[x]", false).unwrap();
    assert_eq!(tokenizer.decode(&skipped, true), "a[x]");
    assert_eq!(tokenizer.decode(&skipped, false), "a<|im_end|>[x]");
}

#[test]
fn long_runs_of_one_character_are_tokenized_whole() {
    for pre in ["gpt-2", "qwen2", "llama-bpe", "smollm", "default"] {
        let tokenizer = Tokenizer::from_metadata(&metadata(&byte_level(pre))).unwrap();
        for unit in [" ", "a", "\n", " \n", "1", "!"] {
            let text = unit.repeat(100_000 / unit.len()) + "x";
            let ids = tokenizer.encode(&text, false).unwrap();
            assert!(tokenizer.decode(&ids, false) == text, "{pre} {unit:?}");
        }
    }
}

#[test]
fn broken_metadata_is_an_error_that_names_the_key() {
    let broken = |entries: Vec<(&str, MetadataValue)>, change: (&str, Option<MetadataValue>)| {
        let mut metadata = metadata(&entries);
        let key = format!("tokenizer.ggml.{}", change.0);
        match change.1 {
            Some(value) => metadata.insert(&key, value),
            None => metadata.remove(&key),
        }
        Tokenizer::from_metadata(&metadata).unwrap_err().to_string()
    };
    let text = |text: &str| Some(MetadataValue::Text(text.to_owned()));
    for (entries, key, value, part) in [
        (byte_level("gpt-2"), "model", None, "tokenizer.ggml.model"),
        (byte_level("gpt-2"), "model", text("bert"), "bert"),
        (byte_level("gpt-2"), "pre", text("novel"), "smollm"),
        (byte_level("gpt-2"), "tokens", None, "tokenizer.ggml.tokens"),
        (byte_level("gpt-2"), "tokens", Some(texts(&[])), "empty"),
        (
            byte_level("gpt-2"),
            "tokens",
            Some(texts(&["a"])),
            "token_type",
        ),
        (byte_level("gpt-2"), "merges", None, "merges"),
        (
            byte_level("gpt-2"),
            "merges",
            Some(texts(&["12"])),
            "not a pair",
        ),
        (
            byte_level("gpt-2"),
            "merges",
            Some(texts(&["1 zzzzzzzzzzzz"])),
            "vocabulary",
        ),
        (
            byte_level("gpt-2"),
            "merges",
            Some(texts(&["<|im_end|> <|im_end|>"])),
            "vocabulary",
        ),
        (
            byte_level("gpt-2"),
            "merges",
            Some(texts(&["", "한 "])),
            "merges",
        ),
        (
            byte_level("gpt-2"),
            "eos_token_id",
            Some(MetadataValue::Integer(1 << 20)),
            "eos_token_id",
        ),
        (
            byte_level("gpt-2"),
            "eos_token_id",
            Some(MetadataValue::Integer(-1)),
            "eos_token_id",
        ),
        (sentencepiece(), "scores", None, "scores"),
        (
            sentencepiece(),
            "scores",
            Some(MetadataValue::Floats(vec![0.0])),
            "scores",
        ),
        (
            sentencepiece(),
            "scores",
            Some(MetadataValue::Floats(vec![f32::NAN; 271])),
            "scores",
        ),
        (
            sentencepiece(),
            "token_type",
            Some(MetadataValue::Integers(vec![6; 271])),
            "<unk>",
        ),
    ] {
        let message = broken(entries, (key, value));
        assert!(message.contains(part), "{key}: {message}");
    }
}

#[test]
fn folders_without_or_with_broken_files_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let message = |dir: &Path| Tokenizer::from_folder(dir).unwrap_err().to_string();
    assert!(message(dir.path()).contains("tokenizer.json"));
    let write = |text: &str| std::fs::write(dir.path().join("tokenizer.json"), text).unwrap();
    write("{}");
    assert!(message(dir.path()).contains("tokenizer.json"));
    // A merge whose result is longer than any token: the crate's builder panics on it.
    write(
        r#"{"version":"1.0","added_tokens":[],"normalizer":null,"pre_tokenizer":null,
           "post_processor":null,"decoder":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":false,"use_regex":false},"model":{"type":"BPE",
           "vocab":{"ab":0,"cd":1},"merges":[["ab","cd"]]}}"#,
    );
    assert!(
        message(dir.path()).contains("malformed"),
        "{}",
        message(dir.path())
    );
    write(
        r#"{"version":"1.0","added_tokens":[],"normalizer":null,"pre_tokenizer":null,
           "post_processor":null,"decoder":{"type":"WordPiece","prefix":"\#\#","cleanup":true},
           "model":{"type":"BPE","vocab":{"a":0},"merges":[]}}"#
            .replace("\\#", "#")
            .as_str(),
    );
    assert!(message(dir.path()).contains("WordPiece"));
}

#[test]
fn llama_folders_follow_their_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write(
        "tokenizer.json",
        r#"{"version":"1.0","added_tokens":[
             {"id":0,"content":"<unk>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true},
             {"id":1,"content":"<s>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true},
             {"id":2,"content":"</s>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
           "normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},{"type":"Replace","pattern":{"String":" "},"content":"▁"}]},
           "pre_tokenizer":null,"post_processor":null,
           "decoder":{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]},
           "model":{"type":"BPE","unk_token":"<unk>","fuse_unk":true,"byte_fallback":true,
             "vocab":{"<unk>":0,"<s>":1,"</s>":2,"<0x0A>":3,"▁":4,"h":5,"i":6,"▁h":7,"▁hi":8},
             "merges":[["▁","h"],["▁h","i"]]}}"#,
    );
    write(
        "tokenizer_config.json",
        r#"{"tokenizer_class":"LlamaTokenizer","add_bos_token":true,"add_eos_token":false,
            "bos_token":{"content":"<s>"},"eos_token":"</s>"}"#,
    );
    write("generation_config.json", r#"{"eos_token_id":[2,5,99]}"#);
    let tokenizer = Tokenizer::from_folder(dir.path()).unwrap();
    assert_eq!(tokenizer.encode("hi hi", true).unwrap(), [1, 8, 8]);
    assert_eq!(tokenizer.encode("<s>hi\n", false).unwrap(), [1, 8, 3]);
    assert_eq!(tokenizer.decode(&[1, 8, 3, 8, 2], true), "hi\n hi");
    assert_eq!(tokenizer.token_bytes(3), b"\n");
    assert_eq!(tokenizer.eos_ids(), [2, 5]);
    assert_eq!(tokenizer.bos_id(), Some(1));
    assert_eq!(
        tokenizer.special_texts()[0],
        ("bos_token".to_owned(), "<s>".to_owned())
    );
}

#[test]
fn a_folder_with_another_kind_of_tokenizer_says_how_to_make_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let error = |dir: &tempfile::TempDir| {
        let error = Tokenizer::from_folder(dir.path()).expect_err("there is none");
        error.to_string()
    };
    assert!(
        error(&dir).contains("tokenizer.json: is not there"),
        "{}",
        error(&dir)
    );
    for names in [&["tokenizer.model"][..], &["vocab.json", "merges.txt"]] {
        for name in names {
            std::fs::write(dir.path().join(name), "x").expect("written");
        }
        let said = error(&dir);
        assert!(
            said.contains(names[0]) && said.contains("save_pretrained"),
            "{said}"
        );
    }
}
