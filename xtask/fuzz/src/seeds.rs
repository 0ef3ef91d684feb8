//! Valid inputs as seeds: small ones, so that the fuzzer is fast, and one of each kind.

mod chains;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use engine::model::config::Family;
use engine::weights::ElementFormat;
use engine::weights::fixture::packed::{PackedFormat, PackedKind};
use engine::weights::fixture::scaled::ScaledFormat;
use engine::weights::fixture::{FolderFormat, config_json, tiny_config, write_folder, write_gguf};
use records::rows_tar;
use serde_json::{Value, json};

/// Nothing larger is a seed: most of it would be numbers.
const MAX_SEED_BYTES: usize = 16 << 10;

/// Writes the seeds of a target into a folder.
///
/// # Errors
///
/// If there is no such target, or a file cannot be written there or in the folder for temporary
/// files.
pub fn write_seeds(target: &str, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let seeds = seeds(target)?.into_iter().chain(chains::seeds(target));
    for (i, mut seed) in seeds.enumerate() {
        seed.truncate(MAX_SEED_BYTES);
        fs::write(folder.join(format!("seed-{i}")), seed)?;
    }
    Ok(())
}

fn seeds(target: &str) -> Result<Vec<Vec<u8>>> {
    let scratch = tempfile::tempdir()?;
    let texts = |texts: &[&str]| texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    Ok(match target {
        "gguf" => {
            let mut seeds = Vec::new();
            for family in [Family::Qwen3, Family::Qwen3Moe, Family::Llama] {
                let path = scratch.path().join("model.gguf");
                let config = tiny_config(family);
                write_gguf(&path, &config, ElementFormat::F16, 1, &[]).context("a GGUF file")?;
                seeds.push(fs::read(path)?);
            }
            seeds
        }
        "safetensors" => {
            let path = scratch.path().join("model");
            let config = tiny_config(Family::Qwen3);
            write_folder(&path, &config, FolderFormat::F16, 1, 1).context("a folder")?;
            let header = r#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}"#;
            let mut small = (header.len() as u64).to_le_bytes().to_vec();
            small.extend(header.bytes());
            small.extend([0; 4]);
            vec![small, fs::read(path.join("model.safetensors"))?]
        }
        "config_json" => {
            let mut seeds = Vec::new();
            for family in [Family::Qwen3, Family::Qwen3Moe, Family::Llama] {
                for format in [FolderFormat::F16, FolderFormat::Awq { group_size: 32 }] {
                    seeds.push(
                        config_json(&tiny_config(family), format)
                            .to_string()
                            .into_bytes(),
                    );
                }
            }
            for kind in [
                PackedKind::Gptq,
                PackedKind::AutoRoundGptq,
                PackedKind::PackQuantized,
            ] {
                let format = PackedFormat {
                    kind,
                    group_size: Some(64),
                    symmetric: false,
                    act_order: kind != PackedKind::AutoRoundGptq,
                };
                let mut value = config_json(&tiny_config(Family::Qwen2), FolderFormat::F16);
                value["quantization_config"] = format.quantization_config();
                seeds.push(value.to_string().into_bytes());
            }
            for format in ScaledFormat::ALL {
                let mut value = config_json(&tiny_config(Family::Qwen3), FolderFormat::F16);
                value["quantization_config"] = format.quantization_config();
                seeds.push(value.to_string().into_bytes());
            }
            seeds.push(br#"{"eos_token_id":[1,2],"rope_scaling":{"rope_type":"yarn","factor":4.0,"original_max_position_embeddings":32768}}"#.to_vec());
            seeds
        }
        "tokenizer_json" => vec![tokenizer_json(&[]).to_string().into_bytes()],
        "request" => texts(&[
            r#"{"model":"m","prompt":["a",[1,2]],"max_tokens":5,"temperature":0.5,"top_p":0.9,"top_k":3,"n":2,"stop":["x"],"seed":1,"logit_bias":{"5":-1.5},"stream":true,"stream_options":{"include_usage":true}}"#,
            r#"{"messages":[{"role":"user","content":[{"type":"text","text":"hi"}]},{"role":"assistant","tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}}]},{"role":"tool","content":"3"}],"tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":{"type":"function","function":{"name":"f"}},"parallel_tool_calls":false,"response_format":{"type":"json_schema","json_schema":{"schema":{"type":"object"}}},"chat_template_kwargs":{"enable_thinking":false},"stop_token_ids":[1],"min_p":0.1,"repetition_penalty":1.1}"#,
            r#"{"text":["a","b"],"sampling_params":[{"max_new_tokens":3,"stop":"x"},{"n":1,"regex":"a+"}],"rid":["r","s"],"stream":true,"return_logprob":true,"top_logprobs_num":2,"logprob_start_len":-1}"#,
            r#"{"messages":[{"role":"developer","content":null},{"role":"assistant","content":["a",{"type":"thinking","thinking":"b"}]}],"continue_final_message":true,"reasoning_effort":"none"}"#,
            r#"{"max_tokens":9,"system":[{"type":"text","text":"s"}],"messages":[{"role":"user","content":"x"},{"role":"assistant","content":[{"type":"thinking","thinking":"h","signature":"s"},{"type":"tool_use","id":"t","name":"f","input":{}}]},{"role":"user","content":[{"type":"tool_result","tool_use_id":"t","is_error":true,"content":[{"type":"text","text":"r"}]}]}],"tools":[{"name":"f","input_schema":{}}],"tool_choice":{"type":"any","disable_parallel_tool_use":true},"thinking":{"type":"enabled","budget_tokens":4},"stop_sequences":["x"]}"#,
            r#"{"input":[{"role":"user","content":[{"type":"input_text","text":"x"}]},{"type":"reasoning","summary":[],"content":[{"type":"reasoning_text","text":"h"}]},{"type":"function_call","call_id":"c","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"c","output":"r"}],"tools":[{"type":"function","name":"f","parameters":{}}],"text":{"format":{"type":"json_schema","name":"n","schema":{}}},"reasoning":{"effort":"none"},"include":["message.output_text.logprobs"],"top_logprobs":2,"max_output_tokens":5,"metadata":{"a":"b"}}"#,
            r#"{"prompt":[1,2,3],"max_completion_tokens":1,"ignore_eos":true,"priority":-1,"best_of":1,"structured_outputs":{"choice":["a","b"]}}"#,
        ]),
        "grammar" => texts(&[
            "\0{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"string\",\"maxLength\":5,\"pattern\":\"^[a-z]+$\"},\"b\":{\"enum\":[1,null]},\"c\":{\"type\":\"integer\",\"minimum\":0,\"maximum\":20}},\"required\":[\"a\"],\"additionalProperties\":false}",
            "\u{10}{\"$defs\":{\"n\":{\"anyOf\":[{\"type\":\"null\"},{\"type\":\"array\",\"items\":{\"$ref\":\"#/$defs/n\"},\"minItems\":1}]}},\"$ref\":\"#/$defs/n\"}",
            "\u{4}[0-9]{3}-(a|b)?\\w+",
            "\u{7}start: item (\",\" item)~1..3\nitem: /[a-c]/ | \"x\"i\n%ignore / +/",
            "\u{27}start: a b?\na[suffix=\"!\"]: /[a-z]*/\nb: %json {\"type\": \"boolean\"}",
            "\u{c}yes\nno",
            "\u{d}f\n{\"type\":\"object\",\"properties\":{\"x\":{\"type\":\"number\"}}}",
        ]),
        "chat_template" => texts(&[
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
            "{%- macro f(x, y=1) -%}{{ x.split(',')[::-1] | tojson(indent=2) }}{%- endmacro -%}{{ f(messages[0].content) }}{% set ns = namespace(a=0) %}{% for i in range(3) %}{% set ns.a = ns.a + i * loop.index %}{% if loop.last %}{% break %}{% endif %}{% endfor %}{{ ns.a }}{{ strftime_now('%Y') }}",
            "{{ bos_token + 'x' * 3 ~ tools[0] }}{% if not messages %}{{ raise_exception('no') }}{% endif %}{{ messages | map(attribute='role') | join(', ') }}",
        ]),
        "tool_calls" => texts(&[
            "\u{6}So:\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": [1, \"}\"]}}\n</tool_call>\n<tool_call>{\"arguments\":\"{}\",\"name\":\"g\"}</tool_call>",
            "\u{1b}<think>\nhm {\n</think>\n\n{\"name\": \"f\", \"parameters\": {\"a\": \"\\\"\"}}; {\"name\": \"g\", \"parameters\": {}}",
            "\u{7}<|python_tag|>{\"name\": \"f\", \"parameters\": null} no call",
            "\u{8}x</think>y<tool_call>{\"name\": <tool_call>",
        ]),
        "sse" => texts(&[
            "\u{5}data: {\"choices\":[{\"text\":\"a\"}]}\n\ndata: [DONE]\n\n",
            "\u{1}: comment\r\nevent: x\rdata: 1\ndata:2\r\n\r\n",
        ]),
        "experiment_toml" => texts(&[
            "name = \"01-fuzz\"\ntitle = \"t\"\nmodel = \"default\"\nseed = 1\nreplicates = 3\n[flags]\nchunked-prefill-size = 256\nenable-mixed-chunk = true\n[workload.rate]\nrates_per_s = [0.5]\nn_requests = 3\noutput_tokens = 5\n[workload.goodput]\nttft_ms = 500.0\ntpot_ms = 50.0\n",
            "name = \"01-fuzz\"\nextends = \"01-fuzz\"\nremove_flags = [\"a\"]\n",
            "name = \"01-fuzz\"\ntitle = \"t\"\nmodel = \"m\"\nseed = 1\nreplicates = 1\n[workload]\n[tune]\nx = [1, 2]\n[quick.workload]\n",
        ]),
        "imported" => texts(&[
            r#"{"duration":1.5,"completed":10,"total_output_tokens":100,"request_throughput":6.6,"output_throughput":66.0,"backend":"vllm","model_id":"m","date":"20260101-000000","mean_ttft_ms":3.0,"p99_itl_ms":4.0,"ttfts":[1.0],"request_rate":"inf"}"#,
            "{\"duration\":NaN,\"completed\":1,\"total_output_tokens\":1,\"request_throughput\":Infinity,\"output_throughput\":1}\n{\"duration\":1}\n",
        ]),
        "imported_csv" => texts(&[
            "document,section,metric,subject,condition,value,unit,kind,note\nd.md,s,ttft,B,10 tokens,269.0,ms,measured,\"a, \"\"b\"\"\"\r\nd.md,s,day,B,,2026-01-01,date,stated,\n",
            "note,kind,unit,value,condition,subject,metric,section,document,more\n,derived,ratio,1e3,,B,x,s,d.md,\n",
        ]),
        "rows_tar" => {
            let row = br#"{"run_id":"a","file":"requests.jsonl","token_s":1}"#;
            let file = br#"{"run_id":"a","file":"status.json","json":{"b":[1,"c"]}}"#;
            let mut members = [b"".as_slice(), row, &[0; 9], file].map(<[u8]>::to_vec);
            for member in &mut members {
                *member = rows_tar::compress(member)?;
            }
            vec![rows_tar::archive(&members)?]
        }
        other => anyhow::bail!("no target is called {other:?}"),
    })
}

/// A valid tokenizer of two characters, their merge, a special token (3), and further characters
/// from 4 on.
pub fn tokenizer_json(further: &[char]) -> Value {
    let mut vocab = json!({"H": 0, "e": 1, "He": 2});
    for (id, character) in (4..).zip(further) {
        vocab[character.to_string()] = json!(id);
    }
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [
            {"id": 3, "content": "<s>", "single_word": false, "lstrip": false,
             "rstrip": false, "normalized": false, "special": true}],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false,
                          "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false,
                    "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null,
                  "continuing_subword_prefix": null, "end_of_word_suffix": null,
                  "fuse_unk": false, "byte_fallback": false,
                  "vocab": vocab, "merges": [["H", "e"]]},
    })
}

#[cfg(test)]
mod tests {
    use records::campaign::SealedCampaign;

    use super::*;

    #[test]
    fn the_archives_seed_has_both_files_of_a_run() {
        let dir = tempfile::tempdir().unwrap();
        let seed = seeds("rows_tar").unwrap().remove(0);
        fs::write(dir.path().join(rows_tar::ROWS), seed).unwrap();
        rows_tar::read(&dir.path().join(rows_tar::ROWS)).unwrap();
        let campaign = SealedCampaign::open(dir.path()).unwrap();
        let files = campaign.files_of("a").unwrap();
        assert_eq!(files.len(), 2, "{files:?}");
    }
}
