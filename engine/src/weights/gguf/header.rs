//! Parses the header of a GGUF file: metadata and the list of tensors.
//!
//! A parser of our own, because a header is untrusted input: every count and length is checked
//! against the remaining file and against a limit before anything is allocated, and an unsupported
//! tensor format keeps its name for the error message.
//!
//! Layout: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use std::collections::HashMap;

use super::value::Value;
use crate::weights::file_kind;

/// Limits on the contents of one header.
const MAX_METADATA: u64 = 1 << 16;
const MAX_TENSORS: u64 = 1 << 16;
const MAX_STRING_BYTES: u64 = 64 << 20;
/// Array elements over the whole file; a value takes 32 bytes in memory.
const MAX_ARRAY_ELEMENTS: u64 = 1 << 23;
const MAX_ARRAY_DEPTH: usize = 4;
const MAX_DIMS: u32 = 4;
const MAX_ALIGNMENT: u64 = 1 << 20;

#[derive(Debug)]
pub struct GgufHeader {
    pub metadata: HashMap<String, Value>,
    pub tensors: HashMap<String, TensorInfo>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// ggml's number of the format.
    pub ggml_type: u32,
    /// Outermost first: `[n_out, n_in]` for a matrix.
    pub shape: Vec<usize>,
    /// From the file's start.
    pub offset: usize,
    /// Index of the file that contains it, for a model in several; 0 for the first.
    pub part: usize,
}

/// Parses the header at the start of `file`. An error message has the value and the limit.
///
/// ```
/// use engine::weights::gguf::header;
///
/// let mut file = b"GGUF".to_vec();
/// file.extend(3u32.to_le_bytes()); // version
/// file.extend(0u64.to_le_bytes()); // tensors
/// file.extend(1u64.to_le_bytes()); // metadata entries
/// let string = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
/// file.extend(string("general.architecture"));
/// file.extend(8u32.to_le_bytes()); // the value is a string
/// file.extend(string("qwen3"));
///
/// let header = header::parse(&file)?;
/// assert!(header.tensors.is_empty());
/// assert!(header.metadata.contains_key("general.architecture"));
/// assert!(header::parse(b"not a model").unwrap_err().contains("is not a GGUF file"));
/// # Ok::<(), String>(())
/// ```
///
/// # Errors
///
/// If the bytes are no GGUF header, end too early, or declare more than the limits allow.
pub fn parse(file: &[u8]) -> Result<GgufHeader, String> {
    parse_beginning(file, file.len() as u64)
}

/// As [`parse`], for a file of `n_bytes` of which only the beginning is available.
///
/// # Errors
///
/// If the beginning is no GGUF header of version 1 to 3, is cut off, or names more tensors, keys
/// or bytes than the limits or the file's size allow.
pub fn parse_beginning(beginning: &[u8], n_bytes: u64) -> Result<GgufHeader, String> {
    let mut r = Reader {
        bytes: beginning,
        at: 0,
        wide: true,
        array_elements: 0,
    };
    if beginning.is_empty() {
        return Err("is an empty file".into());
    }
    let magic = r.take(4)?;
    if magic != b"GGUF" {
        return Err(match file_kind::of(beginning) {
            Some(kind) => format!("is {kind}"),
            None => format!("is not a GGUF file: it starts with {magic:02x?}, not with \"GGUF\""),
        });
    }
    let version = r.u32()?;
    if !(1..=3).contains(&version) {
        let hint = if version.swap_bytes() <= 3 {
            " (a big-endian file)"
        } else {
            ""
        };
        return Err(format!(
            "has GGUF version {version}{hint}; supported: 1 to 3"
        ));
    }
    r.wide = version > 1;
    let n_tensors = r.length()?;
    let n_metadata = r.length()?;
    let prefix = r.prefix_bytes();
    // Smallest entry: name length, number of dimensions, format, offset.
    r.check_count("tensors", n_tensors, MAX_TENSORS, prefix + 4 + 4 + 8)?;
    // Smallest entry: key length, type, one byte.
    r.check_count("metadata entries", n_metadata, MAX_METADATA, prefix + 4 + 1)?;

    let mut metadata = HashMap::new();
    for _ in 0..n_metadata {
        let key = r.string()?;
        let kind = r.u32()?;
        let value = r
            .value(kind, 0)
            .map_err(|e| format!("metadata {key}: {e}"))?;
        metadata.insert(key, value);
    }
    let mut tensors = HashMap::new();
    for _ in 0..n_tensors {
        let name = r.string()?;
        let info = r.tensor_info().map_err(|e| format!("tensor {name}: {e}"))?;
        if tensors.insert(name.clone(), info).is_some() {
            return Err(format!("lists the tensor {name} twice"));
        }
    }

    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(value) => value
            .to_u64()
            .ok_or_else(|| "general.alignment is no number".to_owned())?,
    };
    if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
        let limit = format!("a power of two up to {MAX_ALIGNMENT}");
        return Err(format!(
            "general.alignment is {alignment}; it must be {limit}"
        ));
    }
    let data_start = r.at.next_multiple_of(alignment as usize);
    for (name, info) in &mut tensors {
        let Some(offset) = info
            .offset
            .checked_add(data_start)
            .filter(|&at| at as u64 <= n_bytes)
        else {
            return Err(format!(
                "tensor {name} starts at {}, beyond {n_bytes} bytes",
                info.offset
            ));
        };
        info.offset = offset;
    }
    Ok(GgufHeader { metadata, tensors })
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Lengths are u64 (version 2 and up) rather than u32.
    wide: bool,
    array_elements: u64,
}

