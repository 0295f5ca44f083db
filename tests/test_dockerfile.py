"""The Dockerfile: what it copies exists, its commands parse, its pages ask for a login.

No Docker is needed: the file is read. What its steps do in a new environment is tested in
test_installation.py.
"""

import json
import re
import shlex
import subprocess
from pathlib import PurePosixPath

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from lorarlhf.cli.parser import build_parser
from tests.test_docs import text_of
from tests.test_packaging import PROJECT, ROOT

Instruction = tuple[str, str]


def instructions() -> list[Instruction]:
    """The instructions of the Dockerfile: a word in capitals and what follows it."""
    lines = [line for line in text_of("Dockerfile").splitlines() if not line.startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in whole.split("\n") if line]


def after(name: str) -> list[str]:
    """What follows each instruction with a name."""
    return [rest for word, rest in instructions() if word == name]


def last_stage() -> list[Instruction]:
    """The instructions of the image itself."""
    found = instructions()
    (*_, start) = (place for place, (word, _) in enumerate(found) if word == "FROM")
    return found[start:]


def test_every_instruction_is_one_that_docker_knows() -> None:
    known = {"FROM", "ARG", "RUN", "COPY", "ENV", "USER", "WORKDIR", "VOLUME", "EXPOSE"}
    assert {word for word, _ in instructions()} <= known | {"STOPSIGNAL", "ENTRYPOINT", "CMD"}


def test_what_is_copied_exists_and_reaches_the_builder() -> None:
    copied = [line.split()[:-1] for line in after("COPY")]
    sent = {line[1:] for line in text_of(".dockerignore").splitlines() if line.startswith("!")}
    names = {name for line in copied for name in line}
    assert all((ROOT / name).exists() for name in names)
    assert names == sent
    assert "*" in text_of(".dockerignore").splitlines()  # and nothing else


def test_what_the_wheel_needs_is_copied() -> None:
    folders = PROJECT["tool"]["setuptools"]["package-dir"].values()
    wanted = {PurePosixPath(folder).parts[0] for folder in folders}
    wanted |= {"pyproject.toml", PROJECT["project"]["readme"], "LICENSE", "MANIFEST.in"}
    (first, *_) = (place for place, (word, _) in enumerate(instructions()) if word == "RUN")
    copied = [rest.split()[:-1] for word, rest in instructions()[:first] if word == "COPY"]
    assert wanted <= {name for line in copied for name in line}


def test_the_python_of_the_image_is_one_that_the_package_takes() -> None:
    images = [line.split()[0] for line in after("FROM")]
    assert len(images) == 2 and len(set(images)) == 1
    (version,) = re.findall(r"^python:(3\.\d+)-slim-\w+$", images[0])
    assert SpecifierSet(PROJECT["project"]["requires-python"]).contains(Version(version))


@pytest.mark.parametrize("number", range(len(after("RUN"))))
def test_every_shell_step_parses(number: int) -> None:
    step = re.sub(r"^(--\S+\s+)*", "", after("RUN")[number])
    subprocess.run(["sh", "-n", "-c", step], check=True)


def test_the_version_of_torch_is_read_from_the_constraints() -> None:
    (step,) = (step for step in after("RUN") if "sed" in step)
    (sed,) = re.findall(r"\$\((sed [^)]*)\)", step)
    words = [word.replace("/tmp/", f"{ROOT}/") for word in shlex.split(sed)]
    found = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"torch==[\d.]+\n", found)


@pytest.mark.parametrize(("device", "status"), [("cuda", 0), ("cpu", 0), ("tpu", 1)])
def test_the_device_is_cuda_or_cpu(device: str, status: int) -> None:
    (step,) = (step for step in after("RUN") if "sed" in step)
    case = step[step.index("case ") :].replace("python -m", "echo")
    done = subprocess.run(
        ["sh", "-c", case], env={"DEVICE": device, "torch": "torch==1"}, capture_output=True
    )
    assert done.returncode == status
    assert (b"--torch-backend cpu" in done.stdout) == (device == "cpu")
    assert (b"cuda or cpu" in done.stderr) == (status == 1)


def test_the_image_runs_without_root_and_keeps_projects_in_a_volume() -> None:
    words = [word for word, _ in last_stage()]
    users = [rest for word, rest in last_stage() if word == "USER"]
    assert users == ["lorarlhf"]
    assert "RUN" not in words[words.index("USER") :]
    volumes = json.loads(after("VOLUME")[0])
    assert volumes == ["/projects", "/cache"] and after("WORKDIR")[-1] == "/projects"
    (made,) = (step for step in after("RUN") if "useradd" in step)
    assert "mkdir --mode=1777 /projects /cache" in made
    values = dict(item.split("=", 1) for item in after("ENV")[0].split())
    caches = ("LORARLHF_CACHE", "HF_HOME", "MPLCONFIGDIR", "TRITON_CACHE_DIR")
    assert all(values[name].startswith("/cache/") for name in caches)


def test_its_command_opens_the_pages_with_a_login() -> None:
    program, command = json.loads(after("ENTRYPOINT")[0]), json.loads(after("CMD")[0])
    assert program == list(PROJECT["project"]["scripts"])
    args = build_parser().parse_args(command)
    assert args.command == "ui" and args.no_browser
    assert args.lan  # all addresses, and by that a login: see ui/app.py:_access
    assert after("EXPOSE") == [str(args.port)]
    assert after("STOPSIGNAL") == ["SIGINT"]  # by which a training saves its step


def docker_lines() -> list[list[str]]:
    """The words of each `docker run` in the documentation."""
    text = text_of("docs/installation.md").replace("\\\n", " ")
    return [shlex.split(line.strip()) for line in text.splitlines() if "docker run" in line[:14]]


def test_the_documented_commands_parse_and_publish_on_this_machine_alone() -> None:
    assert len(docker_lines()) > 3
    for words in docker_lines():
        place = words.index("lorarlhf")
        if rest := words[place + 1 :]:
            build_parser().parse_args(rest)
        assert "lorarlhf-projects:/projects" in words[:place]
        published = [words[n + 1] for n, word in enumerate(words[:place]) if word == "-p"]
        assert all(address.startswith("127.0.0.1:") for address in published)


def test_the_documented_build_arguments_exist() -> None:
    text = text_of("docs/installation.md") + text_of("Dockerfile")
    names = set(re.findall(r"--build-arg (\w+)=", text))
    assert names == {line.partition("=")[0] for line in after("ARG")} == {"DEVICE"}
