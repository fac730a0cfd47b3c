"""The evidence as one page for people, with its pictures inside: to be read, printed, and attached to an audit. Pure.

Much of what it says comes from guests: all of it is escaped, and nothing on the page runs or loads.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; color: #1a1a1a; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.1rem; margin: 1.6rem 0 .4rem } p { margin: .3rem 0 }
table { border-collapse: collapse; width: 100%; font-size: .9em } th, td { text-align: left; vertical-align: top;
padding: .2rem .6rem .2rem 0; border-bottom: 1px solid #ddd } th { font-weight: 600; color: #555 }
pre { background: #f4f4f4; padding: .5rem; overflow-wrap: anywhere; white-space: pre-wrap; font-size: .8em }
code { font-size: .9em; overflow-wrap: anywhere } img { max-width: 100%; border: 1px solid #999; margin: .4rem 0 }
.held { color: #0a6b2d } .failed { color: #b00020 } .small { color: #555; font-size: .85em }
@media print { body { margin: 0; max-width: none; font-size: 11px } section { break-inside: avoid }
img { max-height: 8cm } }
"""


def render(facts: Mapping[str, Any], pictures: Mapping[str, bytes]) -> bytes:
    """`pictures` by file name, as `facts` names them."""
    held = facts["verdict"] == "held"
    verdict = "every gate held" if held else f"failed at '{escape(facts['failed_at'] or 'no step')}'"
    rto = "" if facts["rto_seconds"] is None else f", RTO {facts['rto_seconds']:.1f} s"
    what = [
        ("Run", facts["run"]),
        ("Plan", facts["plan"]),
        ("Tenant", facts["tenant"]),
        ("Began", facts["began_at"]),
        ("Signed", facts["signed_at"]),
        ("By the service on", facts["service_host"]),
    ]
    body = [
        f"<h1>Recovery drill of {escape(facts['plan'])}: "
        f'<span class="{"held" if held else "failed"}">{verdict}{rto}</span></h1>',
        _table([], what),
        *(_server(server, pictures) for server in facts["servers"]),
        "<section><h2>Steps</h2>",
        _table(
            ["Step", "State", "Began", "Seconds", "Error"],
            [[step[name] for name in ("name", "state", "began_at", "seconds", "error")] for step in facts["steps"]],
        ),
        "</section>",
        '<p class="small">This page is for reading. What was proven is in the JSON file beside it, which is signed and'
        " holds this page's SHA-256; check both without a service:"
        f" <code>understudy evidence verify {escape(facts['run'])}.json --key sign.pub</code></p>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:;'
        " style-src 'unsafe-inline'\">"
        f"<title>{escape(facts['run'])}: {escape(facts['plan'])}, {verdict}</title>"
        f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(body) + "\n</body></html>\n"
    ).encode(errors="replace")


def _server(server: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    boot = server["boot"]
    what: list[tuple[str, Any]] = [
        ("Point", f"{server['point']}, taken at {server['taken_at']}"),
        ("Its signed root", _root(server)),
        (
            "Booted",
            f"in {_seconds(boot['seconds'])} with {boot['cpus']} CPUs, {boot['memory_mib']} MiB,"
            f" {'UEFI' if boot['uefi'] else 'BIOS'}, network {boot['network']}",
        ),
    ]
    if server["repair"]:
        changes = server["repair"]["changes"]
        changed = f"; changed: {', '.join(changes)}" if changes else ""
        what.append(("Boot repair", f"{server['repair']['note'] or server['repair']['error'] or ''}{changed}"))
    if server["filesystems"]:
        checked = server["filesystems"]
        what.append(("Filesystems", checked["error"] or checked["note"]))
    gates = [[gate[name] for name in ("gate", "state", "seconds", "seen", "error")] for gate in server["gates"]]
    parts = [
        f"<section><h2>{escape(server['server'])}</h2>",
        _table([], what),
        _table(["Gate", "State", "Seconds", "Seen", "Error"], gates) if gates else "<p>It has no gates.</p>",
        _picture(server, pictures),
        "</section>",
    ]
    return "\n".join(parts)


def _picture(server: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    picture = server["picture"] or {}
    content = pictures.get(picture.get("file") or "")
    lines = "\n".join(picture.get("console") or [])
    console = f"<p>The end of its console:</p><pre>{escape(lines)}</pre>" if lines else ""
    if content is None:
        return f"<p>{escape(picture.get('note') or 'no picture')}</p>{console}"
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    return (
        f'<p><img alt="the screen of {escape(server["server"])}"'
        f' src="data:image/{kind};base64,{base64.b64encode(content).decode()}"></p>'
        f'<p class="small">Its screen at {escape(picture["taken_at"] or "")},'
        f" SHA-256 <code>{picture['sha256']}</code></p>{console}"
    )


def _root(server: Mapping[str, Any]) -> str:
    return str(server["root"]) if server["root"] else "the point's manifest could not be read"


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f} s"


def _table(headings: list[str], rows: Iterable[Iterable[Any]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{f'<tr>{head}</tr>' if head else ''}{body}</table>"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return escape(f"{value:.1f}" if isinstance(value, float) else str(value)).replace("\n", "<br>")
