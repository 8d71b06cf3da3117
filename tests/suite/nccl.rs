//! Ranks that are CUDA devices: what they add up, and how they end. Most need three devices; `scripts/cuda.py` emulates them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use burn::tensor::{Tensor, TensorData};
use burn_cuda::{Cuda, CudaDevice};
use burn_deepspeed::nccl::NcclCommunicator;
use burn_deepspeed::parallel::{AgreedSettings, Communicator};
use burn_deepspeed::{CommunicationError, CpuOps, CubeOps, InferenceBackend, Operations};
use burn_ndarray::NdArray;

use crate::ranks::on_ranks;

/// The same devices without fusion.
type Raw = burn_cubecl::CubeBackend<cubecl::cuda::CudaRuntime, f32, i32, u8>;

const LONG: Duration = Duration::from_secs(30);
/// Enough to compile the kernels.
const SHORT: Duration = Duration::from_secs(2);

fn devices(ranks: usize) -> Vec<CudaDevice> {
    (0..ranks).map(CudaDevice::new).collect()
}

/// A device belongs to one group at a time.
static DEVICES: Mutex<()> = Mutex::new(());

/// What each rank of a group returns; `limit` is that of the group.
fn on_devices<T: Send>(ranks: usize, limit: Duration, work: impl Fn(Arc<NcclCommunicator>) -> T + Sync) -> Vec<T> {
    let _devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
    on_ranks(NcclCommunicator::group_with_time_limit(&devices(ranks), limit).unwrap(), work)
}

/// What a rank offers; different on each, and exact in f32.
fn part(rank: usize, round: usize, shape: [usize; 3]) -> TensorData {
    let values: Vec<f32> =
        (0..shape.iter().product()).map(|at| ((rank + 1) * (at % 1000) + 100_000 * round) as f32).collect();
    TensorData::new(values, shape)
}

#[test]
fn a_device_twice_is_refused() {
    let error = NcclCommunicator::group(&[CudaDevice::new(1), CudaDevice::new(0), CudaDevice::new(1)]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "NCCL cannot be used: two ranks have device 1, the second of them rank 2; NCCL takes one rank on a device, so give each \
         its own"
    );
}

/// On any machine: it has no driver, no NCCL, or fewer devices.
#[test]
fn what_is_not_there_is_an_error_before_anything_starts() {
    let error = NcclCommunicator::group(&[CudaDevice::new(900)]).unwrap_err();
    let said = error.to_string();
    assert!(matches!(error, CommunicationError::Unavailable { engine: "NCCL", .. }), "{said}");
    let remedies =
        ["there is no CUDA driver; install", "`libnccl.so` cannot be opened; install", "device 900 was asked for"];
    assert!(remedies.iter().any(|remedy| said.contains(remedy)) || said.contains("does not start"), "{said}");
}

fn devices_add_up<B: InferenceBackend<Device = CudaDevice>>() {
    for ranks in [1, 2, 3] {
        let results = on_devices(ranks, LONG, |communicator| {
            let device = CudaDevice::new(communicator.rank());
            let mut results = Vec::new();
            for (round, shape) in [[1, 1, 64], [2, 3, 128], [1, 5, 4096], [1, 1, 1]].into_iter().enumerate() {
                let partial = Tensor::<B, 3>::from_data(part(communicator.rank(), round, shape), &device);
                let held = (round % 2 == 0).then(|| partial.clone());
                let sum = B::Ops::all_reduce(partial, &*communicator, &AgreedSettings::NONE).unwrap();
                assert_eq!(sum.device(), device);
                if let Some(held) = held {
                    held.into_data().assert_eq(&part(communicator.rank(), round, shape), true);
                }
                results.push(sum);
            }
            results.into_iter().map(|sum| sum.into_data()).collect::<Vec<_>>() // several sums were in flight
        });
        for (round, sum) in results.iter().flat_map(|results| results.iter().enumerate()) {
            let shape: [usize; 3] = sum.shape.dims();
            let mut expected = vec![0f32; shape.iter().product()];
            for rank in 0..ranks {
                for (sum, value) in expected.iter_mut().zip(part(rank, round, shape).iter::<f32>()) {
                    *sum += value;
                }
            }
            sum.assert_eq(&TensorData::new(expected, shape), true);
        }
    }
}

