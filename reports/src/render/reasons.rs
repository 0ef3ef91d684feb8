//! Why a flag does nothing, or is not given to another engine, in the reader's language. Records hold English words; those
//! that it is known to write have a translation here, others are shown as they are.

use crate::lang::Lang;

const KOREAN: &[(&str, &str)] = &[
    (
        "streamed chunks always carry only the new text, except those of /generate, which carry the text so far",
        "스트리밍 조각에는 항상 새 텍스트만 담김(/generate는 지금까지의 전체 텍스트)",
    ),
    ("--autotune was not given", "--autotune이 지정되지 않음"),
    (
        "--speculative-algorithm was not given",
        "--speculative-algorithm이 지정되지 않음",
    ),
    (
        "--speculative-algorithm is not NGRAM",
        "--speculative-algorithm이 NGRAM이 아님",
    ),
    (
        "--speculative-algorithm is not STANDALONE or EAGLE3",
        "--speculative-algorithm이 STANDALONE이나 EAGLE3이 아님",
    ),
    (
        "--speculative-algorithm is not SUFFIX",
        "--speculative-algorithm이 SUFFIX가 아님",
    ),
    (
        "with speculation, rows of one half read what rows of the other write",
        "추측 디코딩에서는 한쪽 절반의 행이 다른 쪽 절반의 행이 쓰는 값을 읽음",
    ),
    (
        "NGRAM makes one chain of guesses from the request's own text",
        "NGRAM은 요청 자신의 텍스트에서 추측을 한 줄로만 만듦",
    ),
    (
        "--sampling-backend was given, and attention is split-kv unless --attention-backend says otherwise",
        "--sampling-backend가 지정되었고, --attention-backend를 지정하지 않으면 어텐션은 split-kv임",
    ),
    (
        "only --attention-backend split-kv splits contexts",
        "컨텍스트를 나누는 것은 --attention-backend split-kv뿐임",
    ),
    (
        "held to 8, the blocks of the largest cluster that every GPU supports",
        "모든 GPU가 지원하는 가장 큰 클러스터의 블록 수인 8로 제한됨",
    ),
    (
        "only --attention-backend split-kv can run two halves of a batch concurrently",
        "배치의 두 절반을 동시에 실행하는 것은 --attention-backend split-kv에서만 가능",
    ),
    (
        "the CPU executor computes in fp32, and in int8 with --cpu-activations int8",
        "CPU 실행기는 fp32로, --cpu-activations int8이면 int8로 계산함",
    ),
    (
        "on the CPU, use --cpu-activations",
        "CPU에서는 --cpu-activations를 쓸 것",
    ),
    (
        "the CPU executor has one kernel for each shape",
        "CPU 실행기에는 형상마다 커널이 하나뿐임",
    ),
    (
        "the CPU executor does not use a GPU",
        "CPU 실행기는 GPU를 쓰지 않음",
    ),
    // As older versions wrote it; records keep their words.
    (
        "no model code is ever loaded, so there is nothing to trust",
        "모델의 코드를 불러오지 않으므로 해당 없음",
    ),
    (
        "one device has no all-reduce",
        "장치가 하나라 all-reduce가 없음",
    ),
    (
        "streamed chunks carry only the new text anyway",
        "스트리밍 조각에는 원래 새 텍스트만 담김",
    ),
    (
        "streamed chunks carry only the new text anyway, and those of /generate always the text so far",
        "스트리밍 조각에는 원래 새 텍스트만 담김(/generate는 늘 지금까지의 전체 텍스트)",
    ),
    (
        "--enable-torch-compile was not given",
        "--enable-torch-compile이 지정되지 않음",
    ),
    (
        "--enable-hierarchical-cache was not given",
        "--enable-hierarchical-cache가 지정되지 않음",
    ),
    (
        "--hicache-size says how large the host tier is",
        "호스트 계층의 크기는 --hicache-size로 정해짐",
    ),
    (
        "flashinfer would not have been chosen: the sampler was named, and attention is triton's unless flashinfer's is asked for",
        "flashinfer는 원래 선택되지 않음: 샘플러가 지정되었고, 어텐션은 따로 요청하지 않으면 triton",
    ),
    ("the model runs on the GPU", "모델이 GPU에서 실행됨"),
    (
        "only the attention backend triton splits contexts",
        "컨텍스트를 나누는 것은 어텐션 백엔드 triton뿐임",
    ),
    (
        "held to 64, the rows of a decode pass",
        "디코드 한 번의 행 수인 64로 제한됨",
    ),
    (
        "held to 8, the blocks of the largest cluster that every card has",
        "모든 카드가 지원하는 가장 큰 클러스터의 블록 수인 8로 제한됨",
    ),
    (
        "halves run side by side with the attention backend triton only",
        "반쪽 배치의 동시 실행은 어텐션 백엔드 triton에서만 가능",
    ),
    (
        "the CPU executor computes in fp32, and in int8 where --cpu-activations says so",
        "CPU 실행기는 fp32로, --cpu-activations를 지정하면 int8로 계산함",
    ),
    (
        "on the CPU --cpu-activations says what is rounded",
        "CPU에서 무엇을 반올림할지는 --cpu-activations로 정해짐",
    ),
    (
        "attention on the CPU splits no context",
        "CPU의 어텐션은 컨텍스트를 나누지 않음",
    ),
    (
        "attention on the CPU is computed in fp32 throughout",
        "CPU의 어텐션은 전부 fp32로 계산함",
    ),
    (
        "the CPU executor has no device memory to share out; its KV pool is sized by --max-total-tokens",
        "CPU 실행기에는 나눌 장치 메모리가 없음; KV 풀의 크기는 --max-total-tokens로 정해짐",
    ),
    (
        "the CPU executor has all weights in the host's memory",
        "CPU 실행기는 모든 가중치를 호스트 메모리에 둠",
    ),
    (
        "the CPU executor has no device memory to share out unless --device-memory-limit says how much; its KV pool is sized by --max-total-tokens",
        "--device-memory-limit 없이는 CPU 실행기에 나눌 장치 메모리가 없음; KV 풀의 크기는 --max-total-tokens로 정해짐",
    ),
    (
        "CPU kernels are compiled ahead of time",
        "CPU 커널은 미리 컴파일되어 있음",
    ),
    (
        "the CPU executor captures no graphs",
        "CPU 실행기는 그래프를 캡처하지 않음",
    ),
    (
        "two halves of a batch would share the same cores, and read the weights twice",
        "반쪽 배치 둘이 같은 코어를 나누어 쓰고 가중치를 두 번 읽게 됨",
    ),
    (
        "the CPU executor runs on no card",
        "CPU 실행기는 카드를 쓰지 않음",
    ),
    (
        "the CPU executor computes on the host, so its steps never overlap with the host's work",
        "CPU 실행기는 호스트에서 계산하므로 호스트의 일과 겹칠 수 없음",
    ),
    // Why another engine is not given a flag.
    (
        "names SGLang's kernels; llama.cpp chooses its own",
        "SGLang의 커널 이름이라 해당 없음: llama.cpp가 스스로 고름",
    ),
    (
        "llama.cpp decides on graphs itself",
        "그래프를 쓸지는 llama.cpp가 정함",
    ),
    (
        "llama.cpp compiles nothing when it starts",
        "llama.cpp는 기동할 때 컴파일하지 않음",
    ),
    (
        "SGLang's scheduler; llama.cpp's is first come, first served",
        "SGLang의 스케줄러 설정: llama.cpp는 온 순서대로 처리함",
    ),
    (
        "llama.cpp's own size of a step stands",
        "llama.cpp 자신의 스텝 크기를 그대로 둠",
    ),
    (
        "llama.cpp keeps whole prompts on the host, not pages of a pool",
        "llama.cpp는 풀의 페이지가 아니라 프롬프트 전체를 호스트에 보관함",
    ),
    (
        "llama.cpp schedules after every step",
        "llama.cpp는 스텝마다 스케줄링함",
    ),
    (
        "llama.cpp always mixes prefill and decode in a step",
        "llama.cpp는 항상 프리필과 디코드를 한 스텝에 섞음",
    ),
    (
        "llama.cpp's KV pool is as large as --ctx-size says",
        "llama.cpp의 KV 풀 크기는 --ctx-size로 정해짐",
    ),
    ("concerns several GPUs", "GPU가 여러 개일 때의 설정"),
    (
        "the workload's prompts fit the context",
        "부하의 프롬프트는 컨텍스트 안에 들어감",
    ),
    ("a matter of logs", "로그에 관한 설정"),
    (
        "vLLM speculates as a JSON of its own says",
        "vLLM의 추측 디코딩은 자체 JSON으로 설정함",
    ),
    (
        "SGLang's NGRAM drafts from other requests too, and it has no SUFFIX",
        "SGLang의 NGRAM은 다른 요청의 텍스트도 쓰며, SUFFIX는 없음",
    ),
    (
        "llama.cpp looks tokens up by flags of its own",
        "llama.cpp의 토큰 조회는 자체 플래그로 설정함",
    ),
    (
        "llama.cpp's chunks hold the new tokens alone, always",
        "llama.cpp의 스트리밍 조각에는 항상 새 토큰만 담김",
    ),
    ("the file decides", "파일이 정함"),
    (
        "removed from SGLang; the backends are named instead",
        "SGLang에서 없어진 플래그: 지금은 백엔드 이름을 지정함",
    ),
    (
        "renamed since, and only the form of SGLang's own endpoint; completions stream new tokens alone",
        "이름이 바뀌었고 SGLang 고유 엔드포인트에만 영향을 줌: completions는 새 토큰만 스트리밍함",
    ),
    (
        "the preset decides, or SGLang's default",
        "프리셋 또는 SGLang의 기본값을 따름",
    ),
    (
        "names SGLang's kernels; vLLM chooses its own",
        "SGLang의 커널 이름이라 해당 없음: vLLM이 스스로 고름",
    ),
    (
        "the preset decides: best has graphs, enforce-eager has none",
        "프리셋을 따름: best는 그래프를 쓰고 enforce-eager는 쓰지 않음",
    ),
    (
        "vLLM compiles by default; enforce-eager does not",
        "vLLM은 기본으로 컴파일하고 enforce-eager는 하지 않음",
    ),
    (
        "SGLang's scheduler; vLLM's is first come, first served",
        "SGLang의 스케줄러 설정: vLLM은 온 순서대로 처리함",
    ),
    (
        "vLLM bounds a step, not its prefill; its default stands",
        "vLLM은 프리필이 아니라 스텝의 크기를 제한함: 기본값을 그대로 둠",
    ),
    (
        "vLLM has no such tier built in",
        "vLLM에는 이런 계층이 없음",
    ),
    (
        "vLLM always mixes prefill and decode in a step",
        "vLLM은 항상 프리필과 디코드를 한 스텝에 섞음",
    ),
    (
        "vLLM schedules after every step",
        "vLLM은 스텝마다 스케줄링함",
    ),
    (
        "vLLM sizes its KV pool from --gpu-memory-utilization",
        "vLLM의 KV 풀 크기는 --gpu-memory-utilization으로 정해짐",
    ),
    (
        "vLLM's chunks hold the new tokens alone, always",
        "vLLM의 스트리밍 조각에는 항상 새 토큰만 담김",
    ),
];

