//! A tiny model in a folder, and what is made of it by a launch line.

use engine::config::EngineConfig;
use engine::executor::ExecutorInfo;
use engine::launch::devices::Devices;
use engine::launch::{AskLimits, LaunchError, LoadedModel, launch, load_executor, load_model};
use engine::model::config::{Family, ModelConfig};
use engine::served_model::ServedModel;
use engine::weights::fixture::packed::{
    PackedFormat, PackedKind, packed_config, write_packed_folder,
};
use engine::weights::fixture::scaled::{ScaledFormat, scaled_config, write_scaled_folder};
use engine::weights::fixture::{FolderFormat, tiny_config, write_folder};
use serde_json::json;

use crate::command_line::{parse, resolve};
use crate::fixture::write_tokenizer;

/// A tiny model in a folder.
pub struct Model {
    pub(super) folder: tempfile::TempDir,
}

impl Model {
    pub fn new(family: Family, format: FolderFormat) -> Self {
        Self::of(&tiny_config(family), format)
    }

    pub fn of(config: &ModelConfig, format: FolderFormat) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model");
        write_folder(&path, config, format, 1, 1).expect("written");
        write_tokenizer(&path);
        Self { folder }
    }

    pub(super) fn packed(kind: PackedKind, act_order: bool) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model");
        let format = PackedFormat {
            kind,
            group_size: Some(64),
            symmetric: false,
            act_order,
        };
        write_packed_folder(&path, &packed_config(Family::Qwen3), format, 1).expect("written");
        write_tokenizer(&path);
        Self { folder }
    }

    pub(super) fn scaled(format: ScaledFormat) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model");
        write_scaled_folder(&path, &scaled_config(Family::Qwen3), format, 1).expect("written");
        write_tokenizer(&path);
        Self { folder }
    }

    pub fn f16() -> Self {
        Self::new(Family::Qwen3, FolderFormat::F16)
    }

    pub fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("model")
    }

    /// A launch line for it on the CPU.
    pub fn line(&self, flags: &str) -> String {
        format!(
            "--device cpu --n-threads 1 --max-total-tokens 512 --model-path {} --cache-dir {} {flags}",
            self.folder.path().join("model").display(),
            self.folder.path().join("cache").display(),
        )
    }

    pub(super) fn config(&self, flags: &str) -> EngineConfig {
        resolve(&self.line(flags)).expect(flags).engine
    }

    pub(super) fn load(&self, flags: &str) -> Result<LoadedModel, LaunchError> {
        load_model(&self.config(flags), &|_| ())
    }

    pub fn executor_info(&self, flags: &str) -> ExecutorInfo {
        self.loaded_executor_info(flags, &self.config(flags))
    }

    /// Without a cap on the KV pool: memory decides.
    pub fn executor_info_by_memory(&self, flags: &str) -> ExecutorInfo {
        let config = EngineConfig {
            max_total_tokens: None,
            ..self.config(flags)
        };
        self.loaded_executor_info(flags, &config)
    }

    fn loaded_executor_info(&self, flags: &str, config: &EngineConfig) -> ExecutorInfo {
        let model = self.load(flags).expect(flags);
        let executor = load_executor(config, model.checkpoint.as_ref()).expect(flags);
        executor.info().clone()
    }

    pub fn served(&self, flags: &str) -> ServedModel {
        self.launched(flags).expect(flags)
    }

    pub fn launched(&self, flags: &str) -> Result<ServedModel, LaunchError> {
        let typed = parse(&self.line(flags)).expect(flags);
        let config = typed.resolve().expect(flags);
        let asked = AskLimits::from(&config.http);
        let names = config.http.served_model_name.into_iter().collect();
        let devices = Devices::default();
        launch(
            &typed.engine,
            &config.engine,
            names,
            asked,
            json!({}),
            &devices,
            &|_| (),
        )
    }
}

/// The kernel of a role; `none` if it has none.
pub fn kernel<'a>(info: &'a ExecutorInfo, role: &str) -> &'a str {
    let kernel = info.kernels.iter().find(|(name, _)| name == role);
    kernel.map_or("none", |(_, kernel)| kernel)
}
