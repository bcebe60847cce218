"""The process's place in the world: ranks, device, process group, seeds, threads.

This is the one module that knows that there may be no GPU. On a machine with one it starts NCCL and touches nothing of
Megatron's. Without one the same training code runs on the CPU over gloo, and Megatron, which takes a CUDA device for
granted in a dozen places, is told where it is (`private.cpu_adaptations`). Nothing wraps tensor operations, so the
training loop pays nothing for it.

Modules that import Megatron at their top are best imported inside a `runtime` block: without a GPU the first import of
Megatron is made there, without torch's compiler, which saves two seconds and changes nothing (it is off on CPU).
"""

import contextlib
import gc
import importlib
import logging
import os
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from compression_pipeline.config import JobConfig, ParallelLayout, Precision
from compression_pipeline.errors import TransientError, UserError
from compression_pipeline.huggingface.splitting import Share
from compression_pipeline.store.system import processors

from . import foundation, private
from .swiglu import swiglu

GROUP_TIMEOUT = timedelta(hours=2)
"""How long a rank waits for another one in a collective before it gives up by itself.

It is the last resort, for ranks that all live and yet wait for ever. A rank that dies ends the job long before: its
launcher kills the others of its node after LOST_PEER_SECONDS, and the operator ends the other nodes' pods. A job that
hangs in silence is ended after progressDeadlineSeconds (30 minutes by default). So this is well above both, and above
what one rank does alone while the others wait: reading a large artifact to verify it, or writing its share of a
checkpoint to a slow volume.
"""


@dataclass(frozen=True)
class Runtime:
    """Where this process computes, and which part of the work is its own."""

    rank: int
    """Among all ranks of the job. Rank 0 writes, publishes and reports; every rank owns a share of a checkpoint."""
    layout: ParallelLayout
    data_rank: int
    """Which copy of the model this rank has a part of: the copy takes its own part of the batch."""
    data_group: dist.ProcessGroup
    """The ranks that hold this part of the model: sums over tokens are summed over them."""
    tensor_group: dist.ProcessGroup
    """The ranks that hold the other shards of these matrices, of the vocabulary too."""
    share: Share
    """Which part of each of them this rank holds."""
    pipeline_group: dist.ProcessGroup
    """The ranks of the other stages of this copy, in their order."""
    stage: int
    """Which pipeline stage this rank computes, counted from 0."""
    device: torch.device
    dtype: torch.dtype
    """Type of parameters and arithmetic: bfloat16 or float32. Optimizer state and master weights are float32."""
    deterministic: bool
    threads: int
    """CPU threads of this process."""

    @property
    def world_size(self) -> int:
        """All ranks of the job."""
        return self.layout.ranks

    @property
    def data_size(self) -> int:
        """Copies of the model."""
        return self.layout.data

    @property
    def first_stage(self) -> bool:
        """Whether this rank has the embedding."""
        return self.stage == 0

    @property
    def last_stage(self) -> bool:
        """Whether this rank has the output layer, and so the loss."""
        return self.stage == self.layout.pipeline - 1

    @property
    def leads_data_group(self) -> bool:
        """Whether this rank is the first of its data group: what is gathered of this part of the model comes here."""
        return dist.get_rank(self.data_group) == 0

    @property
    def precision(self) -> Precision:
        """The arithmetic that is used, as settings name it."""
        return Precision.BF16 if self.dtype is torch.bfloat16 else Precision.FP32

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"


