//! Generates `data/SCHEMA.md` from the types and their comments, so that it cannot deviate from
//! them.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use schemars::{JsonSchema, SchemaGenerator};
use serde_json::Value;

use crate::{OLDEST_SCHEMA_VERSION, SCHEMA_VERSION};

const FRAME: &str = include_str!("../schema.md.in");
const UPDATE: &str = "UPDATE_SCHEMA";

fn document() -> String {
    let mut text = FRAME
        .replace("%SCHEMA_VERSION%", &SCHEMA_VERSION.to_string())
        .replace(
            "%OLDEST_SCHEMA_VERSION%",
            &OLDEST_SCHEMA_VERSION.to_string(),
        );
    put::<crate::source::Source>(&mut text);
    put::<crate::manifest::Manifest>(&mut text);
    put::<crate::manifest::GitState>(&mut text);
    put::<crate::manifest::Hashes>(&mut text);
    put::<crate::manifest::ModelUsed>(&mut text);
    put::<crate::manifest::EngineUsed>(&mut text);
    put::<crate::manifest::Answers>(&mut text);
    put::<crate::manifest::AnswerOutcome>(&mut text);
    put::<crate::manifest::Derived>(&mut text);
    put::<crate::manifest::Direction>(&mut text);
    put::<crate::manifest::Side>(&mut text);
    put::<crate::environment::Environment>(&mut text);
    put::<crate::environment::Cpu>(&mut text);
    put::<crate::environment::Gpu>(&mut text);
    put::<crate::config::ResolvedConfig>(&mut text);
    put::<crate::config::ModelConfig>(&mut text);
    put::<crate::workload::Workload>(&mut text);
    put::<crate::workload::Rate>(&mut text);
    put::<crate::workload::SloSearch>(&mut text);
    put::<crate::workload::LoadKind>(&mut text);
    put::<crate::slo::SloOutcome>(&mut text);
    put::<crate::slo::SloTrial>(&mut text);
    put::<crate::rows::RequestRow>(&mut text);
    put::<crate::rows::ServerSample>(&mut text);
    put::<crate::rows::CaseLoad>(&mut text);
    put::<crate::rows::CaseEnergy>(&mut text);
    put::<crate::rows::EnergySource>(&mut text);
    put::<crate::status::Status>(&mut text);
    put::<crate::process_identity::ProcessIdentity>(&mut text);
    put::<crate::campaign::CampaignManifest>(&mut text);
    put::<crate::campaign::ArmOfCampaign>(&mut text);
    put::<crate::campaign::StartLine>(&mut text);
    put::<crate::campaign::CaseFigures>(&mut text);
    put::<crate::verdicts::LastVerdicts>(&mut text);
    put::<crate::verdicts::Judged>(&mut text);
    put::<crate::verdicts::JudgedMetric>(&mut text);
    text
}

/// Inserts the type's table at its mark.
fn put<T: JsonSchema>(text: &mut String) {
    let schema = SchemaGenerator::default()
        .into_root_schema_for::<T>()
        .to_value();
    let mark = format!("%{}%", T::schema_name());
    assert!(text.contains(&mark), "records/schema.md.in has no {mark}");
    let table = match schema.get("oneOf").and_then(Value::as_array) {
        Some(variants) => variants_of(variants, &schema["$defs"]),
        None => keys_of(&schema),
    };
    *text = text.replace(&mark, table.trim_end());
}

fn keys_of(schema: &Value) -> String {
    let mut table = "| key | type | meaning |\n|---|---|---|\n".to_owned();
    let properties = schema["properties"].as_object();
    for (key, property) in properties.into_iter().flatten() {
        // Writing into a String cannot fail.
        let _ = writeln!(
            table,
            "| `{key}` | {} | {} |",
            type_of(property, &schema["$defs"]),
            sentence(property)
        );
    }
    table
}

/// For an enum: one row for each value, with its keys.
fn variants_of(variants: &[Value], names: &Value) -> String {
    let mut table = "| value | further keys | meaning |\n|---|---|---|\n".to_owned();
    for variant in variants {
        let (mut value, mut keys) = (texts_of(variant).map(|texts| texts.join(", ")), Vec::new());
        for (key, property) in variant["properties"].as_object().into_iter().flatten() {
            match texts_of(property).map(|texts| texts.join(", ")) {
                Some(tag) => value = Some(format!("{tag} (`{key}`)")),
                None if value.is_none()
                    && variant["properties"]
                        .as_object()
                        .is_some_and(|p| p.len() == 1) =>
                {
                    value = Some(format!("`{{\"{key}\": …}}`"));
                }
                None => {
                    let about = sentence(property);
                    let colon = if about.is_empty() { "" } else { ": " };
                    keys.push(format!(
                        "`{key}` ({}){colon}{about}",
                        type_of(property, names)
                    ));
                }
            }
        }
        let _ = writeln!(
            table,
            "| {} | {} | {} |",
            value.unwrap_or_default(),
            keys.join(" "),
            sentence(variant)
        );
    }
    table
}

fn sentence(schema: &Value) -> String {
    let text = schema["description"].as_str().unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn type_of(schema: &Value, names: &Value) -> String {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap_or_default();
        let values = texts_of(&names[name]);
        return values.map_or_else(|| name.to_owned(), |values| values.join(", "));
    }
    for key in ["anyOf", "oneOf", "allOf"] {
        if let Some(options) = schema[key].as_array() {
            let types: Vec<String> = options
                .iter()
                .map(|option| type_of(option, names))
                .collect();
            return types.join(" or ");
        }
    }
    match &schema["type"] {
        Value::Array(types) => {
            let of_one = |one: &Value| {
                let mut schema = schema.clone();
                schema["type"] = one.clone();
                type_of(&schema, names)
            };
            types.iter().map(of_one).collect::<Vec<_>>().join(" or ")
        }
        Value::String(name) if name == "array" => match schema.get("items") {
            Some(items) => format!("list of {}", type_of(items, names)),
            None => "list".to_owned(),
        },
        Value::String(name) if name == "object" && schema.get("additionalProperties").is_some() => {
            format!(
                "{} by name",
                type_of(&schema["additionalProperties"], names)
            )
        }
        Value::String(name) => name.clone(),
        _ => "any".to_owned(),
    }
}

/// The values of an enum of strings.
fn texts_of(schema: &Value) -> Option<Vec<String>> {
    let marked = |value: &Value| value.as_str().map(|text| format!("`{text}`"));
    if let Some(constant) = schema.get("const") {
        return Some(vec![marked(constant)?]);
    }
    if let Some(values) = schema["enum"].as_array() {
        return values.iter().map(marked).collect();
    }
    let options = schema["oneOf"].as_array()?.iter().map(texts_of);
    let all: Vec<Vec<String>> = options.collect::<Option<_>>()?;
    Some(all.concat())
}

#[test]
fn the_schema_document_is_that_of_the_types() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/SCHEMA.md");
    let made = document();
    assert!(
        !made.contains('%'),
        "records/schema.md.in names an unknown type"
    );
    if std::env::var_os(UPDATE).is_some() {
        fs::write(&path, &made).expect("written");
    }
    let found = fs::read_to_string(&path).expect("readable");
    assert!(
        found == made,
        "data/SCHEMA.md is not what the types say: {UPDATE}=1 cargo test -p records schema"
    );
}
