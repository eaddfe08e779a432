"""What the kernel says of busy disks."""

from pathlib import Path

import pytest

from rbee.worker.pressure import io_share


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("some avg10=12.34 avg60=1.00 avg300=0.00 total=5\nfull avg10=99.00 avg60=0.00 avg300=0.00 total=1\n", 12.34),
        ("full avg10=99.00 avg60=0.00 avg300=0.00 total=1\n", None),
        ("", None),
    ],
)
def test_the_share_is_that_of_tasks_that_waited(tmp_path: Path, text: str, share: float | None) -> None:
    (tmp_path / "io").write_text(text)
    assert io_share(tmp_path / "io") == share


def test_a_kernel_that_does_not_tell_is_no_error(tmp_path: Path) -> None:
    assert io_share(tmp_path / "io") is None
