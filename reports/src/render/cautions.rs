//! What a reader must know before a group's figures: differences between its runs, and what they say
//! against themselves.

use std::collections::{BTreeMap, BTreeSet};

use records::manifest::Hashes;

use crate::lang::Lang;
use crate::render::context::Caution;
use crate::render::sources;
use crate::render::states::one_line;
use crate::select::{Arm, Group, Run};

/// What complete runs of an arm say against themselves, what is unknown of their sources, and of how many
/// runs that is said.
fn remarks_of(arm: &Arm<'_>, lang: Lang) -> Vec<Caution> {
    let mut n_by_remark: BTreeMap<String, usize> = BTreeMap::new();
    for remark in arm.runs.iter().filter_map(|run| run.folder.remark.as_ref()) {
        *n_by_remark.entry(one_line(remark)).or_default() += 1;
    }
    for run in &arm.runs {
        if let Some(mark) = sources::mark(&run.record.source, lang) {
            *n_by_remark.entry(mark).or_default() += 1;
        }
    }
    let line = |(remark, n): (String, usize)| {
        let runs = lang.pick(format!("기동 {n}회"), format!("{n} run(s)"));
        Caution {
            of: Some(arm.experiment.clone()),
            text: format!("{remark} ({runs})"),
        }
    };
    n_by_remark.into_iter().map(line).collect()
}

/// Two configurations that were never in one campaign.
fn shares_no_campaign(group: &Group<'_>) -> bool {
    let measured: Vec<&Arm<'_>> = group.arms.iter().filter(|a| !a.runs.is_empty()).collect();
    measured.iter().enumerate().any(|(i, a)| {
        let apart = |b: &&Arm<'_>| !a.campaigns.iter().any(|c| b.campaigns.contains(c));
        measured[i + 1..].iter().any(apart)
    })
}

pub fn cautions_of(group: &Group<'_>, lang: Lang) -> Vec<Caution> {
    let runs: Vec<Run<'_>> = group
        .arms
        .iter()
        .flat_map(|arm| arm.runs.iter().copied())
        .collect();
    let differs = |value: &dyn Fn(&Run<'_>) -> Option<String>| {
        runs.iter().map(value).collect::<BTreeSet<_>>().len() > 1
    };
    let hash = |of: fn(&Hashes) -> &Option<String>| {
        move |run: &Run<'_>| of(&run.record.manifest.sha256).clone()
    };
    let kinds = [
        (
            shares_no_campaign(group),
            lang.pick(
                "구성마다 다른 캠페인에서 측정됨: 시간에 따른 장비 상태의 차이가 섞일 수 있음",
                "measured in different campaigns: the machine may have changed in between",
            ),
        ),
        (
            differs(&hash(|sha256| &sha256.engine_binary)),
            lang.pick(
                "서로 다른 엔진 바이너리로 측정됨: 바이너리가 다른 구성끼리는 판정하지 않음",
                "measured with different engine binaries: not judged against each other",
            ),
        ),
        (
            differs(&hash(|sha256| &sha256.model)),
            lang.pick(
                "이름은 같으나 내용이 다른 모델 파일로 측정됨",
                "measured with model files of one name and different content",
            ),
        ),
        (
            differs(&|run| run.record.environment.gpu.as_ref()?.driver.clone()),
            lang.pick(
                "서로 다른 GPU 드라이버로 측정됨",
                "measured with different GPU drivers",
            ),
        ),
        (
            differs(&hash(|sha256| &sha256.prompts)),
            lang.pick(
                "서로 다른 프롬프트 세트로 측정됨: 세트가 다른 구성끼리는 판정하지 않음",
                "measured with different sets of prompts: not judged against each other",
            ),
        ),
        (
            differs(&|run| {
                let watts = run.record.environment.gpu.as_ref()?.power_limit_w?;
                Some(watts.to_string())
            }),
            lang.pick(
                "서로 다른 GPU 전력 한도로 측정됨",
                "measured with different power limits of the GPU",
            ),
        ),
        (
            differs(&|run| run.record.server.executor.clone()),
            lang.pick(
                "서로 다른 실행기(executor)로 측정됨",
                "measured with different executors",
            ),
        ),
    ];
    let mut cautions: Vec<Caution> = kinds
        .iter()
        .filter(|(applies, _)| *applies)
        .map(|(_, words)| Caution {
            of: None,
            text: (*words).to_owned(),
        })
        .collect();
    let broken = group
        .arms
        .iter()
        .filter(|arm| !arm.campaigns_complete && !arm.runs.is_empty());
    cautions.extend(broken.map(|arm| {
        let words = lang.pick(
            "캠페인이 끝까지 완료되지 않음",
            "its campaign did not complete",
        );
        Caution {
            of: Some(arm.experiment.clone()),
            text: words.to_owned(),
        }
    }));
    let arms = group.arms.iter().chain(&group.peers);
    cautions.extend(arms.flat_map(|arm| remarks_of(arm, lang)));
    cautions
}
