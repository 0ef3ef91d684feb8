//! Checks shared by the launchers: the memory that a kernel accesses is inside the given views.

use bytemuck::Pod;
use gpu::{BufferView, CudaError};

use super::{Element, ElementView};
use crate::KernelError;

/// The name of the op in error messages.
#[derive(Debug, Clone, Copy)]
pub struct ShapeCheck(pub &'static str);

impl ShapeCheck {
    fn error(self, what: &'static str, found: usize, expected: String) -> CudaError {
        KernelError::Shape {
            op: self.0,
            what,
            found,
            expected,
        }
        .into()
    }

    pub fn equal(self, what: &'static str, found: usize, expected: usize) -> Result<(), CudaError> {
        if found == expected {
            Ok(())
        } else {
            Err(self.error(what, found, expected.to_string()))
        }
    }

    pub fn at_least(self, what: &'static str, found: usize, least: usize) -> Result<(), CudaError> {
        if found >= least {
            Ok(())
        } else {
            Err(self.error(what, found, format!("at least {least}")))
        }
    }

    pub fn at_most(self, what: &'static str, found: usize, most: usize) -> Result<(), CudaError> {
        if found <= most {
            Ok(())
        } else {
            Err(self.error(what, found, format!("at most {most}")))
        }
    }

    pub fn one_of(
        self,
        what: &'static str,
        found: usize,
        known: &[usize],
    ) -> Result<(), CudaError> {
        if known.contains(&found) {
            Ok(())
        } else {
            Err(self.error(what, found, format!("one of {known:?}")))
        }
    }

    pub fn multiple(self, what: &'static str, found: usize, of: usize) -> Result<(), CudaError> {
        if of > 0 && found > 0 && found.is_multiple_of(of) {
            return Ok(());
        }
        Err(self.error(what, found, format!("a multiple of {of}, not 0")))
    }

    /// `value` as the 32-bit integer of a parameter struct.
    pub fn int(self, what: &'static str, value: usize) -> Result<i32, CudaError> {
        i32::try_from(value).map_err(|_| self.error(what, value, format!("at most {}", i32::MAX)))
    }

    /// Checks that `n_rows` rows of `width` values, `stride` apart, are inside `view` and do not
    /// overlap.
    pub fn rows<T: Pod>(
        self,
        what: &'static str,
        view: BufferView<'_, T>,
        n_rows: usize,
        stride: usize,
        width: usize,
    ) -> Result<(), CudaError> {
        if stride < width {
            let message = format!("{what}: rows of {width} values do not fit a stride of {stride}");
            return Err(KernelError::Value {
                op: self.0,
                message,
            }
            .into());
        }
        let needed = n_rows
            .saturating_sub(1)
            .saturating_mul(stride)
            .saturating_add(width);
        self.at_least(what, view.len(), if n_rows == 0 { 0 } else { needed })
    }

    /// Checks that the kernel can read `view` in words of `n_bytes`.
    pub fn aligned<T: Pod>(
        self,
        what: &'static str,
        view: BufferView<'_, T>,
        n_bytes: usize,
    ) -> Result<(), CudaError> {
        let found = view.ptr().address() as usize % n_bytes;
        if found == 0 {
            return Ok(());
        }
        Err(self.error(
            what,
            found,
            format!("0 bytes off an address divisible by {n_bytes}"),
        ))
    }

    /// Checks that `view` has the element type of the kernel; returns its words for the other
    /// checks.
    pub fn element<'a>(
        self,
        what: &'static str,
        view: ElementView<'a>,
        of_kernel: Element,
    ) -> Result<BufferView<'a, u16>, CudaError> {
        if view.element() == of_kernel {
            return Ok(view.words());
        }
        let (found, expected) = (view.element().name(), of_kernel.name());
        let message = format!("{what} is {found}, the kernel computes in {expected}");
        Err(KernelError::Value {
            op: self.0,
            message,
        }
        .into())
    }

    pub fn positive(self, what: &'static str, value: f32) -> Result<(), CudaError> {
        if value > 0.0 && value.is_finite() {
            return Ok(());
        }
        let message = format!("{what} is {value}, must be above 0 and finite");
        Err(KernelError::Value {
            op: self.0,
            message,
        }
        .into())
    }
}
