"""The image, as far as it can be checked without building it."""

import re

from infra.generate import IMAGE_HAPROXY, INFRA
from tests.unit.infra.files import PROJECT, manifests

DOCKERFILE = INFRA / "docker/Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """Instruction and arguments, lines that go on put together, without comments."""
    lines = [line for line in DOCKERFILE.read_text("utf-8").splitlines() if not line.lstrip().startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line.strip())]


def arguments(name: str) -> list[str]:
    return [rest for word, rest in instructions() if word == name]


def copied() -> list[str]:
    return [source for copy in arguments("COPY") for source in copy.split()[:-1]]


def test_every_instruction_is_one() -> None:
    known = {"FROM", "RUN", "WORKDIR", "COPY", "ARG", "ENV", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "CMD"}
    assert {word for word, _ in instructions()} <= known
    assert instructions()[0][0] == "FROM"


def test_what_is_copied_exists_and_reaches_the_builder() -> None:
    allowed = {
        line.removeprefix("!")
        for line in (INFRA / "docker/Dockerfile.dockerignore").read_text("utf-8").splitlines()
        if line.startswith("!")
    }
    assert set(copied()) == allowed
    assert all((PROJECT / source).exists() for source in copied())


def test_nothing_else_reaches_the_builder() -> None:
    lines = (INFRA / "docker/Dockerfile.dockerignore").read_text("utf-8").splitlines()
    patterns = [line for line in lines if not line.startswith("#")]
    assert patterns[0] == "*"
    assert {"**/.env", "**/*.pem", "**/__pycache__"} <= set(patterns)


def test_what_make_installs_from_is_copied() -> None:
    makefile = (PROJECT / "Makefile").read_text("utf-8")
    [needed] = re.findall(r"^\$\(VENV\)/serve.stamp:(.*)$", makefile, flags=re.MULTILINE)
    files = [file for file in needed.split() if not file.startswith("$")]
    assert files
    assert all(any(file == source or file.startswith(f"{source}/") for source in copied()) for file in files)


def test_packages_come_by_the_lock_files_from_no_index_that_is_named() -> None:
    runs = " ".join(arguments("RUN"))
    assert "pip install" not in runs
    assert 'make install TORCH="$TORCH"' in runs
    assert not re.search(r"https?://", DOCKERFILE.read_text("utf-8").replace("http://127.0.0.1", ""))
    assert arguments("ARG") == [f"TORCH={torch_of_the_makefile()}"]


def test_it_runs_as_the_user_that_kubernetes_demands() -> None:
    [user] = arguments("USER")
    words = [word for word, _ in instructions()]
    assert words.index("USER") > max(index for index, word in enumerate(words) if word == "RUN")
    [service] = [each for each in manifests() if each["kind"] == "RayService"]
    head = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]
    assert int(user) == head["securityContext"]["runAsUser"] > 0
    assert f"--uid {user} --create-home tritext" in " ".join(arguments("RUN"))


def test_its_haproxy_lies_where_the_nodes_look_for_it() -> None:
    [directory] = arguments("WORKDIR")
    assert f"{directory}/haproxy" == IMAGE_HAPROXY
    assert "python -m infra.haproxy ." in " ".join(arguments("RUN"))


def test_it_says_whether_it_is_well() -> None:
    [check] = arguments("HEALTHCHECK")
    assert "http://127.0.0.1:8000/health" in check


def torch_of_the_makefile() -> str:
    [found] = re.findall(r"^TORCH \?= (\S+)$", (PROJECT / "Makefile").read_text("utf-8"), flags=re.MULTILINE)
    return str(found)
