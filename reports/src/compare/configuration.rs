//! In what two configurations differ, setting by setting.

use std::collections::BTreeMap;

use crate::lang::Lang;
use crate::load::run_folder::Record;
use crate::render::configuration::flags_by_name;
use crate::render::format;
use crate::render::sources;
use crate::select::{Arm, same_place};

/// One row: the setting, and its value on either side.
pub type Row = [String; 3];

/// The settings that differ, and how many do not.
pub fn differences(a: &Arm<'_>, b: &Arm<'_>, lang: Lang) -> (Vec<Row>, usize) {
    let (a, b) = (settings(a, lang), settings(b, lang));
    let none = || "–".to_owned();
    let mut names: Vec<&(usize, String)> = a.keys().chain(b.keys()).collect();
    names.sort();
    names.dedup();
    let n_all = names.len();
    let rows: Vec<Row> = names
        .into_iter()
        .filter(|name| a.get(*name) != b.get(*name))
        .map(|name| {
            let value = |of: &BTreeMap<_, String>| of.get(name).cloned().unwrap_or_else(none);
            [name.1.clone(), value(&a), value(&b)]
        })
        .collect();
    let n_same = n_all - rows.len();
    (rows, n_same)
}

/// Why the figures of two arms say nothing about their configurations; empty where they do.
pub fn warnings(a: &Arm<'_>, b: &Arm<'_>, lang: Lang) -> Vec<String> {
    let (Some(a), Some(b)) = (a.representative(), b.representative()) else {
        return Vec::new();
    };
    if same_place(a.record, b.record) {
        return Vec::new();
    }
    let (model_a, model_b) = (&a.record.manifest.model.used, &b.record.manifest.model.used);
    let (machine_a, machine_b) = (machine(a.record, lang), machine(b.record, lang));
    let mut warnings = Vec::new();
    if model_a != model_b {
        warnings.push(lang.pick(
            format!("모델이 다름: {model_a} / {model_b}"),
            format!("the models differ: {model_a} / {model_b}"),
        ));
    }
    if machine_a != machine_b || warnings.is_empty() {
        warnings.push(lang.pick(
            format!("장비가 다름: {machine_a} / {machine_b}"),
            format!("the machines differ: {machine_a} / {machine_b}"),
        ));
    }
    warnings
}

/// Every setting under its place in the table and its name.
fn settings(arm: &Arm<'_>, lang: Lang) -> BTreeMap<(usize, String), String> {
    let Some(run) = arm.representative() else {
        return BTreeMap::new();
    };
    let (manifest, server) = (&run.record.manifest, &run.record.server);
    let yes_no =
        |yes: bool| lang.pick(["아니요", "예"], ["no", "yes"])[usize::from(yes)].to_owned();
    let short = |hash: &str| hash.get(..12).unwrap_or(hash).to_owned();
    let git = manifest.git.commit.as_deref().map(|commit| {
        match sources::mark(&run.record.source, lang) {
            Some(mark) => format!("{} ({mark})", short(commit)),
            None => short(commit),
        }
    });
    let place = [
        (
            lang.pick("장비", "machine"),
            Some(machine(run.record, lang)),
        ),
        (
            lang.pick("드라이버", "driver"),
            run.record
                .environment
                .gpu
                .as_ref()
                .and_then(|gpu| gpu.driver.clone()),
        ),
        (lang.pick("서버 주소", "server"), manifest.base_url.clone()),
        (
            lang.pick("엔진", "engine"),
            manifest.engine.as_ref().map(|engine| {
                let version = engine.version.as_deref().unwrap_or_default();
                format!("{} {version}", engine.shown()).trim().to_owned()
            }),
        ),
        (
            lang.pick("모델", "model"),
            Some(manifest.model.used.clone()),
        ),
        (lang.pick("실행기", "executor"), server.executor.clone()),
        (
            lang.pick("짧은 실행", "quick"),
            Some(yes_no(manifest.quick)),
        ),
        (lang.pick("시드", "seed"), Some(manifest.seed.to_string())),
        (lang.pick("커밋", "commit"), git),
    ];
    let hashes = manifest
        .sha256
        .by_name()
        .map(|(name, hash)| (format!("sha256 {name}"), hash.map(|hash| short(hash))));
    let flags = flags_by_name(arm).into_iter().map(|(name, value)| {
        (
            name,
            Some(if value.is_empty() {
                yes_no(true)
            } else {
                value
            }),
        )
    });
    let inactive = server.inactive_flags.iter().map(|(flag, why)| {
        (
            format!("{} {flag}", lang.pick("효과 없음", "inactive")),
            Some(why.clone()),
        )
    });
    let kernels = server.kernels.iter().map(|(role, kernel)| {
        (
            format!("{} {role}", lang.pick("커널", "kernel")),
            Some(kernel.clone()),
        )
    });
    place
        .map(|(name, value)| (0, name.to_owned(), value))
        .into_iter()
        .chain(flags.map(|(name, value)| (1, name, value)))
        .chain(inactive.map(|(name, value)| (2, name, value)))
        .chain(kernels.map(|(name, value)| (3, name, value)))
        .chain(hashes.map(|(name, value)| (4, name, value)))
        .filter_map(|(place, name, value)| Some(((place, name), value?)))
        .collect()
}

fn machine(record: &Record, lang: Lang) -> String {
    let environment = &record.environment;
    let cores = lang.pick("코어", "cores");
    let cpu = format!(
        "{} ({} {cores})",
        environment.cpu.model, environment.cpu.n_cores
    );
    let gpu = environment.gpu.as_ref().map(|gpu| {
        let memory = gpu
            .memory_bytes
            .map(|bytes| format!(" ({})", format::bytes(bytes as f64)));
        format!("{}{}, ", gpu.name, memory.unwrap_or_default())
    });
    format!("{}{cpu}, {}", gpu.unwrap_or_default(), environment.host)
}
