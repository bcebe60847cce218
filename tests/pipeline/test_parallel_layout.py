"""Ranks are computed from the layout, and Megatron's groups are those of the layout."""

import json
from contextlib import ExitStack, closing
from typing import Any

import pytest
from engine_models import python
from hypothesis import given
from hypothesis import strategies as st
from meeting import Meeting

from compression_pipeline.config import Parallelism

SIZES = st.integers(1, 6)
SPLITS = st.builds(Parallelism, tensor=SIZES, pipeline=SIZES, context=SIZES)


@given(SPLITS, SIZES, SIZES)
def test_every_rank_has_a_part_of_one_copy(split: Parallelism, copies: int, nodes: int) -> None:
    """ranks = nodes x per node = data x tensor x pipeline x context."""
    layout = split.over(nodes=nodes, per_node=copies * split.per_copy)
    assert layout.ranks == layout.nodes * layout.per_node
    assert layout.ranks == layout.data * layout.tensor * layout.pipeline * layout.context
    assert layout.per_stage * layout.pipeline == layout.ranks
    assert split.of_ranks(layout.ranks, per_node=layout.per_node) == layout


@given(SPLITS, SIZES, SIZES)
def test_a_layout_that_does_not_fit_is_refused_with_the_field_and_sizes_that_do(
    split: Parallelism, nodes: int, per_node: int
) -> None:
    ranks = nodes * per_node
    fault = split.fault(ranks)
    assert (fault is None) == (ranks % split.per_copy == 0)
    if fault is None:
        return
    field, sentence = fault
    with pytest.raises(ValueError, match=f"{field}: "):
        split.over(nodes=nodes, per_node=per_node)
    for size in map(int, sentence.split("nearest: ")[1].split(" or ")):
        mended = split.model_copy(update={field: size}).fault(ranks)
        assert mended is None or mended[0] != field


@pytest.mark.parametrize(
    ("split", "ranks", "fault"),
    [
        ({"tensor": 3}, 8, ("tensor", "3 does not divide the 8 ranks, nearest: 2 or 4")),
        ({"tensor": 16}, 8, ("tensor", "16 does not divide the 8 ranks, nearest: 8")),
        ({"tensor": 2, "pipeline": 3}, 8,
         ("pipeline", "3 does not divide the 4 that are left of 8 ranks, nearest: 2 or 4")),
    ],
)  # fmt: skip
def test_sentences(split: dict[str, int], ranks: int, fault: tuple[str, str]) -> None:
    assert Parallelism(**split).fault(ranks) == fault


def test_ranks_that_are_no_whole_nodes_are_refused() -> None:
    with pytest.raises(ValueError, match="6 ranks are not whole nodes of 4"):
        Parallelism().of_ranks(6, per_node=4)


@given(SPLITS, st.integers(0, 40), st.integers(1, 40))
def test_the_most_ranks_that_a_batch_splits_over(split: Parallelism, limit: int, micro_batches: int) -> None:
    def works(ranks: int) -> bool:
        return split.fault(ranks) is None and micro_batches % (ranks // split.per_copy) == 0

    assert split.most_ranks(limit, micro_batches) == max((n for n in range(1, limit + 1) if works(n)), default=0)


@given(SPLITS)
def test_what_is_not_there_yet_is_refused(split: Parallelism) -> None:
    fault = split.unsupported
    assert (fault is None) == (split.context == 1)
    if fault is not None:
        assert getattr(split, fault[0]) > 1
        assert fault[1].startswith(f"{getattr(split, fault[0])} is not supported yet; leave it at 1")


RANKS = 4
SCRIPT = """
    import json, os, sys, traceback
    import torch.distributed as dist
    from engine_models import finetune_job
    from compression_pipeline.config import Parallelism
    from compression_pipeline.megatron.runtime import GROUP_TIMEOUT, runtime
    import megatron.core.models.gpt

    def places(current):
        assert (current.rank, current.world_size) == (dist.get_rank(), dist.get_world_size())
        groups = current.data_group, current.tensor_group
        for group in groups:  # Megatron's own default is half an hour
            assert group._get_backend(current.device).options._timeout == GROUP_TIMEOUT
        groups = map(dist.get_process_group_ranks, groups)
        return [current.data_rank, current.data_size, *groups, current.first_stage, current.last_stage]

    def run():
        found = {}
        for split, port in json.loads(os.environ["SPLITS"]).items():
            os.environ["MASTER_PORT"] = port
            parallelism = Parallelism(**({} if split == "data" else {split: 2}))
            with runtime(finetune_job(parallelism=parallelism)) as current:
                found[split] = places(current)
                dist.barrier()
        return found

    children = []
    for rank in range(int(os.environ["WORLD_SIZE"])):  # each import of Megatron takes 8 s, a fork none
        if (pid := os.fork()) == 0:
            os.environ["RANK"] = str(rank)
            try:
                os.write(1, (json.dumps([rank, run()]) + "\\n").encode())  # at once: others write there, too
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        children.append(pid)
    sys.exit(sum(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0 for pid in children))
    """
KINDS = "data", "tensor", "pipeline", "context"


@pytest.fixture(scope="module")
def told() -> dict[int, dict[str, Any]]:
    """What each of four real ranks has found in a runtime of each layout."""
    with ExitStack() as stack:
        # Each runtime has a port of its own: one that begins must not meet the store of one that ends.
        meetings = {split: stack.enter_context(closing(Meeting(RANKS))) for split in KINDS}
        ports = json.dumps({split: str(meeting.port) for split, meeting in meetings.items()})
        child = python(SCRIPT, SPLITS=ports, **meetings["data"].environment)
        output, errors = child.communicate(timeout=540)
    assert child.returncode == 0, errors
    return dict(json.loads(line) for line in output.splitlines())


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        # data rank, copies, ranks of the data group, ranks of the tensor group, whether first and last stage
        ("data", [[rank, 4, [0, 1, 2, 3], [rank], True, True] for rank in range(RANKS)]),
        ("tensor", [[0, 2, [0, 2], [0, 1], True, True], [0, 2, [1, 3], [0, 1], True, True],
             [1, 2, [0, 2], [2, 3], True, True], [1, 2, [1, 3], [2, 3], True, True]]),
        ("pipeline", [[0, 2, [0, 1], [0], True, False], [1, 2, [0, 1], [1], True, False],
             [0, 2, [2, 3], [2], False, True], [1, 2, [2, 3], [3], False, True]]),
        # Two that share a sequence read the same text, and each has a part of its loss.
        ("context", [[rank // 2, 2, [0, 1, 2, 3], [rank], True, True] for rank in range(RANKS)]),
    ],
)  # fmt: skip
def test_a_runtime_has_the_groups_of_its_layout(
    told: dict[int, dict[str, Any]], split: str, expected: list[Any]
) -> None:
    assert [told[rank][split] for rank in range(RANKS)] == expected