@contextlib.contextmanager
def runtime(
    job: JobConfig,
    *,
    precision: Precision = Precision.AUTO,
    deterministic: bool = False,
    seed: int = 1234,
    tell: Callable[[str], None] | None = None,
) -> Iterator[Runtime]:
    """Join the process group and set Megatron up; leave everything as it was at the end.

    RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are read from the environment as torchrun sets them; a
    process without them is a world of its own and opens no port. `tell` hears first of all what the engine stands on.

    Raises:
        UserError: other versions of Megatron or ModelOpt are installed, or the precision can't be had on this device.
        TransientError: the ranks could not meet (the port is taken, a peer did not come).
    """
    private.check_versions()
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    gpu = torch.cuda.is_available()
    if gpu and local_rank >= torch.cuda.device_count():
        raise UserError(
            f"rank {rank} finds {torch.cuda.device_count()} GPUs on its node; "
            f"processesPerNode ({job.processes_per_node}) must not be larger"
        )
    device = torch.device("cuda", local_rank) if gpu else torch.device("cpu")
    layout = job.parallelism.of_ranks(world_size, per_node=job.processes_per_node)
    threads = job.threads or max(1, processors() // layout.per_node)
    with contextlib.ExitStack() as stack:
        dtype = _dtype(precision, gpu)
        if tell is not None:
            tell(foundation.described(device, dtype, threads))
            if layout.per_copy > 1:
                tell(layout.words)
        stack.enter_context(_threads(threads))
        stack.enter_context(foundation.alone())
        import_megatron(gpu)
        stack.enter_context(_gpu_settings(device, layout, deterministic) if gpu else private.cpu_adaptations())
        stack.enter_context(private.fused_swiglu(swiglu))
        stack.enter_context(_process_group(device, rank, world_size))
        groups = stack.enter_context(_groups(layout))
        _seed(seed, gpu)
        yield Runtime(
            rank=rank,
            layout=layout,
            **groups,
            device=device,
            dtype=dtype,
            deterministic=deterministic or not gpu,
            threads=threads,
        )


def free(runtime: Runtime) -> None:
    """Give the memory back that dropped models and optimizers still hold: they refer to themselves in circles."""
    gc.collect()
    if runtime.on_gpu:
        torch.cuda.empty_cache()


def _dtype(precision: Precision, gpu: bool) -> torch.dtype:
    if precision is Precision.AUTO:
        return torch.bfloat16 if gpu else torch.float32
    if precision is Precision.BF16 and not gpu:
        raise UserError(
            "precision: BF16 needs a GPU and none is found here; set FP32, or look why it isn't (the node's driver, "
            "CUDA_VISIBLE_DEVICES, the CUDA of the image's torch)"
        )
    return torch.bfloat16 if precision is Precision.BF16 else torch.float32


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def import_megatron(gpu: bool) -> None:
    """The first import of Megatron, without its complaints that Transformer Engine and Apex are not there."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.callback(logging.disable, logging.root.manager.disable)
        logging.disable(logging.WARNING)
        private.build_no_allocator(stack)
        if not gpu:
            # Megatron decorates functions with torch.compile when it is imported. With dynamo off that would give the
            # plain functions back, after importing the compiler.
            os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
            private.replace(stack, torch, "compile", lambda model=None, **_: model or (lambda function: function))
        for module in ("models.gpt.gpt_layer_specs", "optimizer", "pipeline_parallel.schedules"):
            importlib.import_module(f"megatron.core.{module}")


@contextlib.contextmanager
def _gpu_settings(device: torch.device, layout: ParallelLayout, deterministic: bool) -> Iterator[None]:
    if layout.tensor > 1:
        # One queue: what ranks send each other starts before the product that hides it. CUDA reads it as it begins.
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    torch.cuda.set_device(device)
    # Read by cuBLAS when it is first used, so it is early enough here.
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextlib.contextmanager
def _process_group(device: torch.device, rank: int, world_size: int) -> Iterator[None]:
    backend = "nccl" if device.type == "cuda" else "gloo"
    options: dict[str, Any] = {"device_id": device} if device.type == "cuda" else {}
    if world_size == 1:
        options["store"] = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]  # documented, but not in __all__
    if os.environ.get("MASTER_ADDR", "localhost") in ("localhost", "127.0.0.1", "::1"):
        # All ranks are on this machine; gloo would otherwise look the host's name up, which may lead nowhere.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=GROUP_TIMEOUT, **options)
    except (RuntimeError, ValueError) as error:  # torch.distributed's own errors are RuntimeErrors
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        message = " ".join(str(error).split("\n")[0].split())
        raise TransientError(f"rank {rank} of {world_size} could not join the others at {where}: {message}") from error
    try:
        yield
    except BaseException:
        # A peer may be dead: NCCL's clean-up would wait for it. The end of the process frees everything.
        if backend == "gloo":
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


@contextlib.contextmanager
def _groups(layout: ParallelLayout) -> Iterator[dict[str, Any]]:
    """Megatron's groups of the layout, and this rank's place in them as fields of a Runtime."""
    from megatron.core import parallel_state

    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        context_parallel_size=layout.context,
        distributed_timeout_minutes=int(GROUP_TIMEOUT.total_seconds()) // 60,
    )
    try:
        yield {
            "data_rank": parallel_state.get_data_parallel_rank(),
            "data_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
            "tensor_group": parallel_state.get_tensor_model_parallel_group(),
            "share": Share(parallel_state.get_tensor_model_parallel_rank(), layout.tensor),
            "pipeline_group": parallel_state.get_pipeline_model_parallel_group(),
            "stage": parallel_state.get_pipeline_model_parallel_rank(),
        }
    finally:
        parallel_state.destroy_model_parallel()


def _seed(seed: int, gpu: bool) -> None:
    import numpy

    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)
    if gpu:
        from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

        model_parallel_cuda_manual_seed(seed)
