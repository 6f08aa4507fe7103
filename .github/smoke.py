"""What a new user does first with an installed wheel. Leaves rows.csv for the command line."""

import torch

import convexlift as cl

x = torch.randn(256, 2, generator=torch.Generator().manual_seed(0))
flow = cl.ConvexPotentialFlow([cl.Lift(cl.ICNN(2, hidden=(4, 4), seed=0), seed=0)])
cl.fit(flow, x[:192], validation=x[192:], steps=5, progress=False)
flow = flow.freeze(x[:192])
cl.save(flow, "flow.safetensors")
assert torch.equal(cl.load("flow.safetensors").log_prob(x), flow.log_prob(x))
with open("rows.csv", "w", encoding="utf-8") as rows:
    rows.write("a,b\n" + "\n".join(f"{a},{b}" for a, b in x.tolist()) + "\n")
