"""Programs that some tests run for real."""

import os
import shutil

import pytest


def require_program(name: str) -> str:
    """Path of a program. Where it is missing the test is skipped loudly, and on a CI machine it fails."""
    found = shutil.which(name)
    if found:
        return found
    message = f"THE PROGRAM {name!r} IS NOT INSTALLED: what this test holds is NOT checked on this machine"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
