"""A Jinja sandbox that also bounds what a template may cost: time, and the size of what it puts together.

Jinja's own sandbox keeps a template from Python's inside; a loop in a loop, or a text doubled a hundred times, it lets
run (https://jinja.palletsprojects.com/en/stable/sandbox/, "Security Considerations").
"""

import threading
import time
from collections.abc import Sequence, Sized
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

RENDER_LIMIT_S = 5.0
MOST_RENDERED = 4 << 20
_MOST_BITS = 4096


class _Counted(NodeTransformer):
    """Puts a check of the time at the head of every loop and macro, and of the size around every ``~``."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - the name that jinja2 calls
        self.generic_visit(node)
        if node.test is not None:
            node.test = nodes.And(_call("check_time"), node.test)
        node.body.insert(0, nodes.ExprStmt(_call("check_time")))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802 - as above
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("check_time")))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 - as above
        self.generic_visit(node)
        return _call("joined", nodes.List(node.nodes))


def _call(name: str, *arguments: nodes.Expr) -> nodes.Expr:
    # an attribute of the environment, not a variable: a template cannot put another in its place
    return nodes.Call(nodes.EnvironmentAttribute(name), list(arguments), [], None, None)


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox. :meth:`begin` starts the clock of the render that follows in this thread."""

    intercepted_binops = frozenset({"+", "*", "**"})

    _thread = threading.local()

    def begin(self) -> None:
        """A render begins in this thread."""
        self._thread.ends_at = time.monotonic() + RENDER_LIMIT_S

    def check_time(self) -> bool:
        """True; raises TemplateError when the render takes too long."""
        if time.monotonic() > self._thread.ends_at:
            raise TemplateError(f"it takes more than {RENDER_LIMIT_S:g} s")
        return True

    def joined(self, parts: Sequence[object]) -> str:
        """The parts as one text, as ``~`` makes it; raises TemplateError where it is too long."""
        texts = [str(part) for part in parts]
        _check_size(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # noqa: ANN401 - jinja2's own
        """``left operator right``; raises TemplateError where the result is too large."""
        _check_operands(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def _generate(self, source: nodes.Template, *arguments: Any, **options: Any) -> str:  # noqa: ANN401 - jinja2's own
        _Counted().visit(source)
        source.set_environment(self)
        return super()._generate(source, *arguments, **options)


def _check_operands(operator: str, left: object, right: object) -> None:
    if isinstance(left, int) and isinstance(right, int):
        bits, more = left.bit_length(), right.bit_length()
        _check_bits(bits * abs(right) if operator == "**" else bits + more)
    elif operator == "+":
        _check_size(_size(left) + _size(right))
    elif operator == "*":
        for sized, times in ((left, right), (right, left)):
            if isinstance(times, int):
                _check_size(_size(sized) * times)


def _size(value: object) -> int:
    return len(value) if isinstance(value, Sized) else 0


def _check_size(size: int) -> None:
    if size > MOST_RENDERED:
        raise TemplateError("it makes a text that is too long")


def _check_bits(bits: int) -> None:
    if bits > _MOST_BITS:
        raise TemplateError("it makes a number that is too large")
