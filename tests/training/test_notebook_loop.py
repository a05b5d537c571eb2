"""The notebook's training loop."""

from bilinear.reference import ModelConfig
from bilinear.training.notebook_loop import train_notebook


def test_notebook_loop_stops_at_the_first_perfect_epoch() -> None:
    seen: list[float] = []
    result = train_notebook(
        ModelConfig(5, 16), batch_size=4, epochs=300, lr=1e-2, weight_decay=0.1,
        on_epoch=lambda epoch, acc: seen.append(acc),
    )  # fmt: skip
    assert result.val_acc == seen
    assert seen[-1] == 1.0 or result.epochs == 300
    assert all(acc < 1 for acc in seen[:-1])
    assert result.steps == result.epochs * (18 // 4)
    assert result.train_loss[-1] < 0.5 * result.train_loss[0]
    again = train_notebook(ModelConfig(5, 16), batch_size=4, epochs=300, lr=1e-2, weight_decay=0.1)
    assert again.val_acc == seen
