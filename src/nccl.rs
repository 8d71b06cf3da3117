//! Ranks that are threads of one process with a CUDA device each: NVIDIA's NCCL adds between the devices.
//!
//! # What it needs
//!
//! One process, and a different CUDA device for each rank. CubeCL loads NCCL at run time as `libnccl.so` (on Linux). Packages
//! without `-dev` in their name and NVIDIA's wheel contain only `libnccl.so.2`: add a symbolic link, and put its folder in
//! `LD_LIBRARY_PATH`. A device belongs to one group at a time. CubeCL keeps one NCCL communicator per set of devices for the life
//! of the process, so two groups on the same devices would add to each other.
//!
//! # How a sum works
//!
//! The ranks first agree on the host, like those of a [`LocalCommunicator`], with the same time limit and the same errors. Then
//! each rank submits the sum to its device and continues. NCCL runs on its own stream, after the earlier work of the device and
//! before anything that reads the sum. The sums of a group run in the order of the calls. F16 and BF16 are converted to f32 for
//! the sum, which [`Operations::all_reduce`] rounds once. NCCL chooses the order of the additions, so the last bits may differ
//! from those of the other engines, and with the number of devices.
//!
//! Tensors of other backends, and of other element types, are added on the host.
//!
//! # Failures
//!
//! | what happens | result |
//! | --- | --- |
//! | no driver, no NCCL, no such device, a device twice or in another group | [`CommunicationError::Unavailable`] from [`group`](NcclCommunicator::group) |
//! | NCCL does not start, or adds wrongly | [`CommunicationError::Engine`] from `group`, which tries one sum |
//! | a rank is late, lost, or about to do something else | the error of [`LocalCommunicator`] on every rank |
//! | a kernel before the sum failed, or lacked memory | `Engine` on its rank, [`CommunicationError::Aborted`] on the others |
//! | NCCL refuses a later sum | no error: CubeCL 0.10 only logs it. The sum is NaN on that rank, and the others wait |
//! | a device fails during a sum | CUDA's error when that device is read; the other devices may wait forever |
//! | memory ran out earlier, while the partial result was computed | no error, as on one device: CubeCL 0.10 skips the kernels |
//!
//! A rank asks its device for errors before the agreement, so devices only start a sum that all of them can finish. Only a later
//! fault can leave a device waiting in NCCL. The time limit does not reach such a device: end the process. The same holds if NCCL
//! did not start, because CubeCL does not start it twice on the same devices.
//!
//! # What was run
//!
//! This engine has **never run on real GPUs**: no machine with two was available. Its code, Burn's and CubeCL's run on emulated
//! devices (the package `emulator`), whose kernels are executed on the CPU, and on a stub of NCCL in host memory
//! (`scripts/fake_nccl.c`). CI runs that; see `scripts/cuda.py`.
//!
//! ```no_run
//! use std::sync::Arc;
//! use burn::tensor::Tensor;
//! use burn_cuda::{Cuda, CudaDevice};
//! use burn_deepspeed::nccl::NcclCommunicator;
//! use burn_deepspeed::{AttentionInit, AttentionMask, DataType, DeepSpeedInferenceConfig};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config = DeepSpeedInferenceConfig::new(4096, 32).with_dtype(DataType::Fp32);
//! let devices = [CudaDevice::new(0), CudaDevice::new(1)];
//! let group = NcclCommunicator::group(&devices)?;
//! std::thread::scope(|threads| {
//!     for (communicator, device) in group.into_iter().zip(&devices) {
//!         let config = config.clone().for_rank_of(&communicator);
//!         threads.spawn(move || {
//!             let attention = config.init_self_attention::<Cuda>(0, device)?;
//!             // a checkpoint is loaded here; each rank reads its part
//!             let attention = attention.with_communicator(Arc::new(communicator))?;
//!             let input = Tensor::ones([1, 5, 4096], device); // the same on every rank
//!             let output = attention.forward_uncached(input, AttentionMask::none(), None)?; // the sum
//!             assert_eq!(output.dims(), [1, 5, 4096]);
//!             Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
//!         });
//!     }
//! });
//! # Ok(()) }
//! ```

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use burn::tensor::backend::{DeviceId, DeviceOps};
use burn::tensor::{Tensor, TensorData};
use burn_cuda::{Cuda, CudaDevice};

