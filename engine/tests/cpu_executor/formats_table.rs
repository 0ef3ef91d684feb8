//! The table of what loads, made from what the loaders say (`docs/formats.md`).

use std::path::{Path, PathBuf};

use engine::executor::Executor;
use engine::executor::cpu::ActivationType;
use engine::model::config::{Family, ModelConfig};
use engine::weights::fixture::blocks::write_block_gguf;
use engine::weights::fixture::packed::{
    PackedFormat, PackedKind, packed_config, write_packed_folder,
};
use engine::weights::fixture::scaled::{ScaledFormat, write_scaled_folder};
use engine::weights::fixture::{FolderFormat, experts, ggml_dtype, write_folder, write_gguf};
use engine::weights::format::MatrixFormat;
use engine::weights::gpu_format::gpu_format;
use engine::weights::{
    Checkpoint, ElementFormat, LoadFormat, MatrixId, MatrixStorage, ModelFiles, open,
};
use kernels::Isa;
use kernels::cuda::Element;
use kernels::stream_linear::{Arrangement, Layout};

use super::{executor, options};

#[derive(Debug, Clone, Copy)]
enum Files {
    Plain(FolderFormat),
    Packed(PackedFormat),
    Scaled(ScaledFormat),
    Gguf(ElementFormat),
}

/// A model's class, and the fixture's family that has its arithmetic.
const FAMILIES: [(&str, Family); 5] = [
    ("Qwen3", Family::Qwen3),
    ("Qwen3-MoE", Family::Qwen3Moe),
    ("Qwen2", Family::Qwen2),
    ("Llama", Family::Llama),
    ("Mistral", Family::Llama),
];

/// Every row is whole blocks and groups of all formats.
fn config_of(family: Family) -> ModelConfig {
    ModelConfig {
        hidden: 256,
        intermediate: 512,
        head_dim: 64,
        experts: experts(family, 256),
        ..packed_config(family)
    }
}

fn write(dir: &Path, class: &str, family: Family, files: Files) -> ModelFiles {
    let (config, path) = (config_of(family), dir.join(class));
    let folder = match files {
        Files::Plain(format) => write_folder(&path, &config, format, 1, 1),
        Files::Packed(format) => write_packed_folder(&path, &config, format, 1),
        Files::Scaled(format) => write_scaled_folder(&path, &config, format, 1),
        Files::Gguf(format) => {
            let written = match ggml_dtype(format) {
                Some(_) => write_gguf(&path, &config, format, 1, &[]),
                None => write_block_gguf(&path, &config, format, 1),
            };
            written.expect("written");
            return ModelFiles::Gguf(path);
        }
    };
    folder.expect("written");
    if class == "Mistral" {
        name_mistral(&path.join("config.json"));
    }
    ModelFiles::Folder(path)
}

fn name_mistral(config: &PathBuf) {
    let text = std::fs::read_to_string(config).expect("a configuration");
    let renamed = text.replace("LlamaForCausalLM", "MistralForCausalLM");
    std::fs::write(config, renamed).expect("written");
}

/// Bits of a weight in the files, on the CPU and on a GPU.
struct Bits {
    files: String,
    cpu: String,
    gpu: String,
}

fn shown(n_bytes: u64, n_elements: u64) -> String {
    format!("{:.1}", (8 * n_bytes) as f64 / n_elements as f64)
}

fn bits_of(checkpoint: &dyn Checkpoint) -> Bits {
    let storages = MatrixId::all(checkpoint.config())
        .into_iter()
        .map(|id| checkpoint.storage(id).expect("there"));
    let is_plain = |storage: &MatrixStorage| {
        matches!(
            storage.format,
            MatrixFormat::Rows(ElementFormat::F32 | ElementFormat::F16 | ElementFormat::BF16)
        )
    };
    let own = checkpoint.storage(MatrixId::Q(0)).expect("there");
    // What stays as it is beside matrices of this format, such as the embedding.
    let (own_format, others): (Vec<_>, Vec<_>) =
        storages.partition(|storage| storage.format == own.format);
    assert!(others.iter().all(is_plain), "{others:?}");
    let sum = |storages: &[MatrixStorage], of: fn(&MatrixStorage) -> u64| {
        storages.iter().map(of).sum::<u64>()
    };
    let n_elements = sum(&own_format, |storage| storage.n_elements);
    let exact = options(ActivationType::F32, Isa::detect());
    let loaded = executor(checkpoint, exact).info().weight_bytes;
    let on_cpu = loaded - sum(&others, |storage| storage.n_bytes);
    Bits {
        files: shown(sum(&own_format, |storage| storage.n_bytes), n_elements),
        cpu: shown(on_cpu, n_elements),
        gpu: on_gpu(&own),
    }
}

fn on_gpu(storage: &MatrixStorage) -> String {
    if storage.is_reordered {
        return "refused".to_owned();
    }
    let format =
        gpu_format(std::slice::from_ref(storage), Element::F16).expect("a group of kernels");
    let rows = [storage.n_out];
    let layout = Layout::new(format, Arrangement::Stacked, &rows, storage.n_in).expect("a layout");
    let n_bytes = layout.weight_bytes() + layout.scale_bytes();
    shown(n_bytes as u64, storage.n_elements)
}

