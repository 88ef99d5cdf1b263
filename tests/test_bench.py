"""The benchmark harness: rows with every field, sides that are really compared, the command."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import fastscore
from fastscore.apps.bench import checks, names, report, suite
from fastscore.apps.bench.case import (
    Agreement,
    Candidate,
    Case,
    Disagreement,
    NotAvailable,
    Side,
    Work,
    library,
    peer,
)
from fastscore.apps.bench.cases import langevin, scaling
from fastscore.apps.bench.machine import machine
from fastscore.apps.bench.measure import Effort, Measurement, measure
from fastscore.apps.bench.memory import peak_bytes
from fastscore.apps.bench.peers import eager, papers
from fastscore.apps.cli import main

EFFORT = Effort(quick=True)
EFFORT.case_seconds, EFFORT.block_seconds, EFFORT.fewest_turns = 0.01, 1e-4, 3
WHERE = machine() | {"keeps_freed_memory": False}
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SEVERAL = ("predictor_corrector_step", "rk45_step")  # names of ops at work together
FIELDS = {
    "op", "family", "shape", "dtype", "device", "params", "axis", "at", "threads", "quick", "cpu",
    "cores", "cpu_capability", "gpu", "versions", "date", "provider", "role", "status", "seconds",
    "turns", "calls", "clock", "ratios", "bytes", "bytes_per_second", "share_of_limit",
    "operations", "operations_per_second", "peak_operations_per_second", "share_of_peak",
    "peak_memory", "agreement", "network_share", "keeps_freed_memory",
}  # fmt: skip


def small(case: Case) -> Case:
    """The same without peers that take long to compile or that may not be installed."""
    slow = {"compile", "jax", "torchebm", "blackjax", "torchdiffeq", "torchode"}
    keep = tuple(c.provider for c in case.build(case).candidates if c.provider not in slow)
    return dataclasses.replace(case, providers=keep)


def candidates(*names: str) -> list[Candidate]:
    """Sides that do nothing, of roles that go with their names."""
    roles = {"fastscore": "library", "triad": "limit", "network": "network"}
    return [
        Candidate(name, roles.get(name, "peer"), lambda: Side(lambda: None, bytes=100))
        for name in names
    ]


def rows_of(times: dict[str, list[float]]) -> dict[str, dict]:
    """The rows, by provider, of sides that took these times."""
    case = Case("wait", "langevin", lambda _: Work(candidates(*times)), (5,))
    with Measurement(case, EFFORT, {}) as measurement:
        for entrant in measurement.entrants:
            entrant.times = times[entrant.provider]
        return {row["provider"]: row for row in measurement.rows()}


# ---- rows ----------------------------------------------------------------------------------------

QUICK = [case for case in suite.all_cases("cpu", quick=True) if case.axis in (None, "overhead")]


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_sides_agree_and_rows_have_every_field(case):
    rows = measure(small(case), EFFORT, WHERE)
    assert rows[0]["provider"] == "fastscore"
    for row in rows:
        assert set(row) == FIELDS
        quantiles = row["seconds"]
        assert 0 < quantiles["p20"] <= quantiles["p50"] <= quantiles["p80"]
        assert row["turns"] >= EFFORT.fewest_turns
        if row["role"] in ("library", "peer") and row["provider"] != "DSM step":
            agreement = row["agreement"]
            assert agreement["error"] <= agreement["tolerance"], row["provider"]
    ours = rows[0]
    assert set(ours["ratios"]) == {row["provider"] for row in rows[1:]}
    if ours["family"] == "jobs":
        assert ours["network_share"] > 0


def test_rows_follow_from_the_times():
    turns = {
        "fastscore": [1.0, 2.0, 4.0],
        "eager": [3.0, 4.0, 20.0],
        "other": [9.0] * 3,
        "triad": [0.5, 0.5, 0.5],
    }
    rows = rows_of(turns)
    ours, theirs, triad = rows["fastscore"], rows["eager"], rows["triad"]
    assert ours["seconds"] == pytest.approx({"p20": 1.4, "p50": 2.0, "p80": 3.2})
    # Turn by turn 3, 2 and 5, whatever the medians of the times.
    assert ours["ratios"]["eager"] == pytest.approx({"p20": 2.4, "p50": 3.0, "p80": 4.2})
    assert theirs["ratios"]["fastscore"]["p50"] == pytest.approx(1 / 3)
    assert set(ours["ratios"]) == {"eager", "other", "triad"}
    assert set(theirs["ratios"]) == {"fastscore"}
    assert ours["bytes_per_second"] == 100 / 2.0
    assert triad["bytes_per_second"] == 100 / 0.5
    assert ours["share_of_limit"] == {"triad": 0.25}
    assert triad["share_of_limit"] == {}
    assert ours["turns"] == 3


def test_the_network_share_is_the_networks_part_of_each_side():
    rows = rows_of({"fastscore": [10.0] * 3, "eager": [20.0] * 3, "network": [5.0] * 3})
    assert rows["fastscore"]["network_share"] == 0.5
    assert rows["eager"]["network_share"] == 0.25


def test_sides_take_turns():
    order = []

    def side(name):
        return lambda: Side(lambda: (order.append(name), time.sleep(0.02)))

    def build(_):
        return Work([library(side("fastscore")), peer("a", side("a")), peer("b", side("b"))])

    with Measurement(Case("wait", "langevin", build, (1,)), EFFORT, {}) as measurement:
        order.clear()
        measurement.run()
    assert order[:6] == ["a", "b", "fastscore", "b", "a", "fastscore"]


def test_threads_are_set_and_restored():
    before = torch.get_num_threads()
    seen = []

    def build(_):
        seen.append(torch.get_num_threads())
        return Work([library(lambda: Side(lambda: None))])

    rows = measure(Case("wait", "langevin", build, (1,), threads=before + 1), EFFORT, {})
    assert seen == [before + 1]
    assert rows[0]["threads"] == before + 1
    assert torch.get_num_threads() == before


# ---- what is not there, what is wrong ------------------------------------------------------------


def test_absent_peers_are_reported():
    def missing():
        import a_package_that_is_not_installed  # noqa: F401

    def refusing():
        raise NotAvailable("it has no GPU")

    def build(_):
        more = [peer("missing", missing), peer("refusing", refusing)]
        return Work([*candidates("fastscore"), *more])

    case = Case("wait", "langevin", build, (1,))
    _, missing_row, refusing_row = measure(case, EFFORT, {})
    assert missing_row["status"] == "not installed"
    assert refusing_row["status"] == "not available: it has no GPU"
    assert refusing_row["seconds"] is None


def test_the_library_must_be_there():
    def refusing():
        raise ImportError("no library")

    case = Case("x", "langevin", lambda _: Work([library(refusing)]), (1,))
    with pytest.raises(ImportError, match="no library"):
        measure(case, EFFORT, {})


@pytest.mark.parametrize("provider", ["fastscore", "eager"])
@pytest.mark.parametrize("error", [2.0, math.nan])
def test_a_side_that_disagrees_stops_the_run(provider, error):
    def build(_):
        bad = Side(lambda: None, check=lambda: Agreement("reference", error, 1.0))
        good = Side(lambda: None)
        return Work(
            [
                library(lambda: bad if provider == "fastscore" else good),
                peer("eager", lambda: bad if provider == "eager" else good),
            ]
        )

    with pytest.raises(Disagreement, match=f"{provider} does not compute the same"):
        measure(Case("x", "langevin", build, (1,)), EFFORT, {})


WRONG = {
    "a forgotten score": (eager, "langevin_step_", lambda x, s, b, c: x.normal_(0, c)),
    "noise of the wrong size": (
        eager,
        "langevin_step_",
        lambda x, s, b, c: x.add_(s, alpha=b).add_(torch.randn_like(x), alpha=1.05 * c),
    ),
    "a step ten percent too long": (
        eager,
        "langevin_step_",
        lambda x, s, b, c: x.add_(s, alpha=1.1 * b).add_(torch.randn_like(x), alpha=c),
    ),
    "noise that is the same again": (
        papers,
        "dsm_perturb",
        lambda x, sigmas: (x, torch.zeros(len(x), dtype=torch.int64), sigmas[:1].reshape(-1, 1)),
    ),
    "a missing half": (
        papers,
        "sliced_terms",
        lambda s, j, v: ((v * j).sum(-1), (v * s).sum(-1).square(), s.square().sum(-1) / 2),
    ),
    "a wrong slope": (eager, "DUALS", {"silu": lambda h, t: (h * h.sigmoid(), h.sigmoid() * t)}),
    "a full step for a half": (
        papers,
        "ncsn_annealed_langevin",
        lambda model, sigmas, x, steps, size: (
            eager.annealed_langevin(model, sigmas, x, steps, size / 2), []
        ),
    ),
}  # fmt: skip
OPS = ["langevin_step_"] * 3 + ["dsm_loss", "sliced_terms", "dual", "annealed_langevin"]


@pytest.mark.parametrize(("name", "op"), list(zip(WRONG, OPS, strict=True)))
def test_the_checks_find_a_wrong_peer(name, op, monkeypatch):
    module, attribute, wrong = WRONG[name]
    case = next(case for case in QUICK if case.op == op and case.axis is None)
    if op == "dsm_loss":
        case = dataclasses.replace(case, shape=(64, 64))
    monkeypatch.setattr(module, attribute, wrong)
    with pytest.raises(Disagreement):
        measure(small(case), EFFORT, {})


def test_the_checks_find_a_wrong_library(monkeypatch):
    right = langevin.ops.langevin_step_

    def wrong(x, score, table, key, **options):
        return right(x, score, table * torch.tensor([1, 1, 1.05, 1]), key, **options)

    monkeypatch.setattr(langevin.ops, "langevin_step_", wrong)
    with pytest.raises(Disagreement, match="fastscore"):
        measure(small(QUICK_STEP), EFFORT, {})


QUICK_STEP = next(case for case in QUICK if case.op == "langevin_step_" and case.axis is None)


# ---- checks --------------------------------------------------------------------------------------


def test_statistics_pass_what_is_right_and_fail_what_is_not():
    torch.manual_seed(0)
    z = torch.randn(2**16)
    assert checks.standard_normal(z, torch.randn(2**16)).holds
    for wrong in (
        z + 0.05,
        z * 1.05,
        z.clamp(-1.5, 1.5) * 1.2,
        z.sort().values,
        torch.zeros(2**10),
    ):
        assert not checks.standard_normal(wrong).holds
    assert not checks.standard_normal(z, z + torch.randn(2**16)).holds
    assert not checks.standard_normal(z * math.nan).holds
    assert checks.uniform(torch.rand(2**16)).holds
    assert not checks.uniform(torch.rand(2**16) * 0.95).holds
    assert not checks.uniform(torch.rand(2**16) - 0.1).holds
    assert checks.signs(z.sign()).holds
    assert not checks.signs((z + 0.1).sign()).holds
    assert not checks.signs(z).holds
    assert checks.same_mean(z, torch.randn(2**12)).holds
    assert not checks.same_mean(z, torch.randn(2**12) + 0.2).holds


def test_the_worst_agreement_is_the_one_reported():
    fine, tight = Agreement("reference", 1.0, 10.0), Agreement("statistics", 5.0, 6.0)
    bad, nan = Agreement("reference", 2.0, 1.0), Agreement("reference", math.nan, 1.0)
    assert checks.worst(fine, tight) is tight
    assert checks.worst(fine, bad, tight) is bad
    assert checks.worst(bad, nan) is nan


def test_the_rule_of_twice_the_reference_error():
    exact = torch.rand(1000, dtype=torch.float64)
    rounded = exact.float()
    assert checks.against_reference(rounded, rounded, exact).holds
    assert not checks.against_reference(rounded + 1e-6, rounded, exact).holds
    assert checks.against_reference(rounded[:0], rounded[:0], exact[:0]).holds
    assert not checks.against_reference(rounded[:9], rounded, exact).holds


def test_peak_memory():
    assert peak_bytes(lambda: torch.empty(1000), "cpu") == 4000
    assert peak_bytes(lambda: torch.empty(1000).add_(1).sum() + 1, "cpu") < 4200


# ---- command, files, plots -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The rows of ``fastscore bench --quick --op dual``, and of a scaled op."""
    out = tmp_path_factory.mktemp("bench") / "rows"
    options = ["--quick", "--device", "cpu", "--out", str(out)]
    assert main(["bench", *options, "--op", "dual"]) == 0
    return out


