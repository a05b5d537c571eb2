"""Reads a module's forward as an expression of its linears, or refuses it.

Two readings must agree that the output depends on the expression alone. The source must be
straight-line code (no branch, no loop) that reads of `self` nothing but children, and of the world
around nothing but torch: then no attribute or global that is neutral now can matter later. Traced
symbolically (torch.fx) it must consist of linears, chunks in two, products and an activation: then
no term, scale, clamp or dropout is left out.

Expressions are nested tuples: ("x",), ("linear", part, e), ("half", 0 or 1, e), ("mul", e, f),
("child", name, e) and ("act", gate, function, e). A part is a child's name; "" is the module
itself. A function is called by its name; gate is empty where it is none of ours.
"""

import ast
import functools
import inspect
import operator
import textwrap
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from bilinear.layer.gates import name_in_torch

Expression = tuple[Any, ...]
_PACKED = ("linear", "", ("x",))
PRODUCT: Expression = ("mul", ("half", 0, _PACKED), ("half", 1, _PACKED))
# Statements and expressions that straight-line code does not have.
_NOT_STRAIGHT = (
    ast.If, ast.IfExp, ast.For, ast.While, ast.Try, ast.With, ast.BoolOp, ast.Compare, ast.Lambda,
    ast.ListComp, ast.GeneratorExp, ast.DictComp, ast.SetComp, ast.Global, ast.Nonlocal, ast.Assert,
    ast.FunctionDef, ast.ClassDef, ast.Delete, ast.Raise, ast.NamedExpr, ast.Match, ast.AugAssign,
    ast.Yield, ast.YieldFrom, ast.AsyncFunctionDef,
)  # fmt: skip
_TORCH = (torch, F, nn, operator)
# Torch's classes whose forwards need no reading, and its functions that only return a tensor.
_KNOWN = (nn.Linear, nn.Sequential)
_PURE = {"mul", "chunk", "linear", "silu", "gelu", "relu", "sigmoid", "square", "tanh", "getitem"}


class Unread(Exception):
    """Why a forward could not be read as an expression."""


def formula(module: nn.Module) -> Expression:
    """The expression that a module's forward computes of its first argument; raises Unread."""
    for kind, forward in forwards(module):
        if kind not in _KNOWN and "forward" in kind.__dict__:
            _check_source(module, forward)
    try:
        graph = _Tracer().trace(module)
    except Exception as error:  # the model's own code, run on symbols, may raise anything
        reason = str(error).strip().splitlines() or [""]
        raise Unread(
            f"its forward cannot be traced ({type(error).__name__}: {reason[0]})"
        ) from None
    return _expression(module, graph)


def forwards(module: nn.Module) -> tuple[tuple[type[nn.Module], Any], ...]:
    """What `forward` means for a module's class and its bases, inherited ones included.

    To inherit is to change with the base, and to change once the class gets a forward of its own.
    """
    found: list[tuple[type[nn.Module], Any]] = []
    for kind in type(module).__mro__:
        if kind is nn.Module:
            break
        if hasattr(kind, "forward"):
            found.append((kind, kind.forward))
        if kind in _KNOWN:
            break
    return tuple(found)


def argument(module: nn.Module) -> str:
    """Name of forward's input."""
    return next(iter(inspect.signature(module.forward).parameters))


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _check_source(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Raise Unread unless forward is straight-line code that reads only children and torch."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(forward))).body[0]
    except (OSError, TypeError, SyntaxError):
        raise Unread("the source of its forward is not at hand") from None
    if (
        not isinstance(tree, ast.FunctionDef)
        or tree.decorator_list
        or inspect.unwrap(forward) is not forward
    ):
        raise Unread("its forward is decorated, or no plain function")
    own = tree.args.args[0].arg
    local = {arg.arg for arg in (*tree.args.args, *tree.args.kwonlyargs)}
    local |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and _is_stored(n)}
    outside = inspect.getclosurevars(forward)
    world = {**outside.builtins, **outside.globals, **outside.nonlocals}
    body = [node for statement in tree.body for node in ast.walk(statement)]
    _check_reads_of_self(module, own, body)
    for node in body:
        if isinstance(node, ast.Attribute) and _is_super(node.value) and node.attr != "forward":
            raise Unread(f"its forward calls super().{node.attr}")
        if isinstance(node, _NOT_STRAIGHT):
            raise Unread("its forward has branches or loops, or state of its own")
        if isinstance(node, ast.Attribute):
            if _is_stored(node):
                raise Unread(f"its forward changes {ast.unparse(node)}")
            _check_torch_function(node, world)
        if isinstance(node, ast.Name) and node.id not in local:
            _check_world(node.id, world.get(node.id))


