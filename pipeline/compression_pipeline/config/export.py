"""The Hugging Face checkpoint that a student ends as."""

from enum import StrEnum

from pydantic import Field

from .base import ConfigModel


class ExportDtype(StrEnum):
    """Type of the exported weights, by Hugging Face's names."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class ExportConfig(ConfigModel):
    """How the student is written, and the proof that what was written is what was trained."""

    dtype: ExportDtype = Field(default=ExportDtype.BFLOAT16, description="Type of the weights.")
    max_shard_size: str = Field(
        default="5GB",
        min_length=3,
        max_length=8,
        pattern=r"^[1-9][0-9]{0,5}(KB|MB|GB)$",
        examples=["5GB"],
        description="Size of one safetensors shard at most, in Hugging Face's units (5GB is 5e9 bytes).",
    )
    sample_prompt: str | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        description="Text that the sample generation continues. Default: the start of a validation document.",
    )
    sample_tokens: int = Field(default=48, ge=1, le=4096, description="Tokens of the sample generation.")
