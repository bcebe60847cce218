"""The status as other versions of the operator write it."""

from compression_operator.api.status import CompressionRunStatus


def test_what_a_newer_operator_wrote_is_read_over() -> None:
    """Rolling back must find every run readable."""
    written = CompressionRunStatus.model_validate(
        {
            "phase": "Distilling",
            "queue": {"position": 3},
            "steps": [
                {
                    "name": "prepare",
                    "phase": "prepare",
                    "state": "Running",
                    "fingerprint": "ab" * 16,
                    "priority": 7,
                    "progress": {"step": 1, "totalSteps": 2, "temperature": 60.5},
                }
            ],
        }
    ).to_json()
    assert written["steps"][0]["progress"] == {"step": 1, "totalSteps": 2}
    assert "queue" not in written and "priority" not in written["steps"][0]