impl<'a> Reader<'a> {
    fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let Some(taken) = self.bytes.get(self.at..).and_then(|rest| rest.get(..n)) else {
            return Err(format!(
                "ends after {} bytes, inside the header",
                self.bytes.len()
            ));
        };
        self.at += n;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn length(&mut self) -> Result<u64, String> {
        if self.wide {
            self.u64()
        } else {
            Ok(u64::from(self.u32()?))
        }
    }

    fn prefix_bytes(&self) -> u64 {
        if self.wide { 8 } else { 4 }
    }

    fn check_count(&self, what: &str, n: u64, max: u64, min_bytes: u64) -> Result<(), String> {
        if n > max {
            return Err(format!("declares {n} {what}; at most {max} are read"));
        }
        let (needed, left) = (n.saturating_mul(min_bytes), self.left());
        if needed > left {
            return Err(format!(
                "declares {n} {what}, which need {needed} bytes; {left} are left"
            ));
        }
        Ok(())
    }

    fn string(&mut self) -> Result<String, String> {
        let n_bytes = self.length()?;
        self.check_count("bytes of a string", n_bytes, MAX_STRING_BYTES, 1)?;
        let text = self.take(n_bytes as usize)?;
        // Token strings of some vocabularies are not valid UTF-8; everything else is.
        Ok(String::from_utf8_lossy(text)
            .trim_end_matches('\0')
            .to_string())
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<Value, String> {
        Ok(match kind {
            0 => Value::U8(self.array::<1>()?[0]),
            1 => Value::I8(i8::from_le_bytes(self.array()?)),
            2 => Value::U16(u16::from_le_bytes(self.array()?)),
            3 => Value::I16(i16::from_le_bytes(self.array()?)),
            4 => Value::U32(self.u32()?),
            5 => Value::I32(i32::from_le_bytes(self.array()?)),
            6 => Value::F32(f32::from_le_bytes(self.array()?)),
            7 => Value::Bool(self.array::<1>()?[0] != 0),
            8 => Value::String(self.string()?),
            9 => self.array_value(depth)?,
            10 => Value::U64(self.u64()?),
            11 => Value::I64(i64::from_le_bytes(self.array()?)),
            12 => Value::F64(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("has value type {other}; known are 0 to 12")),
        })
    }

    fn array_value(&mut self, depth: usize) -> Result<Value, String> {
        if depth >= MAX_ARRAY_DEPTH {
            return Err(format!("nests arrays deeper than {MAX_ARRAY_DEPTH}"));
        }
        let kind = self.u32()?;
        let n = self.length()?;
        let min_bytes = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 => self.prefix_bytes(),
            9 => 4 + self.prefix_bytes(),
            _ => 8,
        };
        self.check_count("array elements", n, MAX_ARRAY_ELEMENTS, min_bytes)?;
        self.array_elements += n;
        if self.array_elements > MAX_ARRAY_ELEMENTS {
            let total = self.array_elements;
            return Err(format!(
                "brings the array elements to {total}; at most {MAX_ARRAY_ELEMENTS}"
            ));
        }
        let mut values = Vec::with_capacity(n as usize);
        for _ in 0..n {
            values.push(self.value(kind, depth + 1)?);
        }
        Ok(Value::Array(values))
    }

    fn tensor_info(&mut self) -> Result<TensorInfo, String> {
        let n_dims = self.u32()?;
        if n_dims > MAX_DIMS {
            return Err(format!("has {n_dims} dimensions; at most {MAX_DIMS}"));
        }
        let mut shape = Vec::with_capacity(n_dims as usize);
        for _ in 0..n_dims {
            let size = self.length()?;
            shape.push(usize::try_from(size).map_err(|_| format!("has a dimension of {size}"))?);
        }
        shape.reverse();
        let ggml_type = self.u32()?;
        let offset = self.u64()?;
        let offset = usize::try_from(offset).map_err(|_| format!("starts at {offset}"))?;
        Ok(TensorInfo {
            ggml_type,
            shape,
            offset,
            part: 0,
        })
    }
}
