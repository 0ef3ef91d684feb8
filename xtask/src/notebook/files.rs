//! Files of the rendered reports and of the notebook's own page.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path};

use super::reply::{PAGE_POLICY, Reply};

/// A report has a policy of its own; in a sandbox its script is no part of this origin.
const REPORT_POLICY: &str = "sandbox allow-scripts";
const CHART_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";
const CHART: &str = "image/svg+xml";
const TEXT: &str = "text/plain; charset=utf-8";

/// The page, and what it shares with the engine's.
pub fn of_page(name: &str) -> Option<Reply> {
    const SCRIPT: &str = "text/javascript; charset=utf-8";
    const STYLE: &str = "text/css; charset=utf-8";
    let (kind, text) = match name {
        "" => (
            "text/html; charset=utf-8",
            include_str!("../../notebook/index.html"),
        ),
        "notebook.js" => (SCRIPT, include_str!("../../notebook/notebook.js")),
        "notebook.css" => (STYLE, include_str!("../../notebook/notebook.css")),
        "page.css" => (
            STYLE,
            include_str!("../../../engine/src/server/page/page.css"),
        ),
        "elements.js" => (
            SCRIPT,
            include_str!("../../../engine/src/server/page/elements.js"),
        ),
        "icon.svg" => (
            CHART,
            include_str!("../../../engine/src/server/page/icon.svg"),
        ),
        _ => return None,
    };
    Some(Reply::new(kind, text))
}

/// A file below `folder` by its path of a URL; nothing outside, not by a link either.
pub fn below(folder: &Path, path: &str) -> Option<Reply> {
    let path = Path::new(path);
    let is_plain = |part: Component<'_>| matches!(part, Component::Normal(name) if !name.to_string_lossy().starts_with('.'));
    if !path.components().all(is_plain) {
        return None;
    }
    let (kind, policy) = match path.extension()?.to_str()? {
        "html" => ("text/html; charset=utf-8", REPORT_POLICY),
        "svg" => (CHART, CHART_POLICY),
        "md" => (TEXT, PAGE_POLICY),
        "json" => ("application/json", PAGE_POLICY),
        _ => return None,
    };
    let folder = folder.canonicalize().ok()?;
    let file = folder.join(path).canonicalize().ok()?;
    if !file.starts_with(&folder) || !file.is_file() {
        return None;
    }
    let body = fs::read(&file).ok()?;
    Some(Reply {
        policy,
        ..Reply::new(kind, body)
    })
}

/// The rendered reports, the first one first: as pages, or as Markdown where there is no page.
pub fn reports(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let all: BTreeSet<String> = names.filter(|name| !name.starts_with('.')).collect();
    let is_shown = |name: &&String| match name.rsplit_once('.') {
        Some((stem, "md")) => !all.contains(&format!("{stem}.html")),
        Some((_, end)) => end == "html",
        None => false,
    };
    let mut names: Vec<String> = all.iter().filter(is_shown).cloned().collect();
    // `index` is where a reader begins.
    names.sort_by_key(|name| !name.starts_with("index"));
    names
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_path_stays_in_its_folder() {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = dir.path().join("rendered");
        fs::create_dir_all(folder.join("charts")).expect("made");
        for (name, text) in [
            ("rendered/a.html", "report"),
            ("rendered/charts/c.svg", "chart"),
            ("rendered/.hidden.html", "hidden"),
            ("rendered/key.pem", "key"),
            ("secret.html", "secret"),
        ] {
            fs::write(dir.path().join(name), text).expect("written");
        }
        symlink(dir.path().join("secret.html"), folder.join("link.html")).expect("linked");
        let body = |path: &str| below(&folder, path).map(|reply| reply.body);
        assert_eq!(body("a.html"), Some(b"report".to_vec()));
        assert_eq!(body("charts/c.svg"), Some(b"chart".to_vec()));
        let absolute = dir.path().join("secret.html");
        for path in [
            "../secret.html",
            "charts/../../secret.html",
            "charts/../a.html",
            "..%2fsecret.html",
            absolute.to_str().expect("a text"),
            "link.html",
            ".hidden.html",
            "key.pem",
            "charts",
            "charts.html",
            "",
        ] {
            assert_eq!(body(path), None, "{path}");
        }
        for name in ["a.md", "b.md", "index.md"] {
            fs::write(folder.join(name), "report").expect("written");
        }
        let shown = ["index.md", "a.html", "b.md", "link.html"];
        assert_eq!(reports(&folder), shown);
    }
}
