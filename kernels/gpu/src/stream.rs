//! Streams, which order work on the GPU, and events, which mark points in them.

use std::cell::Cell;

use cudarc::driver::sys;

use super::error::check;
use super::{CudaError, Device};

/// A queue of work. One thread at a time uses it; it may move between threads.
#[derive(Debug)]
pub struct Stream {
    device: Device,
    raw: sys::CUstream,
    pub(super) is_capturing: Cell<bool>,
}

// SAFETY: the driver's handle may be used from every thread; `Cell` keeps it from two at a time.
unsafe impl Send for Stream {}

impl Stream {
    /// A stream that does not wait for the legacy default stream.
    ///
    /// # Errors
    ///
    /// If the device is lost.
    pub fn new(device: &Device) -> Result<Self, CudaError> {
        device.inner.bind()?;
        let mut raw = std::ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the driver writes one handle, destroyed in drop.
        check("cuStreamCreate", unsafe {
            sys::cuStreamCreate(&raw mut raw, flags)
        })?;
        Ok(Self {
            device: device.clone(),
            raw,
            is_capturing: Cell::new(false),
        })
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Waits for all work queued on this stream; errors of earlier launches are reported here.
    ///
    /// # Errors
    ///
    /// If earlier work on this stream failed, or it is being captured.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.refuse_capture("a wait of the host")?;
        self.device.inner.bind()?;
        // SAFETY: the stream lives as long as `self`.
        check("cuStreamSynchronize", unsafe {
            sys::cuStreamSynchronize(self.raw)
        })
    }

    /// Work queued on this stream from here on runs after `event`.
    ///
    /// # Errors
    ///
    /// If `event` is of another device.
    pub fn wait_for(&self, event: &Event) -> Result<(), CudaError> {
        self.enter(&event.device)?;
        // SAFETY: stream and event live, and belong to one device.
        check("cuStreamWaitEvent", unsafe {
            sys::cuStreamWaitEvent(self.raw, event.raw, 0)
        })
    }

    /// Work queued on this stream from here on runs after everything queued on `other` so far;
    /// `event` is used for it and not read. May be captured: a stream that follows a capturing one
    /// is captured with it, until the capturing one follows it.
    ///
    /// # Errors
    ///
    /// If the streams and `event` are not of one device.
    pub fn follow(&self, other: &Stream, event: &Event) -> Result<(), CudaError> {
        other.enter(&event.device)?;
        self.enter(&event.device)?;
        // SAFETY: event and streams live, and belong to one device.
        check("cuEventRecord", unsafe {
            sys::cuEventRecord(event.raw, other.raw)
        })?;
        // SAFETY: as above.
        check("cuStreamWaitEvent", unsafe {
            sys::cuStreamWaitEvent(self.raw, event.raw, 0)
        })?;
        let (was_capturing, is_capturing) = (self.is_capturing.get(), other.is_capturing.get());
        self.is_capturing.set(was_capturing || is_capturing);
        if was_capturing {
            // Joined: its work now belongs to this stream's capture.
            other.is_capturing.set(false);
        }
        Ok(())
    }

    pub(super) fn raw(&self) -> sys::CUstream {
        self.raw
    }

    /// Makes the context current and refuses memory of another device.
    ///
    /// # Errors
    ///
    /// If `device` is another one.
    pub fn enter(&self, device: &Device) -> Result<(), CudaError> {
        if !std::sync::Arc::ptr_eq(&self.device.inner, &device.inner) {
            return Err(CudaError::OtherDevice);
        }
        self.device.inner.bind()
    }

    pub(super) fn refuse_capture(&self, what: &'static str) -> Result<(), CudaError> {
        if self.is_capturing.get() {
            Err(CudaError::Captured(what))
        } else {
            Ok(())
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.device.inner.bind().is_ok() {
            // SAFETY: created in `new`, destroyed once; the driver lets pending work finish.
            let _ = unsafe { sys::cuStreamDestroy_v2(self.raw) };
        }
    }
}

/// A point in a stream. Two of them measure the time between.
#[derive(Debug)]
pub struct Event {
    device: Device,
    raw: sys::CUevent,
}

// SAFETY: the driver's handle may be used from every thread, also from several.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// An event that was not recorded yet.
    ///
    /// # Errors
    ///
    /// If the device is lost.
    pub fn new(device: &Device) -> Result<Self, CudaError> {
        device.inner.bind()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the driver writes one handle, destroyed in drop; 0 is the default, with timing.
        check("cuEventCreate", unsafe {
            sys::cuEventCreate(&raw mut raw, 0)
        })?;
        Ok(Self {
            device: device.clone(),
            raw,
        })
    }

    /// Marks the point after all work queued on `stream` so far.
    ///
    /// # Errors
    ///
    /// If `stream` is being captured or of another device.
    pub fn record(&self, stream: &Stream) -> Result<(), CudaError> {
        stream.enter(&self.device)?;
        stream.refuse_capture("an event")?;
        // SAFETY: event and stream live, and belong to one device.
        check("cuEventRecord", unsafe {
            sys::cuEventRecord(self.raw, stream.raw())
        })
    }

    /// Waits until the recorded point is reached; returns at once if none was recorded.
    ///
    /// # Errors
    ///
    /// If work before the point failed.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.device.inner.bind()?;
        // SAFETY: the event lives as long as `self`.
        check("cuEventSynchronize", unsafe {
            sys::cuEventSynchronize(self.raw)
        })
    }

    /// Whether the recorded point is reached.
    ///
    /// # Errors
    ///
    /// If work before the point failed.
    pub fn is_reached(&self) -> Result<bool, CudaError> {
        self.device.inner.bind()?;
        // SAFETY: the event lives as long as `self`.
        match unsafe { sys::cuEventQuery(self.raw) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            result => check("cuEventQuery", result).map(|()| true),
        }
    }

    /// Milliseconds from `start` to this event; waits for it.
    ///
    /// # Errors
    ///
    /// If one of the events was never recorded, or work before them failed.
    pub fn elapsed_ms(&self, start: &Self) -> Result<f32, CudaError> {
        self.synchronize()?;
        let mut elapsed_ms = 0.0;
        // SAFETY: both events live; the driver refuses events that were never recorded.
        let result =
            unsafe { sys::cuEventElapsedTime_v2(&raw mut elapsed_ms, start.raw, self.raw) };
        check("cuEventElapsedTime", result)?;
        Ok(elapsed_ms)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.device.inner.bind().is_ok() {
            // SAFETY: created in `new`, destroyed once.
            let _ = unsafe { sys::cuEventDestroy_v2(self.raw) };
        }
    }
}
