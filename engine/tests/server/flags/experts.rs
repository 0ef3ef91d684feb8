//! A model with experts: served on the CPU, refused on a GPU before its weights are read.

use engine::config::typed::Device;
use engine::errors::Code;
use engine::launch::load_model;
use engine::model::config::Family;
use engine::weights::ElementFormat;
use engine::weights::fixture::{FolderFormat, tiny_config, write_gguf};

use super::fixture::Model;
use crate::command_line::resolve;

/// What is said of this launch line on a GPU.
fn refused_on_a_gpu(line: &str) -> String {
    let mut config = resolve(line).expect(line).engine;
    config.device = Device::Cuda;
    let error = load_model(&config, &|_| ()).err().expect("refused");
    assert_eq!(error.code(), Code::UnsupportedArchitecture);
    error.to_string()
}

#[test]
fn experts_are_refused_on_a_gpu_before_weights_are_read() {
    let model = Model::new(Family::Qwen3Moe, FolderFormat::F16);
    let executor = model.executor_info("");
    assert!(executor.kernels.iter().any(|(role, _)| role == "experts"));
    // Nothing that follows reads weights.
    std::fs::write(model.path().join("model.safetensors"), "no weights").expect("written");
    let file = model.path().join("experts.gguf");
    let config = tiny_config(Family::Qwen3Moe);
    write_gguf(&file, &config, ElementFormat::Q8_0, 1, &[]).expect("written");
    let (file, folder) = (file.display().to_string(), model.path());
    let cache = folder.join("cache").display().to_string();
    for (path, n_experts) in [
        (folder.display().to_string(), "6 experts"),
        (file, "6 experts"),
    ] {
        let line = format!("--model-path {path} --cache-dir {cache}");
        let message = refused_on_a_gpu(&line);
        for part in [n_experts, "--device cpu", "Qwen3"] {
            assert!(message.contains(part), "{path}: {message}");
        }
    }
}
