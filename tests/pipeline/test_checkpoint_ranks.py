"""Checkpoints of two ranks: what keeps one of them from writing ends both, and both say it."""

from contextlib import closing
from pathlib import Path

import pytest
from engine_models import python
from meeting import Meeting

CODE = """
    import errno, os, sys
    from pathlib import Path
    from engine_models import finetune_job
    from saving import Trained, checkpoints, save
    from compression_pipeline.errors import PhaseError
    from compression_pipeline.megatron.runtime import runtime

    root, rank, place = Path(sys.argv[1]), int(os.environ["RANK"]), sys.argv[2]
    real = getattr(Path, place)

    def failing(path, *given, **named):
        if path.name.endswith(".tmp") and armed:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return real(path, *given, **named)

    armed = False
    with runtime(finetune_job()) as current:
        trained = Trained(current, 0)
        kept, _ = checkpoints(root, current)
        save(kept, trained, 1)
        setattr(Path, place, failing)
        armed = rank == 0
        try:
            save(kept, trained, 2)
        except PhaseError as error:
            print(f"{type(error).__name__}: {error}")
        armed = False
        save(kept, trained, 3)  # whoever goes on finds the others there
    """


@pytest.mark.parametrize("place", ["mkdir", "rename"])
def test_what_keeps_rank_0_from_saving_is_every_rank_s_error(tmp_path: Path, place: str) -> None:
    with closing(Meeting(2)) as meeting:
        given = [str(tmp_path), place]
        code = f"import sys; sys.argv[1:] = {given!r}" + CODE.replace("\n    ", "\n")
        ranks = [python(code, RANK=str(rank), **meeting.environment) for rank in range(2)]
        ended = [rank.communicate(timeout=540) for rank in ranks]
    said = [output.strip() for output, _ in ended]
    assert [rank.returncode for rank in ranks] == [0, 0], ended
    assert said[0].startswith("TransientError: OSError: ") and "Input/output error" in said[0]
    assert said[1] == said[0]
    [folder] = tmp_path.glob("work/*/*/checkpoints")
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000001", "step-00000003"]
