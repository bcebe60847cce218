"""Which layers a pipeline stage has, and that each rank reads and holds these alone."""

import json
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from checkpoints import save_model
from engine_models import architecture, python
from hypothesis import given
from hypothesis import strategies as st
from meeting import Meeting

from compression_pipeline.config import Architecture, stages
from compression_pipeline.huggingface.conversion import CheckpointReader

MODELS = st.builds(
    architecture,
    layers=st.integers(1, 40),
    vocabulary_size=st.integers(1, 40_000),
    tied_embeddings=st.booleans(),
    ffn_hidden_size=st.integers(1, 400),
)


@given(MODELS, st.integers(1, 8))
def test_stages_are_the_whole_model_in_order_and_as_even_as_can_be(model: Architecture, count: int) -> None:
    if model.layers < count:
        with pytest.raises(ValueError, match=f"^{count} stages are more than the model's {model.layers} layer"):
            stages(model, count)
        return
    found = stages(model, count)
    assert [layer for stage in found for layer in stage.layers] == list(range(model.layers))
    assert all(stage.layers for stage in found)
    assert [stage.first for stage in found] == [True] + [False] * (count - 1)
    assert [stage.last for stage in found] == [False] * (count - 1) + [True]
    copied = model.embedding_parameters if model.tied_embeddings and count > 1 else 0
    assert sum(stage.parameters(model) for stage in found) == model.parameters + copied
    # Moving a layer from the largest stage to any other makes that one at least as large.
    sizes = [stage.parameters(model) - stage.last * model.norm_parameters for stage in found]
    largest = max(range(count), key=sizes.__getitem__)
    if len(found[largest].layers) > 1:
        assert all(size + model.layer_parameters >= sizes[largest] for size in sizes)


def test_embedding_and_output_layer_count_as_layers() -> None:
    """Llama-3.1-8B: each of the two is as large as 2.4 layers."""
    llama = architecture(
        layers=32,
        hidden_size=4096,
        ffn_hidden_size=14336,
        attention_heads=32,
        query_groups=8,
        head_dim=128,
        vocabulary_size=128256,
    )
    assert [len(stage.layers) for stage in stages(llama, 2)] == [16, 16]
    assert [len(stage.layers) for stage in stages(llama, 4)] == [7, 9, 9, 7]
    shallow = llama.model_copy(update={"layers": 23})
    assert [len(stage.layers) for stage in stages(shallow, 2)] == [11, 12]


SCRIPT = """
    import hashlib, json, os, sys, traceback
    from pathlib import Path
    import torch
    from engine_models import finetune_job, randomize
    from stores import context
    from compression_pipeline.artifact import Store
    from compression_pipeline.config import Parallelism, stages
    from compression_pipeline.errors import UserError
    from compression_pipeline.huggingface import conversion
    from compression_pipeline.huggingface.files import read_architecture
    from compression_pipeline.megatron import engine as megatron
    from compression_pipeline.megatron.runtime import runtime
    from compression_pipeline.text.batches import Batch

    megatron.preload()
    tokens = torch.arange(64).view(2, 32)
    batch = Batch(tokens, torch.arange(32).expand(2, -1), tokens)

    def digest(tensor):
        return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()

    get = conversion.CheckpointReader.__call__

    def run(folder, pipeline):
        read, shape = [], read_architecture(folder)
        conversion.CheckpointReader.__call__ = lambda self, name: (read.append(name), get(self, name))[1]
        with runtime(finetune_job(parallelism=Parallelism(pipeline=pipeline))) as current:
            engine = megatron.MegatronEngine(current, context(Store(folder.parent / "store"))[0])
            model = engine.build(shape, sequence_length=32)
            engine.load(model, shape, folder)
            reader = conversion.CheckpointReader(folder)
            found = {
                "read": sorted(read),
                "held": sum(each.numel() for each in model.parameters()),
                "logits": digest(engine.logits(model, batch)),
            }
            state = engine.state(model)
            found["state"] = sorted(state)
            if current.rank == 0:
                tensors = dict(engine.tensors(state, shape))
                found["same"] = all(torch.equal(tensor, get(reader, name)) for name, tensor in tensors.items())
            randomize(model)
            engine.fill(model, engine.read(shape, folder), torch.float32)
            found["filled"] = digest(engine.logits(model, batch)) == found["logits"]
            try:
                engine.build(shape.model_copy(update={"layers": pipeline - 1 or 1}), sequence_length=32)
            except UserError as error:
                found["refused"] = str(error)
        return found

    def every(rank):
        found = []
        for one in json.loads(os.environ["RUNS"]):
            if rank < one["ranks"]:
                os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(one["ranks"]), "MASTER_PORT": str(one["port"])}
                found.append([one["kind"], one["pipeline"], rank, run(Path(one["folder"]), one["pipeline"])])
        return found

    children = []
    for rank in range(4):  # each import of Megatron takes 8 s, a fork none
        if (pid := os.fork()) == 0:
            try:
                os.write(1, (json.dumps(every(rank)) + "\\n").encode())
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        children.append(pid)
    sys.exit(sum(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0 for pid in children))
    """


KINDS = "llama3", "qwen2-tied"
Told = dict[tuple[str, int, int], dict[str, Any]]
"""What ranks tell, by kind of model, number of stages, and rank."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of five layers, which do not divide."""
    return {kind: save_model(tmp_path_factory.mktemp("models") / kind, kind, num_hidden_layers=5) for kind in KINDS}


@pytest.fixture(scope="module")
def told(folders: dict[str, Path]) -> Told:
    """Of each model on one rank, and in two copies of two stages."""
    with ExitStack() as stack:
        runs: list[dict[str, Any]] = []
        for kind, folder in folders.items():
            for pipeline, ranks in ((1, 1), (2, 4)):
                # A port of its own: one that begins must not meet the store of one that ends.
                port = stack.enter_context(closing(Meeting(ranks))).port
                of = {"kind": kind, "folder": str(folder), "pipeline": pipeline}
                runs.append({**of, "ranks": ranks, "port": port})
        child = python(SCRIPT, MASTER_ADDR="127.0.0.1", RUNS=json.dumps(runs))
        output, errors = child.communicate(timeout=540)
    assert child.returncode == 0, errors
    return {tuple(place): found for line in output.splitlines() for *place, found in json.loads(line)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_reads_and_holds_its_stage_alone(kind: str, folders: dict[str, Path], told: Told) -> None:
    reader = CheckpointReader(folders[kind])
    model, alone = reader.files.architecture, told[kind, 1, 0]
    for rank in range(4):
        found = told[kind, 2, rank]
        stage = stages(model, 2)[rank // 2]  # ranks 0 and 1 have the first stage
        layers = [f"model.layers.{layer}." for layer in stage.layers]
        table = ["model.embed_tokens."] * stage.has_embedding(tied=kind == "qwen2-tied")
        parts = (*layers, *table, *["model.norm.", "lm_head."] * stage.last)
        assert found["read"] == sorted(name for name in reader.files.tensors if name.startswith(parts))
        assert found["held"] == stage.parameters(model) < model.parameters
        assert found["logits"] == alone["logits"]
        assert found["filled"]
        assert found["state"] == (alone["state"] if rank == 0 else [])
        assert found["refused"] == ("parallelism.pipeline: 2 stages are more than the model's 1 layer, nearest: 1")
    assert told[kind, 2, 0]["same"]
