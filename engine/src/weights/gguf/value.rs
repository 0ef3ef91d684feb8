//! A value of a GGUF file's metadata.

/// The types of the format, in the order of their numbers there.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    /// All of one type.
    Array(Vec<Value>),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl Value {
    /// A whole number of at least 0; `None` for every other value, also a flag.
    pub fn to_u64(&self) -> Option<u64> {
        match self {
            Self::U8(n) => Some((*n).into()),
            Self::U16(n) => Some((*n).into()),
            Self::U32(n) => Some((*n).into()),
            Self::U64(n) => Some(*n),
            Self::I8(n) => u64::try_from(*n).ok(),
            Self::I16(n) => u64::try_from(*n).ok(),
            Self::I32(n) => u64::try_from(*n).ok(),
            Self::I64(n) => u64::try_from(*n).ok(),
            Self::F32(_) | Self::F64(_) | Self::Bool(_) | Self::String(_) | Self::Array(_) => None,
        }
    }

    pub fn text(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    pub fn f32(&self) -> Option<f32> {
        match self {
            Self::F32(number) => Some(*number),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_of_every_width_are_read_and_nothing_else() {
        for value in [
            Value::U8(7),
            Value::I8(7),
            Value::U16(7),
            Value::I16(7),
            Value::U32(7),
            Value::I32(7),
            Value::U64(7),
            Value::I64(7),
        ] {
            assert_eq!(value.to_u64(), Some(7), "{value:?}");
        }
        for value in [
            Value::I32(-1),
            Value::F32(7.0),
            Value::Bool(true),
            Value::String("7".to_owned()),
            Value::Array(vec![Value::U8(7)]),
        ] {
            assert_eq!(value.to_u64(), None, "{value:?}");
        }
    }
}
