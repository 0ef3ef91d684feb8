//! 4-bit checkpoints of every format against recorded answers of the same tensors, which a plain
//! program computed in f64 (`tests/data/make_packed_checkpoints.py`).

use std::path::Path;

use engine::executor::Executor;
use engine::executor::cpu::{ActivationType, CpuOptions};
use engine::model::config::Family;
use engine::weights::fixture::blocks::write_block_gguf;
use engine::weights::fixture::packed::{
    PackedFormat, PackedKind, packed_config, write_packed_folder,
};
use engine::weights::fixture::scaled::{ScaledFormat, scaled_config, write_scaled_folder};
use engine::weights::fixture::{FolderFormat, ggml_dtype, wide_config, write_folder, write_gguf};
use engine::weights::format::MatrixFormat;
use engine::weights::gguf::GgufCheckpoint;
use engine::weights::safetensors::SafetensorsCheckpoint;
use engine::weights::{Checkpoint, ElementFormat, MatrixId};
use kernels::Isa;
use kernels::stream_linear::Format;

use super::recorded::{Record, alone, check, digest};
use super::{executor, options};

fn record() -> Record {
    serde_json::from_str(include_str!("../data/packed_checkpoints.json")).expect("a record")
}

fn case_named(name: &str) -> (Family, PackedFormat) {
    use Family::{Llama, Qwen2, Qwen3};
    use PackedKind::{AutoRoundAwq, AutoRoundGptq, AwqGemm, AwqGemv, Gptq, GptqV2, PackQuantized};
    let (family, kind, group_size, symmetric, act_order) = match name {
        "awq-gemm-g64-symmetric" => (Qwen3, AwqGemm, Some(64), true, false),
        "awq-gemv-g64" => (Llama, AwqGemv, Some(64), false, false),
        "gptq-g128" => (Qwen3, Gptq, Some(128), true, false),
        "gptq-g64-asymmetric" => (Qwen2, Gptq, Some(64), false, false),
        "gptq-v2-g32-asymmetric" => (Llama, GptqV2, Some(32), false, false),
        "gptq-row-asymmetric" => (Llama, Gptq, None, false, false),
        "gptq-g32-act-order" => (Qwen3, Gptq, Some(32), true, true),
        "autoround-gptq-g64" => (Qwen2, AutoRoundGptq, Some(64), true, false),
        "autoround-awq-g128" => (Llama, AutoRoundAwq, Some(128), true, false),
        "ct-g128" => (Qwen3, PackQuantized, Some(128), true, false),
        "ct-g32-asymmetric" => (Qwen2, PackQuantized, Some(32), false, false),
        "ct-row" => (Llama, PackQuantized, None, true, false),
        "ct-g64-act-order" => (Llama, PackQuantized, Some(64), false, true),
        other => panic!("the record has the case {other}, which is unknown here"),
    };
    let format = PackedFormat {
        kind,
        group_size,
        symmetric,
        act_order,
    };
    (family, format)
}

#[test]
fn every_format_answers_as_recorded() {
    let record = record();
    assert!(record.cases.len() >= 13);
    for (name, case) in &record.cases {
        let (family, format) = case_named(name);
        let dir = tempfile::tempdir().expect("a folder");
        let config = packed_config(family);
        write_packed_folder(dir.path(), &config, format, record.seed).expect("written");
        assert_eq!(
            digest(dir.path()),
            case.digest,
            "{name}: other tensors than recorded"
        );
        let checkpoint = SafetensorsCheckpoint::open(dir.path()).expect(name);
        check(name, &record, case, &checkpoint);
    }
}

/// Threads and passes change no bit where columns are taken in another order, either.
#[test]
fn act_order_is_the_same_on_any_number_of_threads() {
    let record = record();
    let (family, format) = case_named("gptq-g32-act-order");
    let dir = tempfile::tempdir().expect("a folder");
    write_packed_folder(dir.path(), &packed_config(family), format, record.seed).expect("written");
    let checkpoint = SafetensorsCheckpoint::open(dir.path()).expect("opened");
    let case = &record.cases["gptq-g32-act-order"];
    let (prompt, answer) = (&record.prompts[2], &case.sequences[2]);
    let logits = |n_threads, max_pass_tokens| {
        let options = CpuOptions {
            n_threads,
            max_pass_tokens,
            ..options(ActivationType::Int8, Isa::detect())
        };
        let mut executor = executor(&checkpoint, options);
        assert!(executor.info().weight_bytes > 0);
        alone(&mut executor, prompt, answer)
    };
    let expected = logits(1, 512);
    assert_eq!(logits(3, 7), expected);
    assert_eq!(logits(2, 1), expected);
}

/// A line of the table: what loads where, asked of the loaders.
fn line(what: &str, named: &str, checkpoint: &dyn Checkpoint) -> String {
    let storage = checkpoint.storage(MatrixId::Q(0)).expect("there");
    let (on_cpu, on_gpu) = match storage.format {
        MatrixFormat::Awq { group_size } => {
            Format::awq(group_size).expect("a group of the GPU's kernels");
            let on_gpu = if storage.is_reordered {
                "refused"
            } else {
                "4 bits"
            };
            ("4 bits", on_gpu)
        }
        MatrixFormat::Scaled(_) => ("8 bits", "16 bits"),
        MatrixFormat::Rows(_) => ("as stored", "16 bits"),
    };
    // It loads, or the test ends here.
    executor(checkpoint, options(ActivationType::Int8, Isa::detect()));
    format!("| {what} | {named} | {on_cpu} | {on_gpu} |\n")
}

fn packed_line(what: &str, named: &str, cases: &[&str]) -> String {
    let mut lines = Vec::new();
    for case in cases {
        let (family, format) = case_named(case);
        let dir = tempfile::tempdir().expect("a folder");
        write_packed_folder(dir.path(), &packed_config(family), format, 1).expect("written");
        let checkpoint = SafetensorsCheckpoint::open(dir.path()).expect("opened");
        lines.push(line(what, named, &checkpoint));
    }
    lines.dedup();
    assert_eq!(lines.len(), 1, "{what}: {lines:?}");
    lines.concat()
}

fn scaled_line(what: &str, named: &str, formats: &[ScaledFormat]) -> String {
    let mut lines = Vec::new();
    for format in formats {
        let dir = tempfile::tempdir().expect("a folder");
        let config = scaled_config(Family::Llama);
        write_scaled_folder(dir.path(), &config, *format, 1).expect("written");
        let checkpoint = SafetensorsCheckpoint::open(dir.path()).expect("opened");
        lines.push(line(what, named, &checkpoint));
    }
    lines.dedup();
    assert_eq!(lines.len(), 1, "{what}: {lines:?}");
    lines.concat()
}

#[test]
fn the_document_has_the_table_of_what_loads() {
    let mut table =
        String::from("| weights | named by | on the CPU | on a GPU |\n|---|---|---|---|\n");
    for (what, format) in [
        ("safetensors F32", FolderFormat::F32),
        ("safetensors F16", FolderFormat::F16),
        ("safetensors BF16", FolderFormat::BF16),
    ] {
        let dir = tempfile::tempdir().expect("a folder");
        write_folder(dir.path(), &wide_config(Family::Llama), format, 1, 1).expect("written");
        let checkpoint = SafetensorsCheckpoint::open(dir.path()).expect("opened");
        table += &line(what, "the tensors", &checkpoint);
    }
    for (what, named, cases) in [
        (
            "AWQ, `gemm` or `gemv`",
            "`awq`",
            &["awq-gemm-g64-symmetric", "awq-gemv-g64"][..],
        ),
        (
            "GPTQ, `gptq` or `gptq_v2`",
            "`gptq`",
            &["gptq-g128", "gptq-v2-g32-asymmetric", "gptq-row-asymmetric"],
        ),
        ("GPTQ with `desc_act`", "`gptq`", &["gptq-g32-act-order"]),
        (
            "AutoRound, packed as GPTQ or AWQ",
            "`auto-round`",
            &["autoround-gptq-g64", "autoround-awq-g128"],
        ),
        (
            "`pack-quantized` W4A16",
            "`compressed-tensors`",
            &["ct-g128", "ct-g32-asymmetric", "ct-row"],
        ),
        (
            "`pack-quantized` with `actorder: group`",
            "`compressed-tensors`",
            &["ct-g64-act-order"],
        ),
    ] {
        table += &packed_line(what, named, cases);
    }
    for (what, named, formats) in [
        (
            "FP8, in blocks or with a scale a matrix",
            "`fp8`",
            &[ScaledFormat::Fp8Blocks, ScaledFormat::Fp8Matrix][..],
        ),
        (
            "`float-quantized` FP8",
            "`compressed-tensors`",
            &[
                ScaledFormat::CtFp8Matrix,
                ScaledFormat::CtFp8Rows,
                ScaledFormat::CtFp8Blocks,
            ],
        ),
        (
            "`int-quantized` INT8",
            "`compressed-tensors`",
            &[ScaledFormat::CtInt8],
        ),
        (
            "`nvfp4-pack-quantized`",
            "`compressed-tensors`",
            &[ScaledFormat::CtNvfp4],
        ),
        ("NVFP4", "`modelopt`", &[ScaledFormat::ModelOptNvfp4]),
        (
            "FP8 with a scale a matrix",
            "`modelopt`",
            &[ScaledFormat::ModelOptFp8],
        ),
    ] {
        table += &scaled_line(what, named, formats);
    }
    let dir = tempfile::tempdir().expect("a folder");
    for format in ElementFormat::ALL {
        let file = dir.path().join(format!("{format}.gguf"));
        let config = wide_config(Family::Llama);
        match ggml_dtype(format) {
            Some(_) => write_gguf(&file, &config, format, 1, &[]).expect("written"),
            None => write_block_gguf(&file, &config, format, 1).expect("written"),
        }
        let checkpoint = GgufCheckpoint::open(&file).expect("opened");
        table += &line(&format!("GGUF {format}"), "its header", &checkpoint);
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/serving.md");
    let document = std::fs::read_to_string(path).expect("the document");
    assert!(
        document.contains(&table),
        "docs/serving.md lacks this:\n{table}"
    );
}