def test_command_writes_rows(results, capsys):
    content = json.loads((results / "cpu.json").read_text())
    rows = content["rows"]
    assert {row["op"] for row in rows} == {"dual", "dual_with_grad"}
    assert all(row["quick"] for row in rows)
    assert report.read_rows([results / "cpu.json"]) == rows
    assert all(set(row) == FIELDS for row in rows)
    versions = rows[0]["versions"]
    assert versions["torch"] == torch.__version__
    assert {"fastscore", "python", "numpy", "jax", "torchebm", "blackjax"} <= set(versions)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--op", "nonsense"], "--op must be one of"),
        (["--device", "tpu"], "--device must be one of"),
        (["--out", "missing/out"], "the directory missing does not exist"),
    ],
)
def test_command_says_what_is_wrong_before_any_work(
    options, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(suite, "measure", lambda *_: pytest.fail("work done"))
    assert main(["bench", "--quick", "--out", "out", *options]) == 2
    assert message in capsys.readouterr().err


def test_rows_are_kept_when_a_later_side_disagrees(tmp_path, monkeypatch, capsys):
    right = suite.measure
    calls = []

    def second_fails(case, effort, where):
        calls.append(case)
        if len(calls) > 1:
            raise Disagreement("the second case")
        return right(small(case), EFFORT, where)

    monkeypatch.setattr(suite, "measure", second_fails)
    out = tmp_path / "out"
    assert main(["bench", "--quick", "--device", "cpu", "--op", "random", "--out", str(out)]) == 2
    assert "the second case" in capsys.readouterr().err
    assert {row["op"] for row in report.read_rows([out / "cpu.json"])} == {"normal_"}


def test_a_case_too_large_for_the_machine_is_left_out():
    case = dataclasses.replace(QUICK_STEP, memory_bytes=2**60)
    said = []
    rows = []
    suite.measure_all([case], rows, quick=True, say=said.append)
    assert rows == []
    assert said[0].startswith("left out: langevin_step_")


def test_every_case_has_a_name_of_its_own():
    for quick in (False, True):
        found = [(case.family, case.name) for case in suite.all_cases("cpu", quick=quick)]
        assert len(set(found)) == len(found)


def test_every_name_is_a_public_function_and_said_what_it_is():
    cases = [case for quick in (True, False) for case in suite.all_cases("cpu", quick=quick)]
    cases += [case for quick in (True, False) for case in scaling.capability_cases(quick)]
    assert {case.op for case in cases} == set(names.OPS)
    assert {case.family for case in cases} | set(suite.SOURCES) == set(names.FAMILIES)
    for name in names.OPS:
        function = re.sub(r"^(sample|train)_|_with_grad$", "", name)
        assert function in (*fastscore.__all__, *fastscore.ops.__all__, *SEVERAL), name


def test_list_prints_every_name_and_does_no_work(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(suite, "measure", lambda *_: pytest.fail("work done"))
    assert main(["bench", "--list"]) == 0
    printed = capsys.readouterr().out
    for name, line in (names.FAMILIES | names.OPS).items():
        assert re.search(rf"^ +{re.escape(name)} +{re.escape(line)}$", printed, re.M)
    assert max(map(len, printed.splitlines())) <= 110
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="needs the checkout")
def test_the_notes_name_every_op_and_so_do_the_results():
    text = (BENCHMARKS / "README.md").read_text()
    assert all(f"| `{name}` | " in text for name in names.OPS)
    assert all(f"`{name}`" in text for name in names.FAMILIES)
    found = {row["op"] for row in report.read_rows((BENCHMARKS / "results").glob("cpu-*.json"))}
    assert found == set(names.OPS)


def test_the_legend_comes_once_before_the_rows_and_explains_every_column(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "measure", lambda case, *_: measure(small(case), EFFORT, WHERE))
    said = []
    ops = ["normal_", "dsm_residual", "train_dsm_loss"]
    suite.run_bench(tmp_path / "out", ops=ops, device="cpu", quick=True, say=said.append)
    assert said[0] == report.LEGEND
    assert said.count(report.LEGEND) == 1
    rows = "\n".join(said[1:])
    columns = ("GB/s", "times faster", "% of read", "% of the peak of multiplications", "network ")
    assert all(column in rows for column in columns)
    assert all(column in report.LEGEND for column in columns if column != "% of read")
    assert max(map(len, report.LEGEND.splitlines())) <= 100


def test_other_json_is_refused(tmp_path):
    path = tmp_path / "other.json"
    path.write_text('{"rows": []}')
    with pytest.raises(ValueError, match="not a file of benchmark rows"):
        report.read_rows([path])


pytest_benchmark = pytest.mark.skipif(
    importlib.util.find_spec("pytest_benchmark") is None or not BENCHMARKS.is_dir(),
    reason="needs pytest-benchmark and the checkout",
)


@pytest_benchmark
def test_pytest_suite_writes_rows_and_plot_draws_them(tmp_path):
    command = [sys.executable, "-m", "pytest", "-c", BENCHMARKS / "pytest.ini"]
    command += [BENCHMARKS / "bench_scaling.py", "--quick", "--device", "cpu", "--out", tmp_path]
    command += ["-k", "overhead or elements:256 or steps", "--benchmark-json", tmp_path / "p.json"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    rows = report.read_rows([tmp_path / "cpu-scaling.json"])
    assert {"overhead", "elements", "steps"} <= {row["axis"] for row in rows}
    theirs = json.loads((tmp_path / "p.json").read_text())["benchmarks"]
    assert all(each["extra_info"]["calls_per_round"] >= 1 for each in theirs)

    plot = [sys.executable, BENCHMARKS / "plot.py", tmp_path / "cpu-scaling.json"]
    subprocess.run(list(map(str, plot)), check=True, capture_output=True, text=True)
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert {"cpu-overhead.png", "cpu-elements.png", "cpu-steps.png"} <= drawn
    text = (tmp_path / "TABLE.md").read_text()
    assert "Quick run: not to be quoted" in text
    assert "langevin_step_" in text
