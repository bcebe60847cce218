"""A fault of the machine is known by its sentence; a bug that speaks of the same things is a bug."""

import pytest

from compression_pipeline.transient import is_transient


@pytest.mark.parametrize(
    "said",
    [
        "Expected all tensors to be on the same device; see rendezvous",
        "ProcessGroupNCCL is only supported with GPUs, no GPUs found!",
        "NCCL operation is not supported for complex tensors",
        "the NCCL watchdog must be enabled first",
        "monitoredBarrier is only implemented for GLOO backend",
        "timeout in seconds must be positive",
        "read timeout must be an integer",
        "socket timeout has no default",
        "Invalid name resolution of operator aten::add",
        "failed to connect the nodes of the graph",
        "failed to send a tensor of this type",
        "an ECC setting is not known",
        "NVLink is required for symmetric memory",
        "Xid is no field of this record",
        "uncorrectable shape mismatch",
        "the device is unavailable for this operator",
        "message bus error handler is not registered",
        "not enough memory formats given",
        "unable to mmap: the flag is unknown",
        "the option was killed in version 2",
        "the connection is closed before it is opened",
        "Connection closed is no state of this machine",
    ],
)
def test_a_topic_is_no_fault_of_the_machine(said: str) -> None:
    assert not is_transient(RuntimeError(said))
    assert not is_transient(type("LibraryError", (Exception,), {"__module__": "library"})(said))


@pytest.mark.parametrize(
    "said",
    [
        "[Rank 3] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=5, OpType=ALLREDUCE) ran for 600000 ms",
        "Some NCCL operations have failed or timed out. Due to the asynchronous nature of CUDA kernels",
        "NCCL communicator encountered error set by ProcessGroupNCCL",
        "[Rank 0]: Rank 1 failed to pass monitoredBarrier in 1000 ms",
        "Socket Timeout",
        "wait timeout after 300000ms, keys: /default_pg/0/1",
        "('Connection aborted.', RemoteDisconnected())",
        "Temporary failure in name resolution",
        "failed to recv, got 0 bytes",
        "The server socket has failed to bind: Address already in use",
        "CUDA error: CUDA-capable device(s) is/are busy or unavailable",
        "CUDA error: uncorrectable ECC error encountered",
        "CUDA error: the launch timed out and was terminated",
        "NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.",
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried",
        "DataLoader worker (pid 7) is killed by signal: Bus error.",
        "unable to mmap 4096 bytes from file </torch_1>: Cannot allocate memory (12)",
        "unable to open shared memory object </torch_1_2> in read-write mode: Too many open files (24)",
    ],
)
def test_the_machine_s_own_sentences_pass(said: str) -> None:
    assert is_transient(RuntimeError(said))
