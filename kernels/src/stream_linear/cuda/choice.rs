//! Which variant a matrix's rows use.

use std::sync::OnceLock;

use super::{StreamLinear, row_error};
use crate::KernelError;
use crate::stream_linear::MAX_ROWS;
use crate::stream_linear::variant::{self, Variant, check_variant, default_variant};

impl StreamLinear {
    /// How `m` rows are launched.
    ///
    /// # Errors
    ///
    /// [`KernelError::Shape`] if `m` is 0 or above what the kernels take, [`KernelError::Value`]
    /// if no plan fits the device.
    pub fn variant(&self, m: usize) -> Result<Variant, KernelError> {
        let kernels = &self.kernels;
        if m == 0 || m > kernels.max_rows() {
            return Err(row_error(m, kernels.max_rows()));
        }
        let choose = || default_variant(&self.layout, m, &kernels.limits, kernels.loaded());
        let Some(slot) = self.variants.get(m - 1) else {
            return choose();
        };
        if let Some(variant) = slot.get() {
            return Ok(*variant);
        }
        let variant = choose()?;
        Ok(*slot.get_or_init(|| variant))
    }

    /// Whether a launch of `m` rows reads x in tiles, and may write a SiLU output tiled.
    pub fn wants_tiled(&self, m: usize) -> bool {
        self.variant(m).is_ok_and(Variant::is_tiled)
    }

    /// The candidates worth timing for `m` rows, the default first; see [`variant::candidates`].
    ///
    /// # Errors
    ///
    /// [`KernelError::Shape`] if `m` is not from 1 to [`MAX_ROWS`], [`KernelError::Value`] if no
    /// plan fits the device.
    pub fn candidates(&self, m: usize) -> Result<Vec<Variant>, KernelError> {
        let kernels = &self.kernels;
        variant::candidates(&self.layout, m, &kernels.limits, kernels.loaded())
    }

    /// Replaces the variant for `m` rows, for example by one that was timed. Graphs captured before
    /// keep theirs.
    ///
    /// # Errors
    ///
    /// If `m` is not from 1 to [`MAX_ROWS`], or `variant` cannot compute this matrix with `m`
    /// rows.
    pub fn set_variant(&mut self, m: usize, variant: Variant) -> Result<(), KernelError> {
        let kernels = &self.kernels;
        check_variant(&self.layout, variant, m, &kernels.limits, kernels.loaded())?;
        let Some(slot) = m.checked_sub(1).and_then(|i| self.variants.get_mut(i)) else {
            return Err(row_error(m, MAX_ROWS));
        };
        *slot = OnceLock::from(variant);
        Ok(())
    }
}
