//! The catalogue as a page: `engine errors --markdown`.

use std::fmt::Write;

use super::{Class, Code};

/// One table for each class.
pub fn markdown() -> String {
    let mut page = String::from(
        "# Troubleshooting\n\n\
         Written by `engine errors --markdown`; a test holds this file to it. Every error of a \
         request is a JSON object `{\"error\": {message, type, param, code}}`, and every start \
         that fails prints `error[code]: message` and ends with the exit code below, 2 where the \
         command line is at fault: look the code up here.\n",
    );
    for class in Class::ALL {
        // Writing to a String cannot fail.
        let _ = write!(page, "\n## {}\n\n", class.title());
        page.push_str(if class == Class::Start {
            "| code | exit code | cause | fix |\n|---|---|---|---|\n"
        } else {
            "| code | status | cause | fix |\n|---|---|---|---|\n"
        });
        for (code, entry) in Code::ALL.iter().map(|code| (code, code.entry())) {
            if entry.class != class {
                continue;
            }
            let status = match entry.status {
                Some(status) => status,
                None if code.is_usage() => 2,
                None => 1,
            };
            let _ = writeln!(
                page,
                "| `{}` | {status} | {} | {} |",
                entry.code, entry.cause, entry.fix
            );
        }
    }
    page
}
