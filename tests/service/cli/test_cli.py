"""`understudy` as a user calls it, against a real service."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.protocol.errors import UsageError
from agent.protocol.tokens import AdminToken
from service.cli.asking import confirm
from service.cli.client import Service as Client
from service.cli.parser import build_parser
from tests.faults.harness import BINARIES, Service, run, served
from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).parents[3]
PLAN = "plan: shop\ngroups:\n  - servers:\n      - name: web01\n"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with served(tmp_path_factory.mktemp("service")) as made:
        yield made
    assert not (made.data / "service.json").exists()


def commands() -> list[str]:
    (subparsers,) = (action for action in build_parser()._actions if action.dest == "==SUPPRESS==" and action.choices)
    assert subparsers.choices
    return list(subparsers.choices)


ACTIONS = ["plan apply", "plan show", "plan check", "plan list", "plan remove", "seed import", "drills schedule"]


@pytest.mark.parametrize("command", ["", *commands(), *ACTIONS])
def test_every_command_has_help_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args([*command.split(), "--help"])
    assert ended.value.code == 0
    assert f"examples:\n  understudy {command}" in capsys.readouterr().out


def test_json_is_one_document_and_nothing_else(service: Service, tmp_path: Path) -> None:
    plan = _file(tmp_path, PLAN)
    for arguments in (["servers"], ["runs"], ["enroll-token"], ["plan", "apply", "--draft", str(plan)],
                      ["plan", "show", "shop"], ["plan", "list"], ["caps"], ["audit"]):  # fmt: skip
        ran = run("understudy", *arguments, "--data", service.data, "--json")
        assert (ran.code, ran.err) == (0, "")
        json.loads(ran.out)


def test_options_hold_before_the_command_as_well_as_behind_it(service: Service) -> None:
    kept = run("understudy", "caps", "--instances", "7", "--data", service.data, "--tenant", "acme", "--json").document
    assert run("understudy", "--data", service.data, "--tenant", "acme", "--json", "caps").document == kept
    assert run("understudy", "--data", service.data, "--json", "caps").document != kept
    assert run("understudy-agent", "--json", "inventory").document["machine_id"]


def test_every_request_is_made_in_the_tenants_name() -> None:
    token = AdminToken("s", "0" * 64)
    assert Client("https://host", token, "acme").address("/x", {"a": 1, "b": None}) == "/x?tenant=acme&a=1"
    assert Client("https://host", token).address("/x", {}) == "/x"


def test_a_token_comes_with_the_line_to_run(service: Service) -> None:
    issued = run("understudy", "enroll-token", "--name", "web01", "--data", service.data, "--json").document
    assert issued.keys() == {"token", "ca_fingerprint", "expires_at", "command"}
    assert issued["command"] == f"understudy-agent enroll {service.url} {issued['token']}"
    assert issued["token"].endswith(issued["ca_fingerprint"])


def test_the_service_is_found_by_url_and_token_as_well(service: Service) -> None:
    token = (service.data / "admin-token").read_text()
    assert run("understudy", "servers", "--url", service.url, "--token", token, "--json").document == []
    env = {"UNDERSTUDY_URL": service.url, "UNDERSTUDY_TOKEN": token}
    assert run("understudy", "servers", "--json", env=env).document == []


def test_a_token_of_another_service_is_not_even_sent(service: Service) -> None:
    token = (service.data / "admin-token").read_text().strip()
    other = token[:-4] + ("0000" if token[-4:] != "0000" else "1111")
    assert "another fingerprint" in run("understudy", "servers", "--url", service.url, "--token", other).complaint
    secret = token.split("_", 1)[1]
    wrong = f"usa1_{'x' * 43}_{secret[-64:]}"
    assert "does not know" in run("understudy", "servers", "--url", service.url, "--token", wrong).complaint


def test_what_cannot_be_is_one_line_with_a_way_out(service: Service, tmp_path: Path) -> None:
    data = service.data
    assert "nobody" in run("understudy", "points", "nobody", "--data", data).complaint
    assert "nobody" in run("understudy", "take", "nobody", "--data", data).complaint
    assert "nobody" in run("understudy", "panic", "nobody", "--yes", "--data", data).complaint
    assert "failover-x" in run("understudy", "failback", "failover-x", "--yes", "--data", data).complaint
    assert "pt-x" in run("understudy", "verify", "pt-x", "--data", data).complaint
    assert "line 1" in run("understudy", "plan", "apply", _file(tmp_path, "a: ["), "--data", data).complaint
    assert "--data" in run("understudy", "servers").complaint
    assert "serve" in run("understudy", "servers", "--data", tmp_path / "none").complaint
    assert "no service answers" in run("understudy", "servers", "--url", "https://127.0.0.1:1",
                                       "--token", (data / "admin-token").read_text()).complaint  # fmt: skip


@pytest.mark.parametrize("name", ["ünï", "a b", "a/b", "..", "100%", "?x=1", "#"])
def test_names_may_hold_any_character(service: Service, name: str) -> None:
    for arguments in (["points", name], ["plan", "check", name], ["plan", "show", name], ["end", name], ["runs", name],
                      ["take", name], ["verify", name]):  # fmt: skip
        ran = run("understudy", *arguments, "--data", service.data)
        assert f"{name}" in ran.complaint, ran
        assert "there is no" in ran.complaint or "no server" in ran.complaint, ran


def test_a_plan_may_have_a_name_in_any_script(service: Service, tmp_path: Path) -> None:
    plan = _file(tmp_path, PLAN.replace("shop", "лавка"))
    assert run("understudy", "plan", "apply", "--draft", plan, "--data", service.data).code == 0
    assert "лавка" in run("understudy", "plan", "show", "лавка", "--data", service.data).out
    assert run("understudy", "plan", "remove", "лавка", "--data", service.data).code == 0


def test_an_empty_variable_of_a_script_is_no_choice(service: Service) -> None:
    for option in ("--point", "--over-cap"):
        refused = run("understudy", "panic", "web01", "--yes", option, "", "--data", service.data).complaint
        assert "is empty" in refused


def test_a_plan_that_is_no_text_is_one_line(service: Service, tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    assert (
        "no text in UTF-8" in run("understudy", "plan", "apply", tmp_path / "bytes", "--data", service.data).complaint
    )
    assert "longer than" in run("understudy", "plan", "apply", "/dev/zero", "--data", service.data).complaint
    assert "Is a directory" in run("understudy", "plan", "apply", tmp_path, "--data", service.data).complaint


def _file(folder: Path, text: str) -> Path:
    path = folder / "plan.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("arguments", [["nonsense"], [], ["panic"], ["serve", "--data", "/x", "--listen", "nowhere"],
                                       ["panic", "web01"], ["failback", "failover-1"], ["verify"],
                                       ["verify", "--all", "pt-1"], ["verify", "--key", "x", "pt-1"],
                                       ["panic", "web01", "--yes", "--ttl", "2h"], ["clone", "web01", "--copies", "0"],
                                       ["panic", "web01", "--drill", "--fence"], ["runs", "--follow"],
                                       ["failback", "failover-1", "--yes", "--grace", "5"]])  # fmt: skip
def test_wrong_usage_exits_2(service: Service, arguments: list[str]) -> None:
    """Among it: a button that nobody is there to confirm."""
    assert run("understudy", *arguments, "--data", service.data).code == 2


def test_a_plan_that_would_not_work_is_red_and_fails_the_check(service: Service, tmp_path: Path) -> None:
    text = PLAN.replace("shop", "lost")
    refused = run("understudy", "plan", "apply", _file(tmp_path, text), "--data", service.data).complaint
    assert "no server 'web01' is protected" in refused
    assert run("understudy", "plan", "apply", _file(tmp_path, text), "--draft", "--data", service.data).code == 0
    checked = run("understudy", "plan", "check", "lost", "--data", service.data)
    assert "plan lost: RED\n  red: plan lost: no server 'web01' is protected" in checked.out
    assert "would not work as it should" in checked.complaint
    listed = run("understudy", "plan", "list", "--data", service.data, "--json").document
    assert ("lost", "red") in [(entry["plan"], entry["level"]) for entry in listed]
    assert run("understudy", "plan", "remove", "lost", "--data", service.data).code == 0
    assert "lost" in run("understudy", "plan", "check", "lost", "--data", service.data).complaint


def test_caps_are_set_one_by_one_and_taken_away_again(service: Service) -> None:
    def caps(*arguments: str) -> object:
        return run("understudy", "caps", *arguments, "--data", service.data, "--json").document

    assert caps() == {"instances": None, "price_per_hour": None}
    assert caps("--instances", "20") == {"instances": 20, "price_per_hour": None}
    assert caps("--price-per-hour", "12.5") == {"instances": 20, "price_per_hour": 12.5}
    assert caps("--instances", "none", "--price-per-hour", "none") == {"instances": None, "price_per_hour": None}
    for wrong in (["--instances", "many"], ["--price-per-hour", "nan"], ["--price-per-hour", "inf"]):
        assert "is no number" in run("understudy", "caps", *wrong, "--data", service.data).complaint


def test_the_audit_trail_says_who_did_what(service: Service) -> None:
    assert run("understudy", "caps", "--instances", "none", "--data", service.data).code == 0
    newest = run("understudy", "audit", "--most", "1", "--data", service.data, "--json").document
    assert [(entry["who"], entry["action"]) for entry in newest] == [("operator", "caps")]
    assert "operator  caps" in run("understudy", "audit", "--data", service.data).out


def test_on_a_terminal_the_button_needs_no_yes(service: Service) -> None:
    ours, theirs = pty.openpty()
    command = [str(BINARIES / "understudy"), "panic", "nobody", "--data", str(service.data)]
    try:
        ended = subprocess.run(
            command, stdin=theirs, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert ended.returncode == 1, "it gets as far as the service, which knows no such server"
    assert "nobody" in ended.stderr


def test_who_breaks_off_at_the_question_is_told_that_nothing_was_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", Terminal())
    with pytest.raises(UsageError, match="not confirmed, nothing was done"):
        confirm("web01", "takes over")
    assert "web01 takes over.\nType web01 to go on: " in capsys.readouterr().err


def test_a_second_service_on_the_same_folder_or_port_is_refused(service: Service, tmp_path: Path) -> None:
    listen = f"127.0.0.1:{service.port}"
    same = run("understudy", "serve", "--data", service.data, "--listen", "127.0.0.1:0")
    assert "another service runs on" in same.complaint
    taken = run("understudy", "serve", "--data", tmp_path / "other", "--listen", listen)
    assert "cannot listen on" in taken.complaint.splitlines()[-1]


def test_where_only_the_agent_is_installed_the_way_to_the_rest_is_told(tmp_path: Path) -> None:
    code = "import sys; sys.modules['uvloop'] = None; from service.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "serve", "--data", str(tmp_path / "data")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("understudy: the Python package uvloop is not installed")
    assert "pip install" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_site_that_is_not_built_yet_says_so(tmp_path: Path) -> None:
    assert "not built yet" in run("understudy", "serve", "--data", tmp_path / "x", "--site", "aws").complaint


def test_the_operators_token_is_private_and_survives_a_kill_like_all_that_was_committed(tmp_path: Path) -> None:
    service = Service(tmp_path / "service")
    service.start()
    try:
        path = service.data / "admin-token"
        assert path.stat().st_mode & 0o777 == 0o600
        token = path.read_text()
        run("understudy", "plan", "apply", _file(tmp_path, PLAN), "--draft", "--data", service.data, "--json")
        service.kill()
        service.start()
        assert path.read_text() == token
        assert run("understudy", "plan", "show", "shop", "--data", service.data, "--json").document["text"] == PLAN
    finally:
        service.stop()
