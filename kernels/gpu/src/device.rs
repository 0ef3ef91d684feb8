//! One GPU: its context, its properties, the kernels embedded in this binary.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys;

use super::embedded::embedded_kernels;
use super::error::check;
use super::image::{self, Image};
use super::{CardProfile, CudaError, Kernel};

/// sm_120 exists from here on, and every call of this layer.
const MIN_DRIVER_VERSION: i32 = 12_080;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceProperties {
    pub name: String,
    /// (9, 0) for sm_90.
    pub compute_capability: (u32, u32),
    pub n_multiprocessors: usize,
    pub l2_bytes: usize,
    pub total_bytes: usize,
    /// Dynamic shared memory that one block may ask for.
    pub shared_bytes_per_block: usize,
    /// Shared memory of a multiprocessor, all blocks together.
    pub shared_bytes_per_multiprocessor: usize,
    /// Shared memory that the driver reserves for every block.
    pub reserved_shared_bytes_per_block: usize,
    /// Of the multiprocessors, at most.
    pub clock_khz: usize,
    pub memory_clock_khz: usize,
    pub memory_bus_bits: usize,
    /// The newest CUDA version that the driver runs, as 1000 * major + 10 * minor.
    pub driver_version: u32,
    /// Set if these are the limits of another chip.
    pub profile: Option<CardProfile>,
}

impl DeviceProperties {
    /// For example `sm_120`.
    pub fn architecture(&self) -> String {
        format!(
            "sm_{}{}",
            self.compute_capability.0, self.compute_capability.1
        )
    }

    /// What the memory's clock and bus allow, two transfers a clock; the driver's figures, which
    /// are the data sheet's. 0 if the driver does not say.
    pub fn peak_gb_per_s(&self) -> f64 {
        2.0 * self.memory_clock_khz as f64 * (self.memory_bus_bits as f64 / 8.0) / 1e6
    }
}

/// A GPU with its primary context. Clones share it.
#[derive(Debug, Clone)]
pub struct Device {
    pub(super) inner: Arc<DeviceInner>,
}

#[derive(Debug)]
pub(super) struct DeviceInner {
    device: sys::CUdevice,
    context: sys::CUcontext,
    /// As callers see it: through a card profile, if there is one.
    properties: DeviceProperties,
    /// The device's real properties.
    own_properties: DeviceProperties,
    /// What of this binary it runs.
    image: Image,
    /// Loaded when first asked for, by source name.
    modules: Mutex<HashMap<&'static str, Module>>,
}

#[derive(Debug, Clone, Copy)]
struct Module(sys::CUmodule);

// SAFETY: the driver's handles may be used from every thread; the context is made current on the
// calling thread before each call.
unsafe impl Send for DeviceInner {}
// SAFETY: as above; the driver synchronises calls on one context itself.
unsafe impl Sync for DeviceInner {}

impl Device {
    /// How many GPUs the driver sees; 0 without a driver.
    pub fn count() -> usize {
        // SAFETY: only tries to open the library.
        if !unsafe { sys::is_culib_present() } {
            return 0;
        }
        let mut n_devices = 0;
        // SAFETY: the library is there; the driver writes one integer.
        let result = unsafe {
            match sys::cuInit(0) {
                sys::CUresult::CUDA_SUCCESS => sys::cuDeviceGetCount(&raw mut n_devices),
                failed => failed,
            }
        };
        if result == sys::CUresult::CUDA_SUCCESS {
            n_devices.max(0) as usize
        } else {
            0
        }
    }

    /// Opens GPU `ordinal`, as the chip named by `ENGINE_CARD_PROFILE` if that is set. Returns an
    /// error on a machine without driver or GPU, and in a binary without kernels for it.
    ///
    /// # Errors
    ///
    /// As [`Self::open_as`], and if `ENGINE_CARD_PROFILE` names no profile.
    pub fn open(ordinal: usize) -> Result<Self, CudaError> {
        Self::open_as(ordinal, CardProfile::from_environment()?)
    }

