"""Train the demo's teacher: a small Llama, by the project's own prepare and finetune phases, on the teacher's text.

    python examples/demo/corpus.py && python examples/demo/teacher.py            (make demo-teacher)

A byte-level BPE tokenizer is trained on all of the demo's text, a randomly initialized checkpoint is made, and the
finetune phase trains it like any teacher correction, only longer and at a higher learning rate. A run that was stopped
goes on from its last checkpoint. The result is an ordinary Hugging Face checkpoint with bfloat16 weights.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compression_pipeline.config import (
    CONFIG_VARIABLE,
    TERMINATION_VARIABLE,
    DatasetConfig,
    FinetuneConfig,
    FinetuneJob,
    FinetuneResult,
    JobConfig,
    Phase,
    PrepareJob,
    PrepareResult,
    TeacherConfig,
    Termination,
    ValidationConfig,
    fingerprint,
)

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY = 2048
SEQUENCE_LENGTH = 128
BATCH = 16
SEED = 1234


def documents(text: Path) -> Iterator[str]:
    """Every document of the demo's input, both bodies and splits, in a fixed order."""
    for file in sorted(text.glob("*/*.jsonl")):
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)["text"]


def write_tokenizer(text: Path, folder: Path) -> None:
    """Train a byte-level BPE tokenizer of `VOCABULARY` tokens and save it as transformers does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents(text), trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",  # noqa: S106  # a word of the vocabulary, no password
        eos_token="</s>",  # noqa: S106  # likewise
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],  # a Llama's generate() refuses token_type_ids
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


def write_initial_checkpoint(text: Path, folder: Path) -> None:
    """Write the tokenizer and a randomly initialized Llama (1.8 M parameters, tied embeddings) into `folder`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    write_tokenizer(text, folder)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(SEED)
    LlamaForCausalLM(config).save_pretrained(folder)


def initial_checkpoint(text: Path, work: Path) -> Path:
    """The checkpoint that training starts from, made once for each text; it names the work that may be resumed."""
    hashed = hashlib.sha256()
    for file in sorted(text.glob("*/*.jsonl")):
        hashed.update(file.read_bytes())
    folder = work / f"initial-{hashed.hexdigest()[:12]}"
    if not folder.exists():
        work.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=work))
        write_initial_checkpoint(text, draft)
        draft.rename(folder)
    return folder


def run_phase(phase: Phase, job: JobConfig, work: Path) -> dict[str, Any]:
    """Run one phase as a job does, through the launcher, its log on this terminal; returns its result.

    Raises SystemExit with the phase's own sentence and exit code where it fails.
    """
    message = work / f"{phase}-termination.json"
    message.unlink(missing_ok=True)
    environment = os.environ | {CONFIG_VARIABLE: json.dumps(job.to_json()), TERMINATION_VARIABLE: str(message)}
    command = [sys.executable, "-m", "compression_pipeline", phase.value]
    code = subprocess.run(command, env=environment, check=False).returncode  # noqa: S603  # our own module
    if code or not message.exists():
        why = Termination.model_validate_json(message.read_text()).message if message.exists() else "no message"
        print(f"{phase} ended with exit code {code}: {why}", file=sys.stderr)
        raise SystemExit(code or 1)
    termination = Termination.model_validate_json(message.read_text())
    return termination.result or {}


def train(initial: Path, text: Path, work: Path, steps: int) -> tuple[Path, PrepareResult, FinetuneResult]:
    """Train the checkpoint in `initial` with the phases prepare and finetune; returns the folder of the result."""
    store = work / "store"
    store.mkdir(parents=True, exist_ok=True)
    teacher = TeacherConfig(model=f"file:{initial}")
    dataset = DatasetConfig(source=f"file:{text / 'teacher-text'}", sequence_length=SEQUENCE_LENGTH)
    validation = ValidationConfig()
    finetune = FinetuneConfig(
        steps=steps,
        global_batch_size=BATCH,
        micro_batch_size=BATCH,
        learning_rate=4e-3,
        min_learning_rate=2e-4,
        warmup_steps=min(50, steps // 4),
        seed=SEED,
        checkpoint_interval=50,
        log_interval=10,
    )

    def common(step: str, key: str) -> dict[str, Any]:
        attempts = [int(path.name) for path in (store / "work" / key).glob("*") if path.name.isdecimal()]
        attempt = 1 + max(attempts, default=0)  # an attempt's folder is its own; it resumes from earlier ones
        return {"run": "demo-teacher", "step": step, "attempt": attempt, "fingerprint": key, "store": str(store)}

    key = fingerprint("prepare", {"teacher": teacher, "dataset": dataset}, {"initial": initial.name})
    job = PrepareJob(**common("prepare", key), teacher=teacher, dataset=dataset)
    prepared = PrepareResult.model_validate(run_phase(Phase.PREPARE, job, work))

    source = f"prepare-{prepared.key}"
    blocks = {"finetune": finetune, "validation": validation, "sequenceLength": SEQUENCE_LENGTH}
    key = fingerprint("finetune", blocks, {"data": prepared.key, "teacher": prepared.key})
    job = FinetuneJob(
        **common("finetune", key),
        data=source,
        teacher=source,
        sequence_length=SEQUENCE_LENGTH,
        finetune=finetune,
        validation=validation,
    )
    result = FinetuneResult.model_validate(run_phase(Phase.FINETUNE, job, work))
    return store / "artifacts" / f"finetune-{key}" / "model", prepared, result


CARD = """---
license: apache-2.0
language: en
library_name: transformers
---
# The demo's teacher

A Llama of {parameters:,} parameters (8 layers, hidden size 128, feed-forward 384, 8 heads in 4 groups, tied embeddings)
with a byte-level BPE vocabulary of {vocabulary:,} tokens, in bfloat16. It exists to be compressed by `make demo`, and
writes text that looks like Python's documentation without meaning anything. Nothing else should be expected of it.

Made by `make demo-teacher`: the project's own prepare and finetune phases trained it from a random start on the
docstrings of Python {python}'s standard library ({tokens:,} tokens, see `examples/demo/corpus.py`), {steps:,} steps of
{batch} sequences of {length} tokens, AdamW, learning rate 4e-3 to 2e-4 (cosine), seed {seed}. Validation loss on
held-out docstrings: {before:.2f} before, **{after:.3f}** nats per token after.

The text is part of Python, © Python Software Foundation, under the PSF License.

```python
from transformers import pipeline

print(pipeline("text-generation", "examples/demo/teacher")("Return the", max_new_tokens=40)[0]["generated_text"])
```
"""


def publish(model: Path, output: Path, prepared: PrepareResult, result: FinetuneResult, steps: int) -> None:
    """Write the trained model, rounded to bfloat16, its tokenizer and its card into `output`, whole or not at all."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    output.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}-"))
    draft.chmod(0o755)
    trained = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    trained.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=1, pad_token_id=1)
    trained.save_pretrained(draft)
    AutoTokenizer.from_pretrained(model).save_pretrained(draft)
    card = CARD.format(
        parameters=prepared.teacher_parameters,
        vocabulary=VOCABULARY,
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        tokens=prepared.train_tokens,
        steps=steps,
        batch=BATCH,
        length=SEQUENCE_LENGTH,
        seed=SEED,
        before=result.teacher_loss,
        after=result.corrected_teacher_loss,
    )
    (draft / "README.md").write_text(card, encoding="utf-8")
    for file in draft.iterdir():
        file.chmod(0o644)  # safetensors writes for its owner alone
    if output.exists():
        shutil.rmtree(output)
    draft.rename(output)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo's teacher with the project's own phases.")
    parser.add_argument("--steps", type=int, default=1600, help="optimizer steps (%(default)s)")
    parser.add_argument("--text", type=Path, default=ROOT / "out" / "demo-input", help="what corpus.py wrote")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "demo-teacher", help="where it trains and resumes")
    parser.add_argument("--output", type=Path, default=ROOT / "examples" / "demo" / "teacher", help="where it ends")
    arguments = parser.parse_args()
    text, work, output = (path.resolve() for path in (arguments.text, arguments.work, arguments.output))
    if not (text / "teacher-text" / "train.jsonl").exists():
        raise SystemExit(f"{text} has no teacher-text/train.jsonl; run examples/demo/corpus.py first")
    model, prepared, result = train(initial_checkpoint(text, work), text, work, arguments.steps)
    publish(model, output, prepared, result, arguments.steps)
    print(f"{output}: validation loss {result.teacher_loss:.3f} -> {result.corrected_teacher_loss:.3f}")


if __name__ == "__main__":
    main()
