"""The evidence as one page for people, with its pictures inside: to be read, printed, and attached to an audit. Pure.

Much of what it says comes from guests: all of it is escaped, and nothing on the page runs or loads. One server's drill
fits on one sheet of A4 or Letter: what is long is cut on paper (the JSON has all of it).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from html import escape
from typing import Any

_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; color: #1a1a1a; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.1rem; margin: 1.2rem 0 .3rem } p { margin: .3rem 0 }
table { border-collapse: collapse; width: 100%; font-size: .9em } th, td { text-align: left; vertical-align: top;
padding: .2rem .6rem .2rem 0; border-bottom: 1px solid #ddd; overflow-wrap: anywhere }
th { font-weight: 600; color: #555 }
.what td:first-child { width: 9rem; color: #555 } .steps td:nth-child(n+2) { width: 6rem }
pre { background: #f4f4f4; padding: .5rem; overflow-wrap: anywhere; white-space: pre-wrap; font-size: .75em; margin: 0 }
code { font-size: .9em; overflow-wrap: anywhere } img { max-width: 100%; border: 1px solid #999 }
.held { color: #0a6b2d } .failed { color: #b00020 } .small { color: #555; font-size: .85em }
.seen { display: flex; gap: 1rem; align-items: flex-start; margin: .5rem 0 } .seen > * { flex: 1; min-width: 0 }
@page { margin: 11mm }
@media print { body { margin: 0; padding: 0; max-width: none; font-size: 10.5px; line-height: 1.3 }
h1 { font-size: 1.5em } h2 { margin: .6em 0 .2em } th, td { padding: .1rem .5rem .1rem 0 }
tr, .seen { break-inside: avoid } h2 { break-after: avoid } img { max-height: 5.5cm }
pre { max-height: 5.2cm; overflow: hidden; display: flex; flex-direction: column-reverse } }
"""


def render(facts: Mapping[str, Any], pictures: Mapping[str, bytes], key_sha256: str) -> bytes:
    """`pictures` by file name, as `facts` names them; `key_sha256` of the file with the public key."""
    held = facts["verdict"] == "held"
    verdict = "every gate held" if held else f"failed at '{escape(facts['failed_at'] or 'no step')}'"
    rto = "" if facts["rto_seconds"] is None else f", RTO {facts['rto_seconds']:.1f} s"
    what = [
        ("Run", f"{facts['run']} of plan {facts['plan']}, tenant {facts['tenant']}"),
        ("Button pressed", _time(facts["began_at"])),
        (
            "Signed",
            f"{_time(facts['signed_at'])}, by the service on {facts['service_host']}, by whose clock all times are",
        ),
    ]
    what += [("Warning", f"{step['name']}: {_first_line(step['error'])}") for step in facts.get("warnings", [])]
    body = [
        f"<h1>Recovery drill of {escape(facts['plan'])}: "
        f'<span class="{"held" if held else "failed"}">{verdict}{rto}</span></h1>',
        '<p class="small">Copies of recovery points were booted on a network without a way out; the servers themselves'
        " were not touched. RTO: from the button to the last gate that held.</p>",
        _table([], what, "what"),
        *(_server(server, facts["began_at"], pictures) for server in facts["servers"]),
        "<h2>Steps</h2>",
        _table(
            ["Step", "State", "Began after", "Took"],
            [
                [
                    f"{step['name']}: {_first_line(step['error'])}" if step["error"] else step["name"],
                    step["state"],
                    _seconds(_between(facts["began_at"], step["began_at"])),
                    _seconds(step["seconds"]),
                ]
                for step in facts["steps"]
            ],
            "steps",
        ),
        '<p class="small">This page is for reading. What was proven is in the file beside it,'
        f" {escape(facts['run'])}.json, which is signed and holds this page's SHA-256. To check both without a service:"
        f" <code>understudy evidence verify {escape(facts['run'])}.json --key sign.pub</code>, with the public key from"
        f" the service's administrator and not from whoever gave you this page. <code>sha256sum sign.pub</code> says"
        f" <code>{key_sha256}</code>.</p>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:;'
        " style-src 'unsafe-inline'\">"
        f"<title>{escape(facts['run'])}: {escape(facts['plan'])}, {verdict}</title>"
        f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(body) + "\n</body></html>\n"
    ).encode(errors="replace")