use burn_deepspeed_core::parallel::local::LocalCommunicator;
use burn_deepspeed_core::parallel::{AgreedSettings, Agreement, Communicator, DEFAULT_TIME_LIMIT, DeviceNumber};

use crate::error::CommunicationError;
use crate::ops::{InferenceBackend, Operations};

/// How long CUDA and NCCL may take to start: 2 minutes.
const START_LIMIT: Duration = Duration::from_secs(120);

/// One rank of a group of threads with a CUDA device each; see the [module](self).
///
/// If a rank is dropped (its thread ended or panicked), the others get an error at once.
#[derive(Debug)]
pub struct NcclCommunicator {
    /// Agrees with the other ranks before a device starts a sum.
    host: LocalCommunicator,
    devices: Arc<Devices>,
}

/// The devices of a group in the order of its ranks, reserved until the last rank is dropped.
#[derive(Debug)]
struct Devices(Vec<DeviceNumber>);

static TAKEN: Mutex<Vec<DeviceNumber>> = Mutex::new(Vec::new());

impl NcclCommunicator {
    /// A group with a rank for each device, in order; move each to its own thread. NCCL starts here and adds one number as a
    /// test, which takes seconds.
    ///
    /// # Errors
    /// [`CommunicationError::Unavailable`] without driver, NCCL, or as many free devices; [`CommunicationError::Engine`] if the
    /// number is wrong, or does not arrive within two minutes.
    pub fn group(devices: &[CudaDevice]) -> Result<Vec<Self>, CommunicationError> {
        Self::group_with_time_limit(devices, DEFAULT_TIME_LIMIT)
    }

    /// A group whose ranks wait for each other no longer than `limit`.
    ///
    /// # Errors
    /// Those of [`group`](Self::group).
    pub fn group_with_time_limit(devices: &[CudaDevice], limit: Duration) -> Result<Vec<Self>, CommunicationError> {
        let unavailable = |cause| CommunicationError::Unavailable { engine: "NCCL", cause };
        look_for_libraries_and(devices).map_err(unavailable)?;
        let taken = Arc::new(Devices::take(devices).map_err(unavailable)?);
        try_one_sum(Self::untried(&taken, START_LIMIT), devices)?;
        Ok(Self::untried(&taken, limit))
    }

    fn untried(devices: &Arc<Devices>, limit: Duration) -> Vec<Self> {
        let hosts = LocalCommunicator::group_with_time_limit(devices.0.len(), limit);
        hosts.into_iter().map(|host| Self { host, devices: devices.clone() }).collect()
    }
}

impl Devices {
    fn take(devices: &[CudaDevice]) -> Result<Self, String> {
        let ids: Vec<DeviceNumber> = devices.iter().map(|device| number(device.id())).collect();
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(device) = ids.iter().find(|id| taken.contains(id)) {
            return Err(format!("device {} belongs to a group that still exists; drop its ranks first", device.index));
        }
        taken.extend(&ids);
        Ok(Self(ids))
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        TAKEN.lock().unwrap_or_else(PoisonError::into_inner).retain(|id| !self.0.contains(id));
    }
}

impl Communicator for NcclCommunicator {
    fn rank(&self) -> usize {
        self.host.rank()
    }

    fn size(&self) -> usize {
        self.host.size()
    }

    fn all_reduce(&self, agreement: &Agreement, values: &mut [f32]) -> Result<(), CommunicationError> {
        self.host.all_reduce(agreement, values)
    }

    fn barrier(&self, agreement: &Agreement) -> Result<(), CommunicationError> {
        self.host.barrier(agreement)
    }

