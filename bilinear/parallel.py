"""The layer under tensor parallelism: each rank holds both factors of its share of the products.

For `torch.distributed.tensor.parallel.parallelize_module`. Of n ranks, each holds d_hidden / n rows
of W_l, the same rows of W_r and the same columns of W_p, runs the ordinary fused layer on them, and
the outputs are summed: one all-reduce forward, and one backward for the gradient of x.

Sharding the packed weight by its rows would separate the factors of every product: the first ranks
would hold rows of W_l alone, the last ones rows of W_r. So it is sharded as (2, d, d_in) on dim 1,
and each rank has the same rows of both.
"""

from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle
from torch.distributed.tensor.placement_types import Placement

from bilinear.functional import bilinear, bilinear_mlp
from bilinear.layer.modules import Bilinear, BilinearMLP, has_hooks


def plan(model: nn.Module) -> dict[str, ParallelStyle]:
    """How to parallelize every `BilinearMLP` and `Bilinear` in a model: a style by module name.

    `parallelize_module(model, mesh, plan(model))` then computes what the model did, with inputs and
    outputs whole on each rank. Other modules are not sharded unless you add styles for them to the
    dict. Parallelize before `fully_shard`, DDP or `torch.compile`; modules that `fuse` replaced are
    not sharded.

    Raises:
        TypeError: `model` is no module.
        ValueError: no such layer is in the model.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    styles: dict[str, ParallelStyle] = {}
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if module in inside or not isinstance(module, (Bilinear, BilinearMLP)):
            continue
        inside.update(module.modules())
        styles[name] = PairParallel(output_layouts=Replicate())
    if not styles:
        raise ValueError(
            f"model: expected a Bilinear or a BilinearMLP in it, got {type(model).__name__} "
            "with none"
        )
    return styles


class PairParallel(ParallelStyle):
    """Shard a `BilinearMLP` by its hidden products, or a `Bilinear` by its outputs.

    `input_layouts`: the placement of x (…, d_in); by default it is whole on each rank.
    `output_layouts`: the placement of the output; by default whole on each rank for a
    `BilinearMLP`, and for a `Bilinear` (…, d / n) on each, the input of a `RowwiseParallel` after.
    With `use_local_output` the output is an ordinary tensor, otherwise a DTensor.

    The parameters `weight` and `bias` of the packed layer become (2, d, d_in) and (2, d) DTensors;
    `state_dict` has the unsharded shapes, (2·d, d_in) and (2·d,). It holds copies, which all ranks
    make together: after reading a checkpoint into it, call `load_state_dict`, which
    accepts whole tensors as well. An optimizer's state has the parameters' shapes. `fully_shard`,
    which shards dim 0 by default, splits them among two ranks at most.

    Raises, when it is applied:
        TypeError: the module is neither of the two.
        ValueError: the mesh isn't one-dimensional, or its ranks don't divide the products.
    """

    def __init__(
        self,
        *,
        input_layouts: Placement | None = None,
        output_layouts: Placement | None = None,
        use_local_output: bool = True,
    ) -> None:
        """Choose the layouts of the input and the output."""
        super().__init__()
        self.input_layouts = input_layouts
        self.output_layouts = output_layouts
        self.use_local_output = use_local_output

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if device_mesh.ndim != 1:
            raise ValueError(f"device_mesh: expected one dimension, got {device_mesh.ndim}")
        if type(module) is BilinearMLP:
            self._shard_packed(module.bi_linear, "d_hidden", device_mesh)
            projection = module.projection
            self._shard(projection, "weight", projection.weight, Shard(1), device_mesh)
            self._shard(projection, "bias", projection.bias, Replicate(), device_mesh)
            module.__class__ = ShardedBilinearMLP
            default: Placement = Replicate()
        elif type(module) is Bilinear:
            self._shard_packed(module, "d_out", device_mesh)
            default = Shard(-1)
        else:
            raise TypeError(
                f"module: expected Bilinear or BilinearMLP, got {type(module).__name__}"
            )
        assert isinstance(module, (ShardedBilinear, ShardedBilinearMLP))
        module.layouts = (self.input_layouts or Replicate(), self.output_layouts or default)
        module.use_local_output = self.use_local_output
        return module

    def _shard_packed(self, module: Bilinear, width: str, mesh: DeviceMesh) -> None:
        if module.d_out % mesh.size():
            raise ValueError(
                f"{width}: expected a multiple of the {mesh.size()} ranks, got {module.d_out}"
            )
        for name in ("weight", "bias"):
            packed = getattr(module, name)
            pairs = None if packed is None else packed.unflatten(0, (2, -1))
            self._shard(module, name, pairs, Shard(1), mesh)
        module.__class__ = ShardedBilinear

    def _shard(
        self, module: nn.Module, name: str, whole: Tensor | None, how: Placement, mesh: DeviceMesh
    ) -> None:
        if whole is None:
            return
        shards = distribute_tensor(whole.detach(), mesh, [how], src_data_rank=self.src_data_rank)
        setattr(module, name, nn.Parameter(shards, requires_grad=whole.requires_grad))


class ShardedBilinear(Bilinear):
    """A `Bilinear` with `weight` (2, d_out, d_in), `bias` (2, d_out), sharded on dim 1.

    Made by `PairParallel`. `d_out` is that of all ranks together.
    """

    layouts: tuple[Placement, Placement]
    use_local_output: bool

    @property
    def w_l(self) -> Tensor:
        """Left weights, (d_out, d_in), a DTensor sharded on dim 0."""
        return self.weight[0]

    @property
    def w_r(self) -> Tensor:
        """Right weights, (d_out, d_in), a DTensor sharded on dim 0."""
        return self.weight[1]

    def local(self) -> tuple[Tensor, Tensor | None]:
        """This rank's weight (2·d_out / n, d_in) and bias, left half first."""
        bias = None if self.bias is None else _local(self.bias).flatten()
        return _local(self.weight).flatten(0, 1), bias

    def forward(self, input: Tensor) -> Tensor:
        """(…, d_in) → (…, d_out), each laid out over the ranks as the style says."""
        mesh = _mesh(self)
        h = bilinear(
            _whole(input, self.layouts[0], mesh),
            *self.local(),
            recompute=self.recompute,
            gate=self.gate,
        )
        return _laid_out(h, Shard(h.dim() - 1), None, self, mesh)

    def reset_parameters(self) -> None:
        """Draw all parameters again, as at construction."""
        bound = self.in_features**-0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, _ in self.named_parameters():
            destination[prefix + name] = _packed(destination[prefix + name])

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name, parameter in self.named_parameters():
            saved = state_dict.get(prefix + name)
            if isinstance(saved, Tensor) and saved.numel() == parameter.numel():
                state_dict[prefix + name] = _pairs(saved, parameter)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class ShardedBilinearMLP(BilinearMLP):
    """A `BilinearMLP` sharded by its hidden products; made by `PairParallel`."""

    bi_linear: ShardedBilinear
    layouts: tuple[Placement, Placement]
    use_local_output: bool

    def forward(self, x: Tensor) -> Tensor:
        """(…, d_in) → (…, d_out), each laid out over the ranks as the style says.

        Raises:
            RuntimeError: an inner module has hooks; it isn't called, so they wouldn't run.
        """
        if has_hooks(self.bi_linear) or has_hooks(self.projection):
            raise RuntimeError(
                "hooks: expected none on the inner modules of a sharded BilinearMLP, "
                "got some; put them on the BilinearMLP itself"
            )
        mesh = _mesh(self.bi_linear)
        weight, bias = self.bi_linear.local()
        out = bilinear_mlp(
            _whole(x, self.layouts[0], mesh),
            weight,
            _local(self.projection.weight),
            bias,
            recompute=self.bi_linear.recompute,
            gate=self.gate,
        )
        return _laid_out(out, Partial(), self.projection.bias, self, mesh)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name, parameter in self.projection.named_parameters():
            key = f"{prefix}projection.{name}"
            saved = state_dict.get(key)
            if isinstance(saved, Tensor) and saved.shape == parameter.shape:
                state_dict[key] = _placed(saved, parameter)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _mesh(packed: nn.Module) -> DeviceMesh:
    weight = packed.weight
    assert isinstance(weight, DTensor)
    return weight.device_mesh


