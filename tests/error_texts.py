"""The texts of errors, as the code that makes them has them, and tables of requests that get them."""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from services.common.errors import ServiceError

VALUE = "{…}"
"""Stands for what is filled in."""
_ERRORS = {each.__name__ for each in ServiceError.__subclasses__()}
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class ErrorText:
    """What one line of code tells a caller."""

    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.place} {self.text}"


@dataclass(frozen=True)
class Expected:
    """What the answer to a wrong request must say."""

    code: str
    came: str
    expected: str
    change: str

    def missing_in(self, code: str, text: str) -> str:
        """Return what an answer lacks; nothing where it has all."""
        missing = [word for word in (self.came, self.expected, self.change) if word not in text]
        return f"{code}: {text!r}, not {self.code} with {missing}" if code != self.code or missing else ""


def raised_in(module: Path) -> Iterator[ErrorText]:
    """Yield the texts of the errors that a module makes, each where it gets its words; not those made elsewhere.

    A function that puts words of its callers into an error is not a place of its own: each of its calls is one.
    """
    return _Module(module).texts()


def walked_by(answers: Iterable[str], texts: Iterable[ErrorText]) -> set[ErrorText]:
    """Return which of *texts* the *answers* show, where each answer stands for one place and no more.

    Two places of one text need two different answers. The most are matched that can be (augmenting paths).
    """
    distinct = sorted(set(answers))
    fitting = {
        each: [answer for answer in distinct if re.search(pattern_of(each), answer, re.DOTALL)] for each in texts
    }
    owners: dict[str, ErrorText] = {}

    def place(text: ErrorText, tried: set[str]) -> bool:
        for answer in fitting[text]:
            if answer in tried:
                continue
            tried.add(answer)
            if answer not in owners or place(owners[answer], tried):
                owners[answer] = text
                return True
        return False

    return {text for text in fitting if place(text, set())}


def not_walked(modules: Iterable[Path], answers: Iterable[str], elsewhere: Mapping[str, str]) -> list[str]:
    """Return the errors of *modules* that no answer shows, and the parts of *elsewhere* that no error has.

    Args:
        modules: Files of code.
        answers: The texts with which requests were refused.
        elsewhere: By a part of their text, the errors that need no answer here.
    """
    texts = [each for module in modules for each in raised_in(module)]
    idle = [f"elsewhere: {part}" for part in elsewhere if not any(part in each.text for each in texts)]
    texts = [each for each in texts if not any(part in each.text for part in elsewhere)]
    walked = walked_by(answers, texts)
    return [str(each) for each in texts if each not in walked] + idle


def pattern_of(error: ErrorText) -> str:
    """Return the regular expression that what callers get of *error* fits."""
    return ".*".join(map(re.escape, error.text.split(VALUE)))


class _Module:
    """The code of one module."""

    def __init__(self, path: Path) -> None:
        self._name = path.name
        tree = ast.parse(path.read_text())
        self._constants = _assigned([each for each in tree.body if isinstance(each, ast.Assign)])
        self._scopes: dict[ast.Call, _Function | None] = {}
        self._functions: dict[str, _Function] = {}
        self._enter(tree, None)

    def _enter(self, node: ast.AST, scope: _Function | None) -> None:
        if isinstance(node, _Function):
            self._functions[node.name] = scope = node
        if isinstance(node, ast.Call):
            self._scopes[node] = scope
        for child in ast.iter_child_nodes(node):
            self._enter(child, scope)

    def texts(self) -> Iterator[ErrorText]:
        errors = [call for call in self._scopes if _name(call.func) in _ERRORS and call.args]
        for call in errors:
            yield from self._texts_at(call, call.args[0], {})

    def _texts_at(self, call: ast.Call, text: ast.expr, given: Mapping[str, str]) -> Iterator[ErrorText]:
        """Yield the text of an error, or one for each call that gives words to the function which makes it."""
        scope = self._scopes[call]
        found = self._template(text, scope, given)
        calls = list(self._calls_with_words(scope, text)) if scope is not None else []
        if calls:
            for each, words in calls:
                filled = self._template(text, scope, {**given, **words})
                yield ErrorText(f"{self._name}:{each.lineno}", filled)
        elif found != VALUE:
            yield ErrorText(f"{self._name}:{call.lineno}", found)

    def _calls_with_words(self, function: _Function, text: ast.expr) -> Iterator[tuple[ast.Call, dict[str, str]]]:
        """Yield the calls of *function* that give it words which *text* takes up, with these by parameter."""
        taken = {node.id for node in ast.walk(text) if isinstance(node, ast.Name)}
        parameters = [each.arg for each in function.args.args if each.arg != "self"]
        for call, scope in self._scopes.items():
            arguments = _arguments(call, function.name)
            pairs = [*zip(parameters, arguments, strict=False), *((each.arg, each.value) for each in call.keywords)]
            words = {name: self._template(value, scope, {}) for name, value in pairs if name in taken and arguments}
            if any(each != VALUE for each in words.values()):
                yield call, words

    def _template(self, text: ast.expr, scope: _Function | None, given: Mapping[str, str]) -> str:
        match text:
            case ast.Constant(value=str(words)):
                return words
            case ast.JoinedStr(values=values):
                return "".join(self._template(each, scope, given) for each in values)
            case ast.FormattedValue(value=value, conversion=conversion):
                words = self._template(value, scope, given) if isinstance(value, ast.Name) else VALUE
                return repr(words) if conversion == ord("r") and words != VALUE else words
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return self._template(left, scope, given) + self._template(right, scope, given)
            case ast.Name(id=name):
                local = _assigned(scope.body) if scope is not None else {}
                value = local.get(name) or self._constants.get(name)
                return given.get(name) or (VALUE if value is None else self._template(value, scope, given))
        return VALUE


def _assigned(body: list[ast.stmt]) -> dict[str, ast.expr]:
    """Return what names stand for that are given strings."""
    return {
        target.id: node.value
        for statement in body
        for node in ast.walk(statement)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant | ast.JoinedStr)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _arguments(call: ast.Call, function: str) -> list[ast.expr]:
    """Return what *call* gives to a function, also where it leaves the call to somebody: `call_later(1, f, x)`."""
    if _name(call.func) == function:
        return call.args
    names = [_name(each) for each in call.args]
    return call.args[names.index(function) + 1 :] if function in names else []


def _name(function: ast.expr) -> str:
    match function:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""
