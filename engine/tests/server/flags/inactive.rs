//! Accepted flags without an effect are reported.

use engine::config::inactive::inactive_flags;
use engine::config::typed::Device;

use crate::command_line::parse;

/// Listed with a reason for both devices, and not at all where it was not typed.
fn is_inactive_everywhere(flag: &str, line: &str) -> bool {
    let listed = |line: &str, device| {
        let typed = parse(line).expect(line).engine;
        let flags = inactive_flags(&typed, device);
        flags
            .iter()
            .any(|(name, reason)| name == flag && !reason.is_empty())
    };
    [Device::Cpu, Device::Cuda]
        .into_iter()
        .all(|device| listed(line, device) && !listed("", device))
}

#[test]
fn what_does_nothing_anywhere_says_why() {
    for flag in [
        "--trust-remote-code",
        "--disable-custom-all-reduce",
        "--stream-output",
    ] {
        assert!(is_inactive_everywhere(flag, flag), "{flag}");
    }
    for line in [
        "--sampling-backend pytorch --disable-flashinfer",
        "--enable-hierarchical-cache --hicache-size 1 --hicache-ratio 2",
        "--hicache-ratio 2",
        "--hicache-size 1",
        "--speculative-num-draft-tokens 3",
        "--speculative-ngram-min-match-window-size 3",
        "--speculative-ngram-max-match-window-size 3",
        "--speculative-draft-model-path org/small",
        "--speculative-algorithm NGRAM --speculative-draft-model-path org/small",
        "--speculative-suffix-max-tree-depth 3",
        "--speculative-suffix-max-cached-requests 3",
        "--speculative-suffix-max-spec-factor 2",
        "--speculative-suffix-min-token-prob 0.5",
        "--speculative-algorithm NGRAM --speculative-suffix-max-tree-depth 3",
        "--speculative-algorithm NGRAM --speculative-suffix-max-cached-requests 3",
        "--speculative-algorithm NGRAM --speculative-suffix-max-spec-factor 2",
        "--speculative-algorithm NGRAM --speculative-suffix-min-token-prob 0.5",
        "--speculative-algorithm suffix --speculative-ngram-min-match-window-size 3",
        "--speculative-algorithm suffix --speculative-ngram-max-match-window-size 3",
    ] {
        let typed = line.split(' ').rfind(|word| word.starts_with("--"));
        let flag = typed.expect("a flag");
        assert!(is_inactive_everywhere(flag, line), "{line}");
    }
}

#[test]
fn two_halves_of_a_batch_do_not_go_with_drafts() {
    let reasons = |flags: &str| -> Vec<String> {
        let typed = parse(&format!("--enable-two-batch-overlap {flags}")).expect("a line");
        let flags = inactive_flags(&typed.engine, Device::Cuda);
        let flags = flags.into_iter();
        flags
            .filter(|(flag, _)| flag == "--enable-two-batch-overlap")
            .map(|(_, reason)| reason)
            .collect()
    };
    assert!(reasons("").is_empty());
    let json = r#"--speculative-config {"method":"ngram","num_speculative_tokens":3}"#;
    for flags in ["--speculative-algorithm NGRAM", json] {
        let [reason] = &reasons(flags)[..] else {
            panic!("{flags}: one reason");
        };
        assert!(reason.contains("speculation"), "{reason}");
    }
}

#[test]
fn what_only_one_attention_backend_reads_is_said_so_with_the_others() {
    let splits = "--triton-attention-num-kv-splits 4 --triton-attention-reduce-in-fp32 \
                  --enable-two-batch-overlap";
    let n_inactive = |backend: &str| {
        let typed = parse(&format!("{backend} {splits}")).expect("a line");
        inactive_flags(&typed.engine, Device::Cuda).len()
    };
    assert_eq!(n_inactive(""), 0);
    assert_eq!(n_inactive("--attention-backend triton"), 0);
    assert_eq!(n_inactive("--attention-backend flashinfer"), 3);
    assert_eq!(n_inactive("--attention-backend torch_native"), 3);
}
