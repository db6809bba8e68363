"""The definitions behind every number, as a page beside the report.

method.md is their one home: the page links to its headings, and the code that
applies a definition cites it.
"""

from importlib import resources

import jinja2
import markdown_it

FILE = "method.html"


def link(heading: str) -> str:
  """Returns the address of a heading, seen from the page."""
  return f"{FILE}#{anchor(heading)}"


def anchor(heading: str) -> str:
  """Names a heading by its words before a colon: "C1: ..." is c1."""
  return heading.partition(":")[0].strip().lower().replace(" ", "-")


def resource(name: str) -> str:
  """Reads a file that is shipped with the report."""
  return resources.files("minarch_jax.report").joinpath(name).read_text("utf-8")


def environment() -> jinja2.Environment:
  """Returns what fills the templates of both pages."""
  return jinja2.Environment(
    autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
  )


def render() -> str:
  """Writes method.md as one page that needs nothing else."""
  markdown = markdown_it.MarkdownIt("commonmark").enable("table")
  tokens = markdown.parse(resource("method.md"))
  for opening, inline in zip(tokens, tokens[1:], strict=False):
    if opening.type == "heading_open":
      opening.attrSet("id", anchor(inline.content))
  body = markdown.renderer.render(tokens, markdown.options, {})
  return (
    environment()
    .from_string(resource("method.html"))
    .render(style=resource("page.css"), script=resource("theme.js"), body=body)
  )
