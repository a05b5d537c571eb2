"""A Llama whose MLPs are bilinear: trained fused, exported and read. Needs transformers.

Its activation is "linear", which transformers provides, so the exported model loads without this
library and without custom code.
"""

import tempfile

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import bilinear

# A model of 1.4 B parameters: hidden_size 2048, intermediate_size 5632, 24 layers of 16 heads.
config = LlamaConfig(
    hidden_act="linear",
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    vocab_size=97,
)
model = AutoModelForCausalLM.from_config(config)
print(bilinear.fuse(model, strict=True))

optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
ids = torch.arange(64).reshape(4, 16)
losses = []
for _ in range(20):
    loss = model(input_ids=ids, labels=ids).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(f"loss: {losses[0]:.2f}, then {losses[-1]:.2f}")

with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
torch.testing.assert_close(loaded(ids).logits, model(ids).logits)

mlp = model.model.layers[0].mlp
q = mlp.interactions(output=3)  # the quadratic form that output 3 of this MLP is
x = torch.randn(5, config.hidden_size)
torch.testing.assert_close(torch.einsum("ni,ij,nj->n", x, q, x), mlp(x)[:, 3], atol=1e-5, rtol=1e-4)
print(f"eigenvalues of output 3: {torch.linalg.eigvalsh(q)[[0, -1]].tolist()}")
