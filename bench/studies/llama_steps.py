"""Trains a small Llama with and without `fuse`; compares losses and memory.

    python -m bench.studies.llama_steps

Takes 50 steps of AdamW in float32 on batches of 8 x 128 tokens. Each way starts from the same
weights in a process of its own. `saved`: bytes saved for backward, parameters excluded. `peak`: the
most bytes that PyTorch has allocated at once during a forward and backward. `resident`: growth of
the process's peak resident memory over the 50 steps, including the optimizer's state and
allocations by compiled code. Writes bench/results/llama_steps.json.
"""

import resource
from typing import Any

import torch

from bench.measure.environment import write_result
from bench.measure.turns import process_of_its_own
from bench.suites.bench_layer import saved_bytes
from bench.suites.bench_memory import most_allocated
from bilinear import fuse

STEPS = 50
SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
WAYS = {"as it comes": None, "fused": False, "fused, recompute": True}


def run(way: str) -> dict[str, Any]:
    import transformers

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).train()
    recompute = WAYS[way]
    if recompute is not None:
        fuse(model, strict=True, recompute=recompute)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(1)
    # Each sequence counts up, so that the model can learn it.
    starts = torch.randint(512, (STEPS, 8, 1), generator=generator)
    batches = (starts + torch.arange(128)) % 512

    def loss(ids: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return model(input_ids=ids, labels=ids).loss

    def backward() -> None:
        loss(batches[0]).backward()

    saved = saved_bytes(loss, [batches[0], *model.parameters()])
    peak = most_allocated(backward)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    losses = []
    for ids in batches:
        optimizer.zero_grad()
        made = loss(ids)
        made.backward()
        optimizer.step()
        losses.append(made.item())
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"saved": saved, "peak": peak, "resident": (after - before) * 1024}
    return found | {"losses": losses}


def main() -> None:
    found = {}
    for way in WAYS:
        with process_of_its_own(keep_memory=False) as process:
            found[way] = process.submit(run, way).result()
    want = found["as it comes"]["losses"]
    for way, one in found.items():
        losses = one.pop("losses")
        apart = max(abs(a / b - 1) for a, b in zip(losses, want, strict=True))
        one |= {"first_loss": losses[0], "last_loss": losses[-1], "losses_apart": apart}
        memory = ", ".join(f"{name} {one[name] / 1e6:.1f} MB" for name in ("saved", "peak"))
        print(f"{way}: {memory}, resident +{one['resident'] / 1e6:.0f} MB; "
              f"loss {losses[0]:.4f} to {losses[-1]:.4f}, apart {apart:.1e}")  # fmt: skip
    write_result("llama_steps", {"command": "python -m bench.studies.llama_steps", "ways": found})


if __name__ == "__main__":
    main()