    /// Opens GPU `ordinal`, as another chip if requested.
    ///
    /// # Errors
    ///
    /// If there is no driver, one too old, no such GPU, no kernels for it in this binary, or too
    /// little shared memory for the profile.
    pub fn open_as(ordinal: usize, profile: Option<CardProfile>) -> Result<Self, CudaError> {
        let (device, own_properties) = find(ordinal)?;
        let image = image::choose(
            embedded_kernels().architectures,
            &own_properties.name,
            own_properties.compute_capability,
        )?;
        let properties = match profile {
            Some(profile) => profile.apply(&own_properties)?,
            None => own_properties.clone(),
        };
        let mut context = std::ptr::null_mut();
        // SAFETY: the device was returned by the driver; released when the last clone goes.
        let retained = unsafe { sys::cuDevicePrimaryCtxRetain(&raw mut context, device) };
        check("cuDevicePrimaryCtxRetain", retained)?;
        let inner = DeviceInner {
            device,
            context,
            properties,
            own_properties,
            image,
            modules: Mutex::default(),
        };
        inner.bind()?;
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    pub fn properties(&self) -> &DeviceProperties {
        &self.inner.properties
    }

    /// As [`Self::properties`], without the card profile.
    pub fn own_properties(&self) -> &DeviceProperties {
        &self.inner.own_properties
    }

    /// The code of this binary that the device runs.
    pub fn image(&self) -> &Image {
        &self.inner.image
    }

    /// The properties of GPU `ordinal`, also if this binary holds no kernels for it.
    ///
    /// # Errors
    ///
    /// If there is no driver, one too old, or no such GPU.
    pub fn describe(ordinal: usize) -> Result<DeviceProperties, CudaError> {
        find(ordinal).map(|(_, properties)| properties)
    }

    /// Whether kernels of other processes may run concurrently with this one's, through the
    /// multi-process service (MPS).
    pub fn is_shared(&self) -> bool {
        let mut is_enabled = 0;
        // SAFETY: the device was returned by the driver, which writes one integer, or refuses an
        // attribute that it does not know.
        let result = unsafe {
            sys::cuDeviceGetAttribute(
                &raw mut is_enabled,
                sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MPS_ENABLED,
                self.inner.device,
            )
        };
        (result == sys::CUresult::CUDA_SUCCESS && is_enabled != 0)
            || std::env::vars_os().any(|(name, _)| name.to_string_lossy().starts_with("CUDA_MPS_"))
    }

    /// Free and total device memory, in bytes.
    ///
    /// # Errors
    ///
    /// If the device is lost.
    pub fn memory_bytes(&self) -> Result<(usize, usize), CudaError> {
        self.inner.memory_bytes()
    }

    /// Waits for all work of the device; errors of earlier launches are reported here.
    ///
    /// # Errors
    ///
    /// If earlier work failed.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.inner.bind()?;
        // SAFETY: this thread's context is the device's.
        check("cuCtxSynchronize", unsafe { sys::cuCtxSynchronize() })
    }

    /// The kernel `name` of `source_name` (`stream_linear/repack`). The first call loads the
    /// source's module: look kernels up before capturing a graph.
    ///
    /// # Errors
    ///
    /// If the binary has no such source, or the source no such kernel.
    pub fn kernel(&self, source_name: &str, name: &str) -> Result<Kernel, CudaError> {
        self.inner.bind()?;
        let unknown = |known: String| CudaError::UnknownKernel {
            source_name: source_name.to_string(),
            name: name.to_string(),
            known,
        };
        let module = self.module(source_name)?.ok_or_else(|| {
            unknown(format!(
                "only sources {}",
                names(embedded_kernels().fatbins.iter().map(|f| f.0))
            ))
        })?;
        let c_name = CString::new(name).map_err(|_| unknown(String::new()))?;
        let mut function = std::ptr::null_mut();
        // SAFETY: the module is loaded and stays so with the device; the name ends in a zero.
        match unsafe { sys::cuModuleGetFunction(&raw mut function, module.0, c_name.as_ptr()) } {
            sys::CUresult::CUDA_ERROR_NOT_FOUND => Err(unknown(function_names(module))),
            result => {
                check("cuModuleGetFunction", result)?;
                Kernel::new(self.clone(), function, name)
            }
        }
    }