def _is_super(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "super"


def _is_stored(node: ast.Name | ast.Attribute) -> bool:
    return isinstance(node.ctx, ast.Store)


def _check_reads_of_self(module: nn.Module, own: str, body: list[ast.AST]) -> None:
    readable = {*module._modules, *({"weight", "bias"} if isinstance(module, nn.Linear) else ())}
    reads = [n for n in body if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)]
    attributes = [node.attr for node in reads if node.value.id == own]  # type: ignore[attr-defined]
    for name in attributes:
        if name not in readable and not name_in_torch(module.__dict__.get(name)):
            raise Unread(f"its forward reads self.{name}, which may change")
    for node in body:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute):
            inner = node.value.value
            if isinstance(inner, ast.Name) and inner.id == own:
                raise Unread(f"its forward reads {ast.unparse(node)}, which may change")
    selves = sum(isinstance(node, ast.Name) and node.id == own for node in body)
    if selves != len(attributes):
        raise Unread("its forward hands self to something else")


def _check_world(name: str, value: object) -> None:
    if not (value in _TORCH if isinstance(value, ModuleType) else _is_torchs(value)):
        raise Unread(f"its forward reads {name}, which is none of torch's")


def _check_torch_function(node: ast.Attribute, world: dict[str, Any]) -> None:
    """Raise Unread for `torch.x` or `F.x` that may do more than return a tensor."""
    inner = node.value
    while isinstance(inner, ast.Attribute):
        inner = inner.value
    is_module = isinstance(inner, ast.Name) and isinstance(world.get(inner.id), ModuleType)
    if is_module and node.attr not in {*_PURE, "nn", "functional"}:
        raise Unread(f"its forward calls {ast.unparse(node)}")


def _is_torchs(value: object) -> bool:
    home = getattr(value, "__module__", None) or ""
    known = getattr(value, "__name__", None) in _PURE and home.split(".")[0] in (
        "torch",
        "_operator",
    )
    return known or value is super


def _expression(module: nn.Module, graph: fx.Graph) -> Expression:
    found: dict[fx.Node, Expression] = {}
    inputs = 0
    for node in graph.nodes:
        if node.op == "placeholder":
            inputs += 1
            found[node] = ("x",) if inputs == 1 else ("other input", node.target)
        elif node.op == "get_attr":
            found[node] = ("parameter", node.target)
        elif node.op == "output":
            (result,) = node.args
            if not isinstance(result, fx.Node):
                raise Unread("its forward returns something else than one tensor")
            return found[result]
        else:
            found[node] = _step(module, node, found)
    raise Unread("its forward returns nothing")


def _step(module: nn.Module, node: fx.Node, found: dict[fx.Node, Expression]) -> Expression:
    args = [found[a] if isinstance(a, fx.Node) else a for a in node.args]
    kwargs = {k: found[v] if isinstance(v, fx.Node) else v for k, v in node.kwargs.items()}
    match node.op, node.target, args, kwargs:
        case "call_module", str(name), [e], {**more} if not more:
            return _child(module, name, e)
        case "call_function", operator.mul | torch.mul, [tuple(e), tuple(f)], {**more} if not more:
            return ("mul", e, f)
        case "call_method", "mul" | "__mul__", [tuple(e), tuple(f)], {**more} if not more:
            return ("mul", e, f)
        case "call_function", F.linear, [e, ("parameter", "weight"), *bias], {**more}:
            given = [b for b in (*bias, *more.values()) if b is not None]
            own = [] if module.bias is None else [("parameter", "bias")]
            if given == own:
                return ("linear", "", e)
        case "call_function" | "call_method", "chunk" | torch.chunk, [e, 2], {"dim": -1, **more}:
            if not more:
                return ("halves", e)
        case "call_function" | "call_method", "chunk" | torch.chunk, [e, 2, -1], {**more}:
            if not more:
                return ("halves", e)
        case "call_function", operator.getitem, [("halves", e), (0 | 1) as i], {**more} if not more:
            return ("half", i, e)
        case "call_function", torch.square, [("act", "relu", _, e)], {**more} if not more:
            return ("act", "relu2", "square", e)
        case "call_function" | "call_method", called, [(str(), *_) as e], {**more}:
            return ("act", _gate_called(called, more), _name_of(called), e)
    raise Unread(f"its forward also computes {_said(node)}")


def _gate_called(called: object, more: dict[str, Any]) -> str:
    """The gate that a function, or the method of that name, computes of its one argument."""
    if isinstance(called, str):
        called = {"relu": torch.relu, "sigmoid": torch.sigmoid}.get(called)
    if called is F.gelu:
        called, more = functools.partial(F.gelu, **more), {}
    plain = not more or (called in (F.silu, F.relu) and more == {"inplace": False})
    return name_in_torch(called) if plain else ""


def _name_of(called: object) -> str:
    return getattr(called, "__name__", str(called))


def _said(node: fx.Node) -> str:
    name = _name_of(node.target)
    return f"{name}({', '.join(map(str, node.args))})" if node.op != "call_module" else f"{name}(…)"


def is_product(module: nn.Module | None) -> bool:
    """Whether a module is a linear whose own forward is h = L ∘ R."""
    if not isinstance(module, nn.Linear) or type(module) is nn.Linear:
        return False
    try:
        return formula(module) == PRODUCT
    except Unread:
        return False


def _child(module: nn.Module, name: str, e: Any) -> Expression:
    child = module._modules.get(name)
    if is_product(child):
        product = ("linear", name, e)
        return ("mul", ("half", 0, product), ("half", 1, product))
    if isinstance(child, nn.Linear):
        return ("linear", name, e)
    return ("child", name, e)
