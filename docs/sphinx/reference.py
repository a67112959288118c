"""Sphinx extension: the directive `api`, which describes public names by their docstrings.

    ```{api} anydepth
    trace
    Trace
    ```

The source is read by griffe and not imported: the site is built without torch. Docstrings are Google's, in markdown.
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import griffe
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

SOURCE = Path(__file__).parents[2] / "src"
Kind = griffe.DocstringSectionKind
# Sections of a docstring whose items have a name, and the field of the Python domain that shows these.
NAMED = {Kind.parameters: "param", Kind.attributes: "ivar"}
STARS = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}


@cache
def package() -> griffe.Object:
    """The source of anydepth."""
    return griffe.load("anydepth", search_paths=[SOURCE], docstring_parser="google", resolve_aliases=True)


def definition(path: str) -> griffe.Object:
    """What a public name stands for, where it is defined."""
    item = package()[path.removeprefix("anydepth.")]
    return item.final_target if item.is_alias else item


class Api(SphinxDirective):
    """Describe the names of a module that stand in the lines below its own."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Parse the description, which is markdown, in the place of the directive."""
        self.env.note_dependency(str(SOURCE))
        module = self.arguments[0]
        text = "\n\n".join("\n".join(described(module, name.strip())) for name in self.content if name.strip())
        return self.parse_text_to_nodes(text)


def described(module: str, name: str) -> Iterator[str]:
    """The markdown of a public name."""
    item = definition(f"{module}.{name}")
    if item.docstring is None and not item.is_attribute:
        raise ValueError(f"{item.path} has no docstring: give it one, or leave it out of the reference")
    if item.is_class:
        yield from directive("class", name, item, fence="`" * 7, module=module, body=class_body(item))
    else:
        kind = "function" if item.is_function else "data"
        yield from directive(kind, name, item, fence="`" * 7, module=module, body=documentation(item))


def class_body(item: griffe.Class) -> Iterator[str]:
    """A class's documentation, then that of its public members, inherited ones too."""
    yield from documentation(item)
    listed: set[str] = set()
    for owner in (item, *item.mro()):
        entries = [(kind, entry) for kind, entry in named_entries(owner) if entry.name not in listed]
        listed |= {entry.name for _, entry in entries}
        if owner is not item:  # what a base says of fields that this class has too
            yield from (field(f"{NAMED[kind]} {entry.name}", entry.description) for kind, entry in entries)
    for name, member in item.all_members.items():
        member = member.final_target if member.is_alias else member
        if name in listed or member.docstring is None or (name.startswith("_") and name != "__call__"):
            continue
        kind = "method" if member.is_function else "property" if "property" in member.labels else "attribute"
        yield ""
        yield from directive(kind, name, member, fence="`" * 5, body=documentation(member))


def directive(
    kind: str, name: str, item: griffe.Object, *, fence: str, body: Iterator[str], module: str = ""
) -> Iterator[str]:
    """A directive of Sphinx's Python domain."""
    parameters = signature(item) if item.is_function or item.is_class else ""
    yield f"{fence}{{py:{kind}}} {name}{parameters}"
    if module:
        yield f":module: {module}"
    if kind in ("property", "attribute", "data") and item.annotation is not None:
        yield f":type: {item.annotation}"
    for label in ("classmethod", "staticmethod"):
        if label in item.labels:
            yield f":{label}:"
    yield ""
    yield from body
    yield fence


def signature(item: griffe.Function | griffe.Class) -> str:
    """Parameters and what is returned, as Python writes them; without self."""
    parts, marked = [], False
    for parameter in item.parameters:
        if parameter.name in ("self", "cls") and parameter is item.parameters[0]:
            continue
        star = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}.get(
            parameter.kind, ""
        )
        if parameter.kind is griffe.ParameterKind.keyword_only and not marked:
            parts.append("*")
        marked = marked or star == "*" or parameter.kind is griffe.ParameterKind.keyword_only
        annotation = f": {parameter.annotation}" if parameter.annotation is not None else ""
        default = "" if star or parameter.default is None else f" = {parameter.default}"
        parts.append(f"{star}{parameter.name}{annotation}{default}")
    returns = f" -> {item.returns}" if item.is_function and item.returns is not None else ""
    return " ".join(f"({', '.join(parts)}){returns}".split())


def sections(item: griffe.Object) -> list[griffe.DocstringSection]:
    """The parts of a docstring; none where there is no docstring."""
    return item.docstring.parsed if item.docstring else []


def documentation(item: griffe.Object) -> Iterator[str]:
    """A docstring as markdown, its sections as fields of the Python domain."""
    for section in sections(item):
        if section.kind is Kind.text:
            yield from [linked(section.value), ""]
        elif section.kind in NAMED:
            yield from [
                *(field(f"{NAMED[section.kind]} {entry.name}", entry.description) for entry in section.value),
                "",
            ]
        elif section.kind is Kind.raises:
            yield from [*(field(f"raises {entry.annotation}", entry.description) for entry in section.value), ""]
        elif section.kind is Kind.returns:
            yield from [field("returns", " ".join(entry.description for entry in section.value)), ""]
        elif section.kind is Kind.admonition and section.title.startswith("Example"):
            yield from ["**Example**", "", *examples(section.value.description), ""]
        else:
            raise ValueError(f"{item.path}: a section of its docstring is not shown yet: {section.kind.value}")


def named_entries(item: griffe.Object) -> Iterator[tuple[griffe.DocstringSectionKind, Any]]:
    """What a docstring says of single parameters and attributes."""
    for section in sections(item):
        if section.kind in NAMED:
            yield from ((section.kind, entry) for entry in section.value)


def field(name: str, text: str) -> str:
    """One entry of a field list, its further lines indented."""
    return f":{name}: " + linked(text).replace("\n", "\n    ")


def linked(text: str) -> str:
    """Text in which the public names of `anydepth` lead to their descriptions."""

    def link(code: re.Match[str]) -> str:
        name = code[2] if code[1] or code[2][0].isupper() else ""
        return f"{{py:obj}}`{code[1]}{name} <anydepth.{name}>`" if name in exported else code[0]

    exported = [str(name) for name in package().exports or ()]
    return re.sub(r"(?<!`)`((?:anydepth\.)?)(\w+)`(?!`)", link, text)


def examples(text: str) -> Iterator[str]:
    """Text with its interactive sessions fenced, up to the empty line that ends each."""
    for block in re.split(r"\n\s*\n", text):
        yield from ["```pycon", block, "```", ""] if block.lstrip().startswith(">>>") else [block, ""]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("api", Api)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
