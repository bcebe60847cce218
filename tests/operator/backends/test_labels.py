"""Labels by which jobs and their pods are found."""

from compression_operator.backends.pods.jobpods import label_value


def test_a_long_name_fits_a_label() -> None:
    assert label_value("short") == "short"
    long, other = "x" * 54 + "-" + "y" * 30, "x" * 54 + "-" + "z" * 30
    assert len(label_value(long)) <= 63 and label_value(long) != label_value(other)
