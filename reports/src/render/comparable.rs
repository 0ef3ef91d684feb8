//! Why figures of two arms are not judged although both were measured: what made the difference
//! would be something else than their configurations.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::lang::Lang;
use crate::render::compare::{Measured, Metric};
use crate::render::configuration::flags_of;
use crate::render::format;
use crate::select::Arm;

/// Of another engine's server: it ran on a machine that the record does not describe, or had
/// another model or other weights. None where both servers were started here with the same files.
pub fn servers_differ(before: &Arm<'_>, after: &Arm<'_>, lang: Lang) -> Option<String> {
    let (before, after) = (before.representative()?, after.representative()?);
    let (before, after) = (&before.record.manifest, &after.record.manifest);
    if let Some(why) = before.not_comparable().or(after.not_comparable()) {
        return Some(lang.pick(
            format!("답을 대조할 수 없음: {why}"),
            format!("the answers cannot be compared: {why}"),
        ));
    }
    if before.base_url == after.base_url {
        return None;
    }
    let mut urls = [&before.base_url, &after.base_url].into_iter().flatten();
    if let Some(url) = urls.find(|url| !is_loopback(url)) {
        return Some(lang.pick(
            format!("{url}의 장비는 기록되지 않음"),
            format!("the machine at {url} is not recorded"),
        ));
    }
    let (before, after) = (&before.model.used, &after.model.used);
    (last_part(before) != last_part(after)).then(|| {
        lang.pick(
            format!("모델 이름이 다름: {before} / {after}"),
            format!("the models have different names: {before} / {after}"),
        )
    })
}

/// Of our own servers: another configuration and another engine binary, so that no one knows which of
/// them made the difference. One configuration may be compared over binaries. Nothing is said of records
/// that do not name their binary.
pub fn binaries_differ(before: &Arm<'_>, after: &Arm<'_>, lang: Lang) -> Option<String> {
    let of = |arm: &Arm<'_>| {
        let manifest = &arm.representative()?.record.manifest;
        let binary = manifest.sha256.engine_binary.clone()?;
        manifest.base_url.is_none().then_some(binary)
    };
    let confounded = of(before)? != of(after)? && flags_of(before) != flags_of(after);
    confounded.then(|| {
        lang.pick(
            "엔진 바이너리가 다름".to_owned(),
            "the engine binaries differ".to_owned(),
        )
    })
}

/// Of one case: other prompts, or answers of another length where the metric depends on it.
/// Lengths within ± `margin_percent` count as the same.
pub fn work_differs(
    before: &[Measured<'_>],
    after: &[Measured<'_>],
    metric: Metric,
    margin_percent: f64,
    lang: Lang,
) -> Option<String> {
    let prompts: BTreeSet<Option<&str>> = before.iter().chain(after).map(|m| m.prompts).collect();
    if prompts.len() > 1 {
        let words = lang.pick("프롬프트 세트가 다름", "the sets of prompts differ");
        return Some(words.to_owned());
    }
    if metric == Metric::Ttft {
        return None;
    }
    let (before, after) = (mean_tokens(before)?, mean_tokens(after)?);
    let change_percent = 100.0 * (after - before).abs() / before;
    (change_percent > margin_percent).then(|| {
        let (before, after) = (format::number(before, 1), format::number(after, 1));
        lang.pick(
            format!("응답 길이가 다름: 요청마다 평균 {before} / {after} 토큰"),
            format!("the answers differ in length: {before} / {after} tokens a request on average"),
        )
    })
}

/// Output tokens of a successful request.
fn mean_tokens(runs: &[Measured<'_>]) -> Option<f64> {
    let n_tokens: u64 = runs.iter().map(|run| run.samples.output_tokens).sum();
    let n_requests: u32 = runs.iter().map(|run| run.samples.n_ok()).sum();
    (n_requests > 0 && n_tokens > 0).then(|| n_tokens as f64 / f64::from(n_requests))
}

fn is_loopback(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next(),
        None => authority.split(':').next(),
    };
    let host = host.unwrap_or_default();
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Servers name a model with or without its owner or folder.
fn last_part(model: &str) -> &str {
    model.rsplit('/').next().unwrap_or(model)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_this_machine() {
        for url in [
            "http://127.0.0.1:9000",
            "http://localhost/v1",
            "http://[::1]:80/v1",
        ] {
            assert!(is_loopback(url), "{url}");
        }
        for url in [
            "http://gpubox:8000",
            "http://10.0.0.1",
            "http://127.0.0.1.example",
        ] {
            assert!(!is_loopback(url), "{url}");
        }
        assert_eq!(last_part("Qwen/Qwen3-0.6B"), last_part("Qwen3-0.6B"));
    }
}
