"""The fused layer in a model: forward, backward, which implementation ran. Needs no extra."""

import torch

from bilinear import Bilinear, BilinearMLP, explain, fuse, reference

layer = Bilinear(64, 32)
mlp = BilinearMLP(64, 32, 16)
x = torch.randn(8, 64, requires_grad=True)
(layer(x).sum() + mlp(x).sum()).backward()
assert x.grad is not None
assert x.grad.isfinite().all()
print(explain(mlp))

model = reference.Model(reference.ModelConfig(p=7, d_hidden=4))
before = model(torch.eye(14))
print(fuse(model))
torch.testing.assert_close(model(torch.eye(14)), before)
q = mlp.interactions(output=3)  # xᵀ Q x is output 3
torch.testing.assert_close(torch.einsum("ni,ij,nj->n", x, q, x), mlp(x)[:, 3], atol=1e-5, rtol=1e-4)
