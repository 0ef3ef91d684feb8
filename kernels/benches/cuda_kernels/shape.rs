//! The shape that `cargo xtask kernel --m … --n … --k …` asks for, in place of the model's.

/// `m=8 n=5120 k=5120`, each optional.
const VARIABLE: &str = "ENGINE_BENCH_SHAPE";

/// What is `None` is as in the model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shape {
    /// Rows.
    pub m: Option<usize>,
    /// Columns; of attention tokens, of sampling the vocabulary.
    pub n: Option<usize>,
    /// Columns of the input of a projection.
    pub k: Option<usize>,
}

impl Shape {
    pub fn of_environment() -> Result<Self, String> {
        match std::env::var(VARIABLE) {
            Ok(text) => Self::read(&text).map_err(|message| format!("{VARIABLE}: {message}")),
            Err(_) => Ok(Self::default()),
        }
    }

    fn read(text: &str) -> Result<Self, String> {
        let mut shape = Self::default();
        for part in text.split_whitespace() {
            let refused = || format!("`{part}` is none of m=…, n=… and k=… with a whole number");
            let (name, value) = part.split_once('=').ok_or_else(refused)?;
            let value = value.parse().ok().filter(|value| *value > 0);
            let value = Some(value.ok_or_else(refused)?);
            match name {
                "m" => shape.m = value,
                "n" => shape.n = value,
                "k" => shape.k = value,
                _ => return Err(refused()),
            }
        }
        if shape.k.is_some() && shape.n.is_none() {
            return Err("k without n".to_owned());
        }
        Ok(shape)
    }

    pub fn is_the_models(self) -> bool {
        self == Self::default()
    }

    pub fn rows(self, of_the_model: &[usize]) -> Vec<usize> {
        self.m.map_or_else(|| of_the_model.to_vec(), |m| vec![m])
    }

    /// A case's name, with the columns where they are not the model's.
    pub fn case(self, rows: String) -> String {
        self.n.map_or(rows.clone(), |n| format!("{rows} of {n}"))
    }
}
