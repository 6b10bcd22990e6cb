"""What ``deploy/`` says of variables, flags, ports and routes is what the package has."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path

import pytest

from activation_logging.asgi import OPEN_PATHS
from activation_logging.settings import ServerSettings, Settings
from activation_logging.text import parse_size
from activation_logging.vllm_serve import make_parser

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BASE = DEPLOY / "kubernetes" / "base"
IMAGES = sorted(DEPLOY.glob("*.Dockerfile"))
NOT_OURS = {
    *("HF_HOME", "HF_TOKEN", "NVIDIA_DRIVER_CAPABILITIES", "NVIDIA_VISIBLE_DEVICES", "PATH"),
    *("VLLM_API_KEY", "VLLM_CPU_KVCACHE_SPACE"),
}
VARIABLES = re.compile(r"`(ACTIVATION_[A-Z_]+)`")


def ours() -> set[str]:
    """The variables that the README's table lists, which another test compares with the code."""
    return set(VARIABLES.findall((ROOT / "README.md").read_text()))


def documents(path: Path):
    return list(pytest.importorskip("yaml").safe_load_all(path.read_text()))


@pytest.fixture(scope="module")
def stateful():
    (found,) = documents(BASE / "server.yaml")
    return found


@pytest.fixture(scope="module")
def pod(stateful):
    return stateful["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def server(pod):
    (found,) = pod["containers"]
    return found


def instructions(path: Path) -> list[tuple[str, str]]:
    """A Dockerfile's instructions, with their lines joined."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [
        (word, rest) for word, _, rest in (one.partition(" ") for one in joined.split("\n") if one)
    ]


def environment(path: Path) -> dict[str, str]:
    found = [shlex.split(rest) for word, rest in instructions(path) if word == "ENV"]
    return dict(pair.split("=", 1) for words in found for pair in words)


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)
class TestImages:
    def test_variables(self, path):
        given = environment(path)
        assert set(given) <= ours() | NOT_OURS
        Settings.from_env(given)
        store, volume = given["ACTIVATION_LMDB_PATH"], dict(instructions(path))["VOLUME"]
        assert store.startswith(f"{volume}/")

    def test_what_it_runs(self, path):
        said = dict(instructions(path))
        *python, module = json.loads(said["ENTRYPOINT"])
        assert python == ["python", "-m"]
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file()
        assert said["EXPOSE"] == "8000"
        check = said["HEALTHCHECK"]
        assert "http://127.0.0.1:8000/health" in check
        assert "/health" in OPEN_PATHS
        ast.parse(json.loads(check[check.index("[") :])[-1])

    def test_what_it_installs(self, path):
        said = " ".join(rest for word, rest in instructions(path) if word == "RUN")
        for requirements in re.findall(r"-r (\S+)", said):
            assert (ROOT / requirements).is_file()
        for extras in re.findall(r'"\.\[([\w,]+)\]"', said):
            text = (ROOT / "pyproject.toml").read_text()
            assert all(f"\n{extra} = [" in text for extra in extras.split(","))
        for target in re.findall(r"make (\w+) [A-Z]", said):
            assert f"\n{target}:" in (ROOT / "Makefile").read_text()
        left_out = (ROOT / ".dockerignore").read_text().splitlines()
        assert not {"activation_logging", "packaging", "Makefile", "pyproject.toml"} & set(left_out)


class TestKubernetes:
    def test_variables(self, server):
        given = {each["name"]: each.get("value") for each in server["env"]}
        assert set(given) <= ours() | NOT_OURS
        plain = {name: value for name, value in given.items() if value is not None}
        Settings.from_env(plain)
        ServerSettings.from_env(plain)

    def test_kubernetes_sets_none_of_ours(self, pod, stateful):
        """A service of this name would give each pod ACTIVATION_LOGGING_PORT and its like."""
        assert pod["enableServiceLinks"] is False
        assert stateful["metadata"]["name"] == "activation-logging"

    def test_secrets_are_referred_to(self, server):
        for each in server["env"]:
            if re.search("KEY|TOKEN|SECRET|PASSWORD", each["name"]):
                assert "value" not in each
                assert each["valueFrom"]["secretKeyRef"]["name"] == "activation-logging"

    def test_flags(self, server):
        parser = make_parser()
        _, theirs = parser.parse_known_args(server["args"])
        flags = dict(each.removeprefix("--").split("=") for each in theirs)
        assert set(flags) == {"model", "host", "port"}
        assert int(flags["port"]) == server["ports"][0]["containerPort"]

    def test_ports_and_routes(self, stateful, server):
        (port,) = server["ports"]
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            asked = server[kind]["httpGet"]
            assert asked["path"] in OPEN_PATHS
            assert asked["port"] == port["name"]
        notes = stateful["spec"]["template"]["metadata"]["annotations"]
        assert notes["prometheus.io/path"] in OPEN_PATHS
        assert notes["prometheus.io/port"] == str(port["containerPort"])
        (service,) = documents(BASE / "service.yaml")
        assert service["spec"]["ports"][0]["targetPort"] == port["name"]

    def test_names_that_belong_together(self, stateful):
        (service,) = documents(BASE / "service.yaml")
        labels = stateful["spec"]["template"]["metadata"]["labels"]
        assert service["spec"]["selector"].items() <= labels.items()
        assert stateful["spec"]["selector"]["matchLabels"].items() <= labels.items()
        assert stateful["spec"]["serviceName"] == service["metadata"]["name"]

    def test_the_store_fits_its_volume(self, stateful, server):
        (claim,) = stateful["spec"]["volumeClaimTemplates"]
        (mount,) = (m for m in server["volumeMounts"] if m["name"] == claim["metadata"]["name"])
        given = {each["name"]: each.get("value") for each in server["env"]}
        assert given["ACTIVATION_LMDB_PATH"].startswith(f"{mount['mountPath']}/")
        gigabytes = re.fullmatch(r"(\d+)Gi", claim["spec"]["resources"]["requests"]["storage"])
        assert gigabytes is not None
        assert parse_size(given["ACTIVATION_MAX_SIZE"]) < int(gigabytes[1]) << 30

    @pytest.mark.parametrize("name", ["base", "cuda"])
    def test_every_file_is_listed(self, name):
        folder = DEPLOY / "kubernetes" / name
        (listed,) = documents(folder / "kustomization.yaml")
        patches = [patch["path"] for patch in listed.get("patches", ())]
        named = [*listed["resources"], *patches]
        assert all((folder / each).exists() for each in named)
        files = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
        assert files <= set(named)

    def test_the_patch_is_of_this_container(self, stateful, server):
        (patch,) = documents(DEPLOY / "kubernetes" / "cuda" / "gpu.yaml")
        assert patch["metadata"]["name"] == stateful["metadata"]["name"]
        (changed,) = patch["spec"]["template"]["spec"]["containers"]
        assert changed["name"] == server["name"]
        assert changed["args"][1:] == server["args"][1:]


class TestRayServe:
    def test_variables(self):
        tree = ast.parse((DEPLOY / "ray_serve.py").read_text())
        texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        named = {text for text in texts if re.fullmatch("[A-Z]+(_[A-Z]+)+", str(text))}
        assert named <= ours() | NOT_OURS
        assert "ACTIVATION_MODEL" in named

    def test_the_application_is_the_servers(self):
        """It is imported only where it serves: this asks whether the name is there."""
        tree = ast.parse((ROOT / "activation_logging" / "server.py").read_text())
        assert any(
            isinstance(n, ast.Assign) and ast.unparse(n).startswith("app = ") for n in tree.body
        )
