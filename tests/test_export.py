from __future__ import annotations

import io
import zipfile

import pytest
import torch
from torch import Tensor

from convexlift import ICNN, ConvexPotentialFlow, Lift, Softplus
from convexlift.export import log_prob_program


def data(dim: int, dtype: torch.dtype, n: int = 600) -> Tensor:
    x = torch.randn(n, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (x @ torch.linspace(-1, 3, dim * dim, dtype=torch.float64).reshape(dim, dim) + x + 10).to(dtype)


def trained(source=Softplus, dtype: torch.dtype = torch.float64, dim: int = 3) -> ConvexPotentialFlow:
    torch.manual_seed(0)
    nets = [ICNN(dim, hidden=(8, 8), quadratic_rank=2 * k, skip=k > 0, seed=k) for k in range(2)]
    flow = ConvexPotentialFlow([source(net) for net in nets]).to(dtype)
    flow.initialise(data(dim, dtype))
    return flow


def written_and_read(program: torch.export.ExportedProgram) -> torch.nn.Module:
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


@pytest.mark.parametrize(
    ("source", "dtype", "tolerance"),
    [(Softplus, torch.float64, 1e-12), (Lift, torch.float32, 1e-6)],
    ids=["softplus-float64", "lift-float32"],
)
def test_the_program_is_the_log_density_for_every_number_of_rows(source, dtype, tolerance):
    x = data(3, dtype)
    frozen = trained(source, dtype).freeze(x)
    log_prob = written_and_read(log_prob_program(frozen))
    for n in (0, 1, 2, 7, 600, 5000):  # 5000 rows are two of the flow's own chunks
        rows = x.repeat(9, 1)[:n]
        out, expected = log_prob(rows), frozen.log_prob(rows)
        assert out.shape == (n,) and out.dtype == dtype and not out.requires_grad
        assert torch.allclose(out, expected, rtol=tolerance, atol=tolerance)
    with pytest.raises((AssertionError, RuntimeError), match="3"):
        log_prob(x[:, :2])


def test_a_row_that_overflows_stays_as_it_is_among_others():
    frozen = trained(dtype=torch.float32).freeze()
    log_prob = log_prob_program(frozen).module()
    x = data(3, torch.float32)[:4]
    x[2] = 1e30
    out = log_prob(x)
    assert torch.isfinite(out).tolist() == [True, True, False, True]


def test_a_program_holds_no_data():
    program = log_prob_program(trained().freeze())
    file = io.BytesIO()
    torch.export.save(program, file)
    (example,) = program.example_inputs[0]
    assert torch.count_nonzero(example) == 0
    with zipfile.ZipFile(file) as archive:
        assert sum(entry.file_size for entry in archive.infolist()) < 1_000_000


def test_what_cannot_be_exported():
    message = r"^this flow is still in training: export flow.freeze\(data\)$"
    for flow in (trained(), trained(Lift), trained(Lift).requires_grad_(False)):
        with pytest.raises(ValueError, match=message):
            log_prob_program(flow)
    with pytest.raises(TypeError, match="^expected a ConvexPotentialFlow; got ICNN$"):
        log_prob_program(ICNN(2, hidden=(4,)))
