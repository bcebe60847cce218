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

    dtype: ExportDtype = Field(default=ExportDtype.BFLOAT16, description="Data type of the exported weights.")
    max_shard_size: str = Field(
        default="5GB",
        min_length=3,
        max_length=8,
        pattern=r"^[1-9][0-9]{0,5}(KB|MB|GB)$",
        examples=["5GB"],
        description="Maximum size of one safetensors file, in Hugging Face's units (5GB is 5e9 bytes).",
    )
    sample_prompt: str | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        description="Prompt of the sample text. Default: the start of a validation document.",
    )
    sample_tokens: int = Field(default=48, ge=1, le=4096, description="Length of the sample text, in tokens.")