#[test]
#[ignore = "needs three CUDA devices: scripts/cuda.py"]
fn devices_add_up_with_fusion() {
    devices_add_up::<Cuda>();
}

#[test]
#[ignore = "needs three CUDA devices: scripts/cuda.py"]
fn devices_add_up_without_fusion() {
    devices_add_up::<Raw>();
}

/// Every sum is correct, in whichever order the ranks run.
#[test]
#[ignore = "needs three CUDA devices: scripts/cuda.py"]
fn sums_in_a_row_do_not_mix() {
    on_devices(3, LONG, |communicator| {
        let device = CudaDevice::new(communicator.rank());
        for round in 0..200 {
            let value = (3 * round + communicator.rank()) as f32;
            let partial = Tensor::<Cuda, 2>::from_data([[value; 32]; 2], &device);
            let sum = CubeOps::all_reduce(partial, &*communicator, &AgreedSettings::NONE).unwrap();
            if round % 3 == communicator.rank() {
                sum.into_data().assert_eq(&TensorData::from([[(9 * round + 3) as f32; 32]; 2]), true);
            }
        }
    });
}

/// The errors of every rank for a sum of what `partial` returns on each.
fn errors<B: InferenceBackend>(
    limit: Duration,
    partial: impl Fn(usize) -> Tensor<B, 3> + Sync,
) -> Vec<CommunicationError> {
    on_devices(3, limit, |communicator| {
        B::Ops::all_reduce(partial(communicator.rank()), &*communicator, &AgreedSettings::NONE).unwrap_err()
    })
}

#[test]
#[ignore = "needs three CUDA devices: scripts/cuda.py"]
fn no_device_waits_for_a_rank_that_is_late_or_different() {
    fn late_and_different<B: InferenceBackend>(device: impl Fn(usize) -> B::Device + Sync) {
        let all = errors::<B>(SHORT, |rank| {
            if rank == 1 {
                std::thread::sleep(SHORT * 3 / 2);
            }
            Tensor::from_data(part(rank, 0, [1, 2, 64]), &device(rank))
        });
        for error in all {
            assert_eq!(error, CommunicationError::TimedOut { missing: vec![1], ranks: 3, limit: SHORT });
        }
        let all = errors::<B>(LONG, |rank| {
            let tokens = if rank == 2 { 4 } else { 5 };
            Tensor::from_data(part(rank, 0, [1, tokens, 64]), &device(rank))
        });
        let difference = "rank 0 adds [1, 5, 64] of F32, that rank adds [1, 4, 64] of F32";
        for error in all {
            assert_eq!(error, CommunicationError::Differ { rank: 2, difference: difference.into() });
        }
    }
    late_and_different::<Cuda>(CudaDevice::new);
    late_and_different::<Raw>(CudaDevice::new);
    late_and_different::<NdArray>(|_| Default::default());
    // The devices are as good as before.
    devices_add_up::<Cuda>();
}

/// A backend that NCCL does not reach adds on the host.
#[test]
#[ignore = "needs three CUDA devices: scripts/cuda.py"]
fn tensors_of_the_cpu_are_added_on_the_host() {
    let sums = on_devices(3, LONG, |communicator| {
        let partial = Tensor::<NdArray, 3>::from_data(part(communicator.rank(), 0, [1, 2, 7]), &Default::default());
        CpuOps::all_reduce(partial, &*communicator, &AgreedSettings::NONE).unwrap().into_data()
    });
    let expected: Vec<f32> = (0..14).map(|at| (6 * at) as f32).collect();
    assert!(sums.iter().all(|sum| sum.as_slice::<f32>().unwrap() == expected));
}

