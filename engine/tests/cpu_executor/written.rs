//! A synthetic model that was written as a checkpoint, for other engines to read.

use engine::executor::cpu::ActivationType;
use engine::weights::preset::{self, Preset};
use engine::weights::synthetic::{SyntheticCheckpoint, SyntheticFormat};
use engine::weights::{Checkpoint, LoadFormat, ModelFiles, folder};
use kernels::Isa;

use super::{executor, options, relative_difference, row, tokens};

fn logits(checkpoint: &dyn Checkpoint) -> Vec<f32> {
    let tokens = tokens(40, 3, checkpoint.config().vocab);
    let mut executor = executor(checkpoint, options(ActivationType::F32, Isa::detect()));
    executor
        .forward_logits(&[row(&tokens, 0, 0)], &[(0, 3), (0, 39)])
        .expect("logits")
}

/// Loaded twice it says the same to the bit, and nearly what the weights say that were never written:
/// norms and biases are rounded to 16 bits in the file.
#[test]
fn a_written_checkpoint_is_the_model_it_was_made_from() {
    for (name, format) in [
        ("tiny-qwen3", SyntheticFormat::Awq { group_size: 32 }),
        (
            "tiny-qwen2",
            preset::find("tiny-qwen2").expect("a preset").format,
        ),
    ] {
        let preset = Preset {
            format,
            ..preset::find(name).expect("a preset")
        };
        let made = SyntheticCheckpoint::from_preset(&preset, 0);
        let dir = tempfile::tempdir().expect("a folder");
        let written = dir.path().join("model");
        folder::write(&made, &written, &[], &|_| ()).expect("written");
        let files = ModelFiles::Folder(written);
        let open = || engine::weights::open(&files, LoadFormat::Auto, 0).expect("opened");
        let first = logits(&*open());
        assert_eq!(first, logits(&*open()), "{name}");
        let difference = relative_difference(&first, &logits(&made));
        assert!(difference < 0.02, "{name}: {difference}");
    }
}