/// A line for files that load alike, in every family that loads them.
fn line(what: &str, named: &str, all_files: &[Files]) -> String {
    let mut lines = Vec::new();
    for files in all_files {
        let dir = tempfile::tempdir().expect("a folder");
        let mut bits = Vec::new();
        let mut families = Vec::new();
        for (class, family) in FAMILIES {
            let written = write(dir.path(), class, family, *files);
            let Ok(checkpoint) = open(&written, LoadFormat::Auto, 0) else {
                continue;
            };
            families.push(class);
            bits.push(bits_of(checkpoint.as_ref()));
        }
        let families = if families.len() == FAMILIES.len() {
            "all".to_owned()
        } else {
            families.join(", ")
        };
        let Bits { files, cpu, gpu } = bits.into_iter().next().expect("a family loads it");
        lines.push(format!(
            "| {what} | {named} | {families} | {files} | {cpu} | {gpu} |\n"
        ));
    }
    lines.dedup();
    assert_eq!(lines.len(), 1, "{what}: {lines:?}");
    lines.concat()
}

fn packed(kind: PackedKind, group_size: Option<usize>, act_order: bool) -> Files {
    Files::Packed(PackedFormat {
        kind,
        group_size,
        symmetric: false,
        act_order,
    })
}

fn lines_of_words() -> Vec<String> {
    use PackedKind::{AutoRoundAwq, AutoRoundGptq, AwqGemm, AwqGemv, Gptq, GptqV2, PackQuantized};
    let group = Some(128);
    [
        (
            "AWQ, `gemm` or `gemv`",
            "`awq`",
            vec![packed(AwqGemm, group, false), packed(AwqGemv, group, false)],
        ),
        (
            "GPTQ, `gptq` or `gptq_v2`",
            "`gptq`",
            vec![packed(Gptq, group, false), packed(GptqV2, group, false)],
        ),
        (
            "GPTQ with `desc_act`",
            "`gptq`",
            vec![packed(Gptq, group, true)],
        ),
        (
            "AutoRound, packed as GPTQ or AWQ",
            "`auto-round`",
            vec![
                packed(AutoRoundGptq, group, false),
                packed(AutoRoundAwq, group, false),
            ],
        ),
        (
            "`pack-quantized` W4A16",
            "`compressed-tensors`",
            vec![
                packed(PackQuantized, group, false),
                packed(PackQuantized, None, false),
            ],
        ),
        (
            "`pack-quantized` with `actorder: group`",
            "`compressed-tensors`",
            vec![packed(PackQuantized, group, true)],
        ),
    ]
    .map(|(what, named, files)| line(what, named, &files))
    .to_vec()
}

fn lines_of_scaled() -> Vec<String> {
    use ScaledFormat::{
        CtFp8Blocks, CtFp8Matrix, CtFp8Rows, CtInt8, CtNvfp4, Fp8Blocks, Fp8Matrix, ModelOptFp8,
        ModelOptNvfp4,
    };
    [
        ("FP8 in blocks", "`fp8`", Fp8Blocks),
        ("FP8, a scale a matrix", "`fp8`", Fp8Matrix),
        (
            "`float-quantized` FP8, a scale a matrix",
            "`compressed-tensors`",
            CtFp8Matrix,
        ),
        (
            "`float-quantized` FP8, a scale a row",
            "`compressed-tensors`",
            CtFp8Rows,
        ),
        (
            "`float-quantized` FP8 in blocks",
            "`compressed-tensors`",
            CtFp8Blocks,
        ),
        ("`int-quantized` INT8", "`compressed-tensors`", CtInt8),
        ("`nvfp4-pack-quantized`", "`compressed-tensors`", CtNvfp4),
        ("NVFP4", "`modelopt`", ModelOptNvfp4),
        ("FP8, a scale a matrix", "`modelopt`", ModelOptFp8),
    ]
    .map(|(what, named, format)| line(what, named, &[Files::Scaled(format)]))
    .to_vec()
}

#[test]
fn the_document_has_the_table_of_what_loads() {
    let mut table = String::from(
        "| weights | named by | families | in the files | on the CPU | on a GPU |\n\
         |---|---|---|---|---|---|\n",
    );
    for (what, format) in [
        ("safetensors F32", FolderFormat::F32),
        ("safetensors F16", FolderFormat::F16),
        ("safetensors BF16", FolderFormat::BF16),
    ] {
        table += &line(what, "the tensors", &[Files::Plain(format)]);
    }
    table += &lines_of_words().concat();
    table += &lines_of_scaled().concat();
    for format in ElementFormat::ALL {
        table += &line(
            &format!("GGUF {format}"),
            "its header",
            &[Files::Gguf(format)],
        );
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/formats.md");
    let document = std::fs::read_to_string(path).expect("the document");
    assert!(
        document.contains(&table),
        "docs/formats.md lacks this:\n{table}"
    );
}
