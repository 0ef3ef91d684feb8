//! Line numbers of the keys in a TOML file, for error messages.

use std::collections::HashMap;

use toml::de::{DeTable, DeValue};

use super::models::MODEL_TABLE;

/// Lines of keys, counted from 1.
#[derive(Debug, Default)]
pub(super) struct FileLines {
    /// By index of the model, `None` before the first, and key.
    lines: HashMap<(Option<usize>, String), usize>,
}

impl FileLines {
    /// Lines of a file that was parsed before; otherwise empty.
    pub fn of(text: &str) -> Self {
        let mut this = Self::default();
        let Ok(table) = DeTable::parse(text) else {
            return this;
        };
        this.add(None, table.get_ref(), text);
        let models = table
            .get_ref()
            .iter()
            .find(|(key, _)| key.get_ref().as_ref() == MODEL_TABLE);
        if let Some(DeValue::Array(models)) = models.map(|(_, value)| value.get_ref()) {
            for (i, model) in models.iter().enumerate() {
                if let DeValue::Table(table) = model.get_ref() {
                    this.add(Some(i), table, text);
                }
            }
        }
        this
    }

    fn add(&mut self, model: Option<usize>, table: &DeTable<'_>, text: &str) {
        for key in table.keys() {
            let before = text.get(..key.span().start).unwrap_or_default();
            let line = 1 + before.matches('\n').count();
            let name = key.get_ref().as_ref().to_owned();
            self.lines.insert((model, name), line);
        }
    }

    /// `line 3, ` if it is known.
    pub fn place(&self, model: Option<usize>, key: &str) -> String {
        match self.lines.get(&(model, key.to_owned())) {
            Some(line) => format!("line {line}, "),
            None => String::new(),
        }
    }
}
