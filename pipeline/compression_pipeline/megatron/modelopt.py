"""ModelOpt, imported late and lightly, and taught what it lacks for Megatron's local layer spec.

Import ModelOpt's modules only inside a `modelopt()` block. What it prints there is dropped: stdout is a job's channel,
and what it has to say (whole tensors, layer by layer) the artifacts say better. Its warnings pass.
"""

import contextlib
import importlib
import io
import warnings
from collections.abc import Iterator

from compression_pipeline.imports import missing

from . import private

OPTIONAL = ("transformers", "diffusers", "peft", "accelerate", "deepspeed")
"""Libraries that ModelOpt has plugins for and does without where they are not installed."""


@contextlib.contextmanager
def modelopt() -> Iterator[None]:
    """Use ModelOpt's pruning and distillation of Megatron models inside this block."""
    with contextlib.redirect_stdout(io.StringIO()):
        import_modelopt()
        yield


def import_modelopt() -> None:
    """The first import of ModelOpt, without its plugins for other libraries and its complaints about versions."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        # ModelOpt's plugins for Hugging Face models would import transformers, datasets and torch's compiler: 4 of 6
        # seconds, for nothing here.
        stack.enter_context(missing(*OPTIONAL))
        importlib.import_module("modelopt.torch.prune.plugins.mcore_minitron")
        importlib.import_module("modelopt.torch.distill.plugins.megatron")
    private.register_norms()
