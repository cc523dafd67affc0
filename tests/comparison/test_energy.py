import sys
from types import SimpleNamespace

import pytest

from toolkit.comparison import EnergyMeter


def domain(folder, counter, largest=1_000_000):
    folder.mkdir(parents=True)
    (folder / "energy_uj").write_text(f"{counter}\n")
    (folder / "max_energy_range_uj").write_text(f"{largest}\n")
    return folder


def test_packages_are_added_up_and_full_counters_start_again(tmp_path):
    first, second = domain(tmp_path / "intel-rapl:0", 900_000), domain(tmp_path / "intel-rapl:1", 0)
    domain(tmp_path / "intel-rapl:0:0", 5)
    with EnergyMeter(powercap=tmp_path) as meter:
        (first / "energy_uj").write_text("99999\n")
        (second / "energy_uj").write_text("300000\n")
        (tmp_path / "intel-rapl:0:0" / "energy_uj").write_text("999\n")
    assert meter.source == "rapl"
    assert meter.joules == pytest.approx(0.2 + 0.3)


def test_nothing_is_told_where_nothing_can_be_read(tmp_path):
    (domain(tmp_path / "intel-rapl:0", 0) / "energy_uj").unlink()
    for powercap in (tmp_path, tmp_path / "nowhere"):
        with EnergyMeter(powercap=powercap) as meter:
            pass
        assert (meter.joules, meter.source) == (None, "not told")


def test_a_gpu_tells_its_own_counter(monkeypatch):
    readings = iter([1_000, 1_000, 251_000])
    fake = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(readings),
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    with EnergyMeter(gpu=1) as meter:
        pass
    assert (meter.joules, meter.source) == (250.0, "nvml")

    def broken():
        raise RuntimeError("no driver")

    fake.nvmlInit = broken
    with EnergyMeter(gpu=0) as meter:
        pass
    assert (meter.joules, meter.source) == (None, "not told")
