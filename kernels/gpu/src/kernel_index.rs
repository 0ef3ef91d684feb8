//! `index.txt` of a folder of compiled kernels, as `cargo xtask build` and `cargo xtask kernel` write
//! it: lines of a keyword and its values, `architecture sm_90`, `sha256 <hex>`,
//! `fatbin <source name> <file name>`. The fatbin of a source for bf16 has `_bf16` after the source's
//! name, one with another chip's choices `_as_sm_120`. Read by the build script and at run time.

#[derive(Debug, Default, PartialEq, Eq)]
pub struct KernelIndex {
    pub architectures: Vec<String>,
    pub sha256: String,
    /// Source name, file below the folder.
    pub fatbins: Vec<(String, String)>,
}

impl KernelIndex {
    /// From the text of `index.txt`.
    ///
    /// # Errors
    ///
    /// If a line has no known keyword, or not as many values as its keyword has.
    pub fn read(text: &str) -> Result<Self, String> {
        let mut index = Self::default();
        for line in text.lines() {
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                ["architecture", name] => index.architectures.push(name.to_owned()),
                ["sha256", digest] => digest.clone_into(&mut index.sha256),
                ["fatbin", source, file] => {
                    index.fatbins.push((source.to_owned(), file.to_owned()));
                }
                _ => return Err(format!("cannot read the line `{line}`")),
            }
        }
        Ok(index)
    }
}