#[test]
#[ignore = "needs three CUDA devices: scripts/cuda.py"]
fn a_tensor_on_another_device_is_refused_on_every_rank() {
    let errors =
        errors::<Cuda>(LONG, |rank| Tensor::from_data(part(rank, 0, [1, 2, 64]), &CudaDevice::new(rank.min(1))));
    assert!(
        matches!(&errors[2], CommunicationError::Unavailable { cause, .. } if cause.contains("its tensor is on Cuda(1)"))
    );
    for error in &errors[..2] {
        assert!(matches!(error, CommunicationError::Aborted { rank: 2, .. }), "{error}");
    }
}

/// What has failed on a device before the sum is found before the others begin.
#[test]
#[ignore = "needs three CUDA devices: scripts/cuda.py"]
fn a_device_that_has_failed_does_not_keep_the_others_waiting() {
    fn check<B: InferenceBackend<Device = CudaDevice>>(of_rank_1: impl Fn(&CudaDevice) -> Tensor<B, 3> + Sync) {
        let errors = errors::<B>(LONG, |rank| match rank {
            1 => of_rank_1(&CudaDevice::new(rank)),
            _ => Tensor::from_data(part(rank, 0, [1, 2, 64]), &CudaDevice::new(rank)),
        });
        assert!(matches!(&errors[1], CommunicationError::Engine { engine: "CUDA", .. }), "{}", errors[1]);
        for error in [&errors[0], &errors[2]] {
            assert!(matches!(error, CommunicationError::Aborted { rank: 1, .. }), "{error}");
        }
        devices_add_up::<B>();
    }
    // More than the device has.
    check::<Raw>(|device| Tensor::zeros([1, 1 << 20, 1 << 20], device));
    check::<Cuda>(|device| Tensor::zeros([1, 1 << 20, 1 << 20], device));
    // CubeCL refuses to write nothing.
    check::<Raw>(|device| {
        drop(Tensor::<Raw, 3>::from_data(TensorData::new(Vec::<f32>::new(), [1, 0, 64]), device));
        Tensor::from_data(part(1, 0, [1, 2, 64]), device)
    });
}

#[test]
#[ignore = "needs three CUDA devices: scripts/cuda.py"]
fn a_device_belongs_to_one_group_at_a_time() {
    let _devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
    let mut first = NcclCommunicator::group(&devices(2)).unwrap();
    first.pop();
    let error = NcclCommunicator::group(&[CudaDevice::new(2), CudaDevice::new(1)]).unwrap_err();
    assert!(
        error.to_string().contains("device 1 belongs to a group that still exists; drop its ranks first"),
        "{error}"
    );
    drop(first);
    let group = NcclCommunicator::group(&[CudaDevice::new(2), CudaDevice::new(1)]).unwrap(); // ranks in any order
    assert_eq!(group[0].devices().unwrap()[1].index, 1);
}

/// Runs itself in separate processes: CubeCL starts NCCL once.
#[test]
#[ignore = "needs the NCCL of scripts/cuda.py, which fails when asked to"]
fn an_nccl_that_does_not_start_or_add_is_an_error() {
    const FAIL: &str = "STUB_NCCL_FAIL";
    if std::env::var_os(FAIL).is_some() {
        let error = NcclCommunicator::group(&devices(2)).unwrap_err();
        assert!(
            matches!(&error, CommunicationError::Engine { engine: "NCCL", cause } if cause.contains("does not add")),
            "{error}"
        );
        return;
    }
    for fault in ["start", "sum"] {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "nccl::an_nccl_that_does_not_start_or_add_is_an_error",
                "--include-ignored",
                "--nocapture",
            ])
            .env(FAIL, fault)
            .output()
            .unwrap();
        let output = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success(), "{output}{}", String::from_utf8_lossy(&child.stderr));
        assert!(output.contains("1 passed"), "{output}");
    }
}