    fn module(&self, source_name: &str) -> Result<Option<Module>, CudaError> {
        let mut modules = self
            .inner
            .modules
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules.get(source_name) {
            return Ok(Some(*module));
        }
        let embedded = embedded_kernels();
        let Some((key, of_device)) = embedded
            .fatbins
            .iter()
            .find(|(name, _)| *name == source_name)
        else {
            return Ok(None);
        };
        let own = self.inner.own_properties.compute_capability;
        let as_other = self
            .inner
            .properties
            .profile
            .and_then(|profile| profile.fatbin_name(source_name, own));
        let image = as_other
            .and_then(|name| embedded.fatbin(&name))
            .unwrap_or(of_device);
        let mut module = std::ptr::null_mut();
        // SAFETY: a complete fatbin as nvcc wrote it, which carries its own length.
        let result = unsafe { sys::cuModuleLoadData(&raw mut module, image.as_ptr().cast()) };
        check("cuModuleLoadData", result)?;
        modules.insert(key, Module(module));
        Ok(Some(Module(module)))
    }
}

impl DeviceInner {
    /// Scales `n` of the device's multiprocessors to a card profile.
    pub(super) fn scaled_to_profile(&self, n: usize) -> usize {
        let (seen, own) = (&self.properties, &self.own_properties);
        n * seen.n_multiprocessors / own.n_multiprocessors.max(1)
    }

    /// The share of this device's shared memory, in per cent, that equals `percent` of a card
    /// profile's: the driver rounds up to the next available size.
    pub(super) fn carveout(&self, percent: u32) -> u32 {
        let (seen, own) = (&self.properties, &self.own_properties);
        let bytes = percent as usize * seen.shared_bytes_per_multiprocessor;
        (bytes / own.shared_bytes_per_multiprocessor.max(1)) as u32
    }

    /// Makes the context the calling thread's; every driver call below relies on it.
    pub(super) fn bind(&self) -> Result<(), CudaError> {
        // SAFETY: the context is retained as long as `self` lives.
        check("cuCtxSetCurrent", unsafe {
            sys::cuCtxSetCurrent(self.context)
        })
    }

    pub(super) fn memory_bytes(&self) -> Result<(usize, usize), CudaError> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the driver writes two integers.
        check("cuMemGetInfo", unsafe {
            sys::cuMemGetInfo_v2(&raw mut free, &raw mut total)
        })?;
        Ok((free, total))
    }
}

