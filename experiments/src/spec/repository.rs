//! Where things are in the repository.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use records::store::Store;
use records::verdicts;

/// The root of the working tree and the places below it that an experiment touches.
#[derive(Debug, Clone)]
pub struct Repository {
    pub root: PathBuf,
}

impl Repository {
    /// The nearest folder at or above the current one that holds `Cargo.toml`,
    /// `experiments/` and `data/`.
    ///
    /// # Errors
    ///
    /// If the current folder cannot be read or lies in no such folder.
    pub fn find() -> Result<Self> {
        let here = std::env::current_dir().context("the current folder cannot be read")?;
        let root = here
            .ancestors()
            .find(|dir| {
                dir.join("Cargo.toml").is_file()
                    && dir.join("experiments").is_dir()
                    && dir.join("data").is_dir()
            })
            .with_context(|| format!("{} is not inside the repository", here.display()))?;
        Ok(Self {
            root: root.to_path_buf(),
        })
    }

    pub fn experiments_dir(&self) -> PathBuf {
        self.root.join("experiments")
    }

    pub fn prompts_dir(&self) -> PathBuf {
        self.root.join("data").join("prompts")
    }

    pub fn cards_dir(&self) -> PathBuf {
        self.root.join("data").join("cards")
    }

    pub fn imported_dir(&self) -> PathBuf {
        self.root.join("data").join("imported")
    }

    pub fn runs_dir(&self) -> PathBuf {
        self.root.join("data").join("runs")
    }

    pub fn campaigns_dir(&self) -> PathBuf {
        self.root.join("data").join("campaigns")
    }

    /// Where runs are looked for: in the folder that was typed, or in the repository's own.
    pub fn store(&self, typed: Option<&Path>) -> Store {
        match typed {
            Some(dir) => Store::from(dir),
            None => Store::new([self.runs_dir(), self.campaigns_dir()]),
        }
    }

    pub fn bench_dir(&self) -> PathBuf {
        self.root.join("data").join("bench")
    }

    /// What the last reports said of each experiment.
    pub fn verdicts_file(&self) -> PathBuf {
        self.root.join(verdicts::FOLDER).join(verdicts::FILE_NAME)
    }

    /// `path` below the root where it lies there, for messages.
    pub fn relative<'a>(&self, path: &'a Path) -> &'a Path {
        path.strip_prefix(&self.root).unwrap_or(path)
    }
}
