//! A model with experts: served on the CPU; on a GPU experts that its kernels do not take are refused before weights
//! are read.

use engine::config::typed::Device;
use engine::errors::Code;
use engine::launch::load_model;
use engine::model::config::Family;
use engine::weights::fixture::FolderFormat;

use super::fixture::Model;
use crate::command_line::resolve;

#[test]
fn experts_of_other_sizes_are_refused_on_a_gpu_before_weights_are_read() {
    let model = Model::new(Family::Qwen3Moe, FolderFormat::F16);
    let executor = model.executor_info("");
    assert!(executor.kernels.iter().any(|(role, _)| role == "experts"));
    let path = model.path().join("config.json");
    let text = std::fs::read_to_string(&path).expect("a configuration");
    let mut config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    config["moe_intermediate_size"] = 40.into();
    std::fs::write(&path, config.to_string()).expect("written");
    // Nothing that follows reads weights.
    std::fs::write(model.path().join("model.safetensors"), "no weights").expect("written");
    let (folder, cache) = (model.path(), model.path().join("cache"));
    let (folder, cache) = (folder.display(), cache.display());
    let line = format!("--model-path {folder} --cache-dir {cache}");
    let mut config = resolve(&line).expect("a line").engine;
    config.device = Device::Cuda;
    let error = load_model(&config, &|_| ()).err().expect("refused");
    assert_eq!(error.code(), Code::UnsupportedArchitecture);
    let message = error.to_string();
    for part in ["width of an expert is 40", "multiple of 16", "--device cpu"] {
        assert!(message.contains(part), "{message}");
    }
}
