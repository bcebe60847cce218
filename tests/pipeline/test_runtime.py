"""The runtime sets Megatron up, does not linger, and says what is wrong."""

import socket
from contextlib import closing
from pathlib import Path

import pytest
import torch
from engine_models import finetune_job, python
from meeting import Meeting

from compression_operator.api.phase_settings import PhaseSettings
from compression_pipeline.config import Precision
from compression_pipeline.errors import UserError
from compression_pipeline.launcher.main import LOST_PEER_SECONDS
from compression_pipeline.megatron import private
from compression_pipeline.megatron.runtime import GROUP_TIMEOUT, Runtime, runtime


def test_one_rank_is_a_world_of_its_own(engine: Runtime) -> None:
    assert (engine.rank, engine.world_size, engine.threads) == (0, 1, 1)
    total = torch.ones(3, device=engine.device)
    torch.distributed.all_reduce(total)
    assert total.tolist() == [1, 1, 1]


def test_ranks_wait_for_each_other_longer_than_for_a_dead_or_a_silent_one() -> None:
    """Who dies, or hangs, is the launcher's and the operator's business; who works is not to be given up."""
    silent = PhaseSettings().progress_deadline_seconds
    assert LOST_PEER_SECONDS < silent < GROUP_TIMEOUT.total_seconds() / 2


def test_bf16_without_a_gpu_is_refused() -> None:
    # The precision is looked at before a process group exists, so the session's own is not disturbed.
    with (
        pytest.raises(UserError, match="precision: BF16 needs a GPU"),
        runtime(finetune_job(), precision=Precision.BF16),
    ):
        pass


@pytest.mark.parametrize(("pinned", "found"), [("megatron-core", "0.15.3"), ("nvidia-modelopt", "0.43.0")])
def test_a_version_whose_private_names_are_not_known_is_refused(
    monkeypatch: pytest.MonkeyPatch, pinned: str, found: str
) -> None:
    monkeypatch.setitem(private.PINNED, pinned, "9.9.9")
    with (
        pytest.raises(UserError, match=f"private names of {pinned} 9.9.9 and finds {found}; use"),
        runtime(finetune_job()),
    ):
        pass


def test_one_that_is_not_installed_is_named_and_a_suffix_of_a_build_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(private.PINNED, "megatron-lm-of-nobody", "1.0")
    with pytest.raises(UserError, match=r"megatron-lm-of-nobody 1\.0 and finds none"):
        private.check_versions()
    monkeypatch.setattr(private, "version", lambda name: f"{private.PINNED[name]}+cu130")
    private.check_versions()


def test_everything_is_put_back_and_the_compiler_is_never_imported() -> None:
    """In a process of its own: the session's runtime is open here."""
    child = python(
        """
        import sys
        import torch
        from engine_models import finetune_job
        before = {"compile": torch.compile, "type": torch.Tensor.type, "device": torch.cuda.current_device}
        threads = torch.get_num_threads()
        from compression_pipeline.megatron.runtime import runtime
        for _ in range(2):  # a second one in the same process works like the first
            with runtime(finetune_job(threads=1)) as current:
                assert current.dtype is torch.float32 and torch.get_num_threads() == 1
                assert torch.zeros(1).type() == "torch.cuda.FloatTensor"
                assert torch.zeros(1).type(torch.int64).dtype is torch.int64
                assert torch.distributed.get_backend() == "gloo"
                gathered = torch.zeros(1)
                torch.distributed.all_gather_into_tensor(gathered, torch.tensor(3.0))
                assert gathered.item() == 3
            after = {"compile": torch.compile, "type": torch.Tensor.type, "device": torch.cuda.current_device}
            assert after == before and not torch.distributed.is_initialized()
        assert torch.zeros(1).type() == "torch.FloatTensor"
        assert "cuda" in vars(torch.nn.Module) and "cuda" not in vars(torch.Tensor)
        assert "torch._inductor" not in sys.modules and "torch._dynamo" not in sys.modules
        """
    )
    _, errors = child.communicate(timeout=540)
    assert child.returncode == 0, errors


def test_the_lock_of_a_killed_process_holds_nobody_up(tmp_path: Path) -> None:
    """torch builds extensions one at a time, and waits for ever for who died in the middle of it."""
    child = python(
        """
        import os, pathlib, torch
        from torch.utils import cpp_extension
        from engine_models import finetune_job
        folder = pathlib.Path(cpp_extension._get_build_directory("managed_alloc_runtime", verbose=False))
        (folder / "lock").touch()
        from compression_pipeline.megatron.runtime import runtime
        with runtime(finetune_job()):
            pass
        assert [path.name for path in folder.iterdir()] == ["lock"]
        assert cpp_extension.load_inline.__module__ == "torch.utils.cpp_extension"
        """,
        TORCH_EXTENSIONS_DIR=str(tmp_path),
    )
    _, errors = child.communicate(timeout=540)
    assert child.returncode == 0, errors


def test_two_ranks_meet_and_a_taken_port_is_named() -> None:
    code = """
        import torch
        from engine_models import finetune_job
        from compression_pipeline.errors import TransientError
        from compression_pipeline.megatron.runtime import runtime
        try:
            with runtime(finetune_job()) as current:
                total = torch.tensor([current.rank + 1.0])
                torch.distributed.all_reduce(total)
                print(current.rank, current.world_size, total.item())
        except TransientError as error:
            print(error)
        """
    with closing(Meeting(2)) as meeting:
        with socket.create_server(("127.0.0.1", meeting.port)):  # sets SO_REUSEADDR
            alone = python(code, RANK="0", **meeting.environment)
            output, _ = alone.communicate(timeout=540)
        assert f"rank 0 of 2 could not join the others at 127.0.0.1:{meeting.port}" in output
        children = [python(code, RANK=str(rank), **meeting.environment) for rank in range(2)]
        printed = [child.communicate(timeout=540)[0].strip() for child in children]
    assert printed == ["0 2 3.0", "1 2 3.0"]
