//! Text that others wrote is text on every page, whatever it holds: a fixed data set with markup,
//! bars, backticks, new lines and control characters in every string of its records.

use std::fs;

use reports::lang::Lang;
use reports::load::{self, Records};
use reports::render::assemble::build;
use reports::render::{REPORTS, page};
use reports::stats::verdict::VerdictConfig;
use serde_json::Value;

use super::data;

/// Appended to every string. A folder's name can contain all of it except the slash.
const POISON: &str = "<img src=x onerror=alert(1)><script>alert(2)<\\script>|`**b**`` ![x](http:h)[y](javascript:alert(3))\n# h\r\n- l\u{1b}[31m\u{7}\u{202e}&lt;<!-- _z_ \\";

/// Strings with a fixed set of values, a date, or a digest that is compared.
const KEPT: [&str; 7] = [
    "status",
    "phase",
    "started_utc",
    "finished_utc",
    "by",
    "direction",
    "prompts",
];

fn poison(value: &mut Value) {
    match value {
        Value::String(text) => text.push_str(POISON),
        Value::Array(items) => items.iter_mut().for_each(poison),
        Value::Object(entries) => entries
            .iter_mut()
            .filter(|(key, _)| !KEPT.contains(&key.as_str()))
            .for_each(|(_, value)| poison(value)),
        _ => {}
    }
}

/// The fixed data set; with `bad`, each string of it, each folder's name included, has [`POISON`].
fn records(bad: bool) -> Records {
    let dir = tempfile::tempdir().unwrap();
    for run in fs::read_dir(data("runs")).unwrap() {
        let from = run.unwrap().path();
        let name = from.file_name().unwrap().to_string_lossy().into_owned();
        let to = dir.path().join(if bad { name + POISON } else { name });
        fs::create_dir(&to).unwrap();
        for file in fs::read_dir(&from).unwrap() {
            let path = file.unwrap().path();
            let file = path.file_name().unwrap().to_string_lossy().into_owned();
            let mut text = fs::read_to_string(&path).unwrap();
            if bad && file == "config.resolved.toml" {
                let mut table: toml::Table = text.parse().unwrap();
                for (key, value) in &mut table {
                    if let (true, Some(flags)) = (key == "flags", value.as_array_mut()) {
                        for flag in flags {
                            *flag = format!("{}{POISON}", flag.as_str().unwrap()).into();
                        }
                    }
                }
                text = table.to_string();
            } else if bad {
                let lines = text.lines().map(|line| {
                    let mut value: Value = serde_json::from_str(line).unwrap();
                    // What it is to the reports follows from its name in old records alone.
                    for (name, role) in [("01-baseline", "baseline"), ("03-balanced-v2", "focus")] {
                        if value["experiment"] == name {
                            value[role] = true.into();
                        }
                    }
                    poison(&mut value);
                    value.to_string() + "\n"
                });
                text = lines.collect();
            }
            fs::write(to.join(&file), text).unwrap();
        }
    }
    load::load(dir.path(), &data("imported"), |_| true).unwrap()
}

/// How often each element is opened in the page's content, pictures left out.
fn elements(html: &str) -> Vec<(String, usize)> {
    let mut names: Vec<&str> = Vec::new();
    for part in html.split('<').skip(1) {
        let name = part.split([' ', '>', '/']).next().unwrap();
        if name.starts_with(|c: char| c.is_ascii_alphabetic()) && name != "span" {
            names.push(name);
        }
    }
    names.sort_unstable();
    let mut counted: Vec<(String, usize)> = Vec::new();
    for name in names {
        match counted.last_mut() {
            Some((last, n)) if last == name => *n += 1,
            _ => counted.push((name.to_owned(), 1)),
        }
    }
    counted
}

fn content(html: &str) -> &str {
    let main = html.split("<main>").nth(1).unwrap();
    main.split("</main>").next().unwrap()
}

/// Without pictures: which there are depends on the names of cases.
fn without_pictures(html: &str) -> String {
    let parts = html.split("<svg ").enumerate();
    parts
        .map(|(i, part)| match part.split_once("</svg>") {
            Some((_, after)) if i > 0 => after,
            _ => part,
        })
        .collect()
}

#[test]
fn pages_have_the_same_elements_whatever_their_strings_hold() {
    let (clean, bad) = (records(false), records(true));
    assert!(bad.runs.iter().all(|run| run.run_id.contains(POISON)));
    for lang in [Lang::Ko, Lang::En] {
        let contexts = [&clean, &bad].map(|r| build(r, VerdictConfig::default(), lang).unwrap());
        assert_eq!(contexts[0].groups.len(), contexts[1].groups.len());
        for report in REPORTS {
            let [clean, bad] = [0, 1].map(|i| {
                let markdown = report.render(&contexts[i]).unwrap();
                let html = page::page(&markdown, &contexts[i].charts, lang).unwrap();
                (markdown, html)
            });
            let name = report.file_name(lang);
            for text in [&bad.0, &bad.1] {
                let odd = text.chars().find(|c| {
                    (c.is_control() && *c != '\n') || ('\u{202a}'..='\u{202e}').contains(c)
                });
                assert_eq!(odd, None, "{name}");
                assert!(!text.contains(['\u{e000}', '\u{e001}']), "{name}");
            }
            let html = content(&bad.1);
            let [wanted, found] =
                [content(&clean.1), html].map(|html| elements(&without_pictures(html)));
            assert_eq!(wanted, found, "{name}");
            for live in ["<img", "<script", "javascript:alert(3)\"", "<!--"] {
                assert!(!html.contains(live), "{name}: {live}");
            }
            let uses_strings = !["seed-audit"].contains(&report.name);
            assert_eq!(html.contains("&lt;img src=x"), uses_strings, "{name}");
            for table in html.split("<table>").skip(1) {
                let table = table.split("</table>").next().unwrap();
                let n_columns = table.matches("<th>").count();
                for row in table.split("<tbody>").nth(1).unwrap().split("<tr>").skip(1) {
                    assert_eq!(row.matches("<td>").count(), n_columns, "{name}: {row}");
                }
            }
            assert_eq!(bad.1.matches("<script>").count(), 1, "{name}");
            assert_eq!(
                bad.1.matches("<title>").count(),
                clean.1.matches("<title>").count()
            );
        }
        for svg in contexts[1].charts.values() {
            assert!(!svg.contains("<img") && !svg.contains("<script"), "{svg}");
            assert!(svg.chars().all(|c| !c.is_control() || c == '\n'));
        }
    }
}