def _local(parameter: Tensor) -> Tensor:
    assert isinstance(parameter, DTensor)
    return parameter.to_local()


def _whole(x: Tensor, layout: Placement, mesh: DeviceMesh) -> Tensor:
    """All of x as an ordinary tensor, whose gradient is summed over the ranks."""
    if not isinstance(x, DTensor):
        x = DTensor.from_local(x, mesh, [layout], run_check=False)
    return x.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])


def _laid_out(
    local: Tensor,
    layout: Placement,
    b_p: Tensor | None,
    module: "ShardedBilinear | ShardedBilinearMLP",
    mesh: DeviceMesh,
) -> Tensor:
    """Redistribute an output from its layout to that of the style, and add b_p."""
    computed = DTensor.from_local(local, mesh, [layout], run_check=False)
    out: Tensor = computed.redistribute(placements=[module.layouts[1]])
    if b_p is not None:
        out = out + b_p.to(out.dtype)
    return _local(out) if module.use_local_output else out


def _packed(pairs: Tensor) -> Tensor:
    """(2, d, d_in) or (2, d), sharded, to (2·d, d_in) sharded by d_in or (2·d,) whole."""
    assert isinstance(pairs, DTensor)
    # A rank's rows aren't consecutive in the packed tensor, so no placement of DTensor by rows
    # describes them.
    kept = Shard(2) if pairs.dim() == 3 else Replicate()
    placements = [Replicate() if p.is_replicate() else kept for p in pairs.placements]
    return pairs.redistribute(placements=placements).flatten(0, 1)


def _pairs(packed: Tensor, like: Tensor) -> Tensor:
    """A packed tensor, whole or a DTensor of any layout, in the shape and layout of `like`."""
    if isinstance(packed, DTensor):
        by_input = [p if p.is_shard(1) else Replicate() for p in packed.placements]
        packed = packed.redistribute(placements=by_input)
    return _placed(packed.unflatten(0, (2, -1)), like)


def _placed(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor or a DTensor, redistributed to the layout of `like`."""
    assert isinstance(like, DTensor)
    if isinstance(tensor, DTensor):
        return tensor.redistribute(like.device_mesh, like.placements)
    return distribute_tensor(
        tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )
