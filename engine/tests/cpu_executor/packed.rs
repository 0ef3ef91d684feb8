//! 4-bit checkpoints of every format against recorded answers of the same tensors, which a plain
//! program computed in f64 (`tests/data/make_packed_checkpoints.py`).

use engine::executor::Executor;
use engine::executor::cpu::{ActivationType, CpuOptions};
use engine::model::config::Family;
use engine::weights::fixture::packed::{
    PackedFormat, PackedKind, packed_config, write_packed_folder,
};
use engine::weights::safetensors::SafetensorsCheckpoint;
use kernels::Isa;

use super::recorded::{Record, alone, check_written, recorded};
use super::{executor, options};

fn record() -> Record {
    recorded(include_bytes!("../data/packed_checkpoints.json.gz"))
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
    check_written(&record, |name, dir| {
        let (family, format) = case_named(name);
        write_packed_folder(dir, &packed_config(family), format, record.seed).expect("written");
    });
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
