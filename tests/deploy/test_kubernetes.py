# SPDX-License-Identifier: Apache-2.0
"""`deploy/kubernetes/` and `deploy/Dockerfile` without a cluster and without a Docker engine: against their schema and
linter, and against the commands, files, extras and secrets that they name."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import check_command

from coordinator.server.settings import ServerSettings
from fedcore.config.reading import load_config

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
FOLDER, DOCKERFILE = ROOT / "deploy" / "kubernetes", ROOT / "deploy" / "Dockerfile"
FILES = sorted(path for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml")
GUIDE = (ROOT / "docs" / "deploy.md").read_text()


def resources() -> Iterator[dict[str, Any]]:
    for path in FILES:
        yield from yaml.safe_load_all(path.read_text())


def pods() -> dict[str, dict[str, Any]]:
    return {found["metadata"]["name"]: found["spec"] for found in resources() if found["kind"] == "StatefulSet"}


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    spec = pod["template"]["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


def test_every_resource_is_what_the_schema_says() -> None:
    validate = pytest.importorskip("kubernetes_validate")
    kinds = []
    for found in resources():
        validate.validate(found, "1.37", strict=True)
        kinds.append(found["kind"])
    assert kinds.count("StatefulSet") == 2 and kinds.count("Service") == 2
    wrong = next(found for found in resources() if found["kind"] == "StatefulSet")
    wrong["spec"]["template"]["spec"]["containers"][0]["memory"] = "1Gi"
    with pytest.raises(validate.ValidationError):
        validate.validate(wrong, "1.37", strict=True)


def test_nobody_is_root_and_everything_has_a_limit() -> None:
    for name, pod in pods().items():
        spec = pod["template"]["spec"]
        assert pod["replicas"] == 1 and spec["automountServiceAccountToken"] is False, name
        security = spec["securityContext"]
        assert security["runAsNonRoot"] and security["runAsUser"] == security["fsGroup"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers(pod):
            walls = container["securityContext"]
            assert walls["readOnlyRootFilesystem"] and walls["allowPrivilegeEscalation"] is False
            assert walls["capabilities"] == {"drop": ["ALL"]} and container["resources"]["limits"]["memory"]
    labels = next(found for found in resources() if found["kind"] == "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_what_is_mounted_is_there_and_what_selects_finds() -> None:
    for name, pod in pods().items():
        spec = pod["template"]["spec"]
        volumes = {volume["name"] for volume in spec["volumes"]}
        volumes |= {claim["metadata"]["name"] for claim in pod["volumeClaimTemplates"]}
        mounted = {mount["name"] for container in containers(pod) for mount in container["volumeMounts"]}
        assert mounted == volumes, name
        assert pod["selector"]["matchLabels"] == pod["template"]["metadata"]["labels"] == {"app": name}
    for found in resources():
        if found["kind"] == "Service":
            ports = {
                port["name"]
                for one in containers(pods()[found["spec"]["selector"]["app"]])
                for port in one.get("ports", [])
            }
            assert {port["targetPort"] for port in found["spec"]["ports"]} <= ports
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    assert sorted(kustomization["resources"]) == [path.name for path in FILES]
    images = {container["image"] for pod in pods().values() for container in containers(pod)}
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    assert images == {compose["broker"]["image"], kustomization["images"][0]["name"]}


def test_the_server_is_started_with_what_the_guide_has_written(tmp_path: Path) -> None:
    pod = pods()["server"]
    [server] = [one for one in containers(pod) if one["name"] == "server"]
    check_command(" ".join(["fedkrso", *server["args"]]))
    section = GUIDE.split("## Kubernetes\n")[1].split("\n## ")[0]
    told = re.search(r"```toml\n(.*?)```", section, re.DOTALL)
    assert told
    (tmp_path / "certificates").mkdir()
    broker = '[broker]\nurl = "mqtts://broker.fedkrso.svc:8883"\n'
    (tmp_path / "server.toml").write_text(told[1] + broker)
    settings = load_config(tmp_path / "server.toml", ServerSettings)
    mounts = {mount["name"]: mount["mountPath"] for mount in server["volumeMounts"]}
    assert settings.runs.startswith(mounts["runs"]) and server["args"][-1].startswith(mounts["fleet"])
    assert settings.address == f"0.0.0.0:{server['ports'][0]['containerPort']}"
    secrets = {
        volume["secret"]["secretName"]
        for each in pods().values()
        for volume in each["template"]["spec"]["volumes"]
        if "secret" in volume
    }
    assert set(re.findall(r"create secret generic (\S+)", section)) == secrets
    assert pods()["broker"]["template"]["spec"]["containers"][0]["command"][-1] in (
        f"{folder}/mosquitto.conf" for folder in re.findall(r"--broker-folder (\S+)", section)
    )


def test_keys_become_files_of_their_owner_alone(tmp_path: Path) -> None:
    """The very line of the manifest, with folders of ours: a secret's files can be read by a group, ours by nobody
    else."""
    [keys] = [one for one in containers(pods()["server"]) if one["name"] == "keys"]
    for name, files in (("secret", ("signing.key", "server.toml")), ("certificates", ("1.pem", "1.key"))):
        (tmp_path / name / "..data").mkdir(parents=True)
        for file in files:
            (tmp_path / name / "..data" / file).write_text(file)
            (tmp_path / name / file).symlink_to(Path("..data") / file)
    (tmp_path / "fleet").mkdir()
    [line] = keys["args"]
    line = re.sub(r"(?<=[ ;])/(?=secret|certificates|fleet)", f"{tmp_path}/", line)
    subprocess.run([*keys["command"], line], check=True, timeout=120)
    made = {path.relative_to(tmp_path / "fleet").as_posix(): path for path in (tmp_path / "fleet").rglob("*.*")}
    assert made.keys() == {"signing.key", "server.toml", "certificates/1.pem", "certificates/1.key"}
    for path in made.values():
        assert path.stat().st_mode & 0o777 == 0o600 and not path.is_symlink()


def test_the_dockerfile_passes_its_linter(tmp_path: Path) -> None:
    linter = shutil.which("hadolint", path=f"{Path(sys.executable).parent}") or shutil.which("hadolint")
    if linter is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([linter, str(DOCKERFILE)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout
    (tmp_path / "Dockerfile").write_text(DOCKERFILE.read_text().replace("USER 10001", "USER root", 1) + "USER root\n")
    assert subprocess.run([linter, str(tmp_path / "Dockerfile")], capture_output=True, timeout=300).returncode == 1


def test_extras_files_and_arguments_that_the_dockerfile_names_are_there() -> None:
    text = DOCKERFILE.read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = [name for group in re.findall(r"\.whl\)\[([\w,]+)\]", text) for name in group.split(",")]
    assert len(named) == 5 and set(named) <= extras.keys()
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        assert all((ROOT / name).exists() for name in source.split()), source
    stages = set(re.findall(r" AS (\S+)$", text, re.MULTILINE))
    assert set(re.findall(r"--from=(\S+)", text)) <= stages
    used = set(re.findall(r"\$\{?([A-Z][A-Z_]+)", text))
    assert used <= set(re.findall(r"^ARG (\w+)=", text, re.MULTILINE))
    users = re.findall(r"^USER (\d+)$", text, re.MULTILINE)
    assert users == ["10001"] * 3 and all(f"--uid {user}" in text for user in users)
