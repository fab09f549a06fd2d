"""The installed packages against requirements: each fault has a reason and what to do."""

from importlib import metadata

import pytest

from tools.packages import compare_packages, satisfies


@pytest.mark.parametrize(
    ("version", "requirement", "met"),
    [
        ("2.13.0+cpu", "torch>=2.13", True),
        ("2.9.1", "torch>=2.13", False),
        ("3.0", "torch>=2.13", True),
        ("3.7.1", "triton==3.7.1; platform_system == 'Linux'", True),
        ("3.7", "triton==3.7.1", False),
        ("3.7.0", "triton==3.7", True),
        ("1.0", "tqdm", True),
    ],
)
def test_satisfies(version, requirement, met):
    assert satisfies(version, requirement) is met


def test_a_requirement_beyond_the_check_is_not_passed_over():
    with pytest.raises(ValueError, match="beyond this check"):
        satisfies("1.0", "numpy<2,>=1")


def test_packages(monkeypatch):
    """One too old, one missing, one other than tested, and Triton of another torch."""
    versions = {"torch": "2.12.0", "numpy": "2.0.0", "triton": "3.7.1"}

    def version(name: str) -> str:
        if name == "tqdm":
            raise metadata.PackageNotFoundError(name)
        return versions.get(name) or real(name)

    real = metadata.version
    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(metadata, "requires", lambda name: ["numpy", 'triton==3.6.0; platform_system == "Linux"'])
    faults, untested, _ = compare_packages()
    assert faults[0] == "torch 2.12.0 is installed, but torch>=2.13 is needed: make setup"
    assert faults[1] == "tqdm is not installed: make setup" and len(faults) == 3
    assert faults[2] == "triton 3.7.1 is installed, but this torch's triton==3.6.0 is needed: pip install it"
    assert "numpy 2.0.0 (2.4.6)" in untested and not any("triton" in text for text in untested)


def test_only_a_build_for_cuda_needs_triton(monkeypatch):
    def faults(*needed: str) -> list[str]:
        monkeypatch.setattr(metadata, "requires", lambda name: ["numpy", *needed])
        return compare_packages()[0]

    real = metadata.version

    def version(name: str) -> str:
        if name == "triton":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    assert faults() == []
    assert faults('triton==3.7.1; platform_system == "Linux"') == ["triton is not installed: make setup"]