def _server(server: Mapping[str, Any], began_at: str, pictures: Mapping[str, bytes]) -> str:
    what: list[tuple[str, Any]] = [
        ("Point", _point(server, began_at)),
        ("Its root", _root(server)),
        ("Boot", _boot(server["boot"])),
    ]
    if server["repair"]:
        changes = server["repair"]["changes"]
        changed = f"; changed: {', '.join(changes)}" if changes else ""
        what.append(("Boot repair", f"{_first_line(server['repair']['error']) or server['repair']['note']}{changed}"))
    if server["filesystems"]:
        checked = server["filesystems"]
        what.append(("Filesystems", _first_line(checked["error"]) or checked["note"]))
    gates = [
        [
            gate["gate"],
            gate["state"],
            _seconds(gate["seconds"]),
            _first_line(gate["error"]) or gate["seen"],
        ]
        for gate in server["gates"]
    ]
    parts = [
        f"<section><h2>{escape(server['server'])}</h2>",
        _table([], what, "what"),
        _table(["Gate", "State", "Took", "Seen"], gates) if gates else "<p>It has no gates.</p>",
        _picture(server, pictures),
        "</section>",
    ]
    return "\n".join(parts)


def _picture(server: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """Screen and console side by side."""
    picture = server["picture"] or {}
    content = pictures.get(picture.get("file") or "")
    lines = "\n".join(picture.get("console") or [])
    console = f'<div><p class="small">The end of its console:</p><pre>{escape(lines)}</pre></div>' if lines else ""
    if content is None:
        return f"<p>{escape(picture.get('note') or 'no picture')}</p>{console}"
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    return (
        f'<div class="seen"><div><p class="small">Its screen, {escape(_time(picture["taken_at"]))}:</p>'
        f'<img alt="the screen of {escape(server["server"])}"'
        f' src="data:image/{kind};base64,{base64.b64encode(content).decode()}">'
        f'<p class="small">SHA-256 <code>{picture["sha256"]}</code></p></div>{console}</div>'
    )


def _point(server: Mapping[str, Any], began_at: str) -> str:
    """Its age when the button was pressed is the RPO that was shown."""
    age_seconds = _between(server["taken_at"], began_at)
    age = "" if age_seconds is None or age_seconds < 0 else f", {_duration(age_seconds)} before the button was pressed"
    kind = ""
    if server["manifest"] is not None:
        point = json.loads(server["manifest"]["manifest"])["point"]
        kind = f"; {point['consistency']}-consistent, {point['completeness']}"
    return f"{server['point']}, taken {_time(server['taken_at'])}{age}{kind}"


def _boot(boot: Mapping[str, Any]) -> str:
    firmware = "UEFI" if boot["uefi"] else "BIOS"
    devices = f", {boot['devices']} devices" if boot.get("devices") else ""
    how = f"{boot['cpus']} CPUs, {boot['memory_mib']} MiB, {firmware}{devices}, network {boot['network']}"
    if boot["state"] == "done":
        return f"started in {_seconds(boot['seconds'])}: {how}"
    return f"{boot['state']}: {_first_line(boot['error']) or 'it was not reached'} ({how})"


def _root(server: Mapping[str, Any]) -> str:
    return f"{server['root']}, signed" if server["root"] else "the point's manifest could not be read"


def _first_line(text: str | None) -> str:
    return text.strip().partition("\n")[0] if text else ""


def _time(iso: str | None) -> str:
    return "-" if iso is None else datetime.fromisoformat(iso).strftime("%Y-%m-%d %H:%M:%S UTC")


def _between(earlier: str | None, later: str | None) -> float | None:
    if earlier is None or later is None:
        return None
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f} s"


def _table(headings: list[str], rows: Iterable[Iterable[Any]], kind: str = "") -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<table class="{kind}">{f"<tr>{head}</tr>" if head else ""}{body}</table>'


def _cell(value: Any) -> str:
    return "-" if value is None else escape(str(value))