/// The engine's words of why a flag does nothing.
pub fn translated(reason: &str, lang: Lang) -> String {
    let korean = || KOREAN.iter().find(|(english, _)| *english == reason);
    match lang {
        Lang::Ko => korean().map_or(reason, |(_, korean)| korean).to_owned(),
        Lang::En => reason.to_owned(),
    }
}

/// Whether the engine lists a flag for a value that it does not take as it stands, and not because it
/// does nothing.
pub fn is_limited(reason: &str) -> bool {
    reason.starts_with("held to ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reason that the engine writes and that has no translation would be English in a Korean page.
    #[test]
    fn every_reason_of_the_engine_has_its_translation() {
        const SOURCE: &str = include_str!("../../../engine/src/config/inactive.rs");
        // Literals of words, a continued line joined.
        let joined = SOURCE
            .replace("\\\n", "")
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ");
        let literals = joined.split('"').skip(1).step_by(2);
        let reasons: Vec<&str> = literals
            .filter(|text| text.contains(' ') && !text.contains('`'))
            .collect();
        assert!(reasons.len() > 15, "{reasons:?}");
        for reason in reasons {
            let korean = translated(reason, Lang::Ko);
            assert!(
                korean.contains(|c: char| ('가'..='힣').contains(&c)),
                "{reason}"
            );
            assert_eq!(translated(reason, Lang::En), reason);
        }
        assert_eq!(translated("another one", Lang::Ko), "another one");
        assert!(is_limited("held to 8, the blocks") && !is_limited("the model runs"));
    }
}
