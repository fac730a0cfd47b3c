"""`understudy verify`: points read back by the service, or one manifest checked here with the public key alone."""

from __future__ import annotations

import argparse
from typing import Any

from agent.protocol.errors import NotFound, StorageError, UsageError
from service.cli.client import Service, api
from service.cli.output import emit, say, show_share


def misused(options: argparse.Namespace) -> str | None:
    """What is wrong with the words given, which no parser sees; None if nothing is."""
    if sum((options.point is not None, options.all, options.offline is not None)) != 1:
        return "verify what? name a point, or say --all, or --offline MANIFEST"
    if options.offline is None and (options.key or options.volume):
        return "--key and --volume are for --offline: the service has its own key"
    return None


def verify(options: argparse.Namespace) -> None:
    """Every point is looked at, whatever is wrong with an earlier one; any damage that is left fails the command."""
    if options.offline is not None:
        _offline(options)
        return
    service = Service.of(options)
    wanted = [options.point]
    if options.all:
        wanted = [known["point"] for known in service.get("/api/v1/points", tenant=options.tenant)]
    results: list[dict[str, Any]] = []
    if options.all:
        told = service.post("/api/v1/database/verify", tenant=options.tenant, heal="1" if options.heal else None)
        if told["verdict"]["findings"]:
            results.append(_result("database", told["verdict"]))
            if not options.json:
                say(_text(results[0]))
    for point_id in wanted:
        try:
            result = _verified(service, options, point_id)
        except NotFound:
            if options.point:
                raise
            continue  # retention removed it since it was listed
        results.append(result)
        if not options.json:
            say(_text(result))
    if options.json:
        emit(options, results if options.all else results[0], "")
    damaged = [result["point"] for result in results if not result["ok"]]
    if damaged:
        raise StorageError(
            f"{len(damaged)} of {len(results)} are damaged: {', '.join(damaged)}",
            _way_out([finding for result in results for finding in result["findings"]]),
        )


def _verified(service: Service, options: argparse.Namespace, point_id: str) -> dict[str, Any]:
    result = _result(point_id)
    try:
        path = api("points", point_id, "verify")
        for line in service.lines(path, tenant=options.tenant, heal="1" if options.heal else None):
            if "verdict" in line:
                result = _result(point_id, line["verdict"])
            elif line["size_bytes"]:
                show_share(options, f"verify {point_id}", line["done_bytes"], line["size_bytes"])
    except StorageError as error:
        result["error"] = str(error)
    show_share(options, "", 1, 1)
    return result


def _result(name: str, verdict: dict[str, Any] | None = None) -> dict[str, Any]:
    """What is told of a point, or of the database; `verdict` None: nothing is known yet."""
    result: dict[str, Any] = {"point": name, "ok": False, "error": None, "verified_at": None, "findings": []}
    if verdict is not None:
        result |= {name: verdict[name] for name in ("findings", "verified_at", "read_bytes")}
        left = [finding["what"] for finding in verdict["findings"] if not finding["healed"]]
        result |= {"ok": verdict["sound"], "error": "; ".join(left) or None}
    return result


def _text(result: dict[str, Any]) -> str:
    if not result["findings"]:
        return f"{result['point']}: {result['error'] or 'every block and the signed root are sound'}"
    lines = [f"{result['point']}: " + ("sound again" if result["ok"] else "DAMAGED")]
    for finding in result["findings"]:
        lines.append(f"  {finding['what']}")
        affected = f"; affects {', '.join(finding['points'])}" if finding["points"] else ""
        lines.append(f"    in {finding['where']}{affected}")
        outcome = f"healed: {finding['healed']}" if finding["healed"] else f"way out: {finding['way_out']}"
        lines.append(f"    {outcome}")
    return "\n".join(lines)


def _way_out(findings: list[dict[str, Any]]) -> str:
    """The first finding's: the others are told above."""
    return next((finding["way_out"] for finding in findings if not finding["healed"]), "see the service's log")


def _offline(options: argparse.Namespace) -> None:
    if options.key is None:
        raise UsageError("a signature is checked with a public key", "say --key: pki/sign.pub of the service")
    if options.heal:
        raise UsageError("--heal needs the service", "leave --offline out")
    from service.offline import check_offline  # libraries that no other command needs

    images = dict(_numbered(volume) for volume in options.volume)
    checked = check_offline(
        options.offline, options.key, images, lambda done, total: show_share(options, "read", done, total)
    )
    emit(options, checked.to_json(), checked.text())


def _numbered(volume: str) -> tuple[int, str]:
    number, separator, image = volume.partition("=")
    if not separator or not number.isdecimal() or not image:
        raise UsageError(f"--volume {volume!r} is not N=IMAGE", "like --volume 0=web01.qcow2")
    return int(number), image
