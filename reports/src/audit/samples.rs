//! The number of samples that a document's comparisons are based on.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::load::imported::Figure;

/// One document that compares.
#[derive(Debug, Serialize)]
pub struct SampleRow {
    pub document: String,
    /// Derived figures that compare two subjects.
    pub n_comparisons: usize,
    /// Subject and the number of samples that the document states; empty if it states none.
    pub stated: Vec<(String, String)>,
    /// The document's subjects have different numbers of samples.
    pub unequal: bool,
}

pub fn rows(figures: &[Figure]) -> Vec<SampleRow> {
    let mut documents: BTreeMap<&str, Vec<&Figure>> = BTreeMap::new();
    for figure in figures {
        documents.entry(&figure.document).or_default().push(figure);
    }
    documents
        .into_iter()
        .map(|(document, figures)| {
            let stated: Vec<(String, String)> = figures
                .iter()
                .filter(|f| f.metric == "n_samples")
                .map(|f| (f.subject.clone(), f.value.clone()))
                .collect();
            SampleRow {
                document: document.to_owned(),
                n_comparisons: figures
                    .iter()
                    .filter(|f| f.kind == "derived" && f.subject.contains(" vs "))
                    .count(),
                unequal: stated.iter().any(|(_, n)| *n != stated[0].1),
                stated,
            }
        })
        .collect()
}
