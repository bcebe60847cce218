"""What is hidden from a library while it is imported can be imported afterwards."""

import importlib
import subprocess
import sys

import pytest

from compression_pipeline.imports import missing


def test_a_module_is_missing_in_the_block_alone() -> None:
    code = (
        "from compression_pipeline.imports import import_transformers\n"
        "library = import_transformers()\n"
        "assert not library.utils.is_sklearn_available() and not library.utils.is_scipy_available()\n"
        "import sklearn\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_was_imported_before_is_missing_in_the_block_too_and_stays() -> None:
    """What a process imported first must not decide which plugins a library loads."""
    with missing("pytest", "no_such_module"):
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("pytest")
        assert sys.modules["no_such_module"] is None
    assert sys.modules["pytest"] is pytest
    assert "no_such_module" not in sys.modules
