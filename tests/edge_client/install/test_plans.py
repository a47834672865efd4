# SPDX-License-Identifier: Apache-2.0
"""What an installation would do, as plans, and a running machine with the answers of its programs written down."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edge_client.install.layout import system_layout, user_layout
from edge_client.install.machine import Called, Machine
from edge_client.install.nodefile import finished, open_kit, started
from edge_client.install.plan import Program, install_plan, uninstall_plan
from edge_client.install.steps import Command, File, Folder, Gone, apply
from fedcore.errors import RunError
from tests.edge_client.install.installing import mode_and_owner
from tests.edge_client.install.provisioned import ProvisionedNode


class Programs:
    """Answers by program; everything else succeeds."""

    def __init__(self, **codes: int) -> None:
        self.codes, self.calls = codes, list[str]()

    def __call__(self, arguments: Sequence[str]) -> Called:
        line = " ".join(arguments)
        self.calls.append(line)
        code = next((code for word, code in self.codes.items() if word.replace("_", "-") in line), 0)
        return Called(code, "it is so\nbecause" if code else "")

    def took(self) -> list[str]:
        """What was called, less questions."""
        taken, self.calls = [line for line in self.calls if "is-" not in line and "getent" not in line], []
        return taken


def user_plan(provisioned: ProvisionedNode, home: Path, budget: str = "1GiB", **options: Any) -> list[object]:
    layout, kit = user_layout({}, home), open_kit(provisioned.node)
    said = {
        "run": "reviews",
        "model_folder": str(provisioned.model),
        "data.source": str(provisioned.data),
        "memory_budget": budget,
    }
    document = started(layout.node_file if layout.node_file.exists() else None, kit, said)
    node_file = finished(document, layout, kit, root=Path("/"), copied=None)
    machine = Machine(Path("/"), 252, frozenset(), is_root=False)
    return list(install_plan(layout, machine, Program(Path("/opt/fedkrso/bin/fedkrso"), ()), node_file, kit, **options))


def carry_out(steps: list[object], programs: Programs) -> list[str]:
    apply(steps, Machine(Path("/"), 252, frozenset(), is_root=False), programs, lambda line: None)  # type: ignore[arg-type]
    return programs.took()


def test_a_user_s_service_is_started_once_and_started_anew_when_something_changed(
    provisioned: ProvisionedNode, tmp_path: Path
) -> None:
    home, fresh, running = tmp_path / "home", Programs(is_enabled=1, is_active=3), Programs()
    begin = [
        "systemctl --user daemon-reload",
        "systemctl --user enable fedkrso-client",
        "systemctl --user restart fedkrso-client",
    ]
    assert carry_out(user_plan(provisioned, home), fresh) == begin
    assert (
        mode_and_owner(home / ".config/fedkrso/signing.key")[0] == "0600" and (home / ".local/state/fedkrso").is_dir()
    )
    assert carry_out(user_plan(provisioned, home), running) == []
    assert carry_out(user_plan(provisioned, home, "2GiB"), running) == [begin[0], begin[2]]
    assert carry_out(user_plan(provisioned, home, "2GiB"), Programs(is_active=3)) == [begin[2]]
    assert carry_out(user_plan(provisioned, home, "2GiB", start=False), Programs(is_active=3)) == []
    key = home / ".config/fedkrso/certificate.pem"
    key.write_text("damaged")
    assert carry_out(user_plan(provisioned, home, "2GiB"), running) == [begin[2]] and key.read_text() != "damaged"


def test_a_server_beside_the_agent_comes_and_goes(provisioned: ProvisionedNode, tmp_path: Path) -> None:
    home, running = tmp_path / "home", Programs()
    carry_out(user_plan(provisioned, home), running)
    alone = (home / ".config/systemd/user/fedkrso-client.service").read_text()
    assert "Slice=" not in alone
    fresh = Programs(is_enabled=1, is_active=3)
    assert carry_out(user_plan(provisioned, home, serve=True), fresh) == [
        "systemctl --user daemon-reload",
        "systemctl --user enable fedkrso-client",
        "systemctl --user enable fedkrso-serve",
        "systemctl --user restart fedkrso-client",
        "systemctl --user restart fedkrso-serve",
    ]
    units = {path.name: path.read_text() for path in (home / ".config/systemd/user").iterdir() if path.is_file()}
    server, node_file = units["fedkrso-serve.service"], home / ".config/fedkrso/node.toml"
    assert f"ExecStart=/opt/fedkrso/bin/fedkrso client serve {node_file}\n" in server
    # One budget for both, by the kernel too.
    assert all("Slice=fedkrso.slice\n" in units[name] for name in ("fedkrso-client.service", "fedkrso-serve.service"))
    assert "MemoryHigh=1024M\nMemoryMax=1075M\n" in units["fedkrso.slice"]
    assert "Type=exec\n" in server and "WatchdogSec" not in server and "--stay" not in server
    assert carry_out(user_plan(provisioned, home, serve=True), running) == []
    gone = carry_out(user_plan(provisioned, home), running)
    assert gone[0] == "systemctl --user disable --now fedkrso-serve" and "fedkrso-serve" not in " ".join(gone[1:])
    assert not (home / ".config/systemd/user/fedkrso-serve.service").exists()
    assert (home / ".config/systemd/user/fedkrso-client.service").read_text() == alone


def test_a_program_that_fails_is_named_with_what_it_said(provisioned: ProvisionedNode, tmp_path: Path) -> None:
    with pytest.raises(RunError) as error:
        carry_out(user_plan(provisioned, tmp_path / "home"), Programs(is_active=3, restart=1))
    assert (
        error.value.one_line()
        == "systemctl --user restart fedkrso-client: failed with code 1: it is so (fedkrso client logs)"
    )


def test_plans_of_a_running_device(provisioned: ProvisionedNode) -> None:
    layout, kit = system_layout(), open_kit(provisioned.node)
    said = {
        "run": "reviews",
        "model_folder": str(provisioned.model),
        "data.source": str(provisioned.data),
        "memory_budget": "1GiB",
    }
    node_file = finished(started(None, kit, said), layout, kit, root=Path("/"), copied=None)
    machine = Machine(Path("/"), 255, frozenset({"video", "render"}), is_root=True)
    program = Program(Path("/home/ann/venv/bin/fedkrso"), (Path("/home/ann/venv"), Path("/usr")))
    steps = install_plan(layout, machine, program, node_file, kit)
    accounts = next(step for step in steps if isinstance(step, File) and step.path == layout.accounts)
    assert accounts.content.decode().splitlines()[1:] == ["m fedkrso video", "m fedkrso render"]
    unit = next(step for step in steps if isinstance(step, File) and step.path == layout.unit).content.decode()
    assert (
        "BindReadOnlyPaths=-/home/ann/venv" in unit
        and "DelegateSubgroup=agent" in unit
        and f'"-{provisioned.data}"' not in unit
    )
    secrets = [step for step in steps if isinstance(step, File) and step.secret]
    assert {step.path.name for step in secrets} == {"certificate.key", "signing.key"}
    assert all((step.mode, step.owner) == (0o600, "fedkrso:fedkrso") for step in secrets)
    commands = [step.arguments for step in steps if isinstance(step, Command)]
    assert commands[0] == ("systemd-sysusers", "/etc/sysusers.d/fedkrso.conf") and commands[-1] == (
        "systemctl",
        "restart",
        "fedkrso-client",
    )
    order = [step.path for step in steps if isinstance(step, Folder | File)]
    assert order.index(layout.configuration) < order.index(layout.node_file) < order.index(layout.unit)
    purge = uninstall_plan(layout, machine, purge=True)
    assert {step.path for step in purge if isinstance(step, Gone)} >= {
        layout.configuration,
        layout.state,
        layout.cache,
        layout.unit,
    }


def test_a_password_of_a_broker_is_a_secret_too(provisioned: ProvisionedNode) -> None:
    (provisioned.node / "word").write_text("secret\n")
    (provisioned.node / "node.toml").write_text(
        'node = "kitchen"\nrun = "r"\nmodel_folder = "../../../model"\n[data]\nsource = "mine:rows"\n'
        '[broker]\nurl = "mqtts://h"\nusername = "kitchen"\npassword_file = "word"\n'
    )
    kit = open_kit(provisioned.node)
    assert [(file.name, file.secret) for file in kit.files] == [("broker.password", True)] and kit.name == ""
    file = finished(started(None, kit, {}), user_layout({}, Path("/home/ann")), kit, root=Path("/"), copied=None)
    assert file.node.data.source == "mine:rows" and [path.name for path in file.reads] == ["model"]
    assert file.budget_bytes > 0 and file.text.count("MiB") == 1, (
        "a share becomes a size: the service's own limit comes from it"
    )
