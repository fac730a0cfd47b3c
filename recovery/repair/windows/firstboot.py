"""What Windows does by itself at its first start on other hardware: a service of ours, and the script that it runs.

The script says on the serial console that Windows is up, which a gate can wait for in a drill too, has the drivers
installed that were supplied, says of each how that ended, and removes itself with its service. Addresses need nothing:
Windows asks DHCP for every card that it meets for the first time, and a site answers with what the plan says.

The service's program is cmd.exe, which is none that the service manager knows how to talk to: it starts the script
beside it and ends at once. The manager then notes a failed start, which ErrorControl 0 makes harmless.
"""

from __future__ import annotations

from collections.abc import Mapping

from recovery.repair.draft import Draft
from recovery.repair.record import Finding
from recovery.repair.windows.drivers import control_sets
from recovery.repair.windows.hivedraft import EXPAND_SZ, MULTI_SZ, HiveDraft

SERVICE = "UnderstudyFirstBoot"
SAYS_UP = "understudy: Windows is up"
_FOLDER = "Understudy"
_SCRIPT_NAME = "first-boot.cmd"
_OWN_PROCESS, _AUTOMATIC, _ERROR_IGNORED = 0x10, 2, 0
_CMD = r"%SystemRoot%\System32\cmd.exe"
_COMMAND = rf'{_CMD} /c start "" /b {_CMD} /c %SystemRoot%\{_FOLDER}\{_SCRIPT_NAME}'
_SCRIPT = rf"""@echo off
rem Left by Understudy's boot repair; its service {SERVICE} runs this once, at the first start on other hardware.
setlocal
set here=%SystemRoot%\{_FOLDER}
call :say {SAYS_UP.removeprefix("understudy: ")}
for %%i in (%here%\drivers\*.inf) do call :install %%i
call :say first boot done
sc delete {SERVICE} >nul 2>nul
rd /s /q %here% & exit /b

:install
%SystemRoot%\System32\pnputil.exe -i -a %1 >nul 2>nul
if errorlevel 1 (call :say %~nx1: pnputil ended with %errorlevel%) else (call :say %~nx1 is installed)
exit /b

:say
>\\.\COM1 echo understudy: %*
exit /b
"""
SCRIPT = _SCRIPT.replace("\n", "\r\n").encode("ascii")


def repair(draft: Draft, hive: HiveDraft, windows: str, packages: Mapping[str, bytes]) -> list[Finding]:
    """Draft the service, its script and the drivers that it installs. Done already: no findings, no changes.

    `windows`: where the Windows folder is, as the guest spells it."""
    before = len(draft.changes()), len(hive.changes)
    why = "what Windows does at its first start on other hardware"
    draft.write(f"{windows}/{_FOLDER}/{_SCRIPT_NAME}", SCRIPT, why)
    for name, content in packages.items():
        draft.write(f"{windows}/{_FOLDER}/drivers/{name}", content, "a driver of the operator's to install then")
    for control_set in control_sets(hive):
        key = rf"{control_set}\Services\{SERVICE}"
        hive.set_dword(key, "Type", _OWN_PROCESS, why)
        hive.set_dword(key, "Start", _AUTOMATIC, why)
        hive.set_dword(key, "ErrorControl", _ERROR_IGNORED, why)
        hive.set_text(key, "ImagePath", _COMMAND, why, EXPAND_SZ)
        hive.set_text(key, "ObjectName", "LocalSystem", why)
        hive.set_text(key, "DependOnService", "PlugPlay", why, MULTI_SZ)
    if before == (len(draft.changes()), len(hive.changes)):
        return []
    return [Finding("warn", "nothing tells from outside that Windows is up", repaired=True)]