    fn abort(&self, reason: &str) {
        self.host.abort(reason);
    }

    fn devices(&self) -> Option<&[DeviceNumber]> {
        Some(&self.devices.0)
    }
}

/// Burn's identity of a device as the number that communicators pass on.
pub(crate) fn number(id: DeviceId) -> DeviceNumber {
    DeviceNumber { kind: id.type_id, index: id.index_id }
}

/// Checks what CubeCL would otherwise panic about on its own thread, where the panic is lost.
fn look_for_libraries_and(devices: &[CudaDevice]) -> Result<(), String> {
    use cudarc::{driver, nccl};

    if let Some((at, device)) = devices.iter().enumerate().find(|(at, device)| devices[..*at].contains(device)) {
        return Err(format!(
            "two ranks have device {}, the second of them rank {at}; NCCL takes one rank on a device, so give each its own",
            device.index
        ));
    }
    // SAFETY: opens the library under the names that CubeCL tries, and closes it; NVIDIA's may be opened from any thread.
    if !unsafe { driver::sys::is_culib_present() } {
        return Err("there is no CUDA driver; install NVIDIA's, or take `LocalCommunicator`".into());
    }
    // SAFETY: as above.
    if !unsafe { nccl::sys::is_culib_present() } {
        return Err("the library `libnccl.so` cannot be opened; install NCCL (where it is called `libnccl.so.2`, add a link), and \
                    name its folder in LD_LIBRARY_PATH"
            .into());
    }
    let count = driver::result::init()
        .and_then(|()| driver::result::device::get_count())
        .map_err(|error| format!("the CUDA driver does not start: {error:?}; see what `nvidia-smi` says"))?;
    match devices.iter().find(|device| device.index >= count as usize) {
        Some(device) => {
            Err(format!("device {} was asked for and there are {count}; use 0 to {}", device.index, count - 1))
        }
        None => Ok(()),
    }
}

/// Starts NCCL on the devices and adds the numbers of the ranks, on threads that may never end.
fn try_one_sum(group: Vec<NcclCommunicator>, devices: &[CudaDevice]) -> Result<(), CommunicationError> {
    let failed = |cause: String| CommunicationError::Engine { engine: "NCCL", cause };
    let (report, reports) = channel();
    for (communicator, device) in group.into_iter().zip(devices) {
        let (report, device) = (report.clone(), device.clone());
        std::thread::spawn(move || {
            let sum = sum_of_ranks(&communicator, &device);
            drop(communicator); // so that its device is free when the group is
            report.send(sum)
        });
    }
    drop(report);
    let expected = (devices.len() * (devices.len() + 1) / 2) as f32;
    let end = Instant::now() + START_LIMIT;
    for _ in devices {
        match reports.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(sum) => {
                if sum? != expected {
                    let cause =
                        "it does not add; set NCCL_DEBUG=INFO, look for what was printed, and restart the process";
                    return Err(failed(cause.into()));
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                return Err(failed(format!(
                    "no sum within {START_LIMIT:?}; set NCCL_DEBUG=INFO, and restart the process"
                )));
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(failed("a thread panicked on its device; look for what was printed".into()));
            }
        }
    }
    Ok(())
}

/// One, two, three, .. added up over the devices of the ranks.
fn sum_of_ranks(communicator: &NcclCommunicator, device: &CudaDevice) -> Result<f32, CommunicationError> {
    let number = TensorData::from([communicator.rank() as f32 + 1.0]);
    let sum = <Cuda<f32, i32> as InferenceBackend>::Ops::all_reduce(
        Tensor::<Cuda<f32, i32>, 1>::from_data(number, device),
        communicator,
        &AgreedSettings::NONE,
    )?;
    let failed = |cause| CommunicationError::Engine { engine: "CUDA", cause };
    let data = sum.try_into_data().map_err(|error| failed(error.to_string()))?;
    data.iter::<f32>().next().ok_or_else(|| failed("the device returned nothing".into()))
}