impl Drop for DeviceInner {
    fn drop(&mut self) {
        // SAFETY: buffers, streams, kernels and graphs hold the device, so the modules and the
        // context are not in use any more. Errors cannot be reported from drop.
        unsafe {
            if sys::cuCtxSetCurrent(self.context) == sys::CUresult::CUDA_SUCCESS {
                let modules = self
                    .modules
                    .get_mut()
                    .unwrap_or_else(PoisonError::into_inner);
                for module in modules.values() {
                    let _ = sys::cuModuleUnload(module.0);
                }
            }
            let _ = sys::cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}

/// GPU `ordinal` and its properties.
fn find(ordinal: usize) -> Result<(sys::CUdevice, DeviceProperties), CudaError> {
    // SAFETY: only tries to open the library.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoDriver);
    }
    let mut driver_version = 0;
    // SAFETY: the library is there; the driver writes one integer.
    check("cuDriverGetVersion", unsafe {
        sys::cuDriverGetVersion(&raw mut driver_version)
    })?;
    if driver_version < MIN_DRIVER_VERSION {
        return Err(CudaError::OldDriver {
            found: version_text(driver_version),
            needed: version_text(MIN_DRIVER_VERSION),
        });
    }
    // SAFETY: the flags must be 0.
    check("cuInit", unsafe { sys::cuInit(0) })?;
    let n_devices = Device::count();
    if ordinal >= n_devices {
        return Err(CudaError::NoDevice { ordinal, n_devices });
    }
    let mut device = 0;
    // SAFETY: the ordinal is below the number of devices.
    check("cuDeviceGet", unsafe {
        sys::cuDeviceGet(&raw mut device, ordinal as i32)
    })?;
    let properties = properties_of(device, driver_version)?;
    Ok((device, properties))
}

fn properties_of(
    device: sys::CUdevice,
    driver_version: i32,
) -> Result<DeviceProperties, CudaError> {
    use sys::CUdevice_attribute as Attribute;
    let attribute = |which: Attribute| -> Result<usize, CudaError> {
        let mut value = 0;
        // SAFETY: the device was returned by the driver, which writes one integer.
        let result = unsafe { sys::cuDeviceGetAttribute(&raw mut value, which, device) };
        check("cuDeviceGetAttribute", result)?;
        Ok(value.max(0) as usize)
    };
    let mut name = [0 as std::ffi::c_char; 256];
    // SAFETY: the driver writes at most 256 bytes, the last of them zero.
    let result = unsafe { sys::cuDeviceGetName(name.as_mut_ptr(), 256, device) };
    check("cuDeviceGetName", result)?;
    // SAFETY: zero-terminated inside the array, by the call above.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) }
        .to_string_lossy()
        .into_owned();
    let mut total_bytes = 0;
    // SAFETY: the driver writes one integer.
    let result = unsafe { sys::cuDeviceTotalMem_v2(&raw mut total_bytes, device) };
    check("cuDeviceTotalMem", result)?;
    Ok(DeviceProperties {
        name,
        compute_capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? as u32,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)? as u32,
        ),
        n_multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        l2_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
        total_bytes,
        shared_bytes_per_block: attribute(
            Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
        )?,
        shared_bytes_per_multiprocessor: attribute(
            Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR,
        )?,
        reserved_shared_bytes_per_block: attribute(
            Attribute::CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK,
        )?,
        clock_khz: attribute(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?,
        memory_clock_khz: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?,
        memory_bus_bits: attribute(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?,
        driver_version: driver_version as u32,
        profile: None,
    })
}

fn version_text(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// The functions of a module, for the error about a missing kernel.
fn function_names(module: Module) -> String {
    let mut n_functions = 0;
    // SAFETY: the module is loaded; the driver writes one integer.
    let counted = unsafe { sys::cuModuleGetFunctionCount(&raw mut n_functions, module.0) };
    if counted != sys::CUresult::CUDA_SUCCESS {
        return "(the driver does not say)".to_string();
    }
    let mut functions = vec![std::ptr::null_mut(); n_functions as usize];
    // SAFETY: the vector has room for the number of functions passed with it.
    let listed =
        unsafe { sys::cuModuleEnumerateFunctions(functions.as_mut_ptr(), n_functions, module.0) };
    if listed != sys::CUresult::CUDA_SUCCESS {
        return "(the driver does not say)".to_string();
    }
    names(functions.iter().filter_map(|function| {
        let mut name = std::ptr::null();
        // SAFETY: a function of a loaded module; the driver stores a pointer to its own string.
        let named = unsafe { sys::cuFuncGetName(&raw mut name, *function) };
        (named == sys::CUresult::CUDA_SUCCESS && !name.is_null())
            // SAFETY: not null, hence the driver's zero-terminated string of a loaded module.
            .then(|| unsafe { CStr::from_ptr(name) }.to_str().unwrap_or("?"))
    }))
}

fn names<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut names: Vec<_> = names.collect();
    names.sort_unstable();
    names.join(", ")
}
